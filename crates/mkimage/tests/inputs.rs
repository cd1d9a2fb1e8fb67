//! What is taken as input, what is refused, and what becomes of sources that change.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, noise, open_strict, varied_tree, write};
use mkimage::{Error, Packer, Progress, Result, Summary};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Packs into a file beside the inputs; gives its path, which must not exist after an error.
fn try_pack(dir: &Path, packer: Packer) -> (Result<Summary>, PathBuf) {
    let out = dir.join("out");
    fs::create_dir_all(&out).unwrap();
    let path = out.join("image");
    let result = packer.plan().and_then(|plan| plan.write_file(&path));
    let left: Vec<_> = fs::read_dir(&out).unwrap().collect();
    assert_eq!(left.len(), usize::from(result.is_ok()), "{left:?}");
    (result, path)
}

#[test]
fn one_file_lies_in_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "in/some.bin", b"contents");
    symlink("some.bin", dir.path().join("in/link.bin")).unwrap();
    for (input, name) in [(file, "/some.bin"), (dir.path().join("in/link.bin"), "/link.bin")] {
        let (summary, path) = try_pack(dir.path(), Packer::new().input(input));
        assert_eq!((summary.as_ref().unwrap().files, summary.unwrap().directories), (1, 1));
        let image = open_strict(&path);
        assert_eq!(image.file(name).unwrap().to_vec().unwrap(), b"contents");
        assert_eq!(image.root().metadata().mode, 0o040_755);
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn several_inputs_keep_their_base_names() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(&dir.path().join("in/one"));
    let two = write(dir.path(), "in/two", b"2");
    let inside = dir.path().join("in/one/sizes/../../one");
    let (summary, path) = try_pack(dir.path(), Packer::new().input(&two).input(inside).verify(true));
    assert!(summary.unwrap().verified);
    let mut wanted = list_directory(&dir.path().join("in"));
    let mut found = list_image(&open_strict(&path));
    // The root is made out of nothing.
    wanted.remove(&b"/"[..]);
    found.remove(&b"/"[..]);
    assert_eq!(found, wanted);

    let other = write(dir.path(), "other/two", b"");
    let (result, _) = try_pack(&dir.path().join("x"), Packer::new().input(&two).input(&other));
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::DuplicateName { .. }), "{error}");
    assert!(error.to_string().contains("in/two") && error.to_string().contains("other/two"), "{error}");
}

#[test]
fn inputs_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(try_pack(dir.path(), Packer::new()).0, Err(Error::NoInput)));
    let missing = dir.path().join("missing");
    let error = try_pack(dir.path(), Packer::new().input(&missing)).0.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn special_files_are_refused_by_name_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "a", b"a");
    let _socket = UnixListener::bind(source.join("socket")).unwrap();
    nix::unistd::mkfifo(&source.join("z"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = try_pack(dir.path(), Packer::new().input(&source)).0.unwrap_err();
    assert!(matches!(&error, Error::Special { kind: "socket", .. }), "{error}");
    assert!(error.to_string().contains("in/socket"), "{error}");

    let (summary, path) = try_pack(dir.path(), Packer::new().input(&source).skip_special(true));
    let summary = summary.unwrap();
    assert_eq!(summary.skipped.len(), 2);
    assert!(summary.skipped[1].ends_with("in/z"));
    let image = open_strict(&path);
    let mut names: Vec<_> = image.walk().map(|entry| String::from_utf8(entry.path()).unwrap()).collect();
    names.sort();
    assert_eq!(names, ["/", "/.daxfs", "/.daxfs/erofs", "/.daxfs/index", "/a"]);
}

#[test]
fn the_packers_own_name_is_kept_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, ".daxfs/index", b"an old one");
    write(&source, "below/.daxfs", b"an ordinary file");
    let error = try_pack(dir.path(), Packer::new().input(&source).plain(true)).0.unwrap_err();
    assert!(matches!(error, Error::Name { .. }) && error.to_string().contains("in/.daxfs"), "{error}");
    let (summary, path) = try_pack(dir.path(), Packer::new().input(&source));
    assert!(summary.unwrap().warnings[0].contains("in/.daxfs"));
    let image = open_strict(&path);
    let index = image.index().unwrap().unwrap();
    assert_eq!((index.file_count(), index.tensor_count(), index.has_hashes()), (1, 0, true));
    assert_eq!(image.file("/below/.daxfs").unwrap().len(), 16);

    fs::remove_dir_all(source.join(".daxfs")).unwrap();
    write(&source, ".daxfs", b"a file that would be lost");
    fs::remove_file(path).unwrap();
    let error = try_pack(dir.path(), Packer::new().input(&source)).0.unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
}

#[test]
fn an_output_inside_the_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "sub/file", b"x");
    for place in ["image", "sub/image"] {
        let plan = Packer::new().input(dir.path()).plan().unwrap();
        let error = plan.write_file(dir.path().join(place)).unwrap_err();
        assert!(matches!(error, Error::Output { .. }), "{error}");
    }
    assert_eq!(list_directory(dir.path()).len(), 3);
    // Beside the only file it is fine.
    let plan = Packer::new().input(dir.path().join("sub/file")).plan().unwrap();
    plan.write_file(dir.path().join("sub/image")).unwrap();
}

