//! What an image has besides its base image: the overlay that kernels write to, and the page cache through which they
//! read a backing file. Both begin empty, at block boundaries behind the base image.
//!
//! ```text
//! overlay     header block, buckets (16 bytes each, whole blocks), pool
//! page cache  header block, slots (16 bytes each, whole blocks), a block of data for each slot
//! ```
//!
//! Only the headers are not zero. An image without a base image has its root in the overlay: an inode at the beginning
//! of the pool, and its bucket.

use crate::plan::Extent;
use crate::{Error, Result};
use daxfs::format::v8::{
    Bucket, NONE, OVERLAY_MAGIC, OVERLAY_VERSION, OverlayHeader, OverlayInode, PAGE_CACHE_VERSION,
    PageCacheHeader,
};
use daxfs::format::{PAGE_CACHE_MAGIC, ROOT_INO};
use zerocopy::{FromZeros, IntoBytes};

/// Most buckets that a superblock can tell of.
const BUCKETS_MAX: u32 = 1 << 31;
/// Buckets for each block of the pool: a small new file takes three and about two blocks.
const BUCKETS_PER_BLOCK: u64 = 4;
/// Fewest by default.
const BUCKETS_LEAST: u64 = 1024;
/// Fewest slots that the kernel's validation takes.
const SLOTS_LEAST: u64 = 8;
/// The largest page cache by default; reading is right with any.
const CACHE_MOST: u64 = 64 << 20;
/// Permissions of a root that is made from nothing.
pub(crate) const ROOT_MODE: u32 = 0o040_755;

/// Room for what kernels that mount an image write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// Bytes of new and changed data and names, rounded up to whole blocks; a small new file takes about 8 KiB.
    pub size: u64,
    /// Buckets of the hash table, a power of two. `None`: four for each block of `size`, and at least 1024.
    pub buckets: Option<u32>,
}

/// An overlay in an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OverlayPlace {
    pub(crate) extent: Extent,
    pub(crate) buckets: u32,
    block: u64,
    pool: u64,
    next_ino: u64,
    /// Whether the root lies in it.
    has_root: bool,
}

/// A page cache in an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachePlace {
    pub(crate) extent: Extent,
    pub(crate) slots: u32,
    block: u64,
}

impl Overlay {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub(crate) fn check(&self) -> Result<()> {
        let fail = |why: String| Err(Error::Setting { option: "--overlay", why });
        if self.size == 0 {
            return fail("its size is at least one block".to_owned());
        }
        match self.buckets {
            Some(count) if !count.is_power_of_two() || count > BUCKETS_MAX => {
                fail(format!("{count} buckets are not a power of two up to {BUCKETS_MAX}"))
            }
            _ => Ok(()),
        }
    }

    /// Where it lies: sizes for an image of such blocks with so many inodes in its base image, at `offset`. `None`: it
    /// does not fit 64 bits.
    pub(crate) fn place(&self, block: u64, inodes: u32, offset: u64) -> Option<OverlayPlace> {
        let pool = self.size.checked_next_multiple_of(block)?;
        let buckets = match self.buckets {
            Some(count) => count,
            None => {
                let wanted = (pool / block).saturating_mul(BUCKETS_PER_BLOCK).max(BUCKETS_LEAST);
                let most = u64::from(BUCKETS_MAX);
                u32::try_from(wanted.min(most).next_power_of_two()).unwrap_or(BUCKETS_MAX)
            }
        };
        let table = (u64::from(buckets) * size_of::<Bucket>() as u64).next_multiple_of(block);
        let len = pool.checked_add(block + table)?;
        let has_root = inodes == 0;
        // Inode numbers begin at 1.
        let next_ino = u64::from(inodes.max(1)) + 1;
        Some(OverlayPlace { extent: Extent { offset, len }, buckets, block, pool, next_ino, has_root })
    }
}

impl OverlayPlace {
    /// Bytes of room.
    pub(crate) fn room(&self) -> u64 {
        self.pool
    }

