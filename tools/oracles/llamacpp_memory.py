#!/usr/bin/env python3
"""Asks llama.cpp's own accounting how much memory it would take, on GGUF files that have a true header and no weights.

For every case a GGUF file is written whose metadata and tensor table are those of a published architecture (real head
counts, widths, experts, vocabulary; few layers, since layers repeat) and whose data section is a hole, so that it costs no
disk. llama.cpp's `no_alloc` path then reports model, KV, recurrent, compute and output bytes per buffer. One JSON line each.

Usage
    llamacpp_memory.py build --source LLAMA_CPP_TREE --out DIR      configure and build libllama (CPU) and the probe
    llamacpp_memory.py run   --out DIR --commit HASH > crates/plan/tests/golden/llamacpp.jsonl
    llamacpp_memory.py random --out DIR --commit HASH --seed 23 --count 120 > crates/plan/tests/golden/llamacpp_random.jsonl
    llamacpp_memory.py one   --out DIR --case NAME [--peak] [--nodes] [-- extra probe flags]

Needs Python 3.9 and nothing else; cmake, ninja and a C++ compiler for `build`. No network, no model is run.
Every case is asked twice: on the CPU alone, and with one pretend accelerator (see llamacpp_probe.cpp) all layers offloaded.
"""
import argparse, json, os, random, shutil, struct, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

# id, elements per block, bytes per block: the GGUF tensor types used below.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34),
         "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210), "MXFP4": (39, 32, 17)}
ALIGN = 32


def nbytes(kind, dims):
    _, block, size = TYPES[kind]
    assert dims[0] % block == 0, (kind, dims)
    n = 1
    for d in dims:
        n *= d
    return n // block * size


