//! Images of an independent builder, made in this test, open with the contents of their source tree.
//!
//! The builder is the Python package `kerf-multikernel` (`tests/kerf/requirements.in`). It is looked for in the
//! interpreter that `DAXFS_PYTHON` names, which must have it, or else in `.venv` at the project's root and in `/usr/bin`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, ViewKind};
use daxfs_tests::examine::examine;
use daxfs_tests::golden::project_root;
use daxfs_tests::tree::{self, Facts, Item, Tree};
use daxfs_tests::verdict::{Verdict, open};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter that has the builder, or `None` and a line that says what was not run.
fn python() -> Option<PathBuf> {
    let available = |python: &PathBuf| {
        Command::new(python)
            .arg(script())
            .arg("--available")
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", python.display()))
    };
    if let Some(named) = std::env::var_os("DAXFS_PYTHON").map(PathBuf::from) {
        let found = available(&named);
        assert!(found.status.success(), "{}: {}", named.display(), String::from_utf8_lossy(&found.stderr));
        return Some(named);
    }
    let candidates = [project_root().join(".venv/bin/python"), "/usr/bin/python3".into()];
    for python in candidates.into_iter().filter(|python| python.exists()) {
        if available(&python).status.success() {
            return Some(python);
        }
    }
    eprintln!("not run: images of kerf: no Python with kerf-multikernel (set DAXFS_PYTHON)");
    None
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kerf/build.py")
}

/// Builds an image of `source` with an overlay pool of that many bytes.
fn build(python: &Path, source: &Path, image: &Path, pool: u64) {
    let output =
        Command::new(python).arg(script()).args([source, image]).arg(pool.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The link count of a directory is copied from the source's file system, which may not count subdirectories.
fn without_directory_links(mut facts: BTreeMap<Vec<u8>, Facts>) -> BTreeMap<Vec<u8>, Facts> {
    for entry in facts.values_mut().filter(|entry| entry.kind == daxfs::FileType::Directory) {
        entry.nlink = 0;
    }
    facts
}

fn source(hard_links: bool) -> Tree {
    let file = |size: usize| Item::File(0o644, (0..=252u8).cycle().take(size).collect());
    let mut tree: Tree = vec![
        (b"config.json".to_vec(), Item::File(0o600, b"{\"layers\": 2}\n".to_vec())),
        (b"empty".to_vec(), file(0)),
        (b"page".to_vec(), file(4096)),
        (b"more".to_vec(), file(4097)),
        (b"weights.bin".to_vec(), file(1_500_001)),
        (b"setuid".to_vec(), Item::File(0o4755, b"#!/bin/sh\n".to_vec())),
        (b"emptydir".to_vec(), Item::Dir(0o700)),
        (b"deep".to_vec(), Item::Dir(0o755)),
        (b"deep/er".to_vec(), Item::Dir(0o1777)),
        (b"deep/er/leaf".to_vec(), file(10)),
        (b"deep/up".to_vec(), Item::Symlink(b"../config.json".to_vec())),
        (b"dangling".to_vec(), Item::Symlink(b"no/where".to_vec())),
        ("na\u{ef}ve \u{1f980}".as_bytes().to_vec(), file(7)),
        (vec![b'n'; 255], file(3)),
        (b"many".to_vec(), Item::Dir(0o755)),
    ];
    // 302 entries: a count for which 271 and 272 bytes per entry end in different pages.
    tree.extend((0..302).map(|number| (format!("many/{number:03}").into_bytes(), file(number % 5))));
    if hard_links {
        tree.push((b"deep/again".to_vec(), Item::HardLink(b"more".to_vec())));
    }
    tree
}

#[test]
fn images_of_kerf_open_with_the_contents_of_their_source() {
    let Some(python) = python() else { return };
    for hard_links in [false, true] {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("tree");
        std::fs::create_dir(&folder).unwrap();
        tree::write(&source(hard_links), &folder);
        let file = work.path().join("image");
        build(&python, &folder, &file, 1 << 20);

        let image = Image::open(&file).unwrap();
        examine(&image);
        assert!(image.superblock().overlay.is_some());
        assert!(
            matches!(image.view_kind(), ViewKind::Base),
            "the overlay is unused: {:?}",
            image.view_kind()
        );
        let (ours, theirs) = (tree::in_image(&image), tree::on_disk(&folder));
        tree::assert_same(&without_directory_links(ours), &without_directory_links(theirs));

        // kerf leaves an empty inode slot for every additional name of a file; the kernel's validation, and so
        // strict mode, refuses those.
        let strict = open(std::fs::read(&file).unwrap(), true);
        let verdict = if hard_links { Verdict::Refused("SlotType", "inode") } else { Verdict::Opens };
        assert_eq!(verdict.disagreement(&strict), None);
    }
}
