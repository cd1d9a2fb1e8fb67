//! The metadata of an image as bytes: superblock, inode table, directories, symbolic links.
//!
//! Rendered piece by piece for any range, so that nothing of it is ever held whole.

use crate::plan::{Format, INODE_SIZE, Layout};
use crate::tree::{Kind, ROOT, Tree};
use daxfs::format::{
    DIRENT_STRIDE, Dirent, Inode, MAGIC, NAME_MAX, ROOT_INO, S_IFDIR, S_IFMT, S_IFREG, SUPERBLOCK_SIZE,
    erofs, index, v5, v8,
};
use std::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

/// Permissions of `/.daxfs`; it has the owner of the root.
const INDEX_DIRECTORY_MODE: u32 = S_IFDIR | 0o755;
/// Permissions of what is in it.
const INDEX_MODE: u32 = S_IFREG | 0o444;

/// The first 4096 bytes of the image, whose base image lies `shift` bytes behind its place in an image of its own, with
/// the superblock of its EROFS view.
pub(crate) fn superblock(layout: &Layout, shift: u64, erofs: Option<&erofs::Superblock>) -> Vec<u8> {
    let base_size = layout.base_end - layout.base;
    let mut bytes = match layout.shape.format {
        Format::V8 => {
            let mut superblock = v8::Superblock::new_zeroed();
            superblock.magic = MAGIC.into();
            superblock.version = v8::VERSION.into();
            superblock.block_size = layout.shape.block_size.into();
            superblock.total_size = (shift + layout.total).into();
            superblock.base_offset = if base_size == 0 { 0 } else { shift + layout.base }.into();
            superblock.base_size = base_size.into();
            if base_size > 0 {
                superblock.inode_offset = (layout.inode_table - layout.base).into();
                superblock.inode_count = layout.inode_count.into();
                superblock.data_offset = layout.first_data().into();
            }
            superblock.root_inode = ROOT_INO.into();
            if let Some(overlay) = &layout.overlay {
                superblock.overlay_offset = (shift + overlay.extent.offset).into();
                superblock.overlay_size = overlay.extent.len.into();
                superblock.overlay_bucket_count = overlay.buckets.into();
                superblock.overlay_bucket_shift = overlay.buckets.trailing_zeros().into();
            }
            if let Some(cache) = &layout.cache {
                superblock.pcache_offset = (shift + cache.extent.offset).into();
                superblock.pcache_size = cache.extent.len.into();
                superblock.pcache_slot_count = cache.slots.into();
                superblock.pcache_hash_shift = cache.slots.trailing_zeros().into();
            }
            superblock.as_bytes().to_vec()
        }
        Format::V5 => {
            let mut superblock = v5::Superblock::new_zeroed();
            superblock.magic = MAGIC.into();
            superblock.version = v5::VERSION.into();
            superblock.block_size = layout.shape.block_size.into();
            superblock.total_size = (shift + layout.total).into();
            superblock.base_offset = (shift + layout.base).into();
            superblock.base_size = base_size.into();
            superblock.next_inode_id = (u64::from(layout.inode_count) + 1).into();
            superblock.as_bytes().to_vec()
        }
    };
    bytes.resize(SUPERBLOCK_SIZE, 0);
    if let Some(erofs) = erofs {
        let place = erofs::SUPERBLOCK_OFFSET..erofs::SUPERBLOCK_OFFSET + size_of::<erofs::Superblock>();
        bytes[place].copy_from_slice(erofs.as_bytes());
    }
    bytes
}

/// Writes the part of the metadata behind the superblock that lies in `range`, by calls of `put` with absolute
/// offsets. Bytes that are not put are zero.
pub(crate) fn render(layout: &Layout, tree: &Tree, range: Range<u64>, put: &mut impl FnMut(u64, &[u8])) {
    let mut put = |offset: u64, bytes: &[u8]| clip(&range, offset, bytes, put);
    if layout.shape.format == Format::V5 {
        put(layout.base, base_header(layout).as_bytes());
    }

    let table = layout.inode_table;
    let slots =
        range.start.saturating_sub(table) / INODE_SIZE..range.end.saturating_sub(table).div_ceil(INODE_SIZE);
    for slot in slots.start..slots.end.min(u64::from(layout.inode_count)) {
        let ino = u32::try_from(slot + 1).unwrap_or(u32::MAX);
        put(table + slot * INODE_SIZE, inode(layout, tree, ino).as_bytes());
    }

    let from = layout.directories.partition_point(|&ino| layout.extent(ino).end() <= range.start);
    for &ino in layout.directories[from..].iter().take_while(|&&ino| layout.extent(ino).offset < range.end) {
        let array = layout.extent(ino);
        let first = range.start.saturating_sub(array.offset) / DIRENT_STRIDE;
        let last = range.end.min(array.end()).saturating_sub(array.offset).div_ceil(DIRENT_STRIDE);
        for at in first..last {
            put(array.offset + at * DIRENT_STRIDE, entry(layout, tree, ino, at).as_bytes());
        }
    }

    let from = layout.symlinks.partition_point(|&ino| layout.extent(ino).end() <= range.start);
    for &ino in layout.symlinks[from..].iter().take_while(|&&ino| layout.extent(ino).offset < range.end) {
        if let Kind::Symlink { target } = tree.node(layout.numbers.node_of(ino)).kind {
            put(layout.extent(ino).offset, tree.bytes(target));
        }
    }
}

