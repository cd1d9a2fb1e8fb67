//! Overlay regions of version 8, written as the kernel writes them, for tests of the effective view.

use crate::forge::{self, PAGE};
use daxfs::format::v8::{
    Bucket, NONE, OVERLAY_MAGIC, OVERLAY_VERSION, OverlayDirList, OverlayDirent, OverlayHeader, OverlayInode,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// An overlay under construction. Every method that appends an entry returns its offset in the pool.
#[derive(Debug, Clone)]
pub struct Overlay {
    block: u64,
    buckets: Vec<(u64, u64)>,
    pool: Vec<u8>,
    /// Bytes of the pool that stay free.
    room: u64,
    next_ino: u64,
}

impl Overlay {
    /// An unused overlay with that many buckets, a power of two, above a base image of `inodes` inodes.
    pub fn new(buckets: usize, inodes: u32) -> Overlay {
        Overlay::with_block(PAGE, buckets, inodes)
    }

    /// The same with data pages of `block` bytes.
    pub fn with_block(block: u64, buckets: usize, inodes: u32) -> Overlay {
        Overlay {
            block,
            buckets: vec![(0, 0); buckets],
            pool: Vec::new(),
            room: 0,
            next_ino: u64::from(inodes) + 1,
        }
    }

    /// Leaves so many bytes of the pool for later changes.
    pub fn room(&mut self, bytes: u64) {
        self.room = bytes;
    }

    /// Replaces the metadata of `ino`.
    pub fn inode(&mut self, ino: u64, mode: u32, size: u64, nlink: u32) -> u64 {
        let mut entry = OverlayInode::new_zeroed();
        entry.kind = 1.into();
        entry.mode = mode.into();
        entry.size = size.into();
        entry.nlink = nlink.into();
        let at = self.append(entry.as_bytes());
        self.insert(ino << 20 | 0xf_ffff, at);
        self.next_ino = self.next_ino.max(ino + 1);
        at
    }

    /// Replaces one page of `ino`; missing bytes are zeros.
    pub fn page(&mut self, ino: u64, page: u64, bytes: &[u8]) -> u64 {
        pad(&mut self.pool, self.block);
        let mut whole = bytes.to_vec();
        pad(&mut whole, self.block);
        let at = self.append(&whole);
        self.insert(ino << 20 | page, at);
        at
    }

    /// Adds a name, chained behind entries of the same key and listed first in its directory.
    pub fn name(&mut self, parent: u64, name: &[u8], child: u64, mode: u32) -> u64 {
        self.dirent(parent, name, child, mode, 0)
    }

    /// Removes a name.
    pub fn tombstone(&mut self, parent: u64, name: &[u8]) -> u64 {
        self.dirent(parent, name, 0, 0, 1)
    }

    fn dirent(&mut self, parent: u64, name: &[u8], child: u64, mode: u32, flags: u32) -> u64 {
        let mut entry = OverlayDirent::new_zeroed();
        entry.kind = 3.into();
        entry.flags = flags.into();
        entry.parent_ino = parent.into();
        entry.child_ino = child.into();
        entry.child_mode = mode.into();
        entry.name_len = u16::try_from(name.len()).unwrap().into();
        entry.name[..name.len()].copy_from_slice(name);
        entry.next = NONE.into();
        entry.dir_next = NONE.into();
        let list = match self.find(parent << 20 | 0xf_fffe) {
            Some(list) => list,
            None => {
                let mut list = OverlayDirList::new_zeroed();
                list.kind = 4.into();
                list.first = NONE.into();
                let at = self.append(list.as_bytes());
                self.insert(parent << 20 | 0xf_fffe, at);
                at
            }
        };
        entry.dir_next = self.list_at(list).first;
        let at = self.append(entry.as_bytes());
        self.list_at(list).first = at.into();
        let key = name_key(parent, name);
        match self.find(key) {
            None => self.insert(key, at),
            Some(mut last) => {
                while self.dirent_at(last).next.get() != NONE {
                    last = self.dirent_at(last).next.get();
                }
                self.dirent_at(last).next = at.into();
            }
        }
        at
    }

    /// The directory entry at `at` in the pool, to change it.
    pub fn dirent_at(&mut self, at: u64) -> &mut OverlayDirent {
        OverlayDirent::mut_from_prefix(&mut self.pool[usize::try_from(at).unwrap()..]).unwrap().0
    }

    /// The directory list at `at` in the pool, to change it.
    pub fn list_at(&mut self, at: u64) -> &mut OverlayDirList {
        OverlayDirList::mut_from_prefix(&mut self.pool[usize::try_from(at).unwrap()..]).unwrap().0
    }

    /// Pool offset stored under `key`.
    pub fn find(&self, key: u64) -> Option<u64> {
        self.probe(key).map(|at| self.buckets[at]).filter(|(state, _)| state & 1 == 1).map(|(_, value)| value)
    }

    /// Points the bucket of `key` at `value`.
    pub fn insert(&mut self, key: u64, value: u64) {
        let at = self.probe(key).unwrap();
        self.buckets[at] = (key << 1 | 1, value);
    }

    fn probe(&self, key: u64) -> Option<usize> {
        let count = self.buckets.len();
        let start = usize::try_from(key % count as u64).unwrap();
        (0..count).map(|step| (start + step) % count).find(|&at| {
            let state = self.buckets[at].0;
            state & 1 == 0 || state >> 1 == key
        })
    }

    fn append(&mut self, bytes: &[u8]) -> u64 {
        self.pool.resize(self.pool.len().next_multiple_of(8), 0);
        let at = self.pool.len() as u64;
        self.pool.extend_from_slice(bytes);
        at
    }

    /// Appends the region to `image` and enters it in the superblock.
    pub fn attach(mut self, image: &mut Vec<u8>) {
        pad(image, self.block);
        // Never empty.
        self.pool.push(0);
        pad(&mut self.pool, self.block);
        let used = self.pool.len() as u64;
        self.pool.resize(usize::try_from(used + self.room).unwrap(), 0);
        let mut buckets = Vec::new();
        for (state_key, value) in &self.buckets {
            let mut bucket = Bucket::new_zeroed();
            bucket.state_key = (*state_key).into();
            bucket.value = (*value).into();
            buckets.extend_from_slice(bucket.as_bytes());
        }
        pad(&mut buckets, self.block);
        let mut header = OverlayHeader::new_zeroed();
        header.magic = OVERLAY_MAGIC.into();
        header.version = OVERLAY_VERSION.into();
        header.bucket_offset = self.block.into();
        header.pool_offset = (self.block + buckets.len() as u64).into();
        header.pool_size = (self.pool.len() as u64).into();
        header.pool_alloc = used.into();
        header.next_ino = self.next_ino.into();
        header.free_inode = NONE.into();
        header.free_data = NONE.into();
        header.free_dirent = NONE.into();
        let offset = image.len() as u64;
        let mut region = header.as_bytes().to_vec();
        pad(&mut region, self.block);
        region.extend_from_slice(&buckets);
        region.extend_from_slice(&self.pool);
        image.extend_from_slice(&region);
        let total = image.len() as u64;
        let head = forge::superblock(image);
        head.block_size = u32::try_from(self.block).unwrap().into();
        head.overlay_offset = offset.into();
        head.overlay_size = (region.len() as u64).into();
        head.overlay_bucket_count = u32::try_from(self.buckets.len()).unwrap().into();
        head.overlay_bucket_shift = self.buckets.len().trailing_zeros().into();
        head.total_size = total.into();
    }
}

/// Zeros up to the next multiple of `block`.
fn pad(bytes: &mut Vec<u8>, block: u64) {
    bytes.resize(bytes.len().next_multiple_of(usize::try_from(block).unwrap()), 0);
}

/// Key of a name: 63 bits of FNV-1a over the parent's number and the name.
pub fn name_key(parent: u64, name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parent.to_le_bytes().iter().chain(name) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash >> 1
}
