//! Signatures of contents: what is signed is verified and held, and nothing else where that is asked for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::Place;
use common::{Fixture, Run};
use daxfs::signature::{PublicKeys, SignatureError, beside};
use daxfs::{Error, Image, OpenOptions, Verify};
use mkimage::Signer;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A key of the stock tool, without a password.
fn stock(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/minisign").join(name)
}

const OTHER_KEY: &str = "untrusted comment: minisign public key E7620F1842B4E81F\n\
    RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

/// Puts the public keys beside the image: `key.pub`, which signs, and `other.pub`.
fn put_keys(fixture: &Fixture) {
    fs::copy(stock("minisign.pub"), fixture.path("key.pub")).unwrap();
    fs::write(fixture.path("other.pub"), OTHER_KEY).unwrap();
}

fn sign(image: &Path) -> PathBuf {
    let content = Image::open(image).unwrap().content_hash().unwrap();
    Signer::open(&stock("minisign.key"), None).unwrap().write(&content, image, false).unwrap()
}

fn signed() -> Fixture {
    let fixture = Fixture::new();
    put_keys(&fixture);
    sign(&fixture.image());
    fixture
}

fn differs(run: &Run, what: &str) {
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.text().contains(what), "{what}: {run:?}");
}

#[test]
fn verify_takes_the_signature_of_this_content_alone() {
    let fixture = signed();
    let verify = |key: &str| fixture.run(&["verify", "IMAGE", "--key", key]);
    let said = verify("DIR/key.pub").ok();
    assert!(
        said.contains("signature by minisign (timestamp:") && said.contains("file:image.daxfs"),
        "{said}"
    );
    let run = fixture.run(&["verify", "--json", "IMAGE", "--key", "DIR/key.pub"]);
    assert!(run.json()["checked"]["signed"].as_str().unwrap().contains("daxfs content blake3:"), "{run:?}");
    differs(&verify("DIR/other.pub"), "signature: the signature was made by no key that is accepted");
    let error = verify("IMAGE").error();
    assert!(error.contains("is no public key") || error.contains("more than 65536"), "{error}");

    // Cut short, missing, of another image, of nobody.
    let signature = beside(&fixture.image());
    let text = fs::read_to_string(&signature).unwrap();
    fs::write(&signature, &text[..text.len() / 2]).unwrap();
    differs(&verify("DIR/key.pub"), "signature: the signature is none of minisign's or cosign's");
    // What is no text hides no other difference, and is one.
    fs::write(&signature, [0xff]).unwrap();
    differs(&verify("DIR/key.pub"), "signature: ");
    fs::rename(&signature, fixture.path("elsewhere")).unwrap();
    differs(&verify("DIR/key.pub"), "signature: the image has no signature");
    fs::write(fixture.path("elsewhere"), &text).unwrap();
    fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub", "--signature", "DIR/elsewhere"]).ok();
    let run = fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub", "--signature", "DIR/none"]);
    assert_eq!(run.status, 2, "{run:?}");
    fs::write(fixture.tree().join("new"), "new").unwrap();
    fixture.pack(|packer| packer);
    fs::write(&signature, &text).unwrap();
    differs(&verify("DIR/key.pub"), "signature: the signature is not valid for the content blake3:");
    // A forged file is another content, whatever the image says of itself.
    sign(&fixture.image());
    verify("DIR/key.pub").ok();
    let end = fixture.offset_of("/new") + 2;
    fixture.poke(end, b"x");
    differs(&verify("DIR/key.pub"), "hash: /new: BLAKE3 is ");
    differs(&verify("DIR/key.pub"), "signature: the signature is not valid for the content");
    // Without hashes there is nothing to sign.
    fixture.pack(|packer| packer.plain(true));
    assert!(verify("DIR/key.pub").error().contains("no content hash"));
}

/// No hash and no signature covers what lies beside the index, so there is nothing.
#[test]
fn nothing_is_beside_the_index_of_what_is_signed() {
    let fixture = signed();
    fs::remove_dir_all(fixture.tree()).unwrap();
    fs::create_dir(fixture.tree()).unwrap();
    fs::write(fixture.tree().join("config.json"), "{}").unwrap();
    fixture.pack(|packer| packer.erofs(false));
    sign(&fixture.image());
    fixture.add_beside_index();
    let run = fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub"]);
    differs(
        &run,
        "index: /.daxfs/extra: /.daxfs must hold the index, the EROFS view, a configuration and nothing else",
    );
    // Without an index the place is as empty, and it is no link.
    let place = fixture.tree().join("_daxfs");
    let verify = || {
        fixture.pack(|packer| packer.plain(true));
        fixture.rename_to_index_directory();
        fixture.run(&["verify", "IMAGE"])
    };
    fs::create_dir(&place).unwrap();
    fs::write(place.join("evil.py"), "evil").unwrap();
    differs(
        &verify(),
        "index: /.daxfs/evil.py: /.daxfs must hold the index, the EROFS view, a configuration and nothing else",
    );
    fs::rename(&place, fixture.tree().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &place).unwrap();
    differs(
        &verify(),
        "index: /.daxfs: /.daxfs must hold the index, the EROFS view, a configuration and nothing else",
    );
}

