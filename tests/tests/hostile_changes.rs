//! Overlays and delta logs made to hurt a reader: chains in circles, values outside the pool, entries of odd
//! sizes, files of absurd length, trees bent into loops by a rename.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, FileType, Image, ViewKind};
use daxfs_tests::delta::{Log, attach_main, main_record};
use daxfs_tests::examine::examine;
use daxfs_tests::forge::{self, Version, inode, mini};
use daxfs_tests::overlay::{Overlay, name_key};
use daxfs_tests::verdict::{Verdict, kind, open};

const FILE: u32 = 0o100_644;
const DIR: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// The mini image with an overlay.
fn overlaid<R>(fill: impl FnOnce(&mut Overlay) -> R) -> Vec<u8> {
    let mut image = mini(Version::V8).finish();
    let mut overlay = Overlay::new(64, 6);
    fill(&mut overlay);
    overlay.attach(&mut image);
    image
}

#[track_caller]
fn overlay_refused<R>(error: &'static str, text: &'static str, fill: impl FnOnce(&mut Overlay) -> R) {
    let answer = open(overlaid(fill), false);
    assert_eq!(Verdict::Refused(error, text).disagreement(&answer), None);
}

/// The mini image of version 5 with a log of the branch "main".
fn branching(log: &Log) -> Vec<u8> {
    let mut image = mini(Version::V5).finish();
    attach_main(&mut image, log);
    image
}

#[track_caller]
fn log_refused(error: &'static str, text: &'static str, log: Log) {
    let answer = open(branching(&log), false);
    assert_eq!(Verdict::Refused(error, text).disagreement(&answer), None);
}

fn contents(image: &Image, path: &str) -> Vec<u8> {
    image.file(path).unwrap().to_vec().unwrap()
}

#[test]
fn an_honest_overlay_is_applied() {
    let image = open(
        overlaid(|overlay| {
            overlay.inode(3, FILE, 4100, 1);
            overlay.page(3, 0, b"new");
            overlay.name(1, b"made", 7, FILE);
            overlay.inode(7, FILE, 5, 1);
            overlay.page(7, 0, b"fresh");
            overlay.tombstone(1, b"e");
            overlay.tombstone(1, b"l");
            overlay.name(1, b"l", 8, LINK);
            overlay.inode(8, LINK, 4, 1);
            overlay.page(8, 0, b"made\0");
        }),
        true,
    )
    .unwrap();
    examine(&image);
    assert!(matches!(image.view_kind(), ViewKind::Overlay { entries: 1.. }));
    assert_eq!(contents(&image, "/made"), b"fresh");
    assert_eq!(contents(&image, "/l"), b"fresh");
    assert!(image.entry("/e").unwrap_err().is_not_found());
    let f = contents(&image, "/f");
    assert!(f.len() == 4100 && f.starts_with(b"new\0") && f[4..].iter().all(|&byte| byte == 0));
    let names: Vec<_> = image.root().children().map(|entry| entry.name().to_vec()).collect();
    assert_eq!(names.iter().filter(|name| *name == b"l").count(), 1, "a name made again is listed once");
}

#[test]
fn chains_that_do_not_end_are_refused() {
    // In a circle of live names one comes twice.
    overlay_refused("NameUnique", "directory 1", |overlay| {
        let at = overlay.name(1, b"new", 3, FILE);
        overlay.dirent_at(at).dir_next = at.into();
    });
    overlay_refused("NameUnique", "directory 1", |overlay| {
        let first = overlay.name(1, b"one", 3, FILE);
        let second = overlay.name(1, b"two", 3, FILE);
        overlay.dirent_at(first).dir_next = second.into();
    });
    overlay_refused("OverlayChain", "directory 1", |overlay| {
        // A tombstone shows no name, so only the count of entries ends this one.
        let at = overlay.tombstone(1, b"gone");
        overlay.dirent_at(at).dir_next = at.into();
    });
    // A chain of equal keys in a circle, met by a name of the base that is looked up.
    overlay_refused("OverlayChain", "directory 1", |overlay| {
        let at = overlay.name(1, b"other", 3, FILE);
        overlay.dirent_at(at).next = at.into();
        overlay.insert(name_key(1, b"f"), at);
    });
    // The entries of one directory in the list of another.
    overlay_refused("OverlayChain", "directory 4", |overlay| {
        let inner = overlay.name(5, b"inner", 3, FILE);
        let at = overlay.name(4, b"own", 3, FILE);
        overlay.dirent_at(at).dir_next = inner.into();
    });
}

