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

/// With the options that it was packed with, what was left out is no difference; all else is one as before.
#[test]
fn what_was_left_out_is_no_difference() {
    let fixture = Fixture::new();
    for (name, contents) in
        [("pytorch_model.bin", "twin"), ("notes/one.txt", "1"), ("notes/deep/two.txt", "2")]
    {
        let path = fixture.tree().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    let compare = |options: &[&str]| fixture.run(&[&["verify", "IMAGE", "TREE"], options].concat());
    fixture.pack(|packer| packer.exclude("/notes/").weights_only(true));
    compare(&["--exclude=/notes/", "--weights-only"]).ok();
    for (options, expected) in
        [(&["--weights-only"][..], "/notes"), (&["--exclude=/notes/"], "/pytorch_model.bin")]
    {
        let run = compare(options);
        assert!(run.text().contains(&format!("{expected}: only in the source directory")), "{run:?}");
        assert_eq!(run.status, 1);
    }
    fixture.pack(|packer| packer.include("*.safetensors").include("one.txt"));
    compare(&["--include=*.safetensors", "--include=one.txt"]).ok();
    // What the packer with these options would have packed is missed.
    let run = compare(&["--include=*.safetensors", "--include=*.txt"]);
    assert!(run.text().contains("/notes/deep: only in the source directory"), "{run:?}");
    let run = fixture.run(&["verify", "--exclude=*.txt", "IMAGE"]);
    assert!(run.stderr.contains("--exclude is for comparing with a directory"), "{run:?}");
    assert_eq!(run.status, 2);
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
    let file = fixture.run(&["cat", "IMAGE", "model.safetensors"]).stdout;
    let at = file.windows(7).position(|bytes| bytes == b"[10,30]").unwrap() as u64;
    fixture.poke(offset + at, b"[30,10]");
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
    // In the table of sections behind the header.
    let (files, tensors) = (field(128 + 8), field(128 + 64 + 8));
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
    run_with(32, 1, "hash: content hash");
    run_with(128 + 32, 1, "index: /.daxfs/index: table of sections: its BLAKE3 is ");
    run_with(0, b'X', "index: ");
    run_with(8, 9, "index: ");
    fixture.run(&["verify", "IMAGE"]).ok();
}

#[test]
fn broken_rules_are_differences_when_lenient_opening_forgives_them() {
    let fixture = Fixture::new();
    let page = u32::try_from(dmabuf::page_size()).unwrap();
    fixture.pack(|packer| packer.plain(true).block_size(page));
    // The kernel's validation knows regular files, directories and links alone.
    let fifo = libc::S_IFIFO | 0o644;
    fixture.poke(fixture.inode_of("empty") + 4, &fifo.to_le_bytes());
    assert_differences(&fixture, &[], &["structure: inode "]);
    assert!(fixture.run(&["ls", "--strict", "IMAGE"]).error().contains("not a file, a directory or a"));
}

#[test]
fn another_machines_pages_are_no_difference() {
    let fixture = Fixture::new();
    for size in [4096_u32, 16384, 65536] {
        fixture.pack(|packer| packer.block_size(size));
        let text = fixture.run(&["verify", "IMAGE", "TREE"]).ok();
        let strict = fixture.run(&["ls", "--strict", "IMAGE"]);
        if u64::from(size) == dmabuf::page_size() {
            assert!(text.contains(": ok; ") && !text.contains("kernels"), "{text}");
            strict.ok();
        } else {
            let said = format!("; kernels with pages of {size} bytes mount it, not this one (");
            assert!(text.contains(": ok; ") && text.contains(&said), "{text}");
            assert!(strict.error().contains("--block-size page"));
        }
    }
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
fn realigned_files_are_compared_as_they_were() {
    let fixture = Fixture::new();
    let source = fs::read(fixture.tree().join("model.safetensors")).unwrap();
    assert_ne!(fixture.run(&["cat", "IMAGE", "model.safetensors"]).stdout, source);
    assert_eq!(fixture.run(&["cat", "--original", "IMAGE", "model.safetensors"]).stdout, source);
    let text = fixture.run(&["verify", "IMAGE", "TREE"]).ok();
    assert!(text.contains("realigned file"), "{text}");
    fixture.run(&["extract", "IMAGE", "DIR/out"]).ok();
    assert_eq!(fs::read(fixture.path("out/model.safetensors")).unwrap(), source);
    fixture.run(&["extract", "--as-stored", "IMAGE", "DIR/stored"]).ok();
    let stored = fs::read(fixture.path("stored/model.safetensors")).unwrap();
    assert_eq!(fixture.run(&["cat", "IMAGE", "model.safetensors"]).stdout, stored);

    // The last byte of the source's last tensor, and a byte of its header.
    let path = fixture.tree().join("model.safetensors");
    let last = source.len() - 1;
    for at in [last, 9] {
        let mut bytes = source.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let run = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
        assert_eq!(run.text(), format!("source: /model.safetensors: contents differ from byte {at} on\n"));
    }
    fs::write(&path, safetensors(&[("ids", "I64", &[1], &[0; 8])], 0)).unwrap();
    let run = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
    assert!(run.text().contains(" bytes, in the source "), "{run:?}");
}

#[test]
fn a_published_sha256_is_that_of_the_source() {
    let fixture = Fixture::new();
    let sums = std::process::Command::new("sha256sum")
        .args(["model.safetensors", "config.json"])
        .current_dir(fixture.tree())
        .output()
        .unwrap();
    assert!(sums.status.success(), "{sums:?}");
    fs::write(fixture.path("SHA256SUMS"), &sums.stdout).unwrap();
    let list = String::from_utf8(sums.stdout).unwrap();
    let model = format!("/model.safetensors={}", &list[..64]);
    for exact in [true, false] {
        fixture.pack(|packer| packer.exact(exact));
        let text = fixture.run(&["verify", "IMAGE", "--sha256sums", "DIR/SHA256SUMS"]).ok();
        assert!(text.contains("SHA-256 of 2 files"), "{text}");
        fixture.run(&["verify", "IMAGE", "--sha256", &model]).ok();
        let wrong = model.replace("/model.safetensors=", "config.json=");
        let run = fixture.run(&["verify", "-q", "IMAGE", "--sha256", &wrong]);
        assert_eq!(run.status, 1);
        assert!(run.text().starts_with("sha256: config.json: SHA-256 is "), "{run:?}");
        let run = fixture.run(&["verify", "-q", "IMAGE", "--sha256", &model.replace("model", "absent")]);
        assert_eq!(run.status, 1, "{run:?}");
    }
    fs::write(fixture.path("SHA256SUMS"), "no list\n").unwrap();
    assert!(fixture.run(&["verify", "IMAGE", "--sha256sums", "DIR/SHA256SUMS"]).error().contains("line 1"));
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
    let run = fixture.run(&["verify", "IMAGE", "--sha256", "a=0"]);
    assert!(run.status == 2 && run.stderr.contains("64 hexadecimal digits"), "{run:?}");
}

/// Each file that promises tensors and has none is a difference, also in a freshly packed image.
#[test]
fn broken_files_are_named() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let whole = fs::read(tree.join("model.safetensors")).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    fs::create_dir(tree.join("bad")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(tree.join("bad").join(name), bytes).unwrap();
    write("cut.safetensors", &whole[..whole.len() - 1]);
    write("short.safetensors", &whole[..40]);
    write("trailing.safetensors", &[&whole[..], b"x"].concat());
    write("empty.safetensors", b"");
    write("pointer.safetensors", pointer.as_bytes());
    write("pytorch_model.bin", pointer.as_bytes());
    write("model.gguf", b"PK\x03\x04");
    write("good.gguf", &[b"GGUF\x03\0\0\0", &[0; 16][..]].concat());
    // In a Hugging Face cache the link has the name.
    fs::create_dir(tree.join("blobs")).unwrap();
    fs::write(tree.join("blobs/0a"), &whole[..whole.len() - 1]).unwrap();
    symlink("../blobs/0a", tree.join("bad/link.safetensors")).unwrap();
    fixture.pack(|packer| packer);
    let run = fixture.run(&["verify", "-q", "IMAGE", "TREE"]);
    let mut lines: Vec<_> = run.text().lines().collect();
    lines.sort_unstable();
    let expected = [
        ("/bad/cut.safetensors", "tensor data ends at"),
        ("/bad/empty.safetensors", "the file is empty"),
        ("/bad/link.safetensors", "tensor data ends at"),
        ("/bad/model.gguf", "not a GGUF file but a zip archive"),
        (
            "/bad/pointer.safetensors",
            "a git-lfs pointer; the file itself was not downloaded: run `git lfs pull`",
        ),
        (
            "/bad/pytorch_model.bin",
            "a git-lfs pointer; the file itself was not downloaded: run `git lfs pull`",
        ),
        ("/bad/short.safetensors", "is outside the file"),
        ("/bad/trailing.safetensors", "tensor data ends at"),
    ];
    assert_eq!(lines.len(), expected.len(), "{run:?}");
    for (line, (path, text)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("tensors: {path}: ")) && line.contains(text), "{line}");
    }
    assert_eq!((run.status, run.stderr.as_str()), (1, ""), "{run:?}");

    // What is asked of one file does not fail because of another.
    let good = fixture.run(&["inspect", "IMAGE", "/model.safetensors"]).ok();
    assert!(good.contains("embed.weight"), "{good}");
    let all = fixture.run(&["inspect", "IMAGE"]);
    assert_eq!((all.status, all.stderr.lines().count()), (2, 8), "{all:?}");
    assert!(
        fixture.run(&["inspect", "IMAGE", "/bad/cut.safetensors"]).error().contains("/bad/cut.safetensors: ")
    );
}

