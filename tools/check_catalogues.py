#!/usr/bin/env python3
"""Checks the two catalogues: crates/device/data/devices.toml and crates/model/data/catalogue.jsonl.

Without options it needs the standard library only (Python 3.11 or newer) and checks form: fields, types, ranges,
unique names and aliases, plausible relations between the figures.

    python3 tools/check_catalogues.py

With --meta it also builds every model on torch's meta device from its config (needs torch and transformers; nothing is
downloaded, no weight is allocated) and compares the parameter count with the one its makers publish. Those published
counts stand below and nowhere in the catalogue: the catalogue holds what a config.json holds.

    HF_HUB_OFFLINE=1 python3 tools/check_catalogues.py --meta [NAME ...]

Exit status 0 when everything agrees, 1 otherwise.
"""

import argparse
import json
import re
import statistics
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ROOT / "crates/device/data/devices.toml"
MODELS = ROOT / "crates/model/data/catalogue.jsonl"

REQUIRED_DEVICES = (
    "a100-40g a100-80g h100 h200 b200 l40s l4 a10g t4 rtx-4090 rtx-3090 rtx-5090 mi300x".split()
)
VENDORS = {"nvidia", "amd", "intel", "apple", "google", "aws", "huawei"}
RATES = {"f32", "tf32", "f16", "bf16", "fp8", "fp6", "fp4", "int8", "int4"}
LINKS = {"nvlink", "infinity-fabric", "ethernet", "ici", "neuronlink", "ualink", "pcie"}
CONFIDENCE = {"printed", "datasheet", "derived"}
DEVICE_FIELDS = {
    "name": str, "aliases": list, "vendor": str, "arch": str, "compute_capability": str, "multiprocessors": int, "l2_bytes": int, "marketing_memory": str,
    "driver_total_bytes": int, "usable_bytes": int, "memory_source": str, "bandwidth_bytes_per_s": int,
    "dense_flops": dict, "link": dict, "pcie": dict, "source": str, "confidence": str, "note": str, "unified": bool, "slices": list, "slices_source": str,
}
OPTIONAL = {"compute_capability", "multiprocessors", "l2_bytes", "usable_bytes", "link", "pcie", "note", "unified", "slices", "slices_source"}
SLICE_FIELDS = ("profile", "instances", "bytes", "multiprocessors", "memory_eighths")