#[test]
fn opening_takes_the_signature_of_this_content_alone() {
    let fixture = signed();
    let keys = PublicKeys::read(&fixture.path("key.pub")).unwrap();
    let text = fs::read_to_string(beside(&fixture.image())).unwrap();
    let options =
        |signature: Option<&str>| OpenOptions::new().signed(keys.clone(), signature.map(str::to_owned));
    options(Some(&text)).open(fixture.image()).unwrap();
    options(Some(&text)).verify(Verify::Stored).open(fixture.image()).unwrap();
    let missing = options(None).open(fixture.image()).unwrap_err();
    assert!(matches!(missing, Error::Signature(SignatureError::Missing { .. })), "{missing}");
    // The signature is right, and the bytes are not.
    let end = fixture.offset_of("/sharded/model-00002-of-00002.safetensors") + 1;
    fixture.poke(end, &[0x55]);
    let forged = options(Some(&text)).open(fixture.image()).unwrap_err();
    assert!(matches!(forged, Error::WrongHash { .. }), "{forged}");
    fs::write(fixture.tree().join("new"), "new").unwrap();
    fixture.pack(|packer| packer);
    for verify in [Verify::Full, Verify::Lazy, Verify::Stored] {
        let replayed = options(Some(&text)).verify(verify).open(fixture.image()).unwrap_err();
        assert!(matches!(replayed, Error::Signature(SignatureError::Invalid { .. })), "{replayed}");
    }
}

#[test]
fn a_holder_holds_what_is_signed_and_nothing_else() {
    let place = Place(signed());
    let holder = place.serve(&["--require-signed", "DIR/key.pub"]);
    // The signature beside the file goes with it, to the holder and to its clients.
    place.run(&["load", "good", "IMAGE"]).ok();
    let run = place.run(&["verify", &place.address("good"), "--key", "DIR/key.pub"]);
    assert!(run.text().contains("signature by minisign (timestamp:") && run.status == 0, "{run:?}");
    differs(&place.run(&["verify", &place.address("good"), "--key", "DIR/other.pub"]), "made by no key");
    let generation = place.generation("good");

    let other = place.other_image();
    let none = place.run(&["swap", "good", &other]).error();
    assert!(none.contains("no signature") && none.contains("--require-signed"), "{none}");
    let signature = beside(&place.0.image());
    let replayed = place.run(&["swap", "good", &other, "--signature", signature.to_str().unwrap()]).error();
    assert!(replayed.contains("not valid for the content"), "{replayed}");
    fs::write(place.0.path("nonsense"), "nonsense").unwrap();
    let nonsense = place.run(&["swap", "good", &other, "--signature", "DIR/nonsense"]).error();
    assert!(nonsense.contains("none of minisign's or cosign's"), "{nonsense}");
    fs::write(place.0.path("long"), "x".repeat(5000)).unwrap();
    let long = place.run(&["swap", "good", &other, "--signature", "DIR/long"]).error();
    assert!(long.contains("more than 4000 bytes"), "{long}");
    // A directory is packed, and signed is what comes of it.
    let directory = place.run(&["load", "tree", "TREE"]).error();
    assert!(directory.contains("no signature"), "{directory}");
    let shared = place.run(&["load", "shared", "IMAGE", "--shared"]).error();
    assert!(shared.contains("sealed memory alone"), "{shared}");
    let heap = place.run(&["load", "heap", "IMAGE", "--into", "udmabuf"]).error();
    assert!(heap.contains("sealed memory alone"), "{heap}");
    // Not even with an honest signature: the file is another than the index says.
    let end = place.0.offset_of("/config.json");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&fs::File::open(place.0.image()).unwrap(), &mut byte, end)
        .unwrap();
    place.0.poke(end, &[byte[0] ^ 1]);
    let forged = place.run(&["load", "forged", "IMAGE"]).error();
    assert!(forged.contains("/config.json"), "{forged}");
    assert_eq!((place.generation("good"), place.generation("forged")), (generation, None));
    let names = place.run(&["ps", "--json"]).json()["images"].as_array().unwrap().len();
    assert_eq!(names, 1);
    sign(Path::new(&other));
    place.run(&["swap", "good", &other]).ok();
    drop(holder);
}

