//! Sharded checkpoints: one flat set of tensors over several safetensors files.
//!
//! `model.safetensors.index.json`, or any `*.safetensors.index.json` or `*.safetensors.index.VARIANT.json`, holds
//! `{"weight_map": {TENSOR: SHARD, ...}}` and more that is ignored here. The map decides what is listed: a tensor that
//! a shard has but the map does not name is not part of the checkpoint. Without such a file, numbered shards are joined
//! when all of them are there.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use serde::Deserialize;

use super::TensorError;
use super::container::{ContainerKind, header_as, header_of, read_exact, safetensors};
use super::error::escaped;
use super::json::{Pairs, text};
use super::shards::Checkpoint;
use crate::format::index::FILLER_PREFIX;
use crate::{Error, File, Result};

/// How names of checkpoint files end.
pub const SUFFIX: &str = ".safetensors.index.json";

/// Longest checkpoint file that is read, in bytes.
pub const MAX_DOCUMENT: u64 = safetensors::MAX_HEADER;

const DOCUMENT: &str = "checkpoint";

/// The `weight_map` of a checkpoint, with the shards' names stored once.
#[derive(Debug, PartialEq, Eq)]
pub struct WeightMap {
    /// Names of the shards as they stand in the file, sorted, each once.
    pub shards: Vec<String>,
    /// Tensors, sorted by name (bytes), each with its position in `shards`. Fillers are left out.
    pub entries: Vec<(String, usize)>,
}

