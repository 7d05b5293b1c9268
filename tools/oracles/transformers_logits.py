#!/usr/bin/env python3
"""Tiny checkpoints with the logits that transformers computes for them, for the tests of plimsoll-runtime, and
rotary frequencies for those of plimsoll-program.

    transformers_logits.py [--out DIR] [--rope FILE] [NAME ...]

Writes DIR/NAME/{config.json, model.safetensors, expected.safetensors} for each NAME (all, where none is named)
and DIR/README.md with versions. DIR is crates/runtime/tests/fixtures unless given, FILE
crates/program/tests/rope.json.

Weights are random, a function of family, tensor name and versions, and rounded to bfloat16. Gains are chosen so
that attention decides: what each position adds to the logits of the last one is measured and printed, and a
checkpoint whose last logits do not depend on a far token is refused. `expected.safetensors` holds `tokens` (I32)
and `logits` (F32, one row per position): float32 arithmetic on the rounded weights, eager attention. Models with
experts have `logits_bf16` too, with keys and values rounded to bfloat16: that may change which experts a token takes.

Needs torch, transformers >= 5 and safetensors; a virtual environment with them from PyPI does. Nothing else is
downloaded.
"""
import argparse
import hashlib
import json
import math
import os
import re
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import safetensors
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPT = 56
# Larger than any published model's: a wrong one must show beside roundings.
EPS = 1e-3
VOCAB = 256
COMMON = dict(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, rms_norm_eps=EPS,
    bos_token_id=0, eos_token_id=1, pad_token_id=2)
IDS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)


def rope(theta, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": float(theta), **more}}


FACTORS = dict(short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5], long_factor=[1.1, 1.3, 1.8, 2.5, 3.5, 4.0])
LLAMA3 = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(factor=4.0, original_max_position_embeddings=32)


# Ranks and heads of sizes that no panel or register divides.
LATENT = dict(kv_lora_rank=40, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, num_key_value_heads=4,
              n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=24,
              num_hidden_layers=2)
EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, num_hidden_layers=2)


