//! Owners of mappings, and nothing else: bytes are reached through the views they hand out.
//!
//! Every mapping lies within the file or device as it is at that moment, so a view touches no page that is not there
//! (unless somebody cuts the file short later, which only [`Seals::SHRINK`](crate::Seals::SHRINK), a dma-buf or a
//! device excludes).

#![allow(unsafe_code, reason = "mmap and munmap")]

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::advice::{self, PageStats};
use crate::class::MemoryClass;
use crate::describe::{FdInfo, describe_found};
use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::kind::{Found, recognise};
use crate::page::{huge_page_size, page_size};
use crate::view::SharedBytes;
use crate::view_mut::SharedBytesMut;

/// Bytes from which on a mapping is placed, and what it is placed by where huge pages are larger: 64-bit Arm maps so
/// many by one entry of the TLB when pages have 16 or 64 KiB.
const CONTIGUOUS: u64 = 2 << 20;

/// How often another thread may take the address found for an aligned mapping before any address will do.
const PLACE_ATTEMPTS: usize = 8;

/// Where a mapping of this process began that is gone now; 0 once it was tried for the next one.
static LAST_PLACE: AtomicUsize = AtomicUsize::new(0);

/// One mapping of a file, memfd, dma-buf or device; unmapped on drop. It outlives the descriptor it was made from.
///
/// A length of 0 is allowed and maps nothing.
pub struct Mapping {
    owner: Owner,
    /// First byte that was asked for; the mapping may start earlier (its offset is rounded down).
    ptr: NonNull<u8>,
    len: usize,
    access: Access,
    class: MemoryClass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
    Private,
}

/// Who unmaps.
enum Owner {
    Nothing,
    /// What needs no particular address is left to memmap2, which gives pointers and makes no reference.
    Anywhere(#[allow(dead_code, reason = "held for its Drop")] MmapRaw),
    /// memmap2 has neither a wished-for address nor MAP_PRIVATE without a reference: nix's mmap.
    Placed(#[allow(dead_code, reason = "held for its Drop")] Span),
}

// SAFETY: the pointer is to memory that stays mapped until the drop of the owner, whatever thread that happens on;
// mapping and unmapping are not bound to a thread. Access goes through views, which see to their own threads.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives reading views (atomic loads) and advice to the kernel; writing views need `&mut Mapping`.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({:p}, {} bytes, {:?})", self.ptr, self.len, self.access)
    }
}

