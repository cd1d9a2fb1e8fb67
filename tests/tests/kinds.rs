//! The names and facts of the kinds of memory are written once, in `dmabuf`: the documents and Python's stubs say the
//! same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use daxfs_tests::golden::project_root;
use dmabuf::MemoryClass;

/// Rows of the table of `docs/sources.md` with this head, as cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(project_root().join("docs/sources.md")).unwrap();
    let rows = text.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

#[test]
fn the_table_of_the_documents_is_that_of_the_code() {
    let documented = table("| memory | class | who can write | can it shrink | pages | coherent with |");
    let facts: Vec<_> = dmabuf::kinds()
        .map(|kind| {
            [kind.name, kind.class.name(), kind.writers, kind.shrinks, kind.pages, kind.coherence]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    assert_eq!(documented, facts);
}

#[test]
fn the_classes_of_the_documents_are_those_of_the_code() {
    let documented = table(
        "| class | memory | populate | pinned (O_DIRECT, `MSG_ZEROCOPY`, `process_vm_readv`, RDMA) | copies |",
    );
    let names: Vec<_> = documented.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, MemoryClass::ALL.map(MemoryClass::name));
    for (row, class) in documented.iter().zip(MemoryClass::ALL) {
        assert_eq!(row[2] == "yes", class.can_populate(), "{row:?}");
        assert_eq!(row[3] == "yes", class.can_pin(), "{row:?}");
        assert_eq!(row[4].starts_with("16 bytes"), class.has_wide_loads(), "{row:?}");
    }
}

#[test]
fn the_names_in_python_are_those_of_the_code() {
    let stubs = fs::read_to_string(project_root().join("python/daxfs/_daxfs.pyi")).unwrap();
    let kind = &stubs[stubs.find("def kind(").unwrap()..];
    let kind = &kind[..kind.find("...").unwrap()];
    let literals: Vec<_> = kind.split('"').skip(1).step_by(2).collect();
    assert_eq!(literals.len(), dmabuf::kinds().len() + 1, "and process memory: {literals:?}");
    assert!(dmabuf::kinds().all(|facts| literals.contains(&facts.name)), "{literals:?}");
}
