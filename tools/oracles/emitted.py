#!/usr/bin/env python3
"""Random plans, emitted, and read by those whom they are for.

    tools/oracles/emitted.py --plimsoll target/debug/plimsoll [--plans 50] [--seed 1]
        [--manifests] [--vllm PYTHON] [--sglang PYTHON] [--sglang-wheel DIR ...] [--llama-server FILE]

--manifests validates `--emit kubernetes` strictly against Kubernetes' published schemas (package kubernetes-validate);
--vllm and --sglang name a Python that has the engine, whose own argument parser reads each command; --sglang-wheel a wheel
of SGLang, unzipped in a folder `sglang-VERSION`, whose parser is run without what it depends on (sglang_flags.py), on
plans of that version; --llama-server a program of llama.cpp, which parses its arguments before it is asked for its
version. Ends with 1 where anything is refused.
"""

import argparse
import json
import os
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
parser = make_arg_parser(FlexibleArgumentParser())
SWITCHES = {"--enforce-eager", "--enable-lora", "--enable-expert-parallel", "--enable-prefix-caching", "--async-scheduling"}
for words in json.load(sys.stdin):
    args = parser.parse_args(words[1:])
    validate_parsed_serve_args(args)
    # Each flag is one that the parser knows by its whole name, and its value arrives as it was said.
    rest = iter(words[2:])
    for flag in rest:
        name = flag.removeprefix("--no-") if flag.startswith("--no-") else flag.removeprefix("--")
        if "--" + name in SWITCHES:
            said = not flag.startswith("--no-")
        else:
            said = next(rest)
        read = getattr(args, name.replace("-", "_"))
        assert str(read) == str(said), (words, flag, read)
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
    if draw.random() < 0.3:
        flags += ["--max-num-seqs", str(draw.choice([64, 128, 256]))]
    if draw.random() < 0.2 and engine != "llama.cpp":
        flags += ["--kv-memory", "8GiB"]
    if draw.random() < 0.2:
        flags += ["--max-model-len", "16384"]
    if draw.random() < 0.1 and engine != "llama.cpp":
        flags += ["--no-enable-prefix-caching"]
    if draw.random() < 0.1 and engine != "llama.cpp":
        flags += ["--quantization", draw.choice(["fp8", "bitsandbytes"])]
    if engine == "llama.cpp":
        for chance, some in [
            (0.3, ["--cache-type-k", draw.choice(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])]),
            (0.3, ["--cache-type-v", draw.choice(["f16", "q8_0", "q4_0"])]),
            (0.3, ["--flash-attn", draw.choice(["true", "false"])]),
            (0.3, ["--ubatch-size", draw.choice(["128", "1024"])]),
            (0.3, ["--kv-unified"]),
            (0.2, ["--swa-full"]),
        ]:
            flags += some if draw.random() < chance else []
    if engine.startswith("sglang"):
        for chance, some in [
            (0.3, ["--kv-cache-dtype", draw.choice(["fp8", "fp8_e5m2", "bf16"])]),
            (0.2, ["--disable-cuda-graph"]),
            (0.2, ["--max-loras", "4", "--max-lora-rank", "32"]),
            (0.2, ["--dtype", draw.choice(["float16", "bfloat16"])]),
            (0.2, ["--page-size", "16"]),
            (0.2, ["--max-total-tokens", "200000"]),
            (0.2, ["--mem-fraction-static", "0.85"]),
            (0.2, ["--gpus", "4", "--tp", "2", "--dp", "2", *(["--ep"] if draw.random() < 0.5 else [])]),
        ]:
            flags += some if draw.random() < chance else []
    if engine == "vllm":
        for chance, some in [
            (0.3, ["--kv-cache-dtype", draw.choice(["fp8", "fp8_e5m2", "bf16", "f16", "int8", "int8_per_token_head"])]),
            (0.2, ["--enforce-eager"]),
            (0.2, ["--max-loras", "4", "--max-lora-rank", "32"]),
            (0.2, ["--in-use", "2GiB"]),
            (0.2, ["--dtype", draw.choice(["float16", "bfloat16"])]),
            (0.2, ["--block-size", "32"]),
            (0.2, ["--async-scheduling", draw.choice(["true", "false"])]),
            (0.2, ["--gpu-memory-utilization", "0.85"]),
        ]:
            flags += some if draw.random() < chance else []
        if "--no-enable-prefix-caching" not in flags and draw.random() < 0.2:
            flags += ["--enable-prefix-caching"]
        if draw.random() < 0.3:
            flags += draw.choice(
                [
                    ["--gpus", "4", "--tp", "2", "--dp", "2", "--ep"],
                    ["--gpus", "4", "--tp", "2", "--pp", "2"],
                    # More ranks than heads of keys: they hold a sequence's tokens in turn.
                    ["--gpus", "16", "--tp", "16", "--decode-context-parallel-size", "2"],
                ]
            )
    return flags


def emitted(plimsoll: str, draw: random.Random, engine: str, emit: str, count: int) -> list[str]:
    """`count` plans that fit, each as it was emitted. `engine` may have a version."""
    out: list[str] = []
    tried = 0
    while len(out) < count:
        tried += 1
        if tried > 20 * count:
            sys.exit(f"{engine}: of {tried} plans, {len(out)} fit")
        command = [plimsoll, "plan", *question(draw, engine), "--emit", emit]
        if emit == "kubernetes":
            command += ["--image", "registry/image:1"]
        if emit == "kubernetes" or "@" in engine:
            command += ["--engine", engine]
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


def by_python(command: list[str], texts: list[str], skip: int) -> None:
    commands = [shlex.split(text)[skip:] for text in texts]
    done = subprocess.run(command, input=json.dumps(commands), capture_output=True, text=True, check=False)
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
    parser.add_argument("--sglang-wheel", metavar="DIR", action="append", default=[])
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
        by_python([args.vllm, "-c", VLLM], of("vllm"), 1)
        print(f"{args.plans} commands for vllm: read by its parser")
    if args.sglang:
        by_python([args.sglang, "-c", SGLANG], of("sglang"), 3)
        print(f"{args.plans} commands for sglang: read by its parser")
    for wheel in args.sglang_wheel:
        version = os.path.basename(os.path.normpath(wheel)).rpartition("-")[2]
        parser_of = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "sglang_flags.py"), wheel]
        by_python(parser_of, of(f"sglang@{version}", "sglang"), 3)
        print(f"{args.plans} commands for sglang {version}: read by its parser")
    if args.llama_server:
        by_llama(args.llama_server, of("llama.cpp"))
        print(f"{args.plans} commands for llama.cpp: read by its parser")


if __name__ == "__main__":
    main()
