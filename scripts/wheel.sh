#!/usr/bin/env bash
# Builds the Python wheel into dist/ and installs it into .venv, with the commands daxfs and daxfs-pack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf dist
.venv/bin/maturin build --release --interpreter .venv/bin/python --out dist
.venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
echo "wheel: $(ls dist/*.whl)"
