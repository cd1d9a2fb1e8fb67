use super::*;
use crate::tensor::container::{Beginning, ContainerKind};
use crate::tensor::metadata::List;
use crate::tensor::test_image::{TestImage, gguf, pair, safetensors};
use crate::tensor::{Dtype, Tensors};
use crate::{Image, OpenOptions, Region};

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

fn parse(file: &[u8]) -> Result<Header> {
    Gguf.parse(&Beginning { bytes: file, len: file.len() as u64 })
}

fn text(file: &[u8]) -> String {
    parse(file).unwrap_err().to_string()
}

/// A model of two tensors, one of them quantised.
fn model() -> Vec<u8> {
    gguf(
        &[
            pair("general.architecture", 8, &string(b"llama")),
            pair("llama.block_count", 4, &2u32.to_le_bytes()),
        ],
        &[("norm", 0, &[3], &[7; 12]), ("w", 8, &[64, 2], &[9; 4 * 34])],
        32,
    )
}

#[test]
fn tensors_have_their_dimensions_in_the_usual_order() {
    let file = model();
    let header = parse(&file).unwrap();
    assert_eq!(header.data_start() % 32, 0);
    let [norm, w] = [header.nth(0).unwrap(), header.nth(1).unwrap()];
    assert_eq!(
        (norm.name.as_str(), norm.dtype, norm.shape.as_slice(), norm.size),
        ("norm", Dtype::F32, &[3][..], 12)
    );
    assert_eq!((w.dtype, w.shape.as_slice(), w.size), (Dtype::Q8_0, &[2, 64][..], 4 * 34));
    assert_eq!((norm.offset, w.offset), (header.data_start(), header.data_start() + 32));
    let metadata = header.metadata().unwrap();
    assert_eq!(metadata["general.architecture"], "llama");
    assert_eq!(metadata["llama.block_count"], Value::Unsigned(2));
}

