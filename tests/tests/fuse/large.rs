//! Much of everything: names, levels, entries, bytes.

use super::support::{Place, can_mount};
use daxfs::OpenOptions;
use daxfs_tests::forge::{self, Forge, Version};
use daxfs_tests::tree;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Entries of the one directory.
const MANY: u32 = 100_000;

#[test]
fn a_directory_of_100_000_entries_is_listed_whole_and_each_is_found() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    // All names are of one file: what is large is the directory.
    let mut forge = Forge::with_version(Version::V8, 3);
    forge.file(3, b"one\n");
    let names: Vec<_> =
        (0..MANY).map(|i| (3, format!("entry-{i:06}-{}", "x".repeat(i as usize % 200)))).collect();
    forge.dir(2, &names).dir(1, &[(2, "many")]);
    let mut bytes = forge.finish();
    forge::inode(&mut bytes, 3).nlink = MANY.into();
    fs::write(place.image(), bytes).unwrap();
    let mount = place.mount();
    let folder = mount.path().join("many");
    for _ in 0..2 {
        let found: BTreeSet<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found.len(), MANY as usize);
    }
    for (_, name) in names.iter().step_by(997) {
        let meta = fs::metadata(folder.join(name)).unwrap();
        assert_eq!((meta.len(), meta.nlink()), (4, MANY.into()), "{name}");
    }
    assert!(fs::metadata(folder.join("entry-100000-")).is_err());
}

#[test]
fn files_beyond_4_gib_have_their_bytes_at_their_places() {
    if !can_mount() {
        return;
    }
    const LEN: u64 = (4 << 30) + 5;
    let place = Place::empty();
    let mut forge = Forge::with_version(Version::V8, 2);
    forge.file(2, &[0; 4096]).dir(1, &[(2, "large")]);
    let mut bytes = forge.finish();
    // The last thing in the image; what follows are holes of the file that it lies in.
    let at = forge::inode(&mut bytes, 2).data_offset.get();
    forge::inode(&mut bytes, 2).size = LEN.into();
    let superblock = forge::superblock(&mut bytes);
    let (base, grown) = (superblock.base_offset.get(), LEN - 4096);
    superblock.base_size = (superblock.base_size.get() + grown.next_multiple_of(4096)).into();
    superblock.total_size = (superblock.total_size.get() + grown.next_multiple_of(4096)).into();
    let total = superblock.total_size.get();
    fs::write(place.image(), bytes).unwrap();
    let file = File::options().write(true).open(place.image()).unwrap();
    file.set_len(total).unwrap();
    let start = base + at;
    for (offset, text) in [(0, "first"), ((4 << 30) - 2, "across"), (LEN - 1, "!")] {
        file.write_all_at(text.as_bytes(), start + offset).unwrap();
    }
    // Without a copy: from the file as it lies there.
    let mount = place.mount_as(OpenOptions::new().open(place.image()).unwrap());
    let large = File::open(mount.path().join("large")).unwrap();
    assert_eq!(large.metadata().unwrap().len(), LEN);
    let read = |offset, len| {
        let mut buffer = vec![1; len];
        let len = large.read_at(&mut buffer, offset).unwrap();
        buffer.truncate(len);
        buffer
    };
    assert_eq!(read(0, 6), b"first\0");
    assert_eq!(read((4 << 30) - 3, 9), b"\0across!");
    assert_eq!(read(LEN - 1, 9), b"!");
    assert_eq!(read(LEN, 9), b"");
    assert_eq!(read(3 << 30, 3), [0; 3]);
}

#[test]
fn a_path_as_long_as_paths_can_be_leads_to_its_file() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    // 15 levels of 250 bytes, and 100 of one.
    let mut path = PathBuf::new();
    for level in (0..15).map(|level| format!("{level:0250}")).chain((0..100).map(|_| "d".to_owned())) {
        path.push(level);
    }
    let folder = place.tree().join(&path);
    // Level by level, since the whole path with what is in front of it can be too long.
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("f"), "deep\n").unwrap();
    place.pack();
    let mount = place.mount();
    assert_eq!(fs::read(mount.path().join(&path).join("f")).unwrap(), b"deep\n");
    tree::assert_same(&tree::on_disk(mount.path()), &tree::on_disk(&place.tree()));
}
