"""Rounds of `cpu_peers.sh`: every engine and form in turn, again and again, so that drift of the machine meets all alike.

Forms that are compared with one another: 16-bit (bf16 here and in llama.cpp, fp16 weights in OpenVINO), 8-bit, 4-bit.
One process per measurement; its peak of resident memory is what the system says (ru_maxrss), with room for 16 x 256 tokens of KV cache.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

SIZES = {
    "small": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, intermediate_size=2048),
    "base": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192),
}
VOCAB, CONTEXT = 32000, 4096
PREFILL, DECODE_PROMPT, PROMPT, OUTPUT, REQUESTS = 512, 32, 128, 128, 16
# Tokens that each case begins with, untimed: `plimsoll bench` does as much.
WARM = 8
# Weight bits -> (ours, OpenVINO's, llama.cpp's)
FORMS = {"16": ("bf16", "fp16", "bf16"), "8": ("int8", "int8", "Q8_0"), "4": ("int4", "int4", "Q4_K_M")}
CASES = ["decode", "prefill", "batch"]


def checkpoint(folder: Path, size: str):
    """A LLaMA of random weights, and a byte-level BPE tokenizer of Python's own library."""
    if (folder / "model.safetensors").exists():
        return
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
                         bos_token_id=0, eos_token_id=0, **SIZES[size])
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    files = [str(p) for p in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    bpe = ByteLevelBPETokenizer()
    bpe.train(files, vocab_size=VOCAB, special_tokens=["<|endoftext|>"])
    # The trainer may find fewer merges than asked for: the rest are tokens that no text has.
    bpe.add_tokens([f"<|unused{i}|>" for i in range(VOCAB - bpe.get_vocab_size())])
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>").save_pretrained(folder)


def gguf(root: Path, llama: Path, folder: Path, size: str, form: str, threads: int) -> Path:
    """llama.cpp's own conversion and quantisation; its converter is told the splitting rule of a BPE that it does not know."""
    full, out = root / f"{size}-bf16.gguf", root / f"{size}-{form}.gguf"
    if not full.exists():
        code = (
            "import sys, runpy; sys.path[:0] = [{0!r}, {0!r} + '/gguf-py'];"
            "from conversion.base import TextModel;"
            "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2';"
            "sys.argv = ['convert', {1!r}, '--outfile', {2!r}, '--outtype', 'bf16'];"
            "runpy.run_path({0!r} + '/convert_hf_to_gguf.py', run_name='__main__')"
        ).format(str(llama), str(folder), str(full))
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not out.exists():
        subprocess.run([root / "lcpp/bin/llama-quantize", full, out, form, str(threads)], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def openvino(root: Path, folder: Path, size: str, form: str) -> Path:
    out = root / f"{size}-ov-{form}"
    if not (out / "openvino_model.xml").exists():
        subprocess.run([Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", folder,
                        "--task", "text-generation-with-past", "--weight-format", form, out],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def openvino_once(folder: str, threads: int):
    """One process of OpenVINO GenAI: prints tokens per second of the three cases, each after once to warm up."""
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    scheduler = og.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 16, 512
    scheduler.enable_prefix_caching = False
    # Blocks of 32 tokens: room for the 16 requests, and one block each that begins.
    scheduler.num_kv_blocks = REQUESTS * ((PROMPT + OUTPUT) // 32 + 1)
    pipe = og.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
    random, ids = np.random.default_rng(1), iter(range(1 << 30))

    def run(requests, prompt, output):
        config = og.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = output, False, True
        began = time.perf_counter()
        handles = [pipe.add_request(next(ids), ov.Tensor(random.integers(1, VOCAB, (1, prompt))), config) for _ in range(requests)]
        first, seen = None, 0
        while pipe.has_non_finished_requests():
            pipe.step()
            for h in handles:
                while h.can_read():
                    seen += sum(len(o.generated_ids) for o in h.read().values())
            if first is None and seen:
                first = time.perf_counter()
        end = time.perf_counter()
        assert seen == requests * output, (seen, requests, output)
        return first - began, end - first, end - began

    def warm(f, requests, prompt, output):
        run(requests, prompt, min(output, WARM))
        return f(*run(requests, prompt, output))

    print(json.dumps({
        "decode": warm(lambda first, rest, _: (OUTPUT - 1) / rest, 1, DECODE_PROMPT, OUTPUT),
        "prefill": warm(lambda first, rest, _: PREFILL / first, 1, PREFILL, 2),
        "batch": warm(lambda first, rest, all: REQUESTS * OUTPUT / all, REQUESTS, PROMPT, OUTPUT),
    }))


def vllm_once(folder: str):
    """One process of vLLM: prints tokens per second of the three cases, each after once to warm up."""
    import random

    from vllm import LLM, SamplingParams

    blocks = REQUESTS * ((PROMPT + OUTPUT) // 16 + 1)
    llm = LLM(folder, dtype="bfloat16", max_model_len=1024, max_num_seqs=REQUESTS, max_num_batched_tokens=PREFILL,
              enable_prefix_caching=False, num_gpu_blocks_override=blocks, disable_log_stats=True)
    draw = random.Random(1)

    def run(requests, prompt, output):
        prompts = [{"prompt_token_ids": [draw.randrange(1, VOCAB) for _ in range(prompt)]} for _ in range(requests)]
        began = time.perf_counter()
        done = llm.generate(prompts, SamplingParams(temperature=0, ignore_eos=True, max_tokens=output), use_tqdm=False)
        took = time.perf_counter() - began
        assert all(len(d.outputs[0].token_ids) == output for d in done)
        return took

    def warm(requests, prompt, output):
        run(requests, prompt, min(output, WARM))
        return run(requests, prompt, output)

    # Its own call tells no first token's time: what one token takes is taken off.
    first = warm(1, DECODE_PROMPT, 1)
    print(json.dumps({
        "decode": (OUTPUT - 1) / (warm(1, DECODE_PROMPT, OUTPUT) - first),
        "prefill": PREFILL / warm(1, PREFILL, 1),
        "batch": REQUESTS * OUTPUT / warm(REQUESTS, PROMPT, OUTPUT),
    }))


def measured(command: list, **environment: str) -> tuple[str, int]:
    """Output of a process, and the peak of its resident memory in bytes."""
    with tempfile.TemporaryFile("w+") as err:
        env = os.environ | environment
        p = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=err, text=True, env=env)
        out = p.stdout.read()
        _, status, usage = os.wait4(p.pid, 0)
        if status:
            err.seek(0)
            sys.exit(f"{command[0]} failed:\n{err.read()[-2000:]}")
    return out, usage.ru_maxrss * 1024


def ours_once(a, folder: Path, form: str):
    kv = 2 * (SIZES[a.size]["hidden_size"] // SIZES[a.size]["num_attention_heads"]) * SIZES[a.size]["num_key_value_heads"] * 2
    kv *= SIZES[a.size]["num_hidden_layers"] * (REQUESTS * (PROMPT + OUTPUT) + 16)
    out, peak = measured([a.ours, "bench", folder, "--weights", form, "--concurrency", REQUESTS, "--prefill", PREFILL, "--prompt-len", PROMPT,
                          "--output-len", OUTPUT, "--repeats", 1, "--threads", a.threads, "--kv-memory", kv, "--json"])
    value = json.loads(out)
    rates = {c["name"].split()[0]: c["tokens_per_s"] for c in value["cases"]}
    bound = value["cases"][0]["share_of_bound"]
    return rates | {"peak": peak, "share_of_read_bound": bound}


def llama_once(a, model: Path):
    bench, batched = (a.root / "lcpp/bin" / x for x in ("llama-bench", "llama-batched-bench"))
    out, _ = measured([bench, "-m", model, "-t", a.threads, "-p", PREFILL, "-n", OUTPUT, "-r", 1, "-fa", 1, "-o", "json"])
    rows = json.loads(out)
    prefill = next(r["avg_ts"] for r in rows if r["n_prompt"] == PREFILL and not r["n_gen"])
    decode = next(r["avg_ts"] for r in rows if r["n_gen"] == OUTPUT and not r["n_prompt"])
    cells = REQUESTS * (PROMPT + OUTPUT)
    out, peak = measured([batched, "-m", model, "-t", a.threads, "-tb", a.threads, "-c", cells, "-b", 2048, "-ub", 512, "-fa", "on",
                          "-npp", PROMPT, "-ntg", OUTPUT, "-npl", REQUESTS, "--output-format", "jsonl"])
    row = next(json.loads(line) for line in out.splitlines() if line.startswith("{") and re.search(r'"pl": *%d' % REQUESTS, line))
    return {"decode": decode, "prefill": prefill, "batch": REQUESTS * OUTPUT / row["t"], "peak": peak}


def vllm(a, folder: Path):
    # In one process, so that its memory is all; the space for KV blocks is whole GiB there, of which few blocks are taken.
    out, peak = measured([a.vllm, __file__, "--vllm-once", folder], VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1",
                         VLLM_CPU_OMP_THREADS_BIND=f"0-{a.threads - 1}", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
    return json.loads(out.splitlines()[-1]) | {"peak": peak}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--root", type=Path)
    p.add_argument("--llama", type=Path)
    p.add_argument("--ours", type=Path)
    p.add_argument("--size", choices=SIZES, default="small")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--forms", default="16 8 4", help="weight bits")
    p.add_argument("--peers", default="OpenVINO llama.cpp vLLM", help="first words of their names")
    p.add_argument("--vllm", type=Path, help="Python that has vLLM: its bf16 is one more peer")
    p.add_argument("--openvino-once", metavar="FOLDER", help=argparse.SUPPRESS)
    p.add_argument("--vllm-once", metavar="FOLDER", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.openvino_once:
        return openvino_once(a.openvino_once, a.threads)
    if a.vllm_once:
        return vllm_once(a.vllm_once)
    folder = a.root / f"llama-{a.size}"
    checkpoint(folder, a.size)
    todo = {}
    for bits in a.forms.split():
        ours, ov, llama = FORMS[bits]
        at_ov, at_llama = openvino(a.root, folder, a.size, ov), gguf(a.root, a.llama, folder, a.size, llama, a.threads)

        def peer(at=at_ov):
            out, peak = measured([sys.executable, __file__, "--openvino-once", at, "--threads", a.threads])
            return json.loads(out.splitlines()[-1]) | {"peak": peak}

        todo[bits] = {
            f"plimsoll {ours}": lambda form=ours: ours_once(a, folder, form),
            f"OpenVINO GenAI {ov}": peer,
            f"llama.cpp {llama}": lambda at=at_llama: llama_once(a, at),
        }
        if a.vllm and bits == "16":
            todo[bits]["vLLM bf16"] = lambda: vllm(a, folder)
        todo[bits] = {name: once for name, once in todo[bits].items() if name.split()[0] in ["plimsoll", *a.peers.split()]}
    results = {bits: {name: [] for name in engines} for bits, engines in todo.items()}
    rounds = 0
    try:
        for rounds in range(1, a.rounds + 1):
            for bits, engines in todo.items():
                for name, once in engines.items():
                    results[bits][name].append(once())
                    print(f"round {rounds}: {name}: {results[bits][name][-1]}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        # What there is: whole rounds.
        rounds -= 1
        results = {bits: {name: runs[:rounds] for name, runs in engines.items()} for bits, engines in results.items()}
    if not rounds:
        return
    print(f"\n`llama-{a.size}`, {a.threads} threads, medians of {rounds} alternating rounds (least to most), tokens/s\n")
    print("| engine | decode, 1 stream | prefill of 512 | 16 x (128 + 128) | peak memory, MB |\n| --- | --- | --- | --- | --- |")
    for bits, engines in results.items():
        mid = {n: {c: statistics.median(x[c] for x in runs) for c in [*CASES, "peak"]} for n, runs in engines.items()}
        for name, runs in engines.items():
            cells = [f"{mid[name][c]:.0f} ({min(x[c] for x in runs):.0f} to {max(x[c] for x in runs):.0f})" for c in CASES]
            print(f"| {name} | {' | '.join(cells)} | {mid[name]['peak'] / 1e6:.0f} |")
        us, *peers = mid
        ratios = [f"{mid[us][c] / max(mid[p][c] for p in peers):.2f}" for c in CASES]
        memory = mid[us]["peak"] / min(mid[p]["peak"] for p in peers)
        print(f"| ours / best peer, {bits} bits | {' | '.join(ratios)} | {memory:.2f} |")
        shares = [x["share_of_read_bound"] for x in engines[us]]
        print(f"| share of the read bound, {bits} bits | {statistics.median(shares):.2f} | | | |")


if __name__ == "__main__":
    main()
