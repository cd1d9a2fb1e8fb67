//! Images that are made to hurt: each is refused, or mounted and walked, within bounds.

use super::support::{Place, can_mount};
use daxfs::OpenOptions;
use daxfs::format::{S_IFDIR, S_IFLNK, S_IFREG};
use daxfs_tests::forge::{self, Forge, Version, mini};
use daxfs_tests::golden::{Golden, project_root};
use daxfs_tests::overlay::Overlay;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Mounts the bytes, if they are an image, and touches everything. The most that it reads of a file is a MiB.
fn walk(place: &Place, bytes: Vec<u8>) -> Option<usize> {
    let image =
        OpenOptions::new().max_metadata(64 << 20).open_region(daxfs::Region::from_bytes(bytes)).ok()?;
    let most = image.len();
    let mount = place.mount_as(image);
    let mut paths = vec![mount.path().to_owned()];
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        seen += 1;
        assert!(seen <= most, "more names than the image has");
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let _ = fs::read_link(&path);
        if meta.is_dir() {
            // Names that say where they lead cannot come out of a directory.
            let names = fs::read_dir(&path).unwrap().map_while(Result::ok);
            paths.extend(names.map(|entry| entry.path()));
        } else if meta.is_file() {
            let file = fs::File::open(&path).unwrap();
            for offset in [0, meta.len() / 2, meta.len().saturating_sub(1), u64::MAX >> 1] {
                let _ = file.read_at(&mut vec![0; 1 << 20], offset);
            }
        }
    }
    mount.unmount().unwrap();
    Some(seen)
}

/// A small generator of numbers that is the same everywhere.
fn noise(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

#[test]
fn damaged_images_are_refused_or_walked() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    let mut mounted = 0;
    for (seed, name) in ["everything-v8", "everything-v5", "plain-v8"].iter().enumerate() {
        let path = project_root().join("tests/golden").join(format!("{name}.daxfs"));
        let whole = fs::read(path).unwrap();
        assert!(walk(&place, whole.clone()).is_some(), "{name}");
        let mut numbers = noise(seed as u64);
        let mut number = |most: usize| usize::try_from(numbers.next().unwrap()).unwrap() % most;
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=number(4) {
                // Most of what decides lies in the first pages.
                let within = if number(2) == 0 { 16_384.min(bytes.len()) } else { bytes.len() };
                let at = number(within);
                bytes[at] = u8::try_from(number(256)).unwrap();
            }
            mounted += usize::from(walk(&place, bytes).is_some());
        }
    }
    assert!(mounted > 20, "{mounted}: of what is refused nothing was tried");
}

#[test]
fn every_mutation_of_the_golden_set_is_refused_or_walked() {
    let Some(golden) = Golden::find("mutations under FUSE") else { return };
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    for mutation in golden.mutations() {
        walk(&place, golden.mutated(&mutation));
    }
}

#[test]
fn forged_numbers_do_no_harm() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 7] = [
        |image| forge::inode(image, 3).nlink = 0.into(),
        |image| forge::inode(image, 3).nlink = u32::MAX.into(),
        |image| forge::inode(image, 3).uid = u32::MAX.into(),
        |image| forge::inode(image, 3).mode = (S_IFREG | 0o7777).into(),
        |image| forge::inode(image, 1).mode = S_IFDIR.into(),
        |image| forge::inode(image, 3).mode = 0o020_666.into(),
        |image| forge::inode(image, 3).mode = 0o140_777.into(),
    ];
    for version in [Version::V8, Version::V5] {
        for change in changes {
            let mut image = mini(version).finish();
            change(&mut image);
            walk(&place, image);
        }
    }
}

/// Numbers of inodes that FUSE has another meaning for, or no room: only an overlay can have them.
#[test]
fn numbers_that_fuse_cannot_have_are_not_listed() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    let mut image = mini(Version::V8).finish();
    let mut overlay = Overlay::new(64, 8);
    for (ino, name) in [(0, "zero"), (1 << 42, "high"), (9, "nine")] {
        overlay.inode(ino, S_IFREG | 0o644, 0, 1);
        overlay.name(1, name.as_bytes(), ino, S_IFREG | 0o644);
    }
    overlay.attach(&mut image);
    walk(&place, image.clone());
    let Ok(image) = OpenOptions::new().open_region(daxfs::Region::from_bytes(image)) else { return };
    let mount = place.mount_as(image);
    let names =
        |at: &Path| fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let names = names(mount.path());
    assert!(names.iter().any(|name| name == "nine") && names.iter().all(|name| name != "zero"), "{names:?}");
    assert!(fs::metadata(mount.path().join("nine")).is_ok());
    assert!(fs::metadata(mount.path().join("zero")).is_err());
}

#[test]
fn links_lead_where_they_say_and_no_name_leaves_the_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    let outside = place.tree().with_file_name("outside");
    fs::write(&outside, "outside").unwrap();
    let mut forge = Forge::with_version(Version::V8, 3);
    forge.symlink(2, b"../outside").dir(1, &[(2, "link"), (2, "again")]);
    let mut bytes = forge.finish();
    forge::inode(&mut bytes, 2).mode = (S_IFLNK | 0o777).into();
    forge::inode(&mut bytes, 2).nlink = 2.into();
    // As with every file system the kernel follows links, by its rules: whoever runs programs there uses chroot.
    if walk(&place, bytes.clone()).is_some() {
        for name in [&b".."[..], b".", b"a/b", b"\0"] {
            let mut bad = bytes.clone();
            let entry = forge::dirent(&mut bad, 1, 0);
            entry.name[..name.len()].copy_from_slice(name);
            entry.name_len = u16::try_from(name.len()).unwrap().into();
            assert_eq!(walk(&place, bad), None, "{name:?}");
        }
    }
}
