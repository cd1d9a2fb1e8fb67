//! Trees that were signed by OpenSSF model signing (model_signing 1.1.1, the stock tool, made the fixtures).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../../tests/src/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod forge;
#[path = "../../../tests/src/overlay.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod overlay;

use base64ct::{Base64, Encoding};
use common::{Fixture, Run};
use daxfs::Image;
use mkimage::Signer;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn stock(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_signing").join(name)
}

fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests").join(name)
}

/// The tree that was signed, with this signature in it, and the keys beside it. The packer moves its tensors.
fn signed(signature: &str) -> Fixture {
    let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
    let tree = fixture.tree();
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("config.json"), "{\"hidden_size\": 384}\n").unwrap();
    fs::write(tree.join("sub/notes.txt"), "notes\n").unwrap();
    fs::write(tree.join(".gitattributes"), "*.bin lfs\n").unwrap();
    let data: Vec<u8> = (0..128).collect();
    let model: &[(&str, &str, &[u64], &[u8])] =
        &[("a", "F32", &[10], &data[..40]), ("b", "U8", &[88], &data[40..])];
    fs::write(tree.join("model.safetensors"), common::safetensors(model, 0)).unwrap();
    fs::copy(stock(signature), tree.join("model.sig")).unwrap();
    fs::copy(key("cosign/key.pub"), fixture.path("key.pub")).unwrap();
    fs::copy(key("minisign/minisign.pub"), fixture.path("minisign.pub")).unwrap();
    fixture.pack(|packer| packer);
    fixture
}

fn verify(fixture: &Fixture) -> Run {
    fixture.run(&["verify", "IMAGE"])
}

fn differs(run: &Run, lines: &[&str]) {
    assert_eq!(run.status, 1, "{run:?}");
    let text = run.text();
    let found: Vec<&str> = text.lines().filter(|line| line.starts_with("manifest: ")).collect();
    assert_eq!(found.len(), lines.len(), "{text}");
    for line in lines {
        assert!(found.iter().any(|found| found.contains(line)), "{line}: {text}");
    }
}

/// Packs the tree with another statement in its signature, which is then nobody's.
fn state(fixture: &Fixture, change: impl Fn(&str) -> String) {
    let path = fixture.tree().join("model.sig");
    let mut bundle: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
    let payload = String::from_utf8(Base64::decode_vec(payload).unwrap()).unwrap();
    let changed = change(&payload);
    assert_ne!(changed, payload);
    bundle["dsseEnvelope"]["payload"] = Base64::encode_string(changed.as_bytes()).into();
    fs::write(&path, bundle.to_string()).unwrap();
    fixture.pack(|packer| packer);
    fs::copy(stock("sha256.sig"), path).unwrap();
}

#[test]
fn what_the_stock_tool_signed_is_whole() {
    for (signature, files) in [("sha256.sig", 3), ("blake3.sig", 3), ("blake2b.sig", 3)] {
        let fixture = signed(signature);
        let image = Image::open(fixture.image()).unwrap();
        assert!(image.file("model.safetensors").unwrap().original().unwrap().differs());
        let said = verify(&fixture).ok();
        let expected = format!("{files} files of /model.sig (digests alone: its signature was not checked");
        assert!(said.contains(&expected), "{signature}: {said}");
        let run = fixture.run(&["verify", "--json", "IMAGE", "--key", "DIR/key.pub"]);
        // The key stands for all files, so no signature of the content is missed.
        assert_eq!(run.status, 0, "{run:?}");
        let manifest = &run.json()["checked"]["manifests"][0];
        assert_eq!(manifest["path"], "/model.sig");
        assert_eq!((&manifest["signature"], manifest["files"].as_u64()), (&"valid".into(), Some(files)));
    }
    // Without hashes as well: there are digests.
    let fixture = signed("sha256.sig");
    fixture.pack(|packer| packer.plain(true));
    let said = fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub"]).ok();
    assert!(said.contains("/model.sig (its signature is valid)"), "{said}");
}

