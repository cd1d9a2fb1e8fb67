#!/usr/bin/env bash
# Brings all locks in line with changed lists and manifests: `make lock`. What is not concerned stays where it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"${PYTHON:-python3}" scripts/lock.py
for manifest in Cargo.toml fuzz/Cargo.toml; do
    cargo update --workspace --quiet --manifest-path "$manifest"
done
git --no-pager diff --stat -- '*.txt' '*Cargo.lock' || true
