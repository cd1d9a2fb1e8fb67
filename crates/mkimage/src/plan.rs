//! Where everything lies in the image: pure arithmetic over the scanned tree, the same for the same tree.
//!
//! ```text
//! superblock            one block
//! base header           4096 bytes, format 5 only
//! inode table           64 bytes per inode, none unused
//! directories           272 bytes per entry, in inode order
//! symbolic links        target and a NUL each, packed
//! /.daxfs/index         from the next block boundary
//! /.daxfs/oci-config.json  from the next block boundary
//! /.daxfs/erofs         from the next block boundary
//! files below `align`   in inode order, each from a block boundary
//! files from `align` up in inode order, each from a multiple of `align`
//! ```
//!
//! Behind the last file lie the overlay and the page cache, if there are any (`regions.rs`). In a split image the index
//! and the files lie in the backing file: they are planned behind all of the image, at offsets that become those of the
//! backing file when its beginning is subtracted, which is a multiple of every alignment.
//!
//! Everything before the first file fits into few pages at the front, which is all that opening an image
//! touches. Large files come last so that their alignment leaves one gap after the small files and one at the
//! end of each large file, and nothing else.
//!
//! Inodes are numbered in walk order, directory by directory, root first; the index's directory, the index and the EROFS
//! view come last. A hard-linked file has the number of its first name.

use crate::regions::{CachePlace, Overlay, OverlayPlace};
use crate::tree::{Kind, ROOT, Tree};
use crate::{Error, Result};
use daxfs::format::{DIRENT_SIZE, DIRENT_STRIDE, Inode, ROOT_INO, SUPERBLOCK_SIZE, erofs, index, v5};
use std::collections::HashMap;
use std::ops::Range;

/// Version of the image format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Version 8: what current kernels mount.
    #[default]
    V8,
    /// Version 5, static.
    V5,
}

/// The largest image: file offsets are signed.
const LARGEST: u64 = i64::MAX as u64;

/// From how far behind the image a backing file is planned, at least: more than a page cache takes.
const SPLIT_GAP: u64 = 1 << 30;

/// Bytes of an inode in the table.
pub(crate) const INODE_SIZE: u64 = size_of::<Inode>() as u64;

/// A contiguous byte range of the image, absolute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Extent {
    /// The first byte behind it.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Inode numbers of a tree's nodes.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// Per node: its inode number.
    pub(crate) ino: Vec<u32>,
    /// Per inode: its first node.
    pub(crate) node: Vec<u32>,
    /// Per inode: its names in the image; directories: 2 and one for each subdirectory.
    pub(crate) links: Vec<u32>,
}

impl Numbers {
    /// Numbers the nodes of `tree` in walk order. Names of one inode share its number.
    pub(crate) fn assign(tree: &Tree) -> Numbers {
        let count = tree.nodes.len();
        let mut numbers = Numbers {
            ino: Vec::with_capacity(count),
            node: Vec::with_capacity(count),
            links: Vec::with_capacity(count),
        };
        let mut linked: HashMap<(u64, u64, &[u8]), u32> = HashMap::new();
        let mut next = ROOT_INO;
        for (node, entry) in tree.iter() {
            let is_directory = matches!(entry.kind, Kind::Directory { .. });
            let mut fresh = true;
            let mut ino = next;
            // A file that links lead to has names in the image that it has not in the source.
            if !is_directory && (entry.links > 1 || tree.followed > 0) {
                // Names of one link lead to the same place from different directories by different targets.
                let target = match entry.kind {
                    Kind::Symlink { target } => tree.bytes(target),
                    _ => &[],
                };
                ino = *linked.entry((entry.identity.dev, entry.identity.ino, target)).or_insert(next);
                fresh = ino == next;
            }
            numbers.ino.push(ino);
            if fresh {
                numbers.node.push(node);
                numbers.links.push(if is_directory { 2 } else { 1 });
                next += 1;
            } else {
                numbers.links[(ino - 1) as usize] += 1;
            }
            if is_directory && node != ROOT {
                let parent = numbers.ino[entry.parent as usize];
                numbers.links[(parent - 1) as usize] += 1;
            }
        }
        numbers
    }

    /// Inodes of the tree.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.node.len()).unwrap_or(u32::MAX)
    }

    /// The first node of an inode of the tree.
    pub(crate) fn node_of(&self, ino: u32) -> u32 {
        self.node[(ino - 1) as usize]
    }

    /// Regular files of the tree, once per inode: inode number and first node, by number.
    pub(crate) fn files<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = (u32, u32)> + 'a {
        (ROOT_INO..)
            .zip(self.node.iter().copied())
            .filter(|&(_, node)| matches!(tree.node(node).kind, Kind::File))
    }
}