#[test]
fn values_outside_the_pool_are_refused() {
    for offset in [1 << 20, u64::MAX - 1, u64::MAX - 303, 1 << 63] {
        for low in [0xf_ffff, 0xf_fffe] {
            let answer = open(overlaid(|overlay| overlay.insert(1 << 20 | low, offset)), false);
            assert_eq!(
                Verdict::Refused("OutOfBounds", "overlay pool").disagreement(&answer),
                None,
                "{offset:#x}"
            );
        }
        let answer = open(overlaid(|overlay| overlay.insert(name_key(1, b"f"), offset)), false);
        assert_eq!(
            Verdict::Refused("OutOfBounds", "overlay pool").disagreement(&answer),
            None,
            "{offset:#x}"
        );
        // A data page of a file that is there: base bytes in its place would be a lie.
        let answer = open(overlaid(|overlay| overlay.insert(3 << 20, offset)), false);
        assert_eq!(
            Verdict::Refused("OutOfBounds", "overlay pool").disagreement(&answer),
            None,
            "{offset:#x}"
        );
    }
}

#[test]
fn entries_of_another_kind_than_their_key_are_refused() {
    overlay_refused("OverlayEntryKind", "inode 3", |overlay| {
        let name = overlay.name(1, b"new", 3, FILE);
        overlay.insert(3 << 20 | 0xf_ffff, name);
    });
    overlay_refused("OverlayEntryKind", "directory 1", |overlay| {
        let inode = overlay.inode(3, FILE, 1, 1);
        overlay.insert(1 << 20 | 0xf_fffe, inode);
    });
}

#[test]
fn names_in_an_overlay_keep_the_rules_of_names() {
    for (name, error) in [(&b"."[..], "Name"), (b"..", "Name"), (b"a/b", "Name"), (b"a\0b", "Name")] {
        let answer = open(overlaid(|overlay| overlay.name(1, name, 3, FILE)), false);
        assert_eq!(Verdict::Refused(error, "overlay directory entry").disagreement(&answer), None);
    }
    for length in [0, 256, u16::MAX] {
        let answer = open(
            overlaid(|overlay| {
                let at = overlay.name(1, b"new", 3, FILE);
                overlay.dirent_at(at).name_len = length.into();
            }),
            false,
        );
        assert_eq!(Verdict::Refused("NameLength", "overlay directory entry").disagreement(&answer), None);
    }
    overlay_refused("NameUnique", "directory 1", |overlay| {
        overlay.name(1, b"twice", 3, FILE);
        overlay.name(1, b"twice", 3, FILE);
    });
    overlay_refused("EntryInode", "inode 99", |overlay| overlay.name(1, b"nobody", 99, FILE));
    overlay_refused("EntryInode", "inode", |overlay| overlay.name(1, b"nobody", u64::MAX, FILE));
    overlay_refused("EntryInode", "inode 0", |overlay| overlay.name(1, b"nobody", 0, FILE));
}

#[test]
fn an_overlay_cannot_bend_the_tree_into_a_loop() {
    overlay_refused("DirectoryParents", "directory", |overlay| overlay.name(5, b"up", 1, DIR));
    overlay_refused("DirectoryParents", "directory", |overlay| overlay.name(5, b"self", 5, DIR));
    overlay_refused("DirectoryParents", "directory", |overlay| overlay.name(4, b"again", 5, DIR));
    overlay_refused("RootIsDirectory", "inode 1", |overlay| overlay.inode(1, FILE, 0, 1));
    overlay_refused("FileType", "inode 3", |overlay| overlay.inode(3, 0o644, 0, 1));
    // Two directories that name only each other are unreachable, which in an overlay means deleted.
    let image = open(
        overlaid(|overlay| {
            overlay.inode(7, DIR, 0, 2);
            overlay.inode(8, DIR, 0, 2);
            overlay.name(7, b"x", 8, DIR);
            overlay.name(8, b"y", 7, DIR);
        }),
        false,
    )
    .unwrap();
    assert_eq!(examine(&image).entries, 6);
}

#[test]
fn a_full_bucket_array_ends_every_search() {
    let image = open(
        overlaid(|overlay| {
            // Keys of inodes that do not exist, until no bucket is free.
            for ino in 1000..1064u64 {
                overlay.insert(ino << 20 | 0xf_ffff, 0);
            }
        }),
        false,
    )
    .unwrap();
    assert_eq!(examine(&image).entries, 6);
    assert!(matches!(image.view_kind(), ViewKind::Overlay { entries: 64 }));
}

