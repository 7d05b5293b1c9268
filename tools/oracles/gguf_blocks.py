#!/usr/bin/env python3
"""Writes blocks of ggml's quantised types with their values, as ggml's own Python package computes them.

    gguf_blocks.py > crates/runtime/src/weights/golden/gguf_blocks.json

Needs Python 3.9, and the packages gguf (0.17 or later) and numpy.
"""
import json, sys

import numpy as np
from gguf import GGMLQuantizationType as T, quants

# Where the f16 scales of a block lie; everything else may be any bits.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}

rng = np.random.default_rng(1)
out = {}
for name, at in SCALES.items():
    # The last block of each has a negative scale.
    blocks = rng.integers(0, 256, (2, BYTES[name]), dtype=np.uint8)
    for b, sign in zip(blocks, (1, -1)):
        for offset in at:
            scale = np.float16(sign * rng.uniform(0.001, 0.1))
            b[offset:offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    values = quants.dequantize(blocks, T[name]).astype(np.float32).ravel()
    out[name.lower()] = {"bytes": blocks.tobytes().hex(), "values": [float(v) for v in values]}
json.dump(out, sys.stdout, separators=(",", ":"))
print()