#[test]
fn shards_that_are_missing_are_differences() {
    let fixture = Fixture::new();
    let sharded = fixture.tree().join("sharded");
    fs::remove_file(sharded.join("model.safetensors.index.json")).unwrap();
    fixture.pack(|packer| packer);
    fixture.run(&["verify", "IMAGE"]).ok();
    fs::remove_file(sharded.join("model-00001-of-00002.safetensors")).unwrap();
    fixture.pack(|packer| packer);
    let line = "checkpoint: /sharded: /sharded/model-*-of-00002.safetensors: 1 of 2 shards are missing";
    assert_differences(&fixture, &["TREE"], &[line]);
}

#[test]
fn a_variant_is_a_checkpoint() {
    let fixture = Fixture::new();
    let sharded = fixture.tree().join("sharded");
    let list = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"lost-1.safetensors","c":"lost-2.safetensors"}}"#;
    fs::write(sharded.join("model.safetensors.index.fp16.json"), list).unwrap();
    fixture.pack(|packer| packer);
    assert_differences(
        &fixture,
        &[],
        &[
            "/sharded/model.safetensors.index.fp16.json: 2 of its 3 shards are not in the image (looked for in \
           /sharded): lost-1.safetensors, lost-2.safetensors",
        ],
    );
    let list = r#"{"weight_map":{"b":"model-00002-of-00002.safetensors"}}"#;
    fs::write(sharded.join("model.safetensors.index.fp16.json"), list).unwrap();
    fixture.pack(|packer| packer);
    fixture.run(&["verify", "IMAGE"]).ok();
    let shown = fixture.run(&["inspect", "--variant", "fp16", "IMAGE", "sharded"]).ok();
    assert!(shown.contains("model-00002-of-00002") && !shown.contains("model-00001-of-00002"), "{shown}");
    let error = fixture.run(&["inspect", "--variant", "int8", "IMAGE", "sharded"]).error();
    assert!(error.contains("no tensors of the variant \"int8\"; there are fp16"), "{error}");
}

