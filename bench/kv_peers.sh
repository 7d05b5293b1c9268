#!/usr/bin/env bash
# The block manager beside nano-vllm's, operation by operation: medians and ratios.
#
#   bench/kv_peers.sh
#
# Fetches nano-vllm-fork (the PyPI package; the original is not on PyPI), numpy and xxhash into a temporary
# virtual environment, without torch: only the block manager is loaded. vLLM's wheel is too large for this.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nano-vllm-fork==20260210 numpy xxhash
cargo bench --quiet -p plimsoll-kv --bench kv > "$dir/ours"
"$dir/venv/bin/python" bench/kv_peers.py "$dir/ours"
