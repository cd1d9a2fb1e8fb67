//! Tests of the aligned rewriting; the safetensors crate judges the results.

use super::*;
use daxfs::tensor::safetensors::parse_header;
use proptest::prelude::*;
use safetensors::SafeTensors;

/// A safetensors file with this header.
fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend((0..data).map(|n| u8::try_from(n % 253).unwrap()));
    bytes
}

fn header(bytes: &[u8]) -> Header {
    let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    parse_header(&bytes[8..8 + len], bytes.len() as u64).unwrap()
}

/// The new file, put together from its segments as the writer does.
fn apply(rewrite: &Rewrite, source: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in &rewrite.segments {
        assert_eq!(segment.offset, bytes.len() as u64, "segments follow each other");
        let len = usize::try_from(segment.len).unwrap();
        match &segment.content {
            Content::Header(header) => bytes.extend_from_slice(header),
            Content::Zeros => bytes.resize(bytes.len() + len, 0),
            Content::Source(from) => {
                let from = usize::try_from(*from).unwrap();
                bytes.extend_from_slice(&source[from..from + len]);
            }
        }
        assert_eq!(bytes.len() as u64, segment.offset + segment.len);
    }
    assert_eq!(bytes.len() as u64, rewrite.len);
    bytes
}

/// Rewrites a file and checks everything that was promised. Returns the new file; the old one if it was aligned.
fn check(source: &[u8], align: u64) -> Vec<u8> {
    let old = SafeTensors::deserialize(source).unwrap();
    let old_header = header(source);
    let start = usize::try_from(old_header.data_start()).unwrap();
    let Some(rewrite) = rewrite(&old_header, &source[..start], align).unwrap() else {
        for info in old_header.visible() {
            assert!(info.size == 0 || info.offset % align == 0);
        }
        return source.to_vec();
    };
    let bytes = apply(&rewrite, source);
    let new = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(rewrite.data_start % align, 0);
    for name in old.names().into_iter().filter(|name| !name.starts_with(FILLER_PREFIX)) {
        let (was, is) = (old.tensor(name).unwrap(), new.tensor(name).unwrap());
        assert_eq!((was.dtype(), was.shape(), was.data()), (is.dtype(), is.shape(), is.data()), "{name}");
        let offset = is.data().as_ptr().addr() - bytes.as_ptr().addr();
        assert!(is.data().is_empty() || (offset as u64).is_multiple_of(align), "{name} at {offset}");
        let info = old_header.get(name).unwrap();
        assert!(is.data().is_empty() || rewrite.offset_of(info) == offset as u64);
    }
    for name in new.names() {
        let filler = new.tensor(name).unwrap();
        assert!(old.tensor(name).is_ok() || name.starts_with(FILLER_PREFIX));
        assert!(old.tensor(name).is_ok() || filler.data().iter().all(|&byte| byte == 0));
    }
    let metadata = |bytes: &[u8]| SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone();
    assert_eq!(metadata(source), metadata(&bytes));
    // A second time there is nothing left to do.
    assert!(super::rewrite(&header(&bytes), &[], align).unwrap().is_none());
    // And back: the source's own beginning, and the runs.
    let mut original = rewrite.source_start.clone();
    let mut last = 0;
    for (offset, len) in rewrite.runs() {
        assert!(offset >= last, "runs follow each other");
        assert_eq!(rewrite.source_position(offset), original.len() as u64);
        last = offset + len;
        original.extend_from_slice(&bytes[usize::try_from(offset).unwrap()..usize::try_from(last).unwrap()]);
    }
    assert_eq!(rewrite.source_position(rewrite.len), rewrite.source_len);
    assert_eq!(rewrite.source_position(0), 0);
    assert_eq!(original, source);
    bytes
}

#[test]
fn an_aligned_file_is_kept() {
    let json = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    let padded = format!("{json:<248}");
    let source = file(&padded, 3);
    assert!(rewrite(&header(&source), &[], 256).unwrap().is_none());
    assert_eq!(check(&source, 256), source);
}

#[test]
fn padding_alone_is_enough_for_one_tensor() {
    let source = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    let bytes = check(&source, 256);
    assert_eq!(bytes.len(), 256 + 8);
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 1, "no filler is needed");
}

#[test]
fn fillers_come_where_the_order_leaves_no_other_way() {
    let json = r#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]},
        "__metadata__":{"format":"pt","quote\"":"\u00e9\n"},
        "a\"b":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#;
    let bytes = check(&file(json, 8), 64);
    let new = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(new.tensor("__daxfs_pad_0").unwrap().data().len(), 59);
    assert_eq!(new.len(), 3);
}

#[test]
fn odd_headers() {
    let empty = r#"{"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"I8","shape":[0],"data_offsets":[1,1]},"b":{"dtype":"I64","shape":[],"data_offsets":[1,9]}}"#;
    check(&file(empty, 9), 4096);
    let sub_byte = r#"{"x":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]},"y":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[3,6]},"z":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[6,7]}}"#;
    check(&file(sub_byte, 7), 256);
    let extra = r#"{"x":{"dtype":"U8","note":"ignored by every reader","shape":[1],"data_offsets":[0,1]}}"#;
    check(&file(extra, 1), 8);
    check(&file("{}", 0), 256);
    check(&file(r#"{"__metadata__":{"a":"b"}}  "#, 0), 256);
}

#[test]
fn earlier_fillers_are_kept_as_bytes_of_the_source() {
    let json = r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}}"#;
    let once = check(&file(json, 8), 64);
    let twice = check(&once, 256);
    assert_eq!(SafeTensors::deserialize(&twice).unwrap().len(), 4);
    assert_eq!(check(&twice, 64), twice, "what is aligned to 256 is aligned to 64");
}

#[test]
fn a_header_beyond_the_limit_is_refused() {
    let source = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    let error = rewrite(&header(&source), &[], 1 << 30).unwrap_err();
    assert!(error.contains("100000000"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_file_loads_unchanged(
        sizes in proptest::collection::vec((0usize..70, 0u8..4), 0..40),
        names in proptest::collection::hash_set("\\PC{1,8}", 40),
        shift in 3u32..13,
        spaces in 0usize..9,
    ) {
        let (mut at, mut parts) = (0, Vec::new());
        for (&(size, kind), name) in sizes.iter().zip(&names) {
            let (dtype, width) = [("U8", 1), ("BF16", 2), ("F32", 4), ("F64", 8)][usize::from(kind)];
            let end = at + size * width;
            let name = serde_json::to_string(name).unwrap();
            parts.push(format!(r#"{name}:{{"dtype":"{dtype}","shape":[{size}],"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        parts.reverse();
        let json = format!("{{{}}}{}", parts.join(","), " ".repeat(spaces));
        check(&file(&json, at), 1 << shift);
    }
}
