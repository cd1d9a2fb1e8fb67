//! Tensors by the index of an image: it gives what parsing gives, and damage in it is an error, not other bytes.

use super::index::test_index::Builder;
use super::test_image::{TestImage, safetensors};
use super::tests::{MAP, checkpoint, names, shard, text};
use super::*;

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
        verify(&|b| b.tensors[0].dtype = Dtype::I8.code().unwrap().into())
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
    assert_eq!(names(&tensors), ["a", "b"]);
    assert_eq!(tensors.iter().filter(Result::is_err).count(), 1);
    assert!(tensors.shards().is_err());
    // A damaged header is an error, not silence.
    let image = checkpoint().file("/.daxfs/index", b"DAXINDEX".as_slice()).open();
    assert!(text(image.tensors()).contains("index: header 0x0..0x10 is outside the index (0x8 bytes)"));
    assert!(image.index().is_err());
}

#[test]
fn without_a_usable_index_headers_are_parsed() {
    // A later version of the index, or a flag of one.
    for (at, value) in [(8, 3), (12, 0x80)] {
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

/// The bytes that a file had in its source are compared in its place, so none may be another file.
#[test]
fn an_original_is_of_the_same_tensors() {
    use crate::format::index as raw;

    let data = b"0123456789ab";
    let file = |dtype: Dtype, shape: &[u64], bytes: &[u8], more: &str| {
        safetensors(&[("w", dtype, shape, bytes)], more)
    };
    let stored = file(Dtype::F32, &[3], data, "");
    let of = |path: &'static str, stored: &[u8], start: &[u8], runs: &[(u64, u64)]| {
        let len = stored.len() as u64;
        let begin = len.saturating_sub(data.len() as u64);
        let mut builder = Builder { v2: true, ..Builder::default() };
        match path {
            "/config.json" => builder.file_at(path, 2, len, 0, &[]),
            _ => builder.file_at(path, 2, len, begin, &[("w", Dtype::F32, &[3], begin)]),
        };
        builder.original(0, start, runs);
        if path == "/config.json" {
            builder.files[0].container = raw::CONTAINER_NONE.into();
        }
        let image =
            TestImage::new().file(path, stored.to_vec()).file("/.daxfs/index", builder.bytes()).open();
        let file = image.file(path).unwrap();
        let index = image.index().unwrap().unwrap();
        let checked = index.verify_file(&file).map_err(|error| error.to_string());
        let original = file.original().map_err(|error| error.to_string());
        (original.map(|original| original.len()), checked)
    };
    let begin = (stored.len() - data.len()) as u64;
    let head = |bytes: &[u8]| bytes[..bytes.len() - data.len()].to_vec();
    let run = [(begin, 12)];
    let w = "/w.safetensors";
    assert_eq!(of(w, &stored, &head(&stored), &run), (Ok(stored.len() as u64), Ok(())));
    let refused = |path, stored: &[u8], start: &[u8], runs: &[(u64, u64)], why: &str| {
        let (original, checked) = of(path, stored, start, runs);
        for error in [original.unwrap_err(), checked.unwrap_err()] {
            assert!(error.contains(why), "{error}");
        }
    };
    refused(
        w,
        &stored,
        &head(&file(Dtype::I32, &[3], data, "")),
        &run,
        "data type of tensor \"w\" of the original",
    );
    refused(w, &stored, &head(&file(Dtype::F32, &[1, 3], data, "")), &run, "shape of tensor");
    refused(
        w,
        &stored,
        &head(&file(Dtype::F32, &[3], data, "{\"a\":\"b\"}")),
        &run,
        "metadata of the original",
    );
    refused(w, &stored, &stored, &[], "bytes of the original's header");
    refused(w, &stored, &head(&stored), &[(begin - 1, 12)], "place of tensor");
    refused(w, &stored, b"12345", &[], "5 bytes");
    // What has no tensors has not been moved.
    refused("/config.json", b"{\"hidden_size\": 666}", b"{\"hidden_size\": 384}", &[], "/config.json");
}

/// What lies between the tensors that were moved is nothing.
#[test]
fn padding_is_zeros() {
    let source = safetensors(&[("w", Dtype::U8, &[2], b"12")], "");
    let padded = |filler: &[u8]| {
        safetensors(&[("__daxfs_pad_0", Dtype::U8, &[3], filler), ("w", Dtype::U8, &[2], b"12")], "")
    };
    for (filler, is_padding) in [(&[0, 0, 0], true), (&[0, 7, 0], false)] {
        let stored = padded(filler);
        let (len, begin) = (stored.len() as u64, stored.len() as u64 - 2);
        let mut builder = Builder { v2: true, ..Builder::default() };
        builder.file_at("/w.safetensors", 2, len, begin - 3, &[("w", Dtype::U8, &[2], begin)]);
        builder.original(0, &source[..source.len() - 2], &[(begin, 2)]);
        let image =
            TestImage::new().file("/w.safetensors", stored).file("/.daxfs/index", builder.bytes()).open();
        let file = image.file("/w.safetensors").unwrap();
        assert_eq!(file.original().unwrap().len(), source.len() as u64);
        let checked = image.index().unwrap().unwrap().verify_file(&file);
        assert_eq!(checked.is_ok(), is_padding, "{checked:?}");
    }
}
