//! Signatures as cosign makes them, in OCI image layouts: the same verbs as for minisign, and what openssl says of
//! them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::Place;
use common::{Fixture, Run};
use daxfs::Image;
use daxfs::signature::{beside, layout_beside};
use mkimage::Signer;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests").join(name)
}

fn sign(image: &Path, secret: &str) -> PathBuf {
    let content = Image::open(image).unwrap().content_hash().unwrap();
    Signer::open(&key(secret), None).unwrap().write(&content, image, false).unwrap()
}

/// An image that was signed on P-256, with the public keys beside it.
fn signed() -> Fixture {
    let fixture = Fixture::new();
    fs::copy(key("cosign/key.pub"), fixture.path("key.pub")).unwrap();
    fs::copy(key("minisign/minisign.pub"), fixture.path("minisign.pub")).unwrap();
    sign(&fixture.image(), "cosign/key.pem");
    fixture
}

fn differs(run: &Run, what: &str) {
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.text().contains(what), "{what}: {run:?}");
}

#[test]
fn verify_takes_the_layout_of_this_content_alone() {
    let fixture = signed();
    let verify = |key: &str| fixture.run(&["verify", "IMAGE", "--key", key]);
    let said = verify("DIR/key.pub").ok();
    assert!(said.contains("signature by cosign (ECDSA P-256) (reference:image.daxfs"), "{said}");
    let run = fixture.run(&["verify", "--json", "IMAGE", "--key", "DIR/key.pub"]);
    assert_eq!(run.json()["checked"]["signed_by"], "cosign (ECDSA P-256)");
    assert!(run.json()["checked"]["signed"].as_str().unwrap().contains("daxfs content blake3:"), "{run:?}");
    differs(&verify("DIR/minisign.pub"), "is one of cosign (ECDSA P-256), and the keys are of minisign");

    // Whichever of two signatures is the key's own.
    sign(&fixture.image(), "minisign/minisign.key");
    assert!(verify("DIR/minisign.pub").ok().contains("signature by minisign"));
    assert!(verify("DIR/key.pub").ok().contains("signature by cosign"));
    fs::remove_file(beside(&fixture.image())).unwrap();

    let layout = layout_beside(&fixture.image());
    fs::rename(&layout, fixture.path("elsewhere")).unwrap();
    differs(&verify("DIR/key.pub"), "looked for in IMAGE.minisig and IMAGE.cosign");
    fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub", "--signature", "DIR/elsewhere"]).ok();
    fs::remove_file(fixture.path("elsewhere/index.json")).unwrap();
    let run = fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub", "--signature", "DIR/elsewhere"]);
    assert!(run.status == 2 && run.stderr.contains("OCI image layout"), "{run:?}");

    // A replayed one, and bytes that are not those of the content.
    sign(&fixture.image(), "cosign/key.pem");
    fs::write(fixture.tree().join("new"), "new").unwrap();
    fixture.pack(|packer| packer);
    differs(&verify("DIR/key.pub"), "signature: the signature is not valid for the content blake3:");
    sign(&fixture.image(), "cosign/key.pem");
    verify("DIR/key.pub").ok();
    let end = fixture.offset_of("/new") + 2;
    fixture.poke(end, b"x");
    differs(&verify("DIR/key.pub"), "hash: /new: BLAKE3 is ");
    differs(&verify("DIR/key.pub"), "signature: the signature is not valid for the content");
}

