#!/usr/bin/env bash
# Builds everything that a release consists of, from the commit that is checked out, into dist/release:
#
#   scripts/dist.sh              all parts
#   scripts/dist.sh PART...      some of: wheels commands sdist crates sbom
#   scripts/dist.sh tools        the folder of the tools, made if it is not there
#
# It runs in Debian 13 with the backports' Rust (scripts/debian.sh), as root. Tools are of locked versions:
# scripts/dist.txt and those below; SHA256SUMS covers every file, and BUILD names the commit and the versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CYCLONEDX=0.5.9
TARGETS=(x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu)
# The oldest C library that programs and wheels run with. Version 2.27 brought memfd_create, and this one, also of 2018,
# is the next that wheels have a tag for.
GLIBC=2.28
CRATES=(dmabuf daxfs-protocol daxfs daxfs-oci mkimage daxfs-device daxfs-holder daxfs-fuse daxfs-cli daxfs-remote)
out=dist/release

fail() {
    echo "dist.sh: $*" >&2
    exit 1
}

# What runs in the system: /source is the commit, /target is kept between runs, /out takes the results, VERSION and
# SOURCE_DATE_EPOCH are set.

inside_tools() {
    python3 -m venv /tools
    /tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r /dist.txt
    # Unoptimised: it runs for a second.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=/tmp/cyclonedx \
        cargo install --quiet --locked --debug --root /tools --version "$CYCLONEDX" cargo-cyclonedx
}

# Compilers and linkers that link against the oldest C library. Each tool's own option for zig has a linker of its own,
# and for another linker cargo compiles everything again, what runs while building too. So the linkers of all targets
# are set, and the same for wheels and commands.
use_zig() {
    local target arch name
    export CARGO_ZIGBUILD_ZIG_PATH=/tools/bin/python-zig
    for target in "${TARGETS[@]}"; do
        arch=${target%%-*} name=${target//-/_}
        # Without checks that zig adds, and with symbols, which it would leave out.
        printf '#!/bin/sh\nexec cargo-zigbuild zig cc -- -g -fno-sanitize=all -target %s "$@"\n' \
            "$arch-linux-gnu.$GLIBC" >"/tmp/$arch-cc"
        printf '#!/bin/sh\nexec cargo-zigbuild zig ar -- "$@"\n' >"/tmp/$arch-ar"
        chmod +x "/tmp/$arch-cc" "/tmp/$arch-ar"
        export "CARGO_TARGET_${name^^}_LINKER=/tmp/$arch-cc" "CC_$name=/tmp/$arch-cc" "AR_$name=/tmp/$arch-ar"
    done
}

inside_wheels() {
    local target
    use_zig
    for target in "${TARGETS[@]}"; do
        maturin build --release --locked --target "$target" --compatibility "manylinux_${GLIBC/./_}" --out /out
        mkdir -p "/tmp/wheel/$target"
        python3 -m zipfile -e "/out/daxfs-$VERSION-"*"_${target%%-*}.whl" "/tmp/wheel/$target"
        everything_there "/tmp/wheel/$target/daxfs/"_daxfs*.so
        any_pages "/tmp/wheel/$target/daxfs/"_daxfs*.so "$target"
        # The program alone: what fetches over a network is installed by who wants it.
        maturin build --release --locked --target "$target" --compatibility "manylinux_${GLIBC/./_}" --out /out \
            --manifest-path crates/remote/Cargo.toml
    done
}

# any_pages FILE TARGET: kernels of 64-bit Arm with pages of 64 KiB load nothing whose parts lie closer together.
any_pages() {
    local align headers
    headers=$(readelf -lW "$1")
    for align in $(awk '$1 == "LOAD" { print $NF }' <<<"$headers"); do
        case $2 in
            aarch64*) ((align >= 65536)) || fail "$1 has parts at multiples of $align: some kernels cannot load it" ;;
        esac
    done
}

# everything_there LIBRARY: what a library lacks is no error of a linker. What no library of its own has is Python's.
everything_there() {
    local lacking symbols
    symbols=$(readelf --dyn-syms -W "$1")
    lacking=$(awk '$5 == "GLOBAL" && $7 == "UND" && $8 !~ /@/ { print $8 }' <<<"$symbols" |
        grep -vE '^_?Py' || true)
    [ -z "$lacking" ] || fail "$1 needs what no library of that age has: $lacking"
}