# What the makers publish (model card, paper, or the hub's count of what they stored), with as many digits as they print. A count agrees when it is within
# 1 % or rounds to the printed figure ("13B" stands for 12.5B to 13.5B). Those from minimax-m2.5 on were looked up in the hub's counts as AlexsJones/llmfit
# and its forks collect them (data/hf_models.json) or in the cards. That count is of everything stored: more than these where a file holds the layers
# of speculative decoding (GLM, Qwen3.5, DeepSeek), scales (MiniMax, Kimi) or a tied head a second time (Falcon, Gemma 4). Not found printed, and so what
# the shapes of their configs give: codellama-70b (Llama 2 70B with its own vocabulary), falcon3-3b, falcon-7b and -40b without that head, ernie-4.5-0.3b,
# mamba-codestral-7b, falcon-h1-7b, glm-4-32b-0414, mamba-2.8b, llama-3.2-90b-vision.
# The last five are the hub's counts too (Codestral's from its AWQ copy): crates/model/tests/shapes.rs holds them to the unit.
PUBLISHED = {
    "gpt2": "124M", "gpt2-345m": "355M", "gpt2-large": "774M", "gpt2-xl": "1.56B", "gpt3-175b": "175B",
    "opt-125m": "125M", "opt-1.3b": "1.3B", "opt-6.7b": "6.7B", "opt-13b": "13B", "opt-30b": "30B", "opt-66b": "66B",
    "opt-175b": "175B", "pythia-2.8b": "2.78B", "gpt-neox-20b": "20.6B",
    "llama-7b": "6.7B", "llama-13b": "13.0B", "llama-30b": "32.5B", "llama-65b": "65.2B",
    "llama-2-7b": "6.74B", "llama-2-13b": "13.0B", "llama-2-70b": "69.0B", "llama-3-8b": "8.03B",
    "llama-3.1-8b": "8.03B", "llama-3.1-70b": "70.6B", "llama-3.1-405b": "406B", "llama-3.2-1b": "1.24B",
    "llama-3.2-3b": "3.21B", "llama-3.3-70b": "70.6B",
    "mistral-7b-v0.1": "7.24B", "mistral-7b-v0.3": "7.25B", "mistral-nemo-12b": "12.2B",
    "mistral-small-24b-2501": "23.6B", "mixtral-8x7b": "46.7B", "mixtral-8x22b": "141B",
    "qwen1.5-7b": "7.72B", "qwen1.5-moe-a2.7b": "14.3B", "qwen2-7b": "7.62B",
    "qwen2.5-0.5b": "494M", "qwen2.5-1.5b": "1.54B", "qwen2.5-3b": "3.09B", "qwen2.5-7b": "7.62B",
    "qwen2.5-14b": "14.8B", "qwen2.5-32b": "32.8B", "qwen2.5-72b": "72.7B",
    "qwen2.5-vl-3b": "3.75B", "qwen2.5-vl-7b": "8.29B",
    "qwen3-0.6b": "0.6B", "qwen3-1.7b": "1.7B", "qwen3-4b": "4.02B", "qwen3-8b": "8.19B", "qwen3-14b": "14.8B",
    "qwen3-32b": "32.8B", "qwen3-30b-a3b": "30.5B", "qwen3-coder-30b-a3b": "30.5B", "qwen3-235b-a22b": "235B",
    "qwen3-next-80b-a3b": "80B",
    "gemma-2b": "2.51B", "gemma-7b": "8.54B", "gemma-2-2b": "2.61B", "gemma-2-9b": "9.24B", "gemma-2-27b": "27.2B",
    "gemma-3-1b": "1.00B", "gemma-3-4b": "4.30B", "gemma-3-12b": "12.2B", "gemma-3-27b": "27.4B",
    "phi-2": "2.78B", "phi-3-mini-4k": "3.82B", "phi-3-medium-4k": "14.0B", "phi-3.5-mini": "3.82B", "phi-4": "14.7B",
    "granite-3.1-2b": "2.53B", "granite-3.1-8b": "8.17B",
    "deepseek-v2-lite": "15.7B", "deepseek-coder-v2-lite": "15.7B", "deepseek-v2": "236B", "deepseek-v3": "671B",
    "deepseek-r1": "671B", "gpt-oss-20b": "20.9B", "gpt-oss-120b": "117B",
    "minimax-m2.5": "230B", "minimax-m2.7": "230B", "qwen3-coder-480b-a35b": "480B", "qwen3-vl-2b": "2.13B",
    "qwen3-vl-4b": "4.44B", "qwen3-vl-8b": "8.77B", "qwen3-vl-32b": "33.4B", "qwen3-vl-30b-a3b": "31.1B",
    "qwen3-vl-235b-a22b": "236B", "qwen3.5-27b": "27B", "qwen3.5-35b-a3b": "35B", "qwen3.5-122b-a10b": "122B",
    "qwen3.5-397b-a17b": "397B", "kimi-k2": "1T", "kimi-k2-thinking": "1T", "nemotron-3-nano-30b-a3b": "31.6B", "nemotron-h-56b": "56B",
    "llama-4-scout-17b-16e": "109B", "llama-4-maverick-17b-128e": "400B", "yi-34b": "34.4B", "codellama-34b": "33.7B",
    "exaone-4.0-32b": "32.0B", "olmo-3.1-32b": "32.2B", "qwen3.5-9b": "9B", "tinyllama-1.1b": "1.10B",
    "smollm2-135m": "135M", "smollm2-360m": "362M", "codellama-7b": "6.74B", "codellama-13b": "13.0B",
    "phi-4-mini": "3.84B", "stablelm-3b-4e1t": "2.80B", "stablelm-2-1.6b": "1.64B", "starcoder2-7b": "7.17B",
    "aya-23-8b": "8.03B", "olmo-2-7b": "7.30B", "olmo-2-13b": "13.7B", "olmo-2-32b": "32.2B", "smollm2-1.7b": "1.71B",
    "llama-3-70b": "70.6B", "codellama-70b": "69.0B", "falcon3-1b": "1.67B", "falcon3-3b": "3.23B",
    "falcon3-7b": "7.46B", "falcon3-10b": "10.3B", "falcon-7b": "6.92B", "falcon-40b": "41.3B", "falcon-180b": "180B",
    "mistral-large-2411": "123B", "qwq-32b": "32.8B", "qwen3-4b-2507": "4.02B",
    "deepseek-r1-distill-qwen-32b": "32.8B", "qwen3-30b-a3b-2507": "30.5B", "qwen3-235b-a22b-2507": "235B",
    "olmo-3-7b": "7.30B", "smollm3-3b": "3.08B", "ernie-4.5-0.3b": "0.36B", "ernie-4.5-21b-a3b": "21.8B",
    "glm-4.5-air": "106B", "glm-4.6": "355B", "glm-4.5": "355B", "glm-4.7-flash": "30B", "glm-4-9b-0414": "9.40B",
    "olmoe-1b-7b": "6.92B", "command-r-35b": "35.0B", "starcoder2-3b": "3.03B", "jamba-1.5-mini": "51.6B",
    "mamba-codestral-7b": "7.29B", "bamba-9b": "9.78B", "phi-3.5-moe": "41.9B", "kimi-linear-48b-a3b": "49.1B",
    "seed-oss-36b": "36B", "hunyuan-a13b": "80B", "nemotron-nano-9b-v2": "9B", "falcon-h1-7b": "7.59B",
    "bloom-176b": "176B", "bloom-7b1": "7.07B", "llava-1.5-7b": "7.06B", "mistral-small-3.1-24b": "24.0B",
    "glm-4-32b-0414": "32.6B", "mamba-2.8b": "2.77B", "qwen3.6-27b": "27B", "qwen3.6-35b-a3b": "35B",
    "gemma-4-31b": "31B", "gemma-4-26b-a4b": "26B", "deepseek-v3.2": "671B", "glm-5": "744B", "kimi-k2.5": "1T",
    "devstral-small-2-24b": "24B", "nemotron-3-super-120b-a12b": "120B", "llama-3.2-90b-vision": "88.8B",
    "deepseek-v4-flash": "284B", "deepseek-v4-flash-base": "284B", "deepseek-v4-pro": "1.6T", "gemma-3n-e4b": "8B",
    "gemma-3n-e2b": "5B", "mimo-v2-flash": "309B", "minimax-m1": "456B", "ministral-3-8b": "8B", "gemma-4-12b": "12B",
    "zamba2-2.7b": "2.7B", "starcoder2-15b": "15.96B", "codestral-22b": "22.25B", "qwen2-vl-7b": "8.291B", "qwen2-vl-72b": "73.41B",
    "qwen2.5-vl-72b-awq": "73.66B",
}

