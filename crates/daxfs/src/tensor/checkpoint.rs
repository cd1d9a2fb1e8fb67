//! Sharded checkpoints: one flat set of tensors over several safetensors files.
//!
//! `model.safetensors.index.json`, or any `*.safetensors.index.json` or `*.safetensors.index.VARIANT.json`, holds
//! `{"weight_map": {TENSOR: SHARD, ...}}` and more that is ignored here. The map decides what is listed: a tensor that
//! a shard has but the map does not name is not part of the checkpoint. Without such a file, numbered shards are joined
//! when all of them are there.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::Arc;

use serde::Deserialize;

use super::cache::Place;
use super::error::escaped;
use super::json::{Pairs, text};
use super::safetensors::{Header, read_exact, read_header};
use super::{TensorError, TensorInfo};
use crate::format::index::FILLER_PREFIX;
use crate::{Error, File, Image, Result};

/// How names of checkpoint files end.
pub const SUFFIX: &str = ".safetensors.index.json";

/// Longest checkpoint file that is read, in bytes.
pub const MAX_DOCUMENT: u64 = super::safetensors::MAX_HEADER;

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

/// A checkpoint whose shards were found and whose promises were checked.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Paths of the shards in the image, with their headers.
    shards: Vec<(Vec<u8>, Arc<Header>)>,
    /// Tensors sorted by name: shard, and position in [`Header::all`].
    entries: Vec<(usize, usize)>,
}

impl Checkpoint {
    /// Reads the checkpoint `json`, whose shards are relative to `directory`, and the headers of all shards.
    ///
    /// # Errors
    /// [`TensorError::InFile`] around what is wrong with the checkpoint: among others [`TensorError::MissingShard`],
    /// [`TensorError::MissingShards`] and [`TensorError::MissingTensor`]; or the error of a shard's header.
    pub(super) fn read(json: &File, directory: &[u8]) -> Result<Self> {
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
                return Err(fault(TensorError::MissingShards {
                    missing,
                    count: map.shards.len(),
                    directory,
                }));
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
        Ok(Self { shards, entries })
    }

    /// Joins shards that no JSON file joins, at their paths in the image. Each tensor may be in one of them only.
    ///
    /// # Errors
    /// [`TensorError::TensorInTwoShards`], or the error of a shard's header.
    pub(super) fn join(files: &[(Vec<u8>, File)]) -> Result<Self> {
        let mut shards = Vec::with_capacity(files.len());
        let mut entries = Vec::new();
        for (number, (path, file)) in files.iter().enumerate() {
            let header = header_of(file)?;
            let image = file.image();
            image.charge(
                "tensors of a checkpoint",
                header.len().saturating_mul(size_of::<(usize, usize)>()) as u64,
            )?;
            image.charge("paths of shards", path.len() as u64)?;
            entries.extend(header.positions().map(|position| (number, position)));
            shards.push((path.clone(), header));
        }
        let mut joined = Self { shards, entries: Vec::new() };
        entries.sort_by(|&left, &right| joined.resolve(left).1.name.cmp(&joined.resolve(right).1.name));
        let twice = entries.windows(2).find(|pair| match *pair {
            [left, right] => joined.resolve(*left).1.name == joined.resolve(*right).1.name,
            _ => false,
        });
        if let Some(&[left, right]) = twice {
            let path = |entry: (usize, usize)| escaped(&joined.shards[entry.0].0);
            let tensor = joined.resolve(left).1.name.clone();
            return Err(
                TensorError::TensorInTwoShards { tensor, first: path(left), second: path(right) }.into()
            );
        }
        joined.entries = entries;
        Ok(joined)
    }

    /// The shards as files of `image`, which is the one that the checkpoint was read from.
    pub(super) fn files(&self, image: &Image) -> Result<Vec<File>> {
        self.shards.iter().map(|(path, _)| image.file(path)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `position`th tensor by name, and the number of its shard.
    pub(super) fn nth(&self, position: usize) -> Option<(usize, &Arc<TensorInfo>)> {
        self.entries.get(position).map(|&entry| self.resolve(entry))
    }

    pub(super) fn find(&self, name: &str) -> Option<(usize, &Arc<TensorInfo>)> {
        let by_name = |&entry: &(usize, usize)| self.resolve(entry).1.name.as_str().cmp(name);
        self.entries.binary_search_by(by_name).ok().and_then(|position| self.nth(position))
    }

    /// All tensors by name, with the numbers of their shards.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<TensorInfo>)> {
        self.entries.iter().map(|&entry| self.resolve(entry))
    }

    fn resolve(&self, (shard, position): (usize, usize)) -> (usize, &Arc<TensorInfo>) {
        (shard, &self.shards[shard].1.all()[position])
    }
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

/// The header of a file, parsed on first use of the bytes that it has.
pub(super) fn header_of(file: &File) -> Result<Arc<Header>> {
    let cache = file.image().tensor_cache();
    cache.headers.get_or_parse(Place::of(file), || file.path(), || read_header(file))
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
