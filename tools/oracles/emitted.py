#!/usr/bin/env python3
"""Random plans, emitted, and read by those whom they are for.

    tools/oracles/emitted.py --plimsoll target/debug/plimsoll [--plans 50] [--seed 1]
        [--manifests] [--vllm PYTHON] [--sglang PYTHON] [--llama-server FILE]

--manifests validates `--emit kubernetes` strictly against Kubernetes' published schemas (package kubernetes-validate);
--vllm and --sglang name a Python that has the engine, whose own argument parser reads each command; --llama-server a
program of llama.cpp, which parses its arguments before it is asked for its version. Ends with 1 where anything is refused.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys

MODELS = ["llama-3.1-8b", "llama-3.1-70b", "qwen3-8b", "qwen3-30b-a3b", "mistral-7b-v0.1", "gemma-2-9b", "gpt-oss-20b", "phi-4"]
DEVICES = ["h100", "a100", "l40s", "rtx-4090", "h200", "a10"]

# What a Python with the engine runs: a list of commands as JSON on standard input, each without its program.
VLLM = """
import json, sys
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
for words in json.load(sys.stdin):
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words[1:])
    validate_parsed_serve_args(args)
    said = dict(zip(words[2::2], words[3::2])) if len(words) % 2 == 0 else {}
    if "--max-model-len" in said:
        assert str(args.max_model_len) == said["--max-model-len"], words
print("read")
"""
SGLANG = """
import json, sys
from sglang.srt.server_args import ServerArgs
import argparse
for words in json.load(sys.stdin):
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    parser.parse_args(words)
print("read")
"""


def question(draw: random.Random, engine: str) -> list[str]:
    """Flags of a plan that may or may not fit."""
    flags = [draw.choice(MODELS), "--gpu", draw.choice(DEVICES), "--users", str(draw.choice([1, 4, 16, 64]))]
    flags += ["--context", str(draw.choice([1000, 2048, 4096, 8192]))]
    if draw.random() < 0.3:
        flags += ["--max-num-batched-tokens", str(draw.choice([2048, 4096, 8192]))]
    if draw.random() < 0.3 and engine != "llama.cpp":
        flags += ["--max-num-seqs", str(draw.choice([64, 128, 256]))]
    if draw.random() < 0.2 and engine != "sglang":
        flags += ["--kv-memory", "8GiB"] if engine != "llama.cpp" else ["--cache-type-k", "q8_0"]
    if engine == "vllm":
        if draw.random() < 0.3:
            flags += ["--kv-cache-dtype", draw.choice(["fp8", "bf16"])]
        if draw.random() < 0.2:
            flags += ["--enforce-eager"]
        if draw.random() < 0.2:
            flags += ["--max-loras", "4"]
        if draw.random() < 0.2:
            flags += ["--in-use", "2GiB"]
        if draw.random() < 0.2:
            flags += ["--dtype", "float16"]
    return flags


def emitted(plimsoll: str, draw: random.Random, engine: str, emit: str, count: int) -> list[str]:
    """`count` plans that fit, each as it was emitted."""
    out: list[str] = []
    tried = 0
    while len(out) < count:
        tried += 1
        if tried > 20 * count:
            sys.exit(f"{engine}: of {tried} plans, {len(out)} fit")
        command = [plimsoll, "plan", *question(draw, engine), "--emit", emit]
        if emit == "kubernetes":
            command += ["--engine", engine, "--image", "registry/image:1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            out.append(done.stdout)
        elif done.returncode not in (2, 3):
            sys.exit(f"{shlex.join(command)}: {done.stderr}")
    return out


def manifests(texts: list[str]) -> None:
    import kubernetes_validate
    import yaml

    for text in texts:
        for document in yaml.safe_load_all(text):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def by_python(python: str, program: str, texts: list[str], skip: int) -> None:
    commands = [shlex.split(text)[skip:] for text in texts]
    done = subprocess.run([python, "-c", program], input=json.dumps(commands), capture_output=True, text=True, check=False)
    if done.returncode != 0 or "read" not in done.stdout:
        sys.exit(done.stderr[-4000:])


def by_llama(server: str, texts: list[str]) -> None:
    for text in texts:
        command = [server, *shlex.split(text)[1:], "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or "version" not in done.stdout + done.stderr:
            sys.exit(f"{shlex.join(command)}: {done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plimsoll", required=True)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--manifests", action="store_true")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--sglang", metavar="PYTHON")
    parser.add_argument("--llama-server", metavar="FILE")
    args = parser.parse_args()
    draw = random.Random(args.seed)

    def of(engine: str, emit: str | None = None) -> list[str]:
        return emitted(args.plimsoll, draw, engine, emit or engine, args.plans)

    if args.manifests:
        for engine in ("vllm", "sglang", "llama.cpp", "plimsoll"):
            manifests(of(engine, "kubernetes"))
            print(f"{args.plans} manifests for {engine}: valid")
    if args.vllm:
        by_python(args.vllm, VLLM, of("vllm"), 1)
        print(f"{args.plans} commands for vllm: read by its parser")
    if args.sglang:
        by_python(args.sglang, SGLANG, of("sglang"), 3)
        print(f"{args.plans} commands for sglang: read by its parser")
    if args.llama_server:
        by_llama(args.llama_server, of("llama.cpp"))
        print(f"{args.plans} commands for llama.cpp: read by its parser")


if __name__ == "__main__":
    main()
