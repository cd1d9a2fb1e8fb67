//! The overlay of version 8, resolved as the kernel resolves it: what other kernels wrote on top of the base image.
//!
//! Names and metadata are copied here once. Data pages stay where they are; a changed file becomes a list of
//! pieces. The kernel finds an entry by open addressing from `key mod buckets` until it meets the key or an unused
//! bucket; [`reachable`] computes the same answers for all keys in one pass, so that a crowded table costs no more.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use zerocopy::FromBytes;

use super::again;
use super::base::{Base, Slot, TARGET_MAX, check_name};
use super::buckets::{Keys, reachable};
use super::build::{Child, Source, store_target};
use super::changing::{Moment, Watch};
use super::pieces::Pieces;
use super::{Content, Inode, Piece, PieceSource, Reader, check_changed_size};
use crate::Rule;
use crate::error::{Error, Result};
use crate::format::v8;
use crate::superblock::{Superblock, bounded, invalid};
use crate::{FileType, Metadata};

/// Low bits of a key: which page, or one of the two special entries.
const PAGE_BITS: u32 = 20;
pub(super) const KEY_INODE: u64 = 0xf_ffff;
const KEY_LIST: u64 = 0xf_fffe;
/// Largest page number that is a data page.
const PAGE_MAX: u64 = 0xf_fffd;

/// Kinds of pool entries.
const KIND_INODE: u32 = 1;
const KIND_DIRENT: u32 = 3;
const KIND_LIST: u32 = 4;
/// Flag of a directory entry: the name was deleted.
pub(super) const TOMBSTONE: u32 = 1;

/// Larger inode numbers cannot have entries: keys have 63 bits.
const INODES: u64 = 1 << (63 - PAGE_BITS);

/// Bytes of memory that a key takes, about, in the table and in the one that it is made of.
const KEY_COST: u64 = 64;
/// And a page, and the table of pages of an inode, whose first page takes a node for eleven.
const PAGE_COST: u64 = 32;
const PAGES_COST: u64 = 256;

/// Entries whose names have equal 63-bit hashes share a chain; honest chains have one or two.
const CHAIN_MAX: usize = 64;

/// The overlay region: its keys, and where its pool lies.
#[derive(Debug)]
pub(super) struct Overlay {
    entries: u64,
    keys: Keys,
    /// Data pages by inode and page: offsets in the pool, checked when a file uses them.
    pages: HashMap<u64, BTreeMap<u64, u64>, foldhash::quality::RandomState>,
    pool: std::ops::Range<u64>,
    block_size: u64,
    /// Where the header and the bucket array lie, and what was copied of them.
    pub(super) head_at: u64,
    pub(super) moment: Moment,
    pub(super) buckets_at: u64,
    pub(super) buckets: Vec<u8>,
}

impl Overlay {
    /// Copies the bucket array; the superblock's check already bounded buckets and pool.
    pub fn read(reader: &mut Reader<'_>, superblock: &Superblock) -> Result<Self> {
        let region = superblock.overlay.clone().unwrap_or(0..0);
        let head: v8::OverlayHeader =
            reader.read::<_, { size_of::<v8::OverlayHeader>() }>("overlay header", region.start)?;
        let len = region.end.saturating_sub(region.start);
        let table_len = u64::from(superblock.overlay_buckets).saturating_mul(size_of::<v8::Bucket>() as u64);
        // Checked again on this copy: the first copy is gone, and the header may have changed since.
        let buckets = bounded("overlay: buckets", head.bucket_offset.get(), table_len, len, "overlay")?;
        let pool = bounded("overlay: pool", head.pool_offset.get(), head.pool_size.get(), len, "overlay")?;
        let (pool, buckets) = (moved(&pool, region.start), moved(&buckets, region.start));
        let buckets_at = buckets.start;
        let mut bytes = Vec::new();
        reader.copy(|| "overlay buckets".to_owned(), buckets, &mut bytes)?;
        reader.charge(|| "overlay table".to_owned(), table_len)?;
        let mut table = records(&bytes);
        if reader.is_live() {
            again::complete(reader, buckets_at, &mut table, &mut bytes)?;
        }
        let entries = table.iter().filter(|(key, _)| key & 1 == 1).count() as u64;
        reader.charge(|| "overlay keys".to_owned(), entries.saturating_mul(KEY_COST))?;
        let mut overlay = Self {
            entries,
            keys: reachable(&table),
            pages: HashMap::default(),
            pool,
            block_size: u64::from(superblock.block_size),
            head_at: region.start,
            moment: moment(&head),
            buckets_at,
            buckets: bytes,
        };
        overlay.collect_pages(reader)?;
        Ok(overlay)
    }

