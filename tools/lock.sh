#!/usr/bin/env bash
# Resolve pyproject.toml into the two lock files. Pins already there stay unless a range forbids them;
# `tools/lock.sh --upgrade` moves everything, `tools/lock.sh -P NAME` one package. Another package index
# than the default one comes from uv's own environment variables (UV_DEFAULT_INDEX, UV_INDEX).
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
[ -x "$uv" ] || uv=$(command -v uv) || {
    echo "tools/lock.sh: uv is missing: run 'make venv' first, or install uv" >&2
    exit 2
}

resolve() { # resolve OUTPUT EXTRA... [-- UV_OPTION...]
    local output=$1 extras=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        extras+=(--extra "$1")
        shift
    done
    [ $# -eq 0 ] || shift
    # 3.11 is the oldest Python we support; nothing in the tree asks for more on a newer one.
    # torch: locks/torch.txt says why it stays out.
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile pyproject.toml "${extras[@]}" \
        --constraints locks/torch.txt --no-emit-package torch --generate-hashes \
        --python-version 3.11 --python-platform linux --quiet --output-file "$output" "$@"
    echo "$output: $(grep -c '==' "$output") packages"
}

resolve locks/unirg.txt train serve eval pipelines dicom export dev -- "$@"
# The dev tools too: the parity tests run under the same pytest settings.
resolve locks/parity.txt parity dev -- "$@"
