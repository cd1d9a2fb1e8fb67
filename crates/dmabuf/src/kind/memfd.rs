//! Anonymous memory with a descriptor.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::SFlag;

use super::file::{hugetlb, page_cache};
use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::Result;
use crate::seals::Seals;
use crate::survey::{Access, Offer};

pub(super) struct Row;

pub(super) const FACTS: KindFacts = KindFacts {
    name: "memfd",
    class: MemoryClass::Pages,
    is_device: false,
    writers: "every process with a writable descriptor; sealed, nobody, for good",
    shrinks: "yes; sealed against it, no",
    pages: "4 KiB, 2 MiB, hugetlb",
    coherence: "this machine",
};

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &FACTS
    }

    /// A memfd answers F_GET_SEALS, but so do tmpfs and hugetlbfs files. Those are sealed against seals, and against
    /// nothing else: of such memory only a memfd has the link `/memfd:NAME`. It never had a directory entry.
    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        if seen.file_type() != SFlag::S_IFREG || seen.stat().st_nlink != 0 {
            return Ok(None);
        }
        let is_memfd = match seen.seals()? {
            None => false,
            Some(seals) if seals == Seals::SEAL => {
                seen.link().is_none_or(|path| path.as_os_str().as_bytes().starts_with(b"/memfd:"))
            }
            // To look at the link takes longer than all else.
            Some(_) => true,
        };
        Ok(is_memfd.then(|| page_cache(seen)))
    }

    fn describe(&self, seen: &Seen<'_>, _: &Layout) -> Result<FdKind> {
        Ok(FdKind::Memfd { seals: seen.seals()?.unwrap_or(Seals::empty()), hugetlb: hugetlb(seen) })
    }

    fn keeps_pages(&self, kind: &FdKind) -> bool {
        // A hole can be punched into hugetlb memory until it is sealed against writing, and then the pool may have no
        // page for the next touch; ordinary pages come back as zeros.
        let needed = match kind {
            FdKind::Memfd { hugetlb: Some(_), .. } => Seals::SHRINK | Seals::WRITE,
            _ => Seals::SHRINK,
        };
        kind.seals().is_some_and(|seals| seals.contains(needed))
    }

    fn is_immutable(&self, kind: &FdKind) -> bool {
        kind.seals().is_some_and(|seals| seals.contains(Seals::IMMUTABLE))
    }

    fn not_collapsed(&self, kind: &FdKind) -> Option<&'static str> {
        matches!(kind, FdKind::Memfd { hugetlb: Some(_), .. })
            .then_some("hugetlb memory has huge pages already")
    }

    fn offers(&self) -> Vec<Offer> {
        let free = |name: &str| {
            let free = fs::read_to_string(format!("/sys/kernel/mm/hugepages/{name}/free_hugepages"));
            free.ok().and_then(|free| free.trim().parse::<u64>().ok())
        };
        let pool = |size, name| free(name).map(|free| format!("{free} free pages of {size}"));
        let pools = [pool("2M", "hugepages-2048kB"), pool("1G", "hugepages-1048576kB")];
        let pools: Vec<String> = pools.into_iter().flatten().collect();
        let note = match pools.is_empty() {
            true => "no hugetlb pages: --hugepages 2M and 1G need CONFIG_HUGETLBFS".to_owned(),
            false => format!("hugetlb: {}", pools.join(", ")),
        };
        vec![Offer { note, ..Offer::new(FACTS.name, "memfd", Access::ReadWrite) }]
    }
}
