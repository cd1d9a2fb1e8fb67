//! The bytes of a view, in the order of their places.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{Alias, CAPABILITY, DIRENT, Layout, Listing, Measure, XATTR_UNIT};
use super::{Content, Data, Inode, Place, Tree, wrong};
use crate::error::Result;
use crate::format::erofs::{self as raw, SLOT};

/// What is called with each inode: its place, what it takes, and what it holds if it is a directory.
type Each<'e, 'a> = dyn FnMut(u32, &Inode<'a>, &Measure, Option<&Listing<'a>>) -> Result<()> + 'e;

/// Types of inodes by the type bits of their modes.
const TYPES: [(u32, u8); 7] = [
    (0o100_000, 1),
    (0o040_000, 2),
    (0o020_000, 3),
    (0o060_000, 4),
    (0o010_000, 5),
    (0o140_000, 6),
    (0o120_000, 7),
];

fn file_type(mode: u32) -> u8 {
    TYPES.iter().find(|(bits, _)| *bits == mode & crate::format::S_IFMT).map_or(0, |(_, kind)| *kind)
}

impl Layout {
    /// Calls `put` with everything in the view, by ascending offsets in it. What is not put is zero.
    ///
    /// # Errors
    /// Those of `put` and of `data`; [`Error::ErofsView`](crate::Error::ErofsView) where the kernel cannot address the
    /// place of a file.
    pub fn render(
        &self,
        tree: &dyn Tree,
        data: &dyn Data,
        place: &Place,
        put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.check_extents(tree, &place.view, place.image)?;
        put(0, self.header().as_bytes())?;
        let block = u64::from(self.shape.block_size);
        let mut bytes = Vec::new();
        let mut next = place.view.start.saturating_add(self.slots);
        self.each(tree, &mut |at, inode, measure, listing| {
            bytes.clear();
            let start = match inode.content {
                Content::File { start, size } if size > 0 => start,
                _ if measure.whole > 0 => next,
                _ => 0,
            };
            next = next.saturating_add(measure.whole.saturating_mul(block));
            let start = Place::block(start, self.shape.block_size);
            let start = start.ok_or_else(|| {
                let why = format!("its bytes begin at no block below 2^32 of {block} bytes");
                wrong(format!("inode {}", inode.ino), why)
            })?;
            let nid = self.nid(at);
            self.put_inode(at, inode, measure, start, data, &mut bytes)?;
            if measure.inline {
                match (&inode.content, listing) {
                    (Content::Link(target), _) => bytes.extend_from_slice(target),
                    (Content::File { start, size }, _) => {
                        let (from, end) = (bytes.len(), start.saturating_add(*size));
                        let len = usize::try_from(measure.tail).unwrap_or(0);
                        bytes.resize(from.saturating_add(len), 0);
                        data.read(
                            end.saturating_sub(measure.tail),
                            bytes.get_mut(from..).unwrap_or_default(),
                        )?;
                    }
                    (_, Some(listing)) => {
                        let last = listing.blocks.len().saturating_sub(1);
                        self.put_entries(tree, listing, last, &mut bytes);
                    }
                    _ => {}
                }
            }
            put(u64::from(nid).saturating_mul(SLOT), &bytes)
        })?;
        let mut next = self.slots;
        self.each(tree, &mut |_, inode, measure, listing| {
            for number in 0..measure.whole {
                bytes.clear();
                match (&inode.content, listing) {
                    (Content::Link(target), _) => bytes.extend_from_slice(target),
                    (_, Some(listing)) => {
                        self.put_entries(tree, listing, usize::try_from(number).unwrap_or(0), &mut bytes);
                    }
                    _ => {}
                }
                put(next, &bytes)?;
                next = next.saturating_add(block);
            }
            Ok(())
        })?;
        for inode in (0..tree.len()).map(|at| tree.inode(at)) {
            if let Some(capability) = inode.capability {
                let record = capability.record(inode.ino);
                put(next, record.as_bytes())?;
                next = next.saturating_add(record.as_bytes().len() as u64);
            }
        }
        Ok(())
    }

