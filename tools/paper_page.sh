#!/usr/bin/env bash
# Writes docs/paper.md: the PagedAttention paper's figures beside ours. About three minutes on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
page=$(mktemp)
trap 'rm -f "$page"' EXIT
cargo run --quiet --release -p plimsoll-simulate --example paper >"$page"
cp "$page" docs/paper.md