    /// Buckets in use.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How far kernels had come when it was read.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    /// More entries than fit the pool.
    pub fn entries_at_most(&self) -> u64 {
        let entry = size_of::<v8::OverlayDirent>() as u64;
        self.pool.end.saturating_sub(self.pool.start).checked_div(entry).unwrap_or(0)
    }

    /// Where the entry of an inode lies in the pool.
    pub fn inode_place(&self, ino: u64) -> Option<u64> {
        key(ino, KEY_INODE).and_then(|key| self.keys.get(&key)).copied()
    }

    /// Where a directory's list lies in the pool.
    pub fn list_place(&self, directory: u64) -> Option<u64> {
        key(directory, KEY_LIST).and_then(|key| self.keys.get(&key)).copied()
    }

    /// Sorts out which keys can be data pages. The kernel does not look at an entry's type either: a key that
    /// looks like a page of an inode *is* that page for it.
    ///
    /// # Errors
    /// [`Error::MetadataLimit`].
    fn collect_pages(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        for (&key, &value) in &self.keys {
            let (ino, page) = (key.wrapping_shr(PAGE_BITS), key & KEY_INODE);
            if page > PAGE_MAX {
                continue;
            }
            let place = || format!("inode {ino}: overlay pages");
            reader.charge(place, PAGE_COST)?;
            let pages = match self.pages.entry(ino) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(fresh) => {
                    reader.charge(place, PAGES_COST)?;
                    fresh.insert(BTreeMap::new())
                }
            };
            pages.insert(page, value);
        }
        Ok(())
    }

    /// Absolute offset of a data page.
    fn page(&self, ino: u64, page: u64, value: u64) -> Result<u64> {
        Ok(self.pool_range(&format!("inode {ino}: overlay page {page}"), value, self.block_size)?.start)
    }

    pub(super) fn pool_range(&self, place: &str, offset: u64, len: u64) -> Result<std::ops::Range<u64>> {
        let pool = self.pool.end.saturating_sub(self.pool.start);
        Ok(moved(&bounded(place, offset, len, pool, "overlay pool")?, self.pool.start))
    }

    fn entry<T: FromBytes, const N: usize>(
        &self,
        reader: &mut Reader<'_>,
        place: &str,
        offset: u64,
    ) -> Result<T> {
        let range = self.pool_range(place, offset, N as u64)?;
        reader.read::<T, N>(place, range.start)
    }

    /// The inode entry, if the overlay has one.
    fn inode(&self, reader: &mut Reader<'_>, ino: u64) -> Result<Option<Metadata>> {
        self.inode_place(ino).map(|offset| self.inode_at(reader, ino, offset)).transpose()
    }

    /// The inode entry at a place in the pool.
    pub(super) fn inode_at(&self, reader: &mut Reader<'_>, ino: u64, offset: u64) -> Result<Metadata> {
        let place = format!("overlay inode {ino}");
        let raw: v8::OverlayInode =
            self.entry::<_, { size_of::<v8::OverlayInode>() }>(reader, &place, offset)?;
        if raw.kind.get() != KIND_INODE {
            return Err(invalid(place, Rule::OverlayEntryKind, raw.kind.get()));
        }
        Ok(Metadata {
            ino,
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            size: raw.size.get(),
            nlink: raw.nlink.get(),
        })
    }

    fn dirent(&self, reader: &mut Reader<'_>, offset: u64) -> Result<v8::OverlayDirent> {
        let place = "overlay directory entry";
        let raw: v8::OverlayDirent =
            self.entry::<_, { size_of::<v8::OverlayDirent>() }>(reader, place, offset)?;
        if raw.kind.get() != KIND_DIRENT {
            return Err(invalid(
                format!("{place} at pool {offset:#x}"),
                Rule::OverlayEntryKind,
                raw.kind.get(),
            ));
        }
        Ok(raw)
    }

    /// True when the overlay has an entry, live or deleted, for a name: then the base's entry does not count.
    /// Entries that do not count are left out of `watch`.
    fn has_name(&self, reader: &mut Reader<'_>, watch: &mut Watch, parent: u64, name: &[u8]) -> Result<bool> {
        let Some(mut offset) = self.keys.get(&name_key(parent, name)).copied() else {
            return Ok(false);
        };
        for _ in 0..CHAIN_MAX {
            let entry = self.dirent(reader, offset)?;
            if entry.parent_ino.get() == parent && dirent_name(&entry, offset)? == name {
                return watch.entry(reader, offset, &entry, false);
            }
            offset = entry.next.get();
            if offset == v8::NONE {
                return Ok(false);
            }
        }
        let place = format!("overlay entries of directory {parent}");
        Err(invalid(place, Rule::OverlayChain, format_args!("more than {CHAIN_MAX} entries with one key")))
    }
}

