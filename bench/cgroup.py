#!/usr/bin/env python3
"""Whether a full load ends under a hard limit of the plan: a control group with the planned bytes and no swap.

    bench/cgroup.py [MODEL]

MODEL (demo) is any checkpoint that `plimsoll generate` runs. The load overfills its pool, so that requests give way by
swap and by recompute. It runs three times: without a limit; in a group of the planned bytes and SLACK_MIB (4), where
it must give the same answers; and in one of half the committed bytes, where it must not end well: else the limit was
none. The slack is for what the kernel charges a group beside the process: page tables, kernel stacks, cached files.
Control groups of version 2 are tried first (memory.max, memory.swap.max = 0), then version 1 (memory.limit_in_bytes,
memory.memsw.limit_in_bytes). Exit status 0 where all is as planned, 1 where not, 77 where no group can be made: then
nothing was shown. Needs a release build (`cargo build --release`); PLIMSOLL names another binary.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SKIPPED = 77
MIB = 1 << 20
FLAGS = "--ignore-eos --seed 5 --samples 2 --max-num-seqs 16 --max-model-len 640 --threads 2".split()
# The budget is said, or the program would take it from the limit, less what it leaves to others.
SIZES = "--memory 1GiB --kv-memory 16MiB --swap-space 4MiB".split()
REQUESTS, TOKENS = 24, 600


def own(controller):
    """The path of this process's group: of version 2 for the controller "", else of version 1."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return None


def mounted(kind, option=None):
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, type_, options, *_ = line.split()
        if type_ == kind and (option is None or option in options.split(",")):
            return Path(folder)
    return None


class Version2:
    name, peak = "cgroup v2", "memory.peak"

    def parent(self):
        root, path = mounted("cgroup2"), own("")
        if root is None or path is None:
            raise OSError("no control groups of version 2 are mounted")
        # A group with processes in it gives no memory to children: the nearest one above that does.
        group = root / path
        for above in [group, *group.parents]:
            control = above / "cgroup.subtree_control"
            if control.exists() and "memory" in control.read_text().split():
                return above
            if above == root:
                break
        raise OSError(f"no group from {group} up to {root} has the memory controller for its children")

    def limits(self, most):
        return [("memory.max", most), ("memory.swap.max", 0)]


class Version1:
    name, peak = "cgroup v1", "memory.max_usage_in_bytes"

    def parent(self):
        root, path = mounted("cgroup", "memory"), own("memory")
        if root is None or path is None:
            raise OSError("no memory controller of version 1 is mounted")
        return root / path

    def limits(self, most):
        # Memory and swap together: as much as memory alone.
        return [("memory.limit_in_bytes", most), ("memory.memsw.limit_in_bytes", most)]


def swap_is_off():
    return len(Path("/proc/swaps").read_text().splitlines()) < 2


class Group:
    """A new group under a limit, gone at the end."""

    def __init__(self, version, most):
        self.version = version
        self.path = version.parent() / f"plimsoll-{os.getpid()}"
        self.path.mkdir()
        try:
            for name, value in version.limits(most):
                file = self.path / name
                # Where swap is not accounted for, there must be none.
                if "sw" in name and not file.exists() and swap_is_off():
                    continue
                file.write_text(str(value))
        except OSError:
            self.path.rmdir()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The last process of a group is let go of a moment after it ended.
        for _ in range(100):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.05)
        print(f"left behind: {self.path}", file=sys.stderr)

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self):
        file = self.path / self.version.peak
        return int(file.read_text()) if file.exists() else None


def version():
    """The first version in which a group can be made, and a process put into it."""
    why = []
    for v in [Version2(), Version1()]:
        try:
            with Group(v, 64 * MIB) as group:
                subprocess.run(["true"], preexec_fn=group.enter, check=True)
            return v
        except (OSError, subprocess.SubprocessError) as e:
            why.append(f"{v.name}: {e}")
    print("skipped: no control group with a limit of memory can be made here", *why, sep="\n  ")
    sys.exit(SKIPPED)


def load(model, folder, group=None):
    """Runs the load; its exit status, its answers in order, what it said, and the map."""
    prompts, memory_map = folder / "prompts.jsonl", folder / "map.json"
    lines = [json.dumps(dict(prompt=f"It was request {i}", max_tokens=TOKENS)) for i in range(REQUESTS)]
    prompts.write_text("\n".join(lines))
    binary = os.environ.get("PLIMSOLL", Path(__file__).resolve().parent.parent / "target/release/plimsoll")
    command = [binary, "generate", model, "--prompts", prompts, "--memory-map", memory_map, *FLAGS, *SIZES]
    # Between fork and exec: all that the program does is done in the group.
    enter = group.enter if group else None
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, preexec_fn=enter)
    if done.returncode != 0:
        return done.returncode, None, done.stderr, None
    answers = sorted(map(json.loads, done.stdout.splitlines()), key=lambda a: a["index"])
    said = next((line for line in done.stderr.splitlines() if line.startswith("preempted")), "nobody gave way")
    return 0, [a["choices"] for a in answers], said, json.loads(memory_map.read_text())


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    slack = int(os.environ.get("SLACK_MIB", "4")) * MIB
    v = version()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        status, want, said, memory_map = load(model, folder)
        if status != 0:
            sys.exit(said)
        # A swap file is on disk.
        regions = [r for r in memory_map["regions"] if r["region"] != "swap_file"]
        planned = sum(r["planned_bytes"] for r in regions)
        committed = sum(r["committed_bytes"] or 0 for r in regions)
        most = planned + slack
        print(f"{model}: planned {planned} bytes; {said}")
        with Group(v, most) as group:
            status, answers, said, _ = load(model, folder, group)
            peak = group.peak()
        well = status == 0 and answers == want
        print(f"{v.name}, limit {most} (planned + {slack}), peak {peak or 'not told by this kernel'}: ", end="")
        print(f"ended well, the same answers; {said}" if well else f"exit status {status}\n{said}")
        with Group(v, committed // 2) as group:
            status, *_ = load(model, folder, group)
        bites = status != 0
        print(f"{v.name}, limit {committed // 2} (half of what is committed): exit status {status}")
    sys.exit(0 if well and bites else 1)


if __name__ == "__main__":
    main()