#[test]
fn every_difference_has_a_name() {
    let fixture = signed("sha256.sig");
    let tree = fixture.tree();
    fs::write(tree.join("config.json"), "{\"hidden_size\": 385}\n").unwrap();
    fs::remove_file(tree.join("sub/notes.txt")).unwrap();
    fs::write(tree.join("sub/new.bin"), "new").unwrap();
    symlink("config.json", tree.join("other.json")).unwrap();
    fixture.pack(|packer| packer);
    let lines = [
        "/config.json: SHA-256 is ",
        "/sub/notes.txt: is in /model.sig, and not in the image",
        "/sub/new.bin: a file that /model.sig does not cover",
        "/other.json: a link that /model.sig does not cover",
    ];
    differs(&verify(&fixture), &lines);
    // What is left out of the tree that was signed is not covered, and was not to be.
    let fixture = signed("blake3.sig");
    fs::write(fixture.tree().join("sub/new.bin"), "new").unwrap();
    fixture.pack(|packer| packer);
    verify(&fixture).ok();
    fs::write(fixture.tree().join(".gitattributes"), "").unwrap();
    fixture.pack(|packer| packer);
    differs(&verify(&fixture), &["/.gitattributes: BLAKE3 is "]);
}

#[test]
fn the_signature_is_one_of_the_statement() {
    let fixture = signed("sha256.sig");
    let keyed = |key: &str| fixture.run(&["verify", "IMAGE", "--key", key]);
    // Another name of the tree, and all digests are right.
    state(&fixture, |payload| payload.replace("\"name\": \"t\"", "\"name\": \"u\""));
    verify(&fixture).ok();
    differs(&keyed("DIR/key.pub"), &["/model.sig: its signature was made by no key that is accepted"]);
    // Keys of minisign say nothing of it: what they sign is the content.
    fixture.pack(|packer| packer);
    let run = keyed("DIR/minisign.pub");
    assert!(run.text().contains("signature: the image has no signature"), "{run:?}");
    let content = Image::open(fixture.image()).unwrap().content_hash().unwrap();
    let signer = Signer::open(&key("minisign/minisign.key"), None).unwrap();
    signer.write(&content, &fixture.image(), false).unwrap();
    assert!(keyed("DIR/minisign.pub").ok().contains("its signature was not checked"));
    // A wrong signature of the content is one whatever else was signed.
    fs::remove_file(daxfs::signature::beside(&fixture.image())).unwrap();
    Signer::open(&key("cosign/key.pem"), None)
        .unwrap()
        .write(&[1; 32].into(), &fixture.image(), false)
        .unwrap();
    let run = keyed("DIR/key.pub");
    assert!(run.status == 1 && run.text().contains("signature: the signature is not valid"), "{run:?}");
}

#[test]
fn what_is_wrong_or_not_known_is_named() {
    let fixture = signed("sha256.sig");
    let digest = "c55c55d8d1d2f97cc896daa9cc742c7556ddec76291eea093e5a2f7689c5aa6e";
    for (from, to, what) in [
        ("\"sub/notes.txt\"", "\"../notes.txt\"", "\"../notes.txt\", which is not a path in its tree"),
        ("\"sub/notes.txt\"", "\"/sub/notes.txt\"", "which is not a path in its tree"),
        (digest, &digest.replace('5', "6"), "contradicts itself"),
        (digest, &digest[2..], "has no SHA-256 of \"config.json\""),
        ("\"algorithm\": \"sha256\"", "\"algorithm\": \"md5\"", "has a \"md5\" of \"config.json\""),
        ("\"method\": \"files\"", "\"method\": \"shards\"", "the method \"shards\""),
        ("signature/v1.0", "signature/v2.0", "which is not known here"),
        ("\"resources\"", "\"others\"", "contradicts itself"),
        ("in-toto.io/Statement/v1", "in-toto.io/Statement/v2", "which is not known here"),
        ("\"_type\"", "\"type\"", "is not an in-toto statement"),
    ] {
        state(&fixture, |payload| payload.replacen(from, to, 1));
        differs(&verify(&fixture), &[what]);
    }
    let path = fixture.tree().join("model.sig");
    let right = fs::read_to_string(&path).unwrap();
    for (text, what) in [
        (right[..right.len() / 2].to_owned(), "is not a sigstore bundle"),
        ("weights".to_owned(), "is not a sigstore bundle"),
        (right.replace("vnd.in-toto+json", "other"), "and no in-toto statement"),
        (right.replace("sigstore.bundle", "other"), "is not that of a sigstore bundle"),
        (right.replacen("\"payload\":\"e", "\"payload\":\"!", 1), "no base64"),
        ("x".repeat(17 << 20), "too many for a signature"),
    ] {
        fs::write(&path, text).unwrap();
        fixture.pack(|packer| packer);
        differs(&verify(&fixture), &[what]);
    }
}

