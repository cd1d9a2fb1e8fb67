#!/usr/bin/env bash
# Changes the code in small ways, one at a time, and has the tests of the crate find each of them: scripts/mutants.sh [SHARD]
#
#   scripts/mutants.sh             all files below
#   scripts/mutants.sh 3/8         the third of eight parts (from 0/8 on)
#   MUTANTS_FILES="FILE..." ...    these files alone
#   MUTANTS_TESTS="--lib" ...      with these tests alone, which is quicker; what they miss is run again with all
#
# A change that no test finds has to be in tests/mutants/survivors.txt, with the reason why none can; one in there that is
# found after all is named, to be taken out. Lines do not count there, as they move with every change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=27.1.0
known=tests/mutants/survivors.txt
output=${CARGO_TARGET_DIR:-target}/mutants
tool=${XDG_CACHE_HOME:-$HOME/.cache}/daxfs/mutants-$version
if command -v cargo-mutants >/dev/null; then
    mutants=cargo-mutants
else
    [ -x "$tool/bin/cargo-mutants" ] ||
        cargo install --quiet --locked --root "$tool" --version "$version" cargo-mutants
    mutants=$tool/bin/cargo-mutants
fi

# Crate, and the files whose changes its own tests have to find.
files() {
    local file
    for file in "$@"; do
        case $file in
            crates/dmabuf/*) echo "dmabuf $file" ;;
            crates/daxfs/*) echo "daxfs $file" ;;
            crates/protocol/*) echo "daxfs-protocol $file" ;;
            crates/holder/*) echo "daxfs-holder $file" ;;
            *) echo "mutants.sh: $file is of no crate that is tested so" >&2; exit 2 ;;
        esac
    done
}

wanted=()
read -ra wanted <<<"${MUTANTS_FILES:-}"
if [ ${#wanted[@]} -eq 0 ]; then
    mapfile -t wanted < <(git ls-files 'crates/dmabuf/src/*.rs' 'crates/daxfs/src/region/*.rs' 'crates/daxfs/src/snapshot/*.rs' \
        'crates/daxfs/src/image*.rs' 'crates/daxfs/src/file.rs' 'crates/daxfs/src/generation.rs' 'crates/daxfs/src/tensor/*.rs' \
        'crates/protocol/src/*.rs' 'crates/holder/src/*.rs')
fi
# A file of no such crate ends this here, and not in the middle.
list=$(files "${wanted[@]}")
shard=()
[ -z "${1:-}" ] || shard=(--shard "$1")

# One place for what is built, so that the next run finds the dependencies. What is not changed is not built again.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants-build
export CARGO_TARGET_DIR CARGO_INCREMENTAL=1
all="--lib --tests"

# run CRATE OUTPUT TESTS OPTION...: with these tests, and nothing else is built.
run() {
    local crate=$1 to=$2 code=0 word
    for word in $3; do set -- "$@" --cargo-arg="$word"; done
    shift 3
    # 2: some were not found; 3: some took too long, which is found, too.
    "$mutants" mutants --package "$crate" --test-package "$crate" --jobs 1 --no-shuffle --timeout 120 \
        --build-timeout 600 --output "$to" "$@" || code=$?
    case $code in
        0 | 2 | 3) ;;
        *) echo "mutants.sh: $crate: cargo mutants ended with $code"; status=1 ;;
    esac
}

rm -rf "$output"
mkdir -p "$output"
status=0
while read -r crate; do
    options=()
    while read -r _ file; do options+=(--file "$file"); done < <(grep "^$crate " <<<"$list")
    run "$crate" "$output/$crate" "${MUTANTS_TESTS:-$all}" "${options[@]}" "${shard[@]}"
    missed=$output/$crate/mutants.out/missed.txt
    if [ -n "${MUTANTS_TESTS:-}" ] && [ -s "$missed" ]; then
        # By their whole names, as patterns that stand for themselves; those that delete a field come all the same.
        while read -r name; do options+=(--re "^$(sed 's/[][\\.*^$+?(){}|]/\\&/g' <<<"$name")\$"); done <"$missed"
        : >"$missed"
        run "$crate" "$output/$crate-again" "$all" "${options[@]}"
    fi
done < <(cut -d' ' -f1 <<<"$list" | sort -u)

# PATH: CHANGE, without the place in the file.
strip() {
    sed 's/^\([^:]*\):[0-9]*:[0-9]*: /\1: /' | sort -u
}
cat "$output"/*/mutants.out/missed.txt 2>/dev/null | strip >"$output/missed"
cat "$output"/*/mutants.out/caught.txt "$output"/*/mutants.out/timeout.txt 2>/dev/null | strip >"$output/caught"
sed -n 's/^\(crates[^#]*[^# ]\) *#.*/\1/p' "$known" | sort -u >"$output/known"
echo "mutants: $(cat "$output"/*/mutants.out/caught.txt "$output"/*/mutants.out/timeout.txt | wc -l) found," \
    "$(cat "$output"/*/mutants.out/missed.txt | wc -l) not"
if new=$(comm -23 "$output/missed" "$output/known") && [ -n "$new" ]; then
    echo "mutants: no test finds these, and $known does not say why:"
    echo "$new"
    status=1
fi
# One line may stand for several changes of one function: it has gone when none of them is missed any more.
if gone=$(comm -12 "$output/known" "$output/caught" | comm -23 - "$output/missed") && [ -n "$gone" ]; then
    echo "mutants: found by now, to be taken out of $known:"
    echo "$gone"
fi
exit $status
