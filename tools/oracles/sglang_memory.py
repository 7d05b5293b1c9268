#!/usr/bin/env python3
"""An oracle for SGLang's memory rules: runs SGLang's own functions, without a GPU and without torch.

Two questions, asked of every version whose Python sources are given:

- `fraction`: what `--mem-fraction-static`, `--chunked-prefill-size` and the largest captured batch become on a
  card of so many MiB (`ServerArgs`: `__post_init__`, `_handle_gpu_memory_settings`; `arg_groups/memory_hook.py`);
- `pool`: how many tokens (and windows' tokens, and slots of states) a pool of so much memory has
  (`ModelRunner.profile_max_num_token` and what it calls; `KVCacheConfigurator._profile_available_bytes`,
  `MemoryPoolConfigurator`).

The functions are taken out of the source by name and run as they are. What they ask of the rest of SGLang is stood
in for: a card of a given size, flags that nobody set, one group of ranks, element sizes of torch's types. Whether
a model is multimodal, has latent attention or keeps windows apart is given by the case.

    python tools/oracles/sglang_memory.py DIR_WITH_sglang...  > crates/plan/tests/golden/sglang.jsonl

DIR_WITH_sglang holds `sglang/srt` of one version: a wheel of PyPI (`pip download sglang==VERSION --no-deps`)
unzipped. The version is the folder's name after its last `-`. Needs Python 3.11 and nothing else.
Versions tried: those in the golden file.
"""

import ast
import json
import math
import os
import sys
import types
from bisect import bisect_right
from types import SimpleNamespace

GIB = 1 << 30


class Unset:
    """Flags: what is not set is None, and a method that is not there answers False."""

    def __init__(self, **known):
        self.__dict__.update(known)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Quiet:
    """A logger, a module, an environment: whatever is asked of it, it has, and says no."""

    def __getattr__(self, name):
        return Quiet()

    def __call__(self, *args, **kwargs):
        return None

    def get(self, *args):
        return None

    def is_set(self):
        return True


class Torch:
    """Element types by name, and their sizes."""

    class Type:
        def __init__(self, name, size):
            self.name, self.itemsize = name, size

    bfloat16, float16, float32 = Type("bfloat16", 2), Type("float16", 2), Type("float32", 4)
    float8_e4m3fn, uint8, int64 = Type("float8_e4m3fn", 1), Type("uint8", 1), Type("int64", 8)
    dtype = Type
    _utils = SimpleNamespace(_element_size=lambda t: t.itemsize)
    iinfo = staticmethod(lambda t: SimpleNamespace(max=(1 << 63) - 1))


class Numpy:
    """Sums and products of shapes."""

    prod = staticmethod(lambda shape: math.prod(shape))
    sum = staticmethod(lambda parts: sum(parts))


class Take(ast.NodeTransformer):
    """A function without decorators, annotations and imports."""

    def visit_FunctionDef(self, node):
        node.decorator_list = [d for d in node.decorator_list if ast.unparse(d) in ("staticmethod", "property")]
        node.returns = None
        for a in node.args.args + node.args.kwonlyargs:
            a.annotation = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node):
        return ast.Assign(targets=[node.target], value=node.value) if node.value else ast.Pass()

    def visit_Import(self, node):
        return ast.Pass()

    visit_ImportFrom = visit_Import


def load(path, names, into):
    """Executes the functions and classes called `names` of a file in the namespace `into`."""
    tree = ast.parse(open(path).read())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            found.setdefault(node.name, node)
    for name in names:
        if name in found:
            module = ast.fix_missing_locations(ast.Module([Take().visit(found[name])], []))
            exec(compile(module, path, "exec"), into)
    return found


# --------------------------------------------------------------------------------------------
# fraction
# --------------------------------------------------------------------------------------------

# What `nvidia-smi` says of a T4, RTX 5080, 4090, 5090, A100 of 40 GB, RTX 6000 Ada, H100, H20, H200, B200, in MiB.
CARDS = [15360, 16303, 24564, 32607, 40960, 49140, 81559, 97871, 143771, 183359]


