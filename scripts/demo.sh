#!/usr/bin/env bash
# The demo from a fresh clone: a virtual environment, the package built and installed into it, a real model packed and used.
#
#   scripts/demo.sh               what `make demo` does
#   scripts/demo.sh --installed   with the package that is already in .venv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v cargo >/dev/null || { echo "demo: no cargo: install Rust first" >&2; exit 2; }
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || scripts/setup.sh system
scripts/setup.sh demo
if [ "${1:-}" != --installed ]; then
    echo "demo: building and installing the package (a few minutes the first time)"
    scripts/wheel.sh
fi
exec .venv/bin/python examples/demo/demo.py