/// The largest file that a kernel can make in an overlay: 0xffffe pages.
const LARGEST: u64 = 0xf_fffe * 4096;

#[test]
fn files_of_absurd_length_are_refused() {
    for size in [LARGEST + 1, 1 << 40, 1 << 62, i64::MAX as u64, u64::MAX] {
        let answer = open(
            overlaid(|overlay| {
                overlay.inode(3, FILE, size, 1);
                overlay.page(3, 1, b"second page");
            }),
            false,
        );
        assert_eq!(Verdict::Refused("ChangedSize", "inode 3").disagreement(&answer), None);
        log_refused("ChangedSize", "inode 3", Log::new().truncate(3, size));
    }
    let image = open(
        overlaid(|overlay| {
            overlay.inode(3, FILE, LARGEST, 1);
            overlay.page(3, 1, b"second page");
            overlay.page(3, 0xf_fffd, b"last page");
        }),
        false,
    )
    .unwrap();
    examine(&image);
    let file = image.file("/f").unwrap();
    assert_eq!(file.len(), LARGEST);
    let mut buffer = [1; 20];
    assert_eq!(file.read_at(4096, &mut buffer).unwrap(), 20);
    assert_eq!(&buffer[..12], b"second page\0");
    assert_eq!(file.read_at(LARGEST - 4096, &mut buffer).unwrap(), 20);
    assert_eq!(&buffer[..10], b"last page\0");
    assert_eq!(file.read_at(LARGEST - 5, &mut buffer).unwrap(), 5);
    assert_eq!(buffer[..5], [0; 5]);
}

/// A slot without a type is not checked, because nothing refers to it. An overlay can make it a file.
#[test]
fn an_overlay_over_an_unchecked_slot_reads_nothing_from_it() {
    for (mode, size, offset) in [
        (0u32, 10_000, u64::MAX),
        (0, u64::MAX, 0),
        (0o010_644, 10_000, u64::MAX - 4096),
        (0o010_644, 1 << 40, 0),
    ] {
        let mut image = mini(Version::V8);
        image.set(6, mode, size, offset, 1);
        image.dir(5, &[(3, "g")]);
        let mut image = image.finish();
        let mut overlay = Overlay::new(64, 6);
        overlay.inode(6, FILE, 9000, 1);
        overlay.page(6, 0, b"page");
        overlay.name(1, b"revived", 6, FILE);
        overlay.attach(&mut image);
        match open(image, false) {
            Err(error) => assert!(error.to_string().contains("inode 6"), "{error}"),
            Ok(image) => {
                let read = image.file("/revived").unwrap().to_vec();
                assert!(read.is_err() || read.is_ok_and(|bytes| bytes[4096..].iter().all(|&byte| byte == 0)));
                examine(&image);
            }
        }
    }
}

#[test]
fn a_log_is_applied_as_it_was_meant() {
    let image = open(
        branching(
            &Log::new()
                .create(1, 7, FILE, b"made")
                .write(7, 0, b"fresh!", 0)
                .write(7, 2, b"ES", 5)
                .truncate(7, 5)
                .create(1, 8, DIR, b"dir")
                .rename(3, (1, b"f"), (8, b"moved"))
                .symlink(1, 9, b"s", b"dir/moved")
                .setattr(3, 7, 0o100_600, 12, 13, 0)
                .delete(5, 6, b"g")
                .write(3, 12, b"!", 0),
        ),
        false,
    )
    .unwrap();
    examine(&image);
    assert_eq!(image.view_kind(), ViewKind::Branch { entries: 10 });
    assert_eq!(contents(&image, "/made"), b"frESh");
    assert_eq!(contents(&image, "/s"), b"0123456789\0\0!");
    let meta = image.entry("/dir/moved").unwrap();
    let meta = meta.metadata();
    assert_eq!((meta.mode, meta.uid, meta.gid, meta.size), (0o100_600, 12, 13, 13));
    assert!(image.entry("/f").unwrap_err().is_not_found() && image.entry("/d/g").unwrap_err().is_not_found());
    // The link named a file that is gone: so does its target.
    assert!(image.entry("/l").unwrap_err().is_not_found());
    assert_eq!(image.entry_no_follow("/l").unwrap().file_type(), FileType::Symlink);
}

