//! Who may read an image: no more people than its sources, by their modes, lists and directories.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::write;
use mkimage::{Error, Packer};
use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

#[test]
fn an_image_is_readable_by_no_more_people_than_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    // What tests make is closed to others.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tree = dir.path().join("tree");
    let set = |name: &str, mode: u32| {
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write(&tree, "a/one", b"1");
    write(&tree, "two", b"2");
    let umask = {
        fs::write(dir.path().join("probe"), b"").unwrap();
        fs::metadata(dir.path().join("probe")).unwrap().permissions().mode() & 0o777
    };
    let mode = |packer: Packer| {
        let summary = packer.verify(true).plan().unwrap().write_file(dir.path().join("image.daxfs")).unwrap();
        let mode = fs::metadata(dir.path().join("image.daxfs")).unwrap().permissions().mode() & 0o777;
        assert_eq!(summary.mode.as_deref(), Some(&*format!("{mode:04o}")));
        assert_eq!(summary.to_string().contains("--mode"), mode & 0o004 == 0, "{summary}");
        mode
    };
    let packer = || Packer::new().input(&tree);
    for (directory, one, two, wanted) in [
        (0o755, 0o644, 0o644, umask),
        (0o755, 0o600, 0o644, 0o600),
        (0o755, 0o644, 0o600, 0o600),
        (0o755, 0o640, 0o644, 0o640 & umask),
        (0o755, 0o604, 0o644, 0o600),
        (0o700, 0o644, 0o644, 0o600),
    ] {
        set("", 0o755);
        set("a", directory);
        set("a/one", one);
        set("two", two);
        assert_eq!(mode(packer()), wanted, "{directory:o} {one:o} {two:o}");
    }
    // Who cannot pass the directories around a file cannot read it.
    fs::create_dir(dir.path().join("outer")).unwrap();
    fs::rename(&tree, dir.path().join("outer/tree")).unwrap();
    fs::create_dir(&tree).unwrap();
    symlink("../outer/tree/two", tree.join("link")).unwrap();
    for (outer, wanted) in [(0o755, umask), (0o711, umask), (0o700, 0o600), (0o710, 0o640 & umask)] {
        fs::set_permissions(dir.path().join("outer"), fs::Permissions::from_mode(outer)).unwrap();
        let inputs = ["outer/tree", "outer/tree/two", "tree"].map(|input| dir.path().join(input));
        for input in &inputs {
            fs::set_permissions(dir.path().join("outer/tree"), fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(dir.path().join("outer/tree/two"), fs::Permissions::from_mode(0o644))
                .unwrap();
            fs::set_permissions(dir.path().join("outer/tree/a"), fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(mode(Packer::new().input(input)), wanted, "{outer:o} {}", input.display());
        }
    }
    let path = dir.path().join("image.daxfs");
    packer().mode(Some(0o644)).plan().unwrap().write_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(matches!(packer().mode(Some(0o1000)).plan(), Err(Error::Setting { option: "--mode", .. })));
}

/// Version 2 of a list: the owner, user 1234, the group, the mask, others: the kind, what is allowed, and whose it is.
fn list(named: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let entries = [
        (1_u16, 7, u32::MAX),
        (2, named, 1234),
        (4, group, u32::MAX),
        (16, mask, u32::MAX),
        (32, others, u32::MAX),
    ];
    let entry = |(kind, allowed, id): (u16, u16, u32)| {
        [&kind.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2_u32.to_le_bytes().to_vec(), entries.map(entry).concat()].concat()
}

/// Gives a file or directory a list. False where there are none, which is a failure where all tests have to run.
fn set_list(path: &Path, name: &CStr, list: &[u8]) -> bool {
    match rustix::fs::setxattr(path, name, list, rustix::fs::XattrFlags::empty()) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no access control lists here");
            eprintln!("not run: no access control lists here");
            false
        }
        set => {
            set.unwrap();
            true
        }
    }
}

/// The group's bits of what has a list are those of its mask, and say nothing of the group; and a list may keep out
/// whom the mode lets in.
#[test]
fn access_control_lists_count_beside_the_mode() {
    let dir = tempfile::tempdir().unwrap();
    let outer = dir.path().join("outer");
    write(&outer, "tree/a/one", b"1");
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let mode = || {
        let packer = Packer::new().input(outer.join("tree"));
        packer.plan().unwrap().write_file(dir.path().join("image")).unwrap();
        fs::metadata(dir.path().join("image")).unwrap().permissions().mode() & 0o777
    };
    let umask = {
        fs::write(dir.path().join("probe"), b"").unwrap();
        fs::metadata(dir.path().join("probe")).unwrap().permissions().mode() & 0o777
    };
    for (name, closed, needed) in
        [("", 0o700, 1), ("tree", 0o700, 5), ("tree/a", 0o700, 5), ("tree/a/one", 0o600, 4)]
    {
        set(dir.path(), 0o755);
        set(&outer, 0o755);
        set(&outer.join("tree"), 0o755);
        set(&outer.join("tree/a"), 0o755);
        set(&outer.join("tree/a/one"), 0o644);
        let path = outer.join(name);
        set(&path, closed | u32::from(needed) << 3);
        assert_eq!(mode(), 0o640 & umask, "{name}: without a list");
        for (named, group, mask, others, wanted) in [
            (needed, 0, needed, 0, 0o600),
            (0, needed, needed, 0, 0o600),
            (needed, needed, needed, 0, 0o640 & umask),
            (0, needed, needed, needed, 0o600),
            (needed, 0, needed, needed, 0o600),
            (needed, needed, needed, needed, umask),
            (needed, needed, 0, needed, 0o600),
        ] {
            if !set_list(&path, c"system.posix_acl_access", &list(named, group, mask, others)) {
                return;
            }
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() >> 3 & 7, u32::from(mask));
            assert_eq!(mode(), wanted, "{name}: {named} {group} {mask} {others}");
        }
        rustix::fs::removexattr(&path, c"system.posix_acl_access").unwrap();
    }
}

/// A directory may have a list for what is made in it.
#[test]
fn a_list_of_the_outputs_directory_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    write(&tree, "f", b"1");
    fs::create_dir(&out).unwrap();
    for path in [dir.path(), &tree, &out] {
        set(path, 0o755);
    }
    if !set_list(&out, c"system.posix_acl_default", &list(7, 7, 7, 7)) {
        return;
    }
    for (source, asked, wanted) in
        [(0o600, None, 0o600), (0o640, None, 0o640), (0o644, None, 0o644), (0o600, Some(0o664), 0o664)]
    {
        set(&tree.join("f"), source);
        let path = out.join("image");
        Packer::new().input(&tree).mode(asked).plan().unwrap().write_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, wanted, "{source:o}");
        let list = rustix::fs::getxattr(&path, c"system.posix_acl_access", &mut [0_u8; 64][..]);
        assert_eq!(list, Err(rustix::io::Errno::NODATA), "{source:o}");
    }
}
