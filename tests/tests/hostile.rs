//! Base images made to hurt a reader: claims beyond all memory, loops, trees that are none, names without end.
//!
//! Every one ends in a typed error that names the rule, or in a sound view; none in a crash, a hang, or in memory
//! beyond the limit. Overlays and logs of that kind are in `hostile_changes`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::format::{DIRENT_SIZE, DIRENT_STRIDE, S_IFDIR, S_IFLNK, S_IFREG};
use daxfs::{Error, OpenOptions, Region};
use daxfs_tests::examine::examine;
use daxfs_tests::forge::{self, Forge, Version, dirent, inode, mini, superblock};
use daxfs_tests::verdict::{Verdict, open};

/// The forged mini image with one change is refused in both modes, for this reason.
#[track_caller]
fn refused(change: impl Fn(&mut Vec<u8>), error: &'static str, text: &'static str) {
    for version in [Version::V8, Version::V5] {
        let mut image = mini(version).finish();
        if version == Version::V5 && error == "RootInode" {
            continue;
        }
        change(&mut image);
        for strict in [false, true] {
            let answer = open(image.clone(), strict);
            assert_eq!(
                Verdict::Refused(error, text).disagreement(&answer),
                None,
                "{version:?}, strict {strict}"
            );
        }
    }
}

#[test]
fn forged_images_are_sound_to_begin_with() {
    for version in [Version::V8, Version::V5] {
        let image = open(mini(version).finish(), true).unwrap();
        assert_eq!(examine(&image).entries, 6);
        assert_eq!(image.file("/l").unwrap().to_vec().unwrap(), b"0123456789");
        assert_eq!(image.file("/d/g").unwrap().len(), 5000);
    }
}

#[test]
fn claims_beyond_the_image_are_refused_before_anything_is_allocated() {
    refused(|image| inode(image, 3).data_offset = u64::MAX.into(), "OutOfBounds", "inode 3: data");
    refused(
        |image| inode(image, 3).data_offset = (u64::MAX - 4096 - 9).into(),
        "OutOfBounds",
        "inode 3: data",
    );
    refused(|image| inode(image, 3).size = u64::MAX.into(), "OutOfBounds", "inode 3: data");
    refused(|image| inode(image, 2).data_offset = (u64::MAX - 1).into(), "OutOfBounds", "inode 2: ");
    refused(|image| inode(image, 5).data_offset = (u64::MAX - 271).into(), "OutOfBounds", "inode 5: ");
    let most = u64::MAX / DIRENT_SIZE * DIRENT_SIZE;
    refused(|image| inode(image, 5).size = most.into(), "OutOfBounds", "inode 5: ");
}

#[test]
fn an_array_of_271_bytes_per_entry_at_the_end_of_the_image_opens_if_its_names_fit() {
    // Upstream's packer reserves 271 bytes per entry where the array has a stride of 272.
    for (length, fits) in [(1, true), (252, true), (253, true), (254, false), (255, false)] {
        let mut forge = Forge::new(4);
        let last = "z".repeat(length);
        forge.file(2, b"data").dir::<&str>(3, &[]).file(4, b"more");
        forge.dir(1, &[(2, "a"), (3, "b"), (4, &last)]);
        let mut image = forge.finish();
        let start = 4096 + inode(&mut image, 1).data_offset.get();
        let end = start + 3 * DIRENT_SIZE;
        image.truncate(usize::try_from(end).unwrap());
        superblock(&mut image).base_size = (end - 4096).into();
        superblock(&mut image).total_size = end.into();
        match open(image, true) {
            Ok(image) => assert!(fits && examine(&image).entries == 4),
            Err(error) => {
                assert!(
                    !fits && error.to_string().contains("directory 1, entry 2: name"),
                    "{length}: {error}"
                );
            }
        }
    }
}

#[test]
fn names_that_are_no_names_are_refused() {
    let rename = |name: &'static [u8]| {
        move |image: &mut Vec<u8>| {
            let entry = dirent(image, 1, 1);
            entry.name_len = u16::try_from(name.len()).unwrap().into();
            entry.name[..name.len()].copy_from_slice(name);
        }
    };
    refused(rename(b""), "NameLength", "directory 1, entry 1");
    refused(rename(b"."), "Name", "directory 1, entry 1");
    refused(rename(b".."), "Name", "directory 1, entry 1");
    refused(rename(b"a/b"), "Name", "a/b");
    refused(rename(b"/"), "Name", "directory 1, entry 1");
    refused(rename(b"a\0b"), "Name", "directory 1, entry 1");
    refused(rename(b"l"), "NameUnique", "directory 1");
    refused(|image| dirent(image, 1, 1).name_len = 256.into(), "NameLength", "256");
    refused(|image| dirent(image, 1, 1).name_len = u16::MAX.into(), "NameLength", "65535");
    refused(|image| dirent(image, 1, 1).ino = 0.into(), "EntryInode", "directory 1, entry 1");
    refused(|image| dirent(image, 1, 1).ino = u32::MAX.into(), "EntryInode", "4294967295");
}

