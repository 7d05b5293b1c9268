#!/usr/bin/env python3
"""Golden inventories of quantised checkpoints, from the libraries that define their layouts.

    quant_shapes.py [--out DIR] [NAME ...]

compressed-tensors and bitsandbytes quantise a tiny LLaMA with random weights; transformers' fp8 modules
are built on the meta device. What they would store is written in the format of
transformers_shapes.py, beside the config that says so. AWQ, GPTQ and gpt-oss's mxfp4 are not here:
their libraries need a GPU to install or keep another layout in memory; tests/quantised.rs checks
them against published totals.

Needs torch, transformers >= 5, compressed-tensors and bitsandbytes. Nothing is downloaded.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import torch
import transformers
from compressed_tensors import __version__ as compressed_version
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from transformers_shapes import ROOT, compress

LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1003, hidden_size=256, num_hidden_layers=2,
    intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, torch_dtype="bfloat16",
)
# preset_name_to_scheme's names; the layout is the library's own choice.
PRESETS = [
    "W8A16", "W4A16", "W4A16_ASYM", "W8A8", "W4A8", "W4AFP8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4",
    "MXFP4", "MXFP8",
]
ARGS = QuantizationArgs
PER_TOKEN = ARGS(num_bits=8, strategy="token", dynamic=True)
OWN = {
    "int8-static-input": (ARGS(num_bits=8, strategy="channel"), ARGS(num_bits=8, strategy="tensor"), {}),
    "int8-static-asymmetric-input": (
        ARGS(num_bits=8, strategy="channel"), ARGS(num_bits=8, strategy="tensor", symmetric=False), {},
    ),
    "int8-asymmetric": (ARGS(num_bits=8, strategy="channel", symmetric=False), PER_TOKEN, {}),
    "int8-tensor": (ARGS(num_bits=8, strategy="tensor"), PER_TOKEN, {}),
    "pack-channel": (ARGS(num_bits=4, strategy="channel"), None, {}),
    "pack-actorder": (ARGS(num_bits=4, strategy="group", group_size=128, actorder="group"), None, {}),
    "pack-with-head": (ARGS(num_bits=4, strategy="group", group_size=128), None, dict(ignore=["re:.*self_attn.*"])),
    "fp8-kv-scales": (
        ARGS(num_bits=8, type="float", strategy="channel"), ARGS(num_bits=8, type="float", strategy="token", dynamic=True),
        dict(kv_cache_scheme=ARGS(num_bits=8, type="float", strategy="tensor", dynamic=False)),
    ),
    "pack-some-modules": (
        ARGS(num_bits=4, strategy="group", group_size=128), None, dict(targets=["re:.*(gate|up|down)_proj"]),
    ),
}
BITSANDBYTES = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-double": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": dict(load_in_8bit=True),
}
FP8 = {
    "block": dict(weight_block_size=[128, 128], activation_scheme="dynamic"),
    "tensor-static": dict(weight_block_size=None, activation_scheme="static"),
    "tensor": dict(weight_block_size=None, activation_scheme="dynamic"),
}


def config_of(fields):
    fields = {k: v for k, v in fields.items() if k not in ("model_type", "architectures")}
    return fields


def llama(device="cpu"):
    with torch.device(device):
        config = transformers.LlamaConfig(**config_of(LLAMA))
        return transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)


def with_compressed_tensors(scheme, ignore=("lm_head",), kv_cache_scheme=None, targets=None):
    if targets:
        scheme.targets = targets
    model = llama()
    plan = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=list(ignore), kv_cache_scheme=kv_cache_scheme
    )
    apply_quantization_config(model, plan)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    written = json.loads(compressor.quantization_config.model_dump_json())
    return {**LLAMA, "quantization_config": written}, model.state_dict()


def with_bitsandbytes(settings):
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        llama().save_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=transformers.BitsAndBytesConfig(**settings), device_map="cpu"
        )
        model.save_pretrained(folder)
        written = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
        return {**LLAMA, "quantization_config": written}, load_file(f"{folder}/model.safetensors")


def with_fp8(settings):
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    plan = transformers.FineGrainedFP8Config(**settings)
    model = replace_with_fp8_linear(llama("meta"), ["lm_head"], plan)
    written = {"quant_method": "fp8", **settings}
    return {**LLAMA, "quantization_config": written}, model.state_dict()


def jobs():
    for name in PRESETS:
        yield f"ct-{name.lower()}", lambda name=name: with_compressed_tensors(preset_name_to_scheme(name, ["Linear"]))
    for name, (weights, inputs, more) in OWN.items():
        yield f"ct-{name}", lambda w=weights, i=inputs, m=more: with_compressed_tensors(
            QuantizationScheme(targets=["Linear"], weights=w, input_activations=i), **m
        )
    for name, settings in BITSANDBYTES.items():
        yield f"bnb-{name}", lambda s=settings: with_bitsandbytes(s)
    for name, settings in FP8.items():
        yield f"fp8-{name}", lambda s=settings: with_fp8(s)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("names", nargs="*")
    ap.add_argument("--out", type=Path, default=ROOT / "crates/model/tests/golden/quantised")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, make in jobs():
        if a.names and name not in a.names:
            continue
        torch.manual_seed(0)
        try:
            config, state = make()
        except Exception as e:
            failed.append(name)
            print(f"{name}: {type(e).__name__}: {str(e)[:300]}", file=sys.stderr)
            continue
        head = {"transformers": transformers.__version__, "compressed_tensors": compressed_version, "config": config}
        lines = ["  " + json.dumps(k) + ": " + json.dumps(v) for k, v in head.items()]
        rows = ",\n".join("    " + json.dumps(row) for row in compress(state))
        lines.append('  "tensors": [\n' + rows + "\n  ]")
        (a.out / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"failed: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
