//! Headers of safetensors files.
//!
//! ```text
//! u64 N (little-endian) | N bytes of JSON | tensor data to the end of the file
//! ```
//!
//! The header is copied once out of the shared memory, under a cap, and only the copy is parsed. What is accepted
//! is exactly what the safetensors crate accepts, less headers with duplicate keys, where the crate takes the last
//! one; property tests hold the two together. The rules are checked here, not by the crate's `Metadata::new`,
//! because its errors do not say which tensor breaks them.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ::safetensors::tensor::TensorInfo as RawInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::dtype::SizeFault;
use super::json::{Pairs, text};
use super::{Dtype, TensorError, TensorInfo};
use crate::format::index::FILLER_PREFIX;
use crate::{File, Foreign, Result};

/// Longest JSON header, in bytes; the limit of the safetensors crate.
pub const MAX_HEADER: u64 = 100_000_000;

/// Bytes of the length in front of the JSON.
pub const LENGTH_SIZE: u64 = 8;

/// Key of the free-form strings beside the tensors.
pub const METADATA_KEY: &str = "__metadata__";

const HEADER: &str = "safetensors header";

/// A header that was checked as a whole: the tensors lie in the file one after the other, without gap or overlap,
/// from the end of the header to the end of the file.
#[derive(Debug)]
pub struct Header {
    data_start: u64,
    /// Sorted by name (bytes); fillers included.
    tensors: Vec<Arc<TensorInfo>>,
    /// Where the fillers stand: their common prefix keeps them together.
    fillers: Range<usize>,
    metadata: Option<BTreeMap<String, String>>,
}

impl Header {
    /// Where tensor data begins: 8 plus the length of the JSON.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// All tensors sorted by name (bytes), including the fillers that views hide.
    pub fn all(&self) -> &[Arc<TensorInfo>] {
        &self.tensors
    }

    /// The tensors that views show, sorted by name.
    pub fn visible(&self) -> impl Iterator<Item = &Arc<TensorInfo>> {
        self.tensors[..self.fillers.start].iter().chain(&self.tensors[self.fillers.end..])
    }

    /// Where those stand in [`Header::all`].
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.fillers.start).chain(self.fillers.end..self.tensors.len())
    }

    /// How many tensors views show.
    pub fn len(&self) -> usize {
        self.tensors.len().saturating_sub(self.fillers.len())
    }

    /// True when views show no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `position`th of [`Header::visible`].
    pub fn nth(&self, position: usize) -> Option<&Arc<TensorInfo>> {
        let hidden = if position < self.fillers.start { 0 } else { self.fillers.len() };
        self.tensors.get(position.checked_add(hidden)?)
    }

    /// The tensor of this name; `None` for fillers.
    pub fn get(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.position(name).map(|position| &self.tensors[position])
    }

    /// Where [`Header::get`] finds the name in [`Header::all`].
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        let found = self.tensors.binary_search_by(|info| info.name.as_str().cmp(name)).ok()?;
        (!self.fillers.contains(&found)).then_some(found)
    }

    /// About how many bytes it occupies.
    fn cost(&self) -> u64 {
        let tensors = self.tensors.iter().map(|info| {
            // With the counts and the pointer of the `Arc`.
            let fixed =
                size_of::<(TensorInfo, [usize; 3])>().saturating_add(size_of_val::<[u64]>(&info.shape));
            fixed.saturating_add(info.name.len())
        });
        let strings = self
            .metadata
            .iter()
            .flatten()
            .map(|(key, value)| key.len().saturating_add(value.len()).saturating_add(64));
        tensors.chain(strings).fold(0, |sum, cost| sum.saturating_add(cost as u64))
    }

    /// The strings under `__metadata__`; `None` where the key is missing or null.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata.as_ref()
    }
}

