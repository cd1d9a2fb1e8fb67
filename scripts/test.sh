#!/usr/bin/env bash
# Every check of the project, one step after the other: `make test`.
#
#   scripts/test.sh              all steps
#   scripts/test.sh STEP...      only these (names as in the table at the end)
#
# A step that fails does not stop the others. A step that cannot run on this machine, or has to leave something out, is
# listed with the reason; with CI=true that counts as a failure too, except for steps marked optional. Exit status 1 if
# any step failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export CARGO_TERM_PROGRESS_WHEN=never RUST_BACKTRACE=1

NOT_RUN=77
FUZZ_SECONDS=${FUZZ_SECONDS:-30}
wanted=("$@")
table=() passed=0 failed=0 skipped=0 number=0
reason=

# cannot WHY: ends a step that cannot run here.
cannot() {
    reason=$1
    return $NOT_RUN
}

# step NAME [optional] FUNCTION
step() {
    local name=$1 optional=false
    shift
    if [ "$1" = optional ]; then optional=true; shift; fi
    if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
    number=$((number + 1)) reason=
    printf '\n=== %d %s\n' "$number" "$name"
    local start=$SECONDS status=0 word
    "$1" || status=$?
    if [ "$status" -eq $NOT_RUN ] && [ "${CI:-}" = true ] && ! $optional; then status=1; fi
    case $status in
        0) word=passed passed=$((passed + 1)) ;;
        "$NOT_RUN") word="not run" skipped=$((skipped + 1)) ;;
        *) word=FAILED failed=$((failed + 1)) ;;
    esac
    printf -- '--- %s: %s after %d s %s\n' "$name" "$word" $((SECONDS - start)) "${reason:+($reason)}"
    table+=("$(printf '%2d  %-13s %-8s %5d s  %s' "$number" "$name" "$word" $((SECONDS - start)) "$reason")")
}

setup() {
    scripts/setup.sh system && scripts/setup.sh python && scripts/setup.sh vulkan
}

format() {
    cargo fmt --all --check && cargo fmt --manifest-path fuzz/Cargo.toml --check
}

clippy() {
    cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
}

rust() {
    # The builder of other images is there, or a test fails.
    if [ -x .venv/bin/python ]; then local -x DAXFS_PYTHON=$PWD/.venv/bin/python; fi
    # Where the driver is installed, the tests of OpenCL run, or fail.
    if [ -e /etc/OpenCL/vendors/pocl.icd ]; then local -x DAXFS_REQUIRE_OPENCL=1; fi
    # The commands too: tests across the crates start them.
    cargo build --locked --quiet --bins --tests --examples || return
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --profile ci
    else
        cargo test --locked --no-fail-fast --lib --bins --tests --examples
    fi
}

vulkan() {
    # Fetches Mesa's software driver if it is not there.
    reason=$(tests/kernel/vulkan.py true 2>&1) || return $NOT_RUN
    reason=
    export DAXFS_REQUIRE_VULKAN=1
    if cargo nextest --version >/dev/null 2>&1; then
        tests/kernel/vulkan.py cargo nextest run --locked --profile ci -E 'binary(vulkan) + package(daxfs-examples)'
    else
        # Not -p: of a part of the workspace, dependencies have other features, and would be built again.
        tests/kernel/vulkan.py cargo test --locked --no-fail-fast --test vulkan --test run
    fi
    local status=$?
    unset DAXFS_REQUIRE_VULKAN
    return $status
}

doctests() {
    cargo test --locked --quiet --doc
}

# Once, with the features that the workspace has together; long-docs builds those of each alone.
docs() {
    local -x RUSTDOCFLAGS="-D warnings"
    cargo doc --locked --quiet --workspace --no-deps
}

# What the library shows of itself is what is checked in.
public_api() {
    reason=$(scripts/public-api.sh)
    local status=$?
    # Differences are many lines.
    if [ $status -eq 1 ]; then echo "$reason"; reason="run scripts/public-api.sh"; fi
    return $status
}

# The guides, with the help of the commands and the reference of the package that the wheel has.
book() {
    need_wheel || return
    "${PYTHON:-python3}" scripts/book.py
}

wheel() {
    [ -x .venv/bin/python ] || cannot "no .venv: see the step setup" || return
    scripts/wheel.sh
}

# Steps that use the installed wheel.
need_wheel() {
    [ -e .venv/wheel-is-current ] || cannot "the wheel was not built"
}

python() {
    need_wheel || return
    # Where one is missing, its tests would be left out.
    local package
    for package in jax ml_dtypes numpy onnx onnxruntime safetensors torch transformers; do
        .venv/bin/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec(sys.argv[1]))' "$package" ||
            cannot "no $package in .venv: see the step setup" || return
    done
    .venv/bin/python -m pytest -q python/tests --ignore python/tests/kernel
}

