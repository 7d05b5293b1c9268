#!/usr/bin/env python3
"""Plans for llama.cpp on processors, emitted, started by llama-server itself, and compared with what it prints.

    llamacpp_server.py --plimsoll target/debug/plimsoll --llama-server FILE --commit HASH > crates/plan/tests/golden/llamacpp_server.jsonl

Models are those of llamacpp_memory.py: true headers, a hole for weights. For each, and for each set of settings below,
`plan --gpu cpu --emit llama.cpp` writes the command, llama-server is started with it and ended when it listens, and its
lines of model, KV, compute and output buffers are compared with the plan's terms. One JSON line for each start; ends with 1
where a term is not the printed one, with two decimals. Where matrices are laid out anew for the processor (CPU_REPACK) the
mapped file spans what it no longer uses, so that only `weights <= sum` is asked.

Needs Python 3.9 and the CPU build of llama-server; each start takes about a second.
"""
import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import llamacpp_memory as memory

MODELS = ["llama-3.1-8b", "llama-3.1-8b-q4k", "qwen2.5-0.5b", "qwen3-30b-a3b", "gemma-2-9b", "gemma-3-1b", "phi-3-mini", "gpt2-xl",
          "pythia-2.8b", "deepseek-v3", "gpt-oss-20b", "granite-3.1-8b", "qwen3-next-80b"]
SETTINGS = [
    {"users": 2, "context": 2048},
    {"users": 3, "context": 1000, "kv_unified": True, "type_k": "q8_0", "type_v": "q8_0"},
    {"users": 1, "context": 4096, "flash_attn": False, "ubatch": 256},
    {"users": 4, "context": 2048, "kv_unified": True, "swa_full": True},
    {"users": 2, "context": 3000, "max_model_len": 5000, "max_num_seqs": 3, "batch": 4096, "ubatch": 1024},
]
FLAGS = {"users": "--users", "context": "--context", "max_model_len": "--max-model-len", "max_num_seqs": "--max-num-seqs",
         "batch": "--max-num-batched-tokens", "ubatch": "--ubatch-size", "type_k": "--cache-type-k", "type_v": "--cache-type-v",
         "flash_attn": "--flash-attn", "kv_unified": "--kv-unified", "swa_full": "--swa-full"}
PRINTED = {"weights": r"CPU\w* +model buffer size = +([\d.]+)", "kv_cache": r"(?:KV|RS) buffer size = +([\d.]+)",
           "activations": r"compute buffer size = +([\d.]+)", "workspace": r"output buffer size = +([\d.]+)"}


def words(settings):
    out = []
    for key, value in settings.items():
        out.append(FLAGS[key])
        if key not in ("kv_unified", "swa_full"):
            out.append(str(value).lower() if isinstance(value, bool) else str(value))
    return out


def started(command, folder):
    """What llama-server prints until it listens or fails."""
    log = os.path.join(folder, "log")
    with open(log, "w") as f:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", "0", "--no-warmup", "-lv", "4"], stdout=f, stderr=f)
    for _ in range(600):
        time.sleep(0.1)
        if server.poll() is not None or "listening on" in open(log).read():
            break
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    return open(log).read()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--plimsoll", required=True)
    p.add_argument("--llama-server", required=True)
    p.add_argument("--commit", required=True)
    a = p.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            path = os.path.join(folder, model + ".gguf")
            memory.write_gguf(path, *memory.MODELS[model]())
            for settings in SETTINGS:
                plan = [a.plimsoll, "plan", path, "--gpu", "cpu", "--memory", "64GiB", "--engine", "llama.cpp", *words(settings)]
                made = subprocess.run([*plan, "--json"], capture_output=True, text=True)
                if made.returncode == 2 and "do not divide heads" in made.stdout:
                    continue  # llama.cpp refuses it too
                terms = {}
                for t in json.loads(made.stdout)["ranks"][0]["terms"]:
                    terms[t["region"]] = terms.get(t["region"], 0) + t["bytes"] / 2**20
                emitted = subprocess.run([*plan, "--emit", "llama.cpp"], capture_output=True, text=True, check=True).stdout
                command = [a.llama_server, *shlex.split(emitted)[1:]]
                text = started(command, folder)
                printed = {k: sum(map(float, re.findall(r, text))) for k, r in PRINTED.items()}
                repacked = "CPU_REPACK model" in text
                row = {"model": model, "llama_cpp_commit": a.commit, **settings, "printed_mib": {k: round(v, 2) for k, v in printed.items()},
                       "repacked": repacked}
                print(json.dumps(row, separators=(",", ":")))
                sys.stdout.flush()
                for key, mib in printed.items():
                    ok = terms[key] <= mib + 0.01 if repacked and key == "weights" else abs(terms[key] - mib) <= 0.01
                    if not ok:
                        wrong += 1
                        print(f"{model} {settings}: {key} is {terms[key]:.2f} MiB, printed {mib:.2f}\n  {emitted}", file=sys.stderr)
    print(f"{wrong} terms differ", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
