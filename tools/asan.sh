#!/usr/bin/env bash
# Runs tests of the CUDA kernels on fibers under AddressSanitizer, in a target folder of their own (target/asan).
#
#     tools/asan.sh [ARGUMENTS OF cargo test...]
#
# Kernels may then use only the memory that their operation names: whoever leaves it ends the process, which says where.
set -euo pipefail
cd "$(dirname "$0")/.."
library="$(c++ -print-file-name=libasan.so)"
[ -e "$library" ] || { echo "tools/asan.sh: c++ has no libasan.so: install GCC's (Debian: g++)" >&2; exit 1; }
host="$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')"
export PLIMSOLL_ASAN=1 CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
# Only tests, not the compiler, have it before all other libraries. Threads of tests end without freeing their fibers.
export "CARGO_TARGET_${host}_RUNNER=env LD_PRELOAD=$library ASAN_OPTIONS=detect_leaks=0"
[ $# -gt 0 ] || set -- -p plimsoll-cuda --features plimsoll-cuda/fibers -p plimsoll-runtime --test asan --test optests --test graphs --test transfers
exec cargo test --locked "$@"
