//! The metadata of an image, copied once and validated; nothing here is ever read from the image again.
//!
//! [`Reader`] is the one place that copies out of the region, under the caller's limit. [`base`] checks the inode
//! table and reads base directories; [`overlay`] (version 8) and [`branch`] (version 5) lay later changes over
//! them; [`tree`] walks from the root, refuses what is no tree, and builds the path table.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod again;
mod base;
mod branch;
mod buckets;
mod build;
mod changing;
mod overlay;
mod pieces;
mod tree;
mod written;

use std::ops::Range;

use dmabuf::SharedBytes;
use zerocopy::FromBytes;

pub(crate) use tree::{Tree, components};

use crate::Rule;
use crate::budget::Budget;
use crate::error::{Error, Result};
use crate::foreign::Foreign;
use crate::format::{self, Generation};
use crate::generation::Stamp;
use crate::superblock::{Superblock, bounded, invalid};

/// What was laid over the base image to get the tree that a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewKind {
    /// The base image as it was packed; an overlay, if there is one, is empty.
    Base,
    /// The overlay's entries were applied (version 8).
    Overlay {
        /// Buckets in use.
        entries: u64,
    },
    /// The log of the branch "main" was applied (version 5).
    Branch {
        /// Entries of the log.
        entries: u64,
    },
}

/// Where the bytes of a file lie. Offsets are absolute in the region that holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing to read: an empty file, a directory, a special file.
    Empty,
    /// One extent of the image.
    Image(Range<u64>),
    /// One extent of the backing file.
    Backing(Range<u64>),
    /// The target of a symbolic link, in the tree's arena.
    Target(Range<u32>),
    /// What a directory holds.
    Directory(Directory),
    /// Pieces in order and without gaps.
    Pieces(Box<[Piece]>),
    /// Not in the image, and no backing file was given.
    Elsewhere(&'static str),
}

/// A directory of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Keyed hash of its path.
    hash: u64,
    /// Its children, as a range of the tree's nodes level by level.
    children: Range<u32>,
}

/// Part of a file: see [`File::pieces`](crate::File::pieces).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// First byte in the file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Where they are.
    pub source: PieceSource,
}

/// Largest size of a file that was changed after packing: what a kernel can write (0xffffe pages), or what is
/// there anyway. Without a bound one inode could promise 2^64 zeros to everybody who hashes it.
fn check_changed_size(ino: u64, size: u64, packed: u64, region: u64, page: u64) -> Result<()> {
    const PAGES: u64 = 0xf_fffe;
    if size > PAGES.saturating_mul(page).max(packed).max(region) {
        return Err(invalid(format!("inode {ino}"), Rule::ChangedSize, format_args!("{size:#x} bytes")));
    }
    Ok(())
}

/// Where a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PieceSource {
    /// At this offset of the image.
    Image(u64),
    /// At this offset of the backing file.
    Backing(u64),
    /// A hole.
    Zeros,
}

/// Metadata and place of one inode, validated.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub metadata: crate::Metadata,
    pub content: Content,
}

/// Copies metadata out of the region, counting every byte against the limit.
pub(crate) struct Reader<'a> {
    view: SharedBytes<'a>,
    budget: Budget,
    /// Whether others may write to the region meanwhile.
    live: bool,
}

impl<'a> Reader<'a> {
    pub fn new(view: SharedBytes<'a>, limit: u64, live: bool) -> Self {
        Self { view, budget: Budget::new(limit, 0), live }
    }

    /// Whether others may write to the region meanwhile.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Bytes that count against the limit so far.
    pub fn charged(&self) -> u64 {
        self.budget.used()
    }

    /// Takes back what was charged since `charged`: it was thrown away.
    pub fn forget(&mut self, charged: u64) {
        self.budget.reset(charged);
    }

    /// Looks at bytes once more, which are only compared and not kept.
    pub fn look_again(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let part = self.view.get(offset, buffer.len() as u64)?;
        Ok(part.read_at(0, buffer)?)
    }

    /// Bytes of the region.
    pub fn len(&self) -> u64 {
        self.view.len() as u64
    }

    /// Counts `len` bytes that are about to be copied or built for `place`.
    pub fn charge(&mut self, place: impl FnOnce() -> String, len: u64) -> Result<()> {
        self.budget.charge(place, len)
    }

    /// Copies a range that was bounds-checked before, replacing the contents of `buffer`.
    pub fn copy(
        &mut self,
        place: impl FnOnce() -> String,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.charge(place, len)?;
        buffer.clear();
        // The charge bounds the length, but only the region's own bound makes it safe to allocate.
        let view = self.view.get(range.start, len)?;
        buffer.resize(view.len(), 0);
        view.read_at(0, buffer)?;
        Ok(())
    }

