//! Where the contents of an entry lie.

use daxfs::{Entry, FileType, Image, ViewKind, format};
use std::mem::offset_of;
use std::ops::Range;

/// Bytes of the image that hold a directory's entries or a symbolic link's target (with its NUL).
///
/// The reader keeps copies of these and forgets where they were, so the inode is looked up again, for show only.
/// `None` when there are none, or when they lie in an overlay or a log.
pub fn metadata_extent(image: &Image, entry: &Entry) -> Option<Range<u64>> {
    let superblock = image.superblock();
    let base = superblock.base.as_ref()?;
    let metadata = entry.metadata();
    if image.view_kind() != ViewKind::Base
        || metadata.size == 0
        || metadata.ino > u64::from(superblock.inode_count)
    {
        return None;
    }
    let len = match entry.file_type() {
        FileType::Directory => (metadata.size / format::DIRENT_SIZE).checked_mul(format::DIRENT_STRIDE)?,
        FileType::Symlink => metadata.size.checked_add(1)?,
        _ => return None,
    };
    let slot = metadata.ino.checked_sub(1)?.checked_mul(size_of::<format::Inode>() as u64)?;
    let field = superblock.inode_table.start.checked_add(slot)?;
    let field = field.checked_add(offset_of!(format::Inode, data_offset) as u64)?;
    let mut bytes = [0; 8];
    image.region().view().read_at(field, &mut bytes).ok()?;
    let start = base.start.checked_add(u64::from_le_bytes(bytes))?;
    // The memory may have changed since it was checked.
    let end = start.checked_add(len)?.min(base.end);
    (start < end).then_some(start..end)
}

/// Largest power of two, up to 2 MiB, that divides `offset`.
pub fn alignment_of(offset: u64) -> u64 {
    const LARGEST: u64 = 2 << 20;
    1 << (offset | LARGEST).trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_capped() {
        assert_eq!(alignment_of(0), 2 << 20);
        assert_eq!(alignment_of(4 << 20), 2 << 20);
        assert_eq!(alignment_of(0x1100), 256);
        assert_eq!(alignment_of(7), 1);
    }
}