# old_enough FILE: the program needs the C library alone, and no newer one than it says.
old_enough() {
    local needed newest
    needed=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
        grep -vE '^(libc|libm|libdl|libpthread|librt)\.so\.[0-9]+$|^ld-linux-' || true)
    [ -z "$needed" ] || fail "$1 needs libraries beside the C library: $needed"
    newest=$(readelf -V "$1" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)
    [ "$(printf 'GLIBC_%s\n%s\n' $GLIBC "$newest" | sort -V | tail -n 1)" = GLIBC_$GLIBC ] ||
        fail "$1 needs $newest, newer than $GLIBC"
}

inside_commands() {
    local target name tree program shell
    use_zig
    # The wheel's package has no programs, but its features: with it, what the wheels compiled is taken as it is. So is
    # it for the program of the other wheel, alone: its features would be everybody's.
    cargo build --release --locked "${TARGETS[@]/#/--target=}" -p daxfs-cli -p mkimage -p daxfs-python --bins
    cargo build --release --locked "${TARGETS[@]/#/--target=}" -p daxfs-remote --bins
    for target in "${TARGETS[@]}"; do
        for program in daxfs daxfs-pack daxfs-remote; do
            old_enough "/target/$target/release/$program"
            any_pages "/target/$target/release/$program" "$target"
        done
    done
    # Pages and completions are the same for both; the system's own processor writes them.
    local daxfs=/target/${TARGETS[0]}/release/daxfs
    for target in "${TARGETS[@]}"; do
        name=daxfs-$VERSION-${target%%-*}-linux
        tree=/tmp/$name
        mkdir -p "$tree"/bin "$tree"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d} \
            "$tree/share/doc/daxfs"
        cp "/target/$target/release/"{daxfs,daxfs-pack,daxfs-remote} "$tree/bin/"
        "$daxfs" man "$tree/share/man/man1"
        for program in daxfs daxfs-pack; do
            for shell in bash zsh fish; do
                "$daxfs" completions $shell --program $program >"/tmp/completions.$program.$shell"
            done
            cp "/tmp/completions.$program.bash" "$tree/share/bash-completion/completions/$program"
            cp "/tmp/completions.$program.zsh" "$tree/share/zsh/site-functions/_$program"
            cp "/tmp/completions.$program.fish" "$tree/share/fish/vendor_completions.d/$program.fish"
        done
        cp LICENSE-APACHE LICENSE-MIT README.md CHANGELOG.md "$tree/share/doc/daxfs/"
        tar -C /tmp --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
            -c "$name" | gzip -n9 >"/out/$name.tar.gz"
    done
}

inside_sdist() {
    maturin sdist --out /out
    maturin sdist --out /out --manifest-path crates/remote/Cargo.toml
}

# Each crate is built from its package, with the others' packages in place of crates.io.
inside_crates() {
    local packages=() crate options=(--locked) log=/tmp/package.log
    for crate in "${CRATES[@]}"; do packages+=(-p "$crate"); done
    # Without a public place that it could name, a manifest has no repository. Everything else is there.
    grep -q '^repository' Cargo.toml || options+=(--no-metadata)
    # Debugging information is of no use here.
    CARGO_PROFILE_DEV_DEBUG=0 cargo package "${options[@]}" "${packages[@]}" 2>&1 | tee $log
    if grep -q '^warning' $log; then fail "cargo package warns"; fi
    for crate in "${CRATES[@]}"; do cp "/target/package/$crate-$VERSION.crate" /out/; done
}

inside_sbom() {
    # From the locked set, for both processors; beside each manifest, from where they are taken.
    cargo cyclonedx --quiet --format json --spec-version 1.5 --target all --override-filename sbom
    cp crates/cli/sbom.json "/out/daxfs-$VERSION-commands.cdx.json"
    cp python/sbom.json "/out/daxfs-$VERSION-wheel.cdx.json"
    cp crates/remote/sbom.json "/out/daxfs-$VERSION-remote.cdx.json"
}