    /// Calls `each` with all inodes but those that another one stands for.
    fn each<'a>(&self, tree: &'a dyn Tree, each: &mut Each<'_, 'a>) -> Result<()> {
        for at in 0..tree.len() {
            if matches!(self.aliases.get(&at), Some(Alias::Same(_))) {
                continue;
            }
            let inode = tree.inode(at);
            let listing = self.listing(tree, at, &inode);
            each(at, &inode, &self.measure(&inode, at, listing.as_ref())?, listing.as_ref())?;
        }
        Ok(())
    }

    fn header(&self) -> raw::Header {
        raw::Header {
            magic: raw::HEADER_MAGIC,
            version: raw::VERSION.into(),
            flags: if self.shape.times { raw::HAS_TIMES } else { 0 }.into(),
            capabilities: self.capabilities.into(),
            reserved: [0; 12],
        }
    }

    fn put_inode(
        &self,
        at: u32,
        inode: &Inode<'_>,
        measure: &Measure,
        block: u32,
        data: &dyn Data,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let attributes = measure.head.saturating_sub(if measure.extended {
            size_of::<raw::ExtendedInode>() as u64
        } else {
            size_of::<raw::CompactInode>() as u64
        });
        let words = attributes.saturating_sub(size_of::<raw::XattrHeader>() as u64).div_ceil(XATTR_UNIT);
        let words = if attributes == 0 { 0 } else { low16(words).saturating_add(1) };
        let layout = if measure.inline { raw::FLAT_INLINE } else { raw::FLAT_PLAIN };
        let links = self.links(at, inode);
        if measure.extended {
            let mut record = raw::ExtendedInode::new_zeroed();
            record.format = (layout << 1 | raw::EXTENDED).into();
            record.xattr_count = words.into();
            record.mode = low16(inode.mode).into();
            record.size = measure.size.into();
            record.block = block.into();
            record.ino = inode.ino.into();
            (record.uid, record.gid) = (inode.uid.into(), inode.gid.into());
            if self.shape.times {
                let time = data.time(at, self.nid(at))?;
                record.seconds = time.seconds.cast_unsigned().into();
                record.nanoseconds = time.nanoseconds.into();
            }
            record.nlink = links.into();
            bytes.extend_from_slice(record.as_bytes());
        } else {
            let mut record = raw::CompactInode::new_zeroed();
            record.format = (layout << 1).into();
            record.xattr_count = words.into();
            record.mode = low16(inode.mode).into();
            record.nlink = low16(links).into();
            record.size = u32::try_from(measure.size).unwrap_or(u32::MAX).into();
            record.block = block.into();
            record.ino = inode.ino.into();
            (record.uid, record.gid) = (low16(inode.uid).into(), low16(inode.gid).into());
            bytes.extend_from_slice(record.as_bytes());
        }
        if let Some(capability) = &inode.capability {
            let value = capability.bytes();
            bytes.extend_from_slice(raw::XattrHeader::new_zeroed().as_bytes());
            let name_len = u8::try_from(CAPABILITY.len()).unwrap_or(0);
            let value_len = low16(value.len() as u64).into();
            let entry = raw::XattrEntry { name_len, name_index: raw::XATTR_SECURITY, value_len };
            bytes.extend_from_slice(entry.as_bytes());
            bytes.extend_from_slice(CAPABILITY);
            bytes.extend_from_slice(value);
            bytes.resize(usize::try_from(measure.head).unwrap_or(0), 0);
        }
        Ok(())
    }

    /// Puts the block of that number of a directory.
    fn put_entries(&self, tree: &dyn Tree, listing: &Listing<'_>, number: usize, bytes: &mut Vec<u8>) {
        let range = listing.blocks.get(number).cloned().unwrap_or_default();
        let entries = listing.entries.get(range).unwrap_or_default();
        let mut name_offset = (entries.len() as u64).saturating_mul(DIRENT);
        for (name, to) in entries {
            let dirent = raw::Dirent {
                nid: u64::from(self.nid(*to)).into(),
                name_offset: low16(name_offset).into(),
                file_type: file_type(tree.inode(*to).mode),
                reserved: 0,
            };
            bytes.extend_from_slice(dirent.as_bytes());
            name_offset = name_offset.saturating_add(name.len() as u64);
        }
        entries.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    }

    /// The superblock of a view whose bytes have this BLAKE3.
    ///
    /// # Errors
    /// [`Error::ErofsView`](crate::Error::ErofsView) where the kernel cannot address the view.
    pub fn superblock(&self, place: &Place, hash: &[u8; 32]) -> Result<raw::Superblock> {
        let size = self.shape.block_size;
        let start = Place::block(place.view.start, size);
        let blocks = place.image.checked_div(u64::from(size)).and_then(|count| u32::try_from(count).ok());
        let (Some(start), Some(blocks)) = (start, blocks) else {
            return Err(wrong("superblock", format!("the image has more than 2^32 blocks of {size} bytes")));
        };
        let mut superblock = raw::Superblock::new_zeroed();
        superblock.magic = raw::MAGIC.into();
        superblock.feature_compat = if self.shape.times { raw::COMPAT_MTIME } else { 0 }.into();
        superblock.block_bits = u8::try_from(size.trailing_zeros()).unwrap_or(0);
        superblock.root_nid = low16(u64::from(self.nid(0))).into();
        let shown = self.nids.iter().filter(|nid| **nid != 0).count();
        superblock.inodes = (shown as u64).into();
        superblock.blocks = blocks.into();
        superblock.meta_block = start.into();
        // A UUID of version 8: the bits that say so, and ours.
        superblock.uuid.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
        let [_, _, _, _, _, _, version, _, variant, ..] = &mut superblock.uuid;
        (*version, *variant) = (*version & 0x0f | 0x80, *variant & 0x3f | 0x80);
        superblock.volume.iter_mut().zip(raw::VOLUME).for_each(|(to, from)| *to = *from);
        Ok(superblock)
    }
}

/// A value that was measured to fit.
fn low16(value: impl TryInto<u16>) -> u16 {
    value.try_into().unwrap_or(u16::MAX)
}
