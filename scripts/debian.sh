#!/usr/bin/env bash
# Debian systems in folders of the cache: clean machines in which releases are built and tried. Root alone can make and
# enter them; no container engine is needed. What a command changes in one is thrown away when it ends, and none of the
# mounts is seen outside.
#
#   scripts/debian.sh path SYSTEM                        its folder; made first where it is not there
#   scripts/debian.sh run SYSTEM [OPTION...] COMMAND...  run a command in it
#
#   --bind FROM=TO     a folder or file of this machine, writable
#   --show FROM=TO     the same, read-only
#   --env NAME=VALUE   nothing else of the environment is seen inside
#   --arm64            programs for 64-bit Arm run as if they were native (binfmt_misc in a user namespace: Linux 6.7)
#
# SYSTEM is bookworm (Debian 12) or trixie (13), both with Python alone; or rust: Debian 13 with the backports' Rust for
# x86-64 and 64-bit Arm, the cross compiler, and the emulator of Arm programs; or machine: Debian 13 with the emulator
# of Arm machines, and in /arm64 a kernel for one with pages of 16 KiB; or registry: Debian 13 with cosign and a
# registry of containers. Each is kept in $XDG_CACHE_HOME/daxfs/debian under the hash of what is wanted in it, whole or
# not at all. Versions are those of the day: Debian's archive keeps no others. They are listed in the system's
# /packages.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/daxfs/debian

fail() {
    echo "debian.sh: $*" >&2
    exit 2
}

# define SYSTEM: sets suite, packages, and what comes from the backports.
define() {
    packages=(ca-certificates python3-venv) backports=() foreign='' unpacked=()
    case $1 in
        bookworm | trixie) suite=$1 ;;
        rust)
            suite=trixie foreign=arm64
            backports=(cargo rustc libstd-rust-dev:arm64)
            packages+=(gcc g++ libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
            # The stock tool that signatures are compared with.
            packages+=(minisign)
            ;;
        machine)
            suite=trixie foreign=arm64
            packages+=(qemu-system-arm cpio)
            # Of another processor, or of no use when installed: unpacked into /arm64.
            unpacked=(linux-image-arm64-16k busybox-static:arm64)
            ;;
        registry)
            suite=trixie
            packages+=(cosign curl docker-registry iproute2 openssl)
            ;;
        *) fail "no system named $1; there are bookworm, trixie, rust, machine and registry" ;;
    esac
}

# inside FOLDER COMMAND...: with /proc and /dev, for apt.
inside() {
    local folder=$1
    shift
    unshare --mount --pid --fork --kill-child bash -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$folder" \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        ${http_proxy:+http_proxy="$http_proxy"} "$@"
}