/// What the layout depends on besides the tree.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) format: Format,
    pub(crate) block_size: u32,
    /// Files of at least this many bytes start on a multiple of it.
    pub(crate) align: u64,
    /// Bytes of the index file, when one is written.
    pub(crate) index: Option<u64>,
    /// Bytes of the configuration of a container image, when there is one.
    pub(crate) config: Option<u64>,
    /// Bytes of the EROFS view, when one is written.
    pub(crate) erofs: Option<u64>,
    /// Room for changes.
    pub(crate) overlay: Option<Overlay>,
    /// Whether what is in files goes into a backing file, whose beginning is planned on a multiple of this.
    pub(crate) split: Option<u64>,
    /// Whether there is no base image: the root lies in the overlay.
    pub(crate) empty: bool,
}

impl Shape {
    /// Files in `/.daxfs`.
    fn own_files(&self) -> u32 {
        u32::from(self.index.is_some()) + u32::from(self.config.is_some()) + u32::from(self.erofs.is_some())
    }

    /// Their inodes, and that of the directory.
    pub(crate) fn own_inodes(&self) -> u32 {
        match self.own_files() {
            0 => 0,
            files => files + 1,
        }
    }
}

/// What is known of a file besides its node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Placement {
    /// Bytes that it has in the image, where that is not its size in the source.
    pub(crate) size: Option<u64>,
    /// Least alignment of its first byte; 0 and 1: none beyond the block's.
    pub(crate) align: u64,
    /// The inode whose extent it shares because the contents are the same.
    pub(crate) shares: Option<u32>,
}

/// The finished layout. Offsets are absolute unless the name says otherwise.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) shape: Shape,
    pub(crate) numbers: Numbers,
    /// Bytes of the image.
    pub(crate) total: u64,
    /// Start of the base image.
    pub(crate) base: u64,
    /// Its end, at a block boundary.
    pub(crate) base_end: u64,
    pub(crate) overlay: Option<OverlayPlace>,
    pub(crate) cache: Option<CachePlace>,
    /// Where the contents of the backing file are planned.
    pub(crate) backing: Option<Range<u64>>,
    /// Start of the inode table.
    pub(crate) inode_table: u64,
    /// Inodes, with those of `/.daxfs` and what is in it.
    pub(crate) inode_count: u32,
    /// Per inode, by number: where its data lies. The length of a directory is its array, 272 per entry.
    pub(crate) extents: Vec<Extent>,
    /// Inodes of directories that are not empty, by offset of their array.
    pub(crate) directories: Vec<u32>,
    /// Inodes of symbolic links, by offset of their target.
    pub(crate) symlinks: Vec<u32>,
    /// End of superblock, inode table, directories and links.
    pub(crate) metadata_end: u64,
    /// Inodes of files that own an extent with data, by offset.
    pub(crate) files: Vec<u32>,
    /// Bytes that were not stored again because another file has the same contents.
    pub(crate) shared: u64,
}

impl Layout {
    /// Lays `tree` out.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] when the inodes do not fit 32 bits, [`Error::Overflow`].
    pub(crate) fn new(
        tree: &Tree,
        numbers: Numbers,
        placement: impl Fn(u32) -> Placement,
        shape: Shape,
    ) -> Result<Layout> {
        let block = u64::from(shape.block_size);
        if shape.empty {
            return Layout::without_base(numbers, shape);
        }
        let inode_count = u64::from(numbers.count()) + u64::from(shape.own_inodes());
        let inode_count = u32::try_from(inode_count).map_err(|_| Error::TooMany {
            what: "inodes",
            got: inode_count,
            bound: u64::from(u32::MAX),
        })?;
        let mut layout = Layout {
            total: 0,
            base: block,
            base_end: 0,
            overlay: None,
            cache: None,
            backing: None,
            inode_table: 0,
            inode_count,
            extents: vec![Extent::default(); inode_count as usize],
            directories: Vec::new(),
            symlinks: Vec::new(),
            metadata_end: 0,
            files: Vec::new(),
            shared: 0,
            numbers,
            shape,
        };
        let mut cursor = Cursor { at: block.max(SUPERBLOCK_SIZE as u64) };
        if layout.shape.format == Format::V5 {
            cursor.take("the base header", v5::BASE_HEADER_SIZE, 1)?;
        }
        layout.inode_table = cursor.take("the inode table", INODE_SIZE * u64::from(inode_count), 1)?.offset;
        layout.place_metadata(tree, &mut cursor)?;
        layout.metadata_end = cursor.at;
        let unit = block.max(SUPERBLOCK_SIZE as u64);
        match layout.shape.split {
            None => {
                layout.place_files(tree, placement, &mut cursor)?;
                layout.base_end = cursor.take("the end", 0, unit)?.offset;
                layout.place_overlay(&mut cursor)?;
                layout.total = cursor.at;
            }
            Some(align) => {
                layout.base_end = cursor.take("the end", 0, unit)?.offset;
                layout.place_overlay(&mut cursor)?;
                // The page cache is as large as the backing file, within bounds: that is planned from a place that no
                // page cache reaches.
                let mut files = Cursor { at: cursor.at };
                let start = files.take("the backing file", 0, align.max(SPLIT_GAP))?.offset;
                files.at = start;
                layout.place_files(tree, placement, &mut files)?;
                let end = files.take("the backing file", 0, unit)?.offset;
                layout.backing = Some(start..end);
                let cache = CachePlace::new(block, end - start, cursor.at);
                let cache = cache.ok_or(Error::Overflow { what: "the page cache" })?;
                cursor.take("the page cache", cache.extent.len, 1)?;
                layout.cache = Some(cache);
                layout.total = cursor.at;
            }
        }
        Ok(layout)
    }

