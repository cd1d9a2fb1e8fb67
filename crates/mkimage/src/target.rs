//! Where an image is written to: a file, or memory with a descriptor. Both are filled window by window.

use crate::block::Block;
use crate::buffers::Buffers;
use crate::summary::Size;
use crate::{Error, Result, writeback};
use daxfs::format::{GENERATION_OFFSET, Generation, SUPERBLOCK_SIZE, erofs};
use dmabuf::{HugePages, Mapping, allocate_huge, huge_page_size, page_size};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use zerocopy::IntoBytes;

/// Bytes that one thread fills before it takes the next ones.
const WINDOW: u64 = 16 << 20;

/// Bytes of huge pages that are made at once. The kernel zeroes them just before they are filled, so they should still
/// be in the cache then, beside those of other threads.
const HUGE_STEP: u64 = 4 << 20;

/// Bytes that are written to a file at once, from a multiple of this: file systems that keep large pieces (folios) then
/// keep it in such, which are cheaper to make, and of which readers map each with one fault.
pub(crate) const DISK_STEP: u64 = 2 << 20;

/// Bytes that are written to memory of ordinary pages at once: they stay in the second-level cache on the way.
const MEMORY_STEP: u64 = 256 << 10;

/// Size of the huge pages that memfds and files in memory can have. The kernel's page cache holds nothing of more than
/// 2^11 pages, which those of 512 MiB are where an ordinary one has 64 KiB.
fn huge() -> Option<u64> {
    Some(huge_page_size()).filter(|size| size / page_size() <= 1 << 11)
}

/// How bytes get into the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// By pwrite(2), out of a buffer: files, and memory of ordinary pages, where page faults of a mapping would
    /// cost more than the second copy (which stays in the cache). So many bytes at once.
    Write(u64),
    /// Straight into a mapping whose blocks are made huge pages first; by pwrite(2) where that fails.
    Huge,
    /// Straight into a mapping: dma-bufs, hugetlb memfds, devdax.
    Map,
    /// Into a mapping, out of a buffer, from which it is hashed too: memory that is slow to read.
    Copy,
}

/// A target of fixed length, open for reading and writing.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) file: File,
    /// For messages.
    pub(crate) path: PathBuf,
    pub(crate) access: Access,
    /// Whether it holds zeros where nothing was written.
    pub(crate) zeroed: bool,
    /// Where the region begins in the file.
    pub(crate) origin: u64,
    /// How far behind its place in an image of its own everything but the superblock lies.
    pub(crate) shift: u64,
    /// Where what is planned for this target begins: a backing file's first byte is planned behind the image.
    pub(crate) first: u64,
    /// Whether the superblock's block is left alone until the end.
    pub(crate) keeps_head: bool,
    /// Whether it is synced in the end, so that its disk may begin before.
    pub(crate) syncs: bool,
    /// Whether what is written has to leave the processor's caches.
    pub(crate) flushes: bool,
    /// Threads that write to the file.
    writers: AtomicUsize,
    /// Whether transparent huge pages were asked for by name.
    wants_huge: bool,
    /// Bytes of whole blocks of [`Access::Huge`], and how many of them became huge pages.
    blocks: AtomicU64,
    huge: AtomicU64,
}

impl Target {
    /// A target that is reached by `access`.
    pub(crate) fn new(fd: OwnedFd, path: &Path, access: Access, zeroed: bool) -> Target {
        Target {
            file: File::from(fd),
            path: path.to_path_buf(),
            access,
            zeroed,
            origin: 0,
            shift: 0,
            first: 0,
            keeps_head: false,
            syncs: false,
            flushes: false,
            writers: AtomicUsize::new(0),
            wants_huge: false,
            blocks: AtomicU64::new(0),
            huge: AtomicU64::new(0),
        }
    }

    /// A new file or memfd, to be made of such pages.
    pub(crate) fn of_pages(fd: OwnedFd, path: &Path, pages: HugePages) -> Target {
        let access = match pages {
            HugePages::No => Access::Write(MEMORY_STEP),
            HugePages::Thp | HugePages::Auto => Access::Huge,
            HugePages::Hugetlb2M | HugePages::Hugetlb1G => Access::Map,
        };
        let mut target = Target::new(fd, path, access, true);
        target.wants_huge = pages == HugePages::Thp;
        target
    }

    /// Bytes that one thread fills before it takes the next ones. A huge page is of one window, however large it is.
    pub(crate) fn window(&self) -> u64 {
        if self.access == Access::Huge { WINDOW.max(huge().unwrap_or(0)) } else { WINDOW }
    }

    /// Says how many pages are ordinary ones though huge ones were asked for by name.
    pub(crate) fn shortfall(&self) -> Option<String> {
        let (blocks, huge) = (self.blocks.load(Ordering::Relaxed), self.huge.load(Ordering::Relaxed));
        if !self.wants_huge {
            return None;
        }
        let size = Size(huge_page_size());
        match (blocks, huge) {
            (0, _) => {
                Some(format!("pages of {size}: an image of this size has none, and is of ordinary pages"))
            }
            _ if huge == blocks => None,
            _ => {
                let (huge, blocks) = (Size(huge), Size(blocks));
                Some(format!(
                    "pages of {size}: {huge} of {blocks} were available, the rest is ordinary pages"
                ))
            }
        }
    }

