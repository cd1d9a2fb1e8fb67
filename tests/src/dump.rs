//! A text dump of an image, for review by eye and for exact comparison.

use daxfs::{FileType, Image};
use std::fmt::Write;
use std::ops::Range;

/// One line for the superblock, then one per entry in the order of the walk: type and permissions, links,
/// owner, group, size, inode, where the data lies, hash of the contents or target, path.
pub fn dump(image: &Image) -> String {
    let mut text = String::new();
    let head = image.superblock();
    writeln!(
        text,
        "version {} block {} total {:#x} base {} inodes {} count {}",
        head.version,
        head.block_size,
        head.total_size,
        head.base.as_ref().map_or_else(|| String::from("none"), range),
        range(&head.inode_table),
        head.inode_count
    )
    .unwrap();
    writeln!(text, "view {:?} content {}", image.view_kind(), short(image.content_hash().map(Into::into)))
        .unwrap();
    for entry in image.walk() {
        let meta = entry.metadata();
        let (letter, place, contents) = match entry.file_type() {
            FileType::Directory => ('d', String::from("-"), String::from("-")),
            FileType::Symlink => {
                ('l', String::from("-"), format!("-> {}", entry.read_link().unwrap().escape_ascii()))
            }
            FileType::File => {
                let file = entry.file().unwrap();
                let place = file.extent().map_or(String::from("pieces"), |at| format!("{:#x}", at.offset));
                ('-', place, short(Some(file.hash().unwrap())))
            }
            _ => ('?', String::from("-"), String::from("-")),
        };
        writeln!(
            text,
            "{letter} {:04o} {} {}:{} {:>6} ino {:>2} {place:>8} {contents} {}",
            meta.mode & 0o7777,
            meta.nlink,
            meta.uid,
            meta.gid,
            meta.size,
            meta.ino,
            entry.path().escape_ascii()
        )
        .unwrap();
    }
    text
}

fn short(hash: Option<[u8; 32]>) -> String {
    hash.map_or_else(|| String::from("none"), |hash| crate::golden::hex(&hash[..8]))
}

fn range(range: &Range<u64>) -> String {
    format!("{:#x}..{:#x}", range.start, range.end)
}