fn dirent_name(entry: &v8::OverlayDirent, offset: u64) -> Result<&[u8]> {
    let len = usize::from(entry.name_len.get());
    let place = || format!("overlay directory entry at pool {offset:#x}");
    match entry.name.get(..len) {
        Some(name) if (1..=crate::format::NAME_MAX).contains(&len) => Ok(name),
        _ => Err(invalid(place(), Rule::NameLength, len)),
    }
}

/// A range within something that begins at `start`, both of which were checked against the region.
fn moved(range: &std::ops::Range<u64>, start: u64) -> std::ops::Range<u64> {
    start.saturating_add(range.start)..start.saturating_add(range.end)
}

/// Key of an inode's entry, list or page.
pub(super) fn key(ino: u64, low: u64) -> Option<u64> {
    (ino < INODES).then_some(ino.wrapping_shl(PAGE_BITS) | low)
}

/// FNV-1a over the parent's number and the name, shifted right by one.
fn name_key(parent: u64, name: &[u8]) -> u64 {
    let bytes = parent.to_le_bytes();
    let hash = bytes.iter().chain(name).fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 1
}

/// Header fields that tell how far kernels have come.
pub(super) fn moment(head: &v8::OverlayHeader) -> Moment {
    Moment { pool_alloc: head.pool_alloc.get(), next_ino: head.next_ino.get() }
}

pub(super) fn record(bytes: &[u8; 16]) -> Option<(u64, u64)> {
    v8::Bucket::read_from_bytes(bytes).ok().map(|bucket| (bucket.state_key.get(), bucket.value.get()))
}

/// Key and value of each bucket.
fn records(bytes: &[u8]) -> Vec<(u64, u64)> {
    bytes.as_chunks::<16>().0.iter().filter_map(record).collect()
}

/// Base image and overlay as one.
pub(super) struct Merged<'a> {
    pub(super) overlay: Overlay,
    base: &'a mut Base,
    pub(super) superblock: &'a Superblock,
    pub(super) watch: Watch,
    /// Entries of directory lists seen so far: each belongs to one list, so they are no more than fit the pool.
    listed: u64,
}

impl<'a> Merged<'a> {
    pub fn new(overlay: Overlay, base: &'a mut Base, superblock: &'a Superblock, watch: Watch) -> Self {
        Self { overlay, base, superblock, watch, listed: 0 }
    }

