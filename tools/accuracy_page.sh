#!/usr/bin/env bash
# Writes docs/accuracy.md: what `plimsoll accuracy` prints for a folder of published start-up reports.
#
#   tools/accuracy_page.sh DATA_DIR
#
# DATA_DIR holds measurements.jsonl (reports) and configs.jsonl (the models' configurations).
set -euo pipefail
data=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
cargo build --release --quiet
run() { target/release/plimsoll accuracy "$data/measurements.jsonl" --configs "$data/configs.jsonl" "$@"; }
block() {
  printf '\n```text\n$ plimsoll accuracy measurements.jsonl --configs configs.jsonl%s\n' "$1"
  cat
  printf '```\n'
}
{
  cat <<'TEXT'
# Accuracy

What is predicted from configuration, flags, engine version and card alone, against what servers printed at start-up. Made by
`tools/accuracy_page.sh`; nothing on this page is typed by hand. Errors of memory terms are relative to the larger of the reported
figure and 1 GiB; those of tokens and concurrency to the reported figure. `none` counts reports that state the term and were not predicted, each
listed with its reason below; `bounds` says how many reports keep a bound, of those for which no more is known. `inside` is the share of reports within the stated 90 % interval.

The constants (last section) were fitted on the same reports; their leave-one-model-out errors stand beside them.

## vLLM 0.17 and newer
TEXT
  run --min-version 0.17 | sed -n '1,/^by engine/p' | sed '$d' | block ' --min-version 0.17'
  printf '\n## All engines and versions\n'
  run | block ''
  printf '\n## Fitted constants\n'
  run --constants | block ' --constants'
} > docs/accuracy.md

# The first table also stands in README.md, between two marks.
table=$(mktemp)
trap 'rm -f "$table"' EXIT
{
  printf '```text\n'
  run --min-version 0.17 | awk 'NF == 0 { exit } { print }'
  printf '```\n'
} > "$table"
awk -v table="$table" '
  /<!-- accuracy: end -->/ { inside = 0 }
  !inside { print }
  /<!-- accuracy: begin/ { inside = 1; while ((getline line < table) > 0) print line }
' README.md > README.new
mv README.new README.md