impl Mapping {
    /// Maps `len` bytes from `offset` on for reading, shared.
    ///
    /// From 2 MiB on, a file or memfd is mapped at an address that is congruent to the offset modulo 2 MiB, and from
    /// [`huge_page_size`] on modulo that, so that the kernel can map its huge pages as such. Any `offset` is allowed;
    /// the mapping covers whole pages (of the size that the object needs), the view exactly the bytes asked for.
    ///
    /// # Errors
    /// [`Error::NotShareable`] for what is not memory (see [`describe`](crate::describe)), [`Error::OutOfBounds`] if
    /// the range is not within the object, [`Error::Os`] if the kernel refuses.
    pub fn read_only(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Mapping> {
        Self::new(fd, offset, len, Access::ReadOnly)
    }

    /// Maps `len` bytes from `offset` on for reading and writing, shared; else as [`read_only`](Self::read_only).
    ///
    /// # Errors
    /// As [`read_only`](Self::read_only); EACCES for a descriptor that is open for reading only, EPERM for a memfd
    /// that is sealed against writing.
    pub fn read_write(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Mapping> {
        Self::new(fd, offset, len, Access::ReadWrite)
    }

    /// Maps `len` bytes from `offset` on as a private copy: pages are copied when first written, and nobody else sees
    /// the writes. Whether later writes of others to pages not yet copied show is up to the kernel.
    ///
    /// # Errors
    /// As [`read_only`](Self::read_only); EINVAL for dma-bufs (but for the heaps of newer kernels) and devices.
    pub fn private(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Mapping> {
        Self::new(fd, offset, len, Access::Private)
    }

    /// Finds out what a descriptor is ([`describe`](crate::describe)) and maps the part of it that `part` chooses,
    /// offset and length, for reading or as a private copy. It asks the kernel less than one after the other does.
    ///
    /// # Errors
    /// As [`describe`](crate::describe), [`read_only`](Self::read_only) and [`private`](Self::private), and those of
    /// `part`.
    pub fn described<E: From<Error>>(
        fd: BorrowedFd<'_>,
        private: bool,
        part: impl FnOnce(&FdInfo) -> std::result::Result<(u64, usize), E>,
    ) -> std::result::Result<(FdInfo, Mapping), E> {
        let (info, found) = describe_found(fd)?;
        let (offset, len) = part(&info)?;
        let access = if private { Access::Private } else { Access::ReadOnly };
        let mapping = Self::of(fd, &found, offset, len, access)?;
        Ok((info, mapping))
    }

    fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, access: Access) -> Result<Mapping> {
        Self::of(fd, &recognise(fd)?, offset, len, access)
    }

    /// Maps memory that was looked at just now.
    fn of(fd: BorrowedFd<'_>, found: &Found<'_>, offset: u64, len: usize, access: Access) -> Result<Mapping> {
        let layout = &found.layout;
        let out_of_bounds = || Error::OutOfBounds { offset, len: len as u64, bound: layout.len };
        let end = offset.checked_add(len as u64).ok_or_else(out_of_bounds)?;
        if end > layout.len {
            return Err(out_of_bounds());
        }
        let class = found.kind.facts().class;
        if len == 0 {
            return Ok(Mapping { owner: Owner::Nothing, ptr: NonNull::dangling(), len, access, class });
        }
        // Offset, length and, at munmap, the length again have to be whole units of the object. Its size is a
        // multiple of its unit (page cache pages aside, whose last one is zero-filled), so rounding never leaves it.
        let unit = layout.unit;
        let placed = layout.has_huge_pages && len as u64 >= CONTIGUOUS;
        let failed = |e| found.kind.not_mapped(fd, offset, len, e);
        if !placed && unit == page_size() && access != Access::Private {
            let mut options = MmapOptions::new();
            options.offset(offset).len(len);
            let raw = match access {
                Access::ReadOnly => options.map_raw_read_only(fd.as_raw_fd()),
                Access::ReadWrite | Access::Private => options.map_raw(fd.as_raw_fd()),
            };
            let raw = raw.map_err(failed)?;
            // mmap(2) gives address 0 to nobody who did not ask for it.
            let ptr = NonNull::new(raw.as_mut_ptr())
                .ok_or_else(|| Error::invalid(fd_name(fd), "it was mapped at address 0"))?;
            return Ok(Mapping { owner: Owner::Anywhere(raw), ptr, len, access, class });
        }

        let start = offset - offset % unit;
        let too_long = || Error::invalid(fd_name(fd), format!("{len} bytes exceed the address space"));
        let span_len = end.checked_next_multiple_of(unit).map(|end| end - start).ok_or_else(too_long)?;
        let span_len = usize::try_from(span_len).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)?;
        let span = if placed {
            Span::congruent(fd, start, span_len, access).map_err(|e| failed(e.into()))?
        } else {
            Span::map(None, fd, start, span_len, access).map_err(|e| failed(e.into()))?
        };
        let skip = usize::try_from(offset - start).map_err(|_| too_long())?;
        // SAFETY: `skip + len <= span_len` since the span reaches to `end` or behind, and it is one mapping.
        let ptr = unsafe { span.start.cast::<u8>().add(skip) };
        Ok(Mapping { owner: Owner::Placed(span), ptr, len, access, class })
    }

    /// How the memory is mapped.
    #[must_use]
    pub fn class(&self) -> MemoryClass {
        self.class
    }

    /// Number of bytes asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.owner, Owner::Nothing)
    }

    /// A reading view of all bytes.
    #[must_use]
    pub fn view(&self) -> SharedBytes<'_> {
        // SAFETY: the bytes stay mapped readable as one mapping while `self` is borrowed, the kernel gives no mapping
        // above `isize::MAX`; the address comes from mmap(2), not from a reference. This process writes them only
        // through `view_mut` (needs `&mut self`, so ordered with this borrow) or through another mapping.
        let view = unsafe { SharedBytes::from_raw_parts(self.ptr.as_ptr(), self.len) };
        if self.class.has_wide_loads() { view.with_wide_loads() } else { view }
    }

    /// Whether the mapping was made by [`read_write`](Self::read_write) or [`private`](Self::private).
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.access != Access::ReadOnly
    }

    /// Whether the mapping was made by [`private`](Self::private): writes stay in this process.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.access == Access::Private
    }

    /// A writing view of all bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a mapping made by [`read_only`](Self::read_only).
    pub fn view_mut(&mut self) -> Result<SharedBytesMut<'_>> {
        if !self.is_writable() {
            return Err(Error::invalid("view_mut", "the mapping is read-only"));
        }
        // SAFETY: the bytes stay mapped readable and writable (checked above) as one mapping while `self` is
        // mutably borrowed, and that borrow excludes every other view made from this mapping.
        Ok(unsafe { SharedBytesMut::from_raw_parts(self.ptr, self.len) })
    }

    /// Maps all pages now, so that later reads (and writes, if the mapping is shared and writable) do not fault.
    ///
    /// `Ok(false)` where the kernel cannot and is not asked: mappings of dma-bufs and other memory without pages of
    /// its own are made whole or on demand by their driver, and kernels before 5.14 lack the call. Nothing is wrong
    /// then.
    ///
    /// # Errors
    /// [`Error::Os`] for other failures, for instance ENOMEM.
    pub fn populate(&self) -> Result<bool> {
        self.populate_part(0, self.len)
    }

    /// [`populate`](Self::populate) for the pages of `len` bytes from `offset` on: several threads can each do a part.
    ///
    /// # Errors
    /// As there, and [`Error::OutOfBounds`].
    pub fn populate_part(&self, offset: usize, len: usize) -> Result<bool> {
        let part = self.view().get(offset as u64, len as u64)?;
        if !self.class.can_populate() {
            return Ok(false);
        }
        advice::populate(part, self.access == Access::ReadWrite)
    }

    /// Gathers the pages of each whole block of [`huge_page_size`] into a huge page (MADV_COLLAPSE, Linux 6.1); blocks
    /// must have pages already, for empty memfds see [`allocate_huge`](crate::allocate_huge). `Ok(true)` if at least one
    /// block is a huge page now ([`pages`](Self::pages) counts), `Ok(false)` if the kernel cannot for this memory.
    ///
    /// # Errors
    /// [`Error::Os`] if no block could be collapsed for want of memory.
    pub fn collapse(&self) -> Result<bool> {
        let collapsed = advice::collapse(self.view())?;
        Ok(collapsed > 0)
    }

    /// How the range is mapped at the moment, from `/proc/self/smaps`.
    ///
    /// Dma-bufs, and devdax before Linux 7.2, count as not resident there. If the kernel has merged this mapping with
    /// a neighbour of the same file, numbers of the two cannot be told apart and are cut to this mapping's length.
    ///
    /// # Errors
    /// [`Error::Os`] if smaps cannot be read.
    pub fn pages(&self) -> Result<PageStats> {
        advice::page_stats(self.view())
    }

    /// The work of [`allocate_huge`](crate::allocate_huge) on `part` of this mapping.
    pub(crate) fn allocate_huge_blocks(&self, part: SharedBytes<'_>) -> Result<u64> {
        advice::touch_blocks(part)?;
        advice::collapse(part)
    }
}