    /// The layout of an image that has an overlay only.
    fn without_base(numbers: Numbers, shape: Shape) -> Result<Layout> {
        let block = u64::from(shape.block_size);
        let mut layout = Layout {
            shape,
            numbers,
            total: 0,
            base: 0,
            base_end: 0,
            overlay: None,
            cache: None,
            backing: None,
            inode_table: block,
            inode_count: 0,
            // The root's, which is in no table.
            extents: vec![Extent::default()],
            directories: Vec::new(),
            symlinks: Vec::new(),
            metadata_end: block,
            files: Vec::new(),
            shared: 0,
        };
        let mut cursor = Cursor { at: block };
        layout.place_overlay(&mut cursor)?;
        layout.total = cursor.at;
        Ok(layout)
    }

    fn place_overlay(&mut self, cursor: &mut Cursor) -> Result<()> {
        let Some(overlay) = self.shape.overlay else { return Ok(()) };
        let block = u64::from(self.shape.block_size);
        let place = overlay.place(block, self.inode_count, cursor.at);
        let place = place.ok_or(Error::Overflow { what: "the overlay" })?;
        cursor.take("the overlay", place.extent.len, 1)?;
        self.overlay = Some(place);
        Ok(())
    }

    /// Where what an inode points to lies, from where the format counts: the base image, or the backing file.
    pub(crate) fn data_offset(&self, ino: u32, is_file: bool) -> u64 {
        let extent = self.extent(ino);
        let from = match &self.backing {
            Some(backing) if is_file => backing.start,
            _ => self.base,
        };
        if extent.len == 0 { 0 } else { extent.offset - from }
    }

    /// Start of the first file's data, from the base image; informative.
    pub(crate) fn first_data(&self) -> u64 {
        let first = self.files.first().map(|&ino| self.extent(ino).offset).filter(|_| self.backing.is_none());
        first.unwrap_or(self.base_end) - self.base
    }

    fn place_metadata(&mut self, tree: &Tree, cursor: &mut Cursor) -> Result<()> {
        let own_entries = u64::from(self.index_directory().is_some());
        for at in 0..self.extents.len() {
            let ino = u32::try_from(at + 1).unwrap_or(u32::MAX);
            let entries = if Some(ino) == self.index_directory() {
                u64::from(self.shape.own_files())
            } else {
                let Some(&node) = self.numbers.node.get(at) else { continue };
                let Kind::Directory { count, .. } = tree.node(node).kind else { continue };
                u64::from(count) + if node == ROOT { own_entries } else { 0 }
            };
            if entries > 0 {
                self.extents[at] = cursor.take("a directory", DIRENT_STRIDE * entries, 1)?;
                self.directories.push(ino);
            }
        }
        for (at, &node) in self.numbers.node.iter().enumerate() {
            if let Kind::Symlink { target } = tree.node(node).kind {
                let len = tree.bytes(target).len() as u64;
                let with_nul = cursor.take("a symbolic link", len + 1, 1)?;
                self.extents[at] = Extent { offset: with_nul.offset, len };
                self.symlinks.push(u32::try_from(at + 1).unwrap_or(u32::MAX));
            }
        }
        Ok(())
    }

