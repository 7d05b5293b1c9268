#!/usr/bin/env bash
# Writes docs/paper.md: the PagedAttention paper's figures beside ours. About ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
page=$(mktemp)
trap 'rm -f "$page"' EXIT
cargo run --quiet --release -p plimsoll-simulate --example paper >"$page"
tools/beam_sharing.py >>"$page"
cp "$page" docs/paper.md
