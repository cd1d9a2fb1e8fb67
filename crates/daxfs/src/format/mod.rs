//! On-memory structs of DAXFS images, and nothing else: no logic, no I/O.
//!
//! All integers are little-endian and unaligned, so every struct has alignment 1 and can be read from any
//! byte offset of a copy. Offsets in the doc comments are from the start of the struct. Layout assertions
//! stand below each struct.

pub mod erofs;
pub mod index;
pub mod v5;
pub mod v8;

pub use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "dax5": the magic at offset 0 of every image of versions 5 to 8.
pub const MAGIC: u32 = 0x6461_7835;

/// Bytes of the superblock's block, whatever the block size.
pub const SUPERBLOCK_SIZE: usize = 4096;

/// Offset of the [`Generation`] record: the last 64 bytes of the superblock's block, which both versions reserve and
/// no kernel looks at.
pub const GENERATION_OFFSET: usize = 4032;

/// First eight bytes of a [`Generation`] record: "daxfsgen".
pub const GENERATION_MAGIC: u64 = u64::from_le_bytes(*b"daxfsgen");

/// What the packer leaves in a region whose image it replaces, so that readers of the old one notice. All zero in an
/// image that replaced none.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Generation {
    /// 0: [`GENERATION_MAGIC`].
    pub magic: U64,
    /// 8: number of the image in this region; every replacement counts up.
    pub number: U64,
    /// 16: 0 when the image is complete, 1 while it is written.
    pub state: U32,
    /// 20: zero.
    pub reserved: [u8; 36],
    /// 56: all bits of `number` inverted.
    pub check: U64,
}

impl Generation {
    /// A record.
    pub fn new(number: u64, writing: bool) -> Self {
        Self {
            magic: GENERATION_MAGIC.into(),
            number: number.into(),
            state: u32::from(writing).into(),
            reserved: [0; 36],
            check: (!number).into(),
        }
    }

    /// The record in a copy of the superblock's block, if it is a whole one.
    pub fn find(block: &[u8]) -> Option<Self> {
        let (record, _) = Self::read_from_prefix(block.get(GENERATION_OFFSET..)?).ok()?;
        let whole = record.magic.get() == GENERATION_MAGIC && record.check.get() == !record.number.get();
        whole.then_some(record)
    }
}

/// Inode number of the root directory, in every version.
pub const ROOT_INO: u32 = 1;

/// What a directory's size field counts per entry. The array itself has a stride of [`DIRENT_STRIDE`].
pub const DIRENT_SIZE: u64 = 271;

/// Distance between directory entries in memory: the kernel's struct is padded from 271 to 272 bytes.
pub const DIRENT_STRIDE: u64 = 272;

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// File type bits of a mode, and the types, as in `stat(2)`.
pub const S_IFMT: u32 = 0o170_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;

/// Base inode, 64 bytes; the table index is the inode number minus 1. Same in versions 5 and 8.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Inode {
    /// 0: inode number, index + 1. The kernel never reads it.
    pub ino: U32,
    /// 4: full `st_mode`.
    pub mode: U32,
    /// 8: owner.
    pub uid: U32,
    /// 12: group.
    pub gid: U32,

    /// 16: file: bytes; symlink: target bytes without the NUL; directory: 271 times the number of entries.
    pub size: U64,
    /// 24: start of the data, relative to the base image; meaningless when `size` is 0.
    pub data_offset: U64,

    /// 32: link count.
    pub nlink: U32,
    /// 36: zero when written, ignored when read.
    pub reserved: [u8; 28],
}

/// Directory entry as it lies in memory, with its stride of 272 bytes. Same in versions 5 and 8.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// 0: inode number of the child.
    pub ino: U32,
    /// 4: mode of the child; used for the type that readdir shows.
    pub mode: U32,
    /// 8: bytes of the name, 1 to 255.
    pub name_len: U16,
    /// 10: zero when written, ignored when read.
    pub reserved: [u8; 6],

    /// 16: the name, not terminated; bytes behind `name_len` are ignored.
    pub name: [u8; NAME_MAX],
    /// 271: the byte that the size field does not count.
    pub padding: u8,
}

/// Header of the page cache region, 4096 bytes; only these fields are used. Versions 5 and 8 order them
/// differently, see [`v8::PageCacheHeader`] and [`v5::PageCacheHeader`].
pub const PAGE_CACHE_MAGIC: u32 = 0x7063_6163;

const _: () = {
    assert!(size_of::<Generation>() == SUPERBLOCK_SIZE - GENERATION_OFFSET);
    assert!(core::mem::offset_of!(Generation, check) == 56);
    assert!(size_of::<Inode>() == 64);
    assert!(core::mem::offset_of!(Inode, size) == 16);
    assert!(core::mem::offset_of!(Inode, nlink) == 32);
    assert!(size_of::<Dirent>() == 272);
    assert!(core::mem::offset_of!(Dirent, name) == 16);
    assert!(core::mem::offset_of!(Dirent, padding) == 271);
};
