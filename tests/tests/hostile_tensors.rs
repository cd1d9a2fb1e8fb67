//! Tensor headers, checkpoints and indexes made to hurt a reader, inside otherwise sound images.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::format::index;
use daxfs::{Error, Image, TensorError, Tensors};
use daxfs_tests::examine::examine;
use daxfs_tests::forge::Forge;
use daxfs_tests::overlay::Overlay;
use daxfs_tests::verdict::open;
use mkimage::Packer;
use std::fs;

/// A safetensors file with this header.
fn safetensors(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![1; data]].concat()
}

/// An image with these files in its root.
fn image_of(files: &[(&str, &[u8])]) -> Image {
    let mut forge = Forge::new(1 + u32::try_from(files.len()).unwrap());
    let names: Vec<(u32, &str)> = (2..).zip(files.iter().map(|(name, _)| *name)).collect();
    forge.dir(1, &names);
    for (ino, (_, contents)) in (2..).zip(files) {
        forge.file(ino, contents);
    }
    open(forge.finish(), true).unwrap()
}

/// Two tensors in two shards and the list that joins them, packed.
fn packed(plain: bool) -> Vec<u8> {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for name in ["a", "b"] {
        let header = format!(
            r#"{{"{name}.weight":{{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}},"{name}.bias":{{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}}}"#
        );
        fs::write(tree.join(format!("{name}.safetensors")), safetensors(header.as_bytes(), 32)).unwrap();
    }
    let list = r#"{"weight_map":{"a.weight":"a.safetensors","a.bias":"a.safetensors","b.weight":"b.safetensors","b.bias":"b.safetensors"}}"#;
    fs::write(tree.join("model.safetensors.index.json"), list).unwrap();
    let image = work.path().join("image");
    Packer::new().input(&tree).exact(true).plain(plain).plan().unwrap().write_file(&image).unwrap();
    fs::read(&image).unwrap()
}