/// Trees within the image have their own signatures, and paths that lead through links are those of files.
#[test]
fn each_tree_has_its_own() {
    let fixture = signed("sha256.sig");
    let tree = fixture.tree();
    for name in ["a", "b"] {
        let target = fixture.path("trees").join(name);
        fs::create_dir_all(target.join("sub")).unwrap();
        for file in ["config.json", "model.safetensors", "model.sig", "sub/notes.txt"] {
            fs::copy(tree.join(file), target.join(file)).unwrap();
        }
    }
    fs::write(fixture.path("trees/b/config.json"), "{}").unwrap();
    fs::rename(fixture.path("trees/a/sub"), fixture.path("trees/a/elsewhere")).unwrap();
    symlink("elsewhere", fixture.path("trees/a/sub")).unwrap();
    fs::remove_dir_all(&tree).unwrap();
    fs::rename(fixture.path("trees"), &tree).unwrap();
    fixture.pack(|packer| packer);
    let lines =
        ["/b/config.json: SHA-256 is ", "/a/elsewhere/notes.txt: a file that /a/model.sig does not cover"];
    differs(&verify(&fixture), &lines);
    // Of a part of the image a key says nothing about the rest.
    let run = fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub"]);
    assert!(run.text().contains("signature: the image has no signature"), "{run:?}");
}

/// What a link to a directory leads to may be left out of what was signed, so all that is behind it counts.
#[test]
fn links_to_directories_hide_nothing() {
    let fixture = signed("sha256.sig");
    let tree = fixture.tree();
    let evil = tree.join(".git/evil");
    fs::create_dir_all(tree.join(".git")).unwrap();
    fs::rename(tree.join("sub"), &evil).unwrap();
    symlink(".git/evil", tree.join("sub")).unwrap();
    fixture.pack(|packer| packer);
    verify(&fixture).ok();
    fs::create_dir(evil.join("deep")).unwrap();
    fs::write(evil.join("deep/modeling_evil.py"), "evil").unwrap();
    fixture.pack(|packer| packer);
    let hidden = "/sub: a link that leads to /sub/deep/modeling_evil.py, which /model.sig does not cover";
    differs(&verify(&fixture), &[hidden]);
    // Nor does a link in it.
    fs::remove_dir_all(evil.join("deep")).unwrap();
    symlink("..", evil.join("up")).unwrap();
    fixture.pack(|packer| packer);
    differs(&verify(&fixture), &["/sub: a link that leads to /sub/up, which /model.sig does not cover"]);
}