    /// Base bytes and overlay pages of a file, in order. Pages beyond the file's size do not show.
    fn content(&self, ino: u64, size: u64, slot: Option<&Slot>) -> Result<Content> {
        // Only the place of a regular file was checked; another kind of slot has no bytes for a file.
        let slot = slot.filter(|slot| slot.is_file());
        let base = slot.map_or(Content::Empty, |slot| self.base.file_content(slot));
        let base_len = slot.map_or(0, |slot| slot.size);
        let block = self.overlay.block_size;
        let last_page = size.div_ceil(block);
        let pages = self.overlay.pages.get(&ino);
        let mut pages = pages.into_iter().flatten().take_while(|(page, _)| **page < last_page).peekable();
        if pages.peek().is_none() && base_len == size {
            return Ok(base);
        }
        let mut pieces = Pieces::new(&base, base_len);
        for (&page, &value) in pages {
            let offset = self.overlay.page(ino, page, value)?;
            // Below the size, since the page is one of the file's.
            let start = page.saturating_mul(block);
            pieces.fill_to(start)?;
            let len = block.min(size.saturating_sub(start));
            pieces.push(len, PieceSource::Image(offset));
        }
        pieces.fill_to(size)?;
        Ok(pieces.finish())
    }

    fn target(&self, reader: &mut Reader<'_>, ino: u64, slot: Option<&Slot>) -> Result<Vec<u8>> {
        let page = self.overlay.pages.get(&ino).and_then(|pages| pages.get(&0)).copied();
        let invalid_target =
            |found: &str| invalid(format!("inode {ino}"), Rule::LinkTarget, found.to_owned());
        match (page, slot) {
            (Some(value), _) => {
                let offset = self.overlay.page(ino, 0, value)?;
                let mut bytes = Vec::new();
                reader.copy(
                    || format!("inode {ino}: link target"),
                    offset..offset.saturating_add(self.overlay.block_size),
                    &mut bytes,
                )?;
                let len = bytes.iter().position(|&byte| byte == 0);
                match len {
                    Some(len) if len > 0 && len as u64 <= TARGET_MAX => {
                        bytes.truncate(len);
                        Ok(bytes)
                    }
                    _ => Err(invalid_target("an overlay page without a terminated name")),
                }
            }
            (None, Some(slot)) if slot.mode & crate::format::S_IFMT == crate::format::S_IFLNK => {
                self.base.read_target(reader, ino, slot)
            }
            _ => Err(invalid_target("neither a page nor a link in the base image")),
        }
    }
}

