//! Putting an image into memory that is there already, and may hold one that others read.
//!
//! Two images fit into one region when the superblock of the second says that its base image begins behind the first:
//! everything in a base image counts from its start. Readers of the first then keep their bytes until the next
//! replacement. Where the second does not fit, it takes the place of the first, which is given up before its first byte
//! changes. In both cases the superblock's magic appears last, and the generation record tells readers that theirs is
//! not the image in this region any more. `docs/generations.md` has the whole protocol.

use crate::memory::Finish;
use crate::packer::Settings;
use crate::target::{Access, DISK_STEP, Target};
use crate::{Error, Result};
use daxfs::format::{GENERATION_OFFSET, Generation, MAGIC, SUPERBLOCK_SIZE};
use daxfs::{MemoryClass, Opened, Part, Source, Superblock};
use dmabuf::{FdKind, Mapping, describe};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use zerocopy::IntoBytes;

/// A region that gets an image.
#[derive(Debug)]
pub(crate) struct Region {
    /// The part of the source's memory.
    pub(crate) part: Part,
    /// Number of the new image; 0 when it replaces none.
    pub(crate) generation: u64,
    /// The old superblock, where the old image stays whole.
    old: Option<Box<[u8; SUPERBLOCK_SIZE]>>,
}

/// Opens a region for an image of `len` bytes, unless `check` refuses it.
pub(crate) fn open(
    source: &Source,
    len: u64,
    settings: &Settings,
    check: impl FnOnce(&Path, BorrowedFd<'_>) -> Result<()>,
) -> Result<(Target, Finish)> {
    let name = source.to_string();
    let path = Path::new(&name);
    if matches!(source, Source::Holder(_)) {
        let why = "a holder's images cannot be written to; `daxfs swap` replaces one".to_owned();
        return Err(Error::Output { path: path.to_path_buf(), why });
    }
    let Opened { fd, part, .. } = source.open(true, None).map_err(Error::Target)?;
    check(path, fd.as_fd())?;
    let info = describe(fd.as_fd())?;
    let (origin, have) = part.of(&info).map_err(|error| Error::Target(error.of_source(source)))?;
    if have < len.max(SUPERBLOCK_SIZE as u64) {
        return Err(Error::TooSmall { path: path.to_path_buf(), have, need: len });
    }
    // A file on a file system may have holes, where a mapping would end the process when the disk is full.
    let is_file = info.kind == FdKind::File;
    let class = info.kind.class();
    let access = match class {
        MemoryClass::Pages if is_file => Access::Write(DISK_STEP),
        MemoryClass::WriteCombining => Access::Copy,
        _ => Access::Map,
    };
    let head = Mapping::read_only(fd.as_fd(), origin, SUPERBLOCK_SIZE)?;
    if class != MemoryClass::Pages {
        head.view().flush_cache();
    }
    let mut old = Box::new([0; SUPERBLOCK_SIZE]);
    head.view().read_at(0, &mut old[..])?;
    drop(head);

    let record = Generation::find(&old[..]);
    let is_valid = old.starts_with(&MAGIC.to_le_bytes());
    let mut region = Region { part: Part { offset: origin, len: Some(have) }, generation: 0, old: None };
    let is_dma_buf = info.kind.exporter().is_some();
    let mut target = Target::new(fd, path, access, false);
    target.origin = origin;
    target.keeps_head = true;
    target.flushes = class != MemoryClass::Pages;
    if is_valid || record.is_some() {
        if !settings.replace {
            return Err(Error::HoldsImage { path: path.to_path_buf() });
        }
        let number = record.map_or(0, |record| record.number.get());
        // One more for an image that is taken back.
        region.generation = number.checked_add(2).map(|after| after - 1).ok_or_else(|| Error::Output {
            path: path.to_path_buf(),
            why: "its generation record holds the highest number there is; clear the first 4096 bytes"
                .to_owned(),
        })?;
        let superblock = if is_valid { superblock_of(&target, have)? } else { None };
        match superblock.and_then(|superblock| slot(&superblock, len, have, settings.unit)) {
            Some(shift) => {
                target.shift = shift;
                region.old = Some(old);
            }
            None => target.invalidate(&Generation::new(region.generation, true))?,
        }
    }
    Ok((target, Finish::Region { region, sync: is_file, is_dma_buf }))
}

/// The superblock of the image that is in the region; `None` when it is none that this library reads.
fn superblock_of(target: &Target, len: u64) -> Result<Option<Superblock>> {
    let len = usize::try_from(len).map_err(|_| Error::Overflow { what: "the region" })?;
    let map = Mapping::read_only(target.file.as_fd(), target.origin, len)?;
    Ok(Superblock::read(map.view()).ok())
}

/// By how much a new image of `len` bytes, all but its superblock, has to be moved to lie beside the old one: 0 or a
/// multiple of `unit`. `None` when there is no room.
fn slot(old: &Superblock, len: u64, region: u64, unit: u64) -> Option<u64> {
    // Both begin behind the superblock: larger blocks leave a gap there, which is written, too.
    const HEAD: u64 = SUPERBLOCK_SIZE as u64;
    let used: Vec<_> = old.regions().map(|(_, range)| range).filter(|range| range.end > HEAD).collect();
    let end = used.iter().map(|range| range.end).max().unwrap_or(HEAD);
    [0, (end - HEAD).checked_next_multiple_of(unit)?].into_iter().find(|&shift| {
        let Some(new_end) = shift.checked_add(len) else { return false };
        new_end <= region && used.iter().all(|range| range.end <= shift + HEAD || range.start >= new_end)
    })
}

impl Region {
    /// Whether the old image stays whole beside the new one.
    pub(crate) fn keeps_old(&self) -> bool {
        self.old.is_some()
    }

    /// Takes a new image back that turned out wrong: the old one comes back if it is still there.
    pub(crate) fn withdraw(&self, target: &Target) -> Result<()> {
        match &self.old {
            Some(old) => {
                // Under a number of its own: the one that is taken back was already seen by some.
                let mut old = old.clone();
                // `open` has left room for it.
                let record = Generation::new(self.generation.saturating_add(1), false);
                old[GENERATION_OFFSET..].copy_from_slice(record.as_bytes());
                target.write_superblock(&old[..])
            }
            None => target.invalidate(&Generation::new(self.generation, true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock whose base image is at `range`.
    fn at(range: std::ops::Range<u64>) -> Superblock {
        Superblock::of_base(range, 4096)
    }

    #[test]
    fn the_slots_of_a_region() {
        const M: u64 = 1 << 20;
        let first = at(4096..5 * M);
        assert_eq!(slot(&first, 5 * M, 16 * M, 2 * M), Some(6 * M), "behind it, as aligned as it was");
        assert_eq!(slot(&first, 5 * M, 11 * M, 2 * M), Some(6 * M), "just fits");
        assert_eq!(slot(&first, 5 * M, 11 * M - 1, 2 * M), None);
        let second = at(6 * M + 4096..11 * M);
        assert_eq!(slot(&second, 5 * M, 11 * M, 2 * M), Some(0), "back in front");
        assert_eq!(slot(&second, 7 * M, 11 * M, 2 * M), None, "too large for the front");
        assert_eq!(slot(&second, 7 * M, 19 * M, 2 * M), Some(12 * M));
        let mut overlaid = at(4096..M);
        overlaid.overlay = Some(M..4 * M);
        assert_eq!(slot(&overlaid, M, 16 * M, 2 * M), Some(4 * M), "what a kernel wrote stays, too");
        let large_blocks = at(65536..5 * M);
        assert_eq!(
            slot(&large_blocks, 5 * M, 16 * M, 65536),
            Some(5 * M),
            "not where the old one ends in its gap"
        );
        assert_eq!(slot(&at(4096..65536), M, 16 * M, 65536), Some(65536), "a gap is no free place");
        assert_eq!(slot(&first, u64::MAX, u64::MAX, 2 * M), None);
    }
}
