//! Placements of small images, looked into byte by byte.

use std::collections::HashSet;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::part::Part;
use crate::test_image::{TestImage, safetensors};
use daxfs::{Dtype, Image, Tensor, format};

/// A safetensors file: name, type and shape of each tensor, and bytes that are nowhere the same.
fn file(tensors: &[(&str, Dtype, &[u64])], seed: u64) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = (seed..)
        .zip(tensors)
        .map(|(seed, (_, dtype, shape))| {
            let len = dtype.bytes_of(shape.iter().product::<u64>().into()).unwrap();
            let byte = |at: u64| (at + (seed << 9)).wrapping_mul(0x9E37_79B9).to_le_bytes()[1];
            (0..len).map(byte).collect()
        })
        .collect();
    let all: Vec<_> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, dtype, shape), bytes)| (*name, *dtype, *shape, &bytes[..]))
        .collect();
    safetensors(&all, "")
}

fn image() -> Image {
    let one = file(
        &[
            ("0.up", Dtype::F32, &[8, 6]),
            ("0.down", Dtype::BF16, &[4, 8, 3]),
            ("0.norm", Dtype::F32, &[5]),
            ("0.empty", Dtype::F32, &[0, 4]),
            ("0.four", Dtype::F4, &[4, 6]),
            ("0.scalar", Dtype::I64, &[]),
        ],
        1,
    );
    let two = file(&[("1.up", Dtype::F32, &[8, 6]), ("1.flat", Dtype::U8, &[1, 12])], 7);
    TestImage::new()
        .file("/one.safetensors", one)
        .file("/blobs/abc", two)
        .link("/two.safetensors", "blobs/abc")
        .file("/config.json", b"{}".to_vec())
        .file("/nothing", Vec::new())
        .open()
}

fn place(rules: &str, rank: usize) -> crate::Result<Placement> {
    Plan::parse(&format!(r#"{{"ranks": 2, "rules": [{rules}]}}"#))?.place(&image(), rank)
}

/// What the rank's memory would be.
fn memory(placement: &Placement) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(placement.len()).unwrap()];
    placement.segments().read_at(placement.image().region(), 0, &mut bytes).unwrap();
    bytes
}

fn at(bytes: &[u8], start: u64, len: u64) -> &[u8] {
    &bytes[usize::try_from(start).unwrap()..][..usize::try_from(len).unwrap()]
}

/// The bytes of a part, in order, from the tensor's own.
fn picked(tensor: &Tensor, dim: usize, range: &Range<u64>) -> Vec<u8> {
    let part = Part::of(tensor, dim, range).unwrap();
    let whole = tensor.bytes().unwrap().to_vec();
    (0..part.count)
        .flat_map(|number| at(&whole, part.start + number * part.step, part.run).to_vec())
        .collect()
}

/// Whatever the placement says of each tensor is so, and whatever it does not hold is not found.
fn check(placement: &Placement) {
    let memory = memory(placement);
    let mut tensors = 0;
    for pair in placement.tensors() {
        let (tensor, assigned) = pair.unwrap();
        tensors += 1;
        let start = tensor.file().extent().unwrap().offset + tensor.offset();
        let found = |skip: u64, len: u64| {
            let place =
                placement.find(start + skip, len).unwrap_or_else(|| panic!("{tensor:?}: {assigned:?}"));
            assert_eq!(place % ALIGNMENT, (start + skip) % ALIGNMENT, "{tensor:?}");
            at(&memory, place, len).to_vec()
        };
        let whole = tensor.bytes().unwrap().to_vec();
        match &assigned {
            Assigned::Nothing => {}
            Assigned::Whole => assert!(whole.is_empty() || found(0, tensor.nbytes()) == whole),
            Assigned::Part { dim, range, layout } => {
                let part = Part::of(&tensor, *dim, range).unwrap();
                let wanted = picked(&tensor, *dim, range);
                match layout {
                    _ if wanted.is_empty() => {}
                    PartLayout::Contiguous => assert_eq!(found(part.start, part.run), wanted),
                    PartLayout::Strided => assert_eq!(found(0, tensor.nbytes()), whole),
                    PartLayout::Gathered => {
                        let place = placement.find_gathered(&tensor, &part).unwrap();
                        assert_eq!(place % ALIGNMENT, 0);
                        assert_eq!(at(&memory, place, wanted.len() as u64), wanted);
                    }
                }
            }
        }
    }
    assert_eq!(tensors, 8, "a link and its file are one");
}

