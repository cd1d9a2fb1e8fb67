//! `extract`: the tree comes back, and nothing is written elsewhere.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn the_tree_comes_back() {
    let fixture = Fixture::new();
    let text = fixture.run(&["extract", "-p", "IMAGE", "DIR/out"]).ok();
    assert!(text.contains("/out: 5 directories, 12 files, 3 symlinks, "), "{text}");
    // Types, modes, contents, targets and hard links.
    let out = fixture.path("out");
    let run = fixture.run(&["verify", "-q", "IMAGE", out.to_str().unwrap()]);
    assert_eq!((run.status, run.text()), (0, ""), "{run:?}");
    assert!(!out.join(".daxfs").exists());
    assert_eq!(mode(&out.join("dir/run.sh")), 0o4755);
    assert_eq!(mode(&out.join("empty-dir")), 0o1777);
    let ino = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(ino("dir/data.bin"), ino("dir/sub/same.bin"));
    assert_eq!(fs::read_link(out.join("dangling")).unwrap(), Path::new("/nowhere"));
}

#[test]
fn parts_come_out_alone() {
    let fixture = Fixture::new();
    fixture.run(&["extract", "-q", "--path", "/dir/sub", "IMAGE", "DIR/sub"]).ok();
    let mut names: Vec<_> =
        fs::read_dir(fixture.path("sub")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["deep.txt", "same.bin"]);
    fixture.run(&["extract", "-q", "--path", "config.json", "IMAGE", "DIR/one"]).ok();
    assert_eq!(fs::read(fixture.path("one/config.json")).unwrap(), b"{\"hidden_size\": 384}\n");
    assert!(fixture.run(&["extract", "--path", "absent", "IMAGE", "DIR/none"]).error().contains("absent"));
    assert!(!fixture.path("none").exists());
}

#[test]
fn the_destination_must_be_new_or_empty() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("empty")).unwrap();
    fixture.run(&["extract", "-q", "IMAGE", "DIR/empty"]).ok();
    assert!(fixture.run(&["extract", "IMAGE", "DIR/empty"]).error().contains("not empty"));
    assert!(fixture.run(&["extract", "IMAGE", "IMAGE"]).error().contains("not a directory"));
    assert!(fixture.run(&["extract", "IMAGE", "DIR/no/parent"]).error().contains("No such file"));
}