def cases():
    """Every family once, each with a variant of what it may have that the others lack."""
    return {
        "llama": T.LlamaConfig(**COMMON, head_dim=16, **rope(500, **{**LLAMA3, "rope_type": "llama3"})),
        "mistral": T.MistralConfig(**COMMON, head_dim=16, sliding_window=16, **rope(10000)),
        # Windows in the upper layers only.
        "qwen2": T.Qwen2Config(
            **{**COMMON, "tie_word_embeddings": True}, use_sliding_window=True, sliding_window=16,
            max_window_layers=1, **rope(10000)),
        "qwen3": T.Qwen3Config(
            **{**COMMON, "num_hidden_layers": 2}, head_dim=32, **rope(1000, **{**YARN, "rope_type": "yarn"})),
        "phi3": T.Phi3Config(
            **COMMON, original_max_position_embeddings=32, sliding_window=24,
            **rope(10000, **FACTORS, rope_type="longrope", partial_rotary_factor=0.75,
                   original_max_position_embeddings=32)),
        "gemma": T.GemmaConfig(**{**COMMON, "tie_word_embeddings": True}, head_dim=16, **rope(10000)),
        "gemma2": T.Gemma2Config(
            **{**COMMON, "tie_word_embeddings": True}, head_dim=16, query_pre_attn_scalar=24, sliding_window=16,
            attn_logit_softcapping=5.0, final_logit_softcapping=8.0, **rope(10000)),
        "gemma3": T.Gemma3TextConfig(
            **{**COMMON, "tie_word_embeddings": True}, head_dim=16, query_pre_attn_scalar=24, sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
        "granite": T.GraniteConfig(
            **COMMON, embedding_multiplier=6.0, attention_multiplier=0.125, residual_multiplier=0.6,
            logits_scaling=3.0, **rope(10000)),
        "phi": T.PhiConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=128, qk_layernorm=True, layer_norm_eps=EPS,
            tie_word_embeddings=False,
            **rope(10000, partial_rotary_factor=0.5), **IDS),
        "opt": T.OPTConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, ffn_dim=96, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=64, do_layer_norm_before=True,
            activation_function="relu", tie_word_embeddings=True, **IDS),
        "gpt2": T.GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_inner=96, n_positions=64, layer_norm_epsilon=EPS,
            tie_word_embeddings=True, **IDS),
        "gpt_neox": T.GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4,
            max_position_embeddings=128, hidden_act="gelu", layer_norm_eps=EPS, use_parallel_residual=True,
            tie_word_embeddings=False,
            **rope(10000, partial_rotary_factor=0.25), **IDS),
        # One after the other, as in RedPajama-INCITE.
        "gpt_neox_serial": T.GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=4,
            max_position_embeddings=128, hidden_act="gelu", layer_norm_eps=EPS, use_parallel_residual=False,
            tie_word_embeddings=False,
            **rope(10000, partial_rotary_factor=1.0), **IDS),
        # Panels of 32 rows end inside an expert's matrices.
        "mixtral": T.MixtralConfig(
            **{**COMMON, "intermediate_size": 24, "num_hidden_layers": 2}, head_dim=16, num_local_experts=8,
            num_experts_per_tok=2, sliding_window=None, **rope(10000)),
        # Weights over all experts, after a dense layer.
        "qwen2_moe": T.Qwen2MoeConfig(
            **{**COMMON, **EXPERTS}, shared_expert_intermediate_size=40, norm_topk_prob=False, mlp_only_layers=[0],
            **rope(10000)),
        "qwen3_moe": T.Qwen3MoeConfig(
            **{**COMMON, **EXPERTS}, head_dim=24, norm_topk_prob=True, **rope(10000)),
        "granite_moe": T.GraniteMoeConfig(
            **{**COMMON, "intermediate_size": 24, "num_hidden_layers": 2}, num_local_experts=8, num_experts_per_tok=3,
            embedding_multiplier=6.0, attention_multiplier=0.125, residual_multiplier=0.6, logits_scaling=3.0,
            **rope(10000)),
        # Queries through a latent of their own, experts by group, scores scaled with the context.
        "deepseek_v2": T.DeepseekV2Config(
            **{**COMMON, **LATENT}, q_lora_rank=24, first_k_dense_replace=1, routed_scaling_factor=2.5,
            topk_method="group_limited_greedy", n_group=4, topk_group=2, norm_topk_prob=False,
            **rope(1000, **YARN, rope_type="yarn", mscale=0.707, mscale_all_dim=1.5)),
        # As V2-Lite: queries at once, all experts compete.
        "deepseek_v2_lite": T.DeepseekV2Config(
            **{**COMMON, **LATENT}, q_lora_rank=None, first_k_dense_replace=1,
            routed_scaling_factor=1.0, topk_method="greedy", norm_topk_prob=False, **rope(10000)),
        "deepseek_v3": T.DeepseekV3Config(
            **{**COMMON, **LATENT, "n_shared_experts": 1}, q_lora_rank=24, first_k_dense_replace=1,
            routed_scaling_factor=2.5, n_group=4, topk_group=2, norm_topk_prob=True, num_nextn_predict_layers=0,
            **rope(1000, **YARN, rope_type="yarn", mscale=1.0, mscale_all_dim=1.0)),
        # A limit that gates and ups reach.
        "gpt_oss": T.GptOssConfig(
            **{**COMMON, "intermediate_size": 24}, head_dim=16, num_local_experts=5, num_experts_per_tok=2,
            sliding_window=16, swiglu_limit=1.5, attention_bias=True,
            **rope(10000, **YARN, rope_type="yarn", truncate=False)),
        # As published: experts in blocks of 32 elements of four bits.
        "gpt_oss_mxfp4": T.GptOssConfig(
            **{**COMMON, "intermediate_size": 32, "num_hidden_layers": 2}, head_dim=16, num_local_experts=5,
            num_experts_per_tok=2, sliding_window=16, attention_bias=True,
            **rope(10000, **YARN, rope_type="yarn", truncate=False)),
        # As Phi-4-mini: tied, and a part of each head rotated.
        "phi4_mini": T.Phi3Config(
            **{**COMMON, "tie_word_embeddings": True, "num_hidden_layers": 2, "max_position_embeddings": 64},
            original_max_position_embeddings=64, sliding_window=None,
            **rope(10000, **FACTORS, rope_type="longrope", partial_rotary_factor=0.75,
                   original_max_position_embeddings=64)),
        # Order enters by the states alone.
        "granite_hybrid": T.GraniteMoeHybridConfig(
            **{**COMMON, "tie_word_embeddings": True}, num_local_experts=0, shared_intermediate_size=72,
            layer_types=["linear_attention", "full_attention", "linear_attention"], mamba_n_heads=4, mamba_d_head=32,
            mamba_d_state=16, mamba_chunk_size=16,
            embedding_multiplier=6.0, attention_multiplier=0.125, residual_multiplier=0.6, logits_scaling=3.0),
        # Everything that is optional, heads that end inside a register, and limits that some steps meet.
        "granite_hybrid_moe": T.GraniteMoeHybridConfig(
            **{**COMMON, "hidden_size": 48, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 12},
            num_local_experts=6, num_experts_per_tok=2, shared_intermediate_size=40,
            layer_types=["full_attention", "linear_attention"], mamba_n_heads=4, mamba_d_head=24, mamba_n_groups=2,
            mamba_d_state=12, mamba_d_conv=3, mamba_proj_bias=True, mamba_chunk_size=8, time_step_limit=(0.02, 0.9),
            attention_bias=True, position_embedding_type="rope",
            embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=3.0,
            **rope(10000)),
    }


