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

use std::fmt;
use std::sync::Arc;

use ::safetensors::tensor::TensorInfo as RawInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{Container, Header, HeaderSource, foreign};
use crate::format::index::CONTAINER_SAFETENSORS;
use crate::tensor::dtype::SizeFault;
use crate::tensor::json::{Pairs, text};
use crate::tensor::metadata::Value;
use crate::tensor::{Dtype, TensorError, TensorInfo};
use crate::{Foreign, Result};

/// Longest JSON header, in bytes; the limit of the safetensors crate.
pub const MAX_HEADER: u64 = crate::foreign::LONGEST_HEADER;

/// Bytes of the length in front of the JSON.
pub const LENGTH_SIZE: u64 = 8;

/// Key of the free-form strings beside the tensors.
pub const METADATA_KEY: &str = "__metadata__";

const NAME: &str = "safetensors";
const HEADER: &str = "safetensors header";

/// The container of safetensors files.
pub(super) struct Safetensors;

impl Container for Safetensors {
    fn name(&self) -> &'static str {
        NAME
    }

    fn suffix(&self) -> &'static str {
        ".safetensors"
    }

    fn code(&self) -> u32 {
        CONTAINER_SAFETENSORS
    }

    /// The length of a header that fits into the file, and a brace.
    fn recognises(&self, head: &[u8], len: u64) -> bool {
        let Some((length, [b'{', ..])) = head.split_first_chunk() else { return false };
        header_length(*length, len).is_ok()
    }

    fn parse(&self, source: &dyn HeaderSource) -> Result<Header> {
        let json = copy_header(source)?;
        let header = parse_header(&json, source.len())?;
        source.charge("safetensors headers", header.cost())?;
        Ok(header)
    }
}

fn copy_header(source: &dyn HeaderSource) -> Result<Vec<u8>> {
    let mut length = [0; 8];
    match source.len() {
        0 => return Err(TensorError::Empty.into()),
        len if len < LENGTH_SIZE => return Err(TensorError::TooShort { len }.into()),
        _ => source.read(0, &mut length)?,
    }
    let length = match header_length(length, source.len()) {
        Ok(length) => length,
        Err(error) => {
            let kind = foreign(source)?.filter(|kind| *kind != Foreign::Safetensors);
            return Err(kind.map_or(error, |kind| TensorError::NotOfFormat { format: NAME, kind }).into());
        }
    };
    // What is parsed twice is charged twice, so that many broken headers cost no more time than one budget.
    source.charge("safetensors headers", length as u64)?;
    let mut json = vec![0; length];
    source.read(LENGTH_SIZE, &mut json)?;
    Ok(json)
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
    let texts = |pairs: Vec<(String, String)>| pairs.into_iter().map(|(key, text)| (key, Value::Text(text)));
    Header::new(HEADER, data_start, tensors, metadata.map(|pairs| texts(pairs).collect()))
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
            Err(SizeFault::PartialByte | SizeFault::PartialBlock) => {
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