fn assigned(placement: &Placement, name: &str) -> Assigned {
    let all: Vec<_> = placement.tensors().map(Result::unwrap).collect();
    all.into_iter().find(|(tensor, _)| tensor.name() == name).unwrap().1
}

#[test]
fn what_no_rule_names() {
    let placement = place("", 1).unwrap();
    check(&placement);
    assert!(placement.tensors().all(|pair| pair.unwrap().1 == Assigned::Whole));
    let config = placement.image().file("/config.json").unwrap();
    assert_eq!(placement.find(config.extent().unwrap().offset, 2), None, "files are on the host");
    assert_eq!((placement.files(), placement.rank()), (0, 1));
    // Both ranks have the same, so one copy does for both.
    assert_eq!(placement.identity(), place("", 0).unwrap().identity());
}

#[test]
fn ranks_have_their_parts() {
    let rules = r#"{"tensors": "?.up", "split": 0}, {"tensors": "0.down", "split": 1, "gather": true},
        {"tensors": "0.norm", "on": 1}, {"tensors": "*.flat", "split": 1}, {"files": "*.json", "on": [0]},
        {"tensors": "0.never", "on": "none"}"#;
    let (zero, one) = (place(rules, 0).unwrap(), place(rules, 1).unwrap());
    check(&zero);
    check(&one);
    assert_ne!(zero.identity(), one.identity());
    let part = |dim, range, layout| Assigned::Part { dim, range, layout };
    assert_eq!(assigned(&one, "0.up"), part(0, 4..8, PartLayout::Contiguous));
    assert_eq!(assigned(&one, "0.down"), part(1, 4..8, PartLayout::Gathered));
    assert_eq!(assigned(&one, "1.flat"), part(1, 6..12, PartLayout::Contiguous));
    assert_eq!((assigned(&zero, "0.norm"), assigned(&one, "0.norm")), (Assigned::Nothing, Assigned::Whole));
    let up = one.image().tensors_at("/one.safetensors").unwrap().get("0.up").unwrap();
    let start = up.file().extent().unwrap().offset + up.offset();
    assert_eq!(one.find(start, up.nbytes()), None, "it has half of it");
    assert_eq!((zero.files(), one.files()), (1, 0));
    let config = zero.image().file("/config.json").unwrap().extent().unwrap();
    assert!(zero.find(config.offset, config.len).is_some());
    assert_eq!(zero.unused_rules(), [5]);
}

