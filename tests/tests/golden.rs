//! Every entry of every golden image is read as its manifest says.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, FileType, Image, OpenOptions, Region, ViewKind};
use daxfs_tests::examine::examine;
use daxfs_tests::golden::{Expected, Golden, Manifest, sha256};
use daxfs_tests::verdict::{Verdict, open};

/// What strict mode says to each image, and why: see docs/validation.md.
const STRICT: &[(&str, Verdict)] = &[
    ("v5-branching", Verdict::Refused("SlotType", "inode 344")),
    ("v5-child-active", Verdict::Refused("SlotType", "inode 344")),
    ("v5-main-created", Verdict::Refused("SlotType", "inode 344")),
    ("v5-mini", Verdict::Opens),
    ("v5-static", Verdict::Refused("SlotType", "inode 344")),
    ("v8-bad-dir302", Verdict::Opens),
    ("v8-empty", Verdict::Opens),
    ("v8-export", Verdict::Refused("SlotType", "inode 344")),
    ("v8-kerf-overlay", Verdict::Refused("SlotType", "inode 344")),
    ("v8-mini", Verdict::Opens),
    ("v8-mini-overlay", Verdict::Opens),
    ("v8-mini-split", Verdict::Opens),
    ("v8-overlay-used", Verdict::Refused("SlotType", "inode 344")),
    ("v8-special", Verdict::Refused("SlotType", "inode 3")),
    ("v8-split", Verdict::Refused("OutOfBounds", "data")),
    ("v8-static", Verdict::Refused("SlotType", "inode 344")),
];

#[test]
fn every_entry_is_as_the_manifest_says() {
    let Some(golden) = Golden::find("golden images") else { return };
    let names = golden.names();
    assert_eq!(names.len(), STRICT.len(), "{names:?}");
    let mut entries = 0;
    for name in names {
        let manifest = golden.manifest(&name);
        let bytes = golden.image(&name);
        assert_eq!(bytes.len() as u64, manifest.image_size);
        assert_eq!(sha256(&bytes), manifest.image_sha256, "{name}: the image is the one of the manifest");
        let mut options = OpenOptions::new();
        let backing = golden.backing(&name);
        if let Some(backing) = &backing {
            options = options.backing(Region::from_bytes(backing.clone()));
        }
        let image = options.open_region(Region::from_bytes(bytes)).unwrap_or_else(|e| panic!("{name}: {e}"));
        compare(&image, &manifest);
        let seen = examine(&image);
        assert_eq!(seen.entries, manifest.entries.len());
        entries += seen.entries;
    }
    assert!(entries > 3000, "{entries} entries compared");
}

fn compare(image: &Image, manifest: &Manifest) {
    let name = &manifest.name;
    assert_eq!(image.superblock().version, manifest.format_version);
    assert_eq!(image.len(), manifest.entries.len(), "{name}: number of entries");
    for expected in &manifest.entries {
        let path = expected.path_bytes();
        let at = format!("{name}: {}", path.escape_ascii());
        let entry = image.entry_no_follow(&path).unwrap_or_else(|error| panic!("{at}: {error}"));
        let meta = entry.metadata();
        assert_eq!(entry.path(), path, "{at}");
        assert_eq!(kind(entry.file_type(), meta.mode), expected.kind, "{at}");
        assert_eq!(format!("{:04o}", meta.mode & 0o7777), expected.mode, "{at}");
        assert_eq!((meta.uid, meta.gid), (expected.uid, expected.gid), "{at}: owner and group");
        assert_eq!(meta.size, expected.size, "{at}: size");
        assert_eq!(meta.nlink, expected.nlink, "{at}: links");
        assert_eq!(Some(meta.ino), expected.ino, "{at}: inode");
        match entry.file_type() {
            FileType::File => compare_file(&entry.file().unwrap(), expected, &at),
            FileType::Symlink => {
                assert_eq!(entry.read_link().unwrap(), expected.target.as_ref().unwrap().as_bytes(), "{at}");
            }
            _ => {}
        }
    }
}

fn compare_file(file: &daxfs::File, expected: &Expected, at: &str) {
    assert_eq!(file.len(), expected.size, "{at}");
    match &expected.sha256 {
        Some(hash) => assert_eq!(&sha256(&file.to_vec().unwrap()), hash, "{at}: contents"),
        None if expected.size == 0 => {}
        None => {
            let error = file.to_vec().unwrap_err();
            assert!(matches!(error, Error::NoContents { .. }), "{at}: {error}");
            return;
        }
    }
    if let Some(offset) = expected.image_offset.or(expected.backing_offset) {
        match file.extent() {
            Some(extent) => assert_eq!((extent.offset, extent.len), (offset, expected.size), "{at}: extent"),
            // An overlay can replace pages of a file and leave its inode alone.
            None => assert!(matches!(file.image().view_kind(), ViewKind::Overlay { .. }), "{at}: no extent"),
        }
    }
}

fn kind(file_type: FileType, mode: u32) -> String {
    match file_type {
        FileType::File => "file".into(),
        FileType::Directory => "dir".into(),
        FileType::Symlink => "symlink".into(),
        _ => format!("other:{:o}", mode & 0o170_000),
    }
}

#[test]
fn without_the_backing_file_only_contents_are_missing() {
    let Some(golden) = Golden::find("split images without their backing file") else { return };
    for name in ["v8-split", "v8-mini-split", "v8-export"] {
        let mut manifest = golden.manifest(name);
        for entry in &mut manifest.entries {
            entry.sha256 = None;
            entry.backing_offset = None;
        }
        compare(&open(golden.image(name), false).unwrap(), &manifest);
    }
}

#[test]
fn a_backing_file_that_is_too_short_is_an_error_of_the_file() {
    let Some(golden) = Golden::find("a short backing file") else { return };
    let backing = golden.backing("v8-mini-split").unwrap();
    for len in [0, 9, 4096, 9095] {
        let backing = Region::from_bytes(backing[..len].to_vec());
        let opened = OpenOptions::new()
            .backing(backing)
            .open_region(Region::from_bytes(golden.image("v8-mini-split")));
        match opened {
            Err(error) => assert!(matches!(error, Error::OutOfBounds { .. }), "{error}"),
            Ok(image) => {
                examine(&image);
                assert!(image.file("/d/g").and_then(|file| file.to_vec()).is_err(), "{len} bytes of backing");
            }
        }
    }
}

#[test]
fn strict_mode_says_what_the_table_says() {
    let Some(golden) = Golden::find("strict mode on golden images") else { return };
    let wrong: Vec<String> = STRICT
        .iter()
        .filter_map(|(name, verdict)| {
            let answer = verdict.disagreement(&open(golden.image(name), true))?;
            Some(format!("{name}: {answer}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_image_with_phantom_slots_is_refused_strictly_for_the_first_of_them() {
    let Some(golden) = Golden::find("phantom slots") else { return };
    for name in golden.names() {
        let manifest = golden.manifest(&name);
        let Some(slot) = manifest.unused_inode_slots.first() else { continue };
        // The split image breaks another rule with an earlier inode.
        if name != "v8-split" {
            let error = open(golden.image(&name), true).unwrap_err().to_string();
            assert!(error.contains(&format!("inode {slot}:")), "{name}: {error}");
        }
    }
}
