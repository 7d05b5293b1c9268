#!/usr/bin/env python3
"""Writes the headers (metadata and tensor table, no data) of the GGUF files that llamacpp_memory.py asks llama.cpp about.

    gguf_headers.py DIR        # DIR = crates/model/tests/golden/gguf

llama.cpp accepts each of them (that script loads them), so they are what a converter writes for a published shape with few
layers. The reader's tests compare the inventory of our families with these tensors. Needs Python 3.9 and nothing else.
"""
import os, struct, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import llamacpp_memory as oracle

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
for name, make in oracle.MODELS.items():
    meta, tensors = make()
    path = os.path.join(out, name + ".header")
    data = sum(-(-oracle.nbytes(kind, dims) // oracle.ALIGN) * oracle.ALIGN for _, kind, dims in tensors)
    oracle.write_gguf(path, meta, tensors)
    size = os.path.getsize(path)
    os.truncate(path, size - data)
    # The whole file's size comes first: the reader checks every tensor against it.
    with open(path, "rb") as f:
        head = f.read()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", size) + head)
