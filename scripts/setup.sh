#!/usr/bin/env bash
# Installs what the tests and the demo need beyond Rust and Python 3:
#
#   scripts/setup.sh system    programs from Debian's packages, as root; elsewhere it says what is missing and goes on
#   scripts/setup.sh python    .venv with maturin, the test tools and the libraries that the tests compare with
#
# Safe to run again: what is there is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Debian packages for the programs that are not there.
missing_packages() {
    command -v cc >/dev/null || echo gcc libc6-dev
    command -v c++ >/dev/null || echo g++                       # libFuzzer
    command -v qemu-system-x86_64 >/dev/null || echo qemu-system-x86
    # The guest's first program must not need the dynamic linker.
    if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then echo busybox-static; fi
    command -v zstd >/dev/null || echo zstd                     # the fuzzers' seeds
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

apt_install() {
    apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" </dev/null
}

system() {
    local packages
    mapfile -t packages < <(missing_packages | tr ' ' '\n')
    if [ ${#packages[@]} -eq 0 ]; then
        echo "setup: every program is there"
        return
    fi
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: missing, install as root: ${packages[*]}"
        return
    fi
    echo "setup: installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The package lists may be absent or old; bring them up to date only then.
    if ! apt_install "${packages[@]}" >/dev/null 2>&1; then
        apt-get -qq -o Acquire::Retries=3 update </dev/null || true
        apt_install "${packages[@]}" >/dev/null || echo "setup: apt-get could not install all of ${packages[*]}"
    fi
}

python() {
    [ -x .venv/bin/python ] || python3 -m venv .venv
    # What was installed is noted beside it: nothing to do while the lists are the same.
    local lists=(scripts/requirements.txt tests/kerf/requirements.txt)
    if ! cat "${lists[@]}" | cmp -s - .venv/installed-requirements.txt; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 5 -r scripts/requirements.txt
        cat "${lists[@]}" >.venv/installed-requirements.txt
    fi
    echo "setup: .venv is ready ($(.venv/bin/python --version))"
}

for part in "$@"; do
    case $part in
        system | python) "$part" ;;
        *) echo "setup.sh: no part named $part" >&2; exit 2 ;;
    esac
done
