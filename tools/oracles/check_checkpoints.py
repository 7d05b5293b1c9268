#!/usr/bin/env python3
"""Config-derived tensors against the headers of real checkpoints, to the byte.

    check_checkpoints.py FOLDER ... [--write DIR]

Each FOLDER holds a config.json and safetensors files (random weights do). What the inventory
example of plimsoll-model computes from the config alone must equal what the headers state: every
name, shape, type and byte. With --write, also keeps config and header, without weights, as golden
files for the test of the same name, in the format of transformers_shapes.py.

Needs Python 3.9 and cargo; no packages.
"""
import argparse
import itertools
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F8_E4M3": "f8_e4m3", "I8": "i8", "U8": "u8", "I32": "i32", "I64": "i64"}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def headers(folder):
    """{name: [shape, dtype, bytes]} of all files in a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        for name, t in header.items():
            begin, end = t["data_offsets"]
            found[name] = [t["shape"], NAMES[t["dtype"]], end - begin]
    return found


def inventory(config):
    run = ["cargo", "run", "-q", "-p", "plimsoll-model", "--example", "inventory", "--", str(config)]
    out = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = map(json.loads, out.splitlines())
    return {r["name"]: [r["shape"], r["dtype"], r["bytes"]] for r in rows}


def ranges(numbers):
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda p: p[1] - p[0]):
        run = [n for _, n in run]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def compress(found):
    """One row for what repeats over layers and experts."""
    groups = {}
    for name, (shape, dtype, _) in found.items():
        numbers = tuple(map(int, NUMBER.findall(name)))[:2]
        marks = iter(["{l}", "{e}"])
        key = NUMBER.sub(lambda m: next(marks, m.group()), name)
        groups.setdefault((key, tuple(shape), dtype), []).append(numbers)
    rows = []
    for (name, shape, dtype), seen in groups.items():
        axes = [ranges({n[i] for n in seen}) for i in range(len(seen[0]))]
        rows.append([name, list(shape), dtype.upper(), *axes])
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("folders", nargs="+", type=Path)
    ap.add_argument("--write", type=Path)
    a = ap.parse_args()
    bad = 0
    for folder in a.folders:
        want, have = headers(folder), inventory(folder / "config.json")
        stored, derived = (sum(t[2] for t in side.values()) for side in (want, have))
        same = want == have
        bad += not same
        print(f"{folder.name}: {len(want)} tensors, {stored} bytes stored, {derived} derived: {'equal' if same else 'DIFFERENT'}")
        for name in sorted(set(want) | set(have)):
            if want.get(name) != have.get(name):
                print(f"  {name}: stored {want.get(name)}, derived {have.get(name)}")
        if a.write:
            a.write.mkdir(parents=True, exist_ok=True)
            config = json.loads((folder / "config.json").read_text())
            rows = ",\n".join("    " + json.dumps(row) for row in compress(want))
            text = f'{{\n  "config": {json.dumps(config)},\n  "bytes": {stored},\n  "tensors": [\n{rows}\n  ]\n}}\n'
            (a.write / f"{folder.name}.json").write_text(text)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
