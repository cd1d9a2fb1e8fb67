//! The tensor index, aligned rewriting, and checkpoints: what the packer writes is what the reader takes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, open_strict, safetensors, write};
use daxfs::{Dtype, Image};
use mkimage::{Packer, Summary};
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

const SHARD_1: &[(&str, &str, &[usize])] =
    &[("b.weight", "BF16", &[3, 5]), ("a.weight", "F32", &[7]), ("empty", "F32", &[0, 4])];
const SHARD_2: &[(&str, &str, &[usize])] =
    &[("c.scale", "F8_E4M3", &[1]), ("c.packed", "F4", &[3, 2]), ("d", "I64", &[])];
const MAP: &str = r#"{"metadata":{"total_size":1},"weight_map":{"d":"model-2.safetensors",
    "a.weight":"model-1.safetensors","c.packed":"model-2.safetensors","b.weight":"model-1.safetensors"}}"#;

fn model(root: &Path) {
    write(root, "model-1.safetensors", &safetensors(SHARD_1));
    write(root, "model-2.safetensors", &safetensors(SHARD_2));
    write(root, "model.safetensors.index.json", MAP.as_bytes());
    write(root, "config.json", b"{}");
}

fn pack(source: &Path, packer: Packer) -> (Image, Summary) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let summary = packer.input(source).verify(true).plan().unwrap().write_file(&path).unwrap();
    (open_strict(&path), summary)
}

/// Every tensor as (name, dtype, shape, bytes).
fn tensors(image: &Image, path: &str) -> Vec<(String, Dtype, Vec<u64>, Vec<u8>)> {
    let tensors = image.tensors_at(path).unwrap();
    let read = |tensor: daxfs::Tensor| {
        let bytes = tensor.bytes().unwrap().to_vec();
        (tensor.name().to_owned(), tensor.dtype(), tensor.shape().to_vec(), bytes)
    };
    tensors.iter().map(|tensor| read(tensor.unwrap())).collect()
}

#[test]
fn the_index_says_what_the_headers_say() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let (indexed, summary) = pack(dir.path(), Packer::new());
    let (plain, _) = pack(dir.path(), Packer::new().plain(true));
    assert_eq!(summary.tensors, 6);
    assert!(plain.index().unwrap().is_none());
    assert_eq!(list_image(&plain), list_directory(dir.path()));
    let index = indexed.index().unwrap().unwrap();
    assert_eq!((index.file_count(), index.tensor_count(), index.checkpoint_count()), (4, 6, 1));
    for path in ["/model-1.safetensors", "/model-2.safetensors", "/model.safetensors.index.json", "/"] {
        assert!(indexed.tensors_at(path).unwrap().indexed());
        assert!(!plain.tensors_at(path).unwrap().indexed());
        assert_eq!(tensors(&indexed, path), tensors(&plain, path), "{path}");
    }
    assert_eq!(tensors(&indexed, "/").len(), 4);
}

#[test]
fn the_hashes_are_those_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    // Long enough to be hashed in several parts, and at an offset that is no power of two.
    write(dir.path(), "a long one", &common::noise(5, (40 << 20) + 4321));
    write(dir.path(), "b empty", b"");
    write(dir.path(), "c again", &common::noise(5, (40 << 20) + 4321));
    let (image, summary) = pack(dir.path(), Packer::new().align(4096).dedupe(true));
    let index = image.index().unwrap().unwrap();
    for entry in image.walk().filter(|entry| entry.file_type() == daxfs::FileType::File) {
        if !entry.path().starts_with(b"/.daxfs/") {
            let file = entry.file().unwrap();
            let wanted = *blake3::hash(&file.to_vec().unwrap()).as_bytes();
            assert_eq!(index.file_hash(file.ino()).unwrap(), Some(wanted), "{:?}", entry.path());
        }
    }
    let hash = image.content_hash();
    assert_eq!(hash, summary.content_hash);
    let (bare, summary) = pack(dir.path(), Packer::new().hash(false));
    assert_eq!((bare.content_hash(), summary.content_hash), (None, None));
    // The hash is of the content: layout and packer's settings do not show.
    let (image, _) = pack(dir.path(), Packer::new().threads(3).block_size(65536));
    assert_eq!(image.content_hash(), hash);
}

