//! The golden mutations: changed copies of small images, with the verdicts of the version 8 kernel.
//!
//! None may crash or hang the reader. Each has its expected answer below, and each answer is held against what
//! the kernel said: where the kernel's `validate` refuses, strict mode refuses; where the kernel accepts and the
//! reader does not, the case is in [`STRICTER`], which docs/validation.md explains.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs_tests::examine::examine;
use daxfs_tests::golden::Golden;
use daxfs_tests::verdict::Verdict::{self, Opens, Refused};
use daxfs_tests::verdict::open;

/// Case, answer by default, answer in strict mode.
#[rustfmt::skip]
const EXPECTED: &[(&str, Verdict, Verdict)] = &[
    ("00-good", Opens, Opens),
    ("02-version7", Refused("UnsupportedVersion", "version 7"), Refused("UnsupportedVersion", "version 7")),
    ("04-block8192", Opens, Refused("BlockSizeOfThisMachine", "8192")),
    ("06-reserved0", Opens, Opens),
    ("08-totalhuge", Refused("OutOfBounds", "truncated"), Refused("OutOfBounds", "truncated")),
    ("10-basesize+1page-beyond", Refused("OutOfBounds", "base image"), Refused("OutOfBounds", "base image")),
    ("12-root2", Refused("RootInode", "found 2"), Refused("RootInode", "found 2")),
    ("14-dataoff-junk", Opens, Opens),
    ("16-inodecount0", Refused("NoInodes", ""), Refused("NoInodes", "")),
    ("21-nlink0", Refused("LinkCount", "inode 3"), Refused("LinkCount", "inode 3")),
    ("23-inode-reserved", Opens, Opens),
    ("25-mode0", Refused("FileType", "inode 3"), Refused("SlotType", "inode 3")),
    ("27-chardev", Opens, Refused("SlotType", "inode 3")),
    ("28b-blockdev", Opens, Refused("SlotType", "inode 3")),
    ("30-unaligned-file", Opens, Opens),
    ("32-size-beyond-base", Refused("OutOfBounds", "inode 3: data"), Refused("OutOfBounds", "inode 3: data")),
    ("34-dirsize-not-multiple", Refused("DirectorySize", "inode 5"), Refused("DirectorySize", "inode 5")),
    ("35-emptyfile-junk-offset", Opens, Opens),
    ("40-dirent-mode0", Opens, Opens),
    ("42-dirent-ino-big", Refused("EntryInode", "77"), Refused("EntryInode", "77")),
    ("44-namelen256", Refused("NameLength", "256"), Refused("NameLength", "256")),
    ("46-name-dot", Refused("Name", "directory 1"), Refused("Name", "directory 1")),
    ("48-duplicate-name", Refused("NameUnique", "directory 1"), Refused("NameUnique", "directory 1")),
    ("50-dirent-reserved-and-tail-junk", Opens, Opens),
    ("52-symlink-not-terminated", Refused("LinkTarget", "inode 2"), Refused("LinkTarget", "inode 2")),
    ("54-symlink-size0", Refused("LinkTarget", "inode 2"), Refused("LinkTarget", "inode 2")),
    ("56-phantom-slot", Opens, Refused("SlotType", "inode 7")),
    ("60-base-at-16384", Opens, Opens),
    ("61-base-at-4160-unaligned", Opens, Opens),
    ("71-ovl-magic", Refused("OverlayMagic", "0x00000001"), Refused("OverlayMagic", "0x00000001")),
    ("73-buckets-not-pow2", Refused("OverlayBuckets", "48"), Refused("OverlayBuckets", "48")),
    ("75-ovl-size-small", Refused("OutOfBounds", "overlay"), Refused("OutOfBounds", "overlay")),
    ("77-poolsize0", Opens, Opens),
    ("79-ovl-inside-base", Refused("OverlayMagic", ""), Refused("OverlayMagic", "")),
    ("80-split-no-backing", Opens, Opens),
    ("82-pc-version1", Refused("UnsupportedVersion", "page cache"), Refused("UnsupportedVersion", "page cache")),
    ("84-pc-slots-12", Refused("PageCacheSlots", "12"), Refused("PageCacheSlots", "12")),
    ("90-v5-good", Opens, Opens),
    ("92-v5-basemagic", Refused("BaseMagic", "0x00000001"), Refused("BaseMagic", "0x00000001")),
    ("94-v5-flags", Refused("UnknownFlags", "0xff"), Refused("UnknownFlags", "0xff")),
    ("96-v5-total0", Opens, Opens),
    ("98-v5-all-nlink1", Opens, Opens),
    ("99-v5-root-referenced", Refused("DirectoryParents", ""), Refused("DirectoryParents", "")),
];

/// What the kernel mounts and accepts under `validate`, and the reader refuses all the same.
const STRICTER: &[&str] = &[
    "08-totalhuge",
    "21-nlink0",
    "48-duplicate-name",
    "52-symlink-not-terminated",
    "54-symlink-size0",
    "82-pc-version1",
];

#[test]
fn every_mutation_gets_its_expected_answer() {
    let Some(golden) = Golden::find("mutations") else { return };
    let mutations = golden.mutations();
    assert_eq!(mutations.len(), EXPECTED.len());
    let mut wrong = Vec::new();
    for (mutation, (name, default, strict)) in mutations.iter().zip(EXPECTED) {
        assert_eq!(&mutation.name, name, "the table has every case, in order");
        for (verdict, mode) in [(default, false), (strict, true)] {
            let answer = open(golden.mutated(mutation), mode);
            if let Some(text) = verdict.disagreement(&answer) {
                wrong.push(format!("{name}, strict {mode}: {text}"));
            }
            if let Ok(image) = answer {
                examine(&image);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn answers_stand_beside_the_kernels() {
    let Some(golden) = Golden::find("the kernel's verdicts") else { return };
    let mut stricter = Vec::new();
    for mutation in golden.mutations().iter().filter(|mutation| mutation.base.starts_with("v8")) {
        let name = &mutation.name;
        let strict = open(golden.mutated(mutation), true);
        if mutation.kernel.validate == "rejected" {
            let message = mutation.kernel.validate_message.as_deref().unwrap_or_default();
            assert!(
                strict.is_err(),
                "{name}: the kernel's validation refuses it ({message}), strict mode must"
            );
        } else if strict.is_err() {
            stricter.push(name.clone());
        }
        if mutation.kernel.mount == "rejected" && name != "04-block8192" {
            assert!(open(golden.mutated(mutation), false).is_err(), "{name}: no kernel mounts it");
        }
    }
    assert_eq!(stricter, STRICTER);
}

#[test]
fn truncated_mutations_never_break_the_reader() {
    let Some(golden) = Golden::find("truncated mutations") else { return };
    for mutation in golden.mutations() {
        let bytes = golden.mutated(&mutation);
        for len in (0..bytes.len()).step_by(4096) {
            let answer = open(bytes[..len].to_vec(), false);
            // Only the case whose total_size was damaged hides that something is missing.
            if let Ok(image) = answer {
                assert!(image.superblock().total_size <= len as u64, "{}", mutation.name);
                examine(&image);
            }
        }
    }
}