#[test]
fn what_is_no_tree_is_refused() {
    // A directory in itself, the root in a directory, a directory under two names.
    refused(|image| dirent(image, 5, 0).ino = 5.into(), "DirectoryParents", "directory 5");
    refused(|image| dirent(image, 5, 0).ino = 1.into(), "DirectoryParents", "directory 1");
    refused(|image| dirent(image, 5, 0).ino = 4.into(), "DirectoryParents", "directory 4");
    // A directory that nothing names; two that name only each other.
    let unname = |image: &mut Vec<u8>| {
        dirent(image, 1, 2).ino = 3.into();
        inode(image, 3).nlink = 2.into();
    };
    refused(unname, "DirectoryReachable", "inode 4");
    let mut forge = Forge::new(4);
    forge.dir(1, &[(4, "file")]).dir(2, &[(3, "x")]).dir(3, &[(2, "y")]).file(4, b"alone");
    let answer = open(forge.finish(), false);
    assert_eq!(Verdict::Refused("DirectoryReachable", "inode 2").disagreement(&answer), None);
    refused(|image| inode(image, 1).mode = (S_IFREG | 0o644).into(), "RootIsDirectory", "inode 1");
    let mut untyped = mini(Version::V8).finish();
    inode(&mut untyped, 1).mode = 0.into();
    for (strict, error) in [(false, "FileType"), (true, "SlotType")] {
        let answer = open(untyped.clone(), strict);
        assert_eq!(Verdict::Refused(error, "inode 1").disagreement(&answer), None);
    }
}

#[test]
fn a_directory_that_shares_its_entries_with_another_is_no_way_around_that() {
    // Both list the subdirectory.
    let share = |image: &mut Vec<u8>| {
        let (size, at) = (inode(image, 1).size, inode(image, 1).data_offset);
        inode(image, 4).size = size;
        inode(image, 4).data_offset = at;
    };
    refused(share, "DirectoryParents", "directory");
}

/// Directories of files that all list the same files: allowed, but the tree is the product of the two.
fn product(dirs: u32, files: u32) -> Vec<u8> {
    let mut forge = Forge::new(1 + dirs + files);
    let names: Vec<(u32, String)> = (0..dirs).map(|d| (2 + d, format!("d{d}"))).collect();
    forge.dir(1, &names);
    let entries: Vec<u8> = (0..files)
        .flat_map(|f| {
            let entry = forge::entry(2 + dirs + f, S_IFREG | 0o644, format!("f{f}").as_bytes());
            zerocopy::IntoBytes::as_bytes(&entry).to_vec()
        })
        .collect();
    let at = forge.place(&entries);
    for dir in 0..dirs {
        forge.set(2 + dir, S_IFDIR | 0o755, u64::from(files) * DIRENT_SIZE, at, 2);
    }
    for file in 0..files {
        forge.set(2 + dirs + file, S_IFREG | 0o644, 0, 0, dirs);
    }
    forge.finish()
}

#[test]
fn shared_directory_extents_multiply_only_up_to_the_limit() {
    let image = open(product(30, 40), true).unwrap();
    assert_eq!(image.len(), 1 + 30 + 30 * 40);
    examine(&image);
    // 4 MB that would unfold to 100 million names, 27 GB of entries.
    let large = product(10_000, 10_000);
    let region = Region::from_bytes(large);
    let error = OpenOptions::new().max_metadata(20_000_000).open_region(region).unwrap_err();
    let Error::MetadataLimit { limit, needed, .. } = error else { panic!("{error}") };
    assert!(limit == 20_000_000 && needed > limit);
}

#[test]
fn a_tree_a_hundred_thousand_directories_deep_is_walked_and_dropped() {
    const DEPTH: u32 = 100_000;
    let mut forge = Forge::new(DEPTH);
    let mut entries = Vec::new();
    for ino in 1..DEPTH {
        let entry = forge::entry(ino + 1, S_IFDIR | 0o755, b"d");
        entries.extend_from_slice(zerocopy::IntoBytes::as_bytes(&entry));
    }
    let at = forge.place(&entries);
    for ino in 1..DEPTH {
        forge.set(ino, S_IFDIR | 0o755, DIRENT_SIZE, at + u64::from(ino - 1) * DIRENT_STRIDE, 3);
    }
    forge.set(DEPTH, S_IFDIR | 0o755, 0, 0, 2);
    let image = open(forge.finish(), true).unwrap();
    assert_eq!(image.len(), DEPTH as usize);
    let last = image.walk().last().unwrap();
    assert_eq!(last.metadata().ino, u64::from(DEPTH));
    let path = last.path();
    assert_eq!(path.len(), 2 * (DEPTH as usize - 1));
    assert_eq!(image.entry_no_follow(&path).unwrap().metadata().ino, u64::from(DEPTH));
    assert_eq!(image.entry(&path).unwrap().metadata().ino, u64::from(DEPTH));
    let up = [path.as_slice(), b"/..".repeat(DEPTH as usize).as_slice()].concat();
    assert_eq!(image.entry(&up).unwrap().metadata().ino, 1);
}