#[test]
fn content_without_tensors_has_hashes_and_an_index_without_them_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "table", &common::noise(5, 70_000));
    let (image, summary) = pack(dir.path(), Packer::new());
    let index = image.index().unwrap().unwrap();
    assert_eq!((index.file_count(), index.tensor_count()), (1, 0));
    let wanted = *blake3::hash(&common::noise(5, 70_000)).as_bytes();
    assert_eq!(index.file_hash(image.file("table").unwrap().ino()).unwrap(), Some(wanted));
    assert!(summary.content_hash.is_some());
    assert!(image.tensors().is_err(), "it still has no tensors");
    for packer in [Packer::new().hash(false).erofs(false), Packer::new().plain(true)] {
        let (image, summary) = pack(dir.path(), packer);
        assert!(image.index().unwrap().is_none());
        assert_eq!((image.content_hash(), summary.content_hash), (None, None));
        assert_eq!(image.len(), 2, "the source and nothing else");
    }
}

#[test]
fn aligned_tensors_are_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let (as_they_are, _) = pack(dir.path(), Packer::new().exact(true));
    for align in [8, 64, 256, 4096, 65536, 2 << 20] {
        let (image, summary) = pack(dir.path(), Packer::new().tensor_alignment(Some(align)));
        assert_eq!(summary.tensors, 6, "fillers are not counted");
        for path in ["/model-1.safetensors", "/model-2.safetensors", "/"] {
            assert_eq!(tensors(&image, path), tensors(&as_they_are, path));
            for tensor in image.tensors_at(path).unwrap().iter() {
                let tensor = tensor.unwrap();
                let place = tensor.file().extent().unwrap().offset + tensor.offset();
                assert!(tensor.nbytes() == 0 || place.is_multiple_of(align), "{align}: {}", tensor.name());
                assert!(tensor.nbytes() == 0 || tensor.alignment() >= align.min(4096), "{}", tensor.name());
            }
        }
        let file = image.file("/model-1.safetensors").unwrap().to_vec().unwrap();
        let source = fs::read(dir.path().join("model-1.safetensors")).unwrap();
        let (new, old) =
            (SafeTensors::deserialize(&file).unwrap(), SafeTensors::deserialize(&source).unwrap());
        for (name, tensor) in old.tensors() {
            assert_eq!(new.tensor(&name).unwrap(), tensor);
        }
    }
    // What is aligned is packed as it is.
    let out = tempfile::tempdir().unwrap();
    let (image, _) = pack(dir.path(), Packer::new());
    let aligned = image.file("/model-1.safetensors").unwrap().to_vec().unwrap();
    write(out.path(), "model-1.safetensors", &aligned);
    let (again, _) = pack(out.path(), Packer::new());
    assert_eq!(again.file("/model-1.safetensors").unwrap().to_vec().unwrap(), aligned);
}

#[test]
fn a_copy_under_another_name_is_not_shared_with_a_rewritten_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = safetensors(SHARD_1);
    write(dir.path(), "a.bin", &bytes);
    write(dir.path(), "b.safetensors", &bytes);
    write(dir.path(), "c.safetensors", &bytes);
    let (image, summary) = pack(dir.path(), Packer::new().dedupe(true));
    assert!(image.file("/a.bin").unwrap().to_vec().unwrap() == bytes);
    let rewritten = image.file("/b.safetensors").unwrap();
    assert_eq!(summary.deduplicated_bytes, rewritten.len());
    assert_eq!(rewritten.extent(), image.file("/c.safetensors").unwrap().extent());
}