/// Copies the header of a file out of the image and checks it.
///
/// # Errors
/// [`TensorError::InFile`] with what is wrong, or an error of reading the file.
pub fn read_header(file: &File) -> Result<Header> {
    let json = copy_header(file)?;
    let header = parse_header(&json, file.len()).map_err(|fault| fault.in_file(&file.path()))?;
    file.image().charge("safetensors headers", header.cost())?;
    Ok(header)
}

fn copy_header(file: &File) -> Result<Vec<u8>> {
    let mut length = [0; 8];
    let fault = |fault: TensorError| fault.in_file(&file.path());
    if file.is_empty() {
        return Err(fault(TensorError::Empty).into());
    }
    if file.len() < LENGTH_SIZE {
        return Err(fault(TensorError::TooShort { len: file.len() }).into());
    }
    read_exact(file, 0, &mut length)?;
    let length = match header_length(length, file.len()) {
        Ok(length) => length,
        Err(error) => return Err(fault(foreign(file)?.unwrap_or(error)).into()),
    };
    // What is parsed twice is charged twice, so that many broken headers cost no more time than one budget.
    file.image().charge("safetensors headers", length as u64)?;
    let mut json = vec![0; length];
    read_exact(file, LENGTH_SIZE, &mut json)?;
    Ok(json)
}

/// What a file is instead, when its beginning tells.
fn foreign(file: &File) -> Result<Option<TensorError>> {
    let mut head = [0; Foreign::HEAD];
    let len = file.read_at(0, &mut head)?;
    let kind = head.get(..len).and_then(Foreign::of).filter(|kind| *kind != Foreign::Safetensors);
    Ok(kind.map(|kind| TensorError::NotSafetensors { kind }))
}

/// Checks the first 8 bytes of a file against the format's limit and the file's length.
///
/// # Errors
/// [`TensorError::HeaderTooLong`] or [`TensorError::HeaderOutsideFile`].
pub fn header_length(first: [u8; 8], file_len: u64) -> Result<usize, TensorError> {
    let len = u64::from_le_bytes(first);
    let too_long = TensorError::HeaderTooLong { len, bound: MAX_HEADER };
    if len > MAX_HEADER {
        return Err(too_long);
    }
    let end = LENGTH_SIZE.saturating_add(len);
    if end > file_len {
        return Err(TensorError::HeaderOutsideFile { end, file_len });
    }
    usize::try_from(len).map_err(|_| too_long)
}

/// Fills `dst` from a file, which must hold that many bytes.
pub(crate) fn read_exact(file: &File, mut offset: u64, mut dst: &mut [u8]) -> Result<()> {
    while !dst.is_empty() {
        let count = file.read_at(offset, dst)?;
        if count == 0 {
            let end = offset.saturating_add(dst.len() as u64);
            let range = offset..end;
            return Err(crate::Error::OutsideFile { path: file.path(), range, len: file.len() });
        }
        dst = &mut dst[count..];
        offset = offset.saturating_add(count as u64);
    }
    Ok(())
}

/// Checks a header: `json` is the copy of its JSON, without the 8 bytes of length, `file_len` the length of the
/// whole file. Time and memory grow linearly with the header (sorting by name aside).
///
/// # Errors
/// The [`TensorError`] of the first rule that is broken, without the file's name.
pub fn parse_header(json: &[u8], file_len: u64) -> Result<Header, TensorError> {
    let Members { tensors, metadata } = parse_members(text(HEADER, json)?)?;
    let tensors = tensors.sorted(HEADER)?;
    let metadata = metadata.map(|pairs| pairs.sorted(METADATA_KEY)).transpose()?;

    let data_start = LENGTH_SIZE.saturating_add(json.len() as u64);
    let data_len = check_layout(&tensors)?;
    let data_end = data_start.saturating_add(data_len);
    if data_end != file_len {
        return Err(TensorError::DataEnd { data_end, file_len });
    }

    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, info)| {
            let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let shape = info.shape.into_iter().map(|dim| dim as u64).collect();
            let dtype = Dtype::try_from(info.dtype)?;
            let (offset, size) = (data_start.saturating_add(begin), end.saturating_sub(begin));
            Ok(Arc::new(TensorInfo { name, dtype, shape, offset, size }))
        })
        .collect::<Result<_, TensorError>>()?;
    let first = tensors.partition_point(|info| info.name.as_str() < FILLER_PREFIX);
    let count = tensors[first..].partition_point(|info| info.name.starts_with(FILLER_PREFIX));
    Ok(Header {
        data_start,
        tensors,
        fillers: first..first.saturating_add(count),
        metadata: metadata.map(BTreeMap::from_iter),
    })
}

