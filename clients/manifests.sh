#!/usr/bin/env bash
# Manifests of `plimsoll plan --emit kubernetes` against the schemas that Kubernetes publishes, strictly.
#
#     clients/manifests.sh [PLANS]
#
# Installs kubernetes-validate, which has the schemas, into FOLDER (clients/.env, or what PLIMSOLL_CLIENTS names). PLIMSOLL
# names another binary than target/release/plimsoll.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${PLIMSOLL_CLIENTS:-$here/.env}/kubernetes"
binary="${PLIMSOLL:-$here/../target/release/plimsoll}"

[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check kubernetes-validate==1.37.0
"$folder/bin/python" "$here/../tools/oracles/emitted.py" --plimsoll "$binary" --plans "${1:-50}" --manifests
