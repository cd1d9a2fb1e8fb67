#!/usr/bin/env bash
# Builds the shaders of the tests and examples from their sources: after a change of a *.comp file.
#
# The results are checked in, so that nobody else needs a shader compiler (glslangValidator, Debian's glslang-tools). They
# hold the text of their source, and a test compares it with the file beside them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v glslangValidator >/dev/null || { echo "shaders: no glslangValidator: install glslang-tools" >&2; exit 2; }

# build SOURCE RESULT [OPTION...]: -g puts the source into the result
build() {
    local folder=${1%/*} source=${1##*/} result=$2
    shift 2
    (cd "$folder" && glslangValidator --quiet -V -g --target-env vulkan1.2 "$@" -o "$result" "$source")
    echo "shaders: $folder/$result"
}

build tests/shaders/hash.comp hash-binding.spv
build tests/shaders/hash.comp hash-address.spv -DADDRESS
build examples/rust/04-vulkan-lookup/gather.comp gather.spv
