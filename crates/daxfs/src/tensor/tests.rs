//! Tensors of whole images: which set is meant, by index and by parsing, alone and in shards.

use super::index::tests::Builder;
use super::test_image::{TestImage, safetensors};
use super::*;
use crate::Error;

fn shard(name: &str, bytes: &[u8]) -> Vec<u8> {
    safetensors(
        &[(name, Dtype::U8, &[bytes.len() as u64], bytes)],
        &format!("{{\"of\":\"{name}\",\"all\":\"{name}\"}}"),
    )
}

const MAP: &str =
    r#"{"metadata":{"total_size":5},"weight_map":{"b":"two.safetensors","a":"one.safetensors"}}"#;

fn checkpoint() -> TestImage {
    TestImage::new()
        .file("/one.safetensors", shard("a", b"123"))
        .file("/two.safetensors", shard("b", b"45"))
        .file("/model.safetensors.index.json", MAP)
}

fn names(tensors: &Tensors) -> Vec<String> {
    tensors.names().collect()
}

fn text<T: fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_tensor_is_a_view_of_its_file() {
    let file = safetensors(
        &[("w", Dtype::BF16, &[2], b"abcd"), ("none", Dtype::F32, &[0, 2], b""), ("s", Dtype::I8, &[], b"e")],
        "",
    );
    let image = TestImage::new().file("/m.safetensors", file.clone()).open();
    let tensors = image.tensors().unwrap();
    assert_eq!(names(&tensors), ["none", "s", "w"]);
    assert!(!tensors.indexed());
    let w = tensors.get("w").unwrap();
    assert_eq!(
        (w.name(), w.dtype(), w.shape(), w.elements(), w.nbytes()),
        ("w", Dtype::BF16, &[2][..], 2, 4)
    );
    assert_eq!(w.bytes().unwrap().to_vec(), b"abcd");
    assert_eq!(w.as_slice().unwrap(), b"abcd");
    assert_eq!(&file[usize::try_from(w.offset()).unwrap()..][..4], b"abcd");
    let extent = w.file().extent().unwrap();
    let at = extent.offset + w.offset();
    assert!(at.is_multiple_of(w.alignment()) && !at.is_multiple_of(2 * w.alignment()));
    assert_eq!(tensors.get("s").unwrap().elements(), 1);
    assert!(tensors.get("none").unwrap().bytes().unwrap().is_empty());

    // The view outlives everything it was reached by.
    let view = tensors.nth(2).unwrap().unwrap();
    drop((image, tensors, w));
    assert_eq!(view.bytes().unwrap().to_vec(), b"abcd");
    assert!(format!("{view:?}").contains("BF16"));
}

#[test]
fn missing_tensors_and_broken_headers_name_the_file() {
    let mut cut = shard("a", b"123");
    cut.pop();
    let image = TestImage::new()
        .file("/d/good.safetensors", shard("a", b"123"))
        .file("/d/__daxfs_pad_0.safetensors", shard("__daxfs_pad_0", b"1"))
        .file("/short.safetensors", b"1234567".as_slice())
        .file("/text.safetensors", b"{\"weight_map\":{}}".as_slice())
        .file("/long.safetensors", 100u64.to_le_bytes())
        .file("/cut.safetensors", cut)
        .open();
    let at = |path: &str| image.tensors_at(path);
    let missing = at("/d/good.safetensors").unwrap().get("x").unwrap_err();
    assert!(missing.is_not_found());
    assert_eq!(missing.to_string(), "/d/good.safetensors: no tensor \"x\"");
    let fillers = at("/d/__daxfs_pad_0.safetensors").unwrap();
    assert!(fillers.is_empty() && fillers.get("__daxfs_pad_0").is_err());
    assert!(text(at("/short.safetensors")).starts_with("/short.safetensors: 7 bytes are too few"));
    assert!(text(at("/text.safetensors")).contains("longer than the format's limit"));
    assert!(text(at("/long.safetensors")).contains("header 0x8..0x6c is outside the file (0x8 bytes)"));
    assert!(text(at("/cut.safetensors")).contains("/cut.safetensors: tensor data ends at"));
}

