//! Base images made by hand, byte by byte, without the packer: for images that no packer would write.
//!
//! [`Forge`] makes a sound image of version 8 or 5; a test then changes what it wants through [`superblock`],
//! [`inode`] and [`dirent`], which are typed windows into the finished bytes. Nothing here checks anything.

use daxfs::format::{
    DIRENT_SIZE, DIRENT_STRIDE, Dirent, Inode, MAGIC, NAME_MAX, ROOT_INO, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
    v5, v8,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of a page and of a block in these images.
pub const PAGE: u64 = 4096;

/// Which version is forged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Version 8.
    V8,
    /// Version 5.
    V5,
}

/// A base image under construction: superblock, inode table of a fixed number of slots, extents in the order
/// in which they were placed.
#[derive(Debug, Clone)]
pub struct Forge {
    version: Version,
    table: Vec<Inode>,
    /// The base image from its first byte: header of version 5, table, extents.
    base: Vec<u8>,
    dirs: Vec<Listing>,
}

/// Entries of a directory, written when all inodes are known.
#[derive(Debug, Clone)]
struct Listing {
    dir: u32,
    /// Where its array lies in the base image.
    at: u64,
    names: Vec<(u32, Vec<u8>)>,
}

impl Forge {
    /// An image of version 8 with `slots` empty inode slots.
    pub fn new(slots: u32) -> Forge {
        Forge::with_version(Version::V8, slots)
    }

    /// An image of `version` with `slots` empty inode slots.
    pub fn with_version(version: Version, slots: u32) -> Forge {
        let lead = table_offset(version);
        let mut base = vec![0; usize::try_from(lead + 64 * u64::from(slots)).unwrap()];
        pad(&mut base);
        Forge { version, table: vec![Inode::new_zeroed(); slots as usize], base, dirs: Vec::new() }
    }

    /// Puts `bytes` at the next page boundary, followed by zeros up to the page's end; the result is the
    /// offset that goes into `data_offset`.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = self.base.len() as u64;
        self.base.extend_from_slice(bytes);
        pad(&mut self.base);
        at
    }

    /// Fills slot `ino` as given.
    pub fn set(&mut self, ino: u32, mode: u32, size: u64, data_offset: u64, nlink: u32) -> &mut Forge {
        let slot = &mut self.table[ino as usize - 1];
        slot.ino = ino.into();
        slot.mode = mode.into();
        slot.size = size.into();
        slot.data_offset = data_offset.into();
        slot.nlink = nlink.into();
        self
    }

    /// Slot `ino` becomes a regular file with these contents.
    pub fn file(&mut self, ino: u32, contents: &[u8]) -> &mut Forge {
        let at = if contents.is_empty() { 0 } else { self.place(contents) };
        self.set(ino, S_IFREG | 0o644, contents.len() as u64, at, 0)
    }

    /// Slot `ino` becomes a symbolic link.
    pub fn symlink(&mut self, ino: u32, target: &[u8]) -> &mut Forge {
        let at = self.place(&[target, b"\0"].concat());
        self.set(ino, S_IFLNK | 0o777, target.len() as u64, at, 0)
    }

    /// Slot `ino` becomes a directory with these entries. Modes and link counts are filled in at the end,
    /// from the slots that the entries name.
    pub fn dir<N: AsRef<[u8]>>(&mut self, ino: u32, entries: &[(u32, N)]) -> &mut Forge {
        let count = entries.len() as u64;
        let area = vec![0; usize::try_from(count * DIRENT_STRIDE).unwrap()];
        let at = if entries.is_empty() { 0 } else { self.place(&area) };
        self.set(ino, S_IFDIR | 0o755, count * DIRENT_SIZE, at, 0);
        let names = entries.iter().map(|(ino, name)| (*ino, name.as_ref().to_vec())).collect();
        self.dirs.push(Listing { dir: ino, at, names });
        self
    }

    /// The image's bytes, with link counts as an honest packer would write them.
    pub fn finish(mut self) -> Vec<u8> {
        self.count_links();
        for Listing { at, names, .. } in &self.dirs {
            for (nth, (child, name)) in names.iter().enumerate() {
                let mode =
                    self.table.get((*child as usize).wrapping_sub(1)).map_or(S_IFREG, |i| i.mode.get());
                let start = usize::try_from(*at + nth as u64 * DIRENT_STRIDE).unwrap();
                let place = &mut self.base[start..start + size_of::<Dirent>()];
                place.copy_from_slice(entry(*child, mode, name).as_bytes());
            }
        }
        let start = usize::try_from(table_offset(self.version)).unwrap();
        let table = self.table.as_bytes();
        self.base[start..start + table.len()].copy_from_slice(table);
        match self.version {
            Version::V8 => self.finish_v8(),
            Version::V5 => self.finish_v5(),
        }
    }

    fn count_links(&mut self) {
        let mut links = vec![0u32; self.table.len() + 1];
        for Listing { dir, names, .. } in &self.dirs {
            links[*dir as usize] += 2;
            for (child, _) in names {
                let Some(slot) = self.table.get((*child as usize).wrapping_sub(1)) else { continue };
                if slot.mode.get() & S_IFMT == S_IFDIR {
                    links[*dir as usize] += 1;
                } else {
                    links[*child as usize] += 1;
                }
            }
        }
        for (slot, count) in self.table.iter_mut().zip(&links[1..]) {
            if slot.nlink.get() == 0 {
                slot.nlink = (*count).into();
            }
        }
    }

    fn finish_v8(self) -> Vec<u8> {
        let mut head = v8::Superblock::new_zeroed();
        head.magic = MAGIC.into();
        head.version = v8::VERSION.into();
        head.block_size = 4096.into();
        head.total_size = (PAGE + self.base.len() as u64).into();
        head.base_offset = PAGE.into();
        head.base_size = (self.base.len() as u64).into();
        head.inode_count = u32::try_from(self.table.len()).unwrap().into();
        head.root_inode = ROOT_INO.into();
        let mut image = head.as_bytes().to_vec();
        pad(&mut image);
        image.extend_from_slice(&self.base);
        image
    }

    fn finish_v5(mut self) -> Vec<u8> {
        let size = self.base.len() as u64;
        let mut header = v5::BaseHeader::new_zeroed();
        header.magic = v5::BASE_MAGIC.into();
        header.version = v5::VERSION.into();
        header.block_size = 4096.into();
        header.total_size = size.into();
        header.inode_offset = v5::BASE_HEADER_SIZE.into();
        header.inode_count = u32::try_from(self.table.len()).unwrap().into();
        header.root_inode = ROOT_INO.into();
        self.base[..size_of::<v5::BaseHeader>()].copy_from_slice(header.as_bytes());
        let mut head = v5::Superblock::new_zeroed();
        head.magic = MAGIC.into();
        head.version = v5::VERSION.into();
        head.block_size = 4096.into();
        head.total_size = (PAGE + size).into();
        head.base_offset = PAGE.into();
        head.base_size = size.into();
        head.next_inode_id = (self.table.len() as u64 + 1).into();
        let mut image = head.as_bytes().to_vec();
        pad(&mut image);
        image.extend_from_slice(&self.base);
        image
    }
}