#[test]
fn parts_with_gaps_are_whole_unless_gathered() {
    let one = place(r#"{"tensors": "0.down", "split": 2, "uneven": true}"#, 1).unwrap();
    check(&one);
    let layout = PartLayout::Strided;
    assert_eq!(assigned(&one, "0.down"), Assigned::Part { dim: 2, range: 2..3, layout });
    assert_eq!(one.len(), place("", 1).unwrap().len());
}

#[test]
fn what_cannot_be_split_is_refused_for_all_ranks() {
    for (rules, why) in [
        (r#"{"tensors": "0.norm", "split": 0}"#, "no multiple"),
        (r#"{"tensors": "0.norm", "split": 1}"#, "no such dimension"),
        (r#"{"tensors": "0.scalar", "split": 0}"#, "no such dimension"),
    ] {
        for rank in 0..2 {
            let error = place(rules, rank).unwrap_err();
            assert!(matches!(error, Error::Plan(PlanError::NotSplit { rule: 1, ways: 2, .. })), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
    let error = place(r#"{"tensors": "0.four", "split": 1}"#, 1).unwrap_err();
    assert!(error.to_string().contains("inside a byte"), "{error}");
    // The last of these has nothing of it.
    let plan = r#"{"ranks": 3, "rules": [{"tensors": "0.four", "split": 1, "on": [1, 0]}]}"#;
    for rank in 0..3 {
        let error = Plan::parse(plan).unwrap().place(&image(), rank).unwrap_err();
        assert!(error.to_string().contains("inside a byte"), "{rank}: {error}");
    }
    assert!(matches!(place("", 2).unwrap_err(), Error::Plan(PlanError::NoSuchRank { rank: 2, ranks: 2 })));
    assert!(place(r#"{"tensors": "*", "on": "none"}"#, 0).unwrap().is_empty());
    check(&place(r#"{"tensors": "0.empty", "split": 1}"#, 0).unwrap());
}

#[test]
fn only_paths_that_programs_could_use_fit_patterns() {
    let long: &'static str = format!("{}/{}", "/d".repeat(2000), "f".repeat(95)).leak();
    let longer: &'static str = format!("{long}f").leak();
    let image = TestImage::new()
        .file(long, b"1".to_vec())
        .file(longer, b"2".to_vec())
        .link("/link", "blob")
        .file("/blob", b"3".to_vec())
        .open();
    let place = |pattern: &str| {
        let plan = format!(r#"{{"ranks": 1, "rules": [{{"files": "{pattern}", "on": 0}}]}}"#);
        Plan::parse(&plan).unwrap().place(&image, 0).unwrap()
    };
    assert_eq!((long.len(), place("d*").files(), place("*").files()), (4096, 1, 2));
    let linked = place("li?k");
    let blob = image.file("/blob").unwrap().extent().unwrap();
    assert!(linked.find(blob.offset, blob.len).is_some() && linked.files() == 1);
}

/// Files may share bytes, so the tensors of a small image can be many times as large as it: each file here is the data
/// of the one before.
#[test]
fn tensors_that_lie_in_each_other_are_not_gathered_without_end() {
    const PATHS: [&str; 4] = ["/a.safetensors", "/b.safetensors", "/c.safetensors", "/d.safetensors"];
    // Contents of each, with where the next one begins in it; the innermost first.
    let mut files = vec![(vec![7; 30 << 10], 0)];
    for _ in PATHS {
        let mut data = files.last().unwrap().0.clone();
        data.resize(data.len().next_multiple_of(3), 0);
        let file = safetensors(&[("w", Dtype::U8, &[data.len() as u64 / 3, 3], &data)], "");
        let begins = file.len() - data.len();
        files.push((file, begins));
    }
    files.reverse();
    let outermost = TestImage::new().file(PATHS[0], files[0].0.clone());
    let hand_made = PATHS[1..].iter().fold(outermost, |image, path| image.file(path, "x"));
    let mut bytes = hand_made.bytes();
    let inode = |path| format::SUPERBLOCK_SIZE + 64 * (hand_made.ino(path) as usize - 1);
    let mut start = u64::from_le_bytes(bytes[inode(PATHS[0]) + 24..][..8].try_into().unwrap());
    for (path, (file, begins)) in PATHS.into_iter().zip(&files) {
        bytes[inode(path) + 16..][..8].copy_from_slice(&(file.len() as u64).to_le_bytes());
        bytes[inode(path) + 24..][..8].copy_from_slice(&start.to_le_bytes());
        start += *begins as u64;
    }
    let image = Image::from_bytes(bytes).unwrap();
    let plan = |gather: bool| {
        let rule = format!(r#"{{"tensors": "w", "split": 1, "gather": {gather}, "uneven": true}}"#);
        Plan::parse(&format!(r#"{{"ranks": 2, "rules": [{rule}]}}"#)).unwrap()
    };
    let error = plan(true).place(&image, 0).unwrap_err();
    assert!(matches!(error, Error::Plan(PlanError::TooMuch { rank: 0, .. })), "{error}");
    assert!(plan(false).place(&image, 0).unwrap().len() < image.superblock().total_size);
}

#[test]
fn a_damaged_header_is_an_error() {
    let image = TestImage::new().file("/a.safetensors", vec![255; 64]).open();
    let plan = Plan::parse(r#"{"ranks": 1, "rules": []}"#).unwrap();
    assert!(matches!(plan.place(&image, 0).unwrap_err(), Error::Image(daxfs::Error::Tensor(_))));
}

/// Names and numbers of dimensions.
const NAMES: [(&str, usize); 7] =
    [("0.up", 2), ("0.down", 3), ("0.norm", 1), ("0.empty", 2), ("0.four", 2), ("1.up", 2), ("1.flat", 2)];

proptest! {
    /// Whatever the rules are, every byte of a tensor that is split or on all ranks is on one of them, nothing is held
    /// twice, and what is held is what the image has.
    #[test]
    fn all_is_somewhere(
        ranks in 1_usize..5, choices in proptest::collection::vec((0_usize..7, 0_usize..6, any::<bool>()), 0..8),
    ) {
        let rules = choices.iter().map(|(name, dim, gather)| {
            let ((name, dims), split) = (NAMES[*name], dim);
            let dim = split % dims;
            format!(r#"{{"tensors": "{name}", "split": {dim}, "gather": {gather}, "uneven": true}}"#)
        });
        let text = format!(r#"{{"ranks": {ranks}, "rules": [{}]}}"#, rules.collect::<Vec<_>>().join(","));
        let (plan, image) = (Plan::parse(&text).unwrap(), image());
        let placements: Vec<_> = match (0..ranks).map(|rank| plan.place(&image, rank)).collect() {
            Ok(placements) => placements,
            Err(error) => {
                prop_assert!(error.to_string().contains("inside a byte"), "{}", error);
                return Ok(());
            }
        };
        let mut held: HashSet<u64> = HashSet::new();
        for placement in &placements {
            check(placement);
            let mut end = 0;
            let mut own = HashSet::new();
            for segment in placement.segments().as_slice() {
                prop_assert!(segment.to >= end && segment.to - end < ALIGNMENT);
                end = segment.end();
                for run in 0..segment.count {
                    let bytes = segment.from + run * segment.step..segment.from + run * segment.step + segment.run;
                    prop_assert!(bytes.clone().all(|byte| own.insert(byte)), "held twice");
                    held.extend(bytes);
                }
            }
        }
        for file in ["/one.safetensors", "/two.safetensors"] {
            for tensor in image.tensors_at(file).unwrap().iter() {
                let tensor = tensor.unwrap();
                let start = tensor.file().extent().unwrap().offset + tensor.offset();
                prop_assert!((start..start + tensor.nbytes()).all(|byte| held.contains(&byte)), "{:?}", tensor);
            }
        }
    }
}

/// Files with the same contents may be one extent: what is gathered of their tensors is held once, and found for each.
#[test]
fn tensors_that_are_one_are_gathered_once() {
    let data: Vec<u8> = (0..96).collect();
    let file = safetensors(&[("w", Dtype::U8, &[8, 12], &data)], "");
    let plan = r#"{"ranks": 2, "rules": [{"tensors": "w", "split": 1, "gather": true}]}"#;
    let plan = Plan::parse(plan).unwrap();
    let alone = TestImage::new().file("/a.safetensors", file.clone()).open();
    let alone = plan.place(&alone, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.safetensors", "b.safetensors"] {
        std::fs::write(dir.path().join(name), &file).unwrap();
    }
    let path = dir.path().join("image");
    let packer = mkimage::Packer::new().input(dir.path().join("a.safetensors"));
    let packer = packer.input(dir.path().join("b.safetensors")).dedupe(true).plain(true);
    packer.plan().unwrap().write_file(&path).unwrap();
    let image = Image::from_bytes(std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(image.file("a.safetensors").unwrap().extent(), image.file("b.safetensors").unwrap().extent());
    let placement = plan.place(&image, 1).unwrap();
    assert_eq!(placement.tensors().count(), 2);
    assert_eq!(placement.len(), alone.len(), "held once");
}