stubs() {
    need_wheel || return
    .venv/bin/python -m mypy.stubtest daxfs --allowlist python/stubtest-allow.txt --ignore-unused-allowlist &&
        .venv/bin/python -m mypy
}

ruff() {
    [ -x .venv/bin/ruff ] || cannot "no .venv with ruff: see the step setup" || return
    .venv/bin/ruff check . && .venv/bin/ruff format --check .
}

# The kernels that are checked in are those of their source.
ptx() {
    [ -x .venv/bin/python ] || cannot "no .venv with NVRTC: see the step setup" || return
    reason=$(.venv/bin/python scripts/ptx.py --check)
    local status=$?
    # Differences are many lines.
    if [ $status -eq 1 ]; then echo "$reason"; reason="run scripts/ptx.py"; fi
    return $status
}

demo() {
    need_wheel || return
    scripts/demo.sh --installed
}

fuzz() {
    command -v c++ >/dev/null || cannot "no C++ compiler for libFuzzer" || return
    scripts/fuzz.sh "$FUZZ_SECONDS"
}

# The tests of a GPU on this machine's. The steps rust and python run the same with a simulated driver.
gpu() {
    cannot "make test-gpu runs it, on a machine with an NVIDIA GPU"
}

gpu_build() {
    if command -v cargo >/dev/null; then scripts/gpu.sh build; return; fi
    need_programs && echo "built elsewhere: target/gpu"
}

need_programs() {
    [ -e target/gpu/deps/cuda ] || cannot "no cargo, and nothing in target/gpu: see scripts/gpu.sh"
}

# Each test is a process that starts the driver; one of them takes all memory, and runs alone.
gpu_rust() {
    need_programs || return
    local status=0
    target/gpu/deps/cuda --test-threads=8 --skip exhausted:: || status=$?
    target/gpu/deps/cuda exhausted:: || status=$?
    return $status
}

gpu_examples() {
    need_programs || return
    target/gpu/deps/run --test-threads=1 cuda
}

# NVIDIA's driver is one of Vulkan as well; without a display it takes mappings alone.
gpu_vulkan() {
    need_programs || return
    ldconfig -p | grep -q 'libvulkan\.so\.1' || cannot "no Vulkan loader: install libvulkan1" || return
    DAXFS_REQUIRE_VULKAN=1 target/gpu/deps/vulkan --test-threads=1 reading::
}

gpu_python() {
    need_wheel || return
    local several=()
    if .venv/bin/python -c 'import xdist' 2>/dev/null; then several=(-n 8); fi
    .venv/bin/python -m pytest -v -rs -p no:cacheprovider -p no:benchmark "${several[@]}" python/tests/test_device.py
}

# Once more with every access of the kernels checked; the processes of single tests are its children. Errors of the
# driver's functions are not its business: tests provoke them.
gpu_sanitizer() {
    local sanitizer
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) ||
        cannot "compute-sanitizer is not on the PATH" || return
    need_programs || return
    "$sanitizer" --target-processes all --report-api-errors no --error-exitcode 1 \
        target/gpu/deps/cuda --test-threads=8 --skip exhausted::
}

deny() {
    local tools
    tools=$("${PYTHON:-python3}" scripts/environment.py path tools) || return
    # Not the advisories: their database is fetched. The step advisories of `make test-long` does so.
    local manifest
    for manifest in Cargo.toml fuzz/Cargo.toml; do
        "$tools/bin/cargo-deny" --manifest-path "$manifest" --locked --config deny.toml --log-level error \
            check --hide-inclusion-graph licenses bans sources || return
    done
}

advisories() {
    local tools
    tools=$("${PYTHON:-python3}" scripts/environment.py path tools) || return
    timeout 120 "$tools/bin/cargo-deny" --config deny.toml fetch db >/dev/null 2>&1 ||
        cannot "the database of advisories is not reachable" || return
    "$tools/bin/cargo-deny" --locked --config deny.toml check --hide-inclusion-graph advisories
}

# Tests that are ignored because they take long have names that begin with "long_".
long_rust() {
    cargo test --locked --no-fail-fast --lib --bins --tests -- --ignored long_
}

long_python() {
    need_wheel || return
    local status=0
    .venv/bin/python -m pytest -q -m long python/tests --ignore python/tests/kernel || status=$?
    # 5: there are none.
    [ $status -eq 5 ] || return $status
}

long_abuse() {
    DAXFS_ABUSE_SECONDS=${ABUSE_SECONDS:-120} cargo test --locked --test abuse
}

long_docs() {
    local -x RUSTDOCFLAGS="-D warnings"
    local feature
    cargo doc --locked --quiet --no-deps -p daxfs-device || return
    # No family of devices needs another one, and no type changes with them.
    for feature in cuda,opencl cuda,vulkan opencl,vulkan; do
        cargo clippy --locked --quiet -p daxfs-device --features "$feature" -- -D warnings || return
    done
    cargo test --locked --quiet -p daxfs-device --lib family || return
    for feature in cuda opencl vulkan; do
        cargo doc --locked --quiet --no-deps -p daxfs-device --features "$feature" || return
    done
}

