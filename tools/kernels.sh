#!/usr/bin/env bash
# Compiles the CUDA kernels for every architecture, or for those that are named (90, 120 ...), without a GPU.
#
#     tools/kernels.sh [ARCHITECTURE...]
#
# Needs cargo and Python with venv: the compiler is NVRTC of its Python package, in FOLDER (target/nvrtc, or what
# PLIMSOLL_NVRTC names).
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${PLIMSOLL_NVRTC:-${CARGO_TARGET_DIR:-target}/nvrtc}"

[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check 'nvidia-cuda-nvrtc==13.5.*'
packages="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"
library="$(find "$packages/nvidia" -name 'libnvrtc.so.*' -print -quit)"

export LD_LIBRARY_PATH="$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cargo run -q -p plimsoll-cuda --example compile --locked -- "$@"