#[test]
fn broken_files_are_packed_as_bytes_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let cut = &safetensors(SHARD_1)[..40];
    write(dir.path(), "cut.safetensors", cut);
    write(dir.path(), "short.safetensors", b"abc");
    let twice = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    write(dir.path(), "twice.safetensors", &[&(twice.len() as u64).to_le_bytes(), twice.as_bytes()].concat());
    let promises = r#"{"weight_map":{"a.weight":"model-1.safetensors","z":"model-2.safetensors"}}"#;
    write(dir.path(), "empty promises.safetensors.index.json", promises.as_bytes());
    write(dir.path(), "outside.safetensors.index.json", br#"{"weight_map":{"a":"../model-1.safetensors"}}"#);
    let (image, summary) = pack(dir.path(), Packer::new());
    assert_eq!(summary.warnings.len(), 5, "{:#?}", summary.warnings);
    for name in ["cut.", "short.", "twice.", "empty promises.", "outside."] {
        assert!(summary.warnings.iter().any(|warning| warning.contains(name)), "{name}");
    }
    assert_eq!(image.file("/cut.safetensors").unwrap().to_vec().unwrap(), cut);
    assert_eq!(image.index().unwrap().unwrap().checkpoint_count(), 1);
    assert_eq!(tensors(&image, "/model.safetensors.index.json").len(), 4);

    // Nothing but broken files: an index without tensors, and without hashes none at all.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "cut.safetensors", cut);
    let (image, _) = pack(other.path(), Packer::new());
    assert_eq!(image.index().unwrap().unwrap().tensor_count(), 0);
    assert!(image.tensors().is_err());
    let (image, _) = pack(other.path(), Packer::new().hash(false).erofs(false));
    assert!(image.index().unwrap().is_none());
    assert_eq!(image.len(), 2);
}

#[test]
fn hard_links_and_shards_in_other_directories() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("one"));
    fs::create_dir(dir.path().join("two")).unwrap();
    for name in ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"] {
        fs::hard_link(dir.path().join("one").join(name), dir.path().join("two").join(name)).unwrap();
    }
    write(
        dir.path(),
        "sub/x.safetensors.index.json",
        br#"{"weight_map":{"a.weight":"./deep/s.safetensors"}}"#,
    );
    write(dir.path(), "sub/deep/s.safetensors", &safetensors(SHARD_1));
    let (image, summary) = pack(dir.path(), Packer::new());
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
    assert_eq!(summary.hard_links, 3);
    assert_eq!(image.index().unwrap().unwrap().checkpoint_count(), 2);
    assert_eq!(tensors(&image, "/one"), tensors(&image, "/two"));
    assert_eq!(tensors(&image, "/sub/x.safetensors.index.json").len(), 1);
}

/// Sources come back whole, and their hashes are right, wherever the parts fall that threads copy.
#[test]
fn originals_come_back_with_their_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let source = |tensors: &[(&str, &str, &[usize])]| safetensors(tensors);
    let long: Vec<(String, usize)> = (0..40).map(|n| (format!("t{n:02}"), 1_000_003 + n * 77)).collect();
    let shapes: Vec<[usize; 1]> = long.iter().map(|(_, len)| [*len]).collect();
    let long: Vec<(&str, &str, &[usize])> =
        long.iter().zip(&shapes).map(|((name, _), shape)| (name.as_str(), "U8", &shape[..])).collect();
    let files = [("long.safetensors", source(&long)), ("short.safetensors", source(SHARD_1))];
    for (name, bytes) in &files {
        write(dir.path(), name, bytes);
    }
    write(dir.path(), "again.safetensors", &files[0].1);
    for align in [64, 4096, 1 << 20] {
        let packer = Packer::new().align(4096).dedupe(true).tensor_alignment(Some(align));
        let (image, _) = pack(dir.path(), packer);
        image.index().unwrap().unwrap().check(&image).unwrap();
        for (name, bytes) in files.iter().chain([&("again.safetensors", files[0].1.clone())]) {
            let original = image.file(name).unwrap().original().unwrap();
            assert_eq!((original.differs(), original.alignment()), (true, Some(align)), "{name}");
            let mut found = Vec::new();
            assert_eq!(original.copy_to(&mut found).unwrap(), bytes.len() as u64);
            assert!(found == *bytes, "{name} {align}");
            let hash = *blake3::hash(bytes).as_bytes();
            assert_eq!((original.stored_hash().unwrap(), original.hash().unwrap()), (Some(hash), hash));
            let mut part = [0; 100];
            for at in [0, 5, 1000, bytes.len() - 3, bytes.len(), bytes.len() + 7] {
                let len = original.read_at(at as u64, &mut part).unwrap();
                let start = at.min(bytes.len());
                assert_eq!(part[..len], bytes[start..bytes.len().min(start + 100)], "{name} {at}");
            }
        }
    }
    let (image, _) = pack(dir.path(), Packer::new().exact(true));
    let original = image.file("short.safetensors").unwrap().original().unwrap();
    assert_eq!(
        (original.differs(), original.hash().unwrap()),
        (false, *blake3::hash(&files[1].1).as_bytes())
    );
}

