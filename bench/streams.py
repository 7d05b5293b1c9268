#!/usr/bin/env python3
"""The long run of `plimsoll serve`: many streams in little memory, clients that leave, and kill -9.

    bench/streams.py load [STREAMS] [SECONDS]    STREAMS (1000) at once, until SECONDS (240) are over
    bench/streams.py leave [TIMES]               TIMES (10000) clients that leave at random points
    bench/streams.py kill [TIMES]                kill -9 TIMES (50) while it loads, prefills, decodes and swaps
    bench/streams.py all

Runs the demo model. `load` gives it a KV cache for 40 sequences of the longest length and lets far more in: streams, some
with four answers, beams, drawn ones, and groups that share a prefix. Each must finish with the very text that it has alone on
a server with room; afterwards everything is given back, the memory of the process has not grown, swaps, recomputes, cache hits and
copies on write all happened, and the recorded run replays. Exit status 1 where any of it does not hold. Needs a release
build (`cargo build --release`); PLIMSOLL names another binary. Only Python's own library is used.
"""

import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BINARY = os.environ.get("PLIMSOLL", str(Path(__file__).resolve().parent.parent / "target/release/plimsoll"))
LONGEST = 1024
SLOTS = 40
KINDS = 100
FAILED = []


def check(what, holds, saw):
    print(f"{'ok  ' if holds else 'FAIL'} {what}: {saw}", flush=True)
    if not holds:
        FAILED.append(what)