/// As [`render`], for overlay and page cache.
pub(crate) fn render_regions(layout: &Layout, range: Range<u64>, put: &mut impl FnMut(u64, &[u8])) {
    let mut put = |offset: u64, bytes: &[u8]| clip(&range, offset, bytes, put);
    if let Some(overlay) = &layout.overlay {
        overlay.render(&mut put);
    }
    if let Some(cache) = &layout.cache {
        cache.render(&mut put);
    }
}

/// Passes on the part of `bytes` that lies in `range`.
fn clip(range: &Range<u64>, offset: u64, bytes: &[u8], put: &mut impl FnMut(u64, &[u8])) {
    let skip = usize::try_from(range.start.saturating_sub(offset)).unwrap_or(usize::MAX);
    let keep = usize::try_from(range.end.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
    if skip < keep {
        put(offset + skip as u64, &bytes[skip..keep]);
    }
}

fn base_header(layout: &Layout) -> v5::BaseHeader {
    v5::BaseHeader {
        magic: v5::BASE_MAGIC.into(),
        version: v5::VERSION.into(),
        flags: 0.into(),
        block_size: layout.shape.block_size.into(),
        total_size: (layout.base_end - layout.base).into(),
        inode_offset: (layout.inode_table - layout.base).into(),
        inode_count: layout.inode_count.into(),
        root_inode: ROOT_INO.into(),
        data_offset: layout.first_data().into(),
    }
}

fn inode(layout: &Layout, tree: &Tree, ino: u32) -> Inode {
    let root = tree.node(ROOT);
    let (mode, uid, gid, links) = match layout.numbers.node.get((ino - 1) as usize) {
        Some(&number) => {
            let node = tree.node(number);
            // The index's directory is one more subdirectory of the root.
            let own = u32::from(number == ROOT && layout.index_directory().is_some());
            (node.mode, node.uid, node.gid, layout.numbers.links[(ino - 1) as usize] + own)
        }
        None if Some(ino) == layout.index_directory() => (INDEX_DIRECTORY_MODE, root.uid, root.gid, 2),
        None => (INDEX_MODE, root.uid, root.gid, 1),
    };
    let data_offset = layout.data_offset(ino, mode & S_IFMT == S_IFREG);
    Inode {
        ino: ino.into(),
        mode: mode.into(),
        uid: uid.into(),
        gid: gid.into(),
        size: layout.size_field(tree, ino).into(),
        data_offset: data_offset.into(),
        nlink: links.into(),
        reserved: [0; 28],
    }
}

/// Entry `at` of a directory.
fn entry(layout: &Layout, tree: &Tree, directory: u32, at: u64) -> Dirent {
    let at = u32::try_from(at).unwrap_or(u32::MAX);
    let Some(&number) = layout.numbers.node.get((directory - 1) as usize) else {
        let own = layout.own_entries().nth(usize::try_from(at).unwrap_or(usize::MAX));
        return own.map_or_else(Dirent::new_zeroed, |(ino, name)| dirent(ino, INDEX_MODE, name.as_bytes()));
    };
    let children = tree.children(number);
    let mut at = children.start + at;
    if let (ROOT, Some(own)) = (number, layout.index_directory()) {
        // The root's array has one entry more than the source: `.daxfs`, at its place in the order of names.
        let nodes = &tree.nodes[children.start as usize..children.end as usize];
        let before = nodes.partition_point(|child| tree.bytes(child.name) < index::DIR.as_bytes());
        let place = children.start + u32::try_from(before).unwrap_or(u32::MAX);
        if at == place {
            return dirent(own, INDEX_DIRECTORY_MODE, index::DIR.as_bytes());
        }
        at -= u32::from(at > place);
    }
    dirent(layout.numbers.ino[at as usize], tree.node(at).mode, tree.name(at))
}

fn dirent(ino: u32, mode: u32, name: &[u8]) -> Dirent {
    let mut dirent = Dirent::new_zeroed();
    dirent.ino = ino.into();
    dirent.mode = mode.into();
    let len = name.len().min(NAME_MAX);
    dirent.name_len = u16::try_from(len).unwrap_or(0).into();
    dirent.name[..len].copy_from_slice(&name[..len]);
    dirent
}