def write_gguf(path, meta, tensors):
    """A GGUF v3 file: magic, counts, key-values, tensor infos, padding, then a hole as long as the data would be."""
    def text(s):
        b = s.encode()
        return struct.pack("<Q", len(b)) + b

    def value(v):
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        if isinstance(v, float):
            return struct.pack("<If", 6, v)
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        item, code = (("?", 7) if isinstance(v[0], bool) else ("I", 4))
        return struct.pack("<IIQ", 9, code, len(v)) + b"".join(struct.pack("<" + item, x) for x in v)

    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))]
    head += [text(k) + value(v) for k, v in meta.items()]
    offset = 0
    for name, kind, dims in tensors:
        head.append(text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
                    + struct.pack("<IQ", TYPES[kind][0], offset))
        offset += -(-nbytes(kind, dims) // ALIGN) * ALIGN
    blob = b"".join(head)
    blob += b"\0" * (-len(blob) % ALIGN)
    with open(path, "wb") as f:
        f.write(blob)
        f.truncate(len(blob) + offset)


# ---- architectures ------------------------------------------------------------------------------------------------------
# Each takes the published shape as keyword arguments and returns (metadata, tensors). w is the type of the big matrices.

def base(arch, layers, width, heads, kv, ctx, vocab, ff, head=None, eps="rms", **more):
    m = {"general.architecture": arch, "general.file_type": 1, "tokenizer.ggml.model": "no_vocab",
         f"{arch}.vocab_size": vocab, f"{arch}.context_length": ctx, f"{arch}.embedding_length": width, f"{arch}.block_count": layers,
         f"{arch}.feed_forward_length": ff, f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv}
    if head:
        m[f"{arch}.attention.key_length"] = m[f"{arch}.attention.value_length"] = head
    m[f"{arch}.attention.layer_norm_{'rms_' if eps == 'rms' else ''}epsilon"] = 1e-5
    m.update({f"{arch}.{k.replace('__', '.')}": v for k, v in more.items()})
    return m


def ends(width, vocab, w, tied, bias=False):
    t = [("token_embd.weight", w, [width, vocab]), ("output_norm.weight", "F32", [width])]
    if bias:
        t.append(("output_norm.bias", "F32", [width]))
    if not tied:
        t.append(("output.weight", w, [width, vocab]))
    return t


def decoder(arch, *, layers, width, heads, kv, ctx, vocab, ff=0, head=None, w="F16", tied=False, qk_norm=False, qkv_bias=False,
            post_norms=False, experts=0, used=0, ff_exp=0, extra=None, fused_qkv=False, fused_ffn=False):
    d = head or width // heads
    m = base(arch, layers, width, heads, kv, ctx, vocab, ff, head, **(extra or {}))
    if experts:
        m[f"{arch}.expert_count"], m[f"{arch}.expert_used_count"] = experts, used
        if arch != "llama":
            m[f"{arch}.expert_feed_forward_length"] = ff_exp
    t = ends(width, vocab, w, tied)
    for i in range(layers):
        b = f"blk.{i}."
        t.append((b + "attn_norm.weight", "F32", [width]))
        if fused_qkv:
            t.append((b + "attn_qkv.weight", w, [width, (heads + 2 * kv) * d]))
        else:
            for n, c in (("q", heads), ("k", kv), ("v", kv)):
                t.append((b + f"attn_{n}.weight", w, [width, c * d]))
                if qkv_bias:
                    t.append((b + f"attn_{n}.bias", "F32", [c * d]))
        if qk_norm:
            t += [(b + "attn_q_norm.weight", "F32", [d]), (b + "attn_k_norm.weight", "F32", [d])]
        t.append((b + "attn_output.weight", w, [heads * d, width]))
        if post_norms:
            t += [(b + "post_attention_norm.weight", "F32", [width]), (b + "post_ffw_norm.weight", "F32", [width])]
        t.append((b + "ffn_norm.weight", "F32", [width]))
        if experts:
            t += [(b + "ffn_gate_inp.weight", "F32", [width, experts]), (b + "ffn_gate_exps.weight", w, [width, ff_exp, experts]),
                  (b + "ffn_down_exps.weight", w, [ff_exp, width, experts]), (b + "ffn_up_exps.weight", w, [width, ff_exp, experts])]
        elif fused_ffn:
            t += [(b + "ffn_down.weight", w, [ff, width]), (b + "ffn_up.weight", w, [width, 2 * ff])]
        else:
            t += [(b + "ffn_gate.weight", w, [width, ff]), (b + "ffn_down.weight", w, [ff, width]), (b + "ffn_up.weight", w, [width, ff])]
    return m, t


def classic(arch, *, layers, width, heads, ctx, vocab, ff, tied, positions, w="F16", extra=None):
    m = base(arch, layers, width, heads, heads, ctx, vocab, ff, eps="layer", **(extra or {}))
    t = ends(width, vocab, w, tied, bias=True)
    if positions:
        t.append(("position_embd.weight", "F32", [width, ctx]))
    for i in range(layers):
        b = f"blk.{i}."
        for n, dims in (("attn_norm", None), ("ffn_norm", None), ("attn_qkv", [width, 3 * width]), ("attn_output", [width, width]),
                        ("ffn_down", [ff, width]), ("ffn_up", [width, ff])):
            t.append((b + n + ".weight", w if dims else "F32", dims or [width]))
            t.append((b + n + ".bias", "F32", [dims[1] if dims else width]))
    return m, t


def deepseek2(*, layers, dense, width, heads, ctx, vocab, ff, q_rank, kv_rank, nope, rope, v, experts, used, shared, ff_exp, w="Q4_K", extra=None):
    a = "deepseek2"
    m = base(a, layers, width, heads, 1, ctx, vocab, ff, **(extra or {}))
    m.update({f"{a}.attention.key_length": kv_rank + rope, f"{a}.attention.value_length": kv_rank,
              f"{a}.attention.key_length_mla": nope + rope, f"{a}.attention.value_length_mla": v, f"{a}.attention.q_lora_rank": q_rank,
              f"{a}.attention.kv_lora_rank": kv_rank, f"{a}.rope.dimension_count": rope, f"{a}.leading_dense_block_count": dense,
              f"{a}.expert_count": experts, f"{a}.expert_used_count": used, f"{a}.expert_shared_count": shared,
              f"{a}.expert_feed_forward_length": ff_exp, f"{a}.expert_weights_scale": 2.5, f"{a}.expert_weights_norm": True,
              f"{a}.expert_gating_func": 2})
    t = ends(width, vocab, w, False)
    for i in range(layers):
        b = f"blk.{i}."
        t += [(b + "attn_norm.weight", "F32", [width]), (b + "attn_q_a_norm.weight", "F32", [q_rank]), (b + "attn_kv_a_norm.weight", "F32", [kv_rank]),
              (b + "attn_q_a.weight", w, [width, q_rank]), (b + "attn_q_b.weight", w, [q_rank, heads * (nope + rope)]),
              (b + "attn_kv_a_mqa.weight", w, [width, kv_rank + rope]), (b + "attn_k_b.weight", "Q8_0", [nope, kv_rank, heads]),
              (b + "attn_v_b.weight", "Q8_0", [kv_rank, v, heads]), (b + "attn_output.weight", w, [heads * v, width]), (b + "ffn_norm.weight", "F32", [width])]
        if i < dense:
            t += [(b + "ffn_gate.weight", w, [width, ff]), (b + "ffn_down.weight", w, [ff, width]), (b + "ffn_up.weight", w, [width, ff])]
        else:
            t += [(b + "ffn_gate_inp.weight", "F32", [width, experts]), (b + "exp_probs_b.bias", "F32", [experts]),
                  (b + "ffn_gate_exps.weight", w, [width, ff_exp, experts]), (b + "ffn_down_exps.weight", w, [ff_exp, width, experts]),
                  (b + "ffn_up_exps.weight", w, [width, ff_exp, experts]), (b + "ffn_gate_shexp.weight", w, [width, ff_exp * shared]),
                  (b + "ffn_down_shexp.weight", w, [ff_exp * shared, width]), (b + "ffn_up_shexp.weight", w, [width, ff_exp * shared])]
    return m, t


def gpt_oss(*, layers, width, heads, kv, head, ctx, vocab, experts, used, ff_exp, window):
    a = "gpt-oss"
    m = base(a, layers, width, heads, kv, ctx, vocab, ff_exp, head)
    m.update({f"{a}.expert_count": experts, f"{a}.expert_used_count": used, f"{a}.expert_feed_forward_length": ff_exp,
              f"{a}.attention.sliding_window": window})
    t = ends(width, vocab, "F16", False)
    for i in range(layers):
        b = f"blk.{i}."
        t += [(b + "attn_norm.weight", "F32", [width]), (b + "post_attention_norm.weight", "F32", [width])]
        for n, c in (("q", heads), ("k", kv), ("v", kv)):
            t += [(b + f"attn_{n}.weight", "F16", [width, c * head]), (b + f"attn_{n}.bias", "F32", [c * head])]
        t += [(b + "attn_output.weight", "F16", [heads * head, width]), (b + "attn_output.bias", "F32", [width]), (b + "attn_sinks.weight", "F32", [heads]),
              (b + "ffn_gate_inp.weight", "F32", [width, experts]), (b + "ffn_gate_inp.bias", "F32", [experts])]
        for n, i_, o in (("gate", width, ff_exp), ("down", ff_exp, width), ("up", width, ff_exp)):
            t += [(b + f"ffn_{n}_exps.weight", "MXFP4", [i_, o, experts]), (b + f"ffn_{n}_exps.bias", "F32", [o, experts])]
    return m, t


def qwen3next(*, layers, width, heads, kv, head, ctx, vocab, experts, used, ff_exp, ff_shared, k_heads, v_heads, state, conv, w="Q8_0"):
    a = "qwen3next"
    m = base(a, layers, width, heads, kv, ctx, vocab, 0, head)
    m.update({f"{a}.expert_count": experts, f"{a}.expert_used_count": used, f"{a}.expert_feed_forward_length": ff_exp,
              f"{a}.expert_shared_feed_forward_length": ff_shared, f"{a}.ssm.conv_kernel": conv, f"{a}.ssm.inner_size": state * v_heads,
              f"{a}.ssm.state_size": state, f"{a}.ssm.time_step_rank": v_heads, f"{a}.ssm.group_count": k_heads, f"{a}.rope.dimension_count": head // 4})
    key, val = state * k_heads, state * v_heads
    t = ends(width, vocab, w, False)
    for i in range(layers):
        b = f"blk.{i}."
        t += [(b + "attn_norm.weight", "F32", [width]), (b + "post_attention_norm.weight", "F32", [width])]
        if (i + 1) % 4 == 0:
            t += [(b + "attn_q.weight", w, [width, head * heads * 2]), (b + "attn_k.weight", w, [width, head * kv]), (b + "attn_v.weight", w, [width, head * kv]),
                  (b + "attn_output.weight", w, [head * heads, width]), (b + "attn_q_norm.weight", "F32", [head]), (b + "attn_k_norm.weight", "F32", [head])]
        else:
            t += [(b + "attn_qkv.weight", w, [width, 2 * key + val]), (b + "attn_gate.weight", w, [width, val]),
                  (b + "ssm_conv1d.weight", "F32", [conv, 2 * key + val]), (b + "ssm_dt.bias", "F32", [v_heads]), (b + "ssm_a", "F32", [v_heads]),
                  (b + "ssm_ba.weight", w, [width, 2 * v_heads]), (b + "ssm_norm.weight", "F32", [state]), (b + "ssm_out.weight", w, [val, width])]
        t += [(b + "ffn_gate_inp.weight", "F32", [width, experts]), (b + "ffn_gate_exps.weight", w, [width, ff_exp, experts]),
              (b + "ffn_down_exps.weight", w, [ff_exp, width, experts]), (b + "ffn_up_exps.weight", w, [width, ff_exp, experts]),
              (b + "ffn_gate_inp_shexp.weight", "F32", [width]), (b + "ffn_gate_shexp.weight", w, [width, ff_shared]),
              (b + "ffn_up_shexp.weight", w, [width, ff_shared]), (b + "ffn_down_shexp.weight", w, [ff_shared, width])]
    return m, t


def gemma4(*, layers, pattern, width, heads, kv, kv_full, head, head_full, ctx, vocab, ff, window, w="F16"):
    a = "gemma4"
    swa = [(i + 1) % pattern != 0 for i in range(layers)]
    m = base(a, layers, width, heads, [kv if s else kv_full for s in swa], ctx, vocab, ff, head_full)
    m.update({f"{a}.attention.key_length_swa": head, f"{a}.attention.value_length_swa": head, f"{a}.attention.sliding_window": window,
              f"{a}.attention.sliding_window_pattern": swa, f"{a}.embedding_length_per_layer_input": 0, f"{a}.final_logit_softcapping": 30.0,
              f"{a}.rope.dimension_count": head_full, f"{a}.rope.dimension_count_swa": head})
    t = ends(width, vocab, w, True) + [("rope_freqs.weight", "F32", [head_full // 2])]
    for i in range(layers):
        b, d, k = f"blk.{i}.", head if swa[i] else head_full, kv if swa[i] else kv_full
        t += [(b + "attn_norm.weight", "F32", [width]), (b + "attn_q.weight", w, [width, heads * d]), (b + "attn_k.weight", w, [width, k * d])]
        if swa[i]:
            t.append((b + "attn_v.weight", w, [width, k * d]))
        t += [(b + "attn_q_norm.weight", "F32", [d]), (b + "attn_k_norm.weight", "F32", [d]), (b + "attn_output.weight", w, [heads * d, width]),
              (b + "post_attention_norm.weight", "F32", [width]), (b + "ffn_norm.weight", "F32", [width]), (b + "ffn_gate.weight", w, [width, ff]),
              (b + "ffn_down.weight", w, [ff, width]), (b + "ffn_up.weight", w, [width, ff]), (b + "post_ffw_norm.weight", "F32", [width])]
    return m, t


# ---- published shapes (layers cut down) -----------------------------------------------------------------------------------

LLAMA3_8B = dict(layers=3, width=4096, heads=32, kv=8, ctx=131072, vocab=128256, ff=14336)
MODELS = {
    "llama-3.1-8b": lambda: decoder("llama", **LLAMA3_8B),
    "llama-3.1-8b-q4k": lambda: decoder("llama", w="Q4_K", **LLAMA3_8B),
    "llama-2-13b": lambda: decoder("llama", layers=2, width=5120, heads=40, kv=40, ctx=4096, vocab=32000, ff=13824),
    "llama-3.1-70b": lambda: decoder("llama", layers=2, width=8192, heads=64, kv=8, ctx=131072, vocab=128256, ff=28672),
    "qwen2.5-7b": lambda: decoder("qwen2", layers=3, width=3584, heads=28, kv=4, ctx=32768, vocab=152064, ff=18944, qkv_bias=True),
    "qwen2.5-0.5b": lambda: decoder("qwen2", layers=3, width=896, heads=14, kv=2, ctx=32768, vocab=151936, ff=4864, qkv_bias=True, tied=True),
    "qwen3-0.6b": lambda: decoder("qwen3", layers=3, width=1024, heads=16, kv=8, ctx=40960, vocab=151936, ff=3072, head=128, qk_norm=True, tied=True),
    "qwen3-32b": lambda: decoder("qwen3", layers=2, width=5120, heads=64, kv=8, ctx=40960, vocab=151936, ff=25600, head=128, qk_norm=True),
    "qwen3-30b-a3b": lambda: decoder("qwen3moe", layers=2, width=2048, heads=32, kv=4, ctx=40960, vocab=151936, ff=6144, head=128, qk_norm=True,
                                     experts=128, used=8, ff_exp=768),
    "qwen3-235b-a22b": lambda: decoder("qwen3moe", layers=2, width=4096, heads=64, kv=4, ctx=40960, vocab=151936, ff=12288, head=128, qk_norm=True,
                                       experts=128, used=8, ff_exp=1536, w="Q8_0"),
    "mixtral-8x7b": lambda: decoder("llama", layers=2, width=4096, heads=32, kv=8, ctx=32768, vocab=32000, ff=14336, experts=8, used=2, ff_exp=14336),
    "gemma-2-9b": lambda: decoder("gemma2", layers=4, width=3584, heads=16, kv=8, ctx=8192, vocab=256000, ff=14336, head=256, tied=True, post_norms=True,
                                  extra=dict(attention__sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)),
    "gemma-3-27b": lambda: decoder("gemma3", layers=6, width=5376, heads=32, kv=16, ctx=131072, vocab=262208, ff=21504, head=128, tied=True,
                                   post_norms=True, qk_norm=True, extra=dict(attention__sliding_window=1024)),
    "gemma-3-1b": lambda: decoder("gemma3", layers=7, width=1152, heads=4, kv=1, ctx=32768, vocab=262144, ff=6912, head=256, tied=True,
                                  post_norms=True, qk_norm=True, extra=dict(attention__sliding_window=512)),
    "gemma-4-12b": lambda: gemma4(layers=12, pattern=6, width=3840, heads=16, kv=8, kv_full=1, head=256, head_full=512, ctx=262144, vocab=262144,
                                  ff=15360, window=1024),
    "phi-3-mini": lambda: decoder("phi3", layers=3, width=3072, heads=32, kv=32, ctx=4096, vocab=32064, ff=8192, fused_qkv=True, fused_ffn=True,
                                  extra=dict(rope__dimension_count=96, attention__sliding_window=2047)),
    "gpt2-xl": lambda: classic("gpt2", layers=3, width=1600, heads=25, ctx=1024, vocab=50257, ff=6400, tied=True, positions=True),
    "pythia-2.8b": lambda: classic("gptneox", layers=3, width=2560, heads=32, ctx=2048, vocab=50304, ff=10240, tied=False, positions=False,
                                   extra=dict(use_parallel_residual=True, rope__dimension_count=20)),
    "deepseek-v3": lambda: deepseek2(layers=4, dense=3, width=7168, heads=128, ctx=163840, vocab=129280, ff=18432, q_rank=1536, kv_rank=512, nope=128,
                                     rope=64, v=128, experts=256, used=8, shared=1, ff_exp=2048, extra=dict(expert_group_count=8, expert_group_used_count=4)),
    "gpt-oss-20b": lambda: gpt_oss(layers=4, width=2880, heads=64, kv=8, head=64, ctx=131072, vocab=201088, experts=32, used=4, ff_exp=2880, window=128),
    "granite-3.1-8b": lambda: decoder("granite", layers=3, width=4096, heads=32, kv=8, ctx=131072, vocab=49155, ff=12800, tied=True,
                                      extra=dict(logit_scale=16.0, residual_scale=0.22, embedding_scale=12.0, attention__scale=0.0078125)),
    "glm-4-32b-0414": lambda: decoder("glm4", layers=3, width=6144, heads=48, kv=2, ctx=32768, vocab=151552, ff=23040, head=128, post_norms=True,
                                      fused_ffn=True, extra=dict(rope__dimension_count=64)),
    "qwen3-next-80b": lambda: qwen3next(layers=4, width=2048, heads=16, kv=2, head=256, ctx=262144, vocab=151936, experts=512, used=10, ff_exp=512,
                                        ff_shared=512, k_heads=16, v_heads=32, state=128, conv=4),
}

DEFAULT = dict(n_ctx=4096, n_parallel=1, kv_unified=False, n_ubatch=512, n_batch=2048, flash_attn=True, type_k="f16", type_v="f16", swa_full=False,
               n_outputs_max=0, n_gpu_layers=-1, n_gpus=1, fa_f16_copy=False)
CASES = []


def case(model, **options):
    o = dict(DEFAULT, **options)
    name = model + "".join(f"+{k}={v}" for k, v in options.items())
    CASES.append((name, model, o))


for ctx in (512, 4096, 32768):
    for fa in (True, False):
        case("llama-3.1-8b", n_ctx=ctx, flash_attn=fa)
case("llama-3.1-8b", n_ctx=1000)
case("llama-3.1-8b", n_ctx=8192, n_parallel=4)
case("llama-3.1-8b", n_ctx=8192, n_parallel=4, flash_attn=False)
case("llama-3.1-8b", n_ctx=8192, n_parallel=4, kv_unified=True)
case("llama-3.1-8b", n_ctx=5000, n_parallel=3)
case("llama-3.1-8b", n_ubatch=256)
case("llama-3.1-8b", n_ubatch=2048, n_ctx=16384)
case("llama-3.1-8b", n_ubatch=2048, n_ctx=16384, flash_attn=False)
case("llama-3.1-8b-q4k", n_ctx=16384, type_k="q8_0", type_v="q8_0")
case("llama-3.1-8b", n_ctx=16384, type_k="q8_0", type_v="q4_0")
case("llama-3.1-8b", n_ctx=16384, type_k="q4_0", flash_attn=False)
case("llama-2-13b", flash_attn=False)
case("llama-2-13b")
case("llama-3.1-70b", n_ctx=8192)
case("llama-3.1-70b", n_ctx=8192, flash_attn=False)
case("qwen2.5-7b", n_ctx=32768, flash_attn=False)
case("qwen2.5-7b", n_ctx=8192)
case("qwen2.5-0.5b", n_ctx=2048, n_ubatch=256)
case("qwen3-0.6b", n_ctx=8192, n_parallel=4)
case("qwen3-0.6b", n_ctx=8192, flash_attn=False)
case("qwen3-32b", n_ctx=8192, n_ubatch=1024, n_batch=4096)
case("qwen3-30b-a3b", n_ctx=8192)
case("qwen3-30b-a3b", n_ctx=8192, n_ubatch=2048)
case("qwen3-235b-a22b", n_ctx=32768, type_k="q8_0", type_v="q8_0")
case("qwen3-235b-a22b", n_ctx=32768, flash_attn=False)
case("mixtral-8x7b", n_ctx=8192)
case("mixtral-8x7b", n_ctx=8192, flash_attn=False)
case("gemma-2-9b", n_ctx=8192)
case("gemma-2-9b", n_ctx=8192, flash_attn=False)
case("gemma-3-27b", n_ctx=32768)
case("gemma-3-27b", n_ctx=32768, flash_attn=False)
case("gemma-3-27b", n_ctx=32768, swa_full=True)
case("gemma-3-27b", n_ctx=32768, n_parallel=4)
case("gemma-3-27b", n_ctx=32768, n_parallel=4, kv_unified=True)
case("gemma-3-1b", n_ctx=2048, n_ubatch=256, type_k="q8_0")
case("gemma-4-12b", n_ctx=8192, n_parallel=4, kv_unified=True)
case("gemma-4-12b", n_ctx=8192, flash_attn=False)
case("phi-3-mini", n_ubatch=256, flash_attn=False)
case("phi-3-mini", n_ctx=4096)
case("gpt2-xl", n_ctx=1024, flash_attn=False)
case("gpt2-xl", n_ctx=1024)
case("pythia-2.8b", n_ctx=2048, flash_attn=False)
case("pythia-2.8b", n_ctx=2048, n_parallel=4)
case("deepseek-v3", n_ctx=4096)
case("deepseek-v3", n_ctx=32768)
case("deepseek-v3", n_ctx=8192, flash_attn=False)
case("deepseek-v3", n_ctx=32768, type_k="q8_0", type_v="q8_0", n_ubatch=2048)
case("gpt-oss-20b", n_ctx=32768)
case("gpt-oss-20b", n_ctx=32768, flash_attn=False)
case("gpt-oss-20b", n_ctx=32768, n_parallel=4, kv_unified=True)
case("granite-3.1-8b", n_ctx=8192)
case("granite-3.1-8b", n_ctx=8192, flash_attn=False)
case("glm-4-32b-0414", n_ctx=8192)
case("glm-4-32b-0414", n_ctx=8192, flash_attn=False)
case("glm-4-32b-0414", n_ctx=4096, n_parallel=2, type_k="q8_0", type_v="q8_0")
case("qwen3-next-80b", n_ctx=8192)
case("qwen3-next-80b", n_ctx=32768, n_parallel=4)
case("qwen3-next-80b", n_ctx=8192, flash_attn=False)
# llama-server since mid-2026: logits are reserved for one row per slot only; auto slots = 4, unified
SERVER = dict(n_parallel=4, kv_unified=True, n_outputs_max=4)
for m in ("llama-3.1-8b", "qwen3-32b", "qwen3-30b-a3b", "mixtral-8x7b", "gemma-3-27b", "gpt-oss-20b", "deepseek-v3", "qwen3-next-80b", "phi-3-mini", "gpt2-xl"):
    case(m, n_ctx=4096 if m != "gpt2-xl" else 1024, **SERVER)
case("gemma-4-12b", n_ctx=8192, n_ubatch=2048, **SERVER)
# CUDA since mid-2026 charges the f16 copies of a quantised cache to the compute buffer
case("llama-3.1-8b", n_ctx=32768, type_k="q8_0", type_v="q8_0", fa_f16_copy=True)
case("llama-3.1-8b", n_ctx=32768, type_k="q8_0", type_v="q8_0", fa_f16_copy=True, **SERVER)
case("deepseek-v3", n_ctx=32768, type_k="q8_0", type_v="q8_0", fa_f16_copy=True, **SERVER)
case("gemma-3-27b", n_ctx=32768, type_k="q8_0", type_v="q8_0", fa_f16_copy=True, **SERVER)
# layers split over two devices (pipelined: four copies of every input), and layers left on the host
case("llama-3.1-8b", n_ctx=8192, n_gpus=2)
case("llama-3.1-8b", n_ctx=8192, n_gpus=2, flash_attn=False)
case("qwen3-30b-a3b", n_ctx=8192, n_gpus=2, n_outputs_max=1)
for m in ("gemma-3-27b", "gpt-oss-20b", "deepseek-v3", "qwen3-next-80b", "mixtral-8x7b", "pythia-2.8b"):
    case(m, n_ctx=2048, n_gpus=2)
case("llama-3.1-8b", n_ctx=8192, n_gpus=3, **SERVER)
case("llama-3.1-8b", n_ctx=8192, n_gpu_layers=2)
case("llama-3.1-8b-q4k", n_ctx=8192, n_gpu_layers=1)
case("llama-3.1-8b", n_ctx=8192, n_gpu_layers=0)


# ---- asking --------------------------------------------------------------------------------------------------------------

def probe(out, model, o, gpus, more=()):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "m.gguf")
        write_gguf(path, *MODELS[model]())
        args = [os.path.join(out, "probe"), path, "--gpus", gpus, "--ctx", o["n_ctx"], "--batch", o["n_batch"], "--ubatch", o["n_ubatch"],
                "--parallel", o["n_parallel"], "--unified", int(o["kv_unified"]), "--swa-full", int(o["swa_full"]), "--type-k", o["type_k"],
                "--type-v", o["type_v"], "--fa", int(o["flash_attn"]), "--outputs", o["n_outputs_max"], "--ngl", o["n_gpu_layers"],
                "--fa-f16-copy", int(o["fa_f16_copy"]), *more]
        r = subprocess.run([str(a) for a in args], capture_output=True, text=True)
        if r.returncode:
            raise SystemExit(f"{model} {o}: probe failed\n{r.stderr[-3000:]}")
        return r.stdout


def compact(tensors):
    """[[name with {i}, type, dims, [layers]] or [name, type, dims]] in first-seen order."""
    seen = {}
    for name, kind, dims in tensors:
        layer = None
        if name.startswith("blk."):
            _, layer, rest = name.split(".", 2)
            name = "blk.{i}." + rest
        seen.setdefault((name, kind, tuple(dims)), []).append(layer)
    return [[n, k, list(d)] + ([[int(x) for x in ls]] if ls[0] is not None else []) for (n, k, d), ls in seen.items()]


def total(m):
    return sum(m.values())


def run(a):
    known = {}
    if a.what == "random":
        random_cases(a.seed, a.count)
    for name, model, o in CASES:
        meta, tensors = MODELS[model]()
        if a.what == "random":  # some combinations are refused by llama.cpp itself, e.g. heads that a block does not divide
            try:
                probe(a.out, model, o, 0)
            except SystemExit:
                continue
        row = {"case": name, "llama_cpp_commit": a.commit, "model": model}
        if model not in known:  # the header once per model: later lines of the same model refer to it by name
            row["gguf_metadata"], row["tensors"] = meta, compact(tensors)
            known[model] = True
        row.update(o)
        for label, gpus in (("cpu", 0), ("gpu", o["n_gpus"])):
            got = json.loads(probe(a.out, model, o, gpus).splitlines()[0])
            kv = {k: total(got[s]) for k, s in (("attention", "kv_attention"), ("swa", "kv_swa"), ("recurrent", "recurrent")) if s in got}
            assert sum(kv.values()) == total(got["context"]), name
            row[label] = {"model_bytes_by_buffer": got["model"], "kv_bytes": kv, "compute_bytes": got["compute"]}
            row["output_mib_printed"], row["n_ctx_seen"], row["n_ctx_seq"] = got["output_mib_printed"], got["n_ctx"], got["n_ctx_seq"]
        # the output buffer is logits for one row per sequence (llama_context::output_reserve); the log prints it rounded
        row["output_bytes"] = meta[f"{meta['general.architecture']}.vocab_size"] * o["n_parallel"] * 4
        assert abs(row["output_bytes"] / 2**20 - row["output_mib_printed"]) <= 0.00501, name
        print(json.dumps(row, separators=(",", ":")))
        sys.stdout.flush()


def random_model(r):
    """A model of random shape, of an architecture that has a graph in crates/plan: nobody fitted anything to it."""
    kind = r.choice(("llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gemma4", "phi3", "granite", "gpt2", "gptneox", "gpt-oss",
                     "qwen3next", "deepseek2", "deepseek2-lite"))
    head, kv = r.choice((64, 64, 96, 128, 128, 256)), r.choice((1, 2, 4, 8))
    heads, layers = kv * r.choice((1, 2, 4, 7, 8)), r.choice((1, 2, 3, 5, 9, 14, 22))
    width, ff, vocab = r.choice((512, 1024, 1536, 2048, 4096, 5120)), r.choice((1024, 2816, 5632, 8192, 14336)), r.choice((32000, 49155, 50257, 128256))
    ff_exp, experts, used = r.choice((256, 512, 1024)), r.choice((4, 8, 16, 60)), r.choice((1, 2, 4))
    window, q_rank = r.choice((128, 512, 1024, 4096)), r.choice((768, 1536))
    c = dict(layers=layers, width=width, heads=heads, kv=kv, ctx=32768, vocab=vocab, ff=ff, head=head)
    e = dict(experts=experts, used=used)
    if kind == "llama":
        return decoder(kind, **c)
    if kind == "mixtral":
        return decoder("llama", **e, ff_exp=ff, **c)
    if kind == "qwen2":
        return decoder(kind, qkv_bias=True, **c)
    if kind == "qwen3":
        return decoder(kind, qk_norm=True, tied=True, **c)
    if kind == "qwen3moe":
        return decoder(kind, qk_norm=True, **e, ff_exp=ff_exp, **c)
    if kind == "gemma2":
        return decoder(kind, tied=True, post_norms=True, **c,
                       extra=dict(attention__sliding_window=window, attn_logit_softcapping=50.0, final_logit_softcapping=30.0))
    if kind == "gemma3":
        return decoder(kind, tied=True, post_norms=True, qk_norm=True, extra=dict(attention__sliding_window=window), **c)
    if kind == "gemma4":
        return gemma4(layers=-(-layers // 6) * 6, pattern=6, width=width, heads=heads, kv=kv, kv_full=1, head=head, head_full=2 * head, ctx=32768, vocab=vocab,
                      ff=ff, window=window)
    if kind == "phi3":
        return decoder(kind, fused_qkv=True, fused_ffn=True, extra=dict(rope__dimension_count=head, attention__sliding_window=2047),
                       **dict(c, kv=heads, width=heads * head, head=None))
    if kind == "granite":
        return decoder(kind, tied=True, **c, extra=dict(logit_scale=16.0, residual_scale=0.22, embedding_scale=12.0, attention__scale=0.0078125))
    if kind in ("gpt2", "gptneox"):
        more = dict(use_parallel_residual=True, rope__dimension_count=head // 4) if kind == "gptneox" else {}
        return classic(kind, layers=layers, width=heads * head, heads=heads, ctx=2048, vocab=vocab, ff=ff, tied=kind == "gpt2", positions=kind == "gpt2", extra=more)
    if kind == "gpt-oss":
        return gpt_oss(layers=layers, width=width, heads=heads, kv=kv, head=head, ctx=32768, vocab=vocab, **e, ff_exp=ff_exp, window=window)
    if kind == "qwen3next":
        return qwen3next(layers=-(-layers // 4) * 4, width=width, heads=heads, kv=kv, head=256, ctx=32768, vocab=vocab, **e, ff_exp=ff_exp, ff_shared=ff_exp,
                         k_heads=8, v_heads=r.choice((8, 16, 32)), state=128, conv=4)
    lite = kind == "deepseek2-lite"
    m, t = deepseek2(layers=27 if lite else layers + 1, dense=1, width=width, heads=heads * 2, ctx=32768, vocab=vocab, ff=ff, q_rank=q_rank, kv_rank=512,
                     nope=128, rope=64, v=128, **e, shared=2, ff_exp=ff_exp, w="Q8_0")
    if lite:  # V2-Lite: queries are not compressed, experts are chosen by plain probabilities; 27 layers are how llama.cpp knows it
        del m["deepseek2.attention.q_lora_rank"]
        m.update({"deepseek2.expert_gating_func": 1, "deepseek2.expert_weights_norm": False, "deepseek2.expert_weights_scale": 1.0})
        t = [(n.replace("attn_q_b", "attn_q"), k, [width, d[1]] if "attn_q_b" in n else d) for n, k, d in t if "attn_q_a" not in n and "exp_probs_b" not in n]
    return m, t


def random_cases(seed, count):
    r = random.Random(seed)
    CASES.clear()
    for i in range(count):
        if i % 3 == 0:
            model = f"random-{i}"
            made = random_model(r)
            MODELS[model] = lambda made=made: made
        quantised, flash, slots = r.random() < 0.35, r.random() < 0.6, r.choice((1, 1, 1, 2, 3, 4, 7, 8))
        k = r.choice(("q8_0", "q4_0")) if quantised else "f16"
        v = "f16" if not (quantised and flash) else k if made[0]["general.architecture"] == "deepseek2" else r.choice(("q8_0", "q4_0", "f16"))
        case(model, n_ctx=r.choice((256, 512, 700, 2048, 4096, 5000, 8192, 16384, 30000, 65536)), n_parallel=slots, kv_unified=r.random() < 0.4,
             n_ubatch=r.choice((64, 128, 256, 512, 512, 512, 1024, 2048)), n_batch=r.choice((512, 2048, 2048, 4096)), flash_attn=flash, type_k=k, type_v=v,
             swa_full=r.random() < 0.2, n_outputs_max=slots if r.random() < 0.5 else 0, n_gpus=r.choice((1, 1, 1, 2, 3, 4)), fa_f16_copy=r.random() < 0.3)


def one(a):
    for name, model, o in CASES:
        if name == a.case:
            if a.nodes:
                os.environ["PROBE_NODES"] = "1"
            for gpus in (0, o["n_gpus"]):
                print(probe(a.out, model, o, gpus, (["--peak", "1"] if a.peak and not gpus else []) + a.extra), end="")


def build(a):
    os.makedirs(a.out, exist_ok=True)
    b = os.path.join(a.out, "tree")
    if not os.path.exists(os.path.join(b, "bin", "libllama.so")):
        subprocess.check_call(["cmake", "-S", a.source, "-B", b, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                               "-DCMAKE_C_FLAGS_RELEASE=-O1", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
                               "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DBUILD_SHARED_LIBS=ON"])
        subprocess.check_call(["cmake", "--build", b, "-j2", "--target", "llama"])
    inc = [f"-I{a.source}/{d}" for d in ("include", "src", "ggml/include", "ggml/src")]
    subprocess.check_call(["g++", "-std=c++17", "-O1", *inc, os.path.join(HERE, "llamacpp_probe.cpp"), "-o", os.path.join(a.out, "probe"),
                           f"-L{b}/bin", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{b}/bin"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    s = p.add_subparsers(dest="what", required=True)
    q = s.add_parser("build"); q.add_argument("--source", required=True); q.add_argument("--out", required=True)
    q = s.add_parser("run"); q.add_argument("--out", required=True); q.add_argument("--commit", required=True)
    q = s.add_parser("random"); q.add_argument("--out", required=True); q.add_argument("--commit", required=True)
    q.add_argument("--seed", type=int, required=True); q.add_argument("--count", type=int, required=True)
    q = s.add_parser("one"); q.add_argument("--out", required=True); q.add_argument("--case", required=True)
    q.add_argument("--peak", action="store_true"); q.add_argument("--nodes", action="store_true"); q.add_argument("extra", nargs="*")
    s.add_parser("list")
    a = p.parse_args()
    if a.what == "list":
        print("\n".join(n for n, _, _ in CASES))
    else:
        {"build": build, "run": run, "random": run, "one": one}[a.what](a)


if __name__ == "__main__":
    main()
