//! Reads any bytes as a checkpoint of PyTorch in an image, and as the pickle of one whose archive is sound: its tensors
//! lie in the file, and no input takes long.

#![no_main]

#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;

use daxfs::{Image, OpenOptions, Region};
use forge::Forge;
use libfuzzer_sys::fuzz_target;

/// Enough for every seed; what would take more memory is refused.
const MAX_METADATA: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&archive(&[("m/data.pkl", data), ("m/data/0", &[7; 64])]));
});

/// An archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let u16 = |value: usize| u16::try_from(value).expect("small").to_le_bytes();
    let u32 = |value: usize| u32::try_from(value).expect("small").to_le_bytes();
    for (name, bytes) in entries {
        let place = u32(file.len());
        let sizes = [u32(bytes.len()); 2];
        let names = [u16(name.len()), [0, 0]];
        let common = [&[0; 14], sizes.as_flattened(), names.as_flattened()].concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\0\0", &common[..], &[0; 10], &place, name.as_bytes()].concat());
    }
    let (count, len, start) = (u16(entries.len()), u32(directory.len()), u32(file.len()));
    file.extend(directory);
    file.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &len, &start, &[0, 0]].concat());
    file
}

fn read(file: &[u8]) {
    let mut image = Forge::new(2);
    image.dir(1, &[(2, "pytorch_model.bin")]).file(2, file);
    let region = Region::from_bytes(image.finish());
    let image: Image =
        OpenOptions::new().max_metadata(MAX_METADATA).open_region(region).expect("a sound image");
    let Ok(tensors) = image.file("pytorch_model.bin").expect("the image's file").tensors() else { return };
    for tensor in tensors.iter() {
        let tensor = tensor.expect("a header that was checked");
        assert!(tensor.offset() + tensor.nbytes() <= file.len() as u64, "{}", tensor.name());
        assert_eq!(tensors.get(tensor.name()).expect("listed").offset(), tensor.offset());
    }
    tensors.metadata().expect("parsed before");
}
