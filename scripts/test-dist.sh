#!/usr/bin/env bash
# Tries the files of a release as users would, in clean Debian systems without the project (scripts/debian.sh, as root):
#
#   scripts/test-dist.sh             everything in dist/release, which is built first where it is not of this commit
#   scripts/test-dist.sh TRIAL...    some of: sums bookworm trixie sdist
#
# bookworm and trixie are Debian 12 and 13 with Python and no compiler: the wheel is installed into a fresh virtual
# environment, and the commands are unpacked. sdist builds the source distribution where there is Rust and a C compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "test-dist.sh: $*" >&2
    exit 1
}

venv() {
    python3 -m venv /tmp/venv
    pip=(/tmp/venv/bin/python -m pip --quiet --disable-pip-version-check --retries 5)
    "${pip[@]}" install --require-hashes --no-deps --only-binary=:all: -r /numpy.txt
}

# In the system: VERSION is set, /release has the files, /README.md and the scripts are the checkout's.

inside_wheel() {
    local tool pip
    for tool in cargo rustc cc gcc; do
        if command -v $tool >/dev/null; then fail "$tool is there: it would not be seen that the wheel needs none"; fi
    done
    venv
    "${pip[@]}" install --no-index /release/daxfs{,_remote}-"$VERSION"-*_x86_64.whl
    cd /tmp
    /tmp/venv/bin/python /try_release.py /README.md
}

inside_commands() {
    local tree=/usr/local page said install
    # As the README says.
    install=$(sed -n 's/^\(tar -xzf daxfs-[^#]*\).*/\1/p' /README.md)
    [ -n "$install" ] || fail "the README does not say how to install the commands"
    (cd /release && bash -ec "sha256sum --quiet --check --ignore-missing SHA256SUMS; $install")
    said=$(daxfs --version)
    [ "$said" = "daxfs $VERSION" ] || fail "daxfs --version says $said"
    said=$(daxfs-remote --version)
    [ "$said" = "daxfs-remote $VERSION" ] || fail "daxfs-remote --version says $said"
    mkdir -p /tmp/weights
    echo '{}' >/tmp/weights/config.json
    daxfs-pack /tmp/weights -o /tmp/commands.daxfs
    daxfs verify /tmp/commands.daxfs /tmp/weights
    for page in daxfs daxfs-pack daxfs-serve daxfs-verify; do
        grep -q '^\.TH' "$tree/share/man/man1/$page.1" || fail "no manual page $page"
    done
    for page in daxfs daxfs-pack; do
        bash -n "$tree/share/bash-completion/completions/$page"
        # shellcheck disable=SC1090
        (. "$tree/share/bash-completion/completions/$page" && complete -p $page >/dev/null) || fail "no completion of $page"
        [ -s "$tree/share/zsh/site-functions/_$page" ] && [ -s "$tree/share/fish/vendor_completions.d/$page.fish" ] ||
            fail "completions of $page are missing"
    done
}

inside_sdist() {
    local pip
    venv
    # The build's own environment takes maturin at the locked version.
    sed -n 's/^\(maturin==[^ ]*\).*/\1/p' /dist.txt >/tmp/constraint.txt
    PIP_CONSTRAINT=/tmp/constraint.txt "${pip[@]}" install --no-deps "/release/daxfs-$VERSION.tar.gz" \
        "/release/daxfs_remote-$VERSION.tar.gz"
    cd /tmp
    /tmp/venv/bin/python /try_release.py /README.md
}

if [ "${1:-}" = inside ]; then
    shift
    for trial in "$@"; do "inside_$trial"; done
    exit
fi

# in_system SYSTEM OPTION... TRIAL...
in_system() {
    local system=$1
    shift
    scripts/debian.sh run "$system" --show "$PWD/dist/release=/release" --show "$PWD/README.md=/README.md" \
        --show "$PWD/scripts/test-dist.sh=/test-dist.sh" --show "$PWD/scripts/try_release.py=/try_release.py" \
        --show "$PWD/scripts/test-dist.txt=/numpy.txt" --show "$PWD/scripts/dist.txt=/dist.txt" --env "VERSION=$version" \
        "$@"
}

sums() {
    (cd dist/release && sha256sum --quiet --check SHA256SUMS)
    [ "$(find dist/release -type f ! -name SHA256SUMS | wc -l)" -eq "$(wc -l <dist/release/SHA256SUMS)" ] ||
        fail "SHA256SUMS does not cover every file"
    local document
    for document in dist/release/*.cdx.json; do
        python3 - "$document" "$version" <<'PY'
import json, sys
document = json.load(open(sys.argv[1]))
names = {part["name"] for part in document["components"]}
assert document["bomFormat"] == "CycloneDX" and {"daxfs", "dmabuf", "blake3", "zerocopy"} <= names, sorted(names)
assert ("reqwest" in names) == ("remote" in sys.argv[1]), "what talks to a network is in a program of its own"
assert document["metadata"]["component"]["version"] == sys.argv[2]
assert all("licenses" in part for part in document["components"] if part["name"] != "r-efi"), "a licence is missing"
PY
    done
}

bookworm() { in_system bookworm bash /test-dist.sh inside wheel commands; }
trixie() { in_system trixie bash /test-dist.sh inside wheel commands; }

sdist() {
    local cargo=${CARGO_HOME:-$HOME/.cargo}
    mkdir -p "$cargo" target/dist/sdist
    # Crates are not downloaded twice, nor compiled. Not optimised: what is tried is that it can be built.
    in_system rust --bind "$cargo=/cargo" --bind "$PWD/target/dist/sdist=/target" --env CARGO_HOME=/cargo \
        --env CARGO_TARGET_DIR=/target --env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 bash /test-dist.sh inside sdist
}

trials=("$@")
[ $# -gt 0 ] || trials=(sums bookworm trixie sdist)
for trial in "${trials[@]}"; do
    case $trial in sums | bookworm | trixie | sdist) ;; *) echo "test-dist.sh: no trial named $trial" >&2; exit 2 ;; esac
done
grep -qsx "commit $(git rev-parse HEAD)" dist/release/BUILD && [ -e dist/release/SHA256SUMS ] || scripts/dist.sh
version=$(sed -n 's/^version //p' dist/release/BUILD)
for trial in "${trials[@]}"; do
    printf '\n=== %s\n' "$trial"
    "$trial"
done
printf '\n%d passed, 0 failed\n' ${#trials[@]}
