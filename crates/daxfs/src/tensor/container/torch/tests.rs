use super::*;
use crate::tensor::container::{Beginning, ContainerKind};
use crate::tensor::test_image::{TestImage, safetensors, zip};
use crate::tensor::{Dtype, Tensors};
use crate::{Image, OpenOptions, Region};

const NO_MORE: &[u8] = b"\x89ccollections\nOrderedDict\n)RtR";

fn text(text: &str) -> Vec<u8> {
    [b"X", &u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

fn numbers(values: &[u8]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|value| [b'K', *value]).collect();
    [b"(", &values[..], b"t"].concat()
}

/// Instructions that make a tensor.
fn tensor(key: &str, storage: &str, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let kind = format!("ctorch\n{storage}\n");
    let id = [b"(", &text("storage")[..], kind.as_bytes(), &text(key), &text("cpu"), b"K\x08tQ"];
    let place = [b'K', offset];
    let parts = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &id.concat()[..],
        &place,
        &numbers(shape),
        &numbers(strides),
    ];
    [&parts.concat()[..], NO_MORE].concat()
}

/// Instructions that make a dictionary.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn checkpoint(top: &[u8], entries: &[(&str, &[u8])]) -> Vec<u8> {
    let pickle = [b"\x80\x02", top, b"."].concat();
    let mut all = vec![("m/data.pkl", &pickle[..]), ("m/byteorder", b"little")];
    all.extend(entries);
    zip(&all, false)
}

const STORAGE: [u8; 32] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31,
];

/// Two tensors in one storage, and one of them once more under another name.
fn model() -> Vec<u8> {
    let top = dict(&[
        ("head", tensor("0", "FloatStorage", 0, &[2, 2], &[2, 1])),
        ("tied", tensor("0", "FloatStorage", 0, &[2, 2], &[2, 1])),
        ("bias", tensor("0", "FloatStorage", 4, &[4], &[1])),
    ]);
    checkpoint(&top, &[("m/data/0", &STORAGE)])
}

fn parse(file: &[u8]) -> Result<Header> {
    Torch.parse(&Beginning { bytes: file, len: file.len() as u64 })
}

fn error(file: &[u8]) -> String {
    parse(file).unwrap_err().to_string()
}

fn of(top: &[u8]) -> Result<Header> {
    parse(&checkpoint(top, &[("m/data/0", &STORAGE)]))
}

#[test]
fn tensors_lie_where_their_storages_do() {
    for wide in [false, true] {
        let top = dict(&[
            ("w", tensor("a", "BFloat16Storage", 1, &[2, 3], &[3, 1])),
            ("b", tensor("b", "LongStorage", 0, &[], &[])),
        ]);
        let pickle = [b"\x80\x02", &top[..], b"."].concat();
        let entries: [(&str, &[u8]); 3] =
            [("x/data.pkl", &pickle), ("x/data/a", &STORAGE[..14]), ("x/data/b", &STORAGE[16..24])];
        let file = zip(&entries, wide);
        let header = parse(&file).unwrap();
        let [b, w] = [header.nth(0).unwrap(), header.nth(1).unwrap()];
        assert_eq!((w.name.as_str(), w.dtype, &w.shape[..], w.size), ("w", Dtype::BF16, &[2, 3][..], 12));
        assert_eq!((b.dtype, &b.shape[..], b.size), (Dtype::I64, &[][..], 8));
        let bytes = |info: &TensorInfo| {
            &file[usize::try_from(info.offset).unwrap()..][..usize::try_from(info.size).unwrap()]
        };
        assert_eq!((bytes(w), bytes(b)), (&STORAGE[2..14], &STORAGE[16..24]));
        assert_eq!((b.offset % 64, header.data_start()), (0, w.offset));
    }
}

#[test]
fn tied_tensors_share_bytes_and_names_are_joined() {
    let header = parse(&model()).unwrap();
    let places: Vec<_> =
        header.visible().map(|info| (info.name.as_str(), info.offset - header.data_start())).collect();
    assert_eq!(places, [("bias", 16), ("head", 0), ("tied", 0)]);

    let inner = dict(&[("w", tensor("0", "HalfStorage", 0, &[3], &[1]))]);
    let list = [b"](", &tensor("0", "ByteStorage", 1, &[1], &[1])[..], b"e"].concat();
    let top = dict(&[
        ("state_dict", inner),
        ("parts", list),
        ("epoch", b"K\x07".to_vec()),
        ("arch", text("tiny")),
        ("lr", b"G\x3f\xe0\0\0\0\0\0\0".to_vec()),
        ("best", b"\x88".to_vec()),
        ("nothing", b"N".to_vec()),
    ]);
    let header = of(&top).unwrap();
    let names: Vec<_> = header.visible().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["parts.0", "state_dict.w"]);
    let metadata = header.metadata().unwrap();
    assert_eq!((&metadata["epoch"], &metadata["lr"]), (&Meta::Signed(7), &Meta::Float(0.5)));
    assert_eq!(
        (&metadata["arch"], &metadata["best"], metadata.len()),
        (&Meta::Text("tiny".into()), &Meta::Bool(true), 4)
    );

    assert_eq!(of(&tensor("0", "CharStorage", 0, &[2], &[1])).unwrap().nth(0).unwrap().name, "tensor");
    assert!(of(b"N").unwrap().is_empty());
}

