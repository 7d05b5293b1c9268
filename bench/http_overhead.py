#!/usr/bin/env python3
"""What HTTP costs: 16 requests at once through `plimsoll serve`, beside the same in `plimsoll bench`.

    bench/http_overhead.py MODEL [RUNS] [-- FLAGS]

MODEL is any checkpoint that `plimsoll bench` runs; FLAGS go to both (`--weights int8`). Each of RUNS (5) runs both, one after the
other: 16 prompts of 128 tokens, 128 tokens each, all streamed. Figures are output tokens per second of wall time, from the first
byte sent to the last received, prompts among them. The bar: the median through HTTP is at least 0.97 of the other. Also
prints how long `/metrics` takes meanwhile, and a start of the demo model. Exit status 1 where a bar is missed. Needs a
release build (`cargo build --release`); PLIMSOLL names another binary. Only Python's own library is used.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from streams import BINARY, Server, ask, message  # noqa: E402

REQUESTS, PROMPT, OUTPUT = 16, 128, 128


def bench(model, flags):
    command = [BINARY, "bench", model, "--json", "--concurrency", REQUESTS, "--prompt-len", PROMPT, "--output-len", OUTPUT]
    command += ["--prefill", 16, "--repeats", 1, *flags]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    cases = json.loads(done.stdout)["cases"]
    return next(c["tokens_per_s"] for c in cases if c["requests"] == REQUESTS)


async def stream(server, body):
    """Tokens that came, and when the last did."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(message("/v1/completions", body))
    usage = 0
    async for line in reader:
        if line.startswith(b'data: {"') and b'"completion_tokens":' in line:
            usage = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    return usage, time.perf_counter()


async def serve(model, flags, scrapes):
    longest = PROMPT + OUTPUT
    server = Server("--max-num-seqs", REQUESTS, *flags, model=model, longest=longest)
    draw = random.Random(1)
    vocab = json.loads((await ask(server, "/tokenize", dict(prompt="a", add_special_tokens=False)))[1])["tokens"][0]

    def body():
        # Tokens that every vocabulary has; no two prompts are alike.
        prompt = [vocab] + [draw.randrange(100, 200) for _ in range(PROMPT - 1)]
        return dict(prompt=prompt, max_tokens=OUTPUT, ignore_eos=True, temperature=0, stream=True, stream_options=dict(include_usage=True))

    await stream(server, body())

    async def watch():
        while True:
            began = time.perf_counter()
            await ask(server, "/metrics")
            scrapes.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)

    all_ = [body() for _ in range(REQUESTS)]
    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    got = await asyncio.gather(*(stream(server, b) for b in all_))
    watching.cancel()
    server.end()
    tokens = sum(n for n, _ in got)
    assert tokens == REQUESTS * OUTPUT, tokens
    return tokens / (max(t for _, t in got) - began)


def main():
    args = sys.argv[1:]
    flags = args[args.index("--") + 1 :] if "--" in args else []
    args = args[: args.index("--")] if "--" in args else args
    if not args:
        sys.exit(__doc__)
    model, runs = args[0], int(args[1]) if len(args) > 1 else 5
    plain, http, scrapes = [], [], []
    for run in range(runs):
        plain.append(bench(model, flags))
        http.append(asyncio.run(serve(model, flags, scrapes)))
        print(f"run {run + 1}: bench {plain[-1]:.1f} tok/s, HTTP {http[-1]:.1f}", flush=True)
    ratio = statistics.median(http) / statistics.median(plain)
    scrape = 1e3 * statistics.median(scrapes)
    starts = []
    for _ in range(5):
        began = time.perf_counter()
        server = Server()
        starts.append(time.perf_counter() - began)
        server.end()
    ready = statistics.median(starts)
    print(f"HTTP / bench: {ratio:.3f} (bar 0.97)")
    print(f"/metrics under load: median {scrape:.2f} ms (bar 5), of {len(scrapes)}")
    print(f"demo model, start to ready: median {1e3 * ready:.0f} ms (bar 300)")
    sys.exit(not (ratio >= 0.97 and scrape < 5 and ready < 0.3))


if __name__ == "__main__":
    main()
