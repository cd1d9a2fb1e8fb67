//! Arrays of numpy: `.npy` files, and `.npz` archives of them that are not compressed.
//!
//! ```text
//! 0x93 "NUMPY" | u8 major, u8 minor | u16 (version 1) or u32 length | a dictionary of Python as text | the elements
//! {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
//! ```
//!
//! The one array of a `.npy` file is named `array`; those of an archive have the names of its entries without `.npy`.
//! Arrays of Python's objects, which are pickles, are not touched.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ops::Range;
use std::sync::Arc;

use super::zip::{self, Archive};
use super::{Container, Header, HeaderSource, foreign};
use crate::format::index::{CONTAINER_NPY, CONTAINER_NPZ};
use crate::tensor::dtype::SizeFault;
use crate::tensor::{Dtype, TensorError, TensorInfo};
use crate::{Foreign, Result};

const NPY: &str = "npy";
const NPZ: &str = "npz";
const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest dictionary: numpy itself stops at 10,000 bytes unless it is told otherwise.
const MAX_HEADER: usize = 64 << 10;
/// Most dimensions: twice those of numpy.
const MAX_RANK: usize = 64;

/// The container of single arrays.
pub(super) struct Npy;

/// The container of archives.
pub(super) struct Npz;

impl Container for Npy {
    fn name(&self) -> &'static str {
        NPY
    }

    fn suffix(&self) -> &'static str {
        ".npy"
    }

    fn code(&self) -> u32 {
        CONTAINER_NPY
    }

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
        let info = read(NPY, "array", source, 0..source.len())?;
        let header = Header::new(NPY, info.offset, vec![Arc::new(info)], None)?;
        source.charge("headers of arrays", header.cost())?;
        Ok(header)
    }
}

impl Container for Npz {
    fn name(&self) -> &'static str {
        NPZ
    }

    fn suffix(&self) -> &'static str {
        ".npz"
    }

    fn code(&self) -> u32 {
        CONTAINER_NPZ
    }

    fn has_lists(&self) -> bool {
        false
    }

    /// An archive whose first entry is an array.
    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        zip::first_name(head).is_some_and(|name| name.ends_with(b".npy"))
    }

    fn parse(&self, source: &dyn HeaderSource) -> Result<Header> {
        if source.is_empty() {
            return Err(TensorError::Empty.into());
        }
        if let Some(kind) = foreign(source)?.filter(|kind| *kind != Foreign::Zip) {
            return Err(TensorError::NotOfFormat { format: NPZ, kind }.into());
        }
        let archive = Archive::read(NPZ, source)?;
        let mut arrays = Vec::new();
        for entry in archive.names() {
            // Other entries are no arrays.
            let Some(name) = entry.strip_suffix(".npy") else { continue };
            let range = archive.find(entry)?.unwrap_or(0..0);
            arrays.push(Arc::new(read(NPZ, name, source, range)?));
        }
        let start = arrays.iter().map(|info| info.offset).min().unwrap_or_else(|| source.len());
        let header = Header::new(NPZ, start, arrays, None)?;
        source.charge("headers of arrays", header.cost())?;
        Ok(header)
    }
}

/// An array of a container, for errors.
struct Array<'a> {
    format: &'static str,
    name: &'a str,
}

impl Array<'_> {
    fn place(&self) -> String {
        format!("array {:?}", self.name)
    }

    fn fault(&self, rule: &'static str, found: impl Into<String>) -> TensorError {
        TensorError::Malformed { format: self.format, place: self.place(), rule, found: found.into() }
    }

    fn unsupported(&self, what: &'static str) -> TensorError {
        TensorError::Unsupported { format: self.format, place: self.place(), what }
    }
}

