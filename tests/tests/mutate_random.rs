//! Random damage: thousands of changed copies of small images, the same ones in every run.
//!
//! Whatever the bytes, opening ends in an image or a typed error, and every accessor of an image that opens
//! keeps its promises.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, OpenOptions};
use daxfs_tests::delta::{Log, attach_main};
use daxfs_tests::examine::examine;
use daxfs_tests::forge::{self, Version};
use daxfs_tests::golden::Golden;
use daxfs_tests::overlay::Overlay;
use daxfs_tests::verdict;
use mkimage::{Format, Packer};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// SplitMix64: small, well spread, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// Values that break arithmetic more often than random ones.
const AWKWARD: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xfff,
    0x1000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// Where the bytes lie that say something: not zero, and not the contents of an ordinary file.
fn metadata_bytes(image: &Image, bytes: &[u8]) -> Vec<usize> {
    let ordinary = |path: &[u8]| !path.starts_with(b"/.daxfs") && !path.ends_with(b".safetensors");
    let files = image.walk().filter(|entry| ordinary(&entry.path())).filter_map(|entry| entry.file().ok());
    let contents: Vec<_> = files.filter_map(|file| file.extent()).collect();
    let inside =
        |at: u64| contents.iter().any(|extent| (extent.offset..extent.offset + extent.len).contains(&at));
    (0..bytes.len()).filter(|&at| bytes[at] != 0 && !inside(at as u64)).collect()
}

/// Changes one to four places, most of them where metadata lies.
fn damage(image: &mut [u8], busy: &[usize], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let near =
            if random.below(4) == 0 { random.below(image.len()) } else { busy[random.below(busy.len())] };
        match random.below(4) {
            0 => image[near] ^= 1 << random.below(8),
            1 => image[near] = AWKWARD[random.below(AWKWARD.len())].to_le_bytes()[0],
            kind => {
                let width = if kind == 2 { 4 } else { 8 };
                let at = (near & !(width - 1)).min(image.len() - width);
                let value =
                    if random.below(2) == 0 { AWKWARD[random.below(AWKWARD.len())] } else { random.next() };
                image[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
}

/// Small sound images of every kind.
fn subjects() -> Vec<(String, Vec<u8>)> {
    let mut subjects = Vec::new();
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("a/b")).unwrap();
    std::fs::write(tree.path().join("a/one"), b"x").unwrap();
    std::fs::write(tree.path().join("a/b/two"), [7; 5000]).unwrap();
    std::fs::hard_link(tree.path().join("a/one"), tree.path().join("again")).unwrap();
    std::os::unix::fs::symlink("a/b/two", tree.path().join("link")).unwrap();
    let header = br#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header, &[1; 32]].concat();
    std::fs::write(tree.path().join("model.safetensors"), tensors).unwrap();
    for format in [Format::V8, Format::V5] {
        let packed = tree.path().with_extension("daxfs");
        Packer::new().input(tree.path()).format(format).plan().unwrap().write_file(&packed).unwrap();
        subjects.push((format!("packed {format:?}"), std::fs::read(&packed).unwrap()));
        std::fs::remove_file(&packed).unwrap();
    }
    let mut changed = forge::mini(Version::V8).finish();
    let mut overlay = Overlay::new(64, 6);
    overlay.inode(3, 0o100_600, 9000, 1);
    overlay.page(3, 0, b"new start");
    overlay.page(3, 2, b"new end");
    overlay.tombstone(1, b"e");
    overlay.inode(7, 0o040_755, 0, 2);
    overlay.name(1, b"new", 7, 0o040_755);
    overlay.inode(8, 0o100_644, 5, 1);
    overlay.page(8, 0, b"inner");
    overlay.name(7, b"inner", 8, 0o100_644);
    overlay.attach(&mut changed);
    subjects.push(("overlay".into(), changed));
    let mut branching = forge::mini(Version::V5).finish();
    let log = Log::new().create(1, 7, 0o100_644, b"made").write(7, 0, b"contents", 0).write(3, 4, b"XY", 3);
    let log = log.create(1, 8, 0o040_755, b"dir").rename(7, (1, b"made"), (8, b"moved"));
    let log = log.symlink(8, 9, b"s", b"moved").truncate(6, 100).setattr(3, 7, 0o100_600, 1, 2, 0);
    let log = log.delete(1, 2, b"l");
    attach_main(&mut branching, &log);
    subjects.push(("branching".into(), branching));
    if let Some(golden) = Golden::find("random damage to golden images") {
        for name in ["v8-mini", "v8-mini-overlay", "v8-mini-split", "v5-mini", "v8-special"] {
            subjects.push((name.into(), golden.image(name)));
        }
    }
    subjects
}

#[test]
fn random_damage_never_breaks_the_reader() {
    const CASES: u64 = 600;
    let mut opened = 0u64;
    let mut refused = 0u64;
    for (name, image) in subjects() {
        let sound = verdict::open(image.clone(), false).unwrap_or_else(|error| panic!("{name}: {error}"));
        examine(&sound);
        let busy = metadata_bytes(&sound, &image);
        for case in 0..CASES {
            let mut damaged = image.clone();
            damage(&mut damaged, &busy, &mut Random(case));
            let strict = case % 8 == 7;
            let ended = catch_unwind(AssertUnwindSafe(|| match verdict::open(damaged, strict) {
                Ok(image) => {
                    examine(&image);
                    true
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    false
                }
            }));
            match ended {
                Ok(true) => opened += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("{name}, case {case}: see the panic above"),
            }
        }
    }
    // Both answers occur, or the damage is not what this test wants.
    assert!(opened > CASES / 2 && refused > CASES / 2, "{opened} opened, {refused} refused");
}

#[test]
fn a_small_metadata_limit_is_an_error_not_a_crash() {
    for (name, image) in subjects() {
        for limit in [0, 1, 4095, 4096, 5000, 10_000] {
            let region = daxfs::Region::from_bytes(image.clone());
            match OpenOptions::new().max_metadata(limit).open_region(region) {
                Ok(image) => assert!(examine(&image).entries > 0),
                Err(error) => assert_eq!(verdict::kind(&error), "MetadataLimit", "{name}, {limit}: {error}"),
            }
        }
    }
}