#[test]
fn log_entries_of_odd_sizes_are_refused() {
    for total in [1, 23, 24, 39] {
        log_refused("LogEntry", "delta log entry 0", Log::new().push_sized(1, 3, total, &[&[0; 16]]));
    }
    log_refused(
        "LogEntry",
        "delta log entry 1",
        Log::new().truncate(3, 5).push_sized(4, 3, u32::MAX, &[&[0; 8]]),
    );
    // A write that claims more data than its entry has.
    let fields = [0u64.to_le_bytes(), 100u64.to_le_bytes()].concat();
    log_refused("LogEntry", "delta log entry 0", Log::new().push(1, 3, &[&fields, b"only ten.."]));
    // Names that are longer than their entry.
    let mut fields = [0u8; 16];
    fields[0] = 1;
    fields[8] = 200;
    log_refused("LogEntry", "delta log entry 0", Log::new().push(3, 3, &[&fields, b"short"]));
    // Half a head at the end.
    log_refused("LogEntry", "delta log entry 1", Log::new().truncate(3, 5).push_sized(4, 3, 32, &[&[0; 4]]));
    // An entry of size 0 ends the log, whatever follows.
    let image = open(branching(&Log::new().truncate(3, 5).push_sized(0, 0, 0, &[&[0xff; 99]])), false);
    assert_eq!(image.unwrap().view_kind(), ViewKind::Branch { entries: 1 });
}

#[test]
fn log_entries_about_nothing_are_refused() {
    log_refused("LogEntryKind", "delta log entry 0", Log::new().push(9, 3, &[&[0; 40]]));
    log_refused("LogEntryKind", "delta log entry 0", Log::new().push(0, 3, &[&[0; 40]]));
    log_refused("LogInode", "delta log entry 0", Log::new().truncate(99, 5));
    log_refused("LogInode", "delta log entry 0", Log::new().truncate(0, 5));
    log_refused("LogInode", "delta log entry 0", Log::new().write(5, 0, b"into a directory", 0));
    log_refused("LogInode", "delta log entry 0", Log::new().create(3, 7, FILE, b"under-a-file"));
    log_refused("LogInode", "delta log entry 0", Log::new().rename(99, (1, b"f"), (1, b"g")));
    log_refused("Name", "delta log entry 0", Log::new().create(1, 7, FILE, b".."));
    log_refused("Name", "delta log entry 0", Log::new().rename(3, (1, b"f"), (1, b"a/b")));
    log_refused("NameLength", "delta log entry 0", Log::new().create(1, 7, FILE, b""));
    log_refused("LinkTarget", "delta log entry 0", Log::new().symlink(1, 7, b"s", b""));
    log_refused("LinkTarget", "delta log entry 0", Log::new().create(1, 7, LINK, b"no-target"));
    log_refused("FileType", "delta log entry 0", Log::new().create(1, 7, 0o644, b"untyped"));
    log_refused("FileType", "delta log entry 0", Log::new().setattr(3, 1, DIR, 0, 0, 0));
}

#[test]
fn a_log_cannot_bend_the_tree_into_a_loop() {
    // A directory moved into itself hangs from nothing any more.
    let image = open(branching(&Log::new().rename(5, (1, b"d"), (5, b"d"))), false).unwrap();
    assert_eq!(examine(&image).entries, 4);
    log_refused("DirectoryParents", "directory 1", Log::new().rename(1, (1, b"f"), (5, b"root")));
    log_refused("DirectoryParents", "directory 5", Log::new().rename(5, (1, b"f"), (1, b"second")));
}

#[test]
fn writes_and_truncations_at_the_end_of_numbers_do_not_overflow() {
    log_refused("LogEntry", "delta log entry 0", Log::new().write(3, u64::MAX, b"x", 0));
    log_refused("LogEntry", "delta log entry 0", Log::new().write(3, u64::MAX - 3, b"four!", 0));
    log_refused("ChangedSize", "inode 3", Log::new().write(3, u64::MAX - 3, b"end", 0));
    // What is cut off again does not count.
    let log = Log::new().truncate(3, u64::MAX).write(3, 1 << 30, b"far", 0).write(3, u64::MAX - 3, b"end", 0);
    let image = open(branching(&log.truncate(3, (1 << 30) + 2).truncate(6, 0)), false).unwrap();
    examine(&image);
    let file = image.file("/f").unwrap();
    let mut buffer = [1; 3];
    assert_eq!(file.read_at(1 << 30, &mut buffer).unwrap(), 2);
    assert_eq!(&buffer[..2], b"fa");
    assert!(image.file("/d/g").unwrap().is_empty());
}

