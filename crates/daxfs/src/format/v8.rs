//! Format version 8: superblock, overlay and page cache.

use super::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version number.
pub const VERSION: u32 = 8;
/// Magic of the overlay header.
pub const OVERLAY_MAGIC: u32 = 0x6f76_6c79;
/// The one overlay version that the kernel accepts.
pub const OVERLAY_VERSION: u32 = 2;
/// The page cache version that goes with format 8.
pub const PAGE_CACHE_VERSION: u32 = 2;
/// "No entry": the end of every chain in the overlay pool.
pub const NONE: u64 = u64::MAX;

/// Superblock at offset 0; the rest of its 4096 bytes is reserved.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// 0: [`super::MAGIC`].
    pub magic: U32,
    /// 4: 8.
    pub version: U32,
    /// 8: page size of the machine that made the image.
    pub block_size: U32,
    /// 12: zero.
    pub reserved0: U32,

    /// 16: size of the whole image.
    pub total_size: U64,
    /// 24: start of the base image; 0 when there is none.
    pub base_offset: U64,

    /// 32: size of the base image.
    pub base_size: U64,
    /// 40: inode table, relative to `base_offset`.
    pub inode_offset: U64,

    /// 48: slots in the inode table.
    pub inode_count: U32,
    /// 52: written as 1; the kernel mounts inode 1 whatever this says.
    pub root_inode: U32,
    /// 56: first file data, relative to `base_offset`; informative.
    pub data_offset: U64,

    /// 64: overlay region; 0 when there is none.
    pub overlay_offset: U64,
    /// 72: its size.
    pub overlay_size: U64,

    /// 80: buckets of its hash table, a power of two.
    pub overlay_bucket_count: U32,
    /// 84: log2 of that; never used.
    pub overlay_bucket_shift: U32,
    /// 88: page cache region; 0 when there is none.
    pub pcache_offset: U64,

    /// 96: its size.
    pub pcache_size: U64,
    /// 104: slots, a power of two, at least 8.
    pub pcache_slot_count: U32,
    /// 108: log2 of that; never used.
    pub pcache_hash_shift: U32,
}

/// Header at the start of the overlay region; 4096 bytes with its reserve.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OverlayHeader {
    /// 0: [`OVERLAY_MAGIC`].
    pub magic: U32,
    /// 4: [`OVERLAY_VERSION`].
    pub version: U32,
    /// 8: bucket array, from the start of the region.
    pub bucket_offset: U64,

    /// 16: pool, from the start of the region.
    pub pool_offset: U64,
    /// 24: size of the pool.
    pub pool_size: U64,

    /// 32: next free pool byte; live, other kernels move it.
    pub pool_alloc: U64,
    /// 40: next inode number; live.
    pub next_ino: U64,

    /// 48: heads of the free lists.
    pub free_inode: U64,
    /// 56: see `free_inode`.
    pub free_data: U64,
    /// 64: see `free_inode`.
    pub free_dirent: U64,
}

/// Bucket of the overlay's hash table.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Bucket {
    /// 0: bit 0: used; bits 1 to 63: key.
    pub state_key: U64,
    /// 8: offset in the pool.
    pub value: U64,
}

/// Inode entry in the overlay pool.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OverlayInode {
    /// 0: 1.
    pub kind: U32,
    /// 4: full `st_mode`.
    pub mode: U32,
    /// 8: owner.
    pub uid: U32,
    /// 12: group.
    pub gid: U32,

    /// 16: bytes.
    pub size: U64,
    /// 24: link count.
    pub nlink: U32,
    /// 28: zero.
    pub flags: U32,
}

/// Directory entry in the overlay pool, 304 bytes with its name.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OverlayDirent {
    /// 0: 3.
    pub kind: U32,
    /// 4: bit 0: tombstone.
    pub flags: U32,
    /// 8: directory that holds it.
    pub parent_ino: U64,

    /// 16: inode that it names.
    pub child_ino: U64,
    /// 24: mode of that inode.
    pub child_mode: U32,
    /// 28: bytes of the name.
    pub name_len: U16,
    /// 30: zero.
    pub reserved: U16,

    /// 32: next entry whose key is equal.
    pub next: U64,
    /// 40: next entry of the same directory.
    pub dir_next: U64,

    /// 48: the name, NUL-terminated.
    pub name: [u8; 256],
}

/// Directory list in the overlay pool.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OverlayDirList {
    /// 0: 4.
    pub kind: U32,
    /// 4: zero.
    pub reserved: U32,
    /// 8: newest entry of the directory.
    pub first: U64,
}

/// Header of the page cache region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageCacheHeader {
    /// 0: [`super::PAGE_CACHE_MAGIC`].
    pub magic: U32,
    /// 4: 2; the kernel does not check it.
    pub version: U32,
    /// 8: slot metadata, from the start of the region.
    pub slot_meta_offset: U64,
    /// 16: slot data, from the start of the region.
    pub slot_data_offset: U64,
}

const _: () = {
    assert!(size_of::<Superblock>() == 112);
    assert!(core::mem::offset_of!(Superblock, base_offset) == 24);
    assert!(core::mem::offset_of!(Superblock, inode_count) == 48);
    assert!(core::mem::offset_of!(Superblock, overlay_offset) == 64);
    assert!(core::mem::offset_of!(Superblock, pcache_offset) == 88);
    assert!(core::mem::offset_of!(Superblock, pcache_hash_shift) == 108);
    assert!(size_of::<OverlayHeader>() == 72);
    assert!(size_of::<Bucket>() == 16);
    assert!(size_of::<OverlayInode>() == 32);
    assert!(size_of::<OverlayDirent>() == 304);
    assert!(core::mem::offset_of!(OverlayDirent, name) == 48);
    assert!(size_of::<OverlayDirList>() == 16);
    assert!(size_of::<PageCacheHeader>() == 24);
};
