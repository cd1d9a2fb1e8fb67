//! The EROFS view of an image: a second file system over the same data blocks, which every stock Linux mounts.
//!
//! A view is a function of the image's tree and of what DAXFS cannot hold: times and capabilities. So there is one way
//! to make it, for the packer that writes it and for the reader that compares it: [`Image::check_erofs`] makes it anew,
//! and refuses a view that differs in one bit. Of a view as it lies there only its header, its capabilities and its
//! times are taken.
//!
//! | in the image | in the view |
//! |---|---|
//! | names, types, modes, owners, sizes, targets | the same |
//! | link counts | the same; a root has no `/.daxfs`, which is not shown |
//! | files that share an extent (`--dedupe`), of one mode and owner | one inode with all names, the time of the first |
//! | files that share an extent, of other modes or owners | an inode each; all but the first have a last block of their own |
//!
//! The last two are for kernels that map the memory itself (DAX): they warn where two inodes map one page. An inode that
//! has a last block of its own is read through the page cache.
//!
//! [`Image::check_erofs`]: crate::Image::check_erofs

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod check;
mod layout;
mod mount;
mod render;

use std::ops::Range;

pub use layout::Layout;

use crate::error::Result;
use crate::format::erofs as raw;

/// A point in time, as `stat(2)` gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanoseconds: u32,
}

/// The value of `security.capability`, 20 or 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    value: [u8; 24],
    len: u8,
}

impl Capability {
    /// `None` unless it has the length of one.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok().filter(|len| [20, 24].contains(len))?;
        let mut value = [0; 24];
        value.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { value, len })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.value.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Its record.
    fn record(&self, ino: u32) -> raw::Capability {
        raw::Capability { ino: ino.into(), len: u32::from(self.len).into(), value: self.value }
    }

    /// `None` for a record that no packer writes.
    fn of(record: &raw::Capability) -> Option<Self> {
        let len = usize::try_from(record.len.get()).ok()?;
        let (bytes, rest) = record.value.split_at_checked(len)?;
        if rest.iter().any(|byte| *byte != 0) { None } else { Self::new(bytes) }
    }
}

/// What an image and its view have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a block: those of the image.
    pub block_size: u32,
    /// Whether inodes have times; otherwise all of them are 0, as DAXFS shows them.
    pub times: bool,
}

/// What a name leads to.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A file, contiguous.
    File {
        /// First byte, from the start of the image.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link, with its target.
    Link(&'a [u8]),
    /// A directory, with the place of its parent.
    Directory(u32),
    /// A FIFO, a socket or a device, whose number DAXFS does not have.
    Special,
}

/// An inode of the tree.
#[derive(Debug, Clone, Copy)]
pub struct Inode<'a> {
    /// Its number in the image.
    pub ino: u32,
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; directories: 2 and one for each subdirectory.
    pub links: u32,
    /// What it may do more than its user.
    pub capability: Option<Capability>,
    /// What it is.
    pub content: Content<'a>,
}

/// A tree that a view is made of: inodes in the order of their numbers, the root first.
pub trait Tree {
    /// Inodes.
    fn len(&self) -> u32;

    /// The inode at a place below [`Tree::len`].
    fn inode(&self, at: u32) -> Inode<'_>;

    /// What a directory holds: names, sorted as bytes, and the places of their inodes. Nothing of the image's own.
    fn list(&self, at: u32) -> Vec<(&[u8], u32)>;

    /// Never true of a tree: it has a root.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What goes into a view and has no influence on where anything lies in it.
pub trait Data {
    /// When the inode at a place was modified, for views with times. It has the number `nid` in the view.
    ///
    /// # Errors
    /// Where that cannot be told.
    fn time(&self, at: u32, nid: u32) -> Result<Time>;

    /// Reads bytes of files of the image, from its start.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// Where a view lies.
#[derive(Debug, Clone)]
pub struct Place {
    /// The view, from the start of the image.
    pub view: Range<u64>,
    /// Bytes of the image.
    pub image: u64,
}

impl Place {
    /// The block that a byte of the image begins, if kernels can count so far.
    fn block(start: u64, block_size: u32) -> Option<u32> {
        let size = u64::from(block_size);
        if !start.is_multiple_of(size) {
            return None;
        }
        u32::try_from(start.checked_div(size)?).ok()
    }
}

/// An error of the view.
pub(crate) fn wrong(place: impl Into<String>, why: impl Into<String>) -> crate::Error {
    crate::Error::ErofsView { place: place.into(), why: why.into() }
}
