//! Bounded views of memory that somebody else may write at any time.
//!
//! Head rules of this module:
//! 1. No `&[u8]` or `&mut [u8]` to such memory is ever formed, except through the two `unsafe` doors
//!    [`SharedBytes::as_slice`] and [`SharedBytesMut::as_mut_slice`](crate::SharedBytesMut::as_mut_slice), whose callers promise that nobody writes.
//! 2. Reads are relaxed atomic loads of whole words (single bytes at the edges): defined when another thread or
//!    process stores meanwhile, and as fast as `memcpy` for what does not fit the caches.
//! 3. A byte is copied once and the copy is judged: two reads of one place may differ.

#![allow(
    unsafe_code,
    reason = "reads and writes memory through raw pointers, so that no reference to it exists"
)]

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::wide;

/// Bytes per step where a bounce buffer is needed: it stays in the second-level cache.
pub(crate) const BOUNCE: usize = 128 << 10;
const WORD: usize = size_of::<u64>();

/// How a view is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loads {
    /// The bytes come from a `&[u8]`: nobody may write them for the view's life, so a plain copy is right.
    Frozen,
    /// Relaxed atomic loads of words.
    Words,
    /// Loads of 16 bytes, for memory that the CPU does not cache.
    Wide,
}

/// A bounded pointer to `len` readable bytes, which others may be writing. Copying it copies no bytes.
///
/// It has no `Deref` and no `AsRef<[u8]>` on purpose: a `&[u8]` promises the compiler that the bytes do not change.
/// For system calls and devices take [`as_ptr`](Self::as_ptr) and [`len`](Self::len).
#[derive(Clone, Copy)]
pub struct SharedBytes<'a> {
    ptr: NonNull<u8>,
    len: usize,
    loads: Loads,
    memory: PhantomData<&'a [UnsafeCell<u8>]>,
}

// SAFETY: a view only reads, by relaxed atomic loads (or plain ones of bytes that a `&[u8]` keeps unchanged); both
// are defined from any thread. Its lifetime keeps the memory mapped on whichever thread it is.
unsafe impl Send for SharedBytes<'_> {}
// SAFETY: as for `Send`: the type has no state of its own that could be changed through `&self`.
unsafe impl Sync for SharedBytes<'_> {}

impl fmt::Debug for SharedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({:p}, {} bytes)", self.ptr, self.len)
    }
}

impl<'a> SharedBytes<'a> {
    /// A view of no bytes.
    #[must_use]
    pub const fn empty() -> Self {
        SharedBytes { ptr: NonNull::dangling(), len: 0, loads: Loads::Frozen, memory: PhantomData }
    }

    /// A view of ordinary memory of this process, which nobody writes while it is borrowed.
    #[must_use]
    pub fn from_slice(bytes: &'a [u8]) -> Self {
        SharedBytes {
            ptr: NonNull::from(bytes).cast(),
            len: bytes.len(),
            loads: Loads::Frozen,
            memory: PhantomData,
        }
    }

    /// A view of `len` bytes at `ptr`; a null `ptr` is allowed when `len` is 0.
    ///
    /// # Safety
    /// For all of `'a`: the bytes are mapped readable within one allocation or mapping of at most `isize::MAX` bytes;
    /// `ptr` does not come from a `&[u8]` (use [`from_slice`](Self::from_slice) there); and this process writes them
    /// only by atomic stores, through another mapping of the memory, or ordered before or after the reads by
    /// synchronisation. Other processes and devices may write at will.
    #[must_use]
    pub unsafe fn from_raw_parts(ptr: *const u8, len: usize) -> Self {
        match NonNull::new(ptr.cast_mut()) {
            Some(ptr) => SharedBytes { ptr, len, loads: Loads::Words, memory: PhantomData },
            None => Self::empty(),
        }
    }

    /// The same bytes, copied by loads of 16 bytes: for memory that the CPU does not cache, where each load goes to the
    /// device. Has no effect on views of slices.
    #[must_use]
    pub fn with_wide_loads(self) -> Self {
        match self.loads {
            Loads::Words => SharedBytes { loads: Loads::Wide, ..self },
            Loads::Frozen | Loads::Wide => self,
        }
    }