/// The crate's rules: in the order of their offsets the tensors follow each other without gap, and each is as long
/// as its type and shape say. Returns where the last one ends.
fn check_layout(tensors: &[(String, RawInfo)]) -> Result<u64, TensorError> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_unstable_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in order {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if begin != expected || end < begin {
            return Err(TensorError::Offsets { tensor: name.clone(), begin, end, expected });
        }
        let shape: Vec<_> = info.shape.iter().map(|&dim| dim as u64).collect();
        let dtype = Dtype::try_from(info.dtype)?;
        let tensor = || name.clone();
        let got = end.saturating_sub(begin);
        match dtype.size_of(&shape) {
            Ok(size) if size == got => expected = end,
            Ok(size) => {
                let tensor = tensor();
                return Err(TensorError::Size { tensor, dtype, shape, got, expected: size });
            }
            Err(SizeFault::Overflow) => return Err(TensorError::Overflow { tensor: tensor(), dtype, shape }),
            Err(SizeFault::PartialByte) => {
                return Err(TensorError::PartialByte { tensor: tensor(), dtype, shape });
            }
        }
    }
    Ok(expected)
}

struct Members {
    tensors: Pairs<RawInfo>,
    metadata: Option<Pairs<String>>,
}

/// Parses the JSON in one pass, and once more the crate's way if that fails.
///
/// The crate flattens the tensors beside `__metadata__`, for which serde buffers every value: three times slower,
/// measured on 20,000 tensors. [`StrictMembers`] does without, and accepts less: no unknown fields in a tensor's
/// description. What it refuses is decided by [`LenientMembers`], whose derive is the crate's.
fn parse_members(json: &str) -> Result<Members, TensorError> {
    match serde_json::from_str::<StrictMembers>(json) {
        Ok(StrictMembers { repeated_metadata: true, .. }) => {
            Err(TensorError::DuplicateKey { what: HEADER, key: METADATA_KEY.into() })
        }
        Ok(StrictMembers { members, .. }) => Ok(members),
        Err(_) => match serde_json::from_str::<LenientMembers>(json) {
            Ok(LenientMembers { metadata, tensors }) => Ok(Members { tensors, metadata }),
            Err(error) => Err(TensorError::Json { what: HEADER, error }),
        },
    }
}

#[derive(Deserialize)]
struct LenientMembers {
    #[serde(rename = "__metadata__")]
    metadata: Option<Pairs<String>>,
    #[serde(flatten)]
    tensors: Pairs<RawInfo>,
}

struct StrictMembers {
    members: Members,
    repeated_metadata: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictInfo {
    dtype: ::safetensors::Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for StrictMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = StrictMembers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StrictMembers, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        let mut repeated_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == METADATA_KEY {
                let value = map.next_value::<Option<Pairs<String>>>()?;
                repeated_metadata |= metadata.replace(value).is_some();
            } else {
                let StrictInfo { dtype, shape, data_offsets } = map.next_value()?;
                tensors.push((key, RawInfo { dtype, shape, data_offsets }));
            }
        }
        let members = Members { tensors: Pairs(tensors), metadata: metadata.flatten() };
        Ok(StrictMembers { members, repeated_metadata })
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
