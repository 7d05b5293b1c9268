#!/usr/bin/env python3
"""What giving way costs on this machine: swap only, recompute only, and whichever is believed cheaper.

    bench/preempt.py MODEL [RUNS] [wall | cpu]

MODEL is any checkpoint that `plimsoll generate` runs. RUNS (5) runs of each mode alternate, after one that warms up;
the table has medians. Two cases: swap space in memory, and a swap file in the current folder. The bar: auto takes at most
1.05 times as long as the better of the others, by the wall clock or, where the machine is shared, by processor seconds.
Exit status 1 where it does not, or where nobody gave way. KV_MEMORY (8MiB) is the pool. Needs a release build (`cargo build --release`); PLIMSOLL
names another binary.
"""

import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR = 1.05
MODES = ["swap", "recompute", "auto"]
WAY = re.compile(r"(\d+)(?: times)? by (swap|recompute)(?: \(believed ([\d.]+) ms each, took ([\d.]+) ms\))?")


def prompts(folder, requests, words, tokens):
    """Prompts that share nothing, so that what is forgotten is computed again and not found."""
    draw = random.Random(7)
    lines = [
        json.dumps(dict(prompt=" ".join(f"w{draw.randrange(2, 500)}" for _ in range(words)), max_tokens=tokens))
        for _ in range(requests)
    ]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(binary, model, file, flags, mode):
    command = [binary, "generate", model, "--prompts", file, "--ignore-eos", "--temperature", "0", "--preempt", mode]
    start, used = time.perf_counter(), processor_seconds()
    done = subprocess.run([str(c) for c in command + flags], capture_output=True, text=True)
    times = dict(wall=time.perf_counter() - start, cpu=processor_seconds() - used)
    if done.returncode != 0:
        sys.exit(done.stderr)
    answers = sorted(done.stdout.splitlines(), key=lambda line: json.loads(line)["index"])
    texts = [[c["text"] for c in json.loads(line)["choices"]] for line in answers]
    line = next((l for l in done.stderr.splitlines() if l.startswith("preempted")), "")
    ways = {way: (int(n), believed, took) for n, way, believed, took in WAY.findall(line)}
    return times, ways, texts


def case(name, binary, model, file, flags, runs, clock):
    print(f"\n{name}", flush=True)
    print(f"{'mode':<10} {'wall s':>7} {'cpu s':>7} {clock + ', least to most':>19}  {'swaps':>5} {'recomputes':>10}  each victim, ms")
    times, ways, want = {m: [] for m in MODES}, {}, None
    for run in range(runs + 1):
        for mode in MODES:
            took, ways[mode], texts = once(binary, model, file, flags, mode)
            want = want or texts
            if texts != want:
                sys.exit(f"{mode} answers otherwise")
            if run > 0:
                times[mode].append(took)
    median = {m: {c: statistics.median(t[c] for t in times[m]) for c in ["wall", "cpu"]} for m in MODES}
    good = True
    for mode in MODES:
        costs = [f"{way} believed {believed}, took {took}" for way, (n, believed, took) in ways[mode].items() if n > 0]
        n = {way: ways[mode].get(way, (0,))[0] for way in ["swap", "recompute"]}
        of = [t[clock] for t in times[mode]]
        spread = f"{min(of):.2f} to {max(of):.2f}"
        row = f"{mode:<10} {median[mode]['wall']:>7.2f} {median[mode]['cpu']:>7.2f} {spread:>19}"
        print(f"{row}  {n['swap']:>5} {n['recompute']:>10}  {'; '.join(costs)}")
        good &= sum(n.values()) > 0
    better = min(MODES[:2], key=lambda m: median[m][clock])
    ratio = median["auto"][clock] / median[better][clock]
    good &= ratio <= BAR
    print(f"the better is {better}; auto takes {ratio:.3f} of its time ({clock}), bar {BAR}: {'kept' if good else 'MISSED'}")
    return good


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    clock = sys.argv[3] if len(sys.argv) > 3 else "wall"
    binary = os.environ.get("PLIMSOLL", Path(__file__).resolve().parent.parent / "target/release/plimsoll")
    with tempfile.TemporaryDirectory(dir=".") as here:
        file = prompts(Path(here), 10, 32, 64)
        flags = ["--max-num-seqs", "10", "--max-model-len", "512", "--kv-memory", os.environ.get("KV_MEMORY", "8MiB")]
        flags += ["--swap-space", "256MiB"]
        good = case("swap space in memory", binary, sys.argv[1], file, flags, runs, clock)
        flags += ["--swap-dir", here]
        good &= case("swap file", binary, sys.argv[1], file, flags, runs, clock)
    sys.exit(0 if good else 1)


main()
