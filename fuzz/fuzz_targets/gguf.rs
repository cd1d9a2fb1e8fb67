//! Reads any bytes as a GGUF file in an image: its tensors lie in the file, its metadata can be walked, and what can be
//! dequantized becomes as many values as there are elements.

#![no_main]

#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;

use daxfs::tensor::{List, Value};
use daxfs::{Image, OpenOptions, Region};
use forge::Forge;
use libfuzzer_sys::fuzz_target;

/// Enough for every seed; what would take more memory is refused.
const MAX_METADATA: u64 = 16 << 20;

/// Longest tensor that is dequantized.
const MAX_ELEMENTS: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    read(data);
    // Most of the mutations of the beginning would only make another version or magic.
    read(&[b"GGUF\x03\0\0\0", data].concat());
});

fn read(file: &[u8]) {
    let mut image = Forge::new(2);
    image.dir(1, &[(2, "m.gguf")]).file(2, file);
    let region = Region::from_bytes(image.finish());
    let image: Image =
        OpenOptions::new().max_metadata(MAX_METADATA).open_region(region).expect("a sound image");
    let Ok(tensors) = image.file("m.gguf").expect("the image's file").tensors() else { return };
    let mut count = 0;
    for tensor in tensors.iter() {
        let tensor = tensor.expect("a header that was checked");
        count += 1;
        assert!(tensor.offset() + tensor.nbytes() <= file.len() as u64, "{}", tensor.name());
        assert_eq!(tensor.dtype().bytes_of(tensor.elements().into()), Some(tensor.nbytes()));
        assert_eq!(tensors.get(tensor.name()).expect("listed").offset(), tensor.offset());
        if tensor.elements() <= MAX_ELEMENTS && tensor.dtype().can_dequantize() {
            assert_eq!(tensor.dequantize().expect("in the file").len() as u64, tensor.elements());
        }
    }
    assert_eq!(count, tensors.len());
    tensors.metadata().expect("parsed before").values().for_each(walk);
}

fn walk(value: &Value) {
    if let Value::List(list) = value {
        assert_eq!(list.iter().count(), list.len());
        list.iter().for_each(|value| walk(&value));
        assert!(
            (0..list.len())
                .all(|at| List::text(list, at).is_none_or(|text| list.get(at) == Some(text.into())))
        );
    }
}