problems = []


def check(ok, message):
    if not ok:
        problems.append(message)
    return ok


def claim(seen, key, owner):
    """Names and aliases share one space, whatever their case."""
    other = seen.setdefault(key.lower(), owner)
    check(other == owner, f"{owner}: {key!r} also belongs to {other}")


def check_memory_source(name, text, total, usable):
    """The source must quote the very figures: MiB (torch writes MB), bytes, or GiB to two digits."""
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
    if total and usable != total:
        check(str(total >> 20) in numbers or str(total) in numbers, f"{name}: memory_source does not quote {total >> 20}MiB")
    if usable:
        quoted = {str(usable), str(usable >> 20), f"{usable / 2**30:.2f}"}
        check(quoted & numbers, f"{name}: memory_source does not quote any of {sorted(quoted)}")


def check_slices(name, device):
    """MIG: whole 64 MiB each, within the card however often a profile is taken, and in their printed order."""
    slices = device.get("slices", [])
    check(bool(slices) == ("slices_source" in device), f"{name}: slices and slices_source come together")
    check(not slices or device["vendor"] == "nvidia", f"{name}: slices are NVIDIA's")
    for s in slices:
        who = f"{name}:{s.get('profile', '?')}"
        if not check(tuple(s) == SLICE_FIELDS, f"{who}: fields {tuple(s)}"):
            continue
        match = re.fullmatch(r"(\d)g\.(\d+)gb", s["profile"])
        if not check(match, f"{who}: no profile"):
            continue
        compute, marketing = map(int, match.groups())
        check(s["bytes"] % 2**26 == 0, f"{who}: no whole 64 MiB")
        check(0.85 * marketing < s["bytes"] / 1e9 < 1.0738 * marketing, f"{who}: {s['bytes']} against {marketing} GB")
        check(s["instances"] * s["bytes"] <= device["driver_total_bytes"], f"{who}: together above the card's memory")
        check(s["instances"] * s["multiprocessors"] <= device["multiprocessors"], f"{who}: together above the card's SMs")
        check(s["instances"] * s["memory_eighths"] <= 8 and compute <= 7, f"{who}: together above the card")
    check(len({s["profile"] for s in slices}) == len(slices), f"{name}: repeated profile")