#[test]
fn every_type_of_value_is_read() {
    let nested = list(9, 2, &[list(4, 1, &5u32.to_le_bytes()), list(8, 1, &string(b"x"))].concat());
    let broken = [string(&[0xff, 0xfe]), string(b"ok")].concat();
    // Together they are a character, each alone is none.
    let halves = [string(&[0xc3]), string(&[0xa9])].concat();
    let file = gguf(
        &[
            pair("u8", 0, &[200]),
            pair("i8", 1, &[0xff]),
            pair("u16", 2, &[1, 2]),
            pair("i16", 3, &[0xfe, 0xff]),
            pair("u32", 4, &[1, 0, 0, 0x80]),
            pair("i32", 5, &(-5i32).to_le_bytes()),
            pair("f32", 6, &0.5f32.to_le_bytes()),
            pair("bool", 7, &[1]),
            pair("text", 8, &string("é".as_bytes())),
            pair("bytes", 8, &string(&[0xff])),
            pair("u64", 10, &u64::MAX.to_le_bytes()),
            pair("i64", 11, &i64::MIN.to_le_bytes()),
            pair("f64", 12, &(-0.25f64).to_le_bytes()),
            pair("list u8", 9, &list(0, 2, &[1, 2])),
            pair("list i8", 9, &list(1, 2, &[1, 0xff])),
            pair("list u16", 9, &list(2, 1, &[1, 1])),
            pair("list i16", 9, &list(3, 1, &[0xff, 0xff])),
            pair("list u32", 9, &list(4, 1, &[1, 0, 0, 0])),
            pair("list i32", 9, &list(5, 1, &[1, 0, 0, 0])),
            pair("list f32", 9, &list(6, 1, &1f32.to_le_bytes())),
            pair("list bool", 9, &list(7, 2, &[0, 1])),
            pair("list text", 9, &list(8, 3, &[string(b"a"), string(b""), string(b"bc")].concat())),
            pair("list broken", 9, &list(8, 2, &broken)),
            pair("list halves", 9, &list(8, 2, &halves)),
            pair("list u64", 9, &list(10, 1, &u64::MAX.to_le_bytes())),
            pair("list i64", 9, &list(11, 1, &i64::MIN.to_le_bytes())),
            pair("list f64", 9, &list(12, 1, &2f64.to_le_bytes())),
            pair("nested", 9, &nested),
            pair("empty", 9, &list(8, 0, &[])),
        ],
        &[],
        32,
    );
    let header = parse(&file).unwrap();
    let metadata = header.metadata().unwrap();
    let list = |key: &str| metadata[key].as_list().unwrap().iter().collect::<Vec<_>>();
    assert_eq!(metadata["u8"], Value::Unsigned(200));
    assert_eq!(metadata["i8"], Value::Signed(-1));
    assert_eq!(metadata["u16"], Value::Unsigned(0x201));
    assert_eq!(metadata["i16"], Value::Signed(-2));
    assert_eq!(metadata["u32"], Value::Unsigned(0x8000_0001));
    assert_eq!(metadata["i32"], Value::Signed(-5));
    assert_eq!(metadata["f32"], Value::Float(0.5));
    assert_eq!(metadata["bool"], Value::Bool(true));
    assert_eq!(metadata["text"], "é");
    assert_eq!(metadata["bytes"], Value::Bytes(vec![0xff]));
    assert_eq!(metadata["u64"], Value::Unsigned(u64::MAX));
    assert_eq!(metadata["i64"], Value::Signed(i64::MIN));
    assert_eq!(metadata["f64"], Value::Float(-0.25));
    assert_eq!(metadata["list u8"], Value::Bytes(vec![1, 2]));
    assert_eq!(list("list i8"), [Value::Signed(1), Value::Signed(-1)]);
    assert_eq!(list("list u16"), [Value::Unsigned(0x101)]);
    assert_eq!(list("list i16"), [Value::Signed(-1)]);
    assert_eq!(list("list u32"), [Value::Unsigned(1)]);
    assert_eq!(list("list i32"), [Value::Signed(1)]);
    assert_eq!(list("list f32"), [Value::Float(1.0)]);
    assert_eq!(list("list bool"), [Value::Bool(false), Value::Bool(true)]);
    assert_eq!(list("list text"), ["a", "", "bc"]);
    assert_eq!(list("list broken"), [Value::Bytes(vec![0xff, 0xfe]), Value::from("ok")]);
    assert_eq!(list("list halves"), [Value::Bytes(vec![0xc3]), Value::Bytes(vec![0xa9])]);
    assert_eq!(list("list u64"), [Value::Unsigned(u64::MAX)]);
    assert_eq!(list("list i64"), [Value::Signed(i64::MIN)]);
    assert_eq!(list("list f64"), [Value::Float(2.0)]);
    let inner = [List::unsigned(vec![5]), List::texts("x".into(), vec![1]).unwrap()];
    assert_eq!(list("nested"), inner.map(Value::List));
    assert!(list("empty").is_empty());
}