# Debian systems of their own are made and entered by root.
need_systems() {
    [ "$(id -u)" -eq 0 ] || cannot "Debian systems are made and entered by root" || return
    scripts/setup.sh dist
    command -v debootstrap >/dev/null || cannot "no debootstrap"
}

long_dist() {
    need_systems && scripts/test-dist.sh
}

long_cosign() {
    need_systems && scripts/test-cosign.sh
}

long_arm64() {
    need_systems && scripts/arm64.sh test && scripts/arm64.sh wheel
}

long_pages() {
    need_systems || return
    local status=0
    scripts/arm64.sh pages 16k || status=$?
    scripts/arm64.sh pages 64k || status=$?
    return $status
}

long_fuzz() {
    FUZZ_SECONDS=${LONG_FUZZ_SECONDS:-1200} fuzz
}

# Every access of memory is checked, of the crates below the packer. What is leaked on purpose (places that a signal
# handler may read) is none of its business.
asan() {
    cargo +nightly --version >/dev/null 2>&1 || cannot "the address sanitizer needs Rust's nightly toolchain" || return
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    local -x RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0
    cargo +nightly test --locked --no-fail-fast --target "$host" --target-dir target/asan --lib --tests \
        -p dmabuf -p daxfs-protocol -p daxfs -p daxfs-device
}

mutants() {
    scripts/mutants.sh
}

# Ends a step that passed: what it had to leave out is its reason, and with CI=true no success.
left_out() {
    [ -z "$reason" ] || [ "${CI:-}" != true ] || return $NOT_RUN
}

# A guest that died and was replaced by another is no failure, but is said.
in_guests() {
    local note status=0
    note=$(mktemp)
    "$@" --note "$note" && left_out || status=$?
    if [ -s "$note" ]; then reason="${reason:+$reason; }$(cat "$note")"; fi
    rm -f "$note"
    return $status
}

kernel() {
    need_wheel || return
    # The reason stays when only a part cannot run, for want of a Vulkan driver.
    reason=$(tests/kernel/run.py --available) || return $NOT_RUN
    in_guests tests/kernel/run.py
}

kernel_erofs() {
    reason=$(tests/kernel/erofs.py --available) || return $NOT_RUN
    in_guests tests/kernel/erofs.py
}

two_kernels() {
    # As above, for want of another emulator.
    reason=$(tests/kernel/two.py --available) || return $NOT_RUN
    in_guests tests/kernel/two.py
}

systemd() {
    reason=$(tests/kernel/systemd.py --available) || return $NOT_RUN
    in_guests tests/kernel/systemd.py
}

step setup setup
step format format
step clippy clippy
step rust rust
step vulkan vulkan
step doctests doctests
step docs docs
step wheel wheel
step python python
step stubs stubs
step book book
step ruff ruff
step ptx ptx
step demo demo
step kernel kernel
step kernel-erofs kernel_erofs
step two-kernels two_kernels
step fuzz fuzz
# Compiles the libraries once more, with a rustdoc of its own kind: make lint, and when it is asked for.
if [[ " ${wanted[*]} " = *" public-api "* ]]; then step public-api optional public_api; fi
# A quarter of an hour: only when it is asked for.
if [[ " ${wanted[*]} " = *" systemd "* ]]; then step systemd systemd; fi
if [ "${DAXFS_TEST_GPU:-}" = 1 ]; then
    step gpu-build gpu_build
    step gpu-rust gpu_rust
    step gpu-examples gpu_examples
    step gpu-vulkan gpu_vulkan
    step gpu-python gpu_python
    step gpu-sanitizer gpu_sanitizer
else
    step gpu optional gpu
fi
if [ "${DAXFS_TEST_LONG:-}" = 1 ]; then
    step long-rust long_rust
    step long-python long_python
    step long-abuse long_abuse
    step long-docs long_docs
    step long-fuzz long_fuzz
    step long-dist long_dist
    step long-cosign long_cosign
    step long-arm64 long_arm64
    step long-pages long_pages
fi
# Minutes of building, and hours of testing: with what takes long, or when it is asked for.
if [ "${DAXFS_TEST_LONG:-}" = 1 ] || [[ " ${wanted[*]} " = *" asan "* ]]; then step asan optional asan; fi
if [[ " ${wanted[*]} " = *" mutants "* ]]; then step mutants mutants; fi
step deny deny
# Fetches a database: with what takes long, or when it is asked for.
if [ "${DAXFS_TEST_LONG:-}" = 1 ] || [[ " ${wanted[*]} " = *" advisories "* ]]; then
    step advisories optional advisories
fi

printf '\n'
printf '%s\n' "${table[@]}"
printf '    %-22s %5d s\n' together "$SECONDS"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]