def fraction_cases():
    for card in CARDS:
        for tp in (1, 2, 4, 8):
            yield {"card": card, "tp": tp}
        yield {"card": card, "tp": 8, "mla": True}
        yield {"card": card, "tp": 1, "pp": 2}
        yield {"card": card, "tp": 1, "vision": [27, 1152]}
        yield {"card": card, "tp": 1, "vision": [32, 1280]}
    for card in (24564, 81559):
        yield {"card": card, "tp": 1, "chunked_prefill_size": 1024}
        yield {"card": card, "tp": 1, "chunked_prefill_size": 16384}
        yield {"card": card, "tp": 1, "cuda_graph_max_bs": 64}
        yield {"card": card, "tp": 2, "disable_cuda_graph": True}
        yield {"card": card, "tp": 1, "max_running_requests": 16}


def hf_config(case):
    if "vision" not in case:
        return SimpleNamespace()
    layers, hidden = case["vision"]
    return SimpleNamespace(vision_config=SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden))


def fraction(source, case):
    srt = os.path.join(source, "sglang/srt")
    card, multimodal = case["card"], "vision" in case
    model = SimpleNamespace(is_multimodal=multimodal, hf_config=hf_config(case))
    flags = Unset(
        device="cuda",
        tp_size=case["tp"],
        pp_size=case.get("pp", 1),
        dp_size=1,
        attn_dp_size=1,
        dcp_size=1,
        page_size=1,
        model_path="",
        max_prefill_tokens=16384,
        disaggregation_mode="null",
        moe_a2a_backend="none",
        chunked_prefill_size=case.get("chunked_prefill_size"),
        cuda_graph_max_bs=case.get("cuda_graph_max_bs"),
        disable_cuda_graph=case.get("disable_cuda_graph", False),
        max_running_requests=case.get("max_running_requests"),
        # Prefill graphs: on by default where nothing of the case rules them out (`_handle_piecewise_cuda_graph`).
        disable_piecewise_cuda_graph=multimodal or case.get("pp", 1) > 1 or case.get("disable_cuda_graph", False),
        enable_piecewise_cuda_graph=False,
    )
    flags.use_mla_backend = lambda *a: case.get("mla", False)
    flags.get_model_config = lambda: model
    flags.post_capture_kv_sizing_planned = lambda: False
    flags.reserve_for_deepep_a2a_mb = lambda: 0.0
    flags._resolved = lambda: flags
    backend = SimpleNamespace(DISABLED="disabled", FULL="full", TC_PIECEWISE="tc_piecewise", BREAKABLE="breakable")
    off = case.get("disable_cuda_graph", False)
    graphs = SimpleNamespace(
        decode=SimpleNamespace(max_bs=case.get("cuda_graph_max_bs"), bs=None, backend="disabled" if off else "full"),
        prefill=SimpleNamespace(
            max_bs=None, bs=None, backend="disabled" if flags.disable_piecewise_cuda_graph else "tc_piecewise"
        ),
    )
    flags.cuda_graph_config = graphs
    flags._cuda_graph_config_locked = set()
    no = lambda *a, **k: False
    space = {
        "get_device_memory_capacity": lambda *a: card,
        "get_nvgpu_memory_capacity": lambda *a: card,
        "is_hip": no, "is_npu": no, "is_xpu": no, "is_cpu": no, "is_cuda": lambda: True, "is_hpu": no,
        "is_sm100_supported": no, "get_platform": lambda: SimpleNamespace(is_xpu=False),
        "logger": Quiet(), "envs": Quiet(), "get_bool_env_var": no, "copy": SimpleNamespace(deepcopy=lambda x: x),
        "Backend": backend, "Phase": SimpleNamespace(PREFILL="prefill", DECODE="decode"),
        "_DEFAULT_PP_PREFILL_CUDA_GRAPH_MAX_TOKENS": 8192,
        "resolving_view": lambda a: a, "resolved_view": lambda a: a, "model_config_of": lambda a: model,
        "declare_resolution": lambda a, where, **kw: a.__dict__.update(kw),
        "use_mla_backend": lambda a: case.get("mla", False),
        "post_capture_kv_sizing_planned": no, "attn_dp_enabled_of": no,
        "expand_multimodal_decode_graph_to_running_limit": lambda *a: None,
        # The model's configuration is made from its files there; here it is given.
        "ModelConfig": SimpleNamespace(from_server_args=lambda *a: model),
    }  # fmt: skip
    hook = os.path.join(srt, "arg_groups/memory_hook.py")
    helpers = [
        "_generate_cuda_graph_batch_sizes", "_generate_piecewise_cuda_graph_tokens",
        "_generate_decode_cuda_graph_batch_sizes", "_generate_prefill_cuda_graph_batch_sizes",
        "reserve_for_graph_mb", "adjust_mem_fraction_for_vlm",
    ]  # fmt: skip
    if os.path.exists(hook):
        load(os.path.join(srt, "arg_groups/cuda_graph_hook.py"),
             ["generate_prefill_cuda_graph_batch_sizes", "generate_decode_cuda_graph_batch_sizes"], space)
        names = ["handle_gpu_memory_settings", "reserve_for_graph_mb", "reserve_for_deepep_a2a_mb",
                 "adjust_mem_fraction_for_vlm"]
        load(hook, names, space)
        space["handle_gpu_memory_settings"](flags)
    else:
        path = os.path.join(srt, "server_args.py")
        flags.piecewise_cuda_graph_max_tokens = default(path, "piecewise_cuda_graph_max_tokens")
        found = load(path, ["_handle_gpu_memory_settings", *helpers], space)
        for name in helpers:
            if name in found:
                setattr(flags, name, types.MethodType(space[name], flags))
        if "_handle_gpu_memory_settings" in found:
            takes = len(found["_handle_gpu_memory_settings"].args.args)
            space["_handle_gpu_memory_settings"](flags, *([card] if takes > 1 else []))
        else:
            in_post_init(path, flags, space)
    value = flags.mem_fraction_static
    runner = os.path.join(srt, "model_executor/model_runner.py")
    factor = multimodal_factor(runner)
    if multimodal and factor is not None:
        value *= factor
    max_bs = graphs.decode.max_bs if graphs.decode.max_bs is not None else flags.cuda_graph_max_bs
    return {
        "mem_fraction_static": value,
        "chunked_prefill_size": flags.chunked_prefill_size,
        "cuda_graph_max_bs": max_bs,
    }