#[test]
fn what_breaks_a_rule_is_named() {
    let tensor = |kind: u32, dims: &[u64]| text(&gguf(&[], &[("w", kind, dims, &[0; 34])], 32));
    for removed in [4, 5, 31, 33, 36, 38] {
        let text = tensor(removed, &[32]);
        assert!(text.contains("tensor \"w\": its type must be one that this library knows"), "{text}");
        assert!(text.contains(&format!("number {removed}, which GGUF has given up")), "{text}");
    }
    for unknown in [43, 48, 142, u32::MAX] {
        let text = tensor(unknown, &[32]);
        assert!(
            text.ends_with(&format!("(found number {unknown}, of a later version or a fork of GGUF)")),
            "{text}"
        );
    }
    assert!(
        tensor(8, &[33]).contains("last dimension of Q8_0[33] is not a multiple of 32"),
        "{}",
        tensor(8, &[33])
    );
    assert!(tensor(8, &[]).contains("last dimension of Q8_0[] is not a multiple"));
    assert!(tensor(0, &[1 << 32, 1 << 32]).contains("more than 2^64 bits"));
    assert!(tensor(0, &[1; 65]).contains("it must have at most 64 dimensions (found 65)"));
    assert!(
        tensor(0, &[1000]).contains("tensor \"w\": 0x40..0xfe0 is outside the file (0x80 bytes)"),
        "{}",
        tensor(0, &[1000])
    );

    let kv = |kind: u32, value: &[u8]| text(&gguf(&[pair("k", kind, value)], &[], 32));
    assert_eq!(kv(7, &[2]), "GGUF: key \"k\": a truth value must be 0 or 1 (found 2)");
    assert!(
        kv(13, &[]).contains("the type of its value must be one that this library knows (found number 13)")
    );
    assert!(kv(9, &list(99, 0, &[])).contains("the type of its elements must be"));
    assert!(kv(9, &list(9, 1, &list(9, 1, &list(9, 1, &list(9, 0, &[]))))).contains("at most 4 lists"));
    assert!(kv(9, &list(0, u64::MAX, &[])).contains("it must lie in the file; is the file cut off?"));
    assert!(kv(9, &list(9, 1 << 60, &[])).contains("it must lie in the file"));
    assert!(kv(8, &u64::MAX.to_le_bytes()).contains("it must lie in the file"));
    assert!(kv(9, &list(7, 1, &[3])).contains("a truth value must be 0 or 1 (found 3)"));
    let twice = gguf(&[pair("k", 0, &[1]), pair("k", 0, &[1])], &[], 32);
    assert_eq!(text(&twice), "GGUF metadata: key \"k\" stands there twice");
    let names = gguf(&[], &[("w", 24, &[1], &[0]), ("w", 24, &[1], &[0])], 32);
    assert_eq!(text(&names), "GGUF tensors: key \"w\" stands there twice");
    for alignment in [0u32, 3, 48] {
        let text = text(&gguf(&[pair("general.alignment", 4, &alignment.to_le_bytes())], &[], 32));
        assert!(text.contains("general.alignment: must be a power of two"), "{text}");
    }
    // What is long is not shown.
    let long = [(8, string(&[b'3'; 10_000])), (8, string(&[0xff; 10_000])), (9, list(4, 2500, &[1; 10_000]))];
    for (kind, value) in long {
        let text = text(&gguf(&[pair("general.alignment", kind, &value)], &[], 32));
        assert!(text.contains("must be a power of two") && text.len() < 200, "{} bytes", text.len());
    }
    let text = text(&gguf(&[pair("general.alignment", 8, &string(b"32"))], &[], 32));
    assert!(text.contains("must be a power of two (found Text(\"32\"))"), "{text}");
}

#[test]
fn the_alignment_of_the_file_counts() {
    let pairs = [pair("general.alignment", 4, &256u32.to_le_bytes())];
    let tensors: [(&str, u32, &[u64], &[u8]); 2] = [("b", 24, &[5], &[1; 5]), ("a", 24, &[3], &[2; 3])];
    let header = parse(&gguf(&pairs, &tensors, 256)).unwrap();
    assert_eq!(header.data_start() % 256, 0);
    assert_eq!(header.get("a").unwrap().offset, header.data_start() + 256);
    let text = text(&[gguf(&pairs, &tensors, 32), vec![0; 512]].concat());
    assert!(
        text.contains(
            "tensor \"a\": its data must follow that of the tensor before it (found offset 0x20, 0x100"
        ),
        "{text}"
    );
}

#[test]
fn versions_and_byte_orders_are_refused_by_name() {
    let mut file = model();
    file[4] = 2;
    assert_eq!(parse(&file).unwrap().len(), 2, "version 2 is the same but for what it allows");
    for (version, expected) in [
        (1u32, "GGUF: version: must be 2 or 3 (found 1)"),
        (4, "GGUF: version: must be 2 or 3 (found 4)"),
        (
            3u32.swap_bytes(),
            "GGUF: version: files must be little-endian (found a big-endian file of version 3; convert it to \
             little-endian)",
        ),
    ] {
        file[4..8].copy_from_slice(&version.to_le_bytes());
        assert_eq!(text(&file), expected);
    }
    assert!(text(b"GGU").contains("magic: it must lie in the file"));
    assert_eq!(text(b"GGML0123"), "GGUF: magic: a file begins with \"GGUF\" (found \"GGML\")");
    assert_eq!(text(b""), "the file is empty, one with tensors has a header");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    assert!(text(pointer).starts_with("not a GGUF file but a git-lfs pointer"), "{}", text(pointer));
}

/// Wherever a file ends, and whatever byte of it is wrong, there is an answer, and tensors lie in the file.
#[test]
fn every_prefix_and_every_changed_byte_has_an_answer() {
    let file = model();
    let header_len = usize::try_from(parse(&file).unwrap().data_start()).unwrap();
    for len in 0..file.len() - 24 {
        assert!(parse(&file[..len]).is_err(), "{len}");
    }
    for at in 0..header_len {
        for change in [1, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= change;
            if let Ok(header) = parse(&file) {
                assert!(header.all().iter().all(|info| info.offset + info.size <= file.len() as u64));
            }
        }
    }
}