def check_devices(path):
    devices = tomllib.loads(path.read_text())["device"]
    seen = {}
    for d in devices:
        name = d.get("name", "?")
        for field, kind in DEVICE_FIELDS.items():
            if field not in d:
                check(field in OPTIONAL, f"{name}: no {field}")
            else:
                check(type(d[field]) is kind, f"{name}: {field} is no {kind.__name__}")
        for field in d.keys() - DEVICE_FIELDS.keys():
            check(False, f"{name}: unknown field {field}")
        check(name == name.lower() and " " not in name, f"{name}: not canonical")
        for key in [name, *d["aliases"]]:
            claim(seen, key, name)
        check(len({a.lower() for a in d["aliases"]} | {name}) == len(d["aliases"]) + 1, f"{name}: repeated alias")
        check(d["vendor"] in VENDORS, f"{name}: vendor {d['vendor']}")
        check(("compute_capability" in d) == (d["vendor"] == "nvidia"), f"{name}: compute_capability is for nvidia")
        check(d["confidence"] in CONFIDENCE, f"{name}: confidence {d['confidence']}")
        check(d["dense_flops"].keys() <= RATES, f"{name}: rates {sorted(d['dense_flops'])}")
        check(d["dense_flops"] or d["vendor"] == "apple", f"{name}: no rate")
        check(all(1e12 < float(v) < 1e17 for v in d["dense_flops"].values()), f"{name}: a rate is out of range")
        check(5 * 10**10 < d["bandwidth_bytes_per_s"] < 10**14, f"{name}: bandwidth")
        if "link" in d:
            check(d["link"].keys() == {"kind", "bytes_per_s"} and d["link"]["kind"] in LINKS, f"{name}: link {d['link']}")
        if "pcie" in d:
            check(d["pcie"].keys() == {"generation", "lanes"}, f"{name}: pcie {d['pcie']}")
        total, usable = d["driver_total_bytes"], d.get("usable_bytes")
        unified = d.get("unified", False)
        check(total % 2**20 == 0, f"{name}: driver total is no whole MiB")
        # A GPU may take a half of unified memory or more; a card's own it has nearly all of.
        if usable:
            check(usable <= total, f"{name}: usable {usable} above the driver's {total}")
            check(usable > (0.48 if unified else 0.94) * total, f"{name}: usable {usable} far below the driver's {total}")
        check_memory_source(name, d["memory_source"], total, usable)
        marketing = int(d["marketing_memory"].split()[0])
        check(d["marketing_memory"] == f"{marketing} GB", f"{name}: marketing memory {d['marketing_memory']}")
        # Up to GiB for GB, and a part of one where the maker cuts it off (95.74 GiB are "95 GB").
        for size in [total] if unified else filter(None, (total, usable)):
            check(0.90 * marketing < size / 1e9 < 1.0738 * (marketing + 0.8), f"{name}: {size} against {marketing} GB")
        check_slices(name, d)
        # Metal's working set follows from the machine's memory: another chip's print of it is derived here.
        given = d["confidence"] == "printed" or (d["confidence"] == "derived" and d["vendor"] == "apple")
        check(given == (usable is not None), f"{name}: 'printed' means usable_bytes is given")
    for name in REQUIRED_DEVICES:
        check(name in seen, f"no device {name}")
    held = [(d["driver_total_bytes"] - d["usable_bytes"]) >> 20 for d in devices
            if d["vendor"] == "nvidia" and "usable_bytes" in d and not d.get("unified")]
    print(f"{path.relative_to(ROOT)}: {len(devices)} devices, {len(seen)} names, {sum(len(d.get('slices', [])) for d in devices)} "
          f"slices, usable bytes printed for {sum('usable_bytes' in d for d in devices)}; NVIDIA's driver keeps {min(held)} to {max(held)} MiB, "
          f"median {statistics.median(held):.0f}")


