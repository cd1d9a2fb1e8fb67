//! The base image: its inode table, checked slot by slot, and its directories.

use std::ops::Range;

use zerocopy::FromBytes;

use super::build::{Child, Source};
use super::{Content, Inode, Reader, Strict};
use crate::Rule;
use crate::error::{Error, Result};
use crate::format::{self, DIRENT_SIZE, DIRENT_STRIDE, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::superblock::{Superblock, bounded, invalid};
use crate::{FileType, Metadata};

/// Longest target of a symbolic link, without its NUL: `PATH_MAX` counts that.
pub(super) const TARGET_MAX: u64 = 4095;

/// A checked slot of the inode table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// Absolute offset of the data: in the backing file for a regular file with external data, else in the image.
    /// Checked when `size` is not 0.
    pub data: u64,
}

impl Slot {
    pub fn is_directory(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    /// True for the all-zero slots that upstream's writers leave for hard links, and for any other slot without
    /// a file type.
    fn is_unused(&self) -> bool {
        self.mode & S_IFMT == 0
    }
}

/// The base image of either version.
#[derive(Debug)]
pub(super) struct Base {
    slots: Vec<Slot>,
    range: Range<u64>,
    external: Option<External>,
    /// Entries of one directory, kept between directories to spare allocations.
    buffer: Vec<u8>,
}

/// Where the data of regular files is when it is not in the image.
#[derive(Debug, Clone, Copy)]
enum External {
    Backing,
    Absent,
}

impl Base {
    /// Copies and checks the inode table.
    pub fn read(
        reader: &mut Reader<'_>,
        superblock: &Superblock,
        backing_len: Option<u64>,
        strict: Strict,
    ) -> Result<Self> {
        let range = superblock.base.clone().unwrap_or(0..0);
        let external = match (superblock.data_is_external(), backing_len) {
            (false, _) => None,
            (true, Some(_)) => Some(External::Backing),
            (true, None) => Some(External::Absent),
        };
        let mut table = Vec::new();
        reader.copy(|| "inode table".to_owned(), superblock.inode_table.clone(), &mut table)?;
        let (records, _) = table.as_chunks::<{ size_of::<format::Inode>() }>();
        let mut slots = Vec::with_capacity(records.len());
        for (number, record) in (1_u64..).zip(records) {
            let raw =
                format::Inode::read_from_bytes(record).map_err(|_| Error::TooSmall { len: 0, need: 64 })?;
            slots.push(check_slot(number, &raw, &range, superblock, backing_len, strict)?);
        }
        Ok(Self { slots, range, external, buffer: Vec::new() })
    }

    pub fn slot(&self, ino: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(ino.checked_sub(1)?).ok()?)
    }

    /// Place of a regular file's bytes as they were packed.
    pub fn file_content(&self, slot: &Slot) -> Content {
        let range = slot.data..slot.data.saturating_add(slot.size);
        match self.external {
            _ if slot.size == 0 => Content::Empty,
            None => Content::Image(range),
            Some(External::Backing) => Content::Backing(range),
            Some(External::Absent) => {
                Content::Elsewhere("they are in a backing file or an exported directory")
            }
        }
    }

    /// Copies a link's target, which was checked to lie in the base image with its NUL.
    pub fn read_target(&self, reader: &mut Reader<'_>, ino: u64, slot: &Slot) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let range = slot.data..slot.data.saturating_add(slot.size).saturating_add(1);
        reader.copy(|| format!("inode {ino}: link target"), range, &mut bytes)?;
        let terminator = bytes.pop();
        if terminator != Some(0) || bytes.contains(&0) {
            let found = format!("{:?}", String::from_utf8_lossy(&bytes));
            return Err(invalid(format!("inode {ino}"), Rule::LinkTarget, found));
        }
        Ok(bytes)
    }

    /// Checks the entries of every directory in the table, reachable or not.
    pub fn check_directories(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        for ino in 1..=self.slots.len() as u64 {
            self.entries(reader, ino, &mut |_| Ok(()))?;
        }
        Ok(())
    }

