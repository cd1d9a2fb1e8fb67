//! Checkpoints of PyTorch (`torch.save`, since version 1.6): a zip archive of stored entries.
//!
//! ```text
//! NAME/data.pkl      a pickle: names, shapes, types, strides, and which storage each tensor is a view of
//! NAME/data/KEY      the bytes of a storage, on a multiple of 64
//! NAME/byteorder     "little", since version 2.1
//! ```
//!
//! The pickle is read without running anything of it ([`pickle`]). Tensors are what lies in the dictionary at its top,
//! and in the dictionaries and lists in there, with names that are joined by dots, as those of modules are; numbers and
//! texts beside them are metadata. Tensors may share bytes, as tied weights do.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod pickle;
mod rebuild;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::zip::{self, Archive};
use super::{Container, Header, HeaderSource, foreign};
use crate::format::index::CONTAINER_TORCH;
use crate::tensor::dtype::SizeFault;
use crate::tensor::metadata::Value as Meta;
use crate::tensor::{TensorError, TensorInfo};
use crate::{Foreign, Result};
use pickle::{Loaded, Value};
use rebuild::{RawTensor, Type};

const NAME: &str = "PyTorch checkpoint";
const WHAT: &str = "pickles of checkpoints";

/// Longest pickle: of a checkpoint with some 500,000 tensors.
const MAX_PICKLE: u64 = 64 << 20;

/// How many bytes a byte of a pickle may become: an empty dictionary, and its place on the stack.
const EXPANSION: u64 = 64;

/// How deep dictionaries may lie in each other, and the longest name.
const MAX_DEPTH: usize = 16;
const MAX_NAME: usize = 64 << 10;

type Fault = TensorError;

/// A rule of the format that is broken.
fn fault(place: impl Into<String>, rule: &'static str, found: impl Into<String>) -> Fault {
    TensorError::Malformed { format: NAME, place: place.into(), rule, found: found.into() }
}

/// The container of PyTorch's checkpoints.
pub(super) struct Torch;

impl Container for Torch {
    fn name(&self) -> &'static str {
        NAME
    }

    fn suffix(&self) -> &'static str {
        ".bin"
    }

    fn code(&self) -> u32 {
        CONTAINER_TORCH
    }

    /// Many other files end with `.bin`.
    fn promises(&self, name: &[u8]) -> bool {
        const STEM: &[u8] = b"pytorch_model";
        name.ends_with(b".bin") && name.windows(STEM.len()).any(|part| part == STEM)
    }

    /// An archive whose first entry is the pickle: that is what `torch.save` writes first.
    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        zip::first_name(head).is_some_and(|name| name.ends_with(b"/data.pkl"))
    }

    fn parse(&self, source: &dyn HeaderSource) -> Result<Header> {
        if source.is_empty() {
            return Err(TensorError::Empty.into());
        }
        match foreign(source)? {
            Some(Foreign::Zip) => {}
            Some(Foreign::Pickle) => {
                let what = "it was written by PyTorch before 1.6, or with _use_new_zipfile_serialization=False: \
                            torch.load it and torch.save it again";
                return Err(TensorError::Unsupported { format: NAME, place: "the file".into(), what }.into());
            }
            Some(kind) => return Err(TensorError::NotOfFormat { format: NAME, kind }.into()),
            None => {
                return Err(fault("the file", "a checkpoint is a zip archive", "other first bytes").into());
            }
        }
        let archive = Archive::read(NAME, source)?;
        let pickle = archive.names().find(|name| name.ends_with("/data.pkl")).map(str::to_owned);
        let Some(pickle) = pickle else {
            let what =
                "the archive has no data.pkl: it is no checkpoint, or one of TorchScript's older forms";
            return Err(TensorError::Unsupported { format: NAME, place: "the file".into(), what }.into());
        };
        let folder = pickle.trim_end_matches("data.pkl");
        check_byte_order(&archive, source, folder)?;
        let loaded = load(&archive, source, &pickle)?;
        let Found { tensors, metadata, .. } = Walk::new(&loaded, source).run()?;
        let mut placed = Vec::with_capacity(tensors.len());
        let mut storages: BTreeMap<&str, Option<Range<u64>>> = BTreeMap::new();
        for (name, tensor) in &tensors {
            let key = &*tensor.storage.key;
            let range = match storages.get(key) {
                Some(range) => range.clone(),
                None => {
                    let range = archive.find(&format!("{folder}data/{key}"))?;
                    storages.insert(key, range.clone());
                    range
                }
            };
            let Some(range) = range else {
                let rule = "its storage must be in the archive";
                return Err(fault(format!("tensor {name:?}"), rule, format!("no data/{key}")).into());
            };
            placed.push(Arc::new(place(name, tensor, range)?));
        }
        let data_start = placed.iter().map(|info| info.offset).min().unwrap_or_else(|| source.len());
        let header = Header::new("checkpoint", data_start, placed, Some(metadata))?;
        source.charge(WHAT, header.cost())?;
        Ok(header)
    }
}

