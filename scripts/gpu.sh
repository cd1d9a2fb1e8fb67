#!/usr/bin/env bash
# For a machine with a GPU that cannot build, as most cannot: the programs are built elsewhere, and brought along.
#
#   scripts/gpu.sh build      optimised tests, examples and commands, stripped, into target/gpu
#   scripts/gpu.sh install    a .venv with what this machine's Python has and the wheel in dist/; needs no network
#
# Elsewhere: `make wheel && scripts/gpu.sh build`. There, in a copy of the project with dist/ and target/gpu:
# `scripts/gpu.sh install && make test-gpu` (and `make bench-gpu`), which build only where there is cargo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
KIT=target/gpu

build() {
    cargo build --locked --quiet --release --bins --workspace --exclude daxfs-python
    rm -rf "$KIT"
    mkdir -p "$KIT/deps"
    # The names of test programs have a hash in them; cargo tells them.
    cargo test --locked --quiet --release --no-run --message-format=json \
        -p daxfs-tests --test cuda --test vulkan -p daxfs-examples --test run |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["reason"] == "compiler-artifact" and message["executable"] and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])
' | while read -r name program; do install -s "$program" "$KIT/deps/$name"; done
    # Tests find the programs that they start one folder above themselves.
    local name
    for name in daxfs daxfs-pack daxfs-bench 05-cuda-gather 06-cuda-walk; do
        install -s "target/release/$name" "$KIT/$name"
    done
    du -sh "$KIT"
}

install_wheel() {
    if [ ! -x .venv/bin/python ]; then
        python3 -m venv --without-pip .venv
        # Also where python3 is one of a virtual environment itself, whose packages another would not see.
        python3 -c 'import site; print(*site.getsitepackages(), sep="\n")' \
            >"$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/machine.pth"
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall \
        dist/*.whl
    touch .venv/wheel-is-current
}

case ${1:-} in
    build) build ;;
    install) install_wheel ;;
    *) echo "usage: scripts/gpu.sh build|install" >&2; exit 2 ;;
esac