/// A GGUF file of version 3: tensors with the number of their type, dimensions as they lie in the file, and bytes.
fn gguf(pairs: &[(&str, u16)], tensors: &[(&str, u32, &[u64], Vec<u8>)]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        file.extend([&text(key)[..], &2u32.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    let mut data = Vec::new();
    for (name, kind, dims, bytes) in tensors {
        file.extend([&text(name)[..], &u32::try_from(dims.len()).unwrap().to_le_bytes()].concat());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

fn quantised() -> Vec<u8> {
    gguf(
        &[],
        &[
            ("token_embd.weight", 12, &[512, 3], common::noise(1, 6 * 144)),
            ("output.weight", 14, &[256, 2], common::noise(2, 2 * 210)),
            ("output_norm.weight", 0, &[5], common::noise(3, 20)),
            ("blk.0.attn_q.weight", 12, &[256, 1], common::noise(4, 144)),
        ],
    )
}

/// GGUF files are indexed with their quantised types, stay byte for byte, and the index says what the headers say: by
/// names, by links to nameless blobs, and by what blobs begin with.
#[test]
fn gguf_is_indexed_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let blob = "0123456789abcdef0123456789abcdef";
    write(dir.path(), "model.gguf", &quantised());
    write(dir.path(), "scratch/weights.bin", &quantised()[..64]);
    write(dir.path(), format!("blobs/{blob}"), &[&quantised()[..], &[0; 32]].concat());
    let (indexed, summary) = pack(dir.path(), Packer::new());
    let (plain, _) = pack(dir.path(), Packer::new().plain(true));
    assert_eq!((summary.tensors, summary.moved_files, summary.warnings), (8, 0, Vec::new()));
    assert_eq!(indexed.file("model.gguf").unwrap().to_vec().unwrap(), quantised());
    let index = indexed.index().unwrap().unwrap();
    index.verify(&indexed).unwrap();
    index.check(&indexed).unwrap();
    for path in ["/model.gguf", "/", &format!("/blobs/{blob}")] {
        let (with, without) = (indexed.tensors_at(path).unwrap(), plain.tensors_at(path).unwrap());
        assert!(with.indexed() && !without.indexed());
        assert_eq!(tensors(&indexed, path), tensors(&plain, path), "{path}");
        let weight = with.get("token_embd.weight").unwrap();
        assert_eq!((weight.dtype(), weight.shape()), (Dtype::Q4_K, &[3, 512][..]));
        assert!(weight.alignment() >= 32);
        assert_eq!(weight.dequantize().unwrap().len(), 3 * 512);
    }
    assert!(!indexed.tensors_at("/scratch/weights.bin").is_ok_and(|tensors| tensors.indexed()));
}

#[test]
fn split_gguf_files_are_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |number: u16, name: &str| {
        gguf(&[("split.no", number), ("split.count", 2)], &[(name, 8, &[32], common::noise(5, 34))])
    };
    write(dir.path(), "m-00001-of-00002.gguf", &shard(0, "b"));
    write(dir.path(), "m-00002-of-00002.gguf", &shard(1, "a"));
    let (image, _) = pack(dir.path(), Packer::new());
    let names: daxfs::Result<Vec<_>> = image.tensors().unwrap().names().into_iter().collect();
    let names = names.unwrap();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn gguf_that_is_not_understood_is_packed_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let mut unknown = gguf(&[], &[("w", 200, &[32], Vec::new())]);
    write(dir.path(), "fork.gguf", &unknown);
    unknown[4..8].copy_from_slice(&[0, 0, 0, 3]);
    write(dir.path(), "big.gguf", &unknown);
    let (image, summary) = pack(dir.path(), Packer::new());
    assert_eq!(image.file("fork.gguf").unwrap().len(), unknown.len() as u64);
    let text = summary.warnings.join("\n");
    assert!(
        text.contains("fork.gguf: packed as plain bytes, its tensors are not indexed: GGUF: tensor \"w\""),
        "{text}"
    );
    assert!(text.contains("number 200, of a later version or a fork of GGUF"), "{text}");
    assert!(text.contains("big.gguf") && text.contains("a big-endian file of version 3"), "{text}");
}
