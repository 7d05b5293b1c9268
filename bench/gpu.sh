#!/usr/bin/env bash
# What only a GPU can show, in one run of a few minutes on a machine that has one; it needs no Rust and no network.
#
#   PLIMSOLL=path/to/release/plimsoll bench/gpu.sh [MODEL ...]
#
# Build the binary before (`cargo build --release`). MODEL is a folder or a .gguf file (default: the model that is built in).
# Prints what fails; exit status 1 where anything did. compute-sanitizer is used where it is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=${PLIMSOLL:-target/release/plimsoll}
OUT=${OUT:-$(mktemp -d)}
MODELS=("$@")
[ ${#MODELS[@]} -gt 0 ] || MODELS=(demo)
failed=0
TIGHT="--kv-memory 1300KiB --max-model-len 256"
step() { printf '\n== %s\n' "$*"; }
fail() { failed=1; printf 'FAILED: %s\n' "$*"; }

step "operations on the card, and what it does per second"
"$BIN" doctor --gpu || fail "doctor --gpu"

printf '%s\n' '{"prompt":"She had not been an hour in the house before","max_tokens":96}' \
  '{"prompt":"The ship","max_tokens":128,"n":3,"temperature":0.8,"seed":7}' \
  '{"prompt":"It was a truth","max_tokens":64,"beam_width":4}' \
  '{"prompt":"Mr. Darcy said that he would not","max_tokens":128}' > "$OUT/prompts.jsonl"
choices() { # FILE: what was answered, in the order of the prompts.
  python3 -c 'import json, sys
for answer in sorted(map(json.loads, open(sys.argv[1])), key=lambda a: a["index"]):
    print(json.dumps(answer["choices"], sort_keys=True))' "$1"
}
answers() { # DEVICE FLAGS...
  local device=$1
  shift
  "$BIN" generate --device "$device" --prompts "$OUT/prompts.jsonl" --seed 1 "$@" 2> "$OUT/err" > "$OUT/$device.out" || {
    fail "generate --device $device $*"
    tail -n 3 "$OUT/err"
    return
  }
  choices "$OUT/$device.out" > "$OUT/$device.text"
}
for model in "${MODELS[@]}"; do
  name=()
  [ "$model" = demo ] || name=("$model")
  for flags in "" "--weights fp8" "--weights int8" "--weights int4" "--kv-cache-dtype f32" "--kv-cache-dtype int8 --block-size 8" \
    "$TIGHT --swap-space 64MiB --preempt swap" "$TIGHT --preempt recompute"; do
    # So little that somebody gives way: of the built-in model's, which others do not fit.
    case "$model $flags" in demo*) ;; *"$TIGHT"*) continue ;; esac
    step "$model $flags: the GPU's text beside the processors'"
    read -ra more <<< "$flags"
    answers cpu "${name[@]}" --inputs f32 "${more[@]}"
    answers cuda "${name[@]}" --batch-invariant "${more[@]}"
    cmp -s "$OUT/cpu.text" "$OUT/cuda.text" && echo same || fail "$model $flags: texts differ"
    grep -A8 '^memory' "$OUT/err"
  done
done

for model in "${MODELS[@]}"; do
  for flags in "" "--weights fp8" "--weights int8" "--kv-cache-dtype fp8"; do
    step "$model $flags: 128 tokens beside the processors', one by one, in both arithmetics"
    read -ra more <<< "$flags"
    "$BIN" doctor --gpu --model "$model" -- "${more[@]}" || fail "doctor --gpu --model $model -- $flags"
  done
done

step "the GPU's texts alone and together, on tensor cores"
for flags in "" "--weights fp8" "--weights int8" "--kv-cache-dtype fp8" "--enforce-eager"; do
  read -ra more <<< "$flags"
  "$BIN" generate --device cuda --prompts "$OUT/prompts.jsonl" --seed 1 "${more[@]}" 2> "$OUT/err" > "$OUT/together" || fail "generate $flags"
  : > "$OUT/alone"
  # Each line by itself: what it asks for has the same place in its own run, and the same seed.
  while read -r line; do
    printf '%s\n' "$line" > "$OUT/one.jsonl"
    "$BIN" generate --device cuda --prompts "$OUT/one.jsonl" --seed 1 "${more[@]}" 2> "$OUT/err" >> "$OUT/alone" || fail "generate $flags, alone"
  done < "$OUT/prompts.jsonl"
  python3 - "$OUT/together" "$OUT/alone" << 'END' || fail "$flags: texts depend on company"
import json, sys
together, alone = ([json.loads(line) for line in open(f)] for f in sys.argv[1:])
together.sort(key=lambda a: a["index"])
sys.exit([a["choices"] for a in together] != [a["choices"] for a in alone])
END
done

step "memory of the process on the card, as the driver says"
"$BIN" serve --device cuda --port 8099 2> "$OUT/serve.err" & server=$!
for _ in $(seq 100); do sleep 0.3; grep -q /v1 "$OUT/serve.err" && break; done
nvidia-smi --query-compute-apps=pid,used_memory --format=csv
sed -n '/^memory/,/^KV/p' "$OUT/serve.err"
kill $server
wait $server 2> /dev/null

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    step "compute-sanitizer $tool"
    compute-sanitizer --tool $tool --error-exitcode 9 "$BIN" generate --device cuda --prompts "$OUT/prompts.jsonl" --seed 1 \
      $TIGHT --swap-space 64MiB > /dev/null 2> "$OUT/sanitizer" || { fail "$tool"; tail -n 20 "$OUT/sanitizer"; }
    compute-sanitizer --tool $tool --error-exitcode 9 "$BIN" generate --device cuda --batch-invariant --enforce-eager \
      --prompts "$OUT/prompts.jsonl" --seed 1 $TIGHT > /dev/null 2> "$OUT/sanitizer" || { fail "$tool, exact"; tail -n 20 "$OUT/sanitizer"; }
  done
fi

step "speed"
for flags in "" "--batch-invariant" "--enforce-eager"; do
  read -ra more <<< "$flags"
  printf -- '-- %s\n' "$flags"
  "$BIN" bench --device cuda "${more[@]}" || fail "bench $flags"
done
if [ "$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)" -gt 1 ]; then
  step "two GPUs, by NCCL"
  answers cuda --batch-invariant --tp 2
  cp "$OUT/cuda.text" "$OUT/nccl.text"
  answers cpu --inputs f32 --tp 2
  cmp -s "$OUT/cpu.text" "$OUT/nccl.text" && echo same || fail "--tp 2: texts differ"
fi
step "two ranks on one GPU, by the host's memory"
OUT2=$OUT/two
mkdir -p "$OUT2"
"$BIN" generate --device cuda:0,0 --batch-invariant --tp 2 --prompts "$OUT/prompts.jsonl" --seed 1 2> "$OUT/err" > "$OUT2/cuda.out" || fail "--device cuda:0,0 --tp 2"
"$BIN" generate --device cpu --inputs f32 --tp 2 --prompts "$OUT/prompts.jsonl" --seed 1 2> "$OUT/err" > "$OUT2/cpu.out" || fail "--tp 2"
choices "$OUT2/cuda.out" > "$OUT2/cuda.text"
choices "$OUT2/cpu.out" > "$OUT2/cpu.text"
cmp -s "$OUT2/cpu.text" "$OUT2/cuda.text" && echo same || fail "two ranks: texts differ"
[ $failed = 0 ] && echo "all holds"
exit $failed
