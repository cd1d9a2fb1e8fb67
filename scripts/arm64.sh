#!/usr/bin/env bash
# Builds and tests the project for 64-bit Arm on an x86-64 machine, as root (scripts/debian.sh):
#
#   scripts/arm64.sh test [NAME...]    the Rust tests, under the emulator of Arm programs; all, or some
#   scripts/arm64.sh wheel             the wheel of `make dist` in Arm's Python: the README's example
#   scripts/arm64.sh pages 16k|64k [NAME...]    the tests on a kernel with such pages, in an emulated machine;
#                                      without names, those of the crates that may be published
#
# NAME is a package (daxfs-cli) or a pattern of programs in folders ('tests/kernel*', cli/signed).
# All crates are built once, with what tests start, whatever is run: of some alone, dependencies have other features.
# What cannot pass is in scripts/arm64-emulator.txt and scripts/arm64-pages.txt, test by test; see scripts/arm64.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "arm64.sh: $*" >&2
    exit 1
}

TARGET=aarch64-unknown-linux-gnu
out=target/arm64
cargo=${CARGO_HOME:-$HOME/.cargo}

# in_system OPTION... COMMAND...: the project lies at /project, as it is seen, and what is built below it.
in_system() {
    local proxy=()
    [ -z "${https_proxy:-}" ] || proxy=(--env "https_proxy=$https_proxy")
    mkdir -p "$cargo" $out
    scripts/debian.sh run rust --arm64 --show "$PWD=/project" --bind "$PWD/$out=/project/target/arm64" \
        --bind "$cargo=/cargo" --env CARGO_HOME=/cargo --env CARGO_TARGET_DIR=/project/target/arm64 \
        --env CARGO_TERM_PROGRESS_WHEN=never \
        --env CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        --env CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc "${proxy[@]}" "$@"
}

# The list of what was built goes to $out/built.json. Without what helps to debug and to build again after a
# change: nobody does either here.
build() {
    in_system --env CARGO_PROFILE_DEV_DEBUG=0 --env CARGO_INCREMENTAL=0 bash -c 'cd /project &&
        cargo build --quiet --locked --target "$1" --bins --tests --message-format json-render-diagnostics \
            >/project/target/arm64/built.json' build $TARGET
}

# The C compiler is for tests that compile what they load.
run_tests() {
    build
    in_system --env CC=aarch64-linux-gnu-gcc python3 /project/scripts/arm64.py run /project/target/arm64/built.json \
        /project/scripts/arm64-emulator.txt "$@"
}

wheel() {
    grep -qsx "commit $(git rev-parse HEAD)" dist/release/BUILD || scripts/dist.sh
    in_system --show "$PWD/dist/release=/release" bash /project/scripts/arm64.sh inside_wheel
}

# Arm's Python beside that of the system, unpacked: nothing of it has to be configured, and only it is emulated.
inside_wheel() {
    local python packages
    apt-get -qq update
    python=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    mkdir -p /tmp/arm /tmp/packages
    cd /tmp/packages
    apt-get -qq -o APT::Sandbox::User=root download {libpython3,python3}."${python#python3.}"-minimal:arm64 \
        "lib$python-stdlib:arm64" libexpat1:arm64 zlib1g:arm64 libssl3t64:arm64 libffi8:arm64
    for package in *.deb; do dpkg -x "$package" /tmp/arm; done
    cd /tmp
    python3 -m venv /tmp/venv
    /tmp/venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
        --target /tmp/site -r /project/scripts/test-dist.txt
    # In a folder of its own: into one with programs pip puts no more of them.
    /tmp/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --target /tmp/own /release/daxfs-*_aarch64.whl
    # The scripts that pip writes begin with the interpreter that installs.
    sed -i "1s,.*,#!/tmp/arm/usr/bin/$python," /tmp/own/bin/daxfs /tmp/own/bin/daxfs-pack
    export PYTHONHOME=/tmp/arm/usr PYTHONPATH=/tmp/own:/tmp/site
    export LD_LIBRARY_PATH=/tmp/arm/usr/lib/aarch64-linux-gnu:/tmp/arm/lib/aarch64-linux-gnu
    "/tmp/arm/usr/bin/$python" -c 'import platform; assert platform.machine() == "aarch64", platform.machine()'
    "/tmp/arm/usr/bin/$python" /project/scripts/try_release.py /project/README.md /tmp/own/bin
}