#[test]
fn planted_links_are_refused() {
    let fixture = Fixture::new();
    let outside = fixture.path("outside");
    fs::create_dir(&outside).unwrap();
    // The destination itself, and a name in it that the image has as a directory.
    symlink(&outside, fixture.path("link")).unwrap();
    assert!(fixture.run(&["extract", "IMAGE", "DIR/link"]).error().contains("symbolic link"));
    fs::create_dir(fixture.path("trap")).unwrap();
    symlink(&outside, fixture.path("trap/dir")).unwrap();
    assert!(fixture.run(&["extract", "IMAGE", "DIR/trap"]).error().contains("not empty"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn links_of_the_image_are_written_and_never_followed() {
    // A link to a directory outside, and beside it a directory whose files sort behind it.
    let fixture = Fixture::new();
    let outside = fixture.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, fixture.tree().join("a-link")).unwrap();
    fs::create_dir(fixture.tree().join("b")).unwrap();
    fs::write(fixture.tree().join("b/pwned"), b"x").unwrap();
    fixture.pack(|packer| packer);
    // As an attacker would: give the directory the name of the link. Names in a directory are unique, so the image
    // is refused before anything is written.
    let stat = fixture.run(&["stat", "--json", "IMAGE", "/"]).json();
    let entries = stat["entries"][0]["contents"]["offset"].as_u64().unwrap();
    let bytes = fs::read(fixture.image()).unwrap();
    let at = (0..).map(|number| entries + 272 * number + 16);
    let at = at.into_iter().find(|at| bytes[usize::try_from(*at).unwrap()..].starts_with(b"b\0")).unwrap();
    fixture.poke(at - 8, &[6, 0]);
    fixture.poke(at, b"a-link");
    assert!(fixture.run(&["extract", "IMAGE", "DIR/out"]).error().contains("unique"));
    assert!(!fixture.path("out").exists());
    // Or call it a way out.
    fixture.poke(at - 8, &[2, 0]);
    fixture.poke(at, b"..");
    assert!(fixture.run(&["extract", "IMAGE", "DIR/out"]).error().contains("'..'"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn others_than_root_get_tame_modes() {
    let fixture = Fixture::new();
    let extract = |flags: &str, dest: &str| {
        let script = format!(r#"umask 027; exec "$0" extract -q {flags} "$1" "$2""#);
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(DAXFS).arg(fixture.image()).arg(fixture.path(dest));
        Run::of(&mut command).ok()
    };
    extract("--no-owner", "tame");
    assert_eq!(mode(&fixture.path("tame/dir/run.sh")), 0o750);
    assert_eq!(mode(&fixture.path("tame/empty-dir")), 0o750);
    assert_eq!(mode(&fixture.path("tame/config.json")), 0o640);
    extract("--no-owner --same-permissions", "exact");
    assert_eq!(mode(&fixture.path("exact/dir/run.sh")), 0o4755);
    extract("", "default");
    let expected = if is_root() { 0o4755 } else { 0o750 };
    assert_eq!(mode(&fixture.path("default/dir/run.sh")), expected);
}

#[test]
fn root_restores_owners() {
    let fixture = Fixture::new();
    let inode = fixture.inode_of("config.json");
    fixture.poke(inode + 8, &[0x39, 0x30, 0, 0, 0x3a, 0x30, 0, 0]);
    fixture.run(&["extract", "-q", "IMAGE", "DIR/out"]).ok();
    fixture.run(&["extract", "-q", "--no-owner", "IMAGE", "DIR/own"]).ok();
    let owner = |name: &str| {
        let metadata = fs::metadata(fixture.path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    assert_eq!(owner("out/config.json"), if is_root() { (12345, 12346) } else { own });
    assert_eq!(owner("own/config.json").0, own.0);
}

#[test]
fn special_files_are_refused_or_skipped() {
    let fixture = Fixture::new();
    // The empty file becomes a FIFO, as upstream's packers store them.
    let inode = fixture.inode_of("empty");
    fixture.poke(inode + 4, &0o010_644_u32.to_le_bytes());
    let error = fixture.run(&["extract", "IMAGE", "DIR/out"]).error();
    assert!(error.starts_with("/empty: a fifo cannot be extracted"), "{error}");
    assert!(!fixture.path("out").exists());
    let run = fixture.run(&["extract", "--skip-special", "IMAGE", "DIR/out"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, "daxfs: skipped 1 special file\n"));
    assert!(!fixture.path("out/empty").exists() && fixture.path("out/config.json").exists());
}

#[test]
fn what_was_written_before_an_error_is_reported() {
    let fixture = Fixture::new();
    // A limit on the size of files stands in for a full disk.
    let script = r#"trap "" XFSZ; ulimit -f 4; exec "$0" extract -q "$1" "$2""#;
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(DAXFS).arg(fixture.image()).arg(fixture.path("out"));
    let error = Run::of(&mut command).error();
    assert!(error.contains("/out is left incomplete: ") && error.contains(": File too large"), "{error}");
}

#[test]
fn deep_trees_come_back() {
    let fixture = Fixture::new();
    let mut deep = fixture.tree();
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f"), b"bottom").unwrap();
    fixture.pack(|packer| packer);
    fixture.run(&["extract", "-q", "-p", "IMAGE", "DIR/out"]).ok();
    fixture.run(&["verify", "-q", "IMAGE", "DIR/out"]).ok();
    fixture.run(&["tree", "IMAGE"]).ok();
}
