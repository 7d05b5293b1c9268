"""Times a peer's block manager on the operations of crates/kv/benches/kv.rs and prints ratios.

    kv_peers.py DIVAN_OUTPUT

The peer is nano-vllm's block manager as PyPI has it (package nano-vllm-fork: the original is not there).
It is plain Python, so a ratio says what a scheduler written in Python pays, not that one design is better.
"""

import importlib.metadata
import importlib.util
import re
import statistics
import sys
import time
import types
from pathlib import Path

SLOTS, PAGES, PROMPT = 16, 100_000, 8_192


def peer():
    """The block manager and its sequence, without the package's __init__, which wants torch."""
    root = Path(importlib.util.find_spec("nanovllm").submodule_search_locations[0])
    for name in ["nanovllm", "nanovllm.engine"]:
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.removeprefix("nanovllm").lstrip("."))]
        sys.modules[name] = package
    from nanovllm.engine.block_manager import BlockManager
    from nanovllm.engine.sequence import Sequence

    Sequence.block_size = SLOTS
    return BlockManager, Sequence


def median_ns(run, batch, samples=31, setup=lambda: None):
    times = []
    for _ in range(samples):
        state = setup()
        start = time.perf_counter_ns()
        for _ in range(batch):
            run(state)
        times.append((time.perf_counter_ns() - start) / batch)
    return statistics.median(times)


def measure():
    BlockManager, Sequence = peer()
    tokens = [i * 2654435761 % 128000 for i in range(PROMPT)]
    manager = BlockManager(PAGES, SLOTS)

    def allocate_and_free(seq):
        if manager.can_allocate(seq):
            manager.allocate(seq)
            manager.deallocate(seq)

    def append(seq):
        # As the peer's scheduler does: the token of the step before, then room for it.
        seq.append_token(1)
        if manager.can_append(seq):
            manager.may_append(seq)

    def begun():
        seq = Sequence(tokens[:SLOTS])
        manager.allocate(seq)
        return seq

    yield "allocate_and_free_a_block", median_ns(allocate_and_free, 1000, setup=lambda: Sequence(tokens[:1]))
    yield "append_a_token", median_ns(append, 2048, setup=begun)
    yield "append_a_chunk_of_512", median_ns(allocate_and_free, 20, setup=lambda: Sequence(tokens[:512]))
    # This version forgets a block that nobody holds: one sequence keeps the prefix for the others.
    holder = Sequence(tokens)
    manager.allocate(holder)
    yield "share_8192_tokens", median_ns(allocate_and_free, 5, setup=lambda: Sequence(tokens))


UNITS = {"ns": 1, "µs": 1e3, "ms": 1e6}


def ours(path):
    """Medians in ns by name; benches with arguments as name/argument."""
    medians, parent = {}, ""
    for line in Path(path).read_text().splitlines():
        m = re.match(r"^([│ ]*)[├╰]─ (\S+)(.*)$", line)
        if not m:
            continue
        indent, name, rest = m.groups()
        cells = [c.strip() for c in rest.split("│")]
        value = re.fullmatch(r"([\d.]+) (\S+)", cells[2]) if len(cells) > 2 else None
        if not indent:
            parent = name
        if value:
            key = name if not indent else f"{parent}/{name}"
            medians[key] = float(value[1]) * UNITS[value[2]]
    return medians


def main():
    own = ours(sys.argv[1])
    pairs = {
        "allocate_and_free_a_block": own["start_and_release_a_table_of_one_block/true"],
        "append_a_token": own["append_a_token/true"],
        "append_a_chunk_of_512": own["append_a_chunk_of_512/true"],
        "share_8192_tokens": own["keys_and_lookup_of_8192_tokens"] + own["attach_and_release_8192_tokens"],
    }
    version = importlib.metadata.version("nano-vllm-fork")
    print(f"medians, blocks of {SLOTS} tokens, prefix cache on; peer: nano-vllm-fork {version}, Python {sys.version.split()[0]}")
    print(f"{'operation':30} {'plimsoll-kv':>12} {'peer':>12} {'ratio':>8}")
    for name, theirs in measure():
        print(f"{name:30} {pairs[name]:9.0f} ns {theirs:9.0f} ns {theirs / pairs[name]:7.0f}x")


if __name__ == "__main__":
    main()