    /// Fills the bytes `window` of the target: calls `fill` for one block after the other.
    pub(crate) fn fill(
        &self,
        window: Range<u64>,
        buffers: &mut Buffers,
        mut fill: impl FnMut(&mut Block<'_>, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let head = if self.keeps_head { SUPERBLOCK_SIZE as u64 } else { 0 };
        let window = window.start.max(head)..window.end;
        if self.access == Access::Huge {
            let step = HUGE_STEP.max(huge().unwrap_or(0));
            let mut at = window.start;
            while at < window.end {
                let part = at..window.end.min((at / step + 1) * step);
                at = part.end;
                match self.map_huge(&part)? {
                    Some(mut map) => fill(&mut Block::mapped(map.view_mut()?, part.start), part)?,
                    None => self.write_blocks(&part, MEMORY_STEP, buffers, &mut fill)?,
                }
            }
            return Ok(());
        }
        let (mapped, step) = match self.access {
            Access::Write(step) => (None, step),
            Access::Huge | Access::Map => (Some(self.map(&window)?), 0),
            Access::Copy => (Some(self.map(&window)?), MEMORY_STEP),
        };
        if let Some(mut map) = mapped {
            if self.access == Access::Copy {
                // Each has a mapping of its own.
                let writers = AtomicUsize::new(0);
                buffers.pass(&window, step, &writers, fill, |offset, bytes| {
                    Ok(map.view_mut()?.copy_from(offset - window.start, bytes)?)
                })?;
            } else {
                fill(&mut Block::mapped(map.view_mut()?, window.start), window)?;
            }
            if self.flushes {
                map.view_mut()?.flush_cache();
            }
            return Ok(());
        }
        self.write_blocks(&window, step, buffers, fill)?;
        if self.syncs {
            writeback::begin(&self.file, self.place(window.start)..self.place(window.end));
        }
        Ok(())
    }

    /// Makes blocks in buffers and writes them.
    fn write_blocks(
        &self,
        window: &Range<u64>,
        step: u64,
        buffers: &mut Buffers,
        fill: impl FnMut(&mut Block<'_>, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        buffers.pass(window, step, &self.writers, fill, |offset, bytes| {
            self.file
                .write_all_at(bytes, self.place(offset))
                .map_err(|error| Error::io("write", &self.path, error))
        })
    }

    /// Maps a range of the image.
    fn map(&self, range: &Range<u64>) -> Result<Mapping> {
        let len =
            usize::try_from(range.end - range.start).map_err(|_| Error::Overflow { what: "a window" })?;
        Ok(Mapping::read_write(self.file.as_fd(), self.place(range.start), len)?)
    }

    /// Maps a window and makes its whole blocks huge pages. `None` when the kernel would not.
    fn map_huge(&self, window: &Range<u64>) -> Result<Option<Mapping>> {
        let whole = huge().map_or(0, |size| (window.end - window.start) / size * size);
        if whole == 0 {
            return Ok(None);
        }
        let map = self.map(window)?;
        self.blocks.fetch_add(whole, Ordering::Relaxed);
        match allocate_huge(&map, 0..whole) {
            Ok(huge) => {
                self.huge.fetch_add(huge, Ordering::Relaxed);
                Ok((huge == whole).then_some(map))
            }
            // Too little memory, said before the kernel has to end somebody.
            Err(error @ dmabuf::Error::Invalid { .. }) => Err(error.into()),
            // A full file system for instance: pwrite(2) fails with the true cause, a mapping with a signal.
            Err(_) => Ok(None),
        }
    }

    /// Writes bytes that were not known when the rest was.
    pub(crate) fn write_late(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_at(self.place(offset) - self.origin, bytes)
    }

    /// Where in the file a planned offset lies.
    pub(crate) fn place(&self, offset: u64) -> u64 {
        self.origin + self.shift + offset - self.first
    }

    /// Writes at an offset of the region.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let offset = self.origin + offset;
        if !matches!(self.access, Access::Map | Access::Copy) {
            return self
                .file
                .write_all_at(bytes, offset)
                .map_err(|error| Error::io("write", &self.path, error));
        }
        let mut map = Mapping::read_write(self.file.as_fd(), offset, bytes.len())?;
        let mut view = map.view_mut()?;
        match <[u8; 4]>::try_from(bytes) {
            // The magic, which others look for: they see all of it or nothing.
            Ok(word) => view.store_u32(0, u32::from_le_bytes(word))?,
            Err(_) => view.copy_from(0, bytes)?,
        }
        if self.flushes {
            view.flush_cache();
        }
        Ok(())
    }

    /// From here until a superblock is written, nobody takes the region for an image, and `record` says why.
    pub(crate) fn invalidate(&self, record: &Generation) -> Result<()> {
        // The record first: who finds no magic finds the reason.
        self.write_at(GENERATION_OFFSET as u64, record.as_bytes())?;
        fence(Ordering::SeqCst);
        self.clear_magic()
    }

    /// Takes what kernels and readers look for away: DAXFS's magic, and that of an EROFS view.
    fn clear_magic(&self) -> Result<()> {
        for offset in [0, erofs::SUPERBLOCK_OFFSET] {
            self.write_at(offset as u64, &[0; 4])?;
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    /// Writes the superblock so that its magic appears last, and that of an EROFS view just before it: until then nobody
    /// takes the target for an image.
    ///
    /// Everything that was written before is visible before: on this machine by the fences, on machines that share
    /// the memory by what was flushed.
    pub(crate) fn write_superblock(&self, bytes: &[u8]) -> Result<()> {
        let view = erofs::SUPERBLOCK_OFFSET..erofs::SUPERBLOCK_OFFSET + 4;
        let mut rest = bytes.to_vec();
        rest[view.clone()].fill(0);
        fence(Ordering::SeqCst);
        if self.keeps_head {
            match Generation::find(bytes) {
                Some(record) => self.invalidate(&Generation::new(record.number.get(), true))?,
                None => self.clear_magic()?,
            }
        }
        self.write_at(4, &rest[4..])?;
        fence(Ordering::SeqCst);
        self.write_at(view.start as u64, &bytes[view])?;
        fence(Ordering::SeqCst);
        self.write_at(0, &bytes[..4])?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}
