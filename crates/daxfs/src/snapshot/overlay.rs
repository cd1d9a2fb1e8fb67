//! The overlay of version 8, resolved as the kernel resolves it: what other kernels wrote on top of the base image.
//!
//! Names and metadata are copied here once. Data pages stay where they are; a changed file becomes a list of
//! pieces. The kernel finds an entry by open addressing from `key mod buckets` until it meets the key or an unused
//! bucket; [`reachable`] computes the same answers for all keys in one pass, so that a crowded table costs no more.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use zerocopy::FromBytes;

use super::base::{Base, Slot, TARGET_MAX, check_name};
use super::buckets::{Keys, reachable};
use super::build::{Child, Source, store_target};
use super::{Content, Inode, Piece, PieceSource, Reader, check_changed_size};
use crate::error::{Error, Result, Rule};
use crate::format::v8;
use crate::superblock::{Superblock, bounded, invalid};
use crate::{FileType, Metadata};

/// Low bits of a key: which page, or one of the two special entries.
const PAGE_BITS: u32 = 20;
const KEY_INODE: u64 = 0xf_ffff;
const KEY_LIST: u64 = 0xf_fffe;
/// Largest page number that is a data page.
const PAGE_MAX: u64 = 0xf_fffd;

/// Kinds of pool entries.
const KIND_INODE: u32 = 1;
const KIND_DIRENT: u32 = 3;
const KIND_LIST: u32 = 4;
/// Flag of a directory entry: the name was deleted.
const TOMBSTONE: u32 = 1;

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
}

impl Overlay {
    /// Copies the bucket array; the superblock's check already bounded buckets and pool.
    pub fn read(reader: &mut Reader<'_>, superblock: &Superblock) -> Result<Self> {
        let region = superblock.overlay.clone().unwrap_or(0..0);
        let head: v8::OverlayHeader =
            reader.read::<_, { size_of::<v8::OverlayHeader>() }>("overlay header", region.start)?;
        let len = region.end - region.start;
        let count = u64::from(superblock.overlay_buckets);
        // Checked again on this copy: the first copy is gone, and the header may have changed since.
        let buckets = bounded("overlay: buckets", head.bucket_offset.get(), count * 16, len, "overlay")?;
        let pool = bounded("overlay: pool", head.pool_offset.get(), head.pool_size.get(), len, "overlay")?;
        let pool = region.start + pool.start..region.start + pool.end;
        let mut bytes = Vec::new();
        let range = region.start + buckets.start..region.start + buckets.end;
        reader.copy(|| "overlay buckets".to_owned(), range, &mut bytes)?;
        let (records, _) = bytes.as_chunks::<16>();
        let table: Vec<(u64, u64)> = records
            .iter()
            .filter_map(|record| v8::Bucket::read_from_bytes(record).ok())
            .map(|bucket| (bucket.state_key.get(), bucket.value.get()))
            .collect();
        let entries = table.iter().filter(|(key, _)| key & 1 == 1).count() as u64;
        reader.charge(|| "overlay keys".to_owned(), entries * 32)?;
        let mut overlay = Self {
            entries,
            keys: reachable(&table),
            pages: HashMap::default(),
            pool,
            block_size: u64::from(superblock.block_size),
        };
        overlay.collect_pages();
        Ok(overlay)
    }

    /// Buckets in use.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Sorts out which keys can be data pages. The kernel does not look at an entry's type either: a key that
    /// looks like a page of an inode *is* that page for it.
    fn collect_pages(&mut self) {
        for (&key, &value) in &self.keys {
            let page = key & KEY_INODE;
            if page <= PAGE_MAX {
                self.pages.entry(key >> PAGE_BITS).or_default().insert(page, value);
            }
        }
    }

    /// Absolute offset of a data page.
    fn page(&self, ino: u64, page: u64, value: u64) -> Result<u64> {
        Ok(self.pool_range(&format!("inode {ino}: overlay page {page}"), value, self.block_size)?.start)
    }