if [ "${1:-}" = inside ]; then
    shift
    cd /source
    for part in "$@"; do
        printf '\n--- %s\n' "$part"
        SECONDS=0
        # What one part sets, such as linkers, is not for the next one.
        ("inside_$part")
        printf -- '--- %s: %d s\n' "$part" $SECONDS
    done
    exit
fi

# in_system OPTION... COMMAND...
in_system() {
    local cargo=${CARGO_HOME:-$HOME/.cargo} proxy=()
    [ -z "${https_proxy:-}" ] || proxy=(--env "https_proxy=$https_proxy")
    mkdir -p "$cargo"
    scripts/debian.sh run rust --bind "$cargo=/cargo" --env CARGO_HOME=/cargo --env CARGO_TERM_PROGRESS_WHEN=never \
        --env PATH=/tools/bin:/usr/bin:/bin:/usr/sbin:/sbin "${proxy[@]}" "$@"
}

tools() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/daxfs/dist system folder new
    system=$(basename "$(scripts/debian.sh path rust)")
    folder=$cache/tools-$( (echo "$CYCLONEDX $system" && cat scripts/dist.txt) | sha256sum | cut -c -12)
    if [ ! -e "$folder" ]; then
        echo "dist.sh: making the tools, once" >&2
        mkdir -p "$cache"
        new=$(mktemp -d "$folder.XXXXXX")
        chmod 755 "$new"
        # It is /tools wherever it lies, so it may be renamed.
        if ! in_system --bind "$new=/tools" --show "$PWD=/source" --show "$PWD/scripts/dist.txt=/dist.txt" \
            bash /source/scripts/dist.sh inside tools >&2; then
            rm -rf "$new"
            fail "the tools could not be made"
        fi
        mv --no-target-directory "$new" "$folder" 2>/dev/null || rm -rf "$new"
    fi
    echo "$folder"
}

if [ "${1:-}" = tools ]; then
    tools
    exit
fi
parts=("$@")
[ $# -gt 0 ] || parts=(wheels commands sdist crates sbom)
for part in "${parts[@]}"; do
    case $part in
        wheels | commands | sdist | crates | sbom) ;;
        *) echo "dist.sh: no part named $part" >&2; exit 2 ;;
    esac
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || echo "dist.sh: uncommitted changes are left out: $commit is built" >&2
tools=$(tools)
# Another commit's results are no part of this release.
if [ $# -eq 0 ] || ! grep -qsx "commit $commit" $out/BUILD; then rm -rf $out; fi
source=target/dist/source
# Programs that were linked for another C library are not up to date, and cargo does not know.
target=target/dist/glibc-$GLIBC
mkdir -p $source "$target" $out
# What is the same as in the commit that was built before keeps its time, by which cargo knows it.
(
    git=$(git rev-parse --absolute-git-dir)
    cd $source
    export GIT_DIR=$git GIT_WORK_TREE=. GIT_INDEX_FILE=$PWD/../index
    git read-tree --reset -u "$commit"
    git clean -qfdx
)
in_system --bind "$tools=/tools" --bind "$PWD/$source=/source" --bind "$PWD/$target=/target" \
    --bind "$PWD/$out=/out" --env CARGO_TARGET_DIR=/target --env "VERSION=$version" \
    --env "SOURCE_DATE_EPOCH=$(git show -s --format=%ct "$commit")" \
    --env CARGO_PROFILE_RELEASE_DEBUG=0 --env CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    bash /source/scripts/dist.sh inside "${parts[@]}"
{
    echo "commit $commit"
    echo "version $version"
    grep -E '^(rustc|cargo|libstd-rust-dev:arm64)\b' "$(scripts/debian.sh path rust)/packages"
    sed -n 's/^\([a-z-]*==[^ ]*\).*/\1/p' scripts/dist.txt
    echo "cargo-cyclonedx==$CYCLONEDX"
} >$out/BUILD
rm -f $out/SHA256SUMS
(cd $out && sha256sum -- * >../SHA256SUMS && mv ../SHA256SUMS .)
printf '\n'
find $out -type f -printf '%11s  %f\n' | sort -k 2
