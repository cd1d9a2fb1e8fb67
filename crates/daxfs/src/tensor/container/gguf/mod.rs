//! Headers of GGUF files, the format of llama.cpp and others; versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | u32 version | u64 tensors | u64 pairs | pairs of key and value | tensors: name, dimensions, type, offset
//! | zeros up to a multiple of the alignment | data of the tensors, each on a multiple of the alignment
//! ```
//!
//! The alignment is the value of `general.alignment`, 32 without it. Dimensions lie in the file with the one that
//! varies fastest first; a [`TensorInfo`] has them in the usual order. What is accepted is what llama.cpp accepts:
//! the tensors follow each other in the order of their descriptions, and each begins where the one before it ends,
//! rounded up.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod cursor;
mod types;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Container, Header, HeaderSource, foreign};
use crate::format::index::CONTAINER_GGUF;
use crate::tensor::dtype::SizeFault;
use crate::tensor::metadata::Value;
use crate::tensor::{TensorError, TensorInfo};
use crate::{Foreign, Result};
use cursor::Cursor;

/// Longest header, in bytes. That of a model with a vocabulary of 260,000 has 12 MB.
const MAX_HEADER: u64 = 256 << 20;

/// Longest key or name of a tensor, in bytes, and most dimensions: those of the index.
const MAX_NAME: u64 = 64 << 10;
const MAX_RANK: usize = 64;

const NAME: &str = "GGUF";
const MAGIC: &[u8] = b"GGUF";

/// Longest text that an error shows.
const MAX_SHOWN: usize = 64;

/// Key of the alignment of tensors.
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Keys of split files: the number of this one, from 0 on, and how many there are.
const SPLIT_NUMBER: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";

/// The container of GGUF files.
pub(super) struct Gguf;

impl Container for Gguf {
    fn name(&self) -> &'static str {
        NAME
    }

    fn suffix(&self) -> &'static str {
        ".gguf"
    }

    fn code(&self) -> u32 {
        CONTAINER_GGUF
    }

    /// Split files say of themselves which they are.
    fn has_lists(&self) -> bool {
        false
    }

    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC)
    }

    fn parse(&self, source: &dyn HeaderSource) -> Result<Header> {
        if source.is_empty() {
            return Err(TensorError::Empty.into());
        }
        if let Some(kind) = foreign(source)?.filter(|kind| *kind != Foreign::Gguf) {
            return Err(TensorError::NotOfFormat { format: NAME, kind }.into());
        }
        let mut cursor = Cursor::new(source, MAX_HEADER);
        let magic: [u8; 4] = cursor.array("magic")?;
        if magic != MAGIC {
            let found = format!("{:?}", magic.escape_ascii().to_string());
            return Err(fault("magic", "a file begins with \"GGUF\"", found).into());
        }
        check_version(cursor.u32("version")?)?;
        let tensors = cursor.u64("number of tensors")?;
        let pairs = cursor.u64("number of keys")?;
        let metadata = read_metadata(&mut cursor, pairs)?;
        let alignment = alignment_of(&metadata)?;
        let described = read_tensors(&mut cursor, tensors)?;
        let data_start = cursor.position().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place(described, data_start, alignment, source.len())?;
        Ok(Header::new("GGUF tensors", data_start, tensors, Some(metadata))?)
    }

    fn check_shard(&self, header: &Header, number: u32, count: u32) -> Result<(), TensorError> {
        let value = |key| header.metadata().and_then(|metadata| metadata.get(key)?.as_u64());
        let Some(found) = value(SPLIT_COUNT) else { return Ok(()) };
        if found != u64::from(count) {
            let rule = "must be the number of files that the name says";
            return Err(fault(SPLIT_COUNT, rule, format!("{found}, the name says {count}")));
        }
        match value(SPLIT_NUMBER) {
            Some(found) if found.checked_add(1) != Some(u64::from(number)) => {
                let rule = "must be the number in the name less one";
                Err(fault(SPLIT_NUMBER, rule, format!("{found}, the name says {number} of {count}")))
            }
            _ => Ok(()),
        }
    }
}

/// A rule of the format that is broken.
fn fault(place: impl Into<String>, rule: &'static str, found: impl Into<String>) -> TensorError {
    TensorError::Malformed { format: NAME, place: place.into(), rule, found: found.into() }
}