    fn place_files(
        &mut self,
        tree: &Tree,
        placement: impl Fn(u32) -> Placement,
        cursor: &mut Cursor,
    ) -> Result<()> {
        let block = u64::from(self.shape.block_size);
        if let (Some(len), Some(ino)) = (self.shape.index, self.index_file()) {
            self.extents[(ino - 1) as usize] = cursor.take("the index", len, block)?;
        }
        if let (Some(len), Some(ino)) = (self.shape.config, self.config_file()) {
            self.extents[(ino - 1) as usize] = cursor.take("the configuration", len, block)?;
        }
        if let (Some(len), Some(ino)) = (self.shape.erofs, self.erofs_file()) {
            self.extents[(ino - 1) as usize] = cursor.take("the EROFS view", len, block)?;
        }
        let files: Vec<u32> = self.numbers.files(tree).map(|(ino, _)| ino).collect();
        let mut sharing = Vec::new();
        for large in [false, true] {
            for &ino in &files {
                let wanted = placement(ino);
                let source = tree.node(self.numbers.node_of(ino)).identity.size;
                let size = wanted.size.unwrap_or(source);
                if (size >= self.shape.align) != large || size == 0 {
                    continue;
                }
                if let Some(owner) = wanted.shares {
                    sharing.push((ino, owner));
                    continue;
                }
                let align = if large { self.shape.align.max(block) } else { block };
                let extent = cursor.take("a file", size, align.max(wanted.align))?;
                self.extents[(ino - 1) as usize] = extent;
                self.files.push(ino);
            }
        }
        for (ino, owner) in sharing {
            let extent = self.extents[(owner - 1) as usize];
            self.shared += extent.len;
            self.extents[(ino - 1) as usize] = extent;
        }
        Ok(())
    }

    /// Where an inode's data lies. Length 0: nowhere.
    pub(crate) fn extent(&self, ino: u32) -> Extent {
        self.extents[(ino - 1) as usize]
    }

    /// Inode of `/.daxfs`, when something is written there.
    pub(crate) fn index_directory(&self) -> Option<u32> {
        let files = self.shape.own_files();
        (files > 0).then(|| self.inode_count - files)
    }

    /// Inode of `/.daxfs/index`.
    pub(crate) fn index_file(&self) -> Option<u32> {
        self.shape.index.and(self.index_directory()).map(|directory| directory + 1)
    }

    /// Inode of `/.daxfs/oci-config.json`.
    pub(crate) fn config_file(&self) -> Option<u32> {
        let before = 1 + u32::from(self.shape.index.is_some());
        self.shape.config.and(self.index_directory()).map(|directory| directory + before)
    }

    /// Inode of `/.daxfs/erofs`.
    pub(crate) fn erofs_file(&self) -> Option<u32> {
        self.shape.erofs.map(|_| self.inode_count)
    }

    /// What is in `/.daxfs`, in the order of names.
    pub(crate) fn own_entries(&self) -> impl Iterator<Item = (u32, &'static str)> {
        let erofs = self.erofs_file().map(|ino| (ino, erofs::NAME));
        let index = self.index_file().map(|ino| (ino, index::NAME));
        let config = self.config_file().map(|ino| (ino, index::CONFIG_NAME));
        erofs.into_iter().chain(index).chain(config)
    }

    /// The size field of an inode: what `stat` shows.
    pub(crate) fn size_field(&self, tree: &Tree, ino: u32) -> u64 {
        let len = self.extent(ino).len;
        let is_directory = match self.numbers.node.get((ino - 1) as usize) {
            Some(&node) => matches!(tree.node(node).kind, Kind::Directory { .. }),
            None => Some(ino) == self.index_directory(),
        };
        if is_directory { len / DIRENT_STRIDE * DIRENT_SIZE } else { len }
    }

    /// Whether a window has nothing but the room of regions, which is zero.
    pub(crate) fn is_room(&self, window: &Range<u64>) -> bool {
        let mut written = window.start < self.base_end.max(self.metadata_end);
        crate::metadata::render_regions(self, window.clone(), &mut |_, _| written = true);
        !written
    }

    /// Bytes of the image that hold nothing: padding between extents.
    pub(crate) fn waste(&self) -> u64 {
        let files: u64 = self.files.iter().map(|&ino| self.extent(ino).len).sum();
        let own: u64 = self.own_entries().map(|(ino, _)| self.extent(ino).len).sum();
        if self.shape.empty {
            return 0;
        }
        let head = SUPERBLOCK_SIZE as u64 + (self.metadata_end - self.base.max(SUPERBLOCK_SIZE as u64));
        let backing = self.backing.as_ref().map_or(0, |backing| backing.end - backing.start);
        self.base_end + backing - head - files - own
    }
}

/// The next free byte of the image.
struct Cursor {
    at: u64,
}

impl Cursor {
    /// Takes `len` bytes from the next multiple of `align` (a power of two) on.
    fn take(&mut self, what: &'static str, len: u64, align: u64) -> Result<Extent> {
        let offset = self.at.checked_next_multiple_of(align.max(1));
        let end = offset.and_then(|offset| offset.checked_add(len)).filter(|&end| end <= LARGEST);
        let (Some(offset), Some(end)) = (offset, end) else { return Err(Error::Overflow { what }) };
        self.at = end;
        Ok(Extent { offset, len })
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