# ---------------------------------------------------------------- weights
def normal(name, shape, std):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * std


def weight(case, config, name, shape):
    """Hidden states of about 1, scores with a standard deviation of about 2, outputs of about 1."""
    key = f"{case}:{name}"
    plus_one = config.model_type.startswith("gemma")
    turned = case == "gpt2" and len(shape) == 2 and ".h." in name or case.startswith("gpt_oss") and len(shape) == 3
    inputs = shape[-2] if turned else shape[-1]
    if re.search(r"(embed_tokens|embed_in|wte)\.weight$", name):
        scaled = math.sqrt(config.hidden_size) if plus_one else getattr(config, "embedding_multiplier", 1.0)
        return normal(key, shape, 1.0 / scaled)
    if re.search(r"(embed_positions|wpe)\.weight$", name):
        return normal(key, shape, 0.5)
    if re.search(r"(norm|ln_\w)\.weight$", name):
        gain = 1.4 if re.search(r"[qk]_norm", name) else 1.0
        return gain - (1.0 if plus_one else 0.0) + normal(key, shape, 0.15)
    if name.endswith("A_log"):
        # Some heads forget within a few tokens, others hardly.
        return torch.log(torch.linspace(0.02, 2.0, shape[0]))
    if name.endswith("dt_bias"):
        return normal(key, shape, 0.5) - 1.0
    if name.endswith("mamba.D"):
        return 1.0 + normal(key, shape, 0.2)
    if name.endswith("conv1d.weight"):
        return normal(key, shape, 1.0 / math.sqrt(shape[-1]))
    if name.endswith("bias"):
        return normal(key, shape, 0.2)
    if name.endswith("sinks"):
        return normal(key, shape, 1.0)
    if re.search(r"(q_proj|k_proj|qkv_proj|query_key_value|c_attn)\.weight$", name):
        return normal(key, shape, 1.4 / math.sqrt(inputs))
    return normal(key, shape, (1.0 if "lm_head" in name or "embed_out" in name else 1.5) / math.sqrt(inputs))


def mxfp4(name, shape):
    """Blocks and scales of experts' matrices [experts, inputs, outputs], as published: by output, two elements a byte."""
    experts, inputs, outputs = shape
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    random = torch.Generator().manual_seed(seed)
    size = (experts, outputs, inputs // 32)
    blocks = torch.randint(0, 256, (*size, 16), generator=random, dtype=torch.uint8)
    return blocks, torch.randint(121, 125, size, generator=random, dtype=torch.uint8)


def quantised(case, model):
    """Experts' matrices of an MXFP4 checkpoint, by name; the model gets what transformers reads in them."""
    stored = {}
    if case.endswith("mxfp4"):
        for name, p in model.named_parameters():
            if ".experts." in name and p.dim() == 3:
                blocks, scales = mxfp4(f"{case}:{name}", p.shape)
                stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
                with torch.no_grad():
                    p.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
    return stored


def build(case, config):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        biases = [(name, b) for name, b in model.named_buffers() if name.endswith("bias")]
        for name, p in [*model.named_parameters(), *biases]:
            p.copy_(weight(case, config, name, p.shape).bfloat16())
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens[None], use_cache=False).logits[0].float()


class Rounded(T.DynamicCache):
    """Keys and values as a cache of bfloat16 gives them back."""

    def update(self, keys, values, *args, **more):
        return super().update(keys.bfloat16().float(), values.bfloat16().float(), *args, **more)


def rounded_logits(model, tokens):
    with torch.no_grad():
        return model(tokens[None], past_key_values=Rounded(config=model.config), use_cache=True).logits[0].float()