fn check_byte_order(archive: &Archive<'_>, source: &dyn HeaderSource, folder: &str) -> Result<()> {
    let Some(range) = archive.find(&format!("{folder}byteorder"))? else { return Ok(()) };
    let mut order = [0; 6];
    if range.end.saturating_sub(range.start) == order.len() as u64 {
        source.read(range.start, &mut order)?;
    }
    if &order == b"little" {
        return Ok(());
    }
    let what = "its numbers are big-endian; save it on a little-endian machine";
    Err(TensorError::Unsupported { format: NAME, place: "byteorder".into(), what }.into())
}

fn load(archive: &Archive<'_>, source: &dyn HeaderSource, name: &str) -> Result<Loaded> {
    let range = archive.find(name)?.unwrap_or(0..0);
    let len = range.end.saturating_sub(range.start);
    if len > MAX_PICKLE {
        return Err(fault("data.pkl", "it must have at most 64 MiB", format!("{len:#x} bytes")).into());
    }
    source.charge(WHAT, len.saturating_mul(EXPANSION))?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    source.read(range.start, &mut bytes)?;
    Ok(pickle::load(&bytes)?)
}

/// What a pickle has of use.
#[derive(Default)]
struct Found<'a> {
    tensors: Vec<(String, &'a RawTensor)>,
    metadata: BTreeMap<String, Meta>,
}

/// Finds the tensors below the top. A dictionary that is reached by several ways is walked each time, as modules that
/// share a part have its tensors under each name; all steps together are bounded.
struct Walk<'a> {
    loaded: &'a Loaded,
    source: &'a dyn HeaderSource,
    /// Names, values, and how deep they lie.
    left: Vec<(String, &'a Value, usize)>,
    steps: usize,
    most: usize,
    found: Found<'a>,
}

impl<'a> Walk<'a> {
    fn new(loaded: &'a Loaded, source: &'a dyn HeaderSource) -> Self {
        let lens = loaded.dicts.iter().map(Vec::len).chain(loaded.lists.iter().map(Vec::len));
        let entries = lens.fold(16, usize::saturating_add);
        // Honest checkpoints share parameters and some modules.
        let most = entries.saturating_mul(4);
        let left = vec![(String::new(), &loaded.top, 0)];
        Self { loaded, source, left, steps: 0, most, found: Found::default() }
    }

