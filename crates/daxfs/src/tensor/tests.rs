//! Tensors of whole images: which set is meant, by index and by parsing, alone and in shards.

use super::index::test_index::Builder;
use super::test_image::{TestImage, safetensors};
use super::*;
use crate::Error;

pub(super) fn shard(name: &str, bytes: &[u8]) -> Vec<u8> {
    safetensors(
        &[(name, Dtype::U8, &[bytes.len() as u64], bytes)],
        &format!("{{\"of\":\"{name}\",\"all\":\"{name}\"}}"),
    )
}

pub(super) const MAP: &str =
    r#"{"metadata":{"total_size":5},"weight_map":{"b":"two.safetensors","a":"one.safetensors"}}"#;

pub(super) fn checkpoint() -> TestImage {
    TestImage::new()
        .file("/one.safetensors", shard("a", b"123"))
        .file("/two.safetensors", shard("b", b"45"))
        .file("/model.safetensors.index.json", MAP)
}

pub(super) fn names(tensors: &Tensors) -> Vec<String> {
    tensors.names().into_iter().map(Result::unwrap).collect()
}

pub(super) fn text<T: fmt::Debug>(result: Result<T>) -> String {
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
    assert_eq!(missing.to_string(), "/d/good.safetensors: no tensor \"x\"; did you mean a?");
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
    let header = |path| container::header_of(&image.file(path).unwrap()).unwrap();
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
    assert_eq!(
        text(tensors.get("c")),
        "/model.safetensors.index.json: no tensor \"c\"; did you mean a or b?"
    );
    assert!(tensors.find("c").unwrap().is_none());
    let shards: Vec<_> = tensors.shards().unwrap().iter().map(File::path).collect();
    assert_eq!(shards, [b"/one.safetensors", b"/two.safetensors"]);
    let metadata = tensors.metadata().unwrap();
    assert_eq!((&metadata["of"], &metadata["all"]), (&"a".into(), &"a".into()));
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
    assert_eq!(
        text(image.tensors()),
        "image: no *.safetensors file, no *.safetensors.index.json, and no *.gguf file"
    );
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

#[test]
fn variants_are_chosen_by_name() {
    let map = |shard: &str| format!(r#"{{"weight_map":{{"{shard}":"{shard}.safetensors"}}}}"#);
    // As transformers and older diffusers name the list of a variant.
    for list in ["/m/model.safetensors.index.fp16.json", "/m/model.fp16.safetensors.index.json"] {
        let image = TestImage::new()
            .file("/m/plain.safetensors", shard("plain", b"1"))
            .file("/m/half.safetensors", shard("half", b"2"))
            .file("/m/model.safetensors.index.json", map("plain"))
            .file(list, map("half"))
            .file("/m/model.int8.safetensors", shard("int8", b"3"))
            .open();
        assert_eq!(names(&image.tensors().unwrap()), ["plain"]);
        assert_eq!(names(&image.tensors_at("m").unwrap()), ["plain"]);
        assert_eq!(names(&image.tensors_at(list).unwrap()), ["half"]);
        assert_eq!(names(&image.tensors_of_variant("/", "fp16").unwrap()), ["half"]);
        assert_eq!(names(&image.tensors_of_variant("m", "int8").unwrap()), ["int8"]);
        let error = image.tensors_of_variant("m", "bf16").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "m: no tensors of the variant \"bf16\"; there are fp16, int8");
        assert!(text(image.tensors_of_variant(list, "fp16")).contains("this is a file"));
    }
    // Variants of something that is not there.
    let image = TestImage::new()
        .file("/model.fp16.safetensors", shard("half", b"1"))
        .file("/model.bf16.safetensors", shard("brain", b"2"))
        .open();
    assert_eq!(
        text(image.tensors()),
        "/: 2 sets of tensors, name one of them: /model.bf16.safetensors, /model.fp16.safetensors; or choose a variant \
         (variant=..., --variant): bf16, fp16"
    );
    assert_eq!(names(&image.tensors_of_variant("", "bf16").unwrap()), ["brain"]);
    // The whole name is what a variant is added to.
    let image = TestImage::new()
        .file("/Llama-3.1.safetensors", shard("full", b"1"))
        .file("/Llama-3.1.fp16.safetensors", shard("half", b"2"))
        .open();
    assert_eq!(names(&image.tensors().unwrap()), ["full"]);
    assert_eq!(names(&image.tensors_of_variant("/", "fp16").unwrap()), ["half"]);
}

#[test]
fn shards_without_a_list_are_joined_when_all_are_there() {
    let image = TestImage::new()
        .file("/m/model-00002-of-00003.safetensors", shard("a", b"22"))
        .file("/m/model-00003-of-00003.safetensors", shard("c", b"333"))
        .file("/m/model-00001-of-00003.safetensors", shard("b", b"1"))
        .file("/m/config.json", b"{}".as_slice())
        .open();
    for tensors in
        [image.tensors(), image.tensors_at("/m"), image.tensors_at("m/model-*-of-00003.safetensors")]
    {
        let tensors = tensors.unwrap();
        assert_eq!(names(&tensors), ["a", "b", "c"]);
        assert_eq!(tensors.get("c").unwrap().as_slice().unwrap(), b"333");
        assert_eq!(tensors.file().path(), b"/m/model-00001-of-00003.safetensors");
        assert_eq!(tensors.shards().unwrap().len(), 3);
        assert_eq!(tensors.metadata().unwrap()["of"], "b");
        let error = text(tensors.get("d"));
        assert!(error.starts_with("/m/model-*-of-00003.safetensors: no tensor \"d\""), "{error}");
    }
    assert_eq!(names(&image.tensors_at("/m/model-00001-of-00003.safetensors").unwrap()), ["b"]);
    assert!(image.tensors_at("m/model-*-of-00004.safetensors").unwrap_err().is_not_found());

    let part = |number: u32| Box::leak(format!("/model-{number:05}-of-00009.safetensors").into_boxed_str());
    let image = [2, 5, 9].iter().fold(TestImage::new(), |image, &n| image.file(part(n), shard("x", b"1")));
    let error = image.open().tensors().unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "/model-*-of-00009.safetensors: 6 of 9 shards are missing, and no *.safetensors.index.json is there: 00001, \
         00003, 00004, 00006, 00007, 00008"
    );
    // The numbers of four billion shards are not listed.
    let image = TestImage::new().file("/m-1-of-4000000000.safetensors", shard("x", b"1"));
    let image = image.file("/m-0000000001-of-4000000000.safetensors", shard("x", b"1")).open();
    assert!(text(image.tensors()).contains("3999999999 of 4000000000 shards are missing"));

    let twice = TestImage::new()
        .file("/m-1-of-2.safetensors", shard("x", b"1"))
        .file("/m-2-of-2.safetensors", shard("x", b"2"))
        .open();
    assert!(text(twice.tensors()).starts_with("tensor \"x\" is in /m-1-of-2.safetensors and in /m-2-of-2"));
    // A list says what belongs together.
    let listed = TestImage::new()
        .file("/m-1-of-3.safetensors", shard("x", b"1"))
        .file("/m.safetensors.index.json", r#"{"weight_map":{"x":"m-1-of-3.safetensors"}}"#)
        .open();
    assert_eq!(names(&listed.tensors().unwrap()), ["x"]);
    assert!(shard_sets(&listed.root()).is_empty());
}

#[test]
fn two_revisions_of_the_same_shards_are_one_set() {
    let mut image = TestImage::new().file("/blobs/1", shard("a", b"1")).file("/blobs/2", shard("b", b"2"));
    for revision in ["one", "two"] {
        let name =
            |n: u32| Box::leak(format!("/snapshots/{revision}/m-{n}-of-2.safetensors").into_boxed_str());
        image = image.link(name(1), "../../blobs/1").link(name(2), "../../blobs/2");
    }
    assert_eq!(names(&image.open().tensors().unwrap()), ["a", "b"]);
}

#[test]
fn sets_with_a_first_shard_in_common_are_told_apart() {
    let image = TestImage::new()
        .file("/blob", shard("a", b"1"))
        .link("/m/a-1-of-2.safetensors", "../blob")
        .file("/m/a-2-of-2.safetensors", shard("b", b"2"))
        .link("/m/b-1-of-2.safetensors", "../blob")
        .file("/m/b-2-of-2.safetensors", shard("c", b"3"))
        .link("/m/c-1-of-3.safetensors", "../blob")
        .file("/m/c-2-of-3.safetensors", shard("d", b"4"))
        .file("/m/c-3-of-3.safetensors", shard("e", b"5"))
        .open();
    let sets = [("c-*-of-3", &["a", "d", "e"][..]), ("a-*-of-2", &["a", "b"]), ("b-*-of-2", &["a", "c"])];
    for (name, expected) in sets {
        let tensors = image.tensors_at(format!("/m/{name}.safetensors")).unwrap();
        assert_eq!(names(&tensors), expected);
    }
    let b = image.tensors_at("/m/b-*-of-2.safetensors").unwrap();
    assert_eq!(b.get("c").unwrap().as_slice().unwrap(), b"3");
}

#[test]
fn two_files_of_one_number_are_ambiguous() {
    let image = TestImage::new()
        .file("/m-1-of-2.safetensors", shard("a", b"1"))
        .file("/m-01-of-2.safetensors", shard("a", b"2"))
        .file("/m-2-of-2.safetensors", shard("b", b"3"))
        .open();
    assert_eq!(
        text(image.tensors()),
        "/m-*-of-2.safetensors: 2 sets of tensors, name one of them: /m-01-of-2.safetensors, /m-1-of-2.safetensors"
    );
    let image = TestImage::new()
        .file("/m-1-of-2.safetensors", shard("a", b"1"))
        .hard_link("/m-01-of-2.safetensors", "/m-1-of-2.safetensors")
        .file("/m-2-of-2.safetensors", shard("b", b"3"))
        .open();
    assert_eq!(names(&image.tensors().unwrap()), ["a", "b"]);
}

#[test]
fn one_list_in_two_directories_is_one_set_only_with_the_same_shards() {
    let revisions = |second: &'static str| {
        TestImage::new()
            .file("/blobs/list", r#"{"weight_map":{"w":"1.safetensors"}}"#)
            .file("/blobs/a", shard("w", b"1"))
            .file("/blobs/b", shard("w", b"2"))
            .link("/snapshots/one/m.safetensors.index.json", "../../blobs/list")
            .link("/snapshots/one/1.safetensors", "../../blobs/a")
            .link("/snapshots/two/m.safetensors.index.json", "../../blobs/list")
            .link("/snapshots/two/1.safetensors", second)
            .open()
    };
    assert_eq!(names(&revisions("../../blobs/a").tensors().unwrap()), ["w"]);
    for other in ["../../blobs/b", "../../blobs/gone"] {
        assert_eq!(
            text(revisions(other).tensors()),
            "image: 2 sets of tensors, name one of them: /snapshots/one/m.safetensors.index.json, \
             /snapshots/two/m.safetensors.index.json"
        );
    }
}

#[test]
fn hidden_files_count_only_where_there_are_no_others() {
    let image = TestImage::new()
        .file("/m/model.safetensors", shard("w", b"1"))
        .file("/m/._model.safetensors", b"\0\x05\x16\x07 of a Mac".as_slice())
        .file("/.cache/huggingface/download/model.safetensors", shard("old", b"1"))
        .open();
    assert_eq!(names(&image.tensors().unwrap()), ["w"]);
    assert_eq!(names(&image.tensors_at("/m").unwrap()), ["w"]);
    assert_eq!(names(&image.tensors_at("/.cache/huggingface/download").unwrap()), ["old"]);
    let image = TestImage::new().file("/.hidden/model.safetensors", shard("old", b"1")).open();
    assert_eq!(names(&image.tensors().unwrap()), ["old"]);
}

#[test]
fn all_missing_shards_are_named() {
    let map = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"3.safetensors"}}"#;
    let image = TestImage::new()
        .file("/d/2.safetensors", shard("b", b"2"))
        .file("/d/m.safetensors.index.json", map)
        .open();
    let error = image.tensors().unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "/d/m.safetensors.index.json: 2 of its 3 shards are not in the image (looked for in /d): 1.safetensors, \
         3.safetensors"
    );
}