#[test]
fn a_directory_is_held_when_what_comes_of_it_is_signed() {
    let place = Place(signed());
    let holder = place.serve(&["tree=TREE"]);
    let listed = place.run(&["ps", "--json"]).json();
    let content = listed["images"][0]["content_hash"].as_str().unwrap().to_owned();
    drop(holder);
    let content: daxfs::ContentHash = content.parse().unwrap();
    Signer::open(&stock("minisign.key"), None).unwrap().write(&content, &place.0.tree(), false).unwrap();
    let _holder = place.serve(&["--require-signed", "DIR/key.pub", "first=TREE"]);
    place.run(&["load", "second", "TREE"]).ok();
    fs::write(place.0.tree().join("one-more"), "x").unwrap();
    assert!(place.run(&["load", "third", "TREE"]).error().contains("not valid for the content"));
}

#[test]
fn what_serve_is_given_is_signed() {
    let place = Place(signed());
    fs::remove_file(beside(&place.0.image())).unwrap();
    for (args, why) in [
        (&["serve", "--require-signed", "DIR/key.pub", "a=IMAGE"][..], "no signature"),
        (&["serve", "--require-signed", "DIR/none"], "No such file"),
        (&["serve", "--require-signed", "IMAGE"], "is no public key"),
        (&["serve", "--require-signed", "DIR/key.pub", "--shared"], "cannot be used with"),
        (&["serve", "--require-signed", "DIR/key.pub", "--into", "udmabuf"], "is for sealed memory"),
    ] {
        let run = place.run(args);
        assert!(run.status == 2 && (run.stderr.contains(why) || run.stderr.contains("more than")), "{run:?}");
    }
}

/// Images go from holder to holder with their signatures; one that has none stays with a holder that takes it.
#[test]
fn a_takeover_takes_what_is_signed() {
    let place = Place(signed());
    let other = place.other_image();
    let first = place.serve(&["good=IMAGE"]);
    place.run(&["load", "bad", &other]).ok();
    let takeover = &["serve", "--takeover", "--require-signed", "DIR/key.pub"];
    let run = place.run(takeover);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.stderr.contains("\"bad\"") && run.stderr.contains("no signature"), "{run:?}");
    place.run(&["health"]).ok();
    place.run(&["drop", "bad"]).ok();
    let second = place.serve(&takeover[1..]);
    drop(first);
    place.run(&["verify", &place.address("good"), "--key", "DIR/key.pub"]).ok();
    let error = place.run(&["load", "bad", &other]).error();
    assert!(error.contains("no signature"), "{error}");
    drop(second);
}

/// What lies beside a source is nobody's choice: what is no signature is left out, whatever it is, and a holder goes on.
#[test]
fn what_is_beside_and_no_signature_ends_no_holder() {
    let place = Place(signed());
    let signature = beside(&place.0.image());
    let text = fs::read_to_string(&signature).unwrap();
    let first = place.serve(&["good=IMAGE"]);
    fs::remove_file(&signature).unwrap();
    fs::create_dir(&signature).unwrap();
    let second = place.serve(&["--takeover", "more=IMAGE"]);
    drop(first);
    assert!(place.generation("good").is_some() && place.generation("more").is_some());
    fs::remove_dir(&signature).unwrap();
    let secret = place.0.path("secret");
    fs::write(&secret, "a secret\n").unwrap();
    std::os::unix::fs::symlink(&secret, &signature).unwrap();
    let run = place.run(&["load", "linked", "IMAGE"]);
    assert!(run.status == 0 && run.stderr.contains("left out"), "{run:?}");
    fs::remove_file(&signature).unwrap();
    // Text beside a true signature stays here, too.
    fs::write(&signature, text.clone() + "a secret\n").unwrap();
    place.run(&["load", "longer", "IMAGE"]).ok();
    let attached = |name: &str| {
        let image = Image::open(place.address(name)).unwrap();
        image.region().attachment().unwrap().signature().map(str::to_owned)
    };
    assert_eq!(attached("linked"), None);
    let attached = attached("longer").unwrap();
    assert!(attached.lines().skip(1).eq(text.lines().skip(1)), "{attached}");
    drop(second);
}

/// What the packer signs, the stock tool verifies, where it is there.
#[test]
fn the_stock_tool_agrees() {
    let fixture = signed();
    let content = Image::open(fixture.image()).unwrap().content_hash().unwrap();
    let statement = fixture.path("statement");
    fs::write(&statement, daxfs::signature::statement(&content)).unwrap();
    let mut command = std::process::Command::new("minisign");
    command
        .arg("-Vm")
        .arg(&statement)
        .arg("-x")
        .arg(beside(&fixture.image()))
        .arg("-p")
        .arg(fixture.path("key.pub"));
    match command.stdin(Stdio::null()).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "minisign is not installed");
            eprintln!("not run: minisign is not installed");
        }
        Err(error) => panic!("{error}"),
    }
}