/// The tree of the golden mini images, forged: `f` with ten digits, `d/g` with 5000 bytes, the empty directory
/// `e`, and `l`, a link to `f`. Inodes: 1 root, 2 `l`, 3 `f`, 4 `e`, 5 `d`, 6 `d/g`.
pub fn mini(version: Version) -> Forge {
    let mut forge = Forge::with_version(version, 6);
    let g: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
    forge.dir(1, &[(2, "l"), (3, "f"), (4, "e"), (5, "d")]);
    forge.symlink(2, b"f").file(3, b"0123456789").dir::<&str>(4, &[]).dir(5, &[(6, "g")]).file(6, &g);
    forge
}

/// One directory entry.
pub fn entry(ino: u32, mode: u32, name: &[u8]) -> Dirent {
    let mut entry = Dirent::new_zeroed();
    entry.ino = ino.into();
    entry.mode = mode.into();
    entry.name_len = u16::try_from(name.len()).unwrap().into();
    let stored = name.len().min(NAME_MAX);
    entry.name[..stored].copy_from_slice(&name[..stored]);
    entry
}

/// Zeros up to the next page boundary.
pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
}

/// The superblock of a forged image of version 8.
pub fn superblock(image: &mut [u8]) -> &mut v8::Superblock {
    v8::Superblock::mut_from_prefix(image).unwrap().0
}

/// The superblock of a forged image of version 5.
pub fn superblock_v5(image: &mut [u8]) -> &mut v5::Superblock {
    v5::Superblock::mut_from_prefix(image).unwrap().0
}

/// Slot `ino` of a forged image of version 8, or of version 5 without a branch table.
pub fn inode(image: &mut [u8], ino: u32) -> &mut Inode {
    let version = if image[4] == 5 { Version::V5 } else { Version::V8 };
    let at = PAGE + table_offset(version) + 64 * (u64::from(ino) - 1);
    Inode::mut_from_prefix(&mut image[usize::try_from(at).unwrap()..]).unwrap().0
}

/// Entry `nth` of the directory `dir` of a forged image.
pub fn dirent(image: &mut [u8], dir: u32, nth: u64) -> &mut Dirent {
    let at = PAGE + inode(image, dir).data_offset.get() + nth * DIRENT_STRIDE;
    Dirent::mut_from_prefix(&mut image[usize::try_from(at).unwrap()..]).unwrap().0
}

/// Where the inode table begins in the base image.
fn table_offset(version: Version) -> u64 {
    match version {
        Version::V8 => 0,
        Version::V5 => v5::BASE_HEADER_SIZE,
    }
}
