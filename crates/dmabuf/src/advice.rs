//! What the kernel is asked about mapped memory, and what it tells: populate, collapse, `/proc/self/smaps`.

#![allow(unsafe_code, reason = "madvise")]

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use crate::error::{Error, Result};
use crate::page::{huge_page_size, page_size};
use crate::view::SharedBytes;

/// Attempts per block while pages of it are locked or being migrated (EAGAIN, EBUSY).
const COLLAPSE_ATTEMPTS: usize = 16;

/// Blocks that the kernel is asked for at once: each call has all processors hand in the pages they keep for later.
const COLLAPSE_BLOCKS: usize = 16;

/// How a mapped range is backed at the moment; all numbers are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStats {
    /// Length of the range in whole pages.
    pub mapped: u64,
    /// Of it, what page tables of this process point to.
    pub resident: u64,
    /// Of it, what is mapped by huge pages: transparent ones ([`huge_page_size`]), and those of hugetlb.
    pub huge: u64,
    /// Smallest page size that the kernel uses for the range's VMAs (`KernelPageSize`): [`page_size`], or that of
    /// hugetlb pages or of a devdax device. Transparent huge pages show in `huge` only. 0 for an empty range.
    pub page_size: u64,
}

/// A range of addresses; whole pages, so that it may be handed to madvise.
#[derive(Clone, Copy)]
struct Pages {
    start: usize,
    len: usize,
}

impl Pages {
    /// The pages that hold the bytes of `view`.
    fn around(view: SharedBytes<'_>) -> Pages {
        let page = usize::try_from(page_size()).unwrap_or(4096);
        let addr = view.as_ptr().addr();
        let start = addr - addr % page;
        Pages { start, len: (addr - start + view.len()).next_multiple_of(page) }
    }

    /// The whole, aligned blocks within `view` that can be a huge page.
    fn blocks(view: SharedBytes<'_>) -> impl Iterator<Item = Pages> {
        let huge = usize::try_from(huge_page_size()).unwrap_or(usize::MAX);
        let addr = view.as_ptr().addr();
        let end = addr + view.len();
        let first = addr.checked_next_multiple_of(huge).unwrap_or(end);
        (first..end)
            .step_by(huge)
            .filter(move |start| end - start >= huge)
            .map(move |start| Pages { start, len: huge })
    }

    /// Calls madvise once with one of the advices that never change or drop contents.
    fn advise(self, within: SharedBytes<'_>, advice: Harmless) -> io::Result<()> {
        let ptr = within.as_ptr().with_addr(self.start).cast_mut().cast();
        // SAFETY: MADV_POPULATE_* and MADV_COLLAPSE change neither contents nor protection of memory, only which
        // pages back it, so they are sound for any range; this one is of a mapping that `within` keeps alive.
        let result = unsafe { libc::madvise(ptr, self.len, advice as libc::c_int) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Advices that keep contents as they are. nix lacks the last.
#[derive(Clone, Copy)]
enum Harmless {
    PopulateRead = libc::MADV_POPULATE_READ as isize,
    PopulateWrite = libc::MADV_POPULATE_WRITE as isize,
    /// `MADV_COLLAPSE` of `linux/mman.h`; the libc crate has it for glibc only.
    Collapse = 25,
}

pub(crate) fn populate(view: SharedBytes<'_>, write: bool) -> Result<bool> {
    if view.is_empty() {
        return Ok(true);
    }
    let advice = if write { Harmless::PopulateWrite } else { Harmless::PopulateRead };
    loop {
        let Err(error) = Pages::around(view).advise(view, advice) else { return Ok(true) };
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => {}
            // EINVAL: the kernel or this kind of mapping does not know it. EFAULT: no pages to pin (PFN maps).
            Some(libc::EINVAL | libc::EFAULT) => return Ok(false),
            _ => return Err(Error::os("madvise POPULATE", format!("{view:?}"), error)),
        }
    }
}

/// Allocates the first page of every whole block, which the kernel wants to see before it builds a huge page.
pub(crate) fn touch_blocks(view: SharedBytes<'_>) -> Result<()> {
    let page = usize::try_from(page_size()).unwrap_or(4096);
    for block in Pages::blocks(view) {
        while let Err(error) = (Pages { len: page, ..block }).advise(view, Harmless::PopulateWrite) {
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                Some(libc::EINVAL) => return Ok(()), // older than 5.14: then there is no MADV_COLLAPSE either
                _ => return Err(Error::os("madvise POPULATE_WRITE", format!("{view:?}"), error)),
            }
        }
    }
    Ok(())
}

/// Collapses every whole block and returns the bytes that are huge pages now.
pub(crate) fn collapse(view: SharedBytes<'_>) -> Result<u64> {
    let mut done = 0;
    let blocks: Vec<Pages> = Pages::blocks(view).collect();
    for several in blocks.chunks(COLLAPSE_BLOCKS) {
        let len = several.iter().map(|block| block.len).sum();
        let whole = several.first().map(|first| Pages { len, ..*first });
        if whole.is_some_and(|whole| several.len() > 1 && whole.advise(view, Harmless::Collapse).is_ok()) {
            done += len as u64;
            continue;
        }
        let (all, got) = collapse_each(view, several)?;
        done += got;
        if !all {
            break;
        }
    }
    Ok(done)
}

/// Collapses blocks one by one, and returns whether it is worth to go on, and the bytes that are huge pages now.
fn collapse_each(view: SharedBytes<'_>, blocks: &[Pages]) -> Result<(bool, u64)> {
    let mut done = 0;
    for &block in blocks {
        match collapse_block(view, block) {
            Ok(()) => done += block.len as u64,
            Err(error) => match error.raw_os_error() {
                // This block only: it has no page yet, or somebody holds one of its pages all the time.
                Some(libc::EINVAL | libc::EAGAIN | libc::EBUSY) => {}
                // No contiguous memory, or the limit of the control group: more attempts would only cost time, and
                // ordinary pages will do.
                Some(libc::ENOMEM) => return Ok((false, done)),
                _ => return Err(Error::os("madvise COLLAPSE", format!("{view:?}"), error)),
            },
        }
    }
    Ok((true, done))
}

fn collapse_block(view: SharedBytes<'_>, block: Pages) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        let Err(error) = block.advise(view, Harmless::Collapse) else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EBUSY) if attempt < COLLAPSE_ATTEMPTS => {
                attempt += 1;
                std::thread::yield_now();
            }
            _ => return Err(error),
        }
    }
}