    /// Writes this processor's cached copies of the bytes back to memory and drops them, so that the next load sees
    /// what other machines wrote to memory that they share without coherent caches. `false` where that is not known
    /// for this kind of processor (all but x86-64), and only the order of loads is kept.
    pub fn flush_cache(self) -> bool {
        // SAFETY: the bytes are mapped readable for `'a` by the constructors' contract.
        unsafe { crate::cache::flush(self.as_ptr(), self.len) }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for system calls and devices: valid for reads of [`len`](Self::len) bytes for
    /// `'a`. Dangling (but not null) when the view is empty.
    #[must_use]
    pub fn as_ptr(self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// The sub-view of `len` bytes that starts at `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] unless the range lies within the view.
    pub fn get(self, offset: u64, len: u64) -> Result<SharedBytes<'a>> {
        let (start, len) = check_range(offset, len, self.len)?;
        // SAFETY: `start <= self.len` (checked above), so the sum stays within the view's memory or one past its
        // end, which is one allocation or mapping by the contract of the constructors.
        let ptr = unsafe { self.ptr.add(start) };
        Ok(SharedBytes { ptr, len, ..self })
    }

    /// Copies exactly `dst.len()` bytes from `offset` on into `dst`.
    ///
    /// The copy as a whole is not atomic: a concurrent writer may show up in some words and not in others.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] unless the range lies within the view; `dst` is then untouched.
    pub fn read_at(self, offset: u64, dst: &mut [u8]) -> Result<()> {
        let source = self.get(offset, dst.len() as u64)?;
        // SAFETY: `dst` is valid for writes of its own length, which is `source.len` by the line above, and as a
        // `&mut` it overlaps no live view of ordinary memory; foreign writers do not matter to the loads.
        unsafe { source.copy_to(dst.as_mut_ptr()) };
        Ok(())
    }

    /// Copies all bytes.
    #[must_use]
    pub fn to_vec(self) -> Vec<u8> {
        let mut copy: Vec<u8> = Vec::with_capacity(self.len);
        let spare: &mut [MaybeUninit<u8>] = copy.spare_capacity_mut();
        // SAFETY: the fresh buffer has room for `self.len` bytes and overlaps nothing.
        unsafe { self.copy_to(spare.as_mut_ptr().cast()) };
        // SAFETY: the capacity is at least `self.len` and `copy_to` has initialised that many bytes.
        unsafe { copy.set_len(self.len) };
        copy
    }

    /// Visits the bytes in order through the caller's bounce buffer: `f` gets the offset of each piece and a private
    /// copy of it, at most `buf.len()` bytes (an empty `buf` is replaced by a small one).
    ///
    /// # Errors
    /// The first error of `f` ends the visit and is returned.
    pub fn chunks<E>(
        self,
        buf: &mut [u8],
        mut f: impl FnMut(u64, &[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut small = [0u8; 512];
        let buf = if buf.is_empty() { &mut small[..] } else { buf };
        let mut start = 0;
        while start < self.len {
            let len = buf.len().min(self.len - start);
            let piece = &mut buf[..len];
            // SAFETY: `start < self.len`, so the sum stays within the view's one allocation or mapping.
            let ptr = unsafe { self.ptr.add(start) };
            let source = SharedBytes { ptr, len, ..self };
            // SAFETY: `piece` is valid for writes of `len` bytes, which is `source.len`, and overlaps nothing.
            unsafe { source.copy_to(piece.as_mut_ptr()) };
            f(start as u64, piece)?;
            start += len;
        }
        Ok(())
    }

    /// Writes all bytes to `w` through a bounce buffer and returns their number.
    ///
    /// # Errors
    /// Those of `w`.
    pub fn write_to(self, w: &mut impl io::Write) -> io::Result<u64> {
        let mut buf = vec![0; BOUNCE.min(self.len)];
        self.chunks(&mut buf, |_, piece| w.write_all(piece))?;
        Ok(self.len as u64)
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// Nobody, in this process or outside of it, writes any of the bytes or cuts the memory short during `'a`. A
    /// memfd sealed with WRITE, SHRINK and GROW is proof of that.
    #[must_use]
    pub unsafe fn as_slice(self) -> &'a [u8] {
        // SAFETY: pointer and length describe readable memory for `'a` by the constructors' contract, at most
        // `isize::MAX` bytes of one mapping, aligned for `u8`, never null; the caller promises that it is unchanged.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Copies all `self.len` bytes to `dst`.
    ///
    /// # Safety
    /// `dst` is valid for writes of `self.len` bytes, which do not overlap a view of a slice.
    pub(crate) unsafe fn copy_to(self, dst: *mut u8) {
        let src = self.as_ptr();
        if self.loads == Loads::Frozen {
            // SAFETY: `src` comes from a `&[u8]` of `self.len` bytes (or is dangling with length 0), `dst` is valid
            // for as many writes and does not overlap by this function's contract.
            unsafe { std::ptr::copy_nonoverlapping(src, dst, self.len) };
            return;
        }
        if self.loads == Loads::Wide && self.len >= wide::LEAST {
            let head = src.align_offset(wide::STEP).min(self.len);
            let blocks = (self.len - head) / wide::STEP;
            let done = head + blocks * wide::STEP;
            // SAFETY: `head <= self.len`: a prefix of the two ranges that the contracts of view and caller vouch for.
            unsafe { load_bytes(src, dst, head) };
            // SAFETY: `head + blocks * STEP <= self.len` keeps both ranges inside, and `head` aligned the source.
            unsafe { wide::copy(src.wrapping_add(head), dst.wrapping_add(head), blocks) };
            // SAFETY: the rest of the same two ranges.
            unsafe { load_bytes(src.wrapping_add(done), dst.wrapping_add(done), self.len - done) };
            return;
        }
        let head = src.align_offset(WORD).min(self.len);
        let words = (self.len - head) / WORD;
        // SAFETY: `head <= self.len`: a prefix of the two ranges that the contracts of view and caller vouch for.
        unsafe { load_bytes(src, dst, head) };
        // SAFETY: `head + words * WORD <= self.len` keeps both ranges inside; `head` made the source word-aligned
        // unless it took all bytes, and then `words` is 0.
        unsafe { load_words(src.wrapping_add(head), dst.wrapping_add(head), words) };
        let tail = head + words * WORD;
        // SAFETY: the rest of the same two ranges.
        unsafe { load_bytes(src.wrapping_add(tail), dst.wrapping_add(tail), self.len - tail) };
    }
}

/// Copies `len` bytes one by one with relaxed loads: for the unaligned edges.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes; they do not overlap.
unsafe fn load_bytes(src: *const u8, dst: *mut u8, len: usize) {
    for i in 0..len {
        // SAFETY: in bounds by contract, alignment 1. A shared reference to an atomic allows concurrent stores, and
        // relaxed loads of up to 8 bytes are allowed on read-only pages (documentation of `core::sync::atomic`).
        let byte = unsafe { &*src.wrapping_add(i).cast::<AtomicU8>() }.load(Ordering::Relaxed);
        // SAFETY: `i < len`, and `dst` is valid for writes of `len` bytes.
        unsafe { dst.wrapping_add(i).write(byte) };
    }
}

/// Copies `count` words with relaxed loads, eight in flight.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `8 * count` bytes, they do not overlap, and `src` is aligned to
/// 8 bytes unless `count` is 0.
pub(crate) unsafe fn load_words(src: *const u8, dst: *mut u8, count: usize) {
    #[allow(
        clippy::cast_ptr_alignment,
        reason = "the contract asks for an aligned source; `dst` is written unaligned"
    )]
    let (src, dst) = (src.cast::<AtomicU64>(), dst.cast::<u64>());
    let load = |i: usize| {
        // SAFETY: only called with `i < count`, so in bounds and, by contract, aligned; for the shared reference to
        // an atomic see `load_bytes`.
        unsafe { &*src.wrapping_add(i) }.load(Ordering::Relaxed)
    };
    let store = |i: usize, word: u64| {
        // SAFETY: only called with `i < count`, within the range that the contract makes writable.
        unsafe { dst.wrapping_add(i).write_unaligned(word) };
    };
    let mut i = 0;
    while count - i >= 8 {
        let words = (
            load(i),
            load(i + 1),
            load(i + 2),
            load(i + 3),
            load(i + 4),
            load(i + 5),
            load(i + 6),
            load(i + 7),
        );
        store(i, words.0);
        store(i + 1, words.1);
        store(i + 2, words.2);
        store(i + 3, words.3);
        store(i + 4, words.4);
        store(i + 5, words.5);
        store(i + 6, words.6);
        store(i + 7, words.7);
        i += 8;
    }
    while i < count {
        store(i, load(i));
        i += 1;
    }
}

/// Converts a range to `usize` if it lies within `bound` bytes.
pub(crate) fn check_range(offset: u64, len: u64, bound: usize) -> Result<(usize, usize)> {
    let error = Error::OutOfBounds { offset, len, bound: bound as u64 };
    match (usize::try_from(offset), usize::try_from(len)) {
        (Ok(start), Ok(n)) if start.checked_add(n).is_some_and(|end| end <= bound) => Ok((start, n)),
        _ => Err(error),
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
