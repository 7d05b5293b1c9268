#!/usr/bin/env python3
"""Tiny quantised checkpoints of every layout that is read, with the logits that transformers computes for what they
stand for, for the tests of plimsoll-program and plimsoll-runtime.

    quantised_logits.py [--out DIR] [NAME ...]

Writes DIR/NAME/{config.json, model.safetensors, expected.safetensors} for each NAME (all, where none is named) and
DIR/README.md with versions. DIR is crates/runtime/tests/quantised unless given.

Weights are those of transformers_logits.py, quantised matrix by matrix. compressed-tensors packs and unpacks its own
layouts. The others are written here from the libraries that define them (AutoAWQ `awq/utils/packing_utils.py`,
GPTQModel `utils/model.py`, DeepSeek-V3 `inference/kernel.py`), and what they stand for is computed from codes, scales
and zero points before these are packed. transformers then gets plain matrices: `logits_exact` are those of the products
in float32, `logits` those of the products rounded to bfloat16.

Needs torch, transformers >= 5, safetensors and compressed-tensors, from PyPI. Nothing else is downloaded.
"""
import argparse
import json
import tempfile
from pathlib import Path

import compressed_tensors
import torch
import transformers as T
from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

import transformers_logits as plain

PROMPT = 40
VOCAB = 128
SMALL = {**plain.COMMON, "vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 64}
GROUP = 32
# AutoAWQ: nibble i of a word has this column of eight.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(numbers):
    """32-bit words with the sign that safetensors' I32 has."""
    numbers = numbers.to(torch.int64) & 0xFFFFFFFF
    return (numbers - (numbers >> 31 << 32)).to(torch.int32)


def packed(codes, bits, order=None):
    """Numbers along the last axis as words, the first in the lowest bits."""
    per = 32 // bits
    codes = codes.to(torch.int64).reshape(*codes.shape[:-1], -1, per)
    codes = codes if order is None else codes[..., order]
    return (codes << (torch.arange(per) * bits)).sum(-1)


def affine(w, bits, symmetric):
    """Codes [groups, GROUP, out], and scales and zero points [groups, out], of a matrix [groups, GROUP, out]."""
    top = 2**bits - 1
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    if symmetric:
        scale = (torch.maximum(-low, high) * 2 / top).half()
        zero = torch.full_like(low, 2 ** (bits - 1))
    else:
        scale = ((high - low) / top).half()
        zero = (-low / scale.float()).round().clamp(0, top)
        # Some that are the smallest there are, so that what is stored less one borrows.
        zero[:, ::16] = 0
    codes = ((w / scale.float()[:, None]).round() + zero[:, None]).clamp(0, top)
    return codes, scale, zero


def awq(name, w):
    inp = w.shape[1]
    codes, scale, zero = affine(w.T.reshape(inp // GROUP, GROUP, -1), 4, False)
    stands_for = ((codes - zero[:, None]) * scale.float()[:, None]).reshape(inp, -1).T
    return {
        "qweight": words(packed(codes.reshape(inp, -1), 4, AWQ_ORDER)),
        "qzeros": words(packed(zero, 4, AWQ_ORDER)),
        "scales": scale,
    }, stands_for


def gptq(bits, symmetric, v2, by_activation):
    def quantise(name, w):
        out, inp = w.shape
        order = torch.arange(inp)
        if by_activation:
            order = torch.randperm(inp, generator=torch.Generator().manual_seed(len(name) + inp))
        codes, scale, zero = affine(w.T[order].reshape(inp // GROUP, GROUP, -1), bits, symmetric)
        products = ((codes - zero[:, None]) * scale.float()[:, None]).reshape(inp, -1)
        # Back to the order of the inputs.
        back = torch.argsort(order)
        codes, stands_for = codes.reshape(inp, -1)[back], products[back].T
        zeros = packed(zero, bits)
        if not v2:
            zeros = zeros - sum(1 << i for i in range(0, 32, bits))
        return {
            "qweight": words(packed(codes.T, bits)).T,
            "qzeros": words(zeros),
            "scales": scale,
            "g_idx": (back // GROUP).to(torch.int32),
        }, stands_for

    return quantise


def fp8(w, scale):
    return (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8_block(rows, columns):
    def quantise(name, w):
        out, inp = w.shape
        high, wide = -(-out // rows), -(-inp // columns)
        full = torch.zeros(high * rows, wide * columns)
        full[:out, :inp] = w
        scale = full.view(high, rows, wide, columns).abs().amax((1, 3)) / 448
        each = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:out, :inp]
        codes = fp8(w, each)
        return {"weight": codes, "weight_scale_inv": scale}, codes.float() * each

    return quantise


def fp8_tensor(name, w):
    scale = w.abs().max() / 448
    codes = fp8(w, scale)
    stored = {"weight": codes, "weight_scale_inv": scale, "activation_scale": torch.tensor(0.5)}
    return stored, codes.float() * scale


def compressed(compressor, args, inputs=None, more=None):
    """compressed-tensors' own packing; scales and zero points are those of the extremes of each group."""

    def quantise(name, w):
        out, inp = w.shape
        group = args.group_size or inp
        state = {"weight": w.bfloat16()}
        order = None
        if args.actorder is not None:
            order = torch.randperm(inp, generator=torch.Generator().manual_seed(len(name) + inp)) // group
            state["weight_g_idx"] = order.to(torch.int32)
        by_group = torch.arange(inp) // group if order is None else order
        shape = (out, inp // group)
        low, high = torch.zeros(shape), torch.zeros(shape)
        for g in range(shape[1]):
            part = state["weight"].float()[:, by_group == g]
            low[:, g], high[:, g] = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if args.type == "float":
            largest = torch.maximum(-low, high)
            scale = (largest.amax() if args.strategy == "tensor" else largest) / 448
            scale = scale.reshape(1) if args.strategy == "tensor" else scale
        else:
            top = 2**args.num_bits - 1
            scale = torch.maximum(-low, high) * 2 / top if args.symmetric else (high - low) / top
        state["weight_scale"] = scale.bfloat16()
        zero = torch.zeros(state["weight_scale"].shape)
        if not args.symmetric:
            half = 2 ** (args.num_bits - 1)
            zero = (-low / state["weight_scale"].float() - half).round().clamp(-half, half - 1)
        state["weight_zero_point"] = zero.to(torch.float8_e4m3fn if args.type == "float" else torch.int8)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
        stored = compressor.compress(state, scheme)
        parts = {n: t for n, t in stored.items()}
        parts["weight_scale"] = parts["weight_scale"].float()
        stands_for = compressor.decompress(parts, scheme)["weight"].float()
        if inputs is not None and not inputs.dynamic:
            stored["input_scale"] = torch.tensor([0.5], dtype=torch.bfloat16)
        return stored, stands_for

    return quantise


def scheme(args, inputs=None, **more):
    groups = {"group_0": {"targets": ["Linear"], "weights": written(args), "input_activations": written(inputs)}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


def written(args):
    return None if args is None else json.loads(args.model_dump_json(exclude_none=True))


def cases():
    """Name, config, what quantises a matrix, `quantization_config`, and tensors beside those of matrices."""
    llama = T.LlamaConfig(**SMALL, head_dim=16, **plain.rope(10000))
    qwen2 = T.Qwen2Config(**{**SMALL, "tie_word_embeddings": True}, **plain.rope(10000))
    phi3 = T.Phi3Config(**SMALL, sliding_window=None, **plain.rope(10000))
    wide = T.LlamaConfig(**{**SMALL, "intermediate_size": 256}, head_dim=16, **plain.rope(10000))
    moe = T.Qwen3MoeConfig(
        **{**SMALL, **plain.EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}, head_dim=16, norm_topk_prob=True,
        **plain.rope(10000))
    deepseek = T.DeepseekV3Config(
        **{**SMALL, **plain.LATENT, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
        q_lora_rank=24, first_k_dense_replace=1, routed_scaling_factor=2.5, n_group=2, topk_group=1,
        norm_topk_prob=True, num_nextn_predict_layers=0, **plain.rope(10000))
    args = QuantizationArgs
    four = args(num_bits=4, strategy="group", group_size=GROUP, symmetric=False, actorder="group")
    pack8 = args(num_bits=8, strategy="channel")
    int8 = args(num_bits=8, strategy="channel", symmetric=False)
    int8_group = args(num_bits=8, strategy="group", group_size=GROUP)
    float8 = args(num_bits=8, type="float", strategy="channel")
    float8_tensor = args(num_bits=8, type="float", strategy="tensor")
    per_token = args(num_bits=8, strategy="token", dynamic=True)
    static8 = args(num_bits=8, type="float", strategy="tensor", dynamic=False)
    pack, naive = PackedQuantizationCompressor, NaiveQuantizationCompressor
    four_bits = dict(bits=4, group_size=GROUP)
    return {
        # Biases, and a head that is the embedding.
        "awq": (qwen2, awq, dict(quant_method="awq", version="gemm", zero_point=True, **four_bits)),
        "awq_experts": (
            moe, awq, dict(quant_method="awq", version="gemm", zero_point=True, **four_bits)),
        "gptq": (
            llama, gptq(4, False, False, True),
            dict(quant_method="gptq", desc_act=True, sym=False, checkpoint_format="gptq", **four_bits)),
        # The head, too.
        "gptq_v2": (
            llama, gptq(8, True, True, False),
            dict(quant_method="gptq", desc_act=False, sym=True, checkpoint_format="gptq_v2", lm_head=True, bits=8,
                 group_size=GROUP)),
        "packed4": (llama, compressed(pack, four), scheme(four, format="pack-quantized", ignore=["lm_head"])),
        # Query, key and value in one matrix, gate and up in another, and the head.
        "packed8": (phi3, compressed(pack, pack8), scheme(pack8, format="pack-quantized", ignore=[])),
        "int8": (
            llama, compressed(naive, int8, per_token),
            scheme(int8, per_token, format="int-quantized", ignore=["lm_head"])),
        "int8_group": (
            llama, compressed(naive, int8_group, per_token),
            scheme(int8_group, per_token, format="int-quantized", ignore=["re:.*down_proj", "lm_head"])),
        "float8": (llama, compressed(naive, float8), scheme(float8, format="float-quantized", ignore=["lm_head"])),
        "float8_static": (
            llama, compressed(naive, float8_tensor, static8),
            scheme(float8_tensor, static8, format="float-quantized", ignore=["lm_head"],
                   kv_cache_scheme=written(static8))),
        "fp8_tensor": (
            phi3, fp8_tensor, dict(quant_method="fp8", weight_block_size=None, activation_scheme="static")),
        # Latents, and experts one by one; blocks end inside matrices.
        "fp8_block": (
            deepseek, fp8_block(16, 32),
            dict(quant_method="fp8", weight_block_size=[16, 32], activation_scheme="dynamic")),
        # Blocks as they are published: some inputs have two, others end inside one.
        "fp8_wide": (
            wide, fp8_block(128, 128),
            dict(quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic")),
    }


def is_quantised(name, config):
    if name == "lm_head.weight":
        return config.get("lm_head", config.get("ignore") == [])
    left = "int-quantized" == config.get("format") and any("down_proj" in i for i in config["ignore"])
    return "_proj" in name and name.endswith(".weight") and not (left and "down_proj" in name)


def logits_of(folder, tensors, config, tokens):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = T.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return plain.logits(model.eval(), tokens).contiguous()


def fixture(name, config, quantise, how, out):
    model = plain.build(name, config)
    tokens = torch.randint(3, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(7))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.bfloat16().save_pretrained(folder, safe_serialization=True)
        written = json.loads((folder / "config.json").read_text())
        stored, exact, rounded = {}, {}, {}
        for key, t in load_file(folder / "model.safetensors").items():
            if not is_quantised(key, how):
                stored[key], exact[key], rounded[key] = t, t.float(), t.float()
                continue
            parts, product = quantise(key, t.float())
            module = key.removesuffix(".weight")
            stored |= {f"{module}.{leaf}": p.contiguous() for leaf, p in parts.items()}
            exact[key], rounded[key] = product.contiguous(), product.bfloat16().float().contiguous()
            off = (product - t.float()).norm() / t.float().norm()
            print(f"  {key}: off by {off:.4f}")
            if "kv_cache_scheme" in how and key.endswith("k_proj.weight"):
                attention = key.removesuffix("k_proj.weight")
                stored |= {f"{attention}{x}_scale": torch.tensor([0.25]).bfloat16() for x in "kv"}
        want = {k: logits_of(folder, t, config, tokens) for k, t in (("logits", rounded), ("logits_exact", exact))}
    off = (want["logits"] - want["logits_exact"]).abs().max().item()
    print(f"{name}: logits of std {want['logits'].std():.2f}; rounding changes them by {off:.3f}")
    target = out / name
    target.mkdir(parents=True, exist_ok=True)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    written["quantization_config"] = how
    (target / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    save_file({"tokens": tokens.to(torch.int32), **want}, target / "expected.safetensors")
    size = (target / "model.safetensors").stat().st_size
    assert size < 200_000, f"{name}: {size} bytes"


README = """# Quantised checkpoints, with logits

Random weights in every layout that is read and, in `expected.safetensors`, a prompt (`tokens`) with the logits of each of
its positions, as transformers computes them in float32 of what the weights stand for (`logits_exact`), and of that rounded
to bfloat16 (`logits`). Made by `tools/oracles/quantised_logits.py` with
{versions}.
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, default=plain.REPOSITORY / "crates/runtime/tests/quantised")
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    torch.set_num_threads(1)
    for name, (config, quantise, how) in cases().items():
        if not a.names or name in a.names:
            fixture(name, config, quantise, how, a.out)
    a.out.mkdir(parents=True, exist_ok=True)
    versions = f"{plain.versions()}, compressed-tensors {compressed_tensors.__version__}"
    (a.out / "README.md").write_text(README.format(versions=versions))


if __name__ == "__main__":
    main()
