//! Which image of several that follow each other in one region this one is: the stamp that readers keep and compare.
//!
//! `docs/generations.md` describes how a packer replaces an image and what readers may rely on.

#![forbid(unsafe_code)]

use std::sync::atomic::{Ordering, fence};

use dmabuf::{MemoryClass, SharedBytes, SharedBytesMut};

use crate::error::Result;
use crate::format::{self, Generation, SUPERBLOCK_SIZE, v5};
use crate::region::read_all;
use crate::{Region, Superblock};

/// Bytes of the superblock's block that have a meaning, in front of the generation record.
const HEAD: usize = 192;
/// Of a superblock of version 5, what mounted kernels change: branches in use, next numbers, ends of logs.
const CHANGING: [std::ops::Range<usize>; 3] = [52..72, 88..160, 184..188];

/// What tells an image from the one that replaces it: the superblock without what kernels change in it, and the
/// generation record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    head: [u8; HEAD],
    record: [u8; size_of::<Generation>()],
}

impl Stamp {
    /// Of a copy of the superblock's block.
    pub fn of(block: &[u8; format::SUPERBLOCK_SIZE]) -> Self {
        let mut stamp = Self { head: [0; HEAD], record: [0; size_of::<Generation>()] };
        stamp.head.copy_from_slice(&block[..HEAD]);
        stamp.record.copy_from_slice(&block[format::GENERATION_OFFSET..]);
        stamp.mask();
        stamp
    }

    /// Of what is there now. Everything that is read before this call is read before the stamp, and everything after
    /// it after the stamp; `flush` makes the processor look into memory that other machines write.
    pub fn read(view: SharedBytes<'_>, flush: bool) -> Result<Self> {
        fence(Ordering::SeqCst);
        let mut stamp = Self { head: [0; HEAD], record: [0; size_of::<Generation>()] };
        for (offset, bytes) in [(0, &mut stamp.head[..]), (format::GENERATION_OFFSET, &mut stamp.record[..])]
        {
            let part = view.get(offset as u64, bytes.len() as u64)?;
            if flush {
                part.flush_cache();
            }
            part.read_at(0, bytes)?;
        }
        fence(Ordering::SeqCst);
        stamp.mask();
        Ok(stamp)
    }

    fn mask(&mut self) {
        if self.head[4..8] == v5::VERSION.to_le_bytes() {
            for range in CHANGING {
                self.head[range].fill(0);
            }
        }
    }

    /// Whether an image is there, as far as the magic tells: there is none while one is written in its place.
    pub fn is_of_image(&self) -> bool {
        self.head.starts_with(&format::MAGIC.to_le_bytes())
    }

    /// Number of the image in its region; 0 for one that replaced none.
    pub fn number(&self) -> u64 {
        let mut block = [0; format::SUPERBLOCK_SIZE];
        block[format::GENERATION_OFFSET..].copy_from_slice(&self.record);
        Generation::find(&block).map_or(0, |record| record.number.get())
    }
}

/// A superblock's block where descriptors opened with O_DIRECT can be read to.
#[repr(align(4096))]
struct Block([u8; SUPERBLOCK_SIZE]);

impl Region {
    /// On memory of devices, drops what this processor has cached of the image that is there: another machine may have
    /// written it, and cached lines can be older than it where no hardware keeps them in step.
    pub(crate) fn drop_cached_image(&self) {
        let view = self.view();
        if self.class() == MemoryClass::Pages {
            return;
        }
        if let Ok(block) = view.get(0, (view.len() as u64).min(SUPERBLOCK_SIZE as u64)) {
            block.flush_cache();
        }
        // No superblock: opening says why.
        let Ok(superblock) = Superblock::read(view) else { return };
        for (_, range) in superblock.regions() {
            if let Ok(part) = view.get(range.start, range.end - range.start) {
                part.flush_cache();
            }
        }
    }

    /// The stamp of the image that is there now.
    pub(crate) fn stamp(&self) -> Result<Stamp> {
        if let Some((fd, start)) = self.file_that_shrinks() {
            let mut block = Block([0; SUPERBLOCK_SIZE]);
            fence(Ordering::SeqCst);
            read_all(fd, start, &mut SharedBytesMut::from_slice(&mut block.0))?;
            fence(Ordering::SeqCst);
            return Ok(Stamp::of(&block.0));
        }
        let _access = self.cpu_access()?;
        Stamp::read(self.view(), self.class() != MemoryClass::Pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn block(version: u32) -> [u8; format::SUPERBLOCK_SIZE] {
        let mut block = [0; format::SUPERBLOCK_SIZE];
        block[..4].copy_from_slice(&format::MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&version.to_le_bytes());
        block
    }

    #[test]
    fn kernels_change_the_stamp_of_no_image() {
        let stamp = |version, at: usize| {
            let mut block = block(version);
            block[at] ^= 1;
            Stamp::of(&block)
        };
        for at in [52, 71, 88, 96, 159, 184] {
            assert_eq!(stamp(5, at), Stamp::of(&block(5)), "{at}");
            assert_ne!(stamp(8, at), Stamp::of(&block(8)), "{at}");
        }
        for at in [0, 16, 24, 80, 4032, 4095] {
            assert_ne!(stamp(5, at), Stamp::of(&block(5)), "{at}");
        }
        assert_eq!(stamp(8, 200), Stamp::of(&block(8)), "reserved");
    }

    #[test]
    fn a_stamp_read_is_that_of_the_copy() {
        let mut block = block(8);
        block[format::GENERATION_OFFSET..].copy_from_slice(Generation::new(7, false).as_bytes());
        let read = Stamp::read(SharedBytes::from_slice(&block), true).unwrap();
        assert_eq!((&read, read.number()), (&Stamp::of(&block), 7));
        block[4090] ^= 1;
        assert_eq!(Stamp::of(&block).number(), 0, "a torn record counts as none");
    }
}