#[test]
fn what_a_header_makes_is_charged() {
    let tokens = vec![string(b""); 100_000].concat();
    let file = gguf(&[pair("tokens", 9, &list(8, 100_000, &tokens))], &[], 32);
    let bytes = TestImage::new().file("/m.gguf", file).bytes();
    let open = |limit| -> Result<Tensors> {
        let image = OpenOptions::new().max_metadata(limit).open_region(Region::from_bytes(bytes.clone()))?;
        image.file("/m.gguf")?.tensors()
    };
    let text = open(1 << 20).unwrap_err().to_string();
    assert!(text.starts_with("GGUF headers: with this, the image takes"), "{text}");
    assert!(open(4 << 20).unwrap().is_empty());
}

fn names(image: &Image, path: &str) -> Vec<String> {
    image.tensors_at(path).unwrap().names().into_iter().map(Result::unwrap).collect()
}

#[test]
fn split_files_are_joined_and_must_say_what_their_names_say() {
    let shard = |number: u16, count: u16, tensor: &str| {
        let pairs =
            [pair("split.no", 2, &number.to_le_bytes()), pair("split.count", 2, &count.to_le_bytes())];
        gguf(&pairs, &[(tensor, 24, &[1], &[1])], 32)
    };
    let two = |first: Vec<u8>, second: Vec<u8>| {
        TestImage::new().file("/m-00001-of-00002.gguf", first).file("/m-00002-of-00002.gguf", second).open()
    };
    let image = two(shard(0, 2, "b"), shard(1, 2, "a"));
    assert_eq!(names(&image, "/"), ["a", "b"]);
    assert_eq!(names(&image, "/m-*-of-00002.gguf"), ["a", "b"]);
    assert_eq!(names(&image, "/m-00002-of-00002.gguf"), ["a"]);
    let refused = |image: Image| image.tensors().unwrap_err().to_string();
    assert_eq!(
        refused(two(shard(0, 2, "b"), shard(0, 2, "a"))),
        "/m-00002-of-00002.gguf: GGUF: split.no: must be the number in the name less one (found 0, the name says 2 \
         of 2)"
    );
    assert!(
        refused(two(shard(0, 3, "b"), shard(1, 3, "a"))).contains("split.count: must be the number of files")
    );
    let alone = TestImage::new().file("/m-00001-of-00002.gguf", shard(0, 2, "b")).open();
    assert_eq!(refused(alone), "/m-*-of-00002.gguf: 1 of 2 shards are missing: 00002");
}

#[test]
fn containers_are_known_by_name_or_by_their_first_bytes() {
    let weights = safetensors(&[("s", Dtype::U8, &[1], b"1")], "");
    let image = TestImage::new()
        .file("/blobs/aa", model())
        .file("/blobs/bb", weights.clone())
        .link("/model.gguf", "blobs/aa")
        .file("/model.safetensors", weights)
        .open();
    assert_eq!(names(&image, "/blobs/aa"), ["norm", "w"]);
    assert_eq!(names(&image, "/blobs/bb"), ["s"]);
    assert_eq!(names(&image, "/model.gguf"), ["norm", "w"]);
    assert_eq!(names(&image, "/"), ["s"], "safetensors go before GGUF");
    let image = TestImage::new().file("/m.Q8_0.gguf", model()).file("/m.Q4_K.gguf", model()).open();
    assert_eq!(image.tensors_of_variant("/", "Q8_0").unwrap().file().path(), b"/m.Q8_0.gguf");
    let text = image.tensors().unwrap_err().to_string();
    assert!(text.ends_with("or choose a variant (variant=..., --variant): Q4_K, Q8_0"), "{text}");
    let kinds: Vec<_> = ContainerKind::all().map(|kind| (kind.name(), kind.code())).collect();
    assert_eq!(kinds, [("safetensors", 1), ("GGUF", 2), ("PyTorch checkpoint", 3), ("npz", 4), ("npy", 5)]);
    assert!(ContainerKind::all().all(|kind| ContainerKind::from_code(kind.code()) == Some(kind)));
}
