//! Reads any bytes as a safetensors file in an image, and holds the result against the safetensors crate.
//!
//! The input is used twice: as a whole file, and as the JSON of a header (behind two bytes that give the length of the
//! tensor data), so that a mutation of the JSON need not guess the length in front of it.

#![no_main]

#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;

use daxfs::format::index::FILLER_PREFIX;
use daxfs::{Error, Image, TensorError, Tensors};
use forge::Forge;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    compare(data);
    if let Some((&[low, high], json)) = data.split_first_chunk() {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json);
        file.resize(file.len() + usize::from(u16::from_le_bytes([low, high])), 0xa5);
        compare(&file);
    }
});

/// Both accept the file and find the same tensors, or both refuse it. Ours refuses repeated keys too.
fn compare(file: &[u8]) {
    let mut image = Forge::new(2);
    image.dir(1, &[(2, "f")]).file(2, file);
    let image = Image::from_bytes(image.finish()).expect("a sound image");
    let ours = image.file("f").expect("the image's file").tensors();
    let theirs = SafeTensors::deserialize(file);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            same_tensors(&ours, &theirs);
            let (_, header) = SafeTensors::read_metadata(file).expect("accepted before");
            let texts = header.metadata().iter().flatten();
            let texts = texts.map(|(key, text)| (key.clone(), text.as_str().into()));
            assert_eq!(ours.metadata().expect("accepted before"), texts.collect(), "metadata");
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(_)) => assert!(is_repeated_key(&error), "only the crate accepts: {error}"),
        (Ok(_), Err(error)) => panic!("only we accept: {error}"),
    }
}

fn same_tensors(ours: &Tensors, theirs: &SafeTensors<'_>) {
    let mut names: Vec<&str> = theirs.names();
    names.retain(|name| !name.starts_with(FILLER_PREFIX));
    names.sort_unstable();
    assert!(ours.names().into_iter().map(Result::unwrap).eq(names.iter().copied()), "names");
    assert_eq!(ours.len(), names.len());
    for name in names {
        let (our, their) = (ours.get(name).expect("listed"), theirs.tensor(name).expect("listed"));
        assert_eq!(our.dtype().name(), their.dtype().to_string(), "{name}");
        assert!(our.shape().iter().copied().eq(their.shape().iter().map(|dim| *dim as u64)), "{name}");
        assert_eq!(our.bytes().expect("an extent").to_vec(), their.data(), "{name}");
    }
}

fn is_repeated_key(error: &Error) -> bool {
    let Error::Tensor(error) = error else { return false };
    let fault = match error {
        TensorError::InFile { fault, .. } => fault.as_ref(),
        other => other,
    };
    matches!(fault, TensorError::DuplicateKey { .. })
}