#[test]
fn parameters_ordered_dictionaries_and_subclasses_are_seen_through() {
    let plain = tensor("0", "IntStorage", 0, &[2], &[1]);
    let parameter = [b"ctorch._utils\n_rebuild_parameter\n(", &plain[..], b"\x88}tR"].concat();
    let function = b"ctorch._utils\n_rebuild_tensor_v2\n";
    // The arguments alone, without the call.
    let arguments = &plain[function.len()..plain.len() - 1];
    let subclass =
        [b"ctorch._tensor\n_rebuild_from_type_v2\n(", &function[..], b"cmine\nSub\n", arguments, b"}tR"]
            .concat();
    let items = [text("p"), parameter, text("s"), subclass].concat();
    // With attributes, as state dictionaries of modules have.
    let ordered = [b"ccollections\nOrderedDict\n)R(", &items[..], b"u}", &text("_metadata"), b"Nsb"].concat();
    let header = of(&ordered).unwrap();
    let found: Vec<_> = header.visible().map(|info| (info.name.as_str(), info.dtype)).collect();
    assert_eq!(found, [("p", Dtype::I32), ("s", Dtype::I32)]);

    let typed = tensor("0", "UntypedStorage", 2, &[3], &[1]);
    let third = String::from_utf8_lossy(b"ctorch\nfloat8_e4m3fn\n").into_owned();
    let call = [&typed[..typed.len() - 2], third.as_bytes(), b"tR"].concat();
    let call = [b"ctorch._utils\n_rebuild_tensor_v3\n", &call[function.len()..]].concat();
    let header = of(&dict(&[("f8", call)])).unwrap();
    assert_eq!((header.nth(0).unwrap().dtype, header.nth(0).unwrap().size), (Dtype::F8_E4M3, 3));
}

#[test]
fn nothing_of_a_pickle_is_run() {
    let evil = b"cos\nsystem\n(X\x04\0\0\0evilt\x52".to_vec();
    let built = [b"cmine\nThing\n)\x81}", &text("x")[..], b"K\x01sb"].concat();
    let header =
        of(&dict(&[("a", evil), ("b", built), ("w", tensor("0", "FloatStorage", 0, &[2], &[1]))])).unwrap();
    assert_eq!(header.visible().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["w"]);
}

