//! What messages of tensors say.

use super::*;

#[test]
fn messages_name_place_found_and_bound() {
    let fault = TensorError::Size {
        tensor: "a\n".into(),
        dtype: Dtype::BF16,
        shape: vec![2, 3],
        got: 8,
        expected: 12,
    };
    assert_eq!(
        fault.in_file(b"/m/\xff.safetensors").to_string(),
        "/m/\\xff.safetensors: tensor \"a\\n\": 8 bytes of data, but BF16[2, 3] takes 12"
    );
}

#[test]
fn ambiguity_shows_when_the_list_was_cut() {
    let error = |count| TensorError::Ambiguous {
        place: "/".into(),
        count,
        paths: vec!["/a.safetensors".into(), "/b.safetensors".into()],
        variants: Vec::new(),
    };
    assert_eq!(
        error(2).to_string(),
        "/: 2 sets of tensors, name one of them: /a.safetensors, /b.safetensors"
    );
    assert!(error(9).to_string().ends_with("/b.safetensors, ..."));
}

#[test]
fn long_lists_are_cut() {
    let items: Vec<_> = (0..12).map(|n| n.to_string()).collect();
    assert_eq!(listed(&items[..2], 2), "0, 1");
    assert_eq!(listed(&items, 12), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    assert_eq!(listed(&items, 5000), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4990 more");
}

#[test]
fn not_found_is_seen_through_the_file() {
    let missing = TensorError::MissingShard { shard: "x".into(), path: "/x".into() }.in_file(b"/i.json");
    assert!(missing.is_not_found() && missing.is_format());
    let short = TensorError::TooShort { len: 3 };
    assert!(!short.is_not_found() && short.is_format());
    let none = TensorError::NoTensors { place: "/".into() };
    assert!(none.is_not_found() && !none.is_format());
}
