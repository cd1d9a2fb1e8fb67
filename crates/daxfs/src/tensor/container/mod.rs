//! Containers: formats of files that hold tensors.
//!
//! Everything else asks [`ContainerKind`]; what a format looks like is known in its own file alone. A new one is a
//! file in this folder with an implementation of [`Container`], a row in [`CONTAINERS`], and a code in
//! [`crate::format::index`].

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod gguf;
mod numpy;
pub mod safetensors;
mod torch;
mod zip;

use std::fmt;
use std::sync::Arc;

use super::TensorError;
use super::cache::Place;
use super::header::Header;
use crate::{Error, File, Foreign, Result};

/// A format of files that hold tensors.
pub(super) trait Container: Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// How names of its files end, with the dot.
    fn suffix(&self) -> &'static str;

    /// Its code in the index.
    fn code(&self) -> u32;

    /// Whether the last component of a path promises such a file.
    fn promises(&self, name: &[u8]) -> bool {
        name.ends_with(self.suffix().as_bytes())
    }

    /// Whether lists of shards of this format are written: `NAME.SUFFIX.index.json`.
    fn has_lists(&self) -> bool {
        true
    }

    /// Whether a file of `len` bytes that begins with `head` can be one: at least [`ContainerKind::HEAD`] bytes, fewer of a shorter file.
    fn recognises(&self, head: &[u8], len: u64) -> bool;

    /// Reads the header and checks it as a whole. What is read and made is charged to the source.
    ///
    /// # Errors
    /// [`Error::Tensor`] with the rule that is broken, or what the source returns.
    fn parse(&self, source: &dyn HeaderSource) -> Result<Header>;

    /// Checks that a file is shard `number` of `count`, from 1 on, if it says anything of that.
    ///
    /// # Errors
    /// The rule that is broken.
    fn check_shard(&self, _header: &Header, _number: u32, _count: u32) -> Result<(), TensorError> {
        Ok(())
    }
}

/// All containers. Where a directory has several, those of the first are meant.
static CONTAINERS: [&dyn Container; 5] =
    [&safetensors::Safetensors, &gguf::Gguf, &torch::Torch, &numpy::Npz, &numpy::Npy];

/// Bytes that a header is parsed from.
pub trait HeaderSource {
    /// Bytes of the file.
    fn len(&self) -> u64;

    /// True for a file without bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, or are not there.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Told of `bytes` of memory or work before they are spent on `what`.
    ///
    /// # Errors
    /// To end the parsing.
    fn charge(&self, what: &'static str, bytes: u64) -> Result<()>;
}

impl HeaderSource for File {
    fn len(&self) -> u64 {
        File::len(self)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_exact(self, offset, buffer)
    }

    fn charge(&self, what: &'static str, bytes: u64) -> Result<()> {
        self.image().charge(what, bytes)
    }
}

/// The first bytes of a file of `len` bytes, without the rest.
pub(super) struct Beginning<'a> {
    pub bytes: &'a [u8],
    pub len: u64,
}