#[test]
fn what_cannot_be_used_in_place_is_no_fault() {
    let unsupported = |file: &[u8], what: &str| {
        let error = parse(file).unwrap_err();
        assert!(error.is_unsupported() && !error.is_format(), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    let transposed = checkpoint(&tensor("0", "FloatStorage", 0, &[2, 2], &[1, 2]), &[("m/data/0", &STORAGE)]);
    unsupported(
        &transposed,
        "\"tensor\": it is a view that is not contiguous; save it again after .contiguous()",
    );
    let quantised = checkpoint(&tensor("0", "QInt8Storage", 0, &[2], &[1]), &[("m/data/0", &STORAGE)]);
    unsupported(&quantised, "its type has no counterpart here");
    unsupported(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6");
    let big = zip(&[("m/data.pkl", b"\x80\x02}."), ("m/byteorder", b"big")], false);
    unsupported(&big, "big-endian");
    unsupported(&zip(&[("a.txt", b"hello")], false), "no data.pkl");
    let mut packed = model();
    let at = packed.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    packed[at + 10] = 8;
    unsupported(&packed, "entry \"m/data.pkl\": compressed");
    // A dimension of one may have any stride, and what is empty any at all.
    for (shape, strides) in [([1, 2], [9, 1]), ([2, 0], [7, 3])] {
        of(&tensor("0", "FloatStorage", 0, &shape, &strides)).unwrap();
    }
}

#[test]
fn broken_ones_are_named() {
    let cases: [(Vec<u8>, &str); 6] = [
        (
            checkpoint(&tensor("9", "FloatStorage", 0, &[1], &[1]), &[]),
            "its storage must be in the archive (found no data/9)",
        ),
        (
            checkpoint(&tensor("0", "FloatStorage", 7, &[2], &[1]), &[("m/data/0", &STORAGE)]),
            "it must lie in its storage",
        ),
        (
            model()[..model().len() - 1].to_vec(),
            "an archive must end with its directory; is the file cut off?",
        ),
        (checkpoint(b"K", &[]), "must end with its last instruction"),
        (checkpoint(b"}K\x01K\x02u", &[]), "an instruction must find its operands (found no mark)"),
        (checkpoint(b"P1\n", &[]), "the instruction 0x50"),
    ];
    for (file, what) in cases {
        assert!(error(&file).contains(what), "{}", error(&file));
    }
    assert!(parse(b"").is_err_and(|error| error.to_string().contains("empty")));
    let twice = zip(&[("m/data.pkl", b"\x80\x02}."), ("m/data.pkl", b"\x80\x02}.")], false);
    assert!(error(&twice).contains("m/data.pkl"), "{}", error(&twice));
}

#[test]
fn hostile_pickles_end_in_errors_soon() {
    // A dictionary that holds itself; one whose two halves are the same, thirty deep; tuples in tuples.
    let itself = [b"}q\0", &text("a")[..], b"h\0s"].concat();
    assert!(of(&itself).unwrap_err().to_string().contains("16 deep"));
    let mut doubled = b"}q\0".to_vec();
    for level in 0..30u8 {
        doubled.extend(
            [b"}(", &text("a")[..], &[b'h', level], &text("b"), &[b'h', level], b"uq", &[level + 1]].concat(),
        );
    }
    assert!(of(&doubled).unwrap_err().to_string().contains("not hold each other many times"));
    let deep = [&b")"[..], &[0x85; 100_000]].concat();
    assert!(of(&deep).unwrap_err().to_string().contains("tuples must lie at most 64 deep"));
    // A tuple of a million sizes that as many tensors could name.
    let sizes = [&b"("[..], &[0x88; 1000], b"tq\x01"].concat();
    let id = [b"(", &text("storage")[..], b"ctorch\nByteStorage\n", &text("0"), b"tQ"].concat();
    let call = [&sizes[..], b"ctorch._utils\n_rebuild_tensor_v2\n(", &id[..], b"K\0h\x01h\x01tR"].concat();
    assert!(of(&call).unwrap_err().to_string().contains("at most 64 dimensions"));
    // An overflow in the place of a tensor.
    let far = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &id[..],
        b"\x8a\x08",
        &[0xff; 7],
        b"\x7f",
        &numbers(&[1]),
        &numbers(&[1]),
        b"tR",
    ];
    assert!(of(&far.concat()).is_err());
}

#[test]
fn any_bytes_end_in_a_header_or_an_error() {
    let file = model();
    for cut in 0..file.len() {
        assert!(parse(&file[..cut]).is_err(), "{cut}");
    }
    for at in 0..file.len() {
        for value in [0, 0xff, file[at] ^ 1] {
            let mut file = file.clone();
            file[at] = value;
            if let Ok(header) = parse(&file) {
                for info in header.all() {
                    assert!(info.offset + info.size <= file.len() as u64, "{at} {info:?}");
                }
            }
        }
    }
}

#[test]
fn the_budget_of_the_image_holds() {
    let top = [&b"("[..], &b"}".repeat(100_000), b"l"].concat();
    let image = TestImage::new().file("/pytorch_model.bin", checkpoint(&top, &[])).bytes();
    let options = OpenOptions::new().max_metadata(1 << 20);
    let error = options.open_region(Region::from_bytes(image)).unwrap().tensors().unwrap_err();
    assert!(error.to_string().contains("pickles of checkpoints"), "{error}");
}

#[test]
fn folders_have_them_under_their_usual_names() {
    let shard = |name: &str| {
        checkpoint(&dict(&[(name, tensor("0", "FloatStorage", 0, &[2], &[1]))]), &[("m/data/0", &STORAGE)])
    };
    let names = |image: &Image| {
        image.tensors().unwrap().names().into_iter().collect::<crate::Result<Vec<_>>>().unwrap()
    };
    let plain = |image: TestImage| image.open();

    let image =
        plain(TestImage::new().file("/pytorch_model.bin", model()).file("/training_args.bin", model()));
    assert_eq!(names(&image), ["bias", "head", "tied"]);
    let of_file: Tensors = image.file("training_args.bin").unwrap().tensors().unwrap();
    assert_eq!(of_file.get("bias").unwrap().bytes().unwrap().to_vec(), STORAGE[16..32]);

    let list =
        br#"{"weight_map":{"a":"pytorch_model-00001-of-00002.bin","b":"pytorch_model-00002-of-00002.bin"}}"#;
    let shards = || {
        TestImage::new()
            .file("/pytorch_model-00001-of-00002.bin", shard("a"))
            .file("/pytorch_model-00002-of-00002.bin", shard("b"))
    };
    assert_eq!(names(&plain(shards())), ["a", "b"]);
    let listed = shards().file("/pytorch_model.bin.index.json", list.as_slice());
    assert_eq!(names(&plain(listed)), ["a", "b"]);

    // safetensors go first, whatever of the other format is there.
    let both = TestImage::new()
        .file("/model.safetensors", safetensors(&[("x", Dtype::U8, &[1], &[7])], ""))
        .file("/pytorch_model.bin.index.json", list.as_slice());
    assert_eq!(names(&plain(both)), ["x"]);
    assert_eq!(ContainerKind::of_name(b"tokenizer.bin"), None);
}
