//! `verify`: what it accepts, and that it finds each kind of difference.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Fixture, bad_name, safetensors};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// Runs `verify IMAGE ARGS`, which must find exactly these lines.
fn assert_differences(fixture: &Fixture, args: &[&str], expected: &[&str]) {
    let run = fixture.run(&[&["verify", "-q", "IMAGE"], args].concat());
    let lines: Vec<_> = run.text().lines().collect();
    assert_eq!(lines.len(), expected.len(), "{run:?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{expected:?} in {run:?}");
    }
    assert_eq!((run.status, run.stderr.as_str()), (1, ""), "{run:?}");
}

#[test]
fn a_good_image_is_ok() {
    let fixture = Fixture::new();
    let alone = fixture.run(&["verify", "IMAGE"]).ok();
    assert!(alone.contains(": ok; checked structure of "), "{alone}");
    assert!(alone.contains("6 tensors, 1 checkpoint"), "{alone}");
    let both = fixture.run(&["verify", "IMAGE", "TREE"]).ok();
    assert!(both.contains("against the source"), "{both}");
    assert_eq!(fixture.run(&["verify", "--quiet", "IMAGE", "TREE"]).ok(), "");

    let run = fixture.run(&["verify", "--json", "IMAGE", "TREE"]);
    let json = run.json();
    assert_eq!((run.status, &json["ok"], &json["differences"]), (0, &true.into(), &serde_json::json!([])));
    let stored = fixture.run(&["inspect", "--json", "IMAGE"]).json()["image"]["content_hash"].clone();
    assert_eq!(json["checked"]["content_hash"], stored);
}

#[test]
fn every_way_of_packing_is_ok() {
    let fixture = Fixture::new();
    type Options = fn(mkimage::Packer) -> mkimage::Packer;
    let ways: [Options; 4] = [
        |packer| packer.plain(true),
        |packer| packer.dedupe(true),
        |packer| packer.hash(false),
        |packer| packer.format(mkimage::Format::V5),
    ];
    for options in ways {
        fixture.pack(options);
        fixture.run(&["verify", "IMAGE", "TREE"]).ok();
    }
}

#[test]
fn a_changed_byte_is_found() {
    let fixture = Fixture::new();
    let offset = fixture.offset_of("dir/data.bin");
    fixture.poke(offset + 5000, b"!");
    assert_differences(&fixture, &[], &["hash: /dir/data.bin: BLAKE3 is ", "hash: content hash is "]);
    let source = "source: /dir/data.bin: contents differ from byte 5000 on";
    assert_differences(&fixture, &["TREE"], &["hash: /dir/data.bin", "hash: content", source]);
    let json = fixture.run(&["verify", "--json", "IMAGE"]).json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["differences"][0]["kind"], "hash");
    assert_eq!(json["differences"][0]["path"], "/dir/data.bin");
}

#[test]
fn a_changed_header_is_found() {
    let fixture = Fixture::new();
    let offset = fixture.offset_of("model.safetensors");
    let file = fs::read(fixture.tree().join("model.safetensors")).unwrap();
    let at = file.windows(8).position(|bytes| bytes == b"[10, 30]").unwrap() as u64;
    fixture.poke(offset + at, b"[30, 10]");
    assert_differences(&fixture, &[], &["hash: /model", "hash: content", "tensors: /model.safetensors: "]);
    assert!(fixture.run(&["verify", "IMAGE"]).text().contains("shape of tensor \"head.weight\""));
}

#[test]
fn a_changed_index_is_found() {
    let fixture = Fixture::new();
    let index = fixture.offset_of(".daxfs/index");
    let bytes = fs::read(fixture.image()).unwrap();
    let field =
        |at: u64| u64::from_le_bytes(bytes[usize::try_from(index + at).unwrap()..][..8].try_into().unwrap());
    let (files, tensors) = (field(24), field(40));
    // The dtype of the first tensor record: F16 (14) and BF16 (15) have the same size.
    let run_with = |at: u64, byte: u8, expected: &str| {
        let old = bytes[usize::try_from(index + at).unwrap()];
        fixture.poke(index + at, &[byte]);
        let run = fixture.run(&["verify", "IMAGE"]);
        assert_eq!(run.status, 1, "{run:?}");
        assert!(run.text().contains(expected), "{expected} in {run:?}");
        fixture.poke(index + at, &[old]);
    };
    run_with(files + 16, 99, "index: ");
    run_with(files + 12, 200, "index: ");
    run_with(files + 64, 1, "hash: ");
    run_with(tensors + 36, 0, "tensors: ");
    run_with(tensors + 16, 1, "tensors: ");
    run_with(128, 1, "hash: content hash");
    run_with(0, b'X', "index: ");
    run_with(8, 9, "index: ");
    fixture.run(&["verify", "IMAGE"]).ok();
}