    fn pool_range(&self, place: &str, offset: u64, len: u64) -> Result<std::ops::Range<u64>> {
        let range = bounded(place, offset, len, self.pool.end - self.pool.start, "overlay pool")?;
        Ok(self.pool.start + range.start..self.pool.start + range.end)
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
        let Some(&offset) = key(ino, KEY_INODE).and_then(|key| self.keys.get(&key)) else {
            return Ok(None);
        };
        let place = format!("overlay inode {ino}");
        let raw: v8::OverlayInode =
            self.entry::<_, { size_of::<v8::OverlayInode>() }>(reader, &place, offset)?;
        if raw.kind.get() != KIND_INODE {
            return Err(invalid(place, Rule::OverlayEntryKind, raw.kind.get()));
        }
        Ok(Some(Metadata {
            ino,
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            size: raw.size.get(),
            nlink: raw.nlink.get(),
        }))
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
    fn has_name(&self, reader: &mut Reader<'_>, parent: u64, name: &[u8]) -> Result<bool> {
        let Some(mut offset) = self.keys.get(&name_key(parent, name)).copied() else {
            return Ok(false);
        };
        for _ in 0..CHAIN_MAX {
            let entry = self.dirent(reader, offset)?;
            if entry.parent_ino.get() == parent && dirent_name(&entry, offset)? == name {
                return Ok(true);
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

fn key(ino: u64, low: u64) -> Option<u64> {
    // 63-bit keys: larger inode numbers cannot have entries.
    (ino < 1 << (63 - PAGE_BITS)).then_some(ino << PAGE_BITS | low)
}

/// FNV-1a over the parent's number and the name, shifted right by one.
fn name_key(parent: u64, name: &[u8]) -> u64 {
    let bytes = parent.to_le_bytes();
    let hash = bytes.iter().chain(name).fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 1
}

/// Base image and overlay as one.
pub(super) struct Merged {
    overlay: Overlay,
    base: Base,
    /// Entries of directory lists seen so far: each belongs to one list, so they are no more than fit the pool.
    listed: u64,
}

impl Merged {
    pub fn new(overlay: Overlay, base: Base) -> Self {
        Self { overlay, base, listed: 0 }
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
        let mut pieces = Pieces { base: &base, base_len, pieces: Vec::new(), end: 0 };
        for (&page, &value) in pages {
            let offset = self.overlay.page(ino, page, value)?;
            let start = page * block;
            pieces.fill_to(start)?;
            let len = block.min(size - start);
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
                    offset..offset + self.overlay.block_size,
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

/// Builds the pieces of one file.
struct Pieces<'a> {
    base: &'a Content,
    base_len: u64,
    pieces: Vec<Piece>,
    end: u64,
}

impl Pieces<'_> {
    fn push(&mut self, len: u64, source: PieceSource) {
        if len > 0 {
            self.pieces.push(Piece { start: self.end, len, source });
            self.end += len;
        }
    }

    /// Base bytes as far as they reach, then zeros.
    fn fill_to(&mut self, end: u64) -> Result<()> {
        let from_base = end.min(self.base_len).saturating_sub(self.end);
        if from_base > 0 {
            let source = match self.base {
                Content::Image(range) => PieceSource::Image(range.start + self.end),
                Content::Backing(range) => PieceSource::Backing(range.start + self.end),
                Content::Elsewhere(why) => {
                    // Without the backing file none of this file can be read in full.
                    self.pieces.clear();
                    return Err(Error::NoContents { path: Vec::new(), why });
                }
                _ => PieceSource::Zeros,
            };
            self.push(from_base, source);
        }
        self.push(end.saturating_sub(self.end), PieceSource::Zeros);
        Ok(())
    }

    fn finish(self) -> Content {
        if self.pieces.is_empty() { Content::Empty } else { Content::Pieces(self.pieces.into_boxed_slice()) }
    }
}

impl Source for Merged {
    fn inode(&mut self, reader: &mut Reader<'_>, ino: u64, arena: &mut Vec<u8>) -> Result<Inode> {
        let Some(metadata) = self.overlay.inode(reader, ino)? else {
            let slot = self.base.slot(ino).copied();
            let mut inode = self.base.inode(reader, ino, arena)?;
            if inode.metadata.file_type() == FileType::File {
                inode.content = self.content_or_elsewhere(ino, inode.metadata.size, slot.as_ref())?;
            }
            return Ok(inode);
        };
        let slot = self.base.slot(ino).copied();
        let content = match metadata.file_type() {
            FileType::File => {
                let packed = slot.filter(Slot::is_file).map_or(0, |slot| slot.size);
                check_changed_size(ino, metadata.size, packed, reader.len(), self.overlay.block_size)?;
                self.content_or_elsewhere(ino, metadata.size, slot.as_ref())?
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
            let name = names.get(start..start + len).unwrap_or_default();
            if !self.overlay.has_name(reader, ino, name)? {
                each(Child { name, ino: child })?;
            }
        }
        let Some(&offset) = key(ino, KEY_LIST).and_then(|key| self.overlay.keys.get(&key)) else {
            return Ok(());
        };
        let place = format!("overlay list of directory {ino}");
        let list: v8::OverlayDirList =
            self.overlay.entry::<_, { size_of::<v8::OverlayDirList>() }>(reader, &place, offset)?;
        if list.kind.get() != KIND_LIST {
            return Err(invalid(place, Rule::OverlayEntryKind, list.kind.get()));
        }
        let limit = (self.overlay.pool.end - self.overlay.pool.start) / size_of::<v8::OverlayDirent>() as u64;
        let mut next = list.first.get();
        while next != v8::NONE {
            self.listed += 1;
            if self.listed > limit {
                return Err(invalid(place, Rule::OverlayChain, format_args!("more than {limit} entries")));
            }
            let entry = self.overlay.dirent(reader, next)?;
            if entry.parent_ino.get() != ino {
                let found = format_args!("an entry of directory {}", entry.parent_ino.get()).to_string();
                return Err(invalid(place, Rule::OverlayChain, found));
            }
            if entry.flags.get() & TOMBSTONE == 0 {
                let name = dirent_name(&entry, next)?;
                check_name(name, || format!("overlay directory entry at pool {next:#x}"))?;
                each(Child { name, ino: entry.child_ino.get() })?;
            }
            next = entry.dir_next.get();
        }
        Ok(())
    }

    fn expected_entries(&self) -> u64 {
        self.base.expected_entries() + self.overlay.entries
    }

    fn unreachable_directory(&self, _reached: &dyn Fn(u64) -> bool) -> Option<u64> {
        // A directory of the base that was deleted later is still in the table.
        None
    }
}

impl Merged {
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