def default(path, name):
    """The default that `ServerArgs` gives a flag."""
    for node in ast.walk(ast.parse(open(path).read())):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node.value.value if isinstance(node.value, ast.Constant) else None
    return None


def in_post_init(path, flags, space):
    """Before 0.5.3 the rules stand in `__post_init__` among everything else: its statements about the card's
    memory, and those that ask for one of the three flags."""
    tree = ast.parse(open(path).read())
    init = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__post_init__")
    wanted = ("self.mem_fraction_static is None", "self.chunked_prefill_size is None", "self.cuda_graph_max_bs is None")
    body = []
    for node in init.body:
        text = ast.unparse(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "gpu_mem":
            body.append(node)
        elif isinstance(node, ast.If) and ("gpu_mem = " in text or ast.unparse(node.test) in wanted):
            body.append(node)
    space.update(self=flags, model_config=flags.get_model_config())
    space["get_amdgpu_memory_capacity"] = space["get_hpu_memory_capacity"] = space["get_nvgpu_memory_capacity"]
    for node in body:
        Take().visit(node)
    exec(compile(ast.fix_missing_locations(ast.Module(body, [])), path, "exec"), space)


def multimodal_factor(path):
    """The factor that the runner puts on the share for a multimodal model: `self.mem_fraction_static *= 0.95`."""
    tree = ast.parse(open(path).read())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "is_multimodal" in ast.unparse(node.test):
            for inner in node.body:
                if isinstance(inner, ast.AugAssign) and ast.unparse(inner.target) == "self.mem_fraction_static":
                    return inner.value.value
    return None


# --------------------------------------------------------------------------------------------
# pool
# --------------------------------------------------------------------------------------------

# The dimensions that the functions ask for, of models in the built-in catalogue.
LLAMA = {"layers": 32, "kv_heads": 8, "head_dim": 128}
SMALL = {"layers": 28, "kv_heads": 8, "head_dim": 128}
LATENT = {"layers": 61, "kv_heads": 128, "head_dim": 192, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
OSS = {"layers": 24, "kv_heads": 8, "head_dim": 64, "windows": list(range(0, 24, 2)), "window": 128}
NEXT = {
    "layers": 48, "kv_heads": 2, "head_dim": 256, "full": list(range(3, 48, 4)),
    "linear": {"key_heads": 16, "value_heads": 32, "key_dim": 128, "value_dim": 128, "kernel": 4},
}  # fmt: skip
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA, "Qwen/Qwen3-0.6B": SMALL, "deepseek-ai/DeepSeek-V3": LATENT,
    "openai/gpt-oss-20b": OSS, "Qwen/Qwen3-Next-80B-A3B-Instruct": NEXT,
}  # fmt: skip


def pool_cases():
    for model in MODELS:
        for tp in (1, 2, 8) if "linear" not in MODELS[model] else (1, 2):
            for page in (1, 64):
                yield {"model": model, "tp": tp, "page_size": page, "pre_gib": 78.5, "free_gib": 63.25, "fraction": 0.874}
        yield {"model": model, "tp": 1, "page_size": 1, "pre_gib": 39.0, "free_gib": 24.11, "fraction": 0.85,
               "kv": "float8_e4m3fn"}  # fmt: skip
        yield {"model": model, "tp": 1, "page_size": 16, "pre_gib": 78.5, "free_gib": 63.25, "fraction": 0.9,
               "max_total_tokens": 20000}  # fmt: skip


def pool(source, case):
    srt = os.path.join(source, "sglang/srt")
    m, tp = MODELS[case["model"]], case["tp"]
    dtype = getattr(Torch, case.get("kv", "bfloat16"))
    latent, windows, full = "kv_lora_rank" in m, m.get("windows"), m.get("full")
    heads = lambda n, *more: max(1, m["kv_heads"] // n)
    layers = list(range(m["layers"]))
    space = {
        "torch": Torch, "np": Numpy, "logger": Quiet(), "logging": Quiet(), "envs": Quiet(), "math": math,
        "gc": Quiet(), "dataclass": lambda *a, **k: (lambda c: c) if not a else a[0], "field": lambda **k: None,
        "get_available_gpu_memory": lambda *a, **k: case["free_gib"],
        "get_attention_tp_size": lambda: tp, "get_attention_cp_size": lambda: 1,
        "get_world_group": lambda: SimpleNamespace(world_size=1, cpu_group=None),
        "get_parallel": lambda: Unset(attn_tp_size=tp, attn_dcp_size=1, launch_world_size=1, pp_size=1,
                                      world_group=SimpleNamespace(cpu_group=None)),
        "is_float4_e2m1fn_x2": lambda t: False, "is_deepseek_nsa": lambda c: False, "is_deepseek_dsa": lambda c: False,
        "is_minimax_sparse": lambda c: False, "is_deepseek_v4": lambda c: False, "ceil_div": lambda a, b: -(-a // b),
        "_is_npu": False, "_is_hip": False, "bisect_right": bisect_right, "ABC": object,
        "get_global_server_args": lambda: flags, "Mamba2StateDType": None,
        "AttentionArch": SimpleNamespace(MLA="mla", MHA="mha"),
    }  # fmt: skip
    linear = m.get("linear")
    states = None
    if linear:
        states = state_params(srt, linear, tp, [i for i in layers if i not in full], space)
    config = Unset(
        num_hidden_layers=m["layers"], head_dim=m["head_dim"], v_head_dim=m["head_dim"], swa_head_dim=m["head_dim"],
        swa_v_head_dim=m["head_dim"], kv_lora_rank=m.get("kv_lora_rank"), qk_rope_head_dim=m.get("qk_rope_head_dim"),
        attention_arch="mla" if latent else "mha", context_len=131072, hf_config=Unset(architectures=["Any"]),
        get_num_kv_heads=heads, get_swa_num_kv_heads=heads, is_multimodal=False, is_hybrid_swa=bool(windows),
        full_attention_layer_ids=[i for i in layers if windows and i not in windows],
        swa_attention_layer_ids=windows or [],
    )  # fmt: skip
    mambaish = Unset(full_attention_layer_ids=full, mamba2_cache_params=states) if states else None
    flags = Unset(
        mem_fraction_static=case["fraction"], page_size=case["page_size"], max_total_tokens=case.get("max_total_tokens"),
        swa_full_tokens_ratio=0.8, mamba_full_memory_ratio=0.9, kv_cache_dtype="auto", dp_size=1,
        disaggregation_mode="null", attn_cp_size=1,
    )  # fmt: skip
    spec = SimpleNamespace(is_none=lambda: True, is_eagle=lambda: False, is_standalone=lambda: False,
                           is_dflash_family=lambda: False, is_dflash=lambda: False)  # fmt: skip
    info = SimpleNamespace(start_layer=0, end_layer=m["layers"], num_effective_layers=m["layers"],
                           full_attention_layer_ids=config.full_attention_layer_ids,
                           swa_attention_layer_ids=config.swa_attention_layer_ids)  # fmt: skip
    runner = Unset(
        model_config=config, server_args=flags, kv_cache_dtype=dtype, use_mla_backend=latent, device="cuda", gpu_id=0,
        tp_size=1, pp_size=1, dp_size=1, attn_dp_size=1, num_effective_layers=m["layers"], start_layer=0,
        end_layer=m["layers"], mem_fraction_static=case["fraction"], mambaish_config=mambaish, page_size=case["page_size"],
        spec_algorithm=spec, is_draft_worker=False, is_hybrid_swa=bool(windows), sliding_window_size=m.get("window"),
        layer_info=info, is_hybrid_gdn=False, ps=SimpleNamespace(pp_size=1),
    )  # fmt: skip
    flags.override = lambda name, **kw: flags.__dict__.update(kw)
    space["get_schedule"] = lambda: flags
    space["get_memory"] = lambda: Unset()
    space["get_disagg"] = lambda: flags
    space["get_mm"] = space["get_spec"] = space["get_model"] = lambda: Unset()
    graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(full_prefill_max_req=None, backend="x")))
    space["get_exec"] = lambda: Unset(graph=graph, mamba=Unset(), kernel=Unset())
    space["Backend"] = SimpleNamespace(FULL="full")
    space["get_context"] = lambda: SimpleNamespace(override=flags.override)
    space["mambaish_config"] = lambda c: mambaish
    space["mm_runtime_reservation_gb"] = lambda **k: 0.0
    space["compute_page_shard_scratch_bytes"] = lambda *a, **k: 0
    space["get_glm_dsa_layer_split_effective_num_layers"] = lambda kvc, n: n
    space["resolving_view"] = lambda a: a
    space["is_hip"] = space["is_npu"] = lambda: False
    return ask(srt, runner, flags, space, case)


def ask(srt, runner, flags, space, case):
    configurator = os.path.join(srt, "model_executor/pool_configurator.py")
    kv = os.path.join(srt, "mem_cache/kv_cache_configurator.py")
    mixin = os.path.join(srt, "model_executor/model_runner_kv_cache_mixin.py")
    old = mixin if os.path.exists(mixin) else os.path.join(srt, "model_executor/model_runner.py")
    if os.path.exists(configurator):
        names = ["MemoryPoolConfigurator", "DefaultPoolConfigurator", "HybridSWAPoolConfigurator", "_dflash_draft_cell_size"]
        space["MemoryPoolConfig"] = lambda **kw: Unset(**kw)
        load(configurator, names, space)
        for name in ("DefaultPoolConfigurator", "HybridSWAPoolConfigurator"):
            if "_compute_qsa_cell_size" in dir(space[name]):
                space[name]._compute_qsa_cell_size = staticmethod(lambda **k: 0)
        profile = ["_profile_available_bytes", "_handle_max_mamba_cache", "_calculate_mamba_ratio",
                   "calculate_mla_kv_cache_dim", "_pp_local_per_request_bytes", "_pd_prefill_skips_mamba_spec_state",
                   "handle_max_mamba_cache"]  # fmt: skip
        for path in (kv, mixin):
            if os.path.exists(path):
                load(path, profile, space)
        runner.fused_entry_bytes = lambda which: None
        runner.extra_mamba_cache_bytes_per_req = 0
        runner.calculate_mla_kv_cache_dim = lambda: (
            runner.model_config.kv_lora_rank + runner.model_config.qk_rope_head_dim
        )
        for name in ("_handle_max_mamba_cache", "_calculate_mamba_ratio", "handle_max_mamba_cache"):
            if name in space:
                setattr(runner, name, types.MethodType(space[name], runner))
        available = space["_profile_available_bytes"](runner, case["pre_gib"])
        cls = space["HybridSWAPoolConfigurator" if runner.is_hybrid_swa else "DefaultPoolConfigurator"]
        one = cls(runner)
        config = one.calculate_pool_sizes(available, case["page_size"])
        limit = case.get("max_total_tokens")
        if limit is not None and limit < config.max_total_num_tokens:
            config = one.calculate_pool_sizes_from_max_tokens(limit, case["page_size"])
        return answer(config.max_total_num_tokens, config.swa_max_total_num_tokens, flags)
    names = ["profile_max_num_token", "get_cell_size_per_token", "handle_max_mamba_cache", "calculate_mla_kv_cache_dim",
             "set_num_token_hybrid", "set_num_tokens_hybrid_swa", "_resolve_hybrid_swa_tokens"]  # fmt: skip
    found = load(old, names, space)
    for name in names:
        if name in found:
            setattr(runner, name, types.MethodType(space[name], runner))
    tokens = runner.profile_max_num_token(case["pre_gib"])
    if case.get("max_total_tokens") is not None:
        tokens = min(tokens, case["max_total_tokens"])
    page, windows = case["page_size"], None
    tokens = tokens // page * page
    if runner.is_hybrid_swa:
        runner.max_total_num_tokens = tokens
        if "_resolve_hybrid_swa_tokens" in found:
            tokens, _, windows = runner._resolve_hybrid_swa_tokens(tokens)
        elif "set_num_tokens_hybrid_swa" in found:
            runner.set_num_tokens_hybrid_swa()
            tokens, windows = runner.max_total_num_tokens, runner.swa_max_total_num_tokens
        elif "set_num_token_hybrid" in found:
            window = lambda i: runner.sliding_window_size if i in runner.model_config.swa_attention_layer_ids else -1
            layer = lambda i: SimpleNamespace(
                layer_id=i, self_attn=SimpleNamespace(attn=SimpleNamespace(sliding_window_size=window(i)))
            )
            all_layers = [layer(i) for i in range(runner.num_effective_layers)]
            runner.model = SimpleNamespace(model=SimpleNamespace(layers=all_layers))
            runner.set_num_token_hybrid()
            tokens, windows = runner.max_total_num_tokens, runner.swa_max_total_num_tokens
    return answer(tokens, windows, flags)


def answer(tokens, windows, flags):
    out = {"tokens": int(tokens)}
    if windows is not None:
        out["window_tokens"] = int(windows)
    if flags.max_mamba_cache_size is not None:
        out["state_slots"] = int(flags.max_mamba_cache_size)
    return out


def state_params(srt, linear, tp, layers, space):
    """`mamba_cache_per_req`: SGLang's own shapes of a gated delta rule's states, f32 states and bf16 convolutions."""
    path = os.path.join(srt, "configs/mamba_utils.py")
    if not os.path.exists(path):
        return None
    import dataclasses
    from abc import ABC

    own = {"torch": Torch, "np": Numpy, "ABC": ABC, "dataclass": dataclasses.dataclass, "field": dataclasses.field,
           "divide": lambda a, b: a // b, "envs": Quiet(), "os": os, "logger": Quiet()}  # fmt: skip
    tree = ast.parse(open(path).read())
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in (
            "extra_groups_for_head_shards", "Mamba2StateShape", "tensor_model_parallel_divide",
        ):  # fmt: skip
            keep = ast.fix_missing_locations(ast.Module([node], []))
            exec(compile("from __future__ import annotations\n" + ast.unparse(keep), path, "exec"), own)
    import inspect

    given = dict(
        tp_world_size=tp, intermediate_size=linear["value_dim"] * linear["value_heads"], n_groups=linear["key_heads"],
        num_heads=linear["value_heads"], head_dim=linear["value_dim"], state_size=linear["key_dim"],
        conv_kernel=linear["kernel"],
    )  # fmt: skip
    known = inspect.signature(own["Mamba2StateShape"].create).parameters
    shape = own["Mamba2StateShape"].create(**{k: v for k, v in given.items() if k in known})
    conv = shape.conv if isinstance(shape.conv, list) else [shape.conv]
    per_layer = sum(math.prod(c) for c in conv) * 2 + math.prod(shape.temporal) * 4
    return SimpleNamespace(mamba_cache_per_req=per_layer * len(layers), layers=layers)


def main():
    for source in sys.argv[1:]:
        version = os.path.basename(os.path.normpath(source)).rsplit("-", 1)[-1]
        for kind, cases, run in (("fraction", fraction_cases, fraction), ("pool", pool_cases, pool)):
            for case in cases():
                try:
                    result = run(source, case)
                except Exception as e:  # noqa: BLE001: a version without the feature says so
                    print(f"{version} {kind} {case}: {type(e).__name__}: {e}", file=sys.stderr)
                    continue
                print(json.dumps({"version": version, "kind": kind, "case": case, "result": result}, separators=(",", ":")))


main()
