#!/usr/bin/env bash
# How long a plan takes, as a whole process: median of RUNS runs each, in milliseconds.
#
#   bench/plan.sh [RUNS]
#
# The bars: a plan on a local config below 20 ms, the search over all devices and degrees below 100 ms.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-31}
cargo build --release --quiet
bin=target/release/plimsoll
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for m in llama-13b deepseek-v3; do "$bin" models show "$m" --config > "$dir/$m.json"; done

median() {
  local name=$1; shift
  for _ in $(seq "$runs"); do
    local start end
    start=$(date +%s%N); "$@" > /dev/null 2>&1 || true; end=$(date +%s%N)
    echo $(((end - start) / 1000))
  done | sort -n | awk -v n="$name" '{ v[NR] = $1 } END { printf "%-44s %8.2f ms\n", n, v[int((NR + 1) / 2)] / 1000 }'
}

median "true (what starting a process costs)" true
median "plan llama-13b.json, one card named" "$bin" plan "$dir/llama-13b.json" --users 10 --context 2000 --gpu a100-40g
median "plan deepseek-v3.json, one card named" "$bin" plan "$dir/deepseek-v3.json" --users 100 --context 32768 --gpu h100
median "plan llama-13b.json over all cards" "$bin" plan "$dir/llama-13b.json" --users 10 --context 2000 --gpu any
median "plan deepseek-v3.json over all cards" "$bin" plan "$dir/deepseek-v3.json" --users 100 --context 32768 --gpu any
median "plan gpt3-175b over all cards" "$bin" plan gpt3-175b --users 100 --context 2048 --gpu any
