//! Walks over sets with and without an index: the same tensors and names, and what is wrong is an error.

use super::index::test_index::Builder;
use super::test_image::{TestImage, safetensors};
use super::*;

const NAMES: [&str; 7] = ["a", "layers.1", "layers.1.b", "layers.1.w", "layers.10.w", "layers.2.w", "é"];

/// Tensors of one byte with these names, with an index if wished, whose records `damage` may change.
fn image(indexed: bool, damage: impl Fn(&mut Builder)) -> Tensors {
    let listed = NAMES.map(|name| (name, Dtype::U8, &[1][..], &b"1"[..]));
    let file = safetensors(&listed, "");
    let start = file.len() as u64 - NAMES.len() as u64;
    let mut builder = Builder::default();
    let offsets: Vec<_> =
        (start..).zip(NAMES).map(|(offset, name)| (name, Dtype::U8, &[1][..], offset)).collect();
    builder.file_at("/f.safetensors", 2, file.len() as u64, start, &offsets);
    damage(&mut builder);
    let image = TestImage::new().file("/f.safetensors", file);
    let image = if indexed { image.file("/.daxfs/index", builder.bytes()) } else { image };
    let tensors = image.open().tensors().unwrap();
    assert_eq!(tensors.indexed(), indexed);
    tensors
}

fn under(tensors: &Tensors, prefix: &str) -> Vec<Result<String>> {
    tensors.with_prefix(prefix).map(|tensor| tensor.map(|tensor| tensor.name().to_owned())).collect()
}

#[test]
fn tensors_whose_names_begin_alike() {
    for indexed in [false, true] {
        let tensors = image(indexed, |_| {});
        for prefix in [
            "",
            "a",
            "b",
            "l",
            "layers.1",
            "layers.1.",
            "layers.2.w",
            "layers.2.w.",
            "layers.3",
            "é",
            "\u{ff}",
        ] {
            let wanted: Vec<_> = NAMES.into_iter().filter(|name| name.starts_with(prefix)).collect();
            let found: Result<Vec<_>> = under(&tensors, prefix).into_iter().collect();
            assert_eq!(found.unwrap(), wanted, "{prefix:?}, index: {indexed}");
        }
    }
}

#[test]
fn names_are_borrowed_or_copied() {
    for indexed in [false, true] {
        let tensors = image(indexed, |_| {});
        let (mut names, mut found) = (tensors.names(), Vec::new());
        let mut places = std::collections::BTreeSet::new();
        while let Some(name) = names.next().unwrap() {
            found.push(name.to_owned());
            // One buffer for all names, after it has grown: the last is no longer than those before.
            places.insert(name.as_ptr().addr());
        }
        assert_eq!(found, NAMES);
        assert!(names.next().unwrap().is_none());
        assert!(!indexed || places.len() < NAMES.len(), "{places:?}");
        let copies: Result<Vec<_>> = tensors.names().into_iter().collect();
        assert_eq!(copies.unwrap(), NAMES);
    }
}

#[test]
fn a_wrong_name_is_an_error_among_the_others() {
    let tensors = image(true, |builder| builder.tensors[2].name_len = u32::MAX.into());
    let names: Vec<_> = tensors.names().into_iter().collect();
    assert_eq!(names.len(), NAMES.len());
    for (at, name) in names.iter().enumerate() {
        match name {
            Ok(name) => assert_eq!(name, NAMES[at]),
            Err(error) => assert!(at == 2 && error.is_format(), "{at}: {error}"),
        }
    }
    // It may be one of those that are looked for, wherever the search looks first.
    for prefix in ["layers.1.b", "layers.1.", "layers.1"] {
        let found = under(&tensors, prefix);
        assert_eq!(found.iter().filter(|name| name.is_err()).count(), 1, "{prefix}: {found:?}");
    }
    // Whichever it is, the others are found.
    for at in 0..NAMES.len() {
        let tensors = image(true, |builder| builder.tensors[at].name_len = u32::MAX.into());
        for (other, wanted) in NAMES.iter().enumerate().filter(|(other, _)| *other != at) {
            let found = under(&tensors, wanted);
            let has = found.iter().any(|name| name.as_ref().is_ok_and(|name| name == wanted));
            assert!(has, "{at}, {other}: {found:?}");
        }
    }
}

#[test]
fn names_of_other_records_count_once_each() {
    // All records share the longest name: together longer than the index.
    let tensors = image(true, |builder| {
        let (offset, len) = builder.string(&"n".repeat(900));
        builder.tensors.iter_mut().for_each(|record| (record.name_offset, record.name_len) = (offset, len));
    });
    let names: Vec<_> = tensors.names().into_iter().collect();
    assert!(names.len() < NAMES.len(), "{}", names.len());
    let error = names.into_iter().next_back().unwrap().unwrap_err();
    assert!(error.to_string().contains("the names of a set must have bytes of their own"), "{error}");
}