class Server:
    """A server that runs until it is told to stop."""

    def __init__(self, *flags, port=0, model="demo", longest=LONGEST):
        command = [BINARY, "serve", model, "--port", port, "--max-model-len", longest, *flags]
        command = [str(c) for c in command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.card = ""
        for line in self.process.stderr:
            self.card += line
            if found := re.search(r"curl http://([\d.]+):(\d+)/", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise RuntimeError(self.card)
        # What it says is read, so that it never waits for us.
        import threading

        self.rest = []
        threading.Thread(target=lambda: self.rest.extend(self.process.stderr), daemon=True).start()

    def resident(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(120)


def message(path, body=None, close=True):
    head = f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if close:
        head += "Connection: close\r\n"
    if body is None:
        return head.encode() + b"\r\n"
    data = json.dumps(body).encode()
    return head.encode() + f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def ask(server, path, body=None):
    """Status and body of an answer."""
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=1 << 24)
    try:
        writer.write(message(path, body))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" not in head.lower():
            return status, await reader.read()
        data = b""
        while size := int(await reader.readline(), 16):
            data += await reader.readexactly(size)
            await reader.readexactly(2)
        return status, data
    finally:
        writer.close()


def texts(body, status, data):
    """The texts of an answer's choices, whole or streamed."""
    if status != 200:
        return f"{status}: {data[:200]!r}"
    if not body.get("stream"):
        return {c["index"]: c["text"] for c in json.loads(data)["choices"]}
    got = {}
    events = data.decode().split("\n\n")
    if "data: [DONE]" not in events:
        return f"no end: {events[-2:]}"
    for event in events:
        if event.startswith("data: {"):
            value = json.loads(event[6:])
            if "error" in value:
                return f"error: {value['error']}"
            for c in value["choices"]:
                got[c["index"]] = got.get(c["index"], "") + c["text"]
    return got


async def metrics(server):
    """All samples of /metrics, labels left out and added up."""
    _, data = await ask(server, "/metrics")
    values = {}
    for line in data.decode().splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name, _, labels = name.partition("{")
            values[name] = values.get(name, 0) + float(value)
            if labels:
                values[f"{name}{{{labels}"] = float(value)
    return values


WORDS = "she he was not in the of to a house lady morning very much walk letter sister before again never with and had".split()


def words(draw, n):
    return " ".join(draw.choice(WORDS) for _ in range(n))


def bodies(kinds):
    """Requests of every kind; each is the same whenever it is made."""
    draw = random.Random(5)
    prefixes = [words(draw, 120) for _ in range(4)]
    all_ = []
    for i in range(kinds):
        body = dict(prompt=words(draw, draw.randrange(5, 60)), max_tokens=draw.randrange(400, 900), ignore_eos=True)
        body.update(stream=True, temperature=0.0 if i % 3 else 1.0, seed=i)
        if i % 5 == 0:
            body["prompt"] = f"{prefixes[i // 5 % 4]} {words(draw, 10)}"
        if i % 7 == 3:
            body.update(n=4, temperature=0.9, max_tokens=draw.randrange(40, 200))
        if i % 11 == 5:
            body.update(n=2, use_beam_search=True, best_of=2, stream=False, temperature=0.0, max_tokens=draw.randrange(20, 100))
            body.pop("ignore_eos")
        all_.append(body)
    return all_


def difference(want, got):
    """Where the texts of choices differ first."""
    for index in sorted(want.keys() | got.keys()):
        a, b = want.get(index, ""), got.get(index, "")
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            return f"choice {index} at {at} of {len(a)}: {a[at:at + 20]!r} alone, {b[at:at + 20]!r} here ({len(b)} in all)"
    return "nothing"


async def is_free(server, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status, data = await ask(server, "/v1/memory")
        held = json.loads(data)["kv_pages"]["held"] if status == 200 else None
        if held == 0:
            return True
        await asyncio.sleep(0.05)
    return False


def pool_for(sequences):
    """Bytes of a KV cache for so many sequences of the longest length."""
    command = [BINARY, "serve", "--dry-run", "--json", "--max-model-len", str(LONGEST), "--max-num-seqs", str(sequences)]
    map_ = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return next(r["planned_bytes"] for r in map_["regions"] if r["region"] == "kv_cache")


async def load(streams, seconds):
    all_ = bodies(KINDS)
    alone = Server("--max-num-seqs", 8)
    began = time.monotonic()
    expected = [texts(b, *await ask(alone, "/v1/completions", b)) for b in all_]
    print(f"alone: {len(all_)} requests in {time.monotonic() - began:.0f} s", flush=True)
    alone.end()
    wrong = [e for e in expected if isinstance(e, str)]
    check("each is answered alone", not wrong, wrong[:3] or f"{len(all_)} requests")

    folder = Path(tempfile.mkdtemp(prefix="plimsoll-streams-"))
    log = folder / "run.log"
    server = Server(
        *("--max-num-seqs", 256, "--max-num-queued-reqs", 2 * streams, "--max-connections", 2 * streams),
        *("--kv-memory", pool_for(SLOTS), "--queue-timeout", 600, "--request-timeout", 1200),
        *("--swap-space", "1MiB", "--log", log),
    )
    await ask(server, "/health")
    free_files = server.files()
    draw = random.Random(9)
    running, resident, scrapes, bad = [], [], [], []
    until = time.monotonic() + seconds
    done = 0

    async def client():
        nonlocal done
        while time.monotonic() < until:
            i = draw.randrange(len(all_))
            try:
                got = texts(all_[i], *await ask(server, "/v1/completions", all_[i]))
            except (OSError, asyncio.IncompleteReadError, ValueError) as e:
                got = repr(e)
            done += 1
            if got != expected[i]:
                bad.append((i, got if isinstance(got, str) else difference(expected[i], got)))

    async def watch():
        while True:
            began = time.monotonic()
            now = await metrics(server)
            scrapes.append(time.monotonic() - began)
            running.append(now["vllm:num_requests_running"])
            resident.append((time.monotonic(), server.resident()))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(streams)))
    took = time.monotonic() - began
    watching.cancel()
    refused = [b for b in bad if str(b[1]).startswith("429")]
    check("texts equal those alone, no errors", not bad, f"{len(bad)} of {done}: {bad[:3]}" if bad else f"{done} answers in {took:.0f} s")
    check("nobody was refused", not refused, len(refused))
    check("everything is given back", await is_free(server), "no page is held")
    now = await metrics(server)
    for name in ("swaps", "recomputes", "prefix hits", "copies on write"):
        sample = COUNTERS[name]
        check(f"{name} happened", now.get(sample, 0) > 0, f"{now.get(sample)} ({sample})")
    usual = statistics.median(running)
    check("more run than contiguous memory has slots", usual > SLOTS, f"median {usual:.0f} of at most {max(running):.0f}, slots {SLOTS}")
    # The first minute is one of growing into its memory; the last one ends with the load.
    minutes = [[b for t, b in resident if began + 60 * m <= t < began + 60 * (m + 1)] for m in range(int(took // 60))]
    if len(minutes) >= 3:
        first, last = (statistics.median(minutes[m]) for m in (1, -1))
        check("memory is flat", last <= first * 1.01, f"{first / 2**20:.1f} MiB in the second minute, {last / 2**20:.1f} in the last")
    print(f"     /metrics under load: median {1e3 * statistics.median(scrapes):.1f} ms, most {1e3 * max(scrapes):.1f}", flush=True)
    await asyncio.sleep(0.5)
    check("files are closed", server.files() <= free_files + 2, f"{server.files()}, {free_files} before")
    check("it ends when told", server.end() == 0, "exit code 0")
    # Beside it, so that nothing of the server is left.
    replay = subprocess.run([BINARY, "simulate", "--replay", log], capture_output=True, text=True)
    check("the recorded run replays", replay.returncode == 0, (replay.stdout or replay.stderr).strip().splitlines()[-1:])
    print(f"     log of {log.stat().st_size / 2**20:.0f} MiB", flush=True)
    log.unlink()
    folder.rmdir()


COUNTERS = {
    "swaps": 'plimsoll:preemptions_total{kind="swap"}',
    "recomputes": 'plimsoll:preemptions_total{kind="recompute"}',
    "prefix hits": "vllm:prefix_cache_hits_total",
    "copies on write": "plimsoll:kv_copy_on_write_total",
}


def leave_once(server, body, draw):
    """Begins something and goes away."""
    at = draw.randrange(7)
    with socket.create_connection((server.host, server.port), timeout=30) as s:
        if draw.random() < 0.5:
            # Without a farewell.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        data = message("/v1/completions", body, close=False)
        if at == 0:
            return
        if at <= 2:
            s.sendall(data[: draw.randrange(1, len(data))])
            return
        s.sendall(data)
        if at == 4:
            time.sleep(draw.random() * 0.02)
        if at == 5:
            s.recv(1)
        if at == 6:
            left = draw.randrange(1, 20_000)
            while left > 0 and (got := s.recv(min(left, 4096))):
                left -= len(got)


async def leave(times):
    server = Server("--max-num-seqs", 64, "--kv-memory", pool_for(8), "--swap-space", "8MiB")
    canary = dict(prompt="She had not been", max_tokens=24, temperature=0, logprobs=2)
    first = json.loads((await ask(server, "/v1/completions", canary))[1])["choices"]
    await asyncio.sleep(0.5)
    free_files = server.files()
    all_ = [b for b in bodies(KINDS) if b.get("stream")]
    gate = asyncio.Semaphore(64)
    loop = asyncio.get_running_loop()
    began = time.monotonic()

    async def one(i):
        async with gate:
            draw = random.Random(i)
            await loop.run_in_executor(None, leave_once, server, draw.choice(all_), draw)

    from concurrent.futures import ThreadPoolExecutor

    loop.set_default_executor(ThreadPoolExecutor(64))
    await asyncio.gather(*(one(i) for i in range(times)))
    print(f"     {times} clients left in {time.monotonic() - began:.0f} s", flush=True)
    check("everything is given back", await is_free(server), "no page is held")
    after = json.loads((await ask(server, "/v1/completions", canary))[1])["choices"]
    check("the same request has the same answer", after == first, "bytes equal")
    await asyncio.sleep(1)
    check("files are closed", server.files() <= free_files + 2, f"{server.files()}, {free_files} before")
    check("it ends when told", server.end() == 0, "exit code 0")


async def kill(times):
    folder = Path(tempfile.mkdtemp(prefix="plimsoll-kill-"))
    draw = random.Random(3)
    canary = dict(prompt="She had not been", max_tokens=24, temperature=0)
    flags = ("--max-num-seqs", 64, "--kv-memory", pool_for(4), "--swap-space", "8MiB", "--swap-dir", folder, "--log", folder / "run.log")
    first, port, wrong, slow = None, 0, [], []
    for i in range(times):
        phase = ("load", "prefill", "decode", "swap")[i % 4]
        if phase == "load":
            command = [BINARY, "serve", "--port", str(port or 18399), "--max-model-len", str(LONGEST), *map(str, flags)]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            time.sleep(draw.random() * 0.15)
            process.kill()
            process.wait()
        began = time.monotonic()
        server = Server(*flags, port=port)
        slow.append(time.monotonic() - began)
        port = server.port
        status, data = await ask(server, "/health/ready")
        got = json.loads((await ask(server, "/v1/completions", canary))[1])["choices"]
        first = first or got
        if status != 200 or got != first or not await is_free(server):
            wrong.append((phase, status))
        left = [p.name for p in folder.iterdir() if p.name != "run.log"]
        if left:
            wrong.append((phase, left))
        n, length = {"prefill": (8, 2), "decode": (8, 500), "swap": (60, 500)}.get(phase, (1, 2))
        asked = [
            asyncio.create_task(ask(server, "/v1/completions", dict(prompt=words(draw, 300), max_tokens=length, ignore_eos=True)))
            for _ in range(n)
        ]
        await asyncio.sleep(draw.random() * (0.3 if phase == "prefill" else 1.0))
        server.end(signal.SIGKILL)
        await asyncio.gather(*asked, return_exceptions=True)
    check(f"each of {times} starts after kill -9 is clean", not wrong, wrong[:3] or f"ready in {max(slow):.2f} s at most")
    for p in folder.iterdir():
        p.unlink()
    folder.rmdir()


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    what, rest = (sys.argv[1:2] or ["all"])[0], [int(a) for a in sys.argv[2:]]
    runs = {"load": (load, [1000, 240]), "leave": (leave, [10_000]), "kill": (kill, [50])}
    if what != "all" and what not in runs:
        sys.exit(__doc__)
    for name in runs if what == "all" else [what]:
        run, usual = runs[name]
        print(f"== {name}", flush=True)
        asyncio.run(run(*(rest + usual[len(rest) :] if what != "all" else usual)))
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