#[test]
fn a_hundred_thousand_names_chosen_to_collide_open() {
    // Names with equal lengths, long common prefixes and suffixes, and names that collide under the overlay's
    // public hash: nothing a keyed hash would mind.
    let mut names: Vec<(u32, String)> = (0..100_000u32)
        .map(|number| (2, format!("{}{number:08}{}", "x".repeat(120), "y".repeat(120))))
        .collect();
    names.extend([(2, "CNm5uRn_D8A".to_owned()), (2, "1N9sD9dgvHB".to_owned())]);
    let mut forge = Forge::new(2);
    forge.dir(1, &names).file(2, b"one file, many names");
    let image = open(forge.finish(), true).unwrap();
    assert_eq!(image.len(), names.len() + 1);
    for (_, name) in names.iter().step_by(997) {
        assert_eq!(image.file(name).unwrap().len(), 20);
    }
    assert!(image.entry("/CNm5uRn_D8A").is_ok() && image.entry("/1N9sD9dgvHB").is_ok());
}

#[test]
fn links_are_followed_inside_the_image_and_not_for_ever() {
    let mut forge = Forge::new(59);
    let mut names = vec![(2, "loop".to_owned()), (3, "ping".into()), (4, "pong".into()), (5, "file".into())];
    names.extend([(6, "dir".into()), (7, "out".into()), (8, "dot".into()), (9, "slashes".into())]);
    names.extend((10..60).map(|ino| (ino, format!("hop{}", ino - 10))));
    forge.dir(1, &names).symlink(2, b"loop").symlink(3, b"pong").symlink(4, b"./ping").file(5, b"found");
    forge
        .dir::<&str>(6, &[])
        .symlink(7, b"../../../../file")
        .symlink(8, b".")
        .symlink(9, b"///dir//..//file");
    forge.symlink(10, b"file");
    for ino in 11..60 {
        forge.symlink(ino, format!("hop{}", ino - 11).as_bytes());
    }
    let image = open(forge.finish(), true).unwrap();
    examine(&image);
    for path in ["/loop", "/ping", "/pong", "/loop/under", "/dot/dot/ping"] {
        let error = image.entry(path).unwrap_err();
        assert!(matches!(error, Error::TooManyLinks { .. }), "{path}: {error}");
        assert!(!image.contains(path), "{path}");
    }
    // Nothing leads out of the image: `..` of the root is the root.
    for path in ["/out", "/../../file", "/dir/../../out", "/dot/dot/file", "slashes", "/hop39"] {
        assert_eq!(image.file(path).unwrap().to_vec().unwrap(), b"found", "{path}");
        assert!(image.contains(path), "{path}");
    }
    assert!(!image.contains("/missing") && image.contains("/dir/") && !image.contains("/file/"));
    assert!(
        matches!(image.entry("/hop40").unwrap_err(), Error::TooManyLinks { .. }),
        "40 links are followed, not 41"
    );
    for path in ["/file/under", "/out/under", "/file/.."] {
        assert!(matches!(image.entry(path).unwrap_err(), Error::NotADirectory { .. }), "{path}");
    }
    let long = "/dot".repeat(41);
    assert!(matches!(image.entry(&long).unwrap_err(), Error::TooManyLinks { .. }));
}

#[test]
fn links_that_are_none_are_refused() {
    refused(|image| inode(image, 2).size = 0.into(), "LinkTarget", "inode 2");
    refused(|image| inode(image, 2).size = 4096.into(), "LinkTarget", "4096");
    // No NUL behind the target; a NUL inside.
    let text = |text: &'static [u8]| {
        move |image: &mut Vec<u8>| {
            let at = usize::try_from(4096 + inode(image, 2).data_offset.get()).unwrap();
            image[at..at + text.len()].copy_from_slice(text);
            inode(image, 2).size = (text.len() as u64 - 1).into();
        }
    };
    refused(text(b"fx"), "LinkTarget", "inode 2");
    refused(text(b"f\0g\0"), "LinkTarget", "inode 2");
    // A link whose NUL would be behind the end of the base image.
    let mut forge = mini(Version::V8);
    let at = forge.place(&[b'x'; 4096]);
    forge.set(2, S_IFLNK | 0o777, 10, at + 4086, 1);
    let answer = open(forge.finish(), false);
    assert_eq!(Verdict::Refused("OutOfBounds", "inode 2").disagreement(&answer), None);
}

#[test]
fn a_link_count_must_cover_the_names() {
    refused(|image| inode(image, 3).nlink = 0.into(), "LinkCount", "inode 3: ");
    refused(|image| inode(image, 1).nlink = 0.into(), "LinkCount", "inode 1: ");
    let second_name = |image: &mut Vec<u8>| {
        dirent(image, 5, 0).ino = 3.into();
        inode(image, 6).nlink = 0.into();
    };
    refused(second_name, "LinkCount", "found 1 for 2 names");
    // More than the names: the others were not packed. Directories: file systems count them in different ways.
    for (ino, nlink) in [(3, 7), (2, u32::MAX), (1, 1), (5, 1), (4, 99)] {
        let mut image = mini(Version::V8).finish();
        inode(&mut image, ino).nlink = nlink.into();
        assert_eq!(examine(&open(image, true).unwrap()).entries, 6);
    }
}