    /// Copies one struct.
    pub fn read<T: FromBytes, const N: usize>(&mut self, place: &str, offset: u64) -> Result<T> {
        const { assert!(size_of::<T>() == N) };
        let range = bounded(place, offset, N as u64, self.len(), "region")?;
        self.charge(|| place.to_owned(), N as u64)?;
        let mut bytes = [0; N];
        self.view.read_at(range.start, &mut bytes)?;
        T::read_from_bytes(&bytes).map_err(|_| unreachable_size(place, N))
    }
}

/// `read_from_bytes` fails only for a wrong size, which the constant above excludes; an error all the same.
fn unreachable_size(place: &str, len: usize) -> Error {
    Error::TooSmall { len: place.len() as u64, need: len as u64 }
}

/// Which rules of the kernel's validation have to hold besides those of a sound image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strict {
    /// None.
    No,
    /// All.
    Kernel,
    /// All but the one that looks for the contents of split images in the base image.
    Split,
}

/// Everything that was copied and checked.
pub(crate) struct Snapshot {
    pub superblock: Superblock,
    pub tree: Tree,
    pub view_kind: ViewKind,
    pub stamp: Stamp,
    /// What is left for all that is read of the image later.
    pub budget: Budget,
}

/// Copies and validates the metadata of an image. `backing_len` is the size of the backing file, if one was given;
/// `page` is the page size of the kernels that strictness is about; `live` says that others may write to the region
/// meanwhile.
pub(crate) fn take(
    view: SharedBytes<'_>,
    backing_len: Option<u64>,
    strict: Strict,
    page: u64,
    limit: u64,
    live: bool,
) -> Result<Snapshot> {
    let mut reader = Reader::new(view, limit, live);
    let block_size = format::SUPERBLOCK_SIZE;
    if reader.len() < block_size as u64 {
        let too_small = Error::TooSmall { len: reader.len(), need: block_size as u64 };
        return Err(Foreign::of_view(view).map_or(too_small, |kind| Error::Foreign { kind }));
    }
    let mut block = [0; format::SUPERBLOCK_SIZE];
    view.read_at(0, &mut block)?;
    if !block.starts_with(&format::MAGIC.to_le_bytes())
        && let Some(kind) = Foreign::of(&block[..Foreign::HEAD])
    {
        return Err(Error::Foreign { kind });
    }
    // The metadata is read after the superblock that tells where it lies, also from memory that is not cached.
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    if let ([0, 0, 0, 0, ..], Some(record)) = (&block, Generation::find(&block)) {
        return Err(Error::BeingReplaced { generation: record.number.get() });
    }
    let stamp = Stamp::of(&block);
    let page = (strict != Strict::No).then_some(page);
    let superblock = Superblock::parse(&block, reader.len(), page, &mut |place, offset| {
        let end = offset.saturating_add(block_size as u64).min(view.len() as u64);
        let mut buffer = Vec::new();
        reader.copy(|| place.to_owned(), offset.min(end)..end, &mut buffer)?;
        Ok(buffer)
    })?;
    let mut base = base::Base::read(&mut reader, &superblock, backing_len, strict)?;
    if strict != Strict::No && (superblock.overlay.is_some() || superblock.branch_table.is_some()) {
        // The kernel's validation looks at every directory of the base image, also at one that was deleted later.
        base.check_directories(&mut reader)?;
    }
    if superblock.overlay.is_some() {
        let resolved = changing::resolve(&mut reader, &superblock, &mut base)?;
        if let Some((tree, entries)) = resolved {
            let view_kind = ViewKind::Overlay { entries };
            return Ok(Snapshot { superblock, tree, view_kind, stamp, budget: reader.budget });
        }
    }
    if let Some(log) = branch::find_main_log(&mut reader, &superblock)? {
        let mut source = branch::Replayed::new(&mut reader, base, log)?;
        let entries = source.entries();
        let tree = build::build(&mut reader, &mut source, &superblock, false)?;
        let view_kind = if entries > 0 { ViewKind::Branch { entries } } else { ViewKind::Base };
        return Ok(Snapshot { superblock, tree, view_kind, stamp, budget: reader.budget });
    }
    let mut source = base;
    let tree = build::build(&mut reader, &mut source, &superblock, true)?;
    Ok(Snapshot { superblock, tree, view_kind: ViewKind::Base, stamp, budget: reader.budget })
}
