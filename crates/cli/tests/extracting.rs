//! `extract`: the tree comes back, and nothing is written elsewhere.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run, safetensors};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
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

#[test]
fn the_bytes_that_are_written_are_counted() {
    let fixture = Fixture::new();
    fs::remove_dir_all(fixture.tree()).unwrap();
    fs::create_dir(fixture.tree()).unwrap();
    // The packer leaves the spaces behind the header out, so the source is longer than what the image holds.
    let source = safetensors(&[("a", "U8", &[5], &[1; 5]), ("b", "F32", &[1], &[2; 4])], 200_001);
    fs::write(fixture.tree().join("model.safetensors"), &source).unwrap();
    fs::hard_link(fixture.tree().join("model.safetensors"), fixture.tree().join("other.safetensors"))
        .unwrap();
    fixture.pack(|packer| packer);
    let stored = fixture.run(&["cat", "IMAGE", "model.safetensors"]).stdout.len();
    assert!(stored < source.len(), "{stored}");
    let limit = stored.to_string();
    let error = fixture.run(&["extract", "--max-bytes", &limit, "IMAGE", "DIR/out"]).error();
    assert!(error.contains(&format!("({} bytes), more than --max-bytes {limit}", source.len())), "{error}");
    assert!(!fixture.path("out").exists());
    fixture.run(&["extract", "-q", "--max-bytes", &source.len().to_string(), "IMAGE", "DIR/out"]).ok();
    assert_eq!(fs::read(fixture.path("out/other.safetensors")).unwrap(), source);
    fixture.run(&["extract", "-q", "--as-stored", "--max-bytes", &limit, "IMAGE", "DIR/stored"]).ok();
}

/// Links to files that are too deep need a directory meanwhile, in a destination that then becomes read-only.
#[test]
fn read_only_trees_with_deep_links_come_back() {
    let fixture = Fixture::new();
    let mut deep = fixture.tree();
    (0..16).for_each(|_| deep.push("d".repeat(250)));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f"), b"bottom").unwrap();
    fs::hard_link(deep.join("f"), deep.join("g")).unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(&fixture.tree(), 0o555);
    fixture.pack(|packer| packer);
    set(&fixture.tree(), 0o755);
    // Root may write everywhere, so somebody else extracts.
    let (command, place) = (fixture.path("daxfs"), fixture.path("place"));
    fs::copy(DAXFS, &command).unwrap();
    fs::create_dir(&place).unwrap();
    set(fixture.dir.path(), 0o755);
    set(&fixture.image(), 0o644);
    let mut command = Command::new(command);
    command.args(["extract", "-q"]).arg(fixture.image()).arg("out").current_dir(&place);
    if is_root() {
        std::os::unix::fs::chown(&place, Some(65534), Some(65534)).unwrap();
        command.uid(65534).gid(65534);
    }
    Run::of(&mut command).ok();
    let mode = mode(&place.join("out"));
    set(&place.join("out"), 0o755);
    assert_eq!(mode, 0o555);
    let names = fs::read_dir(place.join("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().is_some_and(|name| name.starts_with('.'))));
}