    /// Calls `each` with every entry of a directory, in stored order, after checking names and inode numbers.
    pub fn entries(
        &mut self,
        reader: &mut Reader<'_>,
        ino: u64,
        each: &mut dyn FnMut(Child<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(slot) = self.slot(ino).copied().filter(Slot::is_directory) else {
            return Ok(());
        };
        let count = slot.size / DIRENT_SIZE;
        if count == 0 {
            return Ok(());
        }
        // The last entry may be cut short by the end of the image: upstream's writer reserves 271 bytes for each.
        let end = slot.data.saturating_add(count.saturating_mul(DIRENT_STRIDE)).min(self.range.end);
        let mut buffer = std::mem::take(&mut self.buffer);
        reader.copy(|| format!("directory {ino}"), slot.data..end, &mut buffer)?;
        let stride = size_of::<format::Dirent>();
        for (number, bytes) in buffer.chunks(stride).enumerate() {
            let mut padded;
            let bytes = if bytes.len() == stride {
                bytes
            } else {
                padded = [0; size_of::<format::Dirent>()];
                padded[..bytes.len()].copy_from_slice(bytes);
                &padded[..]
            };
            let Ok(entry) = format::Dirent::ref_from_bytes(bytes) else {
                return Err(Error::TooSmall { len: bytes.len() as u64, need: DIRENT_STRIDE });
            };
            let place = || format!("directory {ino}, entry {number}");
            let child = u64::from(entry.ino.get());
            if self.slot(child).is_none() {
                return Err(invalid(place(), Rule::EntryInode, child));
            }
            let len = usize::from(entry.name_len.get());
            let name = match entry.name.get(..len) {
                Some(name) if len > 0 => name,
                _ => return Err(invalid(place(), Rule::NameLength, len)),
            };
            let before = (number as u64).saturating_mul(DIRENT_STRIDE).saturating_add(16);
            let name_start = slot.data.saturating_add(before);
            let name_end = name_start.saturating_add(len as u64);
            if name_end > self.range.end {
                return Err(Error::OutOfBounds {
                    place: format!("{}: name", place()),
                    range: name_start.saturating_sub(self.range.start)
                        ..name_end.saturating_sub(self.range.start),
                    within: "base image",
                    bound: self.range.end.saturating_sub(self.range.start),
                });
            }
            check_name(name, place)?;
            each(Child { name, ino: child })?;
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// A name must be one path component.
pub(super) fn check_name(name: &[u8], place: impl FnOnce() -> String) -> Result<()> {
    if name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(invalid(place(), Rule::Name, crate::text::Escaped(name)));
    }
    Ok(())
}

fn check_slot(
    number: u64,
    raw: &format::Inode,
    base: &Range<u64>,
    superblock: &Superblock,
    backing_len: Option<u64>,
    strict: Strict,
) -> Result<Slot> {
    let place = |what: &str| format!("inode {number}{what}");
    let mode = raw.mode.get();
    let size = raw.size.get();
    let relative = raw.data_offset.get();
    let kind = mode & S_IFMT;
    let mut slot = Slot {
        mode,
        uid: raw.uid.get(),
        gid: raw.gid.get(),
        nlink: raw.nlink.get(),
        size,
        data: base.start.saturating_add(relative),
    };
    let base_len = superblock.base_len();
    if strict != Strict::No {
        if ![S_IFREG, S_IFDIR, S_IFLNK].contains(&kind) {
            return Err(invalid(place(""), Rule::SlotType, format_args!("mode {mode:o}")));
        }
        let elsewhere = strict == Strict::Split && kind == S_IFREG && superblock.data_is_external();
        if size > 0 && !elsewhere {
            bounded(&place(": data"), relative, size, base_len, "base image")?;
        }
    }
    match kind {
        S_IFREG if superblock.data_is_external() => {
            slot.data = relative;
            if let (Some(bound), true) = (backing_len, size > 0) {
                bounded(&place(": data"), relative, size, bound, "backing file")?;
            }
        }
        S_IFREG if size > 0 => {
            bounded(&place(": data"), relative, size, base_len, "base image")?;
        }
        S_IFDIR => {
            if !size.is_multiple_of(DIRENT_SIZE) {
                return Err(invalid(place(""), Rule::DirectorySize, size));
            }
            // Up to the first byte of the last name; its length is checked with the entry.
            if let Some(last) = (size / DIRENT_SIZE).checked_sub(1) {
                let needed = last.saturating_mul(DIRENT_STRIDE).saturating_add(16);
                bounded(&place(": entries"), relative, needed, base_len, "base image")?;
            }
        }
        S_IFLNK => {
            if size == 0 || size > TARGET_MAX {
                return Err(invalid(place(""), Rule::LinkTarget, format_args!("{size} bytes")));
            }
            bounded(&place(": link target"), relative, size.saturating_add(1), base_len, "base image")?;
        }
        _ => {}
    }
    Ok(slot)
}

impl Source for Base {
    fn inode(&mut self, reader: &mut Reader<'_>, ino: u64, arena: &mut Vec<u8>) -> Result<Inode> {
        let Some(slot) = self.slot(ino).copied() else {
            return Err(invalid(format!("inode {ino}"), Rule::EntryInode, ino));
        };
        if slot.is_unused() {
            return Err(invalid(
                format!("inode {ino}"),
                Rule::FileType,
                format_args!("mode {:o}", slot.mode),
            ));
        }
        let metadata = Metadata {
            ino,
            mode: slot.mode,
            uid: slot.uid,
            gid: slot.gid,
            size: slot.size,
            nlink: slot.nlink,
        };
        let content = match metadata.file_type() {
            FileType::File => self.file_content(&slot),
            FileType::Symlink => {
                let target = self.read_target(reader, ino, &slot)?;
                super::build::store_target(arena, &target)?
            }
            FileType::Directory | FileType::Special => Content::Empty,
        };
        Ok(Inode { metadata, content })
    }

    fn children(
        &mut self,
        reader: &mut Reader<'_>,
        ino: u64,
        each: &mut dyn FnMut(Child<'_>) -> Result<()>,
    ) -> Result<()> {
        self.entries(reader, ino, each)
    }

    fn expected_entries(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.is_directory()).map(|slot| slot.size / DIRENT_SIZE).sum()
    }

    fn unreachable_directory(&self, reached: &dyn Fn(u64) -> bool) -> Option<u64> {
        (1_u64..)
            .zip(&self.slots)
            .find(|(ino, slot)| slot.is_directory() && !reached(*ino))
            .map(|(ino, _)| ino)
    }
}