impl Source for Merged<'_> {
    fn inode(&mut self, reader: &mut Reader<'_>, ino: u64, arena: &mut Vec<u8>) -> Result<Inode> {
        let Some(metadata) = self.overlay.inode(reader, ino)? else {
            return self.base.inode(reader, ino, arena);
        };
        let slot = self.base.slot(ino).copied();
        let content = match metadata.file_type() {
            FileType::File => {
                let packed = slot.filter(Slot::is_file).map_or(0, |slot| slot.size);
                check_changed_size(ino, metadata.size, packed, reader.len(), self.overlay.block_size)?;
                // See `settle`.
                Content::Empty
            }
            FileType::Symlink => store_target(arena, &self.target(reader, ino, slot.as_ref())?)?,
            FileType::Directory => Content::Empty,
            FileType::Special if metadata.mode & crate::format::S_IFMT == 0 => {
                let found = format_args!("mode {:o}", metadata.mode).to_string();
                return Err(invalid(format!("overlay inode {ino}"), Rule::FileType, found));
            }
            FileType::Special => Content::Empty,
        };
        Ok(Inode { metadata, content })
    }

    fn children(
        &mut self,
        reader: &mut Reader<'_>,
        ino: u64,
        each: &mut dyn FnMut(Child<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut kept = Vec::new();
        let mut names = Vec::new();
        self.base.entries(reader, ino, &mut |child| {
            kept.push((names.len(), child.name.len(), child.ino));
            names.extend_from_slice(child.name);
            Ok(())
        })?;
        for (start, len, child) in kept {
            let name = names.get(start..start.saturating_add(len)).unwrap_or_default();
            if !self.overlay.has_name(reader, &mut self.watch, ino, name)? {
                each(Child { name, ino: child })?;
            }
        }
        let Some(offset) = self.overlay.list_place(ino) else {
            return Ok(());
        };
        let place = format!("overlay list of directory {ino}");
        let list: v8::OverlayDirList =
            self.overlay.entry::<_, { size_of::<v8::OverlayDirList>() }>(reader, &place, offset)?;
        if list.kind.get() != KIND_LIST {
            return Err(invalid(place, Rule::OverlayEntryKind, list.kind.get()));
        }
        let limit = self.overlay.entries_at_most();
        let mut next = list.first.get();
        self.watch.list(reader, ino, next)?;
        while next != v8::NONE {
            self.listed = self.listed.saturating_add(1);
            if self.listed > limit {
                return Err(invalid(place, Rule::OverlayChain, format_args!("more than {limit} entries")));
            }
            let entry = self.overlay.dirent(reader, next)?;
            if entry.parent_ino.get() != ino {
                let found = format_args!("an entry of directory {}", entry.parent_ino.get()).to_string();
                return Err(invalid(place, Rule::OverlayChain, found));
            }
            if self.watch.entry(reader, next, &entry, true)? && entry.flags.get() & TOMBSTONE == 0 {
                let name = dirent_name(&entry, next)?;
                check_name(name, || format!("overlay directory entry at pool {next:#x}"))?;
                each(Child { name, ino: entry.child_ino.get() })?;
            }
            next = entry.dir_next.get();
        }
        Ok(())
    }

    /// What is in the files comes last: a kernel makes a file longer after it has written the new pages, so pages that
    /// are looked up after the sizes are all there.
    fn settle(
        &mut self,
        reader: &mut Reader<'_>,
        inodes: &mut [Inode],
        has: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        if reader.is_live() {
            self.catch_up(reader, inodes, has)?;
        }
        for inode in inodes.iter_mut() {
            let metadata = &inode.metadata;
            if metadata.file_type() == FileType::File {
                let slot = self.base.slot(metadata.ino).copied();
                let content = self.content_or_elsewhere(metadata.ino, metadata.size, slot.as_ref())?;
                if let Content::Pieces(pieces) = &content {
                    // Two for each of the pages, which have been paid for, and one behind them.
                    let size = size_of_val::<[Piece]>(pieces) as u64;
                    reader.charge(|| format!("inode {}: pieces", metadata.ino), size)?;
                }
                inode.content = content;
            }
        }
        Ok(())
    }

    fn expected_entries(&self) -> u64 {
        self.base.expected_entries().saturating_add(self.overlay.entries)
    }

    fn unreachable_directory(&self, _reached: &dyn Fn(u64) -> bool) -> Option<u64> {
        // A directory of the base that was deleted later is still in the table.
        None
    }
}

impl Merged<'_> {
    /// Like `content`, but a file that needs an absent backing file is listed without contents.
    fn content_or_elsewhere(&self, ino: u64, size: u64, slot: Option<&Slot>) -> Result<Content> {
        match self.content(ino, size, slot) {
            Err(Error::NoContents { why, .. }) => Ok(Content::Elsewhere(why)),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_keys_of_the_format_note() {
        assert_eq!(name_key(1, b"a"), 0x294d_26ee_47fa_b5df);
        assert_eq!(name_key(1, b"hello.txt"), 0x0ee6_6a09_6fb5_3621);
        assert_eq!(name_key(346, b"a"), 0x4d36_0f8b_ac0e_038f);
        assert_eq!(name_key(1, b"CNm5uRn_D8A"), name_key(1, b"1N9sD9dgvHB"));
    }
}