/// Reads the header of the array in a range of the file.
fn read(
    format: &'static str,
    name: &str,
    source: &dyn HeaderSource,
    range: Range<u64>,
) -> Result<TensorInfo> {
    let array = Array { format, name };
    let len = range.end.saturating_sub(range.start);
    let mut start = [0; 12];
    let head_len = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
    source.read(range.start, start.get_mut(..head_len).unwrap_or_default())?;
    if !start.starts_with(MAGIC) {
        let found = start.get(..MAGIC.len()).unwrap_or_default().escape_ascii().to_string();
        return Err(array.fault("it begins with \\x93NUMPY", found).into());
    }
    let [.., major, _minor, a, b, c, d] = start;
    let (text_len, text_start) = match major {
        1 => (u32::from(u16::from_le_bytes([a, b])), 10u64),
        2 | 3 => (u32::from_le_bytes([a, b, c, d]), 12),
        other => return Err(array.fault("its version must be 1, 2 or 3", other.to_string()).into()),
    };
    let data = text_start.saturating_add(text_len.into());
    let text_len = usize::try_from(text_len).unwrap_or(usize::MAX);
    if text_len > MAX_HEADER || data > len {
        let rule = "its header must lie in the file, and have at most 64 KiB; is the file cut off?";
        return Err(array.fault(rule, format!("{text_len} bytes of {len:#x}")).into());
    }
    source.charge("headers of arrays", text_len as u64)?;
    let mut text = vec![0; text_len];
    source.read(range.start.saturating_add(text_start), &mut text)?;
    let text =
        std::str::from_utf8(&text).map_err(|_| array.fault("its header must be text", "other bytes"))?;
    let (dtype, shape) = describe(&array, text)?;
    let size = dtype.size_of(&shape).map_err(|error| match error {
        SizeFault::Overflow => TensorError::Overflow { tensor: name.to_owned(), dtype, shape: shape.clone() },
        SizeFault::PartialByte | SizeFault::PartialBlock => {
            TensorError::PartialByte { tensor: name.to_owned(), dtype, shape: shape.clone() }
        }
    })?;
    if len.saturating_sub(data) != size {
        let rule = "it must have as many bytes as its type and shape say; is the file cut off?";
        return Err(array.fault(rule, format!("{}, must be {size}", len.saturating_sub(data))).into());
    }
    let offset = range.start.saturating_add(data);
    Ok(TensorInfo { name: name.to_owned(), dtype, shape, offset, size })
}

/// Reads the dictionary.
fn describe(array: &Array<'_>, text: &str) -> Result<(Dtype, Vec<u64>), TensorError> {
    let shown = || text.chars().take(80).collect::<String>();
    let wrong =
        || array.fault("its header must be a dictionary with descr, fortran_order and shape", shown());
    let mut rest = text.trim().strip_prefix('{').ok_or_else(wrong)?.trim_start();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.starts_with('}') {
        let (key, behind) = quoted(rest).ok_or_else(wrong)?;
        let value = behind.trim_start().strip_prefix(':').ok_or_else(wrong)?.trim_start();
        rest = match key {
            "descr" if value.starts_with('[') => {
                return Err(
                    array.unsupported("its elements are structures; save each field as an array of its own")
                );
            }
            "descr" => {
                let (found, behind) = quoted(value).ok_or_else(wrong)?;
                descr = Some(found);
                behind
            }
            "fortran_order" => {
                fortran = Some(value.starts_with("True"));
                let behind = value.strip_prefix("True").or_else(|| value.strip_prefix("False"));
                behind.ok_or_else(wrong)?
            }
            "shape" => {
                let (inside, behind) =
                    value.strip_prefix('(').and_then(|value| value.split_once(')')).ok_or_else(wrong)?;
                shape = Some(dimensions(inside).ok_or_else(wrong)?);
                behind
            }
            _ => return Err(wrong()),
        }
        .trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else { return Err(wrong()) };
    let dtype = dtype(descr).ok_or_else(|| {
        array.unsupported(match descr.as_bytes() {
            [b'>', ..] => "its numbers are big-endian; save array.astype(array.dtype.newbyteorder('<'))",
            [_, b'O', ..] => "its elements are Python's objects, which lie in a pickle",
            _ => "its type has no counterpart here (types of ml_dtypes are saved without their names: save a view)",
        })
    })?;
    // Columns that follow each other are rows where there is one of either.
    if fortran && shape.iter().filter(|dim| **dim != 1).count() > 1 && !shape.contains(&0) {
        return Err(array.unsupported("its columns follow each other; save numpy.ascontiguousarray(array)"));
    }
    Ok((dtype, shape))
}

/// A text in quotes at the beginning, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|first| matches!(first, '\'' | '"'))?;
    text.get(1..)?.split_once(quote)
}

/// Numbers with commas in between; old versions of Python write an `L` behind them.
fn dimensions(text: &str) -> Option<Vec<u64>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let shape: Option<Vec<u64>> =
        parts.map(|part| part.strip_suffix('L').unwrap_or(part).parse().ok()).collect();
    shape.filter(|shape| shape.len() <= MAX_RANK)
}

fn dtype(descr: &str) -> Option<Dtype> {
    Some(match descr {
        "|b1" => Dtype::BOOL,
        "|u1" => Dtype::U8,
        "|i1" => Dtype::I8,
        "<u2" => Dtype::U16,
        "<i2" => Dtype::I16,
        "<u4" => Dtype::U32,
        "<i4" => Dtype::I32,
        "<u8" => Dtype::U64,
        "<i8" => Dtype::I64,
        "<f2" => Dtype::F16,
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        "<c8" => Dtype::C64,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "numpy_tests.rs"]
mod tests;
