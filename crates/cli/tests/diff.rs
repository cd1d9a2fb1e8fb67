//! `daxfs diff`: files and tensors of two images, by what they hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Fixture;
use std::fs;
use std::path::Path;

/// A safetensors file with tensors of 4 bytes.
fn weights(tensors: &[(&str, &str, [u8; 4])]) -> Vec<u8> {
    let members: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(at, (name, kind, _))| {
            format!(r#""{name}":{{{kind},"data_offsets":[{},{}]}}"#, at * 4, at * 4 + 4)
        })
        .collect();
    let json = format!("{{{}}}", members.join(","));
    let data: Vec<u8> = tensors.iter().flat_map(|(.., bytes)| *bytes).collect();
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()
}

const F32: &str = r#""dtype":"F32","shape":[1]"#;
const BF16: &str = r#""dtype":"BF16","shape":[2]"#;

fn pack(tree: &Path, to: &Path, options: impl FnOnce(mkimage::Packer) -> mkimage::Packer) {
    options(mkimage::Packer::new().input(tree)).plan().unwrap().write_file(to).unwrap();
}

/// Two trees, packed to `a` and `b`.
fn two() -> Fixture {
    let fixture = Fixture::new();
    let (a, b) = (fixture.path("a.d"), fixture.path("b.d"));
    for tree in [&a, &b] {
        fs::create_dir_all(tree.join("gone")).unwrap();
        fs::write(tree.join("same"), b"the same").unwrap();
    }
    let first = [("bias", F32, [1; 4]), ("head", F32, [2; 4]), ("old", F32, [3; 4]), ("type", F32, [4; 4])];
    let second = [("bias", F32, [1; 4]), ("head", F32, [9; 4]), ("new", F32, [3; 4]), ("type", BF16, [4; 4])];
    fs::write(a.join("model.safetensors"), weights(&first)).unwrap();
    fs::write(b.join("model.safetensors"), weights(&second)).unwrap();
    fs::write(a.join("config.json"), b"{}").unwrap();
    fs::write(b.join("config.json"), b"{ }").unwrap();
    fs::write(a.join("gone/deep"), b"").unwrap();
    fs::remove_dir_all(b.join("gone")).unwrap();
    fs::write(b.join("added\n"), b"").unwrap();
    std::os::unix::fs::symlink("same", a.join("link")).unwrap();
    std::os::unix::fs::symlink("config.json", b.join("link")).unwrap();
    fixture
}

#[test]
fn what_differs_is_named() {
    let fixture = two();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    let (left, right) = (a.to_str().unwrap(), b.to_str().unwrap());
    let expected = "\
        + /added\\n\n\
        ~ /config.json: 2 B, then 3 B\n\
        - /gone\n\
        ~ /link: leads to same, then to config.json\n";
    let tensors = "\
        ~ tensor head: other values of F32 [1]\n\
        + tensor new: F32 [1]\n\
        - tensor old: F32 [1]\n\
        ~ tensor type: F32 [1], then BF16 [2]\n\
        5 of 6 entries and 4 of 5 tensors differ\n";
    // With and without hashes, with tensors moved and not.
    for hash in [true, false] {
        pack(&fixture.path("a.d"), &a, |packer| packer.hash(hash));
        pack(&fixture.path("b.d"), &b, |packer| packer.hash(hash).exact(true));
        let run = fixture.run(&["diff", left, right]);
        assert_eq!((run.status, run.stderr.as_str()), (1, ""), "{run:?}");
        let text = String::from_utf8(run.stdout).unwrap();
        let (files, rest) = text.split_once("~ /model.safetensors: ").unwrap();
        assert_eq!(files, expected, "{text}");
        assert_eq!(rest.split_once('\n').unwrap().1, tensors, "{text}");
    }
    let json = fixture.run(&["diff", "--json", left, right]);
    assert_eq!(json.status, 1);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["files"][0], serde_json::json!({"path": "/added\n", "change": "added"}));
    assert_eq!(json["tensors"][3]["what"], "F32 [1], then BF16 [2]");
    assert_eq!((json["files"].as_array().unwrap().len(), &json["same"]), (5, &serde_json::json!(false)));
    let brief = fixture.run(&["diff", "--brief", left, right]);
    assert_eq!((brief.status, brief.stdout.len()), (1, 0));
}

#[test]
fn the_same_model_is_the_same_however_it_lies() {
    let fixture = two();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    let (left, right) = (a.to_str().unwrap(), b.to_str().unwrap());
    pack(&fixture.path("a.d"), &a, |packer| packer);
    let ways: [fn(mkimage::Packer) -> mkimage::Packer; 3] =
        [|packer| packer.exact(true), |packer| packer.hash(false), |packer| packer];
    for options in ways {
        pack(&fixture.path("a.d"), &b, options);
        assert_eq!(fixture.run(&["diff", left, right]).ok(), "");
        assert_eq!(fixture.run(&["diff", "--json", left, right]).json()["same"], true);
    }
    // In two shards: other files, the same tensors.
    let sharded = fixture.path("sharded");
    fs::create_dir(&sharded).unwrap();
    let shards: [(&str, &[_]); 2] = [
        ("m-00001-of-00002.safetensors", &[("bias", F32, [1; 4]), ("type", F32, [4; 4])]),
        ("m-00002-of-00002.safetensors", &[("head", F32, [2; 4]), ("old", F32, [3; 4])]),
    ];
    for (name, tensors) in shards {
        fs::write(sharded.join(name), weights(tensors)).unwrap();
    }
    pack(&sharded, &b, |packer| packer);
    let text = fixture.run(&["diff", left, right]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.ends_with("and 0 of 4 tensors differ\n") && !text.contains("tensor "), "{text}");
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let fixture = two();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    let (left, right) = (a.to_str().unwrap(), b.to_str().unwrap());
    fs::write(fixture.path("b.d").join("other.safetensors"), weights(&[("x", F32, [0; 4])])).unwrap();
    pack(&fixture.path("a.d"), &a, |packer| packer);
    pack(&fixture.path("b.d"), &b, |packer| packer);
    let error = fixture.run(&["diff", left, right]).error();
    assert!(error.contains("the second image") && error.contains("other.safetensors"), "{error}");
    let chosen = fixture.run(&["diff", "--tensors", "model.safetensors", left, right]);
    assert_eq!(chosen.status, 1, "{chosen:?}");
    let error = fixture.run(&["diff", "--tensors", "none", left, right]).error();
    assert!(error.contains("the first image") && error.contains("none"), "{error}");
    let zeros = "0".repeat(64);
    let error = fixture.run(&["--expect", &zeros, "diff", left, right]).error();
    assert!(error.contains("diff opens two"), "{error}");
    let error = fixture.run(&["diff", left, "/nowhere"]).error();
    assert!(error.contains("/nowhere"), "{error}");
}
