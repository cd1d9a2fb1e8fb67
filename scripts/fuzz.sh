#!/usr/bin/env bash
# Fuzzes each target for some seconds (30 by default): scripts/fuzz.sh [SECONDS] [TARGET...]
#
# Works on the stable toolchain: the flags below are those of cargo-fuzz, less the address sanitizer, which needs nightly.
# What a target found interesting stays in fuzz/corpus and is the start of the next run. An input that fails is kept in
# fuzz/artifacts; the last lines name it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-30}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(image overlay log safetensors gguf torch layers plan holder holder_server
    holder_client)

# The packer first, its images are the seeds. A test beside it, so that both get the features that `cargo test` gives them.
cargo build --locked --quiet --bins --test kernel
packer=$(realpath "${CARGO_TARGET_DIR:-target}/debug/daxfs-pack")
python3 fuzz/seeds.py "$packer" fuzz/corpus

# With --target the flags reach the program alone, not build scripts and macros, which have no fuzzer to link with.
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
RUSTFLAGS=$flags cargo build --locked --quiet --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir fuzz/target

# One target per core, at the same time.
fuzz() {
    local target=$1 log=fuzz/artifacts/$1.log
    mkdir -p "fuzz/artifacts/$target"
    local options=(-max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1)
    options+=(-max_len=196608 -artifact_prefix="fuzz/artifacts/$target/")
    [ ! -e "fuzz/$target.dict" ] || options+=(-dict="fuzz/$target.dict")
    "fuzz/target/$host/release/$target" "${options[@]}" "fuzz/corpus/$target" >"$log" 2>&1
}

# report TARGET STATUS: one line, or the end of the log.
report() {
    local target=$1 status=$2 log=fuzz/artifacts/$1.log
    local first last runs
    first=$(sed -n 's/.*INITED cov: \([0-9]*\).*/\1/p' "$log" | head -1)
    last=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ "$status" -ne 0 ]; then
        sed -n '/panicked at/,$p' "$log" | cut -c 1-300 | head -n 40
        grep 'ERROR: libFuzzer' "$log" || tail -n 20 "$log"
        echo "fuzz: $target failed; the input: $(sed -n 's/.*Test unit written to //p' "$log" | tail -1)"
        return 1
    fi
    if [ "${last:-0}" -eq 0 ]; then
        echo "fuzz: $target reports no coverage: it was built without instrumentation"
        return 1
    fi
    echo "fuzz: $target: $runs runs, coverage $first at the start, $last at the end"
}

pids=()
for target in "${targets[@]}"; do
    fuzz "$target" &
    pids+=($!)
done
result=0
for i in "${!targets[@]}"; do
    status=0
    wait "${pids[$i]}" || status=$?
    report "${targets[$i]}" "$status" || result=1
done
exit $result