#[test]
fn headers_are_parsed_once_per_inode() {
    let image = TestImage::new()
        .file("/a.safetensors", shard("a", b"1"))
        .hard_link("/b.safetensors", "/a.safetensors")
        .open();
    let header = |path| checkpoint::header_of(&image.file(path).unwrap()).unwrap();
    assert!(Arc::ptr_eq(&header("/a.safetensors"), &header("/b.safetensors")));
    // Two names of one inode are one set.
    assert_eq!(image.tensors().unwrap().len(), 1);
}

#[test]
fn shards_make_one_set() {
    let image = checkpoint().open();
    let tensors = image.tensors().unwrap();
    assert_eq!(names(&tensors), ["a", "b"]);
    assert_eq!(tensors.get("b").unwrap().as_slice().unwrap(), b"45");
    assert_eq!(tensors.get("b").unwrap().file().path(), b"/two.safetensors");
    assert_eq!(text(tensors.get("c")), "/model.safetensors.index.json: no tensor \"c\"");
    let shards: Vec<_> = tensors.shards().unwrap().iter().map(File::path).collect();
    assert_eq!(shards, [b"/one.safetensors", b"/two.safetensors"]);
    let metadata = tensors.metadata().unwrap();
    assert_eq!((metadata["of"].as_str(), metadata["all"].as_str()), ("a", "a"));
    assert_eq!(names(&image.file("/model.safetensors.index.json").unwrap().tensors().unwrap()), ["a", "b"]);
}