    /// Its bytes that are not zero, by calls of `put` with absolute offsets, in their order.
    pub(crate) fn render(&self, put: &mut impl FnMut(u64, &[u8])) {
        let table = u64::from(self.buckets) * size_of::<Bucket>() as u64;
        let pool = self.block + table.next_multiple_of(self.block);
        let mut header = OverlayHeader::new_zeroed();
        header.magic = OVERLAY_MAGIC.into();
        header.version = OVERLAY_VERSION.into();
        header.bucket_offset = self.block.into();
        header.pool_offset = pool.into();
        header.pool_size = self.pool.into();
        header.pool_alloc = if self.has_root { size_of::<OverlayInode>() as u64 } else { 0 }.into();
        header.next_ino = self.next_ino.into();
        for list in [&mut header.free_inode, &mut header.free_data, &mut header.free_dirent] {
            *list = NONE.into();
        }
        let start = self.extent.offset;
        put(start, header.as_bytes());
        if self.has_root {
            let key = u64::from(ROOT_INO) << 20 | 0xf_ffff;
            let bucket = Bucket { state_key: (key << 1 | 1).into(), value: 0.into() };
            let at = (key & u64::from(self.buckets - 1)) * size_of::<Bucket>() as u64;
            put(start + self.block + at, bucket.as_bytes());
            let mut root = OverlayInode::new_zeroed();
            root.kind = 1.into();
            root.mode = ROOT_MODE.into();
            root.nlink = 2.into();
            put(start + pool, root.as_bytes());
        }
    }
}

impl CachePlace {
    /// A page cache for a backing file of `backing` bytes: a slot for each block of it, up to a bound.
    pub(crate) fn new(block: u64, backing: u64, offset: u64) -> Option<CachePlace> {
        let slots = (backing.min(CACHE_MOST).div_ceil(block)).max(SLOTS_LEAST).next_power_of_two();
        let table = (slots * 16).next_multiple_of(block);
        let len = slots.checked_mul(block)?.checked_add(block + table)?;
        Some(CachePlace { extent: Extent { offset, len }, slots: u32::try_from(slots).ok()?, block })
    }

    /// As [`OverlayPlace::render`].
    pub(crate) fn render(&self, put: &mut impl FnMut(u64, &[u8])) {
        let table = (u64::from(self.slots) * 16).next_multiple_of(self.block);
        let header = PageCacheHeader {
            magic: PAGE_CACHE_MAGIC.into(),
            version: PAGE_CACHE_VERSION.into(),
            slot_meta_offset: self.block.into(),
            slot_data_offset: (self.block + table).into(),
        };
        put(self.extent.offset, header.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_format() {
        let place = Overlay { size: 64 << 20, buckets: None }.place(4096, 7, 8192).unwrap();
        // What upstream's writers make of 64 MiB.
        assert_eq!((place.buckets, place.extent.len), (65536, 4096 + (1 << 20) + (64 << 20)));
        assert_eq!((place.next_ino, place.has_root), (8, false));
        let small = Overlay { size: 1, buckets: Some(1) }.place(65536, 0, 65536).unwrap();
        assert_eq!((small.extent.len, small.next_ino, small.has_root), (3 * 65536, 2, true));
        assert!(Overlay { size: u64::MAX, buckets: None }.place(4096, 1, 0).is_none());
        assert!(Overlay { size: u64::MAX - 4095, buckets: None }.place(4096, 1, 0).is_none());

        let cache = CachePlace::new(4096, 10 << 20, 0).unwrap();
        assert_eq!((cache.slots, cache.extent.len), (4096, 4096 + 65536 + (16 << 20)));
        assert_eq!(CachePlace::new(4096, 0, 0).unwrap().slots, 8);
        assert_eq!(CachePlace::new(4096, 1 << 40, 0).unwrap().slots, 16384);
    }

    #[test]
    fn wrong_overlays_are_refused() {
        for (size, buckets) in [(0, None), (4096, Some(0)), (4096, Some(3)), (1, Some(12))] {
            assert!(Overlay { size, buckets }.check().is_err(), "{size} {buckets:?}");
        }
        assert!(Overlay { size: 1, buckets: Some(1) }.check().is_ok());
    }
}
