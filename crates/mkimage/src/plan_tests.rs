//! Tests of the layout: pure, over trees that exist nowhere.

use super::*;
use crate::metadata;
use crate::tree::{Identity, Stamp};
use daxfs::format::{Dirent, S_IFMT, v8};
use zerocopy::FromBytes;

const SHAPE: Shape = Shape {
    format: Format::V8,
    block_size: 4096,
    align: 2 << 20,
    index: None,
    config: None,
    erofs: None,
    overlay: None,
    split: None,
    empty: false,
};

fn plan(tree: &Tree, shape: Shape) -> Layout {
    Layout::new(tree, Numbers::assign(tree), |_| Placement::default(), shape).unwrap()
}

/// The metadata of an image, put together from pieces of `step` bytes as the writer does.
fn metadata_bytes(tree: &Tree, layout: &Layout, step: u64) -> Vec<u8> {
    let mut bytes = metadata::superblock(layout, 0, None);
    bytes.resize(usize::try_from(layout.metadata_end).unwrap(), 0);
    let mut at = 0;
    while at < layout.metadata_end {
        let end = (at + step).min(layout.metadata_end);
        metadata::render(layout, tree, at..end, &mut |offset, piece| {
            assert!(offset >= at && offset + piece.len() as u64 <= end);
            let offset = usize::try_from(offset).unwrap();
            bytes[offset..offset + piece.len()].copy_from_slice(piece);
        });
        at = end;
    }
    bytes
}

fn read<T: FromBytes>(bytes: &[u8], offset: u64) -> T {
    T::read_from_prefix(&bytes[usize::try_from(offset).unwrap()..]).unwrap().0
}

/// Every extent with data, by offset, after checking that none touches another.
fn check_disjoint(layout: &Layout) {
    let mut extents: Vec<Extent> = vec![
        Extent { offset: 0, len: 4096 },
        Extent { offset: layout.inode_table, len: INODE_SIZE * u64::from(layout.inode_count) },
    ];
    extents.extend(layout.directories.iter().map(|&ino| layout.extent(ino)));
    extents.extend(layout.symlinks.iter().map(|&ino| {
        let Extent { offset, len } = layout.extent(ino);
        Extent { offset, len: len + 1 }
    }));
    extents.extend(layout.files.iter().map(|&ino| layout.extent(ino)));
    extents.extend(layout.index_file().map(|ino| layout.extent(ino)));
    extents.sort_by_key(|extent| extent.offset);
    for pair in extents.windows(2) {
        assert!(pair[0].end() <= pair[1].offset, "{pair:?}");
    }
    assert!(extents.last().unwrap().end() <= layout.total);
    assert_eq!(layout.total % u64::from(layout.shape.block_size), 0);
    let used: u64 = extents.iter().map(|extent| extent.len).sum();
    assert_eq!(
        layout.waste(),
        layout.total - used - if layout.shape.format == Format::V5 { 4096 } else { 0 }
    );
}

#[test]
fn the_array_of_a_directory_has_its_full_stride() {
    // Upstream reserves 271 bytes per entry and lets the last one overlap what follows for these counts.
    for count in (136..2000).chain([1, 2, 15, 16, 120, 121, 5000]) {
        let tree = Tree::flat(count, 10);
        let layout = plan(&tree, SHAPE);
        let root = layout.extent(ROOT_INO);
        assert_eq!(root.len, 272 * u64::from(count));
        assert_eq!(layout.size_field(&tree, ROOT_INO), 271 * u64::from(count));
        let first = layout.extent(layout.files[0]);
        assert!(root.end() <= first.offset);
        assert_eq!(layout.inode_count, count + 1);
    }
}

#[test]
fn a_directory_of_302_entries_keeps_its_last_name() {
    let tree = Tree::flat(302, 10);
    let layout = plan(&tree, SHAPE);
    for step in [4096, 1 << 20, 272, 100, 63] {
        let bytes = metadata_bytes(&tree, &layout, step);
        let last: Dirent = read(&bytes, layout.extent(ROOT_INO).offset + 301 * 272);
        assert_eq!(last.ino.get(), 303);
        assert_eq!(&last.name[..usize::from(last.name_len.get())], b"f000301");
        assert_eq!(last.mode.get() & S_IFMT, daxfs::format::S_IFREG);
    }
}