impl HeaderSource for Beginning<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        let range = offset..offset.saturating_add(buffer.len() as u64);
        let len = self.bytes.len() as u64;
        buffer.copy_from_slice(found.ok_or(Error::OutsideFile { path: Vec::new(), range, len })?);
        Ok(())
    }

    fn charge(&self, _what: &'static str, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

/// Fills `dst` from a file, which must hold that many bytes.
pub(crate) fn read_exact(file: &File, mut offset: u64, mut dst: &mut [u8]) -> Result<()> {
    while !dst.is_empty() {
        let count = file.read_at(offset, dst)?;
        if count == 0 {
            let end = offset.saturating_add(dst.len() as u64);
            let range = offset..end;
            return Err(Error::OutsideFile { path: file.path(), range, len: file.len() });
        }
        dst = &mut dst[count..];
        offset = offset.saturating_add(count as u64);
    }
    Ok(())
}

/// A kind of container, such as safetensors, GGUF, or a checkpoint of PyTorch.
#[derive(Clone, Copy)]
pub struct ContainerKind(&'static dyn Container);

impl ContainerKind {
    /// All kinds. Where a directory has tensors of several, those of the first are meant.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        CONTAINERS.iter().map(|container| Self(*container))
    }

    /// What people call it: `"safetensors"`, `"GGUF"`, `"PyTorch checkpoint"`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// How names of its files end, with the dot.
    pub fn suffix(self) -> &'static str {
        self.0.suffix()
    }

    /// Whether lists of shards of this format are written: `NAME.SUFFIX.index.json`.
    pub(super) fn has_lists(self) -> bool {
        self.0.has_lists()
    }

    /// Its code in the index; see [`crate::format::index::CONTAINER_SAFETENSORS`].
    pub fn code(self) -> u32 {
        self.0.code()
    }

    /// The kind with this code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::all().find(|kind| kind.code() == code)
    }

    /// The kind that a name, or the last component of a path, promises.
    pub fn of_name(name: &[u8]) -> Option<Self> {
        let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Self::all().find(|kind| kind.0.promises(name))
    }

    /// Bytes that [`ContainerKind::of_head`] looks at.
    pub const HEAD: usize = 256;

    /// The kind of a file of `len` bytes that begins with `head`; the first [`ContainerKind::HEAD`] bytes decide.
    pub fn of_head(head: &[u8], len: u64) -> Option<Self> {
        Self::all().find(|kind| kind.0.recognises(head, len))
    }

    /// The kind of a file: by its name, or by its first bytes where the name says nothing. What neither tells is taken
    /// for the first kind, which says what is wrong with it.
    ///
    /// # Errors
    /// As for [`File::read_at`].
    pub fn of_file(file: &File) -> Result<Self> {
        if let Some(kind) = Self::of_name(&file.path()) {
            return Ok(kind);
        }
        let mut head = [0; Self::HEAD];
        let len = file.read_at(0, &mut head)?;
        let found = Self::of_head(head.get(..len).unwrap_or_default(), file.len());
        Ok(found.unwrap_or(Self(CONTAINERS[0])))
    }

    /// Reads a header and checks it as a whole: every tensor lies in the file, and no two share bytes. Time and memory
    /// are linear in the header, sorting by name aside.
    ///
    /// # Errors
    /// [`Error::Tensor`] with the rule that is broken, without the file's name; or what the source returns.
    pub fn parse(self, source: &dyn HeaderSource) -> Result<Header> {
        self.0.parse(source)
    }

    /// Checks that a header is that of shard `number` of `count`, from 1 on, if it says anything of that.
    pub(super) fn check_shard(self, header: &Header, number: u32, count: u32) -> Result<(), TensorError> {
        self.0.check_shard(header, number, count)
    }

    /// Its place among all kinds.
    pub(super) fn rank(self) -> usize {
        Self::all().position(|kind| kind == self).unwrap_or(usize::MAX)
    }
}

impl PartialEq for ContainerKind {
    fn eq(&self, other: &Self) -> bool {
        self.code() == other.code()
    }
}

impl Eq for ContainerKind {}

impl fmt::Debug for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The header of a file, parsed on first use of the bytes that it has.
pub(super) fn header_of(file: &File) -> Result<Arc<Header>> {
    header_as(ContainerKind::of_file(file)?, file)
}

/// The header of a file that is of this kind.
pub(super) fn header_as(kind: ContainerKind, file: &File) -> Result<Arc<Header>> {
    let cache = file.image().tensor_cache();
    let parse = || match kind.parse(file) {
        Err(Error::Tensor(fault)) => Err(fault.in_file(&file.path()).into()),
        parsed => parsed,
    };
    cache.headers.get_or_parse((Place::of(file), kind.code()), || file.path(), parse)
}

/// What a file is instead, when its beginning tells: for containers that do not recognise it.
pub(super) fn foreign(source: &dyn HeaderSource) -> Result<Option<Foreign>> {
    let mut head = [0; Foreign::HEAD];
    let len = usize::try_from(source.len()).unwrap_or(usize::MAX).min(head.len());
    let Some(head) = head.get_mut(..len) else { return Ok(None) };
    source.read(0, head)?;
    Ok(Foreign::of(head))
}