#[test]
fn a_holder_passes_layouts_on_and_holds_nothing_else() {
    let place = Place(signed());
    let holder = place.serve(&["--require-signed", "DIR/key.pub", "first=IMAGE"]);
    place.run(&["load", "good", "IMAGE"]).ok();
    for name in ["first", "good"] {
        let run = place.run(&["verify", &place.address(name), "--key", "DIR/key.pub"]);
        assert!(run.ok().contains("signature by cosign"), "{name}");
    }
    let other = place.other_image();
    assert!(place.run(&["swap", "good", &other]).error().contains("no signature"));
    let layout = layout_beside(&place.0.image());
    let replayed = place.run(&["swap", "good", &other, "--signature", layout.to_str().unwrap()]).error();
    assert!(replayed.contains("not valid for the content"), "{replayed}");
    sign(Path::new(&other), "minisign/minisign.key");
    let minisign = place.run(&["swap", "good", &other]).error();
    assert!(minisign.contains("is one of minisign, and the keys are of cosign"), "{minisign}");
    sign(Path::new(&other), "cosign/key.pem");
    place.run(&["swap", "good", &other]).ok();
    // The next holder takes the signatures with the images.
    let second = place.serve(&["--takeover", "--require-signed", "DIR/key.pub"]);
    drop(holder);
    let run = place.run(&["verify", &place.address("first"), "--key", "DIR/key.pub"]);
    assert!(run.ok().contains("signature by cosign"));
    drop(second);
}

/// A layout that is damaged, or a link to one, is nobody's choice: it is left out.
#[test]
fn what_is_beside_and_no_layout_ends_no_holder() {
    let place = Place(signed());
    let _holder = place.serve(&[]);
    let index = layout_beside(&place.0.image()).join("index.json");
    fs::write(index, "{}").unwrap();
    let run = place.run(&["load", "damaged", "IMAGE"]);
    assert!(
        run.status == 0 && run.stderr.contains("left out") && run.stderr.contains("it is not an index"),
        "{run:?}"
    );
}

/// The payload and its signature are those that `openssl dgst -verify` takes, as the layout has them.
#[test]
fn openssl_agrees() {
    let fixture = signed();
    let layout = layout_beside(&fixture.image());
    let read =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &serde_json::Value| {
        layout.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let index = read(&layout.join("index.json"));
    let of_kind = |kind: &str| {
        let manifests = index["manifests"].as_array().unwrap();
        manifests.iter().find(|manifest| manifest["annotations"]["kind"] == kind).unwrap()
    };
    let image = &of_kind("dev.cosignproject.cosign/image")["digest"];
    let signatures = of_kind("dev.cosignproject.cosign/sigs");
    let tag = format!("{}.sig", image.as_str().unwrap().replace(':', "-"));
    assert_eq!(signatures["annotations"]["org.opencontainers.image.ref.name"], tag);
    let layer = read(&blob(&signatures["digest"]))["layers"][0].clone();
    let payload = blob(&layer["digest"]);
    assert_eq!(read(&payload)["critical"]["image"]["docker-manifest-digest"], *image);
    let content = Image::open(fixture.image()).unwrap().content_hash().unwrap();
    let statement = blob(&read(&blob(image))["layers"][0]["digest"]);
    assert_eq!(fs::read_to_string(statement).unwrap(), daxfs::signature::statement(&content));

    fs::write(
        fixture.path("sig.b64"),
        layer["annotations"]["dev.cosignproject.cosign/signature"].as_str().unwrap(),
    )
    .unwrap();
    let openssl = |args: &[&str], paths: &[&Path]| {
        let output = Command::new("openssl").args(args).args(paths).stdin(Stdio::null()).output();
        match output {
            Ok(output) => Some(output),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        }
    };
    let (encoded, der) = (fixture.path("sig.b64"), fixture.path("sig.der"));
    let decode = ["base64", "-d", "-A", "-in", encoded.to_str().unwrap(), "-out", der.to_str().unwrap()];
    let Some(decoded) = openssl(&decode, &[]) else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "openssl is not installed");
        eprintln!("not run: openssl is not installed");
        return;
    };
    assert!(decoded.status.success(), "{decoded:?}");
    let public = fixture.path("key.pub");
    let verify =
        ["dgst", "-sha256", "-verify", public.to_str().unwrap(), "-signature", der.to_str().unwrap()];
    let verified = openssl(&verify, &[&payload]).unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let other = openssl(&verify, &[&fixture.path("sig.b64")]).unwrap();
    assert!(!other.status.success(), "{other:?}");
}
