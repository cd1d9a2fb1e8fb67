//! Bad input: every verb answers with one line and exit status 2, and never panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run};
use std::fs;
use std::process::Command;

const VERBS: [&[&str]; 9] = [
    &["ls", "-lR", "IMAGE"],
    &["ls", "-R", "--json", "IMAGE"],
    &["tree", "IMAGE"],
    &["stat", "IMAGE", "/", "config.json"],
    &["cat", "IMAGE", "config.json"],
    &["inspect", "IMAGE"],
    &["inspect", "--json", "--svg", "DIR/map.svg", "IMAGE"],
    &["verify", "IMAGE", "TREE"],
    &["extract", "IMAGE", "DIR/out"],
];

/// Runs every verb on the image, none of which may panic, and returns their results.
fn run_all(fixture: &Fixture) -> Vec<Run> {
    VERBS
        .iter()
        .map(|args| {
            let _ = fs::remove_dir_all(fixture.path("out"));
            let run = fixture.run(args);
            assert!((0..=2).contains(&run.status), "{args:?}: {run:?}");
            assert!(!run.stderr.contains("panicked"), "{args:?}: {run:?}");
            assert_eq!(run.status == 2, !run.stderr.is_empty(), "{args:?}: {run:?}");
            run
        })
        .collect()
}

/// A small generator of bytes that is the same everywhere.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

#[test]
fn what_is_no_image_is_refused() {
    let fixture = Fixture::new();
    for bytes in [vec![], vec![0; 100], vec![0; 4096], noise(1).take(20_000).collect(), b"{}".repeat(5000)] {
        fs::write(fixture.image(), bytes).unwrap();
        for run in run_all(&fixture) {
            run.error();
        }
        assert!(!fixture.path("out").exists());
    }
}

#[test]
fn truncated_images_are_refused() {
    let fixture = Fixture::new();
    let bytes = fs::read(fixture.image()).unwrap();
    for len in [4095, 4096, 4200, bytes.len() / 2, bytes.len() - 1] {
        fs::write(fixture.image(), &bytes[..len]).unwrap();
        for run in run_all(&fixture) {
            run.error();
        }
    }
}

#[test]
fn damaged_metadata_never_panics() {
    let fixture = Fixture::new();
    let bytes = fs::read(fixture.image()).unwrap();
    let places =
        [0, 4096, fixture.inode_of("/"), fixture.inode_of("config.json"), fixture.offset_of(".daxfs/index")];
    for (seed, place) in places.into_iter().cycle().take(25).enumerate() {
        let seed = seed as u64;
        let mut random = noise(seed + 100);
        let place = usize::try_from(place).unwrap();
        let mut damaged = bytes.clone();
        for _ in 0..1 + seed % 3 {
            let at = place + usize::from(random.next().unwrap());
            damaged[at] = random.next().unwrap();
        }
        fs::write(fixture.image(), damaged).unwrap();
        run_all(&fixture);
    }
}

#[test]
fn huge_numbers_do_not_cost_memory() {
    let fixture = Fixture::new();
    // A directory of 2^54 entries, and an inode table of 2^32 slots.
    let inode = fixture.inode_of("/dir");
    fixture.poke(inode + 16, &(271_u64 << 54).to_le_bytes());
    for run in run_all(&fixture) {
        assert!(run.error().contains("outside"));
    }
    fixture.poke(48, &u32::MAX.to_le_bytes());
    for run in run_all(&fixture) {
        assert!(run.error().contains("inode table"));
    }
}

#[test]
fn sources_that_are_no_memory_are_refused_by_name() {
    let refuse = |source: &str| Run::of(Command::new(DAXFS).args(["ls", source])).error();
    assert!(refuse("/dev/null").contains("/dev/null"));
    assert!(refuse("fd:99").contains("99"));
    // Standard input is /dev/null here.
    assert!(!refuse("-").is_empty());
    assert!(refuse("").contains("No such file"));
}