#[test]
fn settings_out_of_range() {
    for (packer, option) in [
        (Packer::new().align(3), "--align"),
        (Packer::new().align(0), "--align"),
        (Packer::new().align(1 << 31), "--align"),
        (Packer::new().tensor_alignment(Some(4)), "--align-tensors"),
        (Packer::new().block_size(8192), "--block-size"),
        (Packer::new().format(mkimage::Format::V5).block_size(16384), "--block-size"),
        (Packer::new().threads(0), "--threads"),
    ] {
        let error = packer.input("/nonexistent").plan().unwrap_err();
        assert!(matches!(&error, Error::Setting { option: found, .. } if *found == option), "{error}");
    }
}

/// Does something to the source when the first bytes have been copied.
#[derive(Debug)]
struct Meddle<F>(std::sync::Mutex<Option<F>>);

/// `Debug` for closures.
struct Act(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Act")
    }
}

impl Progress for Meddle<Act> {
    fn start(&self, _total: u64) {}
    fn advance(&self, _bytes: u64) {
        if let Some(Act(act)) = self.0.lock().unwrap().take() {
            act();
        }
    }
    fn finish(&self) {}
}

#[test]
fn a_source_that_changes_is_an_error() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("shorter", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap()),
        ("longer", |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("written to", |path| {
            OpenOptions::new().write(true).open(path).unwrap().write_all(b"other").unwrap()
        }),
        ("permissions", |path| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }),
        ("replaced", |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, noise(1, 3 << 20)).unwrap();
        }),
        ("removed", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        for midway in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let source = dir.path().join("in");
            let path = write(&source, "a.bin", &noise(1, 3 << 20));
            let mut packer = Packer::new().input(&source).threads(1);
            if midway {
                let path = path.clone();
                packer = packer.progress(Meddle(Some(Act(Box::new(move || change(&path)))).into()));
            }
            let plan = packer.plan().unwrap();
            if !midway {
                change(&path);
            }
            let out = dir.path().join("out");
            fs::create_dir(&out).unwrap();
            let result = plan.write_file(out.join("image"));
            // A file that loses its name midway stays readable, but its inode says that something happened.
            match result.unwrap_err() {
                Error::Changed { path: named, .. } => assert_eq!(named, path, "{what}"),
                Error::Io { op: "open", .. } if what == "removed" && !midway => {}
                error => panic!("{what}: {error}"),
            }
            assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{what}");
            assert!(plan.write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No)).is_err(), "{what}");
        }
    }
}

/// Small files are read with those beside them, and looked at when they were read.
#[test]
fn a_small_file_that_changes_is_an_error() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("shorter", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(99).unwrap()),
        ("longer", |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("emptied", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap()),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a FIFO", |path| {
            fs::remove_file(path).unwrap();
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
    ];
    for (what, change) in changes {
        // With and without room behind it in its page.
        for len in [100, 4096] {
            let dir = tempfile::tempdir().unwrap();
            let source = dir.path().join("in");
            let path = write(&source, "b", &noise(1, len));
            write(&source, "a", &noise(2, 50));
            write(&source, "c", &noise(3, 5000));
            let plan = Packer::new().input(&source).plan().unwrap();
            plan.write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No)).unwrap();
            change(&path);
            let results = [
                plan.write_file(dir.path().join("image")).map(|_| ()),
                plan.write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No)).map(|_| ()),
            ];
            for result in results {
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, Error::Changed { path: named, .. } if *named == path),
                    "{what}: {error}"
                );
            }
        }
    }
}

/// Asks for an end as soon as something was copied.
#[derive(Debug, Default)]
struct Stop(std::sync::atomic::AtomicBool);

impl Progress for Stop {
    fn start(&self, _total: u64) {}
    fn advance(&self, _bytes: u64) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    fn finish(&self) {}
    fn cancelled(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[test]
fn packing_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "a.bin", &noise(1, 3 << 20));
    // `try_pack` makes sure that nothing is left behind.
    let packer = Packer::new().input(&source).threads(1).progress(Stop::default());
    let error = try_pack(dir.path(), packer).0.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[test]
fn a_file_whose_size_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("image");
    let plan = Packer::new().input("/proc/self/status").input("/proc/version").dedupe(true).plan().unwrap();
    // Empty files are not opened, so packing them would lose what reading them gives.
    let result = plan.write_file(&out);
    assert!(matches!(result, Err(Error::Changed { .. })), "{result:?}");
    assert!(!out.exists());
}

#[test]
fn an_older_image_is_replaced_and_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "a", b"old");
    let (_, path) = try_pack(dir.path(), Packer::new().input(&source));
    let old = open_strict(&path);
    write(&source, "a", b"newer");
    try_pack(dir.path(), Packer::new().input(&source)).0.unwrap();
    assert_eq!(old.file("/a").unwrap().to_vec().unwrap(), b"old");
    assert_eq!(open_strict(&path).file("/a").unwrap().to_vec().unwrap(), b"newer");
}
