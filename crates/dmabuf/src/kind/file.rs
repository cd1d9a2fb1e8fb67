//! Regular files, and what memfds have in common with them: pages of the page cache.

use nix::sys::stat::SFlag;

use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::Result;
use crate::fd::fs_type;
use crate::page::page_size;
use crate::survey::Offer;

/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

pub(super) struct Row;

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &KindFacts {
            name: "file",
            class: MemoryClass::Pages,
            is_device: false,
            writers: "its owner; nobody, with fs-verity",
            shrinks: "**yes**; no, with fs-verity",
            pages: "page cache",
            coherence: "this machine",
        }
    }

    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        Ok((seen.file_type() == SFlag::S_IFREG).then(|| page_cache(seen)))
    }

    fn describe(&self, _: &Seen<'_>, _: &Layout) -> Result<FdKind> {
        Ok(FdKind::File)
    }

    fn keeps_pages(&self, _: &FdKind) -> bool {
        false
    }

    /// A file is where a path leads, so there is nothing to find.
    fn offers(&self) -> Vec<Offer> {
        Vec::new()
    }
}

/// Page size of a file of hugetlbfs.
pub(super) fn hugetlb(seen: &Seen<'_>) -> Option<u64> {
    #[allow(
        clippy::unnecessary_fallible_conversions,
        reason = "the field's type differs between architectures"
    )]
    let block_size = u64::try_from(seen.fs.block_size()).unwrap_or(2 << 20);
    (fs_type(&seen.fs) == HUGETLBFS_MAGIC).then_some(block_size)
}

/// How pages of the page cache are mapped.
pub(super) fn page_cache(seen: &Seen<'_>) -> Layout {
    let hugetlb = hugetlb(seen);
    Layout {
        len: seen.file_len(),
        unit: hugetlb.unwrap_or_else(page_size),
        has_huge_pages: hugetlb.is_none(),
    }
}
