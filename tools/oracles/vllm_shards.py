#!/usr/bin/env python3
"""What one tensor-parallel rank of vLLM holds of a model's weights: its own classes, built without memory.

    vllm_shards.py [--source DIR] [--only SUBSTRING] > crates/plan/tests/golden/vllm_shards.jsonl

Builds vLLM's model class on torch's meta device for one rank of each degree (see `vllm_kv.py`, whose stand-ins for a card
and its ranks these are), and adds up its parameters. A line: {"version", "name", "config", "tp", "bytes"}. A degree
that vLLM refuses is {"refused": its words}. Multi-token-prediction layers are a model of their own there: "mtp" is what
one of them has beside tables of the vocabulary, which it shares with the model where a checkpoint does not repeat them.
"""
import argparse
import json
import os
import sys
import tempfile

import vllm_kv
import vllm_kv_cases as cases


def rank_bytes(config, tp):
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as out:
            json.dump(config, out)
        vllm_kv.set_ranks(tp, 1, 0)
        built = vllm_kv.engine_config(folder, {"tp": tp, "max_model_len": 256})
        model = vllm_kv.build_model(built)
        return sum(p.numel() * p.element_size() for p in model.parameters())


def prediction_bytes(config, tp):
    """Parameters of the prediction layer that drafts, without those of the vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as out:
            json.dump(config, out)
        vllm_kv.set_ranks(tp, 1, 0)
        draft = {"method": "mtp", "num_speculative_tokens": 1}
        built = vllm_kv.engine_config(folder, {"tp": tp, "max_model_len": 256, "speculative_config": draft})
        model = vllm_kv.build_model(built, built.speculative_config.draft_model_config)
        tables = ("embed_tokens", "lm_head", ".head.")
        own = [p for n, p in model.named_parameters() if not any(t in n for t in tables)]
        return sum(p.numel() * p.element_size() for p in own)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--source", help="a folder that holds vllm; the installed one without")
    ap.add_argument("--only", default="")
    a = ap.parse_args()
    vllm_kv.prepare(a.source)
    for name, config in cases.SHARDED.items():
        if a.only not in name:
            continue
        for tp in (1, 2, 4, 8):
            row = {"version": vllm_kv._vllm_version(), "name": name, "config": config, "tp": tp}
            try:
                row["bytes"] = rank_bytes(config, tp)
            except Exception as error:  # named, not skipped
                row["refused"] = f"{type(error).__name__}: {str(error)[:160]}"
                print(f"{name} tp{tp}: {row['refused']}", file=sys.stderr)
            print(json.dumps(row, separators=(",", ":")), flush=True)
    for name, config in cases.PREDICTING.items():
        if a.only not in name:
            continue
        for tp in (1, 2, 8):
            row = {"version": vllm_kv._vllm_version(), "name": name, "config": config, "tp": tp}
            try:
                row["mtp"] = prediction_bytes(config, tp)
            except Exception as error:
                row["refused"] = f"{type(error).__name__}: {str(error)[:160]}"
                print(f"{name} mtp tp{tp}: {row['refused']}", file=sys.stderr)
            print(json.dumps(row, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