# fill SYSTEM FOLDER: a process of its own, so that any step that fails ends it wherever it is called from.
fill() {
    local new=$2
    define "$1"
    debootstrap --variant=minbase "$suite" "$new" ${DAXFS_DEBIAN_MIRROR:+"$DAXFS_DEBIAN_MIRROR"}
    cp --remove-destination /etc/resolv.conf "$new/etc/resolv.conf"
    if [ -n "$foreign" ]; then inside "$new" dpkg --add-architecture "$foreign"; fi
    # The same mirror's backports.
    if [ ${#backports[@]} -gt 0 ]; then
        sed -n "s/ $suite main/ $suite-backports main/p" "$new/etc/apt/sources.list" \
            >"$new/etc/apt/sources.list.d/backports.list"
    fi
    local install=(apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends)
    inside "$new" apt-get -qq -o Acquire::Retries=3 update
    if [ ${#backports[@]} -gt 0 ]; then inside "$new" "${install[@]}" -t "$suite-backports" "${backports[@]}"; fi
    inside "$new" "${install[@]}" "${packages[@]}"
    if [ ${#unpacked[@]} -gt 0 ]; then
        inside "$new" bash -ec 'mkdir /arm64 /arm64.deb && cd /arm64.deb
            kernel=$(apt-cache depends "$1:arm64" | sed -n "s/.*Depends: *\(linux-image-[^:]*\).*/\1/p" | head -n 1)
            shift
            apt-get -qq -o APT::Sandbox::User=root download "$kernel:arm64" "$@"
            for package in *.deb; do dpkg -x "$package" /arm64; done
            # No modules: what the tests need is part of the kernel.
            rm -r /arm64.deb /arm64/usr/lib/modules/*/kernel' unpack "${unpacked[@]}"
    fi
    inside "$new" dpkg-query --show >"$new/packages"
    inside "$new" apt-get clean
}

# make_system SYSTEM FOLDER: in a folder beside it first. It says itself what fails: in $(...) nothing else would.
make_system() {
    local folder=$2 new
    [ "$(id -u)" -eq 0 ] || fail "a Debian system is made and entered by root"
    command -v debootstrap >/dev/null || fail "debootstrap is missing: scripts/setup.sh dist installs it"
    new=$(mktemp -d "$folder.XXXXXX") || fail "nothing can be made in $cache"
    # The arguments are the folder's name now: it must go whatever happens.
    # shellcheck disable=SC2064
    trap "rm -rf --one-file-system '$new'" EXIT
    echo "debian.sh: making Debian $suite with ${packages[*]} ${backports[*]}, once" >&2
    bash "$0" fill "$1" "$new" >"$new.log" 2>&1 </dev/null ||
        { tail -n 20 "$new.log" >&2; rm -f "$new.log"; fail "Debian $suite could not be made"; }
    rm -f "$new.log"
    chmod 755 "$new" || fail "$new cannot be changed"
    # Another run may have been faster.
    mv --no-target-directory "$new" "$folder" 2>/dev/null || [ -e "$folder/packages" ] || fail "$folder cannot be made"
    rm -rf --one-file-system "$new"
    trap - EXIT
}

path() {
    define "$1"
    local wanted folder
    wanted=$(printf '%s\n' "$suite" "$foreign" "${backports[@]}" -- "${packages[@]}" "${unpacked[@]}" | sha256sum)
    folder=$cache/$1-${wanted:0:12}
    mkdir -p "$cache"
    [ -e "$folder/packages" ] || make_system "$1" "$folder"
    echo "$folder"
}

run() {
    local system=$1 arm64=false mounts=() environment=()
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --bind) mounts+=("bind=$2"); shift 2 ;;
            --show) mounts+=("show=$2"); shift 2 ;;
            --env) environment+=("$2"); shift 2 ;;
            --arm64) arm64=true; shift ;;
            *) break ;;
        esac
    done
    local folder
    folder=$(path "$system")
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
        mounts+=(show=/etc/ssl/certs/ca-certificates.crt=/etc/ssl/certs/ca-certificates.crt)
    fi
    mounts+=(show=/etc/resolv.conf=/etc/resolv.conf)
    # The arguments go by a file, since the script that enters is one text.
    local -x DEBIAN_SYSTEM=$folder DEBIAN_ARM64=$arm64 DEBIAN_MOUNTS
    DEBIAN_MOUNTS=$(printf '%s\n' "${mounts[@]}")
    local command=(env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
        "${environment[@]}" "$@")
    if ! $arm64; then
        unshare --mount --pid --fork --kill-child bash "$0" enter "${command[@]}"
        return
    fi
    # Every user is himself in the namespace: tests change owners. Only the parent may say so.
    local ready status=0
    ready=$(mktemp -d)
    mkfifo "$ready/go"
    unshare --user bash -c 'read -r <"$0" && exec unshare --mount --pid --fork --kill-child bash "$@"' \
        "$ready/go" "$0" enter "${command[@]}" <&0 &
    local child=$! tries=0
    until [ "$(readlink "/proc/$child/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 500 ]; then kill "$child"; fail "no user namespace can be made here"; fi
        sleep 0.02
    done
    echo "0 0 4294967295" >"/proc/$child/uid_map"
    echo "0 0 4294967295" >"/proc/$child/gid_map"
    echo >"$ready/go"
    wait $child || status=$?
    rm -r "$ready"
    return $status
}

# In namespaces of its own: lays the system out and runs the command.
enter() {
    local root=/tmp/.system kind from to line
    mkdir -p $root
    mount -t tmpfs -o mode=755 tmpfs $root
    mkdir $root/{upper,work,root}
    mount -t overlay -o "lowerdir=$DEBIAN_SYSTEM,upperdir=$root/upper,workdir=$root/work" system $root/root
    mount -t proc proc $root/root/proc
    mount --rbind /dev $root/root/dev
    mount --rbind /sys $root/root/sys
    mount -t tmpfs -o mode=1777 tmpfs $root/root/tmp
    while IFS='=' read -r kind from to; do
        if [ -d "$from" ]; then mkdir -p "$root/root/$to"; else
            mkdir -p "$root/root/$(dirname "$to")"
            [ -e "$root/root/$to" ] || : >"$root/root/$to"
        fi
        mount --bind "$from" "$root/root/$to"
        if [ "$kind" = show ]; then mount -o remount,bind,ro "$root/root/$to"; fi
    done <<<"$DEBIAN_MOUNTS"
    if $DEBIAN_ARM64; then
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc ||
            fail "programs for Arm cannot be started here: a user namespace has no binfmt_misc before Linux 6.7"
        # By descriptor (F), so that the emulator needs no place in the system that runs the program.
        line=':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        line+=':\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        printf '%s' "$line:$root/root/usr/bin/qemu-aarch64:F" >/proc/sys/fs/binfmt_misc/register
    fi
    unset DEBIAN_SYSTEM DEBIAN_ARM64 DEBIAN_MOUNTS
    # Not exec: this shell is the namespace's first process, and ends what lost its parent.
    chroot $root/root "$@"
}

[ $# -ge 2 ] || fail "debian.sh path SYSTEM, or debian.sh run SYSTEM [OPTION...] COMMAND..."
case $1 in
    path | run | enter | fill) "$@" ;;
    *) fail "no command $1" ;;
esac
