#!/usr/bin/env bash
# Install the Debian packages that the tests need and pip cannot bring: an S3 server, a database and a browser.
set -euo pipefail

packages=(radosgw ceph-mon ceph-osd ceph-common postgresql chromium fonts-dejavu-core)

missing=()
if command -v dpkg-query >/dev/null; then
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || exit 0
else
    missing=("${packages[@]}")
fi

if ! command -v apt-get >/dev/null; then
    echo "tools/apt.sh: no apt-get here: install the likes of ${missing[*]} yourself, or some tests are skipped" >&2
elif [ "$(id -u)" -ne 0 ]; then
    echo "tools/apt.sh: not root: run 'sudo tools/apt.sh' to install ${missing[*]}, or some tests are skipped" >&2
else
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    echo "tools/apt.sh: installed ${missing[*]}"
fi