fn check_version(version: u32) -> Result<(), TensorError> {
    match version {
        2 | 3 => Ok(()),
        _ if (1..=0xffff).contains(&version.swap_bytes()) => {
            let found =
                format!("a big-endian file of version {}; convert it to little-endian", version.swap_bytes());
            Err(fault("version", "files must be little-endian", found))
        }
        _ => Err(fault("version", "must be 2 or 3", version.to_string())),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, pairs: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for number in 0..pairs {
        let key = cursor.text("key", MAX_NAME, || format!("key {number}"))?;
        let kind = cursor.u32("type of a value")?;
        let value = value::read(cursor, &key, kind)?;
        cursor.charge((key.len() as u64).saturating_add(64))?;
        if metadata.contains_key(&key) {
            return Err(TensorError::DuplicateKey { what: "GGUF metadata", key }.into());
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment_of(metadata: &BTreeMap<String, Value>) -> Result<u64, TensorError> {
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => match value.as_u64().filter(|alignment| alignment.is_power_of_two()) {
            Some(alignment) => Ok(alignment),
            None => Err(fault(ALIGNMENT, "must be a power of two", shown(value))),
        },
    }
}

/// A value in an error: what may be as long as the header is counted instead.
fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) if text.len() > MAX_SHOWN => format!("a text of {} bytes", text.len()),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::List(list) => format!("a list of {} values", list.len()),
        value => format!("{value:?}"),
    }
}

/// Descriptions in the order of the file; offsets are from the start of the data.
fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    for number in 0..count {
        let name = cursor.text("name of a tensor", MAX_NAME, || format!("tensor {number}"))?;
        let quoted = || format!("tensor {name:?}");
        let rank = cursor.u32("number of dimensions")?;
        let Some(rank) = usize::try_from(rank).ok().filter(|rank| *rank <= MAX_RANK) else {
            return Err(fault(quoted(), "it must have at most 64 dimensions", rank.to_string()).into());
        };
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(cursor.u64("dimension")?);
        }
        shape.reverse();
        let kind = cursor.u32("type of a tensor")?;
        let dtype = types::dtype(kind).ok_or_else(|| {
            let rule = "its type must be one that this library knows";
            let found = match types::is_removed(kind) {
                true => format!("number {kind}, which GGUF has given up; quantise the model again"),
                false => format!("number {kind}, of a later version or a fork of GGUF"),
            };
            fault(quoted(), rule, found)
        })?;
        let offset = cursor.u64("offset of a tensor")?;
        let size = dtype.size_of(&shape).map_err(|error| match error {
            SizeFault::PartialBlock | SizeFault::PartialByte => {
                TensorError::PartialBlock { tensor: name.clone(), dtype, shape: shape.clone() }
            }
            SizeFault::Overflow => {
                TensorError::Overflow { tensor: name.clone(), dtype, shape: shape.clone() }
            }
        })?;
        let fixed = size_of::<(TensorInfo, [usize; 3])>().saturating_add(size_of_val::<[u64]>(&shape));
        cursor.charge(fixed.saturating_add(name.len()) as u64)?;
        tensors.push(TensorInfo { name, dtype, shape, offset, size });
    }
    Ok(tensors)
}

/// Moves the offsets to the start of the file. Each tensor begins where the one before it ends, on the next multiple of
/// the alignment.
fn place(
    described: Vec<TensorInfo>,
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<Arc<TensorInfo>>, TensorError> {
    let mut expected = 0u64;
    let mut placed = Vec::with_capacity(described.len());
    for mut info in described {
        if info.offset != expected {
            let rule = "its data must follow that of the tensor before it";
            let found = format!("offset {:#x}, {expected:#x} comes next", info.offset);
            return Err(fault(format!("tensor {:?}", info.name), rule, found));
        }
        let begin = data_start.saturating_add(info.offset);
        let end = begin.saturating_add(info.size);
        if end > file_len {
            return Err(TensorError::OutsideFile { tensor: info.name, begin, end, file_len });
        }
        // No overflow but of what is refused with the next tensor: the end lies in the file.
        expected =
            info.offset.saturating_add(info.size).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        info.offset = begin;
        placed.push(Arc::new(info));
    }
    Ok(placed)
}

#[cfg(test)]
mod tests;
