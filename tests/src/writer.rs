//! A kernel that writes to an overlay, as far as its stores go: the same ones in the same order, word by word.
//!
//! Format version 8 has no locks. A bucket is taken by its key, and gets its value then; an entry is complete before
//! a bucket or a chain leads to it; a name is in its bucket before it is in its directory's list; a page is there, and
//! has its bytes, before the file is as long as that; a rename makes the new name before the old one is marked.

#![allow(unsafe_code, reason = "stores to memory that others read meanwhile")]

use crate::forge::PAGE;
use crate::overlay::name_key;
use daxfs::format::v8::{NONE, OverlayDirList, OverlayDirent, OverlayHeader, OverlayInode, Superblock};
use dmabuf::Mapping;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const KEY_INODE: u64 = 0xf_ffff;
const KEY_LIST: u64 = 0xf_fffe;

/// The writer of one mounted image.
#[derive(Debug)]
pub struct Writer {
    map: Mapping,
    /// Absolute offsets of the overlay's parts.
    header: u64,
    buckets: u64,
    pool: u64,
    count: u64,
    pool_size: u64,
}

impl Writer {
    /// Mounts the image in memory that can be written.
    pub fn mount(memory: BorrowedFd<'_>, len: usize) -> Writer {
        let map = Mapping::read_write(memory, 0, len).unwrap();
        let mut head = [0; size_of::<Superblock>()];
        map.view().read_at(0, &mut head).unwrap();
        let superblock = Superblock::read_from_bytes(&head).unwrap();
        let header = superblock.overlay_offset.get();
        let mut bytes = [0; size_of::<OverlayHeader>()];
        map.view().read_at(header, &mut bytes).unwrap();
        let fields = OverlayHeader::read_from_bytes(&bytes).unwrap();
        let (buckets, pool) = (header + fields.bucket_offset.get(), header + fields.pool_offset.get());
        let count = superblock.overlay_bucket_count.get().into();
        Writer { map, header, buckets, pool, count, pool_size: fields.pool_size.get() }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.map.len() as u64);
        let at = self.map.view().as_ptr().wrapping_add(usize::try_from(offset).unwrap());
        // SAFETY: the eight bytes lie in the mapping and are aligned (checked above; mappings begin at pages). The
        // mapping is writable and lives as long as `self`; all of this process that write there use this function.
        unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }
    }

    fn get(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    fn set(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            self.set(offset + 8 * index as u64, u64::from_le_bytes(*word));
        }
        fence(Ordering::Release);
    }

    /// Takes room in the pool: an offset there.
    fn take(&self, len: u64, align: u64) -> u64 {
        let field = self.header + offset_of!(OverlayHeader, pool_alloc) as u64;
        let taken = self.word(field).fetch_update(Ordering::SeqCst, Ordering::SeqCst, |at| {
            Some(at.next_multiple_of(align) + len).filter(|&end| end <= self.pool_size)
        });
        taken.expect("room in the pool").next_multiple_of(align)
    }

    /// Whether there is room for some more changes.
    pub fn has_room(&self) -> bool {
        self.get(self.header + offset_of!(OverlayHeader, pool_alloc) as u64) + 16 * PAGE < self.pool_size
    }

    fn bucket(&self, key: u64) -> u64 {
        let buckets = (0..self.count).map(|step| self.buckets + 16 * (key.wrapping_add(step) % self.count));
        let mut buckets = buckets.filter(|&at| [0, key << 1 | 1].contains(&self.get(at)));
        buckets.next().expect("a free bucket")
    }

    fn find(&self, key: u64) -> Option<u64> {
        let at = self.bucket(key);
        (self.get(at) != 0).then(|| self.get(at + 8))
    }

    fn insert(&self, key: u64, value: u64) {
        let at = self.bucket(key);
        self.set(at, key << 1 | 1);
        self.set(at + 8, value);
    }

    fn new_inode(&self, mode: u32) -> u64 {
        let field = self.header + offset_of!(OverlayHeader, next_ino) as u64;
        let ino = self.word(field).fetch_add(1, Ordering::SeqCst);
        let mut entry = OverlayInode::new_zeroed();
        entry.kind = 1.into();
        entry.mode = mode.into();
        entry.nlink = 1.into();
        let at = self.take(size_of::<OverlayInode>() as u64, 8);
        self.put(self.pool + at, entry.as_bytes());
        self.insert(ino << 20 | KEY_INODE, at);
        ino
    }

    /// Makes a file or directory, by its whole mode; its inode number.
    pub fn create(&self, parent: u64, name: &str, mode: u32) -> u64 {
        let ino = self.new_inode(mode);
        self.name(parent, name, ino, mode, 0);
        ino
    }

    fn dirent(&self, parent: u64, name: &str) -> Option<u64> {
        let mut at = self.find(name_key(parent, name.as_bytes()))?;
        loop {
            let mut entry = OverlayDirent::new_zeroed();
            self.map.view().read_at(self.pool + at, entry.as_mut_bytes()).unwrap();
            let len = usize::from(entry.name_len.get());
            if entry.parent_ino.get() == parent && &entry.name[..len] == name.as_bytes() {
                return Some(at);
            }
            at = Some(entry.next.get()).filter(|&next| next != NONE)?;
        }
    }

    fn name(&self, parent: u64, name: &str, child: u64, mode: u32, flags: u32) {
        if let Some(at) = self.dirent(parent, name) {
            // A name that was deleted: the mark goes last, and comes first.
            let at = self.pool + at;
            if flags == 0 {
                self.set(at + offset_of!(OverlayDirent, child_ino) as u64, child);
            }
            self.set(at, 3 | u64::from(flags) << 32);
            return;
        }
        let mut entry = OverlayDirent::new_zeroed();
        entry.kind = 3.into();
        entry.flags = flags.into();
        entry.parent_ino = parent.into();
        entry.child_ino = child.into();
        entry.child_mode = mode.into();
        entry.name_len = u16::try_from(name.len()).unwrap().into();
        entry.name[..name.len()].copy_from_slice(name.as_bytes());
        entry.next = NONE.into();
        entry.dir_next = NONE.into();
        let at = self.take(size_of::<OverlayDirent>() as u64, 8);
        self.put(self.pool + at, entry.as_bytes());
        let key = name_key(parent, name.as_bytes());
        match self.find(key) {
            None => self.insert(key, at),
            Some(mut last) => {
                let next = offset_of!(OverlayDirent, next) as u64;
                while self.get(self.pool + last + next) != NONE {
                    last = self.get(self.pool + last + next);
                }
                self.set(self.pool + last + next, at);
            }
        }
        let first = self.pool + self.list(parent) + offset_of!(OverlayDirList, first) as u64;
        self.set(self.pool + at + offset_of!(OverlayDirent, dir_next) as u64, self.get(first));
        self.set(first, at);
    }

    fn list(&self, directory: u64) -> u64 {
        let key = directory << 20 | KEY_LIST;
        self.find(key).unwrap_or_else(|| {
            let mut list = OverlayDirList::new_zeroed();
            list.kind = 4.into();
            list.first = NONE.into();
            let at = self.take(size_of::<OverlayDirList>() as u64, 8);
            self.put(self.pool + at, list.as_bytes());
            self.insert(key, at);
            at
        })
    }

    /// Removes a name.
    pub fn unlink(&self, parent: u64, name: &str) {
        self.name(parent, name, 0, 0, 1);
    }

    /// Gives an inode another name, in the same directory or another.
    pub fn rename(&self, ino: u64, mode: u32, from: (u64, &str), to: (u64, &str)) {
        self.name(to.0, to.1, ino, mode, 0);
        self.unlink(from.0, from.1);
    }

    /// Adds a page to a file of whole pages.
    pub fn append(&self, ino: u64, bytes: &[u8]) {
        let entry = self.pool + self.find(ino << 20 | KEY_INODE).expect("an inode of the overlay");
        let size = entry + offset_of!(OverlayInode, size) as u64;
        let at = self.take(PAGE, PAGE);
        self.put(self.pool + at, &vec![0; usize::try_from(PAGE).unwrap()]);
        self.insert((ino << 20) | (self.get(size) / PAGE), at);
        self.put(self.pool + at, bytes);
        self.set(size, self.get(size) + bytes.len() as u64);
    }

    /// Writes an inode's entry anew, as changes of a file's metadata may.
    pub fn replace_inode(&self, ino: u64) {
        self.replace_inode_into(ino, self.inode_room());
    }

    /// Room in the pool for an inode's entry.
    pub fn inode_room(&self) -> u64 {
        self.take(size_of::<OverlayInode>() as u64, 8)
    }

    /// As [`Writer::replace_inode`], into room that is free, as a kernel takes what was freed before. The old entry's
    /// place, which is free now.
    pub fn replace_inode_into(&self, ino: u64, at: u64) -> u64 {
        let key = ino << 20 | KEY_INODE;
        let freed = self.find(key).expect("an inode of the overlay");
        let old = self.pool + freed;
        for word in 0..size_of::<OverlayInode>() as u64 / 8 {
            self.set(self.pool + at + 8 * word, self.get(old + 8 * word));
        }
        self.set(self.bucket(key) + 8, at);
        // The old entry's first word leads to the next free one then.
        self.set(old, NONE);
        freed
    }
}