/// A whole mapping: start and length of one successful mmap(2).
struct Span {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Span {
    /// Maps at `hint` if those addresses are free, else where the kernel likes.
    fn map(
        hint: Option<NonZeroUsize>,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: NonZeroUsize,
        access: Access,
    ) -> nix::Result<Span> {
        let (prot, flags) = match access {
            Access::ReadOnly => (ProtFlags::PROT_READ, MapFlags::MAP_SHARED),
            Access::ReadWrite => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED),
            Access::Private => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE),
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: without MAP_FIXED an address is only a hint and mmap never replaces what is mapped there; a new
        // mapping is reached by nobody but through the address returned here.
        let start = unsafe { mmap(hint, len, prot, flags, fd, offset) }?;
        Ok(Span { start, len })
    }

    /// Maps at an address congruent to `offset` modulo the size of the largest pages that the kernel may use for it.
    ///
    /// A free place is found by reserving that much more than needed; the reservation is given back and the address
    /// inside it passed as a hint. MAP_FIXED over the reservation would save the window between the two, but when it
    /// fails it may leave a hole that another thread fills before the reservation is unmapped. Before all that the place
    /// of the last mapping that went is tried, which is free where images are opened and closed in turn.
    fn congruent(fd: BorrowedFd<'_>, offset: u64, len: NonZeroUsize, access: Access) -> nix::Result<Span> {
        let unit = if len.get() as u64 >= huge_page_size() { huge_page_size() } else { CONTIGUOUS };
        let huge = usize::try_from(unit).map_err(|_| Errno::EOVERFLOW)?;
        let phase = usize::try_from(offset % unit).map_err(|_| Errno::EOVERFLOW)?;
        let is_congruent = |span: &Span| span.start.addr().get() % huge == phase;
        let last = LAST_PLACE.swap(0, Ordering::Relaxed);
        if last != 0 {
            let hint = (last - last % huge).checked_add(phase).and_then(NonZeroUsize::new);
            let span = Self::map(hint, fd, offset, len, access)?;
            if is_congruent(&span) {
                return Ok(span);
            }
        }
        for _ in 0..PLACE_ATTEMPTS {
            let reserve = len.checked_add(huge).ok_or(Errno::ENOMEM)?;
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
            // SAFETY: no MAP_FIXED, so nothing is replaced; nobody but this function knows the new address.
            let base = unsafe { mmap_anonymous(None, reserve, ProtFlags::PROT_NONE, flags) };
            // A limit of addresses may have room for the mapping alone.
            let Ok(base) = base else { break };
            drop(Span { start: base, len: reserve });
            LAST_PLACE.store(0, Ordering::Relaxed);
            let base = base.addr().get();
            let wanted = base + (phase + huge - base % huge) % huge;
            let span = Self::map(NonZeroUsize::new(wanted), fd, offset, len, access)?;
            if is_congruent(&span) {
                return Ok(span);
            }
        }
        // Correct all the same, only not with huge pages.
        Self::map(None, fd, offset, len, access)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: exactly the range that one mmap of this value's making returned (whole units of the object), which
        // it owns; whoever holds a view of it borrows the `Mapping` that owns this value.
        let result = unsafe { munmap(self.start, self.len.get()) };
        debug_assert!(result.is_ok(), "munmap {:p}, {} bytes: {result:?}", self.start, self.len);
        LAST_PLACE.store(self.start.addr().get(), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