def check_models(path):
    models, seen = [], {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        m = json.loads(line)
        check(list(m) == ["name", "aliases", "config", "source"], f"line {number}: fields {list(m)}")
        name, config = m["name"], m["config"]
        check(name == name.lower() and " " not in name, f"{name}: not canonical")
        for key in [name, *m["aliases"]]:
            claim(seen, key, name)
        check(bool(m["source"]), f"{name}: no source")
        check("model_type" in config and "architectures" in config, f"{name}: no model_type or architectures")
        for key in config:
            check("param" not in key.removesuffix("_parameters") and "total" not in key and "_bytes" not in key, f"{name}: {key} is no config field")
        models.append(m)
    check({m["name"] for m in models} == PUBLISHED.keys(), f"published counts for another set: "
          f"{sorted({m['name'] for m in models} ^ PUBLISHED.keys())}")
    print(f"{path.relative_to(ROOT)}: {len(models)} models, {len(seen)} names")
    return models


def published(text):
    """A printed count as (value, half a unit of its last digit)."""
    unit = {"M": 10**6, "B": 10**9, "T": 10**12}[text[-1]]
    number = Decimal(text[:-1])
    return float(number * unit), float(Decimal(5).scaleb(number.as_tuple().exponent - 1) * unit)


def meta_count(config):
    """Parameters of the model transformers builds from this config, tied tensors once, stored ones only."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    model_class = getattr(transformers, config["architectures"][0], None)
    # Some types that only their hub's code knows name a class that transformers has, and some classes a type.
    known = config["model_type"] in CONFIG_MAPPING
    config_class = CONFIG_MAPPING[config["model_type"]] if known else model_class.config_class
    autos = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    model_class = model_class or next(a._model_mapping[config_class] for a in autos if config_class in a._model_mapping)
    parsed = config_class.from_dict(json.loads(json.dumps(config)))
    with torch.device("meta"):
        model = model_class(parsed)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def check_meta(models, only):
    print(f"{'model':24} {'meta device':>17} {'published':>10} {'off':>8}")
    for m in models:
        name = m["name"]
        if only and name not in only:
            continue
        try:
            count = meta_count(m["config"])
        except Exception as error:  # one model that does not build must not hide the others
            check(False, f"{name}: does not build: {type(error).__name__}: {error}")
            continue
        value, half = published(PUBLISHED[name])
        off = count / value - 1
        ok = check(abs(count - value) <= max(0.01 * value, half), f"{name}: {count} against {PUBLISHED[name]}")
        print(f"{name:24} {count:>17,} {PUBLISHED[name]:>10} {off:>+8.2%}{'' if ok else '  <--'}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--meta", nargs="*", metavar="NAME", help="also build the models on the meta device")
    arguments = arguments.parse_args()
    check_devices(DEVICES)
    models = check_models(MODELS)
    if arguments.meta is not None:
        check_meta(models, set(arguments.meta))
    for problem in problems:
        print("problem:", problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