/// An index that was there before the image was changed is compared with nothing, so it is a file as any other.
#[test]
fn an_index_that_does_not_count_is_a_file() {
    let fixture = signed("sha256.sig");
    let image = Image::open(fixture.image()).unwrap();
    let mut overlay = overlay::Overlay::new(16, image.superblock().inode_count);
    let file = image.file("config.json").unwrap();
    overlay.inode(file.ino(), 0o100_600, file.len(), 1);
    let mut bytes = fs::read(fixture.image()).unwrap();
    overlay.attach(&mut bytes);
    fs::write(fixture.image(), bytes).unwrap();
    let run = verify(&fixture);
    assert!(run.text().contains("its index does not count"), "{run:?}");
    // With the index goes what it knows of tensors that were moved.
    let lines = ["/.daxfs/index: a file that /model.sig does not cover", "/model.safetensors: SHA-256 is "];
    differs(&run, &lines);
}

/// In the cache of a hub the signature is a link, as every file is.
#[test]
fn a_signature_may_be_a_link() {
    let fixture = signed("sha256.sig");
    let (tree, snapshot) = (fixture.tree(), fixture.path("snapshot"));
    fs::rename(&tree, &snapshot).unwrap();
    fs::create_dir_all(tree.join("blobs")).unwrap();
    fs::rename(snapshot.join("model.sig"), tree.join("blobs/1")).unwrap();
    symlink("../blobs/1", snapshot.join("model.sig")).unwrap();
    fs::rename(&snapshot, tree.join("snapshot")).unwrap();
    fixture.pack(|packer| packer);
    assert!(verify(&fixture).ok().contains("3 files of /snapshot/model.sig"));
    fs::write(tree.join("snapshot/config.json"), "{}").unwrap();
    fixture.pack(|packer| packer);
    differs(&verify(&fixture), &["/snapshot/config.json: SHA-256 is "]);
    fs::remove_file(tree.join("blobs/1")).unwrap();
    fixture.pack(|packer| packer);
    let run = verify(&fixture);
    assert!(run.status == 1 && run.text().contains("manifest: /snapshot/model.sig: "), "{run:?}");
}

/// Who has signed the content has signed the `model.sig` in it as well, whoever made that.
#[test]
fn the_signature_of_the_content_comes_first() {
    let fixture = signed("sha256.sig");
    state(&fixture, |payload| payload.replace("\"name\": \"t\"", "\"name\": \"u\""));
    let keyed = || fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub"]);
    differs(&keyed(), &["/model.sig: its signature was made by no key that is accepted"]);
    let content = Image::open(fixture.image()).unwrap().content_hash().unwrap();
    let signer = Signer::open(&key("cosign/key.pem"), None).unwrap();
    signer.write(&content, &fixture.image(), false).unwrap();
    let said = keyed().ok();
    assert!(said.contains("/model.sig (digests alone: its signature was not checked"), "{said}");
    // Its digests count all the same.
    state(&fixture, |payload| payload.replace("\"config.json\"", "\"config.yaml\""));
    let content = Image::open(fixture.image()).unwrap().content_hash().unwrap();
    signer.write(&content, &fixture.image(), true).unwrap();
    let lines =
        ["/config.yaml: is in /model.sig, and not in", "/config.json: a file that /model.sig does not"];
    differs(&keyed(), &lines);
    // Without a content that could be signed nothing of it is.
    fixture.pack(|packer| packer.plain(true));
    fs::write(fixture.tree().join("model.sig"), fs::read(stock("sha256.sig")).unwrap()).unwrap();
    fixture.pack(|packer| packer.plain(true));
    fixture.run(&["verify", "IMAGE", "--key", "DIR/key.pub"]).ok();
    assert!(
        fixture.run(&["verify", "IMAGE", "--key", "DIR/minisign.pub"]).error().contains("no content hash")
    );
}

