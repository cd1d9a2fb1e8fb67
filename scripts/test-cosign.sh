#!/usr/bin/env bash
# Signatures beside cosign itself and a registry of containers, in a Debian system of their own (scripts/debian.sh, as
# root) without a network: cosign takes what `daxfs-pack --sign` wrote, from its folder and from the registry, and
# `daxfs verify` takes what cosign signed in the registry. Each is refused for another key, and for other content.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

REGISTRY=127.0.0.1:5000

fail() {
    echo "test-cosign.sh: $*" >&2
    exit 1
}

# refused WORDS COMMAND...: the command fails, and says so.
refused() {
    local words=$1 said
    shift
    if said=$("$@" 2>&1); then fail "passed, and should not have: $*"; fi
    grep -qF "$words" <<<"$said" || fail "$*: no \"$words\" in: $said"
}

start_registry() {
    mkdir -p /tmp/registry
    cat >/tmp/registry.yml <<END
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /tmp/registry}}
http: {addr: "$REGISTRY"}
END
    docker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        if curl -sf "http://$REGISTRY/v2/" >/dev/null; then return; fi
        sleep 0.1
    done
    cat /tmp/registry.log >&2
    fail "the registry did not answer within 10 s"
}

inside() {
    ip link set lo up
    start_registry
    cd /tmp
    export COSIGN_PASSWORD=test COSIGN_YES=true
    # Whose release it is; the transparency log is a service of the internet.
    cosign version 2>&1 | sed -n 's/^GitVersion: */cosign /p'
    local check=(cosign verify --insecure-ignore-tlog)

    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ours.pem
    openssl pkey -in ours.pem -pubout -out ours.pub
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout -out stranger.pub
    mkdir weights
    echo '{}' >weights/config.json
    head -c 100000 /dev/urandom >weights/table.bin
    daxfs-pack weights -o llama.daxfs --sign ours.pem >said
    local content digest
    content=$(sed -n 's/^content //p' said)
    [ ${#content} -eq 64 ] || fail "daxfs-pack names no content: $(cat said)"

    # Ours, by cosign: beside the image, and from a registry.
    "${check[@]}" --key ours.pub --local-image llama.daxfs.cosign >claims
    grep -qF "\"daxfs-content\":\"blake3:$content\"" claims || fail "cosign shows no content: $(cat claims)"
    refused "no matching signatures" "${check[@]}" --key stranger.pub --local-image llama.daxfs.cosign
    cosign load --dir llama.daxfs.cosign "$REGISTRY/llama:v1"
    digest=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["manifests"][0]["digest"])' \
        <llama.daxfs.cosign/index.json)
    "${check[@]}" --key ours.pub "$REGISTRY/llama@$digest" >/dev/null
    refused "no matching signatures" "${check[@]}" --key stranger.pub "$REGISTRY/llama@$digest"

    # Cosign's, by us: of the same artifact without a claim, and of another one, whose claim alone says what it is.
    cosign generate-key-pair
    refused "no matching signatures" "${check[@]}" --key cosign.pub "$REGISTRY/llama@$digest"
    cosign sign --tlog-upload=false --key cosign.key "$REGISTRY/llama@$digest"
    cosign save "$REGISTRY/llama@$digest" --dir plain
    daxfs verify llama.daxfs --key cosign.pub --signature plain
    daxfs verify llama.daxfs --key ours.pub --signature plain
    curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$REGISTRY/v2/llama/manifests/$digest" |
        python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin) | {"annotations": {"of": "another"}}))' \
            >another
    curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @another \
        "http://$REGISTRY/v2/llama/manifests/another"
    digest=sha256:$(sha256sum <another | cut -d' ' -f1)
    cosign sign --tlog-upload=false --key cosign.key "$REGISTRY/llama@$digest"
    cosign save "$REGISTRY/llama@$digest" --dir unclaimed
    refused "not valid for the content" daxfs verify llama.daxfs --key cosign.pub --signature unclaimed
    cosign sign --tlog-upload=false --key cosign.key -a daxfs-content="blake3:$content" "$REGISTRY/llama@$digest"
    cosign save "$REGISTRY/llama@$digest" --dir claimed
    daxfs verify llama.daxfs --key cosign.pub --signature claimed | grep -F "daxfs content blake3:$content"
    refused "no key that is accepted" daxfs verify llama.daxfs --key stranger.pub --signature claimed

    # Other content is not what was signed.
    echo more >weights/more
    daxfs-pack weights -o other.daxfs >/dev/null
    refused "not valid for the content" daxfs verify other.daxfs --key cosign.pub --signature claimed
    refused "not valid for the content" daxfs verify other.daxfs --key cosign.pub --signature plain
    echo "cosign and daxfs take each other's signatures"
}

if [ "${1:-}" = inside ]; then
    inside
    exit
fi
cargo build --quiet --locked --bins
# No network but a loopback of its own.
scripts/debian.sh run registry --show scripts/test-cosign.sh=/test-cosign.sh \
    --show target/debug/daxfs=/usr/local/bin/daxfs --show target/debug/daxfs-pack=/usr/local/bin/daxfs-pack \
    unshare --net bash /test-cosign.sh inside