impl WeightMap {
    /// Parses a checkpoint file.
    ///
    /// # Errors
    /// [`TensorError::NotText`], [`TensorError::Json`] (also when there is no `weight_map`) or
    /// [`TensorError::DuplicateKey`].
    pub fn parse(json: &[u8]) -> Result<Self, TensorError> {
        #[derive(Deserialize)]
        struct Document {
            weight_map: Pairs<String>,
        }
        let document: Document = serde_json::from_str(text(DOCUMENT, json)?)
            .map_err(|error| TensorError::Json { what: DOCUMENT, error })?;
        let mut pairs = document.weight_map.sorted("weight_map")?;
        pairs.retain(|(name, _)| !name.starts_with(FILLER_PREFIX));

        let mut shards: Vec<_> = pairs.iter().map(|(_, shard)| shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let shards: Vec<String> = shards.into_iter().cloned().collect();
        let position = |shard: &String| shards.partition_point(|other| other < shard);
        let entries = pairs
            .into_iter()
            .map(|(name, shard)| {
                let position = position(&shard);
                (name, position)
            })
            .collect();
        Ok(Self { shards, entries })
    }
}

/// Where a shard lies: `directory` (absolute, in the image) joined with the name that the checkpoint gives it.
///
/// # Errors
/// [`TensorError::ShardPath`] for names that are empty, absolute, or have a `..` component or a NUL.
pub fn shard_path(directory: &[u8], shard: &str) -> Result<Vec<u8>, TensorError> {
    let bad = shard.starts_with('/') || shard.contains('\0') || shard.split('/').any(|part| part == "..");
    let mut path = directory.to_vec();
    while path.last() == Some(&b'/') {
        path.pop();
    }
    let base = path.len();
    for part in shard.split('/').filter(|part| !part.is_empty() && *part != ".") {
        path.push(b'/');
        path.extend_from_slice(part.as_bytes());
    }
    if bad || path.len() == base {
        return Err(TensorError::ShardPath { shard: shard.into() });
    }
    Ok(path)
}

/// Reads the checkpoint `json`, whose shards are relative to `directory`, and the headers of all shards.
///
/// # Errors
/// [`TensorError::InFile`] around what is wrong with the checkpoint: among others [`TensorError::MissingShard`],
/// [`TensorError::MissingShards`] and [`TensorError::MissingTensor`]; or the error of a shard's header.
pub(super) fn read_checkpoint(json: &File, directory: &[u8]) -> Result<Checkpoint> {
    let map = read_weight_map(json)?;
    let image = json.image();
    let fault = |fault: TensorError| Error::from(fault.in_file(&json.path()));
    let (mut files, mut missing) = (Vec::with_capacity(map.shards.len()), Vec::new());
    for shard in &map.shards {
        let path = shard_path(directory, shard).map_err(fault)?;
        image.charge("paths of shards", path.len() as u64)?;
        match image.file(&path) {
            Ok(file) => files.push((path, file)),
            Err(Error::NotFound { .. }) => missing.push((shard.clone(), path)),
            Err(error) => return Err(error),
        }
    }
    match (missing.len(), missing.pop()) {
        (_, None) => {}
        (1, Some((shard, path))) => {
            return Err(fault(TensorError::MissingShard { shard, path: escaped(&path) }));
        }
        (_, Some((last, _))) => {
            let missing = missing.into_iter().map(|(shard, _)| shard).chain([last]).collect();
            let directory = escaped(if directory.is_empty() { b"/" } else { directory });
            return Err(fault(TensorError::MissingShards { missing, count: map.shards.len(), directory }));
        }
    }
    let shards: Vec<_> =
        files.into_iter().map(|(path, file)| Ok((path, header_of(&file)?))).collect::<Result<_>>()?;
    image.charge("tensors of a checkpoint", size_of_val::<[(String, usize)]>(&map.entries) as u64)?;
    let entries = map
        .entries
        .into_iter()
        .map(|(tensor, shard)| match shards[shard].1.position(&tensor) {
            Some(position) => Ok((shard, position)),
            None => {
                let shard = map.shards[shard].clone();
                Err(fault(TensorError::MissingTensor { tensor, shard }))
            }
        })
        .collect::<Result<_>>()?;
    Ok(Checkpoint::new(shards, entries))
}

/// Joins shards that no JSON file joins, at their paths in the image: shard 1, 2 and so on. Each tensor may be in one
/// of them only.
///
/// # Errors
/// [`TensorError::TensorInTwoShards`], [`TensorError::Malformed`] for a shard that says it is another, or the error
/// of a shard's header.
pub(super) fn join_shards(files: &[(Vec<u8>, File)]) -> Result<Checkpoint> {
    let mut shards = Vec::with_capacity(files.len());
    let mut entries = Vec::new();
    let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
    for ((number, (path, file)), nth) in files.iter().enumerate().zip(1..) {
        let kind = ContainerKind::of_name(path).map_or_else(|| ContainerKind::of_file(file), Ok)?;
        let header = header_as(kind, file)?;
        kind.check_shard(&header, nth, count).map_err(|fault| fault.in_file(path))?;
        let image = file.image();
        image.charge(
            "tensors of a checkpoint",
            header.len().saturating_mul(size_of::<(usize, usize)>()) as u64,
        )?;
        image.charge("paths of shards", path.len() as u64)?;
        entries.extend(header.positions().map(|position| (number, position)));
        shards.push((path.clone(), header));
    }
    Checkpoint::joined(shards, entries).map_err(Error::from)
}

fn read_weight_map(json: &File) -> Result<WeightMap> {
    let fault = |fault: TensorError| Error::from(fault.in_file(&json.path()));
    let len = json.len();
    let too_long = TensorError::DocumentTooLong { len, bound: MAX_DOCUMENT };
    if len > MAX_DOCUMENT {
        return Err(fault(too_long));
    }
    // As for headers, each time that it is parsed.
    json.image().charge("checkpoints", len)?;
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| fault(too_long))?];
    read_exact(json, 0, &mut bytes)?;
    WeightMap::parse(&bytes).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_interned_and_tensors_sorted() {
        let json = br#"{"metadata":{"total_size":1e3},"weight_map":{"b":"s2","a":"s1","c":"s1","__daxfs_pad_0":"s9"}}"#;
        let map = WeightMap::parse(json).unwrap();
        assert_eq!(map.shards, ["s1", "s2"]);
        assert_eq!(map.entries, [("a".into(), 0), ("b".into(), 1), ("c".into(), 0)]);
    }

    #[test]
    fn duplicates_and_other_documents_are_refused() {
        let error = WeightMap::parse(br#"{"weight_map":{"a":"s1","a":"s2"}}"#).unwrap_err();
        assert!(matches!(error, TensorError::DuplicateKey { what: "weight_map", key } if key == "a"));
        let error = WeightMap::parse(br#"{"weight_map":{"a":"x"},"weight_map":{}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate field `weight_map`"), "{error}");
        let error = WeightMap::parse(b"{}").unwrap_err();
        assert!(error.to_string().contains("missing field `weight_map`"), "{error}");
        let error = WeightMap::parse(br#"{"weight_map":{"a":3}}"#).unwrap_err();
        assert!(error.to_string().contains("\"a\": invalid type"), "{error}");
        assert!(matches!(WeightMap::parse(b"{\xff"), Err(TensorError::NotText { valid: 1, .. })));
    }

    #[test]
    fn shard_paths_stay_in_the_directory() {
        let path = |shard| shard_path(b"/models/x", shard).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(path("a.safetensors").unwrap(), "/models/x/a.safetensors");
        assert_eq!(path("./part//a..b").unwrap(), "/models/x/part/a..b");
        assert_eq!(shard_path(b"/", "a").unwrap(), b"/a");
        assert_eq!(shard_path(b"", "a").unwrap(), b"/a");
        for bad in ["", ".", "./", "/a", "..", "../a", "a/../../b", "a/..", "a\0b"] {
            assert!(matches!(path(bad), Err(TensorError::ShardPath { shard }) if shard == bad), "{bad:?}");
        }
    }
}