#[test]
fn a_log_outside_the_image_is_refused() {
    for (offset, size) in [(u64::MAX, 1), (0, u64::MAX), (1 << 40, 24), (4096, 1 << 40)] {
        let mut image = branching(&Log::new().truncate(3, 5));
        main_record(&mut image).delta_log_offset = offset.into();
        main_record(&mut image).delta_log_size = size.into();
        let error = open(image, false).unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
        assert!(error.to_string().contains("branch record 0: log"), "{error}");
    }
    let mut image = branching(&Log::new().truncate(3, 5));
    forge::superblock_v5(&mut image).branch_table_entries = u32::MAX.into();
    assert_eq!(kind(&open(image, false).unwrap_err()), "OutOfBounds");
}

#[test]
fn only_the_live_main_branch_counts() {
    for (state, name, applied) in [
        (0u32, *b"main", false),
        (1, *b"main", true),
        (2, *b"main", false),
        (3, *b"main", true),
        (1, *b"side", false),
    ] {
        let mut image = branching(&Log::new().truncate(3, 5));
        main_record(&mut image).state = state.into();
        main_record(&mut image).name[..4].copy_from_slice(&name);
        let image = open(image, false).unwrap();
        let shown = contents(&image, "/f");
        assert_eq!(shown == b"01234", applied, "state {state} of {name:?}: {shown:?}");
    }
}

#[test]
fn many_small_writes_make_many_pieces_and_no_more_work_than_that() {
    let log = (0..200_000).step_by(20).fold(Log::new(), |log, at| log.write(6, at, b"ten bytes.", 0));
    let image = open(branching(&log), false).unwrap();
    let file = image.file("/d/g").unwrap();
    let bytes = file.to_vec().unwrap();
    assert_eq!(bytes.len(), 199_990);
    let Err(Error::NotContiguous { pieces, .. }) = file.bytes() else { panic!("contiguous") };
    assert!(pieces >= 20_000 - 1, "{pieces}");
    let mut part = [0; 30];
    for at in (0..199_000).step_by(777) {
        file.read_at(at, &mut part).unwrap();
        let start = usize::try_from(at).unwrap();
        assert_eq!(part, bytes[start..start + 30]);
    }
}

/// Base offsets of inodes count from the base image also where an overlay replaces the metadata.
#[test]
fn an_overlay_that_only_changes_the_mode_keeps_the_data_in_place() {
    let mut image = overlaid(|overlay| overlay.inode(6, 0o100_400, 5000, 1));
    let offset = 4096 + inode(&mut image, 6).data_offset.get();
    let image = open(image, false).unwrap();
    let file = image.file("/d/g").unwrap();
    assert_eq!(file.entry().metadata().mode, 0o100_400);
    assert_eq!(file.extent().unwrap().offset, offset);
}

/// The kernel's validation looks at every directory of the base image, also at those that the overlay deleted.
#[test]
fn strict_mode_checks_directories_that_an_overlay_deleted() {
    for version in [Version::V8, Version::V5] {
        let mut image = mini(version).finish();
        forge::dirent(&mut image, 5, 0).name[0] = b'/';
        match version {
            Version::V8 => {
                let mut overlay = Overlay::new(64, 6);
                overlay.tombstone(1, b"d");
                overlay.attach(&mut image);
            }
            Version::V5 => attach_main(&mut image, &Log::new().delete(1, 5, b"d")),
        }
        // By default only what can be reached counts.
        assert_eq!(examine(&open(image.clone(), false).unwrap()).entries, 4);
        let answer = open(image, true);
        assert_eq!(Verdict::Refused("Name", "directory 5").disagreement(&answer), None, "{version:?}");
    }
}

/// A key takes 16 bytes of an image, and each first page of an inode a table of its own in memory: both are counted.
#[test]
fn tables_of_an_overlay_are_counted() {
    const INODES: u64 = 20_000;
    let mut image = forge::mini(Version::V8).finish();
    let inodes = forge::superblock(&mut image).inode_count.get();
    let mut overlay = Overlay::new(1 << 15, inodes);
    for ino in 0..INODES {
        overlay.insert((ino + 100) << 20, 0);
    }
    overlay.attach(&mut image);
    let open = |limit| {
        daxfs::OpenOptions::new().max_metadata(limit).open_region(daxfs::Region::from_bytes(image.clone()))
    };
    // Buckets and keys alone are less than half of that.
    let error = open(4 << 20).unwrap_err();
    assert!(
        matches!(&error, Error::MetadataLimit { place, .. } if place.contains("overlay pages")),
        "{error}"
    );
    assert!(open(16 << 20).unwrap().contains("/f"));
}