#[test]
fn any_name_of_an_inode_is_right() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    // The deeper name is first in the order of paths, the other one in that of the walk.
    fs::create_dir(tree.join("a")).unwrap();
    fs::hard_link(tree.join("model.safetensors"), tree.join("a/copy.safetensors")).unwrap();
    fs::hard_link(tree.join("config.json"), tree.join("a/config.json")).unwrap();
    fixture.pack(|packer| packer);
    fixture.run(&["verify", "IMAGE", "TREE"]).ok();
}

#[test]
fn many_names_and_long_paths_are_compared() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    fs::write(tree.join("names"), b"one file").unwrap();
    fs::create_dir(tree.join("many")).unwrap();
    for name in 0..20_000 {
        fs::hard_link(tree.join("names"), tree.join(format!("many/{name}"))).unwrap();
    }
    fixture.pack(|packer| packer);
    fixture.run(&["verify", "-q", "IMAGE", "TREE"]).ok();
    fs::remove_file(tree.join("many/777")).unwrap();
    fs::write(tree.join("many/x"), b"").unwrap();
    assert_differences(
        &fixture,
        &["TREE"],
        &["source: /many/777: only in the image", "source: /many/x: only in the"],
    );

    // An image whose tree is extracted to a depth that no path reaches.
    let image = fixture.path("out");
    fixture.run(&["extract", "-q", "-p", "IMAGE", "DIR/out"]).ok();
    fixture.run(&["verify", "-q", "IMAGE", image.to_str().unwrap()]).ok();
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_an_error_not_a_signal() {
    let fixture = Fixture::new();
    fs::write(fixture.tree().join("large"), vec![1; 64 << 20]).unwrap();
    fixture.pack(|packer| packer);
    let bytes = fs::metadata(fixture.image()).unwrap().len();
    // The command stops at the pipe that nobody reads yet, and goes on when the file is shorter.
    let mut child = std::process::Command::new(common::DAXFS)
        .arg("cat")
        .arg(fixture.image())
        .arg("large")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut stdout, &mut [0; 1000]).unwrap();
    fs::OpenOptions::new().write(true).open(fixture.image()).unwrap().set_len(1 << 20).unwrap();
    let _ = std::io::copy(&mut stdout, &mut std::io::sink());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("daxfs: ") && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains("cut short"), "{stderr}");

    // `verify` reads by itself, so the moment is left to chance: whatever it does then, no signal ends it.
    fixture.pack(|packer| packer);
    assert_eq!(fs::metadata(fixture.image()).unwrap().len(), bytes);
    let image = fixture.image();
    let cutter = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        fs::OpenOptions::new().write(true).open(image).unwrap().set_len(1 << 20).unwrap();
    });
    let run = fixture.run(&["verify", "-q", "IMAGE"]);
    cutter.join().unwrap();
    assert!((0..=2).contains(&run.status), "{run:?}");
}

