#!/usr/bin/env bash
# What the crate daxfs shows of itself, beside what is checked in: tests/public-api/daxfs.txt.
#
#   scripts/public-api.sh           shows what differs; exit status 1 if anything does
#   scripts/public-api.sh --bless   writes the text anew
#
# The text is made of rustdoc's JSON, which is no stable format: cargo-public-api of this version reads that of the
# Rust below, and with another Rust nothing is compared (exit status 77). RUSTC_BOOTSTRAP has a stable rustdoc write it;
# no code is compiled with it. cargo-public-api is installed once, into the cache folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.52.0
rust=1.95
text=tests/public-api/daxfs.txt
target=${CARGO_TARGET_DIR:-target}
tool=${XDG_CACHE_HOME:-$HOME/.cache}/daxfs/public-api-$version

if [[ $(rustc --version) != "rustc $rust."* ]]; then
    echo "the public API is compared with Rust $rust, this is $(rustc --version)"
    exit 77
fi
[ -x "$tool/bin/cargo-public-api" ] ||
    cargo install --quiet --locked --debug --root "$tool" --version "$version" cargo-public-api

# A folder of its own: with the variable, build scripts of libraries are run again and would have all else built anew.
RUSTC_BOOTSTRAP=1 cargo rustdoc --locked --quiet --package daxfs --lib --target-dir "$target/public-api" -- \
    -Z unstable-options --output-format json
found=$target/public-api/daxfs.txt
"$tool/bin/cargo-public-api" public-api -sss --color never --rustdoc-json "$target/public-api/doc/daxfs.json" >"$found"
if [ "${1:-}" = --bless ]; then
    cp "$found" "$text"
    exit
fi
diff -u --label "$text" --label "now" "$text" "$found" || {
    echo "the public API of daxfs has changed: read the lines, then scripts/public-api.sh --bless"
    exit 1
}