    fn run(mut self) -> Result<Found<'a>> {
        while let Some((name, value, depth)) = self.left.pop() {
            match value {
                Value::Tensor(tensor) => {
                    let name = if depth == 0 { String::from("tensor") } else { name };
                    self.found.tensors.push((name, tensor));
                }
                Value::Dict(number) => {
                    for (key, value) in self.loaded.dicts.get(*number).into_iter().flatten() {
                        match key {
                            Value::Text(key) => self.push(&name, key, value, depth)?,
                            Value::Int(key) => self.push(&name, &key.to_string(), value, depth)?,
                            _ => {}
                        }
                    }
                }
                Value::List(number) => {
                    for (at, value) in self.loaded.lists.get(*number).into_iter().flatten().enumerate() {
                        self.push(&name, &at.to_string(), value, depth)?;
                    }
                }
                Value::Tuple(values, _) => {
                    for (at, value) in values.iter().enumerate() {
                        self.push(&name, &at.to_string(), value, depth)?;
                    }
                }
                Value::Bool(value) => self.note(name, Meta::Bool(*value)),
                Value::Int(value) => self.note(name, Meta::Signed(*value)),
                Value::Float(value) => self.note(name, Meta::Float(*value)),
                Value::Text(text) => self.note(name, Meta::Text(text.to_string())),
                Value::None | Value::Call(_) | Value::Type(_) | Value::Storage(_) | Value::Opaque => {}
            }
        }
        Ok(self.found)
    }

    fn push(&mut self, above: &str, key: &str, value: &'a Value, depth: usize) -> Result<()> {
        let len = above.len().saturating_add(key.len()).saturating_add(1);
        let depth = depth.saturating_add(1);
        self.steps = self.steps.saturating_add(1);
        if self.steps > self.most || depth > MAX_DEPTH || len > MAX_NAME {
            let rule =
                "dictionaries must lie at most 16 deep in each other, and not hold each other many times";
            let shown: String = above.chars().take(40).collect();
            return Err(
                fault("data.pkl", rule, format!("{shown:?}, {depth} deep, entry {}", self.steps)).into()
            );
        }
        self.source.charge(WHAT, (len as u64).saturating_add(64))?;
        let name = if above.is_empty() { key.to_owned() } else { [above, ".", key].concat() };
        self.left.push((name, value, depth));
        Ok(())
    }

    fn note(&mut self, name: String, value: Meta) {
        self.found.metadata.insert(name, value);
    }
}

/// Where a tensor lies in the file: it has to be in one piece there, with its last dimension varying fastest.
fn place(name: &str, tensor: &RawTensor, storage: Range<u64>) -> Result<TensorInfo, Fault> {
    let quoted = || format!("tensor {name:?}");
    let Type::Of(dtype) = tensor.dtype else {
        let what = "its type has no counterpart here (quantised and 128-bit complex types have none)";
        return Err(TensorError::Unsupported { format: NAME, place: quoted(), what });
    };
    let shape = tensor.shape.clone();
    let overflow = || TensorError::Overflow { tensor: name.to_owned(), dtype, shape: shape.clone() };
    let size = dtype.size_of(&shape).map_err(|error| match error {
        SizeFault::Overflow => overflow(),
        SizeFault::PartialByte | SizeFault::PartialBlock => {
            TensorError::PartialByte { tensor: name.to_owned(), dtype, shape: shape.clone() }
        }
    })?;
    let mut wanted = 1u64;
    for (dim, stride) in shape.iter().zip(&tensor.strides).rev() {
        if *dim != 1 && *stride != wanted && size > 0 {
            let what = "it is a view that is not contiguous; save it again after .contiguous()";
            return Err(TensorError::Unsupported { format: NAME, place: quoted(), what });
        }
        wanted = wanted.saturating_mul(*dim);
    }
    // All of these types have whole bytes.
    let element = dtype.bytes_of(1).unwrap_or(1);
    let begin = tensor.offset.checked_mul(element).and_then(|offset| storage.start.checked_add(offset));
    let range = begin.and_then(|begin| Some(begin..begin.checked_add(size)?)).ok_or_else(overflow)?;
    if range.end > storage.end {
        let rule = "it must lie in its storage";
        let found = format!(
            "{:#x}..{:#x}, the storage is {:#x}..{:#x}",
            range.start, range.end, storage.start, storage.end
        );
        return Err(fault(quoted(), rule, found));
    }
    Ok(TensorInfo { name: name.to_owned(), dtype, shape, offset: range.start, size })
}

#[cfg(test)]
mod tests;