# In the system `machine`: the guest's only file system is in memory. /guest has the programs.
inside_guest() {
    local kernel=/kernel/Image root=/guest/root
    [ "$1" = 64k ] || kernel=$(echo /arm64/boot/vmlinuz-*)
    mkdir -p $root/{bin,dev,proc,sys,tmp,run,etc}
    cp /arm64/bin/busybox $root/bin/ 2>/dev/null || cp /arm64/usr/bin/busybox $root/bin/
    cat >$root/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
ln -s /proc/self/fd /dev/fd
ip link set lo up 2>/dev/null
export PATH=/bin HOME=/tmp CARGO_TARGET_DIR=/project/target/arm64 DAXFS_TEST_DEADLINE=1200
echo "=== pages $(sed -n 's/^KernelPageSize: *//p' /proc/self/smaps | head -n 1)"
while read -r label folder path; do
    echo "=== program $label"
    cd "$folder" && CARGO_MANIFEST_DIR=$folder timeout 3600 "$path" --test-threads=2 </dev/null 2>&1
    echo "=== ended with status $?"
done </programs
poweroff -f
INIT
    chmod +x $root/init
    printf 'root:x:0:0::/tmp:/bin/sh\n' >$root/etc/passwd
    printf 'root:x:0:\n' >$root/etc/group
    (cd $root && find . | cpio --quiet -o -H newc | gzip -1 >/tmp/initrd)
    timeout 14400 qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -smp 2 -m 6G -display none -nic none -no-reboot \
        -serial mon:stdio -kernel "$kernel" -initrd /tmp/initrd \
        -append "console=ttyAMA0 rdinit=/init loglevel=4 panic=-1" </dev/null >/guest/log 2>&1 || true
    grep '^=== pages' /guest/log || { tail -n 30 /guest/log; fail "the guest did not start"; }
    grep -q "^=== pages *${1%k} kB" /guest/log || fail "these are not pages of $1"
}

pages() {
    local size=${1:-} guest=$out/guest kernel=() packages
    case $size in 16k | 64k) ;; *) fail "pages 16k or pages 64k" ;; esac
    shift
    packages=("$@")
    [ $# -gt 0 ] || packages=(dmabuf daxfs-protocol daxfs daxfs-oci mkimage daxfs-device daxfs-holder daxfs-fuse daxfs-cli
        daxfs-remote)
    if [ "$size" = 64k ]; then kernel=(--show "$(python3 scripts/arm64.py kernel)=/kernel"); fi
    build
    rm -rf "$guest"
    mkdir -p "$guest/root/project/target/arm64/tmp"
    # Nothing but what the tests read: golden files, and command lines in examples of services.
    git archive HEAD -- crates deploy tests/golden README.md | tar -x -C "$guest/root/project"
    in_system --bind "$PWD/$guest=/guest" bash -ec '
        python3 /project/scripts/arm64.py init /project/target/arm64/built.json /guest/root "$@"
        mkdir -p /guest/root/lib
        cp -L /usr/lib/aarch64-linux-gnu/{libc.so.6,libm.so.6,libgcc_s.so.1,ld-linux-aarch64.so.1} \
            /guest/root/lib/' init "${packages[@]}"
    scripts/debian.sh run machine --show "$PWD/scripts=/scripts" --bind "$PWD/$guest=/guest" "${kernel[@]}" \
        bash /scripts/arm64.sh inside_guest "$size"
    in_system --bind "$PWD/$guest=/guest" python3 /project/scripts/arm64.py read /project/target/arm64/built.json \
        /project/scripts/arm64-pages.txt /guest/log "${packages[@]}"
}

case ${1:-} in
    pages) shift; pages "$@" ;;
    inside_guest) inside_guest "$2" ;;
    test) shift; run_tests "$@" ;;
    wheel) wheel ;;
    inside_wheel) inside_wheel ;;
    *) fail "test, wheel or pages" ;;
esac
