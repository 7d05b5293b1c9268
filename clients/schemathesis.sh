#!/usr/bin/env bash
# Schemathesis against `plimsoll serve` on the demo model: nothing that its OpenAPI document lets it ask, or forbids,
# ends in a 5xx or in an answer that the document does not describe.
#
#     clients/schemathesis.sh [SECONDS]
#
# Installs Schemathesis into FOLDER (clients/.env, or what PLIMSOLL_CLIENTS names). PLIMSOLL names another binary than
# target/release/plimsoll.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${PLIMSOLL_CLIENTS:-$here/.env}/st"
binary="${PLIMSOLL:-$here/../target/release/plimsoll}"
seconds="${1:-60}"

[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check schemathesis==4.32.5

said="$(mktemp)"
work="$(mktemp -d)"
key=sk-schemathesis
"$binary" serve --port 0 --max-model-len 512 --api-key "$key" 2>"$said" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$said" "$work"' EXIT
url=
for _ in $(seq 300); do
    url="$(sed -n 's/.*curl \(http:\/\/[0-9.:]*\)\/.*/\1/p' "$said" | head -n 1)"
    [ -z "$url" ] || break
    kill -0 "$server" || { cat "$said" >&2; exit 1; }
    sleep 0.2
done
[ -n "$url" ] || { cat "$said" >&2; exit 1; }

# The stream of the memory has no end. One worker and a seed: the same questions each time, as far as time goes.
cd "$work"
"$folder/bin/st" run "$url/openapi.json" \
    --header "Authorization: Bearer $key" --exclude-path /v1/memory/stream --seed 1 --workers 1 --max-time "$seconds" --request-timeout 30 \
    --phases examples,coverage,fuzzing --continue-on-failure --no-color \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection,ignored_auth,unsupported_method
kill -0 "$server" || { echo "the server is gone" >&2; cat "$said" >&2; exit 1; }