/// More trees than are looked at, and tables beyond the budget, end in a word.
#[test]
fn signatures_are_bounded() {
    let fixture = signed("sha256.sig");
    for number in 0..65 {
        let dir = fixture.tree().join(format!("d{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("model.sig"), "").unwrap();
    }
    fixture.pack(|packer| packer);
    assert!(verify(&fixture).error().contains("more than 64 files model.sig"));
    let fixture = signed("sha256.sig");
    state(&fixture, |payload| {
        let many: Vec<String> = (0..300).map(|number| format!("\"i{number}\"")).collect();
        payload.replace("\".github\"", &many.join(","))
    });
    differs(&verify(&fixture), &["leaves out more than 256 paths"]);
    let fixture = signed("sha256.sig");
    let path = fixture.tree().join("model.sig");
    let mut bundle: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
    let first = signatures[0].clone();
    for (count, valid) in [(16, true), (17, false)] {
        bundle["dsseEnvelope"]["signatures"] = vec![first.clone(); count].into();
        fs::write(&path, bundle.to_string()).unwrap();
        fixture.pack(|packer| packer);
        match verify(&fixture) {
            run if valid => drop(run.ok()),
            run => differs(&run, &["has 17 signatures, more than 16"]),
        }
    }
}

/// The tables of a signature are charged, each name with the path of its directory.
#[test]
fn signatures_cost_what_they_take() {
    let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
    let deep: PathBuf = std::iter::repeat_n("n".repeat(200), 15).collect();
    fs::create_dir_all(fixture.tree().join(&deep)).unwrap();
    let pack = |dir: &Path, bundle: &str| {
        let dir = fixture.tree().join(dir);
        fs::write(dir.join("a"), "x").unwrap();
        fs::write(dir.join("model.sig"), bundle).unwrap();
        fixture.pack(|packer| packer);
        fs::remove_file(dir.join("model.sig")).unwrap();
    };
    let verify = |limit: &str| fixture.run(&["verify", "IMAGE", "--max-metadata", limit]);
    let bundle = bundle_of("a", b"x", 1500);
    // About 215 KiB, each byte of which costs eight; and 1500 paths of 3000 bytes, each of which is kept twice.
    pack(Path::new("."), &bundle);
    assert!(verify("1M").error().contains("files of a model.sig"));
    verify("6M").ok();
    pack(&deep, &bundle);
    assert!(verify("6M").error().contains("files of a model.sig"));
    verify("16M").ok();
}

/// Each link to a directory has all of it listed, however little of that is named.
#[test]
fn links_to_one_directory_cost_what_is_in_it() {
    let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
    let tree = fixture.tree();
    fs::create_dir_all(tree.join("d")).unwrap();
    for number in 0..500 {
        fs::write(tree.join(format!("d/{number:03}")), "x").unwrap();
    }
    for number in 0..200 {
        std::os::unix::fs::symlink("d", tree.join(format!("l{number:03}"))).unwrap();
    }
    let names: Vec<String> = (0..200).map(|number| format!("l{number:03}/000")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fs::write(tree.join("model.sig"), bundle_of_all(&names, b"x")).unwrap();
    fixture.pack(|packer| packer);
    // 200 times 500 entries of 64 bytes.
    let run = fixture.run(&["verify", "IMAGE", "--max-metadata", "6M"]);
    assert!(run.status == 2 && run.stderr.contains("paths through links"), "{}", run.stderr);
    let run = verify(&fixture);
    assert!(run.status == 1 && run.text().contains("a link that leads to /l000/001"), "{}", run.stderr);
}

/// A bundle that names one file again and again, and that nobody has signed.
fn bundle_of(name: &str, bytes: &[u8], count: usize) -> String {
    bundle_of_all(&vec![name; count], bytes)
}

/// A bundle that names files, all of the same bytes, and that nobody has signed.
fn bundle_of_all(names: &[&str], bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let mut all = Sha256::new();
    names.iter().for_each(|_| all.update(digest));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let resource =
        |name: &&str| serde_json::json!({"name": name, "algorithm": "sha256", "digest": hex(&digest)});
    let resources: Vec<_> = names.iter().map(resource).collect();
    let statement = serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "t", "digest": {"sha256": hex(&all.finalize())}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": {"method": "files"}, "resources": resources},
    });
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "dsseEnvelope": {
            "payload": Base64::encode_string(statement.to_string().as_bytes()),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": ""}],
        },
    });
    bundle.to_string()
}