#[test]
fn broken_checkpoints_name_what_is_missing() {
    let open = |map: &str| {
        let image = TestImage::new()
            .file("/d/one.safetensors", shard("a", b"1"))
            .file("/two.safetensors", shard("b", b"2"))
            .file("/d/m.safetensors.index.json", map)
            .open();
        image.tensors_at("d")
    };
    let error = open(r#"{"weight_map":{"b":"gone.safetensors"}}"#).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "/d/m.safetensors.index.json: shard \"gone.safetensors\" is not in the image (looked for \
         /d/gone.safetensors)"
    );
    let error = open(r#"{"weight_map":{"x":"one.safetensors"}}"#).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "/d/m.safetensors.index.json: tensor \"x\" should be in shard \"one.safetensors\", which does not have it"
    );
    for shard in ["../two.safetensors", "/two.safetensors"] {
        let map = format!(r#"{{"weight_map":{{"b":"{shard}"}}}}"#);
        let error = open(&map).unwrap_err();
        assert!(matches!(
            &error,
            Error::Tensor(TensorError::InFile { fault, .. })
                if matches!(&**fault, TensorError::ShardPath { shard: found } if found == shard)
        ));
    }
    assert_eq!(names(&open(r#"{"weight_map":{}}"#).unwrap()), Vec::<String>::new());
}

#[test]
fn the_rule_chooses_root_first_then_everywhere() {
    let image = TestImage::new().file("/README", b"x".as_slice()).open();
    assert_eq!(text(image.tensors()), "image: no *.safetensors file and no *.safetensors.index.json");
    assert!(image.tensors().unwrap_err().is_not_found());

    let image = TestImage::new().file("/a/b/m.safetensors", shard("deep", b"1")).open();
    assert_eq!(names(&image.tensors().unwrap()), ["deep"]);
    assert_eq!(names(&image.tensors_at("/a/b").unwrap()), ["deep"]);
    assert!(text(image.tensors_at("/a")).starts_with("/a: no *.safetensors"));

    // What lies at the root hides what lies below.
    let image = TestImage::new()
        .file("/m.safetensors", shard("root", b"1"))
        .file("/original/m.safetensors", shard("deep", b"1"))
        .open();
    assert_eq!(names(&image.tensors().unwrap()), ["root"]);

    let image = TestImage::new()
        .file("/1.safetensors", shard("a", b"1"))
        .file("/2.safetensors", shard("a", b"1"))
        .file("/3.safetensors", shard("a", b"1"))
        .file("/4.safetensors", shard("a", b"1"))
        .file("/5.safetensors", shard("a", b"1"))
        .file("/6.safetensors", shard("a", b"1"))
        .open();
    assert_eq!(
        text(image.tensors()),
        "/: 6 sets of tensors, name one of them: /1.safetensors, /2.safetensors, /3.safetensors, \
         /4.safetensors, /5.safetensors, ..."
    );
    let image = checkpoint().file("/second.safetensors.index.json", MAP).open();
    assert!(text(image.tensors()).starts_with("/: 2 sets of tensors"));
}

/// A Hugging Face cache: names in a snapshot are links to blobs.
#[test]
fn shards_are_relative_to_the_name_not_to_the_link_target() {
    let image = TestImage::new()
        .file("/blobs/0a", shard("a", b"123"))
        .file("/blobs/0b", shard("b", b"45"))
        .file("/blobs/0c", MAP)
        .link("/snapshots/1/one.safetensors", "../../blobs/0a")
        .link("/snapshots/1/two.safetensors", "../../blobs/0b")
        .link("/snapshots/1/model.safetensors.index.json", "../../blobs/0c")
        .link("/snapshots/1/dangling.safetensors.index.json", "../../blobs/none")
        .open();
    for tensors in [
        image.tensors(),
        image.tensors_at("/snapshots/1"),
        image.tensors_at("snapshots/1/model.safetensors.index.json"),
    ] {
        assert_eq!(tensors.unwrap().get("b").unwrap().file().path(), b"/blobs/0b");
    }
}

/// The checkpoint with an index, whose records `damage` may change.
fn indexed(damage: impl Fn(&mut Builder)) -> TestImage {
    let plain = checkpoint();
    let (one, two) = (shard("a", b"123"), shard("b", b"45"));
    let json = plain.ino("/model.safetensors.index.json");
    let mut builder = Builder::default();
    let data = |file: &[u8], len: usize| (file.len() - len) as u64;
    builder
        .file_at(
            "/one.safetensors",
            2,
            one.len() as u64,
            data(&one, 3),
            &[("a", Dtype::U8, &[3], data(&one, 3))],
        )
        .file_at(
            "/two.safetensors",
            3,
            two.len() as u64,
            data(&two, 2),
            &[("b", Dtype::U8, &[2], data(&two, 2))],
        )
        .file_at("/model.safetensors.index.json", json, MAP.len() as u64, 0, &[])
        .checkpoint(json, &[0, 1]);
    damage(&mut builder);
    plain.file("/.daxfs/index", builder.bytes())
}

#[test]
fn an_index_gives_the_same_as_parsing() {
    let (with, without) = (indexed(|_| {}).open(), checkpoint().open());
    for path in ["/", "/one.safetensors", "/two.safetensors"] {
        let (with, without) = (with.tensors_at(path).unwrap(), without.tensors_at(path).unwrap());
        assert!(with.indexed() && !without.indexed());
        assert_eq!(names(&with), names(&without));
        assert_eq!(with.metadata().unwrap(), without.metadata().unwrap());
        let paths = |tensors: &Tensors| tensors.shards().unwrap().iter().map(File::path).collect::<Vec<_>>();
        assert_eq!(paths(&with), paths(&without));
        for name in names(&without) {
            let (with, without) = (with.get(&name).unwrap(), without.get(&name).unwrap());
            assert_eq!(with.info, without.info);
            assert_eq!(with.as_slice().unwrap(), without.as_slice().unwrap());
        }
        assert!(with.get("x").unwrap_err().is_not_found());
        assert!(with.nth(with.len()).unwrap().is_none());
    }
    let index = with.index().unwrap().unwrap();
    for entry in with.walk() {
        if let Ok(file) = entry.file() {
            index.verify_file(&file).unwrap();
            index.verify_checkpoint(&file).unwrap();
        }
    }
}

/// The same JSON in another directory stands for the shards that lie there.
#[test]
fn the_index_speaks_only_for_the_first_name_of_a_checkpoint() {
    let json = "/model.safetensors.index.json";
    let image = indexed(|_| {})
        .hard_link("/other/model.safetensors.index.json", json)
        .file("/other/one.safetensors", shard("a", b"abc"))
        .file("/other/two.safetensors", shard("b", b"de"))
        .open();
    assert!(image.tensors_at(json).unwrap().indexed());
    let other = image.file("/other/model.safetensors.index.json").unwrap();
    for tensors in [other.tensors(), image.tensors_at("other")] {
        let tensors = tensors.unwrap();
        assert!(!tensors.indexed());
        assert_eq!(tensors.get("a").unwrap().as_slice().unwrap(), b"abc");
    }
    image.index().unwrap().unwrap().verify_checkpoint(&other).unwrap();
}

#[test]
fn verify_finds_an_index_that_lies() {
    let verify = |damage: &dyn Fn(&mut Builder)| {
        let image = indexed(damage).open();
        let index = image.index().unwrap().unwrap().clone();
        let files: Vec<_> = image.walk().filter_map(|entry| entry.file().ok()).collect();
        let result = files.iter().try_for_each(|file| index.verify_file(file));
        text(result.and_then(|()| files.iter().try_for_each(|file| index.verify_checkpoint(file))))
    };
    let differs = "/.daxfs/index: /one.safetensors: ";
    assert!(
        verify(&|b| b.tensors[0].dtype = Dtype::I8.code().into())
            .starts_with(&format!("{differs}data type of tensor \"a\": the index has I8, the file U8"))
    );
    assert!(
        verify(&|b| b.tensors[0].offset = 8.into()).starts_with(&format!("{differs}offset of tensor \"a\""))
    );
    assert!(
        verify(&|b| b.files[0].data_start = 9.into()).starts_with(&format!("{differs}begin of tensor data"))
    );
    assert!(
        verify(&|b| b.files[0].tensor_count = 0.into()).starts_with(&format!("{differs}number of tensors"))
    );
    assert!(
        verify(&|b| b.files[0].flags = 0.into()).starts_with(&format!("{differs}tensors: the index has 1"))
    );
    assert!(
        verify(&|b| b.files[1].size = 9.into()).contains("file record 1: its size must be that of the inode")
    );
    assert!(
        verify(&|b| b.files[1].path_offset = 0.into())
            .contains("file record 1: its path must name its inode")
    );
    assert!(verify(&|b| b.files[1].path_len = 3.into()).contains("file record 1: its path must name a file"));
    assert!(verify(&|b| b.entries.swap(0, 1)).contains("model.safetensors.index.json: name of a tensor"));
    assert!(verify(&|b| b.checkpoints[0].entry_count = 1.into()).contains("index.json: number of tensors"));
}

#[test]
fn a_wrong_index_yields_errors_not_other_bytes() {
    // A size that the inode does not have.
    let image = indexed(|b| b.files[0].size = 1_000_000.into()).open();
    assert!(text(image.tensors_at("/one.safetensors")).contains("its size must be that of the inode"));
    assert!(text(image.tensors().unwrap().get("a")).contains("its size must be that of the inode"));
    // A path that leads to another file.
    let image = indexed(|b| b.files[0].path_offset = b.files[1].path_offset).open();
    let tensors = image.tensors().unwrap();
    assert!(text(tensors.get("a")).contains("its path must name its inode"));
    assert_eq!(names(&tensors), ["b"]);
    assert_eq!(tensors.iter().filter(Result::is_err).count(), 1);
    assert!(tensors.shards().is_err());
    // A damaged header is an error, not silence.
    let image = checkpoint().file("/.daxfs/index", b"DAXINDEX".as_slice()).open();
    assert!(text(image.tensors()).contains("index: header 0x0..0xa0 is outside the index (0x8 bytes)"));
    assert!(image.index().is_err());
}

#[test]
fn without_a_usable_index_headers_are_parsed() {
    // A later version of the index, or a flag of one.
    for (at, value) in [(8, 2), (12, 0x80)] {
        let mut bytes = Builder::default().bytes();
        bytes[at] = value;
        let image = checkpoint().file("/.daxfs/index", bytes).open();
        assert!(image.index().is_err());
        let tensors = image.tensors().unwrap();
        assert!(!tensors.indexed());
        assert_eq!(names(&tensors), ["a", "b"]);
    }
    // An index that does not list the files.
    let image = checkpoint().file("/.daxfs/index", Builder::default().bytes()).open();
    assert!(!image.tensors().unwrap().indexed());
    // Another kind of `.daxfs`.
    let image = checkpoint().file("/.daxfs", b"".as_slice()).open();
    assert!(image.index().unwrap().is_none());
    assert_eq!(image.tensors().unwrap().len(), 2);
}
