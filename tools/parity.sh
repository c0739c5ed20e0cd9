#!/usr/bin/env bash
# Build .venv-parity: the upstream metric packages in the versions that are right, beside what they need.
# They break on the product's transformers and scikit-learn, so nothing of them enters .venv; parity and
# benchmarks start this environment's Python in a process of its own. Rebuilt when a lock changes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-parity
stamp=$venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK=1

[ ! -e "$stamp" ] || [ -n "$(find locks tools/parity.sh -newer "$stamp" -print -quit)" ] || exit 0
"${PYTHON:-python3}" -m venv "$venv"
pip=$venv/bin/pip
echo "Installing $(grep -c '==' locks/parity.txt) locked packages into $venv; this takes some minutes"
"$pip" install -qq --no-deps --require-hashes -r locks/parity.txt
"$pip" install -qq -r locks/torch.txt
"$pip" install -qq --no-deps --no-build-isolation --require-hashes -r locks/parity-nodeps.txt
# RadEval imports itself by a name it no longer has where a file system knows capitals from small letters.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -sfn radeval "$site/RadEval"
touch "$stamp"