/// Everything that a set of tensors says, in its order.
fn listing(tensors: &Tensors) -> Vec<(String, Vec<u8>)> {
    let one = |tensor: daxfs::Tensor| {
        let facts = format!("{} {} {:?} {}", tensor.name(), tensor.dtype(), tensor.shape(), tensor.offset());
        (facts, tensor.bytes().unwrap().to_vec())
    };
    tensors.iter().map(|tensor| one(tensor.unwrap())).collect()
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |rest: &str| safetensors(format!(r#"{{"w":{rest}}}"#).as_bytes(), 8);
    let deep = safetensors("[".repeat(200_000).as_bytes(), 0);
    let nested = safetensors(format!(r#"{{"__metadata__":{}}}"#, r#"{"a":"#.repeat(100_000)).as_bytes(), 0);
    let huge_rank = format!(r#"{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#, "1,".repeat(100_000));
    for bytes in [
        Vec::new(),
        vec![0; 7],
        vec![0xff; 8],
        u64::MAX.to_le_bytes().to_vec(),
        [&100_000_001_u64.to_le_bytes()[..], b"{}"].concat(),
        [&3_u64.to_le_bytes()[..], b"{}"].concat(),
        safetensors(b"", 0),
        safetensors(b"{", 0),
        safetensors(b"\xff\xfe", 0),
        safetensors(b"[]", 0),
        safetensors(b"{} x", 0),
        deep,
        nested,
        tensor(r#"{"dtype":"U8","shape":[8]}"#),
        tensor(r#"{"dtype":"X9","shape":[8],"data_offsets":[0,8]}"#),
        tensor(r#"{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}"#),
        tensor(r#"{"dtype":"U8","shape":[8],"data_offsets":[8,0]}"#),
        tensor(r#"{"dtype":"U8","shape":[7],"data_offsets":[0,8]}"#),
        tensor(r#"{"dtype":"U8","shape":[7],"data_offsets":[1,8]}"#),
        tensor(r#"{"dtype":"U8","shape":[9],"data_offsets":[0,9]}"#),
        tensor(r#"{"dtype":"U8","shape":[7],"data_offsets":[0,7]}"#),
        tensor(r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#),
        tensor(r#"{"dtype":"F64","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}"#),
        tensor(r#"{"dtype":"F4","shape":[15],"data_offsets":[0,8]}"#),
        safetensors(
            br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
            8,
        ),
        safetensors(
            br#"{"v":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"w":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}"#,
            8,
        ),
    ] {
        let image = image_of(&[("model.safetensors", &bytes)]);
        let shown = bytes[..bytes.len().min(60)].escape_ascii();
        let error = image.file("model.safetensors").unwrap().tensors().map(|found| found.len()).unwrap_err();
        assert!(matches!(error, Error::Tensor(_)), "{shown}: {error}");
        assert!(error.to_string().contains("model.safetensors"), "{shown}: {error}");
        examine(&image);
    }
    // A hundred thousand dimensions of 1 are odd, not wrong: whatever the answer, it comes.
    examine(&image_of(&[(
        "model.safetensors",
        &safetensors(format!(r#"{{"w":{huge_rank}}}"#).as_bytes(), 1),
    )]));
}

#[test]
fn checkpoints_that_lead_astray_are_refused() {
    let shard = safetensors(br#"{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#, 8);
    let tensors = |map: &str| {
        let list = format!(r#"{{"weight_map":{map}}}"#);
        let files: [(&str, &[u8]); 2] =
            [("s.safetensors", &shard), ("m.safetensors.index.json", list.as_bytes())];
        image_of(&files).tensors().map(|tensors| listing(&tensors).len())
    };
    assert_eq!(tensors(r#"{"w":"s.safetensors"}"#).unwrap(), 1);
    let fault = |map: &str| match tensors(map).unwrap_err() {
        Error::Tensor(TensorError::InFile { fault, .. }) => fault,
        other => panic!("{map}: {other}"),
    };
    for path in ["/s.safetensors", "../s.safetensors", "x/../s.safetensors", "", "."] {
        let fault = fault(&format!(r#"{{"w":"{path}"}}"#));
        assert!(matches!(*fault, TensorError::ShardPath { .. }), "{path}: {fault}");
    }
    assert!(matches!(*fault(r#"{"w":"t.safetensors"}"#), TensorError::MissingShard { .. }));
    assert!(matches!(
        *fault(r#"{"w":"s.safetensors","v":"s.safetensors"}"#),
        TensorError::MissingTensor { .. }
    ));
    assert!(matches!(
        *fault(r#"{"w":"s.safetensors","w":"s.safetensors"}"#),
        TensorError::DuplicateKey { .. }
    ));
    // The list as its own shard: its JSON is no safetensors header.
    assert!(tensors(r#"{"w":"m.safetensors.index.json"}"#).is_err());
}

#[test]
fn an_index_and_the_headers_say_the_same() {
    let (plain, indexed) = (open(packed(true), true).unwrap(), open(packed(false), true).unwrap());
    assert!(plain.index().unwrap().is_none() && indexed.index().unwrap().is_some());
    for path in ["/", "/a.safetensors", "/b.safetensors", "/model.safetensors.index.json"] {
        let (parsed, found) = (plain.tensors_at(path).unwrap(), indexed.tensors_at(path).unwrap());
        assert!(!parsed.indexed() && found.indexed(), "{path}");
        assert_eq!(listing(&parsed), listing(&found), "{path}");
    }
}

/// Every word of the index, replaced by values that break arithmetic: an answer may be wrong only in what the
/// index says, never outside the file.
#[test]
fn no_word_of_the_index_can_hurt() {
    let image = packed(false);
    let extent = open(image.clone(), true).unwrap().file(index::PATH).unwrap().extent().unwrap();
    let mut refused = 0;
    for at in (extent.offset..extent.offset + extent.len - 8).step_by(4) {
        for value in [0u64, 1, 0xffff, 0x8000_0000, 0xffff_ffff, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
            for width in [4, 8] {
                let mut damaged = image.clone();
                let at = usize::try_from(at).unwrap();
                damaged[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                let opened = open(damaged, false).unwrap();
                refused += u64::from(opened.tensors().is_err());
                examine(&opened);
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn an_index_cut_anywhere_is_refused_or_harmless() {
    let image = packed(false);
    let mut opened = 0;
    let ino = u32::try_from(open(image.clone(), true).unwrap().file(index::PATH).unwrap().ino()).unwrap();
    let size = daxfs_tests::forge::inode(&mut image.clone(), ino).size.get();
    for len in 0..size {
        let mut cut = image.clone();
        daxfs_tests::forge::inode(&mut cut, ino).size = len.into();
        let cut = open(cut, false).unwrap();
        opened += u64::from(cut.tensors().is_ok());
        examine(&cut);
    }
    assert_eq!(opened, 0, "the index says its own length");
}

#[test]
fn a_changed_image_does_not_use_its_index() {
    let mut image = packed(false);
    let opened = open(image.clone(), true).unwrap();
    let file = opened.file("/a.safetensors").unwrap();
    let changed = String::from_utf8(file.to_vec().unwrap()).unwrap().replace("a.weight", "a.Weight");
    let mut overlay = Overlay::new(64, opened.superblock().inode_count);
    overlay.page(file.ino(), 0, changed.as_bytes());
    overlay.attach(&mut image);
    let opened = open(image, false).unwrap();
    examine(&opened);
    let tensors = opened.tensors_at("/a.safetensors").unwrap();
    assert!(!tensors.indexed());
    assert_eq!(tensors.names().into_iter().map(Result::unwrap).collect::<Vec<_>>(), ["a.Weight", "a.bias"]);
    assert_eq!(tensors.get("a.Weight").unwrap().nbytes(), 24);
}