#[test]
fn the_same_tree_gives_the_same_metadata_in_pieces_of_any_size() {
    let tree = Tree::synthetic(&[
        (0, "", Kind::Directory { first: 1, count: 3 }, 0),
        (0, "a", Kind::Directory { first: 4, count: 2 }, 0),
        (0, "link", Kind::Symlink { target: Tree::default().intern(b"").unwrap() }, 300),
        (0, "z", Kind::File, 5000),
        (1, "b", Kind::File, 0),
        (1, "c", Kind::Symlink { target: Tree::default().intern(b"").unwrap() }, 1),
    ]);
    for format in [Format::V8, Format::V5] {
        for index in [None, Some(777)] {
            let shape = Shape { format, index, ..SHAPE };
            let layout = plan(&tree, shape.clone());
            check_disjoint(&layout);
            let whole = metadata_bytes(&tree, &layout, layout.metadata_end);
            for step in [1, 7, 64, 271, 272, 273, 4096] {
                assert_eq!(metadata_bytes(&tree, &plan(&tree, shape.clone()), step), whole);
            }
            assert_eq!(layout.inode_count, if index.is_some() { 8 } else { 6 });
        }
    }
}

#[test]
fn the_superblock_says_where_things_are() {
    let tree = Tree::flat(3, 4097);
    for block_size in [4096, 16384, 65536] {
        let layout = plan(&tree, Shape { block_size, ..SHAPE });
        check_disjoint(&layout);
        let superblock: v8::Superblock = read(&metadata::superblock(&layout, 0, None), 0);
        let block = u64::from(block_size);
        assert_eq!(superblock.block_size.get(), block_size);
        assert_eq!(superblock.total_size.get(), layout.total);
        assert_eq!(superblock.base_offset.get(), block);
        assert_eq!(superblock.base_size.get(), layout.total - block);
        assert_eq!(superblock.inode_offset.get(), 0);
        assert_eq!(superblock.inode_count.get(), 4);
        for &ino in &layout.files {
            assert_eq!(layout.extent(ino).offset % block, 0);
        }
    }
}

#[test]
fn large_files_are_aligned_and_come_last() {
    let mib = 1 << 20;
    let tree = Tree::synthetic(&[
        (0, "", Kind::Directory { first: 1, count: 5 }, 0),
        (0, "a", Kind::File, 3 * mib),
        (0, "b", Kind::File, 1),
        (0, "c", Kind::File, 2 * mib),
        (0, "d", Kind::File, 2 * mib - 1),
        (0, "e", Kind::File, 0),
    ]);
    let layout = plan(&tree, SHAPE);
    check_disjoint(&layout);
    assert_eq!(layout.files, [3, 5, 2, 4]);
    assert_eq!(layout.extent(2), Extent { offset: 4 * mib, len: 3 * mib });
    assert_eq!(layout.extent(4), Extent { offset: 8 * mib, len: 2 * mib });
    assert_eq!(layout.extent(6), Extent::default());
    let fine = plan(&tree, Shape { align: 1, ..SHAPE });
    check_disjoint(&fine);
    assert!(fine.total < layout.total);
}

#[test]
fn names_of_one_inode_share_its_number() {
    let mut tree = Tree::flat(4, 100);
    let same = Identity { ino: 77, ..tree.node(1).identity };
    for number in [1, 3] {
        tree.nodes[number].identity = same;
        tree.nodes[number].links = 9;
    }
    let layout = plan(&tree, SHAPE);
    assert_eq!(layout.numbers.ino, [1, 2, 3, 2, 4]);
    assert_eq!(layout.numbers.links, [2, 2, 1, 1]);
    assert_eq!(layout.inode_count, 4, "no slot is left empty");
    assert_eq!(layout.numbers.node, [0, 1, 2, 4]);
}

#[test]
fn equal_files_share_an_extent() {
    let tree = Tree::flat(3, 5000);
    let shares = |ino| Placement { shares: (ino == 4).then_some(2), ..Placement::default() };
    let layout = Layout::new(&tree, Numbers::assign(&tree), shares, SHAPE).unwrap();
    assert_eq!(layout.extent(4), layout.extent(2));
    assert_eq!(layout.shared, 5000);
    assert_eq!(layout.files, [2, 3]);
    check_disjoint(&layout);
}

#[test]
fn sizes_beyond_the_address_space_are_refused() {
    let tree = Tree::flat(3, u64::MAX / 4);
    let numbers = Numbers::assign(&tree);
    let error = Layout::new(&tree, numbers, |_| Placement::default(), SHAPE).unwrap_err();
    assert!(matches!(error, Error::Overflow { what: "a file" }), "{error}");
}

#[test]
fn source_times_do_not_reach_the_image() {
    let tree = Tree::flat(10, 10);
    let mut later = Tree::flat(10, 10);
    for node in &mut later.nodes {
        node.identity.modified = Stamp { seconds: 1_800_000_000, nanoseconds: 5 };
        node.identity.dev = 99;
    }
    let (a, b) = (plan(&tree, SHAPE), plan(&later, SHAPE));
    assert_eq!(metadata_bytes(&tree, &a, 4096), metadata_bytes(&later, &b, 4096));
}
