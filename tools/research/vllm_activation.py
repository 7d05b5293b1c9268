#!/usr/bin/env python3
"""Prototype: what vLLM's start-up profile reports, predicted from configuration alone.

Usage: vllm_activation.py MEASUREMENTS.jsonl CONFIGS.jsonl [--markdown] [--version v0.19.0]

Terms (per rank, the first pipeline stage unless noted): weights ("Model loading took"), activation ("torch peak memory
increase"), non-torch, CUDA-graph pre-estimate, "Available KV cache memory". Nothing below is keyed on a model's name,
vocabulary, hidden size or model_type: `shape()` alone reads model_type, and only to learn structure (biases, gating, norms).
Predictions read configuration fields only; the reported figures enter in `main` for the residual table and for the
non-torch fit. Prints in-sample and leave-one-model-out errors.
"""
import argparse
import json
import math
import re
import sys
from collections import defaultdict

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


# ---------------------------------------------------------------- the CUDA caching allocator (torch, default settings)
class Allocator:
    """Bytes as `allocated_bytes` counts them: a block that is not split counts whole.

    Requests round to 512 B. <= 1 MiB: 2 MiB segments, split if >= 512 B are left. Larger: a 20 MiB segment below 10 MiB,
    else the size rounded to 2 MiB; split only if more than 1 MiB is left. Best fit among free blocks of the same pool.
    """

    def __init__(self):
        self.segments = []  # each: list of [size, used]
        self.small = []
        self.allocated = self.peak = 0

    def malloc(self, size):
        if size <= 0:
            return None
        size = -(-size // 512) * 512
        small = size <= MIB
        best = None
        for si, seg in enumerate(self.segments):
            if self.small[si] != small:
                continue
            for b in seg:
                if not b[1] and b[0] >= size and (best is None or b[0] < best[1][0]):
                    best = (seg, b)
        if best is None:
            seg_size = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            block = [seg_size, False]
            seg = [block]
            self.segments.append(seg)
            self.small.append(small)
        else:
            seg, block = best
        left = block[0] - size
        if (small and left >= 512) or (not small and left > MIB):
            i = next(k for k, b in enumerate(seg) if b is block)
            seg.insert(i + 1, [left, False])
            block[0] = size
        block[1] = True
        self.allocated += block[0]
        self.peak = max(self.peak, self.allocated)
        return seg, block

    def free(self, handle):
        if handle is None:
            return
        seg, block = handle
        self.allocated -= block[0]
        block[1] = False
        i = next(k for k, b in enumerate(seg) if b is block)
        if i + 1 < len(seg) and not seg[i + 1][1]:
            block[0] += seg.pop(i + 1)[0]
        if i > 0 and not seg[i - 1][1]:
            seg[i - 1][0] += seg.pop(i)[0]

    def empty_cache(self):
        keep = [k for k, s in enumerate(self.segments) if any(b[1] for b in s)]
        self.segments = [self.segments[k] for k in keep]
        self.small = [self.small[k] for k in keep]


# ---------------------------------------------------------------- model structure from a config
def shape(c):
    t = dict(c)
    v = c.get("vision_config")
    if "text_config" in c:
        t.update(c["text_config"])
    mt = t.get("model_type", "")
    s = type("Shape", (), {})()
    s.h = t.get("hidden_size") or t["n_embd"]
    s.layers = t.get("num_hidden_layers") or t["n_layer"]
    s.heads = t.get("num_attention_heads") or t["n_head"]
    s.kv = t.get("num_key_value_heads") or s.heads
    s.d = t.get("head_dim") or s.h // s.heads
    s.i = t.get("intermediate_size") or 4 * s.h
    s.v = t["vocab_size"]
    s.maxpos = t.get("max_position_embeddings") or t.get("n_positions")
    gemma = mt.startswith("gemma")
    phi = mt.startswith("phi-")
    s.tied = t.get("tie_word_embeddings", gemma)
    s.gated = not phi
    s.qkv_bias = mt in ("qwen2", "qwen2_moe", "gpt_oss") or phi
    s.all_bias = phi
    s.lm_bias = phi
    s.o_bias = mt == "gpt_oss" or phi
    s.norms = 1 if phi else 4 if gemma else 2
    s.norm_bias = phi
    s.qk_norm = mt in ("qwen3", "gemma3_text")
    s.rope_dim = int(s.d * t.get("partial_rotary_factor", 0.4 if phi else 1.0))
    s.rope_rows = rope_rows(t, s.maxpos)
    if mt == "gemma3_text":
        s.rope_rows.append(s.maxpos)  # window layers have a table of their own, never scaled
    s.experts = t.get("num_experts") or t.get("num_local_experts") or 0
    s.topk = t.get("num_experts_per_tok", 0)
    s.moe_i = t.get("moe_intermediate_size") or s.i
    s.shared_i = t.get("shared_expert_intermediate_size", 0)
    s.expert_bias = mt == "gpt_oss"
    s.sinks = mt == "gpt_oss"
    s.vision = v
    s.dtype = t.get("dtype") or t.get("torch_dtype") or c.get("torch_dtype") or "bfloat16"
    s.mx = (c.get("quantization_config") or {}).get("quant_method") == "mxfp4"
    s.capture_cap = 1024 if s.mx and s.sinks else 512  # vLLM's own rule for this architecture (models/config.py)
    return s


def rope_rows(t, maxpos):
    """Rows of each cos/sin table; a table counts as weights. Which class: vllm rotary_embedding/__init__.py get_rope."""
    r = t.get("rope_scaling") or t.get("rope_parameters") or {}
    kind = r.get("rope_type") or r.get("type") or "default"
    f = r.get("factor") or 1
    orig = r.get("original_max_position_embeddings") or maxpos
    if kind in ("linear", "dynamic"):
        return [int(maxpos * f)]
    if kind in ("yarn", "deepseek_yarn"):
        return [int(orig * f)]
    if kind in ("longrope", "su"):
        return [int(orig + maxpos)]
    return [maxpos]


def pad(n, m):
    return -(-n // m) * m


def stage(s, pp, k):
    """Layers of pipeline stage k: even, the remainder goes to the stages before the last (vllm distributed/utils.py)."""
    base, rest = divmod(s.layers, pp)
    parts = [base] * pp
    for j in range(2, rest + 2):
        parts[-j] += 1
    return parts[k]


# ---------------------------------------------------------------- weights
def weights(s, b, tp, pp, k, stored=None, ver=(0, 19)):
    """Bytes that stay allocated after load, as the allocator counts them.

    stored: linear format: None | 'w8' (1 byte + fp32 scale per output channel) | 'w8t' (1 byte + 1 scale) | 'w4g128'
    """
    a = Allocator()
    first, last = k == 0, k == pp - 1
    vloc = pad(s.v, 64) // tp

    def linear(n, m, bias=False, q=True):
        if q and stored in ("w8", "w8t"):
            a.malloc(n * m)
            a.malloc(4 * n if stored == "w8" else 4)
        elif q and stored == "w4g128":
            a.malloc(n * m // 2)
            a.malloc(4 * m)  # g_idx
            a.malloc(n * (m // 128) // 2)  # qzeros, kept though symmetric
            a.malloc(n * (m // 128) * b)
        else:
            a.malloc(n * m * b)
        if bias:
            a.malloc(n * b)

    if s.vision:
        vision(a, s, b, tp)
    if first or (last and s.tied):
        a.malloc(vloc * s.h * b)
    kv = max(1, s.kv // tp)
    q = s.heads // tp
    moe_blocks = []
    rope_done = False
    for _ in range(stage(s, pp, k)):
        linear((q + 2 * kv) * s.d, s.h, s.qkv_bias, not s.mx)
        linear(s.h, q * s.d, s.o_bias, not s.mx)
        if not rope_done:
            for rows in s.rope_rows:
                a.malloc(rows * s.rope_dim * b)
            rope_done = True
        if s.sinks:
            a.malloc(q * b)
        if s.qk_norm:
            a.malloc(s.d * b), a.malloc(s.d * b)
        if s.experts and s.mx:
            i = pad(s.moe_i // tp if s.moe_i % tp == 0 else -(-s.moe_i // tp), 64)
            e = s.experts
            linear(e, s.h, True, False)
            blk = [a.malloc(e * 2 * i * s.h // 2), a.malloc(e * 2 * i * s.h // 32), a.malloc(e * 2 * i * b),
                   a.malloc(e * s.h * i // 2), a.malloc(e * s.h * i // 32), a.malloc(e * s.h * b)]
            moe_blocks.append((e, i, blk))
        elif s.experts:
            linear(s.experts, s.h, False, False)
            if s.shared_i:
                linear(1, s.h, False, False)
                linear(2 * s.shared_i // tp, s.h)
                linear(s.h, s.shared_i // tp)
            a.malloc(s.experts * 2 * s.moe_i // tp * s.h * b)
            a.malloc(s.experts * s.moe_i // tp * s.h * b)
        else:
            linear((2 if s.gated else 1) * s.i // tp, s.h, s.all_bias)
            linear(s.h, s.i // tp, s.all_bias)
        for _ in range(s.norms):
            a.malloc(s.h * b)
            if s.norm_bias:
                a.malloc(s.h * b)
    if last:
        a.malloc(s.h * b)
        if not s.tied:
            a.malloc(vloc * s.h * b)
            if s.lm_bias:
                a.malloc(vloc * b)
    # Triton mxfp4 on Hopper: per layer, after loading, biases to fp32, values re-laid with the packed K axis padded to 64 bytes
    # from 0.17 (that 64 is fitted on three tensor-parallel sizes, not read in a source), scale rows padded to 256;
    # the loaded values are deleted, the loaded scales stay referenced by the layer.
    for e, i, (v13, s13, b13, v2, s2, b2) in moe_blocks:
        a.malloc(e * 2 * i * 4), a.malloc(e * s.h * 4)
        kpad = 64 if ver >= (0, 17) else 1
        a.malloc(e * 2 * i * pad(s.h // 2, kpad))
        a.malloc(e * pad(2 * i, 256) * pad(s.h // 32, 2))
        a.malloc(e * s.h * pad(i // 2, kpad))
        a.malloc(e * pad(s.h, 256) * pad(i // 32, 2))
        a.free(v13), a.free(v2), a.free(b13), a.free(b2)
        a.empty_cache()
    return a.allocated


def vision(a, s, b, tp):
    v = s.vision
    h, i, p = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    a.malloc(h * 3 * p * p * b), a.malloc(h * b), a.malloc((v["image_size"] // p) ** 2 * h * b)
    for _ in range(v["num_hidden_layers"]):
        for n, m in ((3 * h // tp, h), (h, h // tp), (i // tp, h), (h, i // tp)):
            a.malloc(n * m * b), a.malloc(n * b)
        for _ in range(4):
            a.malloc(h * b)
    a.malloc(h * b), a.malloc(h * b)
    a.malloc(h * s.h * b), a.malloc(h * b)  # projector


# ---------------------------------------------------------------- activation
CUBLAS = {9: 32 * MIB, 10: 32 * MIB}  # torch's default cuBLAS workspace by SM major; 8.125 MiB on others
CARDS = {  # device facts a catalogue holds: bytes CUDA reports, L2 flush buffer = L2 size, SM count, SM major
    "h100": dict(total=79.19 * GIB, l2=50 * MIB, sm=132, major=9),
}


def blk(n):
    """A fresh large block as counted: whole 2 MiB multiple when at most 1 MiB would be left over."""
    n = -(-n // 512) * 512
    if n < 10 * MIB:
        return n
    seg = pad(n, 2 * MIB)
    return n if seg - n > MIB else seg


def pow2(n):
    return 1 << (n - 1).bit_length()


def activation(s, b, tp, pp, k, T, R, card, cold=True, moe_backend="triton", ver=(0, 19)):
    """Peak of allocated bytes during profile_run, over what was allocated before. -> (bytes, phase, parts)"""
    first, last = k == 0, k == pp - 1
    R = min(R, T)
    ws = CUBLAS.get(card["major"], 8 * MIB + 128 * KIB)
    th = blk(T * s.h * b)
    held = 0  # alive through the whole forward and sampler
    if not first:
        held += 2 * th  # PP: hidden and residual buffers of the runner, made in the first dummy run, kept
    moe = 0
    if s.experts and not s.mx:
        n13, n2 = 2 * s.moe_i // tp, s.moe_i // tp
        if moe_backend == "triton":  # one shared buffer of two parts, kept by the workspace manager
            moe = T * s.topk * max(n2, s.h) * b + T * s.topk * max(n13, s.h) * b
    mm = 0
    phases = {}
    if s.vision and first:
        v = s.vision
        toks = 256 if "mm_tokens_per_image" not in v else v["mm_tokens_per_image"]
        items = max(1, T // toks)
        pixels = blk(items * 3 * v["image_size"] ** 2 * b)
        mm = pixels + blk(items * toks * s.h * b)  # the dummy pixels and the encoder outputs are locals until the end
        patches = items * (v["image_size"] // v["patch_size"]) ** 2
        enc = pixels + patches * b * (2 * v["hidden_size"] + 2 * v["intermediate_size"] // tp)
        phases["encoder"] = enc + ws
    # compile: Inductor's benchmark of the embedding kernel builds random inputs: the table and two outputs
    if cold and first and not s.vision and ver >= (0, 12):  # torch >= 2.9
        phases["compile"] = blk(pad(s.v, 64) // tp * s.h * b) + 2 * th
    # one decoder layer between two attention calls
    q, kvd = s.heads * s.d // tp, 2 * max(1, s.kv // tp) * s.d
    hold = 2 * th + blk(T * q * b)  # caller's residual, this piece's residual, caller's attention output
    if not s.experts:
        i = s.i // tp
        mlp = blk(T * 2 * i * b) + blk(T * i * b) if s.gated else 2 * blk(T * i * b)
    else:
        mlp = moe + th + (3 * T * s.shared_i // tp * b)
    qkv = blk(T * (q + kvd) * b) + blk(T * (q + kvd // 2) * b) + blk(T * q * b)
    flush = card["l2"] if cold else 0
    phases["forward"] = held + mm + hold + max(mlp, qkv) + ws + flush
    if last:
        v = s.v
        samp = blk(R * pad(v, 64) * b)  # logits; the un-padded view keeps the storage
        if b != 4:
            samp += blk(R * v * 4)  # fp32 copy; for fp32 models .to() is the same tensor
        n = min(card["sm"], R)
        if R >= 8 and ver >= (0, 17):
            samp += blk(min(pow2(n), card["sm"]) * v * 4)  # Triton top-k/top-p buffer, cached
            samp += 2 * blk(R * v * 4)  # softmax probabilities and the exponential noise
        else:  # full sort: keys 4 + int64 index 8 out, and inside: keys 4, index 8 + 8
            samp += 2 * blk(R * v * 4) + 3 * blk(R * v * 8)
        phases["sampler"] = held + mm + moe + th + 2 * blk(R * s.h * b) + samp + ws
    name = max(phases, key=phases.get)
    return phases[name], name, phases


# ---------------------------------------------------------------- CUDA graph pre-estimate (0.18+; subtracted from 0.21)
def capture_sizes(R, T, cap=512):
    m = min(R * 2, cap, T)
    sizes = [n for n in (1, 2, 4) if n <= m]
    sizes += list(range(8, min(m + 1, 256), 8)) + list(range(256, m + 1, 16))
    return sizes


def graphs(s, b, tp, pp, k, T, R, card, attn):
    sizes = capture_sizes(R, T, s.capture_cap) if s.capture_cap == 512 else capture_sizes(10 ** 6, T, s.capture_cap)
    top = sizes[-1]
    # FULL: FA3 keeps room for 32 KV splits of every query head, fp32
    full = 6 * MIB + (32 * top * (s.heads // tp) * s.d * 4 if attn == "fa3" and top <= 992 else 0)
    layer = top * b * (3 * (s.moe_i * s.topk if s.experts else s.i) // tp + 3 * s.h)
    piece = 84 * MIB + layer
    per = 0.38 * MIB * stage(s, pp, k) * (1.5 if s.experts else 1.0)
    return max(full, piece) + (len(sizes) - 1) * per


# ---------------------------------------------------------------- records
def version(r):
    m = re.match(r"v?(\d+)\.(\d+)", str(r.get("engine_version", "")))
    return (int(m[1]), int(m[2])) if m else None


def inputs(r, cfgs):
    c = cfgs.get(r["model"])
    if c is None or "h100" not in str(r.get("gpu", "")).lower():
        return None
    s = shape(c)
    dt = r.get("dtype") or s.dtype
    b = 4 if dt == "float32" else 2
    q = str(r.get("quantization") or "").lower()
    return dict(s=s, b=b, ver=version(r), tp=r.get("tensor_parallel") or 1, pp=r.get("pipeline_parallel") or 1,
                T=r.get("max_num_batched_tokens") or 8192, R=r.get("max_num_seqs") or 1024, q=q,
                u=r.get("gpu_memory_utilization") or 0.9, card=CARDS["h100"])


def stored_format(r, q):
    """Weight format: a fact of the checkpoint (quantization_config). The data file does not carry it, so it is read from the
    quantisation words of the record; this is configuration, not a reported figure."""
    w = (q + " " + r["model"]).lower()
    if q == "mxfp4" or "gpt-oss" in w:
        return None
    if "w4a16" in w:
        return "w4g128"
    if "w8a8" in w or "fp8-dynamic" in w:
        return "w8"
    if q == "fp8":
        return "w8t"
    return None


# non-torch, GiB, fitted on v0.19 H100: base by kind of communicator + slope per layer and rank
def nt_kind(p):
    era = "0.18+ " if p["ver"] >= (0, 18) else "older "  # 0.18 moved the graph trial, and what it loads, into the profile
    return era + ("tp" if p["tp"] > 1 else "pp" if p["pp"] > 1 else "one")


def nt_x(p):
    return p["tp"] * stage(p["s"], p["pp"], 0)


def fit_nt(rows):
    """Median base per kind, one shared slope by least absolute deviation over a grid."""
    best = None
    for slope in [x * 5e-5 for x in range(0, 31)]:
        base = {}
        for kind in sorted({nt_kind(p) for _, p in rows}):
            v = sorted(r["non_torch_gib"] - slope * nt_x(p) for r, p in rows if nt_kind(p) == kind)
            if v:
                base[kind] = v[len(v) // 2]
        err = sum(abs(r["non_torch_gib"] - slope * nt_x(p) - base[nt_kind(p)]) for r, p in rows)
        if best is None or err < best[0] - 1e-12:
            best = (err, slope, base)
    return best[1], best[2]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("measurements")
    ap.add_argument("configs")
    ap.add_argument("--markdown", action="store_true")
    ap.add_argument("--min-version", default="0.17")
    args = ap.parse_args()
    cfgs = {}
    for line in open(args.configs):
        c = json.loads(line)
        cfgs[c["model"]] = c
    floor = tuple(int(x) for x in args.min_version.split("."))
    rows = []
    for line in open(args.measurements):
        r = json.loads(line)
        if r["engine"] != "vllm" or not version(r) or version(r) < floor:
            continue
        p = inputs(r, cfgs)
        if p is None:
            print("not predicted:", r["id"], r["model"], r.get("gpu"), file=sys.stderr)
            continue
        rows.append((r, p))
    ntrows = [(r, p) for r, p in rows if r.get("non_torch_gib") is not None]
    slope, base = fit_nt(ntrows)
    families = {}
    for r, p in rows:
        s = p["s"]
        families[r["id"]] = (s.h, s.layers, s.heads, s.v)  # records of one architecture leave together
    lomo = {}
    for fam in set(families.values()):
        lomo[fam] = fit_nt([(r, p) for r, p in ntrows if families[r["id"]] != fam])
    out = []
    for r, p in rows:
        s = p["s"]
        W = weights(s, p["b"], p["tp"], p["pp"], 0, stored_format(r, p["q"]), version(r))
        A, phase, parts = activation(s, p["b"], p["tp"], p["pp"], 0, p["T"], p["R"], p["card"], ver=version(r))
        N = (base[nt_kind(p)] + slope * nt_x(p)) * GIB
        ls, lb = lomo[families[r["id"]]]
        NL = (lb.get(nt_kind(p), base[nt_kind(p)]) + ls * nt_x(p)) * GIB
        attn = "triton" if p["b"] == 4 or s.vision else "fa3"
        G = graphs(s, p["b"], p["tp"], p["pp"], 0, p["T"], p["R"], p["card"], attn)
        sub = G if version(r) >= (0, 21) else 0
        req = math.ceil(p["card"]["total"] * p["u"])
        out.append(dict(id=r["id"], r=r, W=W / GIB, A=A / GIB, phase=phase, N=N / GIB, NL=NL / GIB, G=G / GIB,
                        K=(req - W - A - N - sub) / GIB, KL=(req - W - A - NL - sub) / GIB))
    sep = " | " if args.markdown else "  "

    def cell(rep, pred):
        if rep is None:
            return "-" + sep + f"{pred:.3f}" + sep + "-"
        return f"{rep:.2f}" + sep + f"{pred:.3f}" + sep + f"{100 * (pred - rep) / max(rep, 1):+.2f}"
    head = ["record", "weights", "pred", "%", "act", "pred", "%", "phase", "non-torch", "pred", "%", "KV", "pred", "%", "graph est", "pred"]
    print(("| " if args.markdown else "") + sep.join(head) + (" |" if args.markdown else ""))
    if args.markdown:
        print("|" + "---|" * len(head))
    errs = defaultdict(list)
    for o in out:
        r = o["r"]
        m = re.search(r"pre-estimate (?:0?)?([\d.]+) GiB", r.get("notes", "")) or re.search(
            r"summary ([\d.]+) GiB is vLLM's pre-estimate", r.get("notes", ""))
        g = float(m[1]) if m else None
        line = sep.join([o["id"].replace("jgchn-", ""), cell(r.get("weights_gib_per_gpu"), o["W"]),
                         cell(r.get("activation_peak_gib"), o["A"]), o["phase"], cell(r.get("non_torch_gib"), o["N"]),
                         cell(r.get("kv_available_gib"), o["K"]), "-" if g is None else f"{g:.2f}", f"{o['G']:.2f}"])
        print(("| " if args.markdown else "") + line + (" |" if args.markdown else ""))
        for key, rep, pred in (("weights", r.get("weights_gib_per_gpu"), o["W"]), ("activation", r.get("activation_peak_gib"), o["A"]),
                               ("non_torch", r.get("non_torch_gib"), o["N"]), ("non_torch_lomo", r.get("non_torch_gib"), o["NL"]),
                               ("kv_available", r.get("kv_available_gib"), o["K"]), ("kv_available_lomo", r.get("kv_available_gib"), o["KL"]),
                               ("graph_estimate", g, o["G"])):
            if rep is not None:
                errs[key].append((100 * (pred - rep) / max(rep, 1), pred - rep))
    print()
    for key, e in errs.items():
        ab = sorted(abs(x) for x, _ in e)
        gi = sorted(d for _, d in e)
        print(f"{key:18} n={len(e):3} mean|%|={sum(ab) / len(ab):.3f} median={ab[len(ab) // 2]:.3f} max={ab[-1]:.3f}  "
              f"GiB error {gi[0]:+.3f} .. {gi[-1]:+.3f}")
    # ranks of pipeline records, against the per-worker figures some notes carry
    for r, p in rows:
        m = re.search(r"per-worker \(nonKV,act,nontorch,weights\): ([^;]+)", r.get("notes", ""))
        if not m:
            continue
        for k in range(p["pp"]):
            w = weights(p["s"], p["b"], p["tp"], p["pp"], k, stored_format(r, p["q"]), version(r)) / GIB
            a, phase, _ = activation(p["s"], p["b"], p["tp"], p["pp"], k, p["T"], p["R"], p["card"], ver=version(r))
            print(f"stage {k} of {r['id']}: weights {w:.3f} activation {a / GIB:.3f} ({phase}); reported {m[1]}")
    print("non-torch fit: slope %.5f GiB per layer and rank, base %s" % (slope, {k: round(v, 3) for k, v in base.items()}))


if __name__ == "__main__":
    main()
