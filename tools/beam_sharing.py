#!/usr/bin/env python3
"""What beam searches share, by the engine: the last section of docs/paper.md, written to standard output.

The demo model searches with the paper's lengths; every decision is recorded, and `simulate --replay` makes them again
and counts blocks and pages. Nothing is downloaded: the prompts are texts that the demo model drew. PLIMSOLL names a built binary.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The demo model was trained on sequences of so many tokens.
MOST = 1024
# As figure 15 has them: data set, requests here, the paper's savings from n = 2 to n = 6 in percent.
DATASETS = [("Alpaca", 200, "37.6 to 55.2"), ("ShareGPT", 64, "44.3 to 66.3")]
WIDTHS = [2, 4, 6]
# Requests that run together: without a prefix cache they share nothing.
TOGETHER = 8
BLOCK = 16


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def cargo(*args: str) -> str:
    return output("cargo", "run", "--quiet", "--release", *args)


def plimsoll(*args: str) -> str:
    binary = os.environ.get("PLIMSOLL")
    return output(binary, *args) if binary else cargo("-p", "plimsoll", "--bin", "plimsoll", "--", *args)


def generate(folder: Path, lines: list[dict], *flags: str) -> list[dict]:
    """One result for each line, in their order; nothing ends before its length."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = plimsoll("generate", "demo", "--prompts", str(prompts), "--ignore-eos", *flags)
    return sorted((json.loads(line) for line in out.splitlines()), key=lambda r: r["index"])


def drawn(folder: Path, lengths: list[tuple[int, int]]) -> list[str]:
    """A text of about so many tokens for each prompt."""
    lines = [{"prompt": "Chapter 1", "max_tokens": prompt} for prompt, _ in lengths]
    results = generate(folder, lines, "--seed", "1")
    return [r["choices"][0]["text"] for r in results]


def most(requests: list[tuple[int, int]], width: int) -> float:
    """Percent saved where beams share all but the block that each of them writes."""
    blocks = pages = 0
    for prompt, output in requests:
        own = -(-prompt // BLOCK)
        blocks, pages = blocks + own, pages + own
        for length in range(prompt + 1, prompt + output):
            held = -(-length // BLOCK)
            blocks, pages = blocks + width * held, pages + held - 1 + width
    return 100 * (1 - pages / blocks)


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def main() -> None:
    print(
        "\n## What beams share, by the engine (figure 15)\n\n"
        "Written by `tools/beam_sharing.py`. `plimsoll generate demo` searches, and `plimsoll simulate --replay` counts "
        "blocks in tables and the pages behind them\nat every step: real logits, real forks and copies. The demo model "
        f"is a tiny one, of another text: prompts are texts that it drew itself, in the\npaper's lengths as above, "
        f"less what exceeds the {MOST} tokens that it was trained on; searches go on to the drawn length, as the "
        f"paper's did. Blocks of {BLOCK} tokens.\n\n"
        "Where beams share all but the block that each of them writes, the last column but one is saved: so near one "
        "another stay the beams of this model. OPT-13B's,\nin the paper's figure, keep more to themselves, the more so "
        "the more they are: its savings with larger n are not reproduced.\n\n"
        "| data set | mean prompt | mean output | n | saved % | all but the last blocks % | paper, n = 2 to 6, % |\n"
        "|---|--:|--:|--:|--:|--:|--:|"
    )
    for name, requests, paper in DATASETS:
        out = cargo("-p", "plimsoll-simulate", "--example", "lengths", "--", name.lower(), str(requests), str(MOST))
        lengths = [(int(p), int(o)) for p, o in (line.split() for line in out.splitlines())]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            texts = drawn(folder, lengths)
            lines = [{"prompt": t, "max_tokens": o} for t, (_, o) in zip(texts, lengths, strict=True)]
            for width in WIDTHS:
                log = folder / "run.log"
                flags = ["--beam-width", str(width), "--max-num-seqs", str(TOGETHER * width)]
                results = generate(folder, lines, *flags, "--block-size", str(BLOCK), "--no-enable-prefix-caching", "--log", str(log))
                prompts = [r["prompt_tokens"] for r in results]
                outputs = [r["choices"][0]["tokens"] for r in results]
                bound = most(list(zip(prompts, outputs, strict=True)), width)
                replay = plimsoll("simulate", "--replay", str(log))
                (saved,) = (line.split()[2] for line in replay.splitlines() if line.startswith("sharing saves"))
                print(f"| {name} | {mean(prompts):.1f} | {mean(outputs):.1f} | {width} | {saved} | {bound:.1f} | {paper} |", flush=True)


if __name__ == "__main__":
    main()