/// What the packer has followed is compared with what the links lead to.
#[test]
fn a_snapshot_of_links_is_its_own_source() {
    let fixture = Fixture::new();
    let snapshot = fixture.path("cache/snapshots/1");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(fixture.path("cache/blobs/folder")).unwrap();
    fs::write(fixture.path("cache/blobs/0a"), "contents").unwrap();
    fs::write(fixture.path("cache/blobs/folder/file"), "below").unwrap();
    for (name, target) in [("a", "0a"), ("again", "0a"), ("folder", "folder")] {
        std::os::unix::fs::symlink(format!("../../blobs/{target}"), snapshot.join(name)).unwrap();
    }
    mkimage::Packer::new().input(&snapshot).plan().unwrap().write_file(fixture.image()).unwrap();
    fixture.run(&["verify", "IMAGE", "DIR/cache/snapshots/1"]).ok();
    fs::write(fixture.path("cache/blobs/folder/file"), "other").unwrap();
    let run = fixture.run(&["verify", "IMAGE", "DIR/cache/snapshots/1"]);
    assert_eq!(run.status, 1);
    assert!(run.text().contains("/folder/file"), "{}", run.text());
}

/// A file that differs is read again to say where: not all of an image's files, and each stretch once.
#[test]
fn where_files_differ_is_said_of_the_first_few() {
    let fixture = Fixture::new();
    let mut bytes = vec![7; 2 << 20];
    for number in 0..10_u8 {
        bytes[0] = number;
        fs::write(fixture.tree().join(format!("large-{number}")), &bytes).unwrap();
    }
    fixture.pack(|packer| packer);
    for number in 0..10 {
        fixture.poke(fixture.offset_of(&format!("large-{number}")) + (1 << 20), b"!");
    }
    let run = fixture.run(&["verify", "-q", "IMAGE"]);
    assert_eq!(run.status, 1);
    let all = run.text().lines().filter(|line| line.starts_with("hash: /large-")).count();
    let said = run.text().matches("; 1 of 2 MiB differ, the first from byte 1048576 on").count();
    assert_eq!((all, said), (10, 8), "{run:?}");
}
