//! Second looks at an overlay that kernels may be writing to: what is compared with the copy, and never kept in its place
//! without being checked as that was.

use zerocopy::FromBytes;

use super::Reader;
use super::overlay::{KEY_INODE, Overlay, key, moment, record};
use crate::Metadata;
use crate::error::Result;
use crate::format::v8;

/// More buckets are not being written at one time.
const WRITERS: usize = 64;
/// How often a bucket is looked at whose key is there and whose value is not.
const HALF_WRITTEN: u32 = 100;
/// Bytes of a bucket.
const BUCKET: u64 = 16;
/// Bytes that are compared at once.
const COMPARED: usize = 32 << 10;

impl Overlay {
    /// Whether header and buckets are as they were copied.
    pub fn is_same(&self, reader: &Reader<'_>) -> Result<bool> {
        let mut head = [0; size_of::<v8::OverlayHeader>()];
        reader.look_again(self.head_at, &mut head)?;
        if v8::OverlayHeader::read_from_bytes(&head).ok().is_none_or(|head| moment(&head) != self.moment) {
            return Ok(false);
        }
        let mut again = vec![0; COMPARED.min(self.buckets.len())];
        let mut at = self.buckets_at;
        for part in self.buckets.chunks(COMPARED) {
            let again = again.get_mut(..part.len()).unwrap_or_default();
            reader.look_again(at, again)?;
            if again != part {
                return Ok(false);
            }
            at = at.saturating_add(part.len() as u64);
        }
        Ok(true)
    }

    /// What the bucket of a key has now, found as the kernel finds it.
    fn value_now(&self, reader: &Reader<'_>, key: u64) -> Result<Option<u64>> {
        let count = self.buckets.as_chunks::<16>().0.len() as u64;
        for step in 0..count {
            let mut bucket = [0; 16];
            // Their number is a power of two.
            let index = key.wrapping_add(step) & count.saturating_sub(1);
            let at = self.buckets_at.saturating_add(index.saturating_mul(BUCKET));
            reader.look_again(at, &mut bucket)?;
            let Some((state_key, value)) = record(&bucket) else { return Ok(None) };
            match state_key {
                free if free & 1 == 0 => return Ok(None),
                used if used >> 1 == key => return Ok(Some(value)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// An inode's entry as it is now; `None` when there is none, or it is replaced all the time.
    pub fn inode_now(&self, reader: &mut Reader<'_>, ino: u64) -> Result<Option<Metadata>> {
        let Some(key) = key(ino, KEY_INODE) else { return Ok(None) };
        for _ in 0..HALF_WRITTEN {
            let Some(offset) = self.value_now(reader, key)? else { return Ok(None) };
            let found = self.inode_at(reader, ino, offset);
            if self.value_now(reader, key)? == Some(offset) {
                return found.map(Some);
            }
        }
        Ok(None)
    }

    /// First entry of a directory's list as it is now.
    pub fn list_now(&self, reader: &Reader<'_>, directory: u64) -> Result<u64> {
        let Some(offset) = self.list_place(directory) else {
            return Ok(v8::NONE);
        };
        let place = format!("overlay list of directory {directory}");
        let at = self.pool_range(&place, offset, size_of::<v8::OverlayDirList>() as u64)?.start;
        word(reader, at.saturating_add(std::mem::offset_of!(v8::OverlayDirList, first) as u64))
    }

    /// Flags and inode of a directory entry as they are now.
    pub fn dirent_now(&self, reader: &Reader<'_>, offset: u64) -> Result<(u32, u64)> {
        let at = self.dirent_range(offset)?.start;
        let mut flags = [0; 4];
        reader.look_again(
            at.saturating_add(std::mem::offset_of!(v8::OverlayDirent, flags) as u64),
            &mut flags,
        )?;
        let child =
            word(reader, at.saturating_add(std::mem::offset_of!(v8::OverlayDirent, child_ino) as u64))?;
        Ok((u32::from_le_bytes(flags), child))
    }

    /// The entry behind a directory entry in its list as it is now.
    pub fn dir_next_now(&self, reader: &Reader<'_>, offset: u64) -> Result<u64> {
        let at = self.dirent_range(offset)?.start;
        word(reader, at.saturating_add(std::mem::offset_of!(v8::OverlayDirent, dir_next) as u64))
    }

    fn dirent_range(&self, offset: u64) -> Result<std::ops::Range<u64>> {
        self.pool_range("overlay directory entry", offset, size_of::<v8::OverlayDirent>() as u64)
    }
}

fn word(reader: &Reader<'_>, at: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    reader.look_again(at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Kernels write a bucket's key first and its value then. One entry lies at offset 0 of the pool, so of several buckets
/// with that value all but one are being written: they are looked at again for a while.
pub(super) fn complete(
    reader: &Reader<'_>,
    at: u64,
    table: &mut [(u64, u64)],
    bytes: &mut [u8],
) -> Result<()> {
    let is_zero = |&(key, value): &(u64, u64)| key & 1 == 1 && value == 0;
    let zero = table.iter().enumerate().filter(|(_, bucket)| is_zero(bucket));
    let mut left: Vec<usize> = zero.map(|(index, _)| index).collect();
    let (copies, _) = bytes.as_chunks_mut::<16>();
    for _ in 0..HALF_WRITTEN {
        if left.len() < 2 || left.len() > WRITERS {
            break;
        }
        std::thread::yield_now();
        for &index in &left {
            let mut bucket = [0; 16];
            reader.look_again(at.saturating_add((index as u64).saturating_mul(BUCKET)), &mut bucket)?;
            if let (Some(found), Some(known), Some(copied)) =
                (record(&bucket), table.get_mut(index), copies.get_mut(index))
            {
                (*known, *copied) = (found, bucket);
            }
        }
        left.retain(|&index| table.get(index).is_some_and(is_zero));
    }
    Ok(())
}
