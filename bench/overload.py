#!/usr/bin/env python3
"""`plimsoll serve` beyond what it can do, and long prompts beside short chats.

    bench/overload.py open [SECONDS]     an open loop at 0.5, 1, 2 and 10 times the capacity, SECONDS (60) each
    bench/overload.py mixed [SECONDS]    short chats alone and beside prompts of the whole context, SECONDS (30) each
    bench/overload.py all

Runs the demo model on one thread. `open` measures the capacity by clients that ask again when they are answered, as many as
have places; then requests come at random times, whatever became of those before. It prints goodput (whole answers in a second
of the load), refusals, and times to the first token and between tokens of those that were let in. No error but a refusal that
says when to come back may happen, ten times the load may cost at most a tenth of the goodput, the process may not grow, and in
the end no page is held. `mixed` prints the times between tokens of chats alone, beside long prompts in chunks, and beside long
prompts in one step: in chunks they are bounded by what a step of the budget takes. Exit status 1 where any of it does
not hold. Needs a release build (`cargo build --release`); PLIMSOLL names another binary. Only Python's own library is used.
"""

import asyncio
import json
import random
import resource
import statistics
import sys
import time

from streams import FAILED, LONGEST, Server, check, is_free, message

PLACES = 16
QUEUE = 16
TOKENS = 192
# The highest twice: a process that grows does so the second time too. The capacity before and after: the machine has others.
LOADS = (0.5, 1, 2, 10, 10, 1)
BUDGET = 32


class Outcome:
    """What became of a request."""

    def __init__(self):
        self.began = time.monotonic()
        self.status = None
        self.retry_after = None
        self.tokens = []
        self.written = 0
        self.ended = None
        self.error = None

    def is_whole(self, tokens):
        return self.status == 200 and not self.error and self.written == tokens

    def is_refused(self):
        return self.status in (429, 503) and self.retry_after is not None

    def first(self):
        return self.tokens[0] - self.began

    def between(self):
        return [b - a for a, b in zip(self.tokens, self.tokens[1:])]


def body_of(draw, prompt, tokens):
    ids = [draw.randrange(300, 2000) for _ in range(prompt)]
    return dict(prompt=ids, max_tokens=tokens, ignore_eos=True, temperature=0, stream=True, stream_options=dict(include_usage=True))


async def stream(server, body):
    """Asks, and takes down when each token came."""
    o = Outcome()
    try:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 24)
    except OSError as e:
        o.error, o.ended = repr(e), time.monotonic()
        return o
    try:
        writer.write(message("/v1/completions", body))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        o.status = int(head.split(b" ", 2)[1])
        for line in head.split(b"\r\n"):
            if line.startswith(b"retry-after:"):
                o.retry_after = int(line.split(b":")[1])
        if o.status != 200:
            data = await reader.read()
            o.error = None if o.is_refused() else f"{o.status}: {data[:200]!r}"
            return o
        is_done = False
        async for line in reader:
            if line.startswith(b'data: {"error"'):
                o.error = line.decode()
            elif line.startswith(b"data: {"):
                # Read no further than needed: this client must not be what is measured.
                if b'"finish_reason":null' in line:
                    o.tokens.append(time.monotonic())
                elif b'"choices":[]' in line:
                    o.written = json.loads(line[6:])["usage"]["completion_tokens"]
            elif line.startswith(b"data: [DONE]"):
                is_done = True
        if not is_done:
            o.error = o.error or "no end"
    except (OSError, asyncio.IncompleteReadError, ValueError) as e:
        o.error = repr(e)
    finally:
        o.ended = time.monotonic()
        writer.close()
    return o


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(p * len(values)))] if values else float("nan")


def both(values):
    return f"p50 {1e3 * percentile(values, 0.5):7.1f} p99 {1e3 * percentile(values, 0.99):7.1f} ms"


async def closed(server, clients, seconds, make):
    """Clients that ask again when they are answered."""
    until = time.monotonic() + seconds
    all_ = []

    async def client():
        while time.monotonic() < until:
            all_.append(await stream(server, make()))

    await asyncio.gather(*(client() for _ in range(clients)))
    return all_


async def at_rate(server, rate, seconds, draw, make):
    """Requests that come at random times."""
    began, at, tasks, resident = time.monotonic(), 0.0, [], []
    while (at := at + draw.expovariate(rate)) < seconds:
        if (wait := began + at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(stream(server, make())))
        if len(tasks) % 16 == 0:
            resident.append(server.resident())
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    resident.append(server.resident())
    return began, await asyncio.gather(*tasks), resident