pub(crate) fn page_stats(view: SharedBytes<'_>) -> Result<PageStats> {
    if view.is_empty() {
        return Ok(PageStats::default());
    }
    let subject = "/proc/self/smaps";
    let failed = |e| Error::os("read", subject, e);
    let smaps = File::open(subject).map_err(failed)?;
    let range = Pages::around(view);
    sum_vmas(BufReader::new(smaps), range.start as u64, (range.start + range.len) as u64).map_err(failed)
}

/// Sums the VMAs that overlap `start..end`, in the format of proc_pid_smaps(5); a mapping can consist of several.
fn sum_vmas(smaps: impl BufRead, start: u64, end: u64) -> io::Result<PageStats> {
    let mut total = PageStats { mapped: end - start, ..PageStats::default() };
    // The part of the range that the VMA being read covers, and that VMA's numbers so far.
    let mut overlap = 0;
    let mut vma = PageStats::default();
    let mut add = |overlap: u64, vma: PageStats| {
        if overlap > 0 {
            total.resident += vma.resident.min(overlap);
            total.huge += vma.huge.min(overlap);
            total.page_size = match total.page_size {
                0 => vma.page_size,
                size => size.min(vma.page_size),
            };
        }
    };
    for line in smaps.split(b'\n') {
        // A path need not be UTF-8, but what is parsed here is ASCII.
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some((from, to)) = vma_range(&line) {
            add(overlap, std::mem::take(&mut vma));
            if from >= end {
                return Ok(total); // VMAs come in the order of addresses; what follows costs the kernel time to count
            }
            overlap = to.min(end).saturating_sub(from.max(start));
        } else if overlap > 0 {
            let Some((key, value)) = line.split_once(':') else { continue };
            let kib =
                || value.trim().strip_suffix(" kB").and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
            match key {
                "Rss" => vma.resident += kib() << 10,
                "KernelPageSize" => vma.page_size = kib() << 10,
                "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => vma.huge += kib() << 10,
                // Rss leaves hugetlb pages out.
                "Shared_Hugetlb" | "Private_Hugetlb" => {
                    vma.huge += kib() << 10;
                    vma.resident += kib() << 10;
                }
                _ => {}
            }
        }
    }
    add(overlap, vma);
    Ok(total)
}

/// The addresses of a VMA's first line, `None` for the `Key: value` lines.
fn vma_range(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 rw-s 00000000 00:01 7 /memfd:a (deleted)
Size:                  8 kB
KernelPageSize:        4 kB
Rss:                   4 kB
ShmemPmdMapped:        0 kB
VmFlags: rd wr sh mr mw me ms sd
400000-800000 rw-s 00000000 00:01 7 /dev/a-b c: d
KernelPageSize:        4 kB
Rss:                4096 kB
ShmemPmdMapped:     2048 kB
800000-a00000 rw-s 00000000 00:0f 9 /anon_hugepage (deleted)
KernelPageSize:     2048 kB
Rss:                   0 kB
Shared_Hugetlb:     2048 kB
Private_Hugetlb:       0 kB
";

    fn stats(start: u64, end: u64) -> PageStats {
        sum_vmas(SMAPS.as_bytes(), start, end).unwrap()
    }

    #[test]
    fn one_vma() {
        let expected = PageStats { mapped: 0x2000, resident: 4096, huge: 0, page_size: 4096 };
        assert_eq!(stats(0x1000, 0x3000), expected);
    }

    #[test]
    fn several_vmas_add_up_and_the_smallest_page_counts() {
        let expected = PageStats { mapped: 6 << 20, resident: 6 << 20, huge: 4 << 20, page_size: 4096 };
        assert_eq!(stats(0x40_0000, 0xa0_0000), expected);
    }

    #[test]
    fn a_part_of_a_vma_is_never_more_than_the_part() {
        let expected = PageStats { mapped: 0x1000, resident: 0x1000, huge: 0x1000, page_size: 4096 };
        assert_eq!(stats(0x40_0000, 0x40_1000), expected);
    }

    #[test]
    fn addresses_without_a_vma() {
        assert_eq!(stats(0x3000, 0x4000), PageStats { mapped: 0x1000, ..PageStats::default() });
    }

    #[test]
    fn blocks_are_whole_and_aligned() {
        let huge = usize::try_from(huge_page_size()).unwrap();
        // Never touched, so it takes addresses alone.
        let memory = vec![0u8; 4 * huge];
        let view = SharedBytes::from_slice(&memory);
        let count = |offset: usize, len: usize| {
            let blocks: Vec<_> = Pages::blocks(view.get(offset as u64, len as u64).unwrap()).collect();
            assert!(blocks.iter().all(|b| b.start % huge == 0 && b.len == huge));
            blocks.len()
        };
        let first = view.as_ptr().align_offset(huge);
        assert_eq!(count(first, 3 * huge), 3);
        assert_eq!(count(first + 1, 2 * huge), 1);
        assert_eq!(count(first, huge - 1), 0);
        assert_eq!(count(first, 0), 0);
    }
}