def fixture(case, config, out):
    model = build(case, config)
    packed = quantised(case, model)
    tokens = torch.randint(3, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(7))
    want = logits(model, tokens)
    experts = any("experts" in name for name, _ in model.named_parameters())
    rounded = rounded_logits(model, tokens) if experts else None
    # What changes in the last row where one token is another, by distance.
    effects = {}
    for back in (1, 5, 12, 20, 30, 40, 50):
        changed = tokens.clone()
        changed[-1 - back] = (changed[-1 - back] + 101) % VOCAB
        effects[back] = (logits(model, changed)[-1] - want[-1]).abs().max().item()
    print(f"{case}: logits of std {want.std():.2f}; largest change by distance of a changed token "
          + ", ".join(f"{b}: {e:.3f}" for b, e in effects.items()))
    assert effects[30] > 0.05 * want.std(), f"{case}: attention does not reach"
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text())
    if packed:
        plain = {n: t for n, t in load_file(folder / "model.safetensors").items() if f"{n}_blocks" not in packed}
        save_file({**plain, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
        written["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    expected = {"tokens": tokens.to(torch.int32), "logits": want.contiguous()}
    if rounded is not None:
        expected["logits_bf16"] = rounded.contiguous()
    save_file(expected, folder / "expected.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    assert size < 300_000, f"{case}: {size} bytes"


# ---------------------------------------------------------------- frequencies
def frequencies():
    """inv_freq and the factor on cosines and sines, for configs as published and as transformers 5 writes them."""
    base = dict(hidden_size=256, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1,
                intermediate_size=64, vocab_size=64, max_position_embeddings=4096)
    longrope = dict(short_factor=[1.0 + 0.01 * i for i in range(32)], long_factor=[1.0 + 0.3 * i for i in range(32)])
    scalings = {
        "default": (10000.0, None),
        "theta_500000": (500000.0, None),
        "linear": (10000.0, dict(rope_type="linear", factor=4.0)),
        "llama3": (500000.0, dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=1024)),
        "yarn": (1000000.0, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024)),
        "yarn_odd": (150000.0, dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                    original_max_position_embeddings=128)),
        "yarn_mscale": (10000.0, dict(rope_type="yarn", factor=40.0, mscale=0.707, mscale_all_dim=1.0,
                                      original_max_position_embeddings=1024)),
        "longrope": (10000.0, dict(rope_type="longrope", original_max_position_embeddings=1024, **longrope)),
    }
    rows = []
    for name, (theta, scaling) in scalings.items():
        config = dict(base, architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=theta)
        if scaling:
            config["rope_scaling"] = scaling
        made = T.LlamaConfig(**{**base, "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta}})
        kind = (scaling or {}).get("rope_type", "default")
        lengths = [1024, 4096] if kind == "longrope" else [4096]
        for length in lengths:
            if kind == "default":
                rotary = T.models.llama.modeling_llama.LlamaRotaryEmbedding(made)
                inv, factor = rotary.inv_freq, rotary.attention_scaling
            else:
                inv, factor = ROPE_INIT_FUNCTIONS[kind](made, torch.device("cpu"), seq_len=length)
            rows.append(dict(name=name, context=length, config=config, scale=factor,
                             bits=[int(b) for b in inv.float().contiguous().view(torch.int32)]))
    return rows


def versions():
    return f"transformers {T.__version__}, torch {torch.__version__.split('+')[0]}, safetensors {safetensors.__version__}"


README = """# Checkpoints of every family, with logits

Random weights in bfloat16 and, in `expected.safetensors`, a prompt (`tokens`) with the logits of each of its positions
(`logits`), as transformers computes them in float32; with experts also those with keys and values rounded to bfloat16
(`logits_bf16`). Made by `tools/oracles/transformers_logits.py` with
{versions}.
"""


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", type=Path, default=REPOSITORY / "crates/runtime/tests/fixtures")
    ap.add_argument("--rope", type=Path, default=REPOSITORY / "crates/program/tests/rope.json")
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    torch.set_num_threads(1)
    for name, config in cases().items():
        if not a.names or name in a.names:
            fixture(name, config, a.out)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "README.md").write_text(README.format(versions=versions()))
    rows = [json.dumps(r) for r in frequencies()]
    a.rope.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(versions())
    a.rope.write_text('{"made_by": ' + head + ', "cases": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