async def open_loop(seconds):
    server = Server("--threads", 1, "--max-num-seqs", PLACES, "--max-num-queued-reqs", QUEUE, "--max-connections", 4096, "--no-access-log")
    draw = random.Random(7)
    make = lambda: body_of(draw, draw.randrange(8, 64), TOKENS)
    await closed(server, PLACES, min(seconds, 5), make)
    began = time.monotonic()
    done = await closed(server, PLACES, seconds, make)
    capacity = len(done) / (time.monotonic() - began)
    check("nobody is refused who waits for his answer", all(o.is_whole(TOKENS) for o in done), f"{len(done)} answers")
    print(f"     capacity {capacity:.1f} requests/s of {TOKENS} tokens", flush=True)
    goodput, memory, wrong = [], [], []
    for load in LOADS:
        began, all_, resident = await at_rate(server, load * capacity, seconds, draw, make)
        whole = [o for o in all_ if o.is_whole(TOKENS)]
        refused = [o for o in all_ if o.is_refused()]
        wrong += [(load, o.status, o.error, o.written) for o in all_ if not (o.is_whole(TOKENS) or o.is_refused())]
        goodput.append(sum(o.ended < began + seconds for o in whole) / seconds)
        memory.append(statistics.median(resident[-max(1, len(resident) // 3) :]))
        firsts = [o.first() for o in whole]
        betweens = [t for o in whole for t in o.between()]
        print(
            f"     {load:>4} x: {len(all_):6} asked, goodput {goodput[-1]:6.1f}/s, refused {len(refused):6}"
            f" in {both([o.ended - o.began for o in refused])}, after {sorted({o.retry_after for o in refused})} s;"
            f" first token {both(firsts)}; between {both(betweens)}; resident {memory[-1] / 2**20:.1f} MiB",
            flush=True,
        )
        check(f"everything is given back after {load} x", await is_free(server), "no page is held")
    check("no errors but refusals that say when to come back", not wrong, wrong[:3] or "none")
    of = lambda values, load: [v for l, v in zip(LOADS, values) if l == load]
    at_once, at_ten = statistics.mean(of(goodput, 1)), statistics.mean(of(goodput, 10))
    check("ten times the load costs no goodput", at_ten >= 0.9 * at_once, f"{at_ten:.1f}/s, {at_once:.1f}/s at the capacity: {at_ten / at_once:.2f}")
    first, second = of(memory, 10)
    check("memory is flat", second <= first * 1.02, f"{first / 2**20:.1f} MiB at ten times, {second / 2**20:.1f} the second time")
    check("it ends when told", server.end() == 0, "exit code 0")


async def chats(seconds, budget, long_ones):
    """Times between tokens of chats, and how long a long prompt takes."""
    server = Server("--threads", 1, "--max-num-seqs", 8, "--max-num-batched-tokens", budget, "--no-access-log")
    draw = random.Random(11)
    short = lambda: body_of(draw, 16, 64)
    long_ = lambda: body_of(draw, LONGEST - 2, 1)
    await closed(server, 2, 1, short)
    alone = min([o.first() for o in [await stream(server, long_()) for _ in range(3)]])
    said, read = await asyncio.gather(closed(server, 4, seconds, short), closed(server, long_ones, seconds, long_))
    wrong = [o.error or o.status for o in said if not o.is_whole(64)] + [o.error or o.status for o in read if not o.is_whole(1)]
    betweens = [t for o in said for t in o.between()]
    print(
        f"     {budget:>4} tokens a step, {long_ones} long prompts at once: {len(said):5} chats, {len(read):4} long prompts;"
        f" between tokens {both(betweens)}; first {both([o.first() for o in said])}; a long prompt alone {1e3 * alone:.0f} ms",
        flush=True,
    )
    check("all are answered", not wrong, wrong[:3] or "no errors")
    check("everything is given back", await is_free(server), "no page is held")
    check("it ends when told", server.end() == 0, "exit code 0")
    return percentile(betweens, 0.99), alone


async def mixed(seconds):
    alone, whole = await chats(seconds, BUDGET, 0)
    chunked, _ = await chats(seconds, BUDGET, 2)
    at_once, _ = await chats(seconds, 2 * LONGEST, 2)
    # A step reads at most so much of a prompt; the last chunks of one attend to most, hence twice the mean.
    step = whole * BUDGET / LONGEST
    bound = 2 * (alone + 2 * step)
    print(f"     p99 beside long prompts is {chunked / alone:.1f} times that alone in chunks, {at_once / alone:.1f} times in one step", flush=True)
    saw = f"{1e3 * chunked:.1f} ms, bound {1e3 * bound:.1f} (a step of {BUDGET} tokens takes {1e3 * step:.1f} in the mean)"
    check("chats are held up by no more than the budget", chunked <= bound, saw)
    check("without it they would be held up by whole prompts", at_once > chunked, f"{1e3 * at_once:.1f} ms")


def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    what, rest = (sys.argv[1:2] or ["all"])[0], [int(a) for a in sys.argv[2:3]]
    runs = {"open": (open_loop, 60), "mixed": (mixed, 30)}
    if what != "all" and what not in runs:
        sys.exit(__doc__)
    for name in runs if what == "all" else [what]:
        run, usual = runs[name]
        print(f"== {name}", flush=True)
        asyncio.run(run(*(rest or [usual])))
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