#[test]
fn what_is_no_safetensors_file_is_called_what_it_is() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n".as_slice();
    let image = TestImage::new()
        .file("/pointer.safetensors", pointer)
        .file("/zip.safetensors", b"PK\x03\x04 and so on".as_slice())
        .file("/gguf.safetensors", b"GGUF\x03\0\0\0".as_slice())
        .file("/empty.safetensors", b"".as_slice())
        .open();
    let at = |path: &str| text(image.tensors_at(path));
    assert_eq!(
        at("/pointer.safetensors"),
        "/pointer.safetensors: not a safetensors file but a git-lfs pointer; the file itself was not downloaded: run \
         `git lfs pull`, then pack again"
    );
    assert!(at("/zip.safetensors").contains("not a safetensors file but a zip archive"));
    assert!(at("/gguf.safetensors").contains("not a safetensors file but a GGUF file"));
    assert!(at("/empty.safetensors").starts_with("/empty.safetensors: the file is empty"));
}

/// Files may share bytes, so that a small image has very many headers; it pays for each place once.
#[test]
fn headers_are_charged_to_the_budget_once_for_each_place() {
    let bytes = checkpoint().bytes();
    let open = |limit| {
        crate::OpenOptions::new().max_metadata(limit).open_region(crate::Region::from_bytes(bytes.clone()))
    };
    let least = (0..).step_by(64).find(|limit| open(*limit).is_ok()).unwrap();
    let poor = open(least).unwrap();
    assert!(matches!(poor.tensors().unwrap_err(), Error::MetadataLimit { .. }));
    let rich = open(least + 4096).unwrap();
    for _ in 0..1000 {
        assert_eq!(rich.tensors_at("/one.safetensors").unwrap().len(), 1);
    }
    // A failure is not repeated either.
    let image = TestImage::new().file("/bad.safetensors", 5u64.to_le_bytes()).open();
    for _ in 0..3 {
        assert!(text(image.tensors()).contains("/bad.safetensors: header 0x8..0xd is outside"));
    }
    assert!(image.charge("a table", u64::MAX).is_err());
    image.charge("a table", 1000).unwrap();
}

#[test]
fn names_that_share_their_bytes_end_in_an_error_before_they_are_collected() {
    // Two records with one name: as long as the whole index, they cannot both be honest.
    let name = "n".repeat(4000);
    let long: &'static str = Box::leak(name.into_boxed_str());
    let file = safetensors(&[(long, Dtype::U8, &[1], b"1")], "");
    let size = file.len() as u64;
    let mut builder = Builder::default();
    builder.file_at("/f.safetensors", 2, size, size - 1, &[(long, Dtype::U8, &[1], size - 1)]);
    let record = builder.tensors[0];
    for _ in 0..3 {
        builder.tensors.push(record);
    }
    builder.files[0].tensor_count = 4.into();
    let image = TestImage::new().file("/f.safetensors", file).file("/.daxfs/index", builder.bytes()).open();
    let tensors = image.tensors().unwrap();
    assert!(tensors.indexed());
    let found: Vec<_> = tensors.iter().collect();
    assert!(found.len() < 4, "{}", found.len());
    let error = found.into_iter().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("the names of a set must have bytes of their own"), "{error}");
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
