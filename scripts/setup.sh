#!/usr/bin/env bash
# Installs what the tests and the demo need beyond Rust and Python 3:
#
#   scripts/setup.sh system    programs from Debian's packages, as root; elsewhere it says what is missing and goes on
#   scripts/setup.sh python    .venv with the test tools and the libraries that the tests compare with, torch among them
#   scripts/setup.sh demo      .venv with what the demo needs; that of the tests has it, too
#   scripts/setup.sh vulkan    Mesa's software Vulkan driver, unpacked into a cache folder; needs no root and installs nothing
#   scripts/setup.sh peers     the file system makers that the benchmarks measure against, from Debian's packages
#   scripts/setup.sh dist      what makes Debian systems, in which releases are built and tried
#
# Safe to run again: what is there is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has() {
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]
}

# install PACKAGE...: with apt, as root. What cannot be installed is named; whoever needs it will say so again.
install() {
    if [ $# -eq 0 ]; then
        echo "setup: every program is there"
        return
    fi
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        echo "setup: missing, install as root: $*"
        return
    fi
    echo "setup: installing $*"
    # The package lists may be absent or old: they are brought up to date only when the first try fails.
    if ! apt_install "$@" >/dev/null 2>&1; then
        apt-get -qq -o Acquire::Retries=3 update </dev/null || true
        apt_install "$@" >/dev/null || echo "setup: apt-get could not install all of $*"
    fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends "$@" </dev/null
}

system() {
    local packages=()
    has cc || packages+=(gcc libc6-dev)
    has c++ || packages+=(g++) # libFuzzer is C++
    has qemu-system-x86_64 || packages+=(qemu-system-x86)
    # The guest's first program must do without the dynamic linker.
    if ! has busybox || ldd "$(command -v busybox)" >/dev/null 2>&1; then packages+=(busybox-static); fi
    has readelf || packages+=(binutils) # torch without CUDA
    has debootstrap || packages+=(debootstrap) # the guest with systemd
    has zstd || packages+=(zstd) # golden images as seeds of the fuzzers
    [ -e /etc/OpenCL/vendors/pocl.icd ] || packages+=(pocl-opencl-icd ocl-icd-libopencl1) # an OpenCL device
    has minisign || packages+=(minisign) # the stock tool that signatures are compared with
    has umoci || packages+=(umoci) # the stock tool that layers are compared with
    has crun || packages+=(crun)   # runtimes of bundles
    has runc || packages+=(runc)
    has openssl || packages+=(openssl) # the same for those of cosign
    has fsck.erofs || packages+=(erofs-utils) # the stock tool that judges EROFS views
    has mkfs.xfs || packages+=(xfsprogs) # a file system with clones
    has fusermount3 || packages+=(fuse3) # mounts of users who are not root
    has newuidmap || packages+=(uidmap) # containers of users who are not root
    has jq || packages+=(jq) # commands of the documents
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
    install "${packages[@]}"
}

vulkan() {
    local variables
    if variables=$(tests/kernel/vulkan.py); then
        echo "setup: the Vulkan driver is in $(sed -n 's/^LD_LIBRARY_PATH=//p' <<<"$variables")"
    else
        echo "setup: no Vulkan driver was fetched"
    fi
}

peers() {
    local packages=()
    has mkfs.erofs || packages+=(erofs-utils)
    has mksquashfs || packages+=(squashfs-tools)
    has mkfs.xfs || packages+=(xfsprogs)
    has mkfs.btrfs || packages+=(btrfs-progs)
    has umoci || packages+=(umoci)
    has skopeo || packages+=(skopeo)
    install "${packages[@]}"
}

dist() {
    local packages=()
    has debootstrap || packages+=(debootstrap)
    has zstd || packages+=(zstd) # a kernel for emulated Arm machines
    install "${packages[@]}"
}

python() {
    "${PYTHON:-python3}" scripts/environment.py link tests
}

demo() {
    "${PYTHON:-python3}" scripts/environment.py link demo
}

for part in "$@"; do
    case $part in
        system | python | demo | vulkan | peers | dist) "$part" ;;
        *) echo "setup.sh: no part named $part" >&2; exit 2 ;;
    esac
done