#[test]
fn broken_rules_are_differences_when_lenient_opening_forgives_them() {
    let fixture = Fixture::new();
    // The kernel's validation compares with its page size, which reading does not need.
    fixture.poke(8, &65536_u32.to_le_bytes());
    assert_differences(
        &fixture,
        &[],
        &["structure: superblock: the kernel mounts only images whose block size"],
    );
    assert!(fixture.run(&["ls", "--strict", "IMAGE"]).error().contains("block size"));
}

#[test]
fn every_difference_from_the_source_is_named() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    fs::write(tree.join("added"), b"").unwrap();
    fs::remove_file(tree.join("empty")).unwrap();
    fs::write(tree.join("config.json"), b"{\"hidden_size\": 385}\n").unwrap();
    fs::write(tree.join("dir/sub/deep.txt"), b"deeper\n").unwrap();
    fs::set_permissions(tree.join("dir/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(tree.join("latest")).unwrap();
    symlink("elsewhere", tree.join("latest")).unwrap();
    fs::remove_dir(tree.join("empty-dir")).unwrap();
    fs::write(tree.join("empty-dir"), b"").unwrap();
    // A copy in place of a hard link.
    let same = tree.join("dir/sub/same.bin");
    fs::copy(&same, tree.join("copy")).unwrap();
    fs::rename(tree.join("copy"), &same).unwrap();
    fs::write(tree.join(bad_name()), b"3").unwrap();
    fs::create_dir(tree.join(".daxfs")).unwrap();
    let run = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
    let mut lines: Vec<_> = run.text().lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "source: /added: only in the source directory",
            "source: /config.json: contents differ from byte 18 on",
            "source: /dir/run.sh: mode 4755, in the source 0755",
            "source: /dir/sub/deep.txt: 5 bytes, in the source 7",
            "source: /dir/sub/same.bin: the same file as /dir/data.bin, but not in the source",
            "source: /empty-dir: a directory, in the source a file",
            "source: /empty: only in the image",
            "source: /latest: leads to model.safetensors, in the source to elsewhere",
            "source: /latin1-\\351.txt: contents differ from byte 0 on",
        ]
    );
    assert_eq!(run.status, 1);
}

#[test]
fn a_new_hard_link_in_the_source_is_a_difference() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    fs::remove_file(tree.join("dir/sub/deep.txt")).unwrap();
    fs::hard_link(tree.join("empty"), tree.join("dir/sub/deep.txt")).unwrap();
    let run = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
    assert!(run.text().contains("not the same file as "), "{run:?}");
    assert_eq!(run.status, 1);
}

#[test]
fn realigned_files_are_told_apart_from_changed_ones() {
    let fixture = Fixture::new();
    fixture.pack(|packer| packer.align_tensors(true));
    let plain = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
    assert_eq!(plain.status, 1);
    assert!(plain.text().contains("source: /model.safetensors: "), "{plain:?}");
    let realigned = fixture.run(&["verify", "--realigned", "IMAGE", "TREE"]).ok();
    assert!(realigned.contains("realigned file"), "{realigned}");

    // The last byte of the source's last tensor.
    let path = fixture.tree().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let run = fixture.run(&["verify", "-q", "--realigned", "IMAGE", "TREE"]);
    assert_eq!(run.text(), "source: /model.safetensors: the data of tensor \"scale\" differs\n");
    fs::write(&path, safetensors(&[("ids", "I64", &[1], &[0; 8])], 0)).unwrap();
    let run = fixture.run(&["verify", "-q", "--realigned", "IMAGE", "TREE"]);
    assert!(run.text().contains("is only in the image"), "{run:?}");
}

#[test]
fn an_incomplete_checkpoint_is_a_difference() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.tree().join("sharded/model-00002-of-00002.safetensors")).unwrap();
    fixture.pack(|packer| packer.plain(true));
    assert_differences(&fixture, &["TREE"], &["checkpoint: /sharded/model.safetensors.index.json: shard"]);
}

#[test]
fn what_cannot_be_checked_is_an_error() {
    let fixture = Fixture::new();
    assert!(fixture.run(&["verify", "IMAGE", "DIR/absent"]).error().contains("No such file"));
    assert!(fixture.run(&["verify", "IMAGE", "IMAGE"]).error().contains("not a directory"));
    assert_eq!(fixture.run(&["verify", "--realigned", "IMAGE"]).status, 2);
}
