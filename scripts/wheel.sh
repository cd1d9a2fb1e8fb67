#!/usr/bin/env bash
# Builds the Python wheel into dist/ and installs it into .venv (or $DAXFS_VENV), with the commands daxfs and daxfs-pack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${DAXFS_VENV:-.venv}
rm -rf dist/*.whl "$venv/wheel-is-current"
packaging=$("${PYTHON:-python3}" scripts/environment.py path packaging)
"$packaging/bin/maturin" build --release --locked --interpreter "$venv/bin/python" --out dist
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --force-reinstall --no-deps dist/*.whl
touch "$venv/wheel-is-current"
echo "wheel: $(ls dist/*.whl)"
