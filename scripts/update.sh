#!/usr/bin/env bash
# Renews all locks, of the Python environments and of the crates, also those of the fuzz targets, and says what moved.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"${PYTHON:-python3}" scripts/lock.py --upgrade
for manifest in Cargo.toml fuzz/Cargo.toml; do
    said=$(cargo update --manifest-path "$manifest" 2>&1) || { echo "$said" >&2; exit 1; }
    # Lines such as "Updating libc v0.2.190 -> v0.2.191".
    sed -nE "s#^ *(Updating|Adding|Removing|Downgrading) ([^ ]+ v[0-9].*)#update: ${manifest%.toml}.lock: \1 \2#p" <<<"$said"
done
git --no-pager diff --stat -- '*.txt' '*Cargo.lock' || true
