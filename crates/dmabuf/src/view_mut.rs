//! Writing views of shared memory. The head rules are those of the module `view`.

#![allow(unsafe_code, reason = "writes memory through raw pointers, so that no reference to it exists")]

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::view::{BOUNCE, SharedBytes, check_range};

/// A bounded pointer to writable memory that no other part of this process uses meanwhile: it comes from a mutable
/// borrow and can be split into disjoint parts for threads. Other processes may still read and write the bytes.
pub struct SharedBytesMut<'a> {
    ptr: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a mut [UnsafeCell<u8>]>,
}

// SAFETY: the view is the only path to its bytes within this process (made from a mutable borrow, parts are
// disjoint), so moving it to another thread moves that right; its lifetime keeps the memory mapped.
unsafe impl Send for SharedBytesMut<'_> {}

impl fmt::Debug for SharedBytesMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytesMut({:p}, {} bytes)", self.ptr, self.len)
    }
}

impl SharedBytes<'_> {
    /// Copies exactly `dst.len()` bytes from `offset` on to memory that is no slice; else as [`read_at`](Self::read_at).
    /// Where the two are parts of one memory, what was overwritten before it was read is copied as it is then.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] unless the range lies within the view; `dst` is then untouched.
    pub fn copy_into(self, offset: u64, dst: &mut SharedBytesMut<'_>) -> Result<()> {
        let source = self.get(offset, dst.len() as u64)?;
        // SAFETY: `dst` is valid for writes of its own length, which is `source.len()` by the line above. A view of a
        // slice does not overlap it, since nobody writes to that; of other views bytes are loaded and stored one word
        // after the other, which is defined for ranges that overlap.
        unsafe { source.copy_to(dst.as_mut_ptr()) };
        Ok(())
    }
}

impl<'a> SharedBytesMut<'a> {
    /// A view of ordinary memory of this process, for code that fills either kind.
    pub fn from_slice(bytes: &'a mut [u8]) -> Self {
        SharedBytesMut { len: bytes.len(), ptr: NonNull::from(bytes).cast(), memory: PhantomData }
    }

    /// A view of `len` bytes at `ptr` that code outside of Rust lends, such as an object of Python's.
    ///
    /// # Safety
    /// For all of `'a` the `len` bytes at `ptr` are readable and writable within one allocation or mapping of at most
    /// `isize::MAX` bytes, and Rust code of this process reaches them through this value alone, or through reading
    /// views that are not those of slices. What other code does meanwhile counts as another process's.
    pub unsafe fn from_raw_parts(ptr: NonNull<u8>, len: usize) -> Self {
        SharedBytesMut { ptr, len, memory: PhantomData }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for system calls and devices: valid for reads and writes of [`len`](Self::len)
    /// bytes while `self` is borrowed. Dangling (but not null) when the view is empty.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Divides the view at `mid` into two that share no byte, for instance one per thread.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds) if `mid` is behind the end.
    pub fn split_at(self, mid: usize) -> Result<(Self, Self)> {
        check_range(mid as u64, 0, self.len)?;
        // SAFETY: `mid <= self.len`, so the sum stays within the mapping or one past its end.
        let second = unsafe { self.ptr.add(mid) };
        Ok((
            SharedBytesMut { ptr: self.ptr, len: mid, memory: PhantomData },
            SharedBytesMut { ptr: second, len: self.len - mid, memory: PhantomData },
        ))
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> SharedBytesMut<'_> {
        SharedBytesMut { ptr: self.ptr, len: self.len, memory: PhantomData }
    }

    /// The sub-view of `len` bytes that starts at `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds) unless the range lies within the view.
    pub fn get_mut(&mut self, offset: u64, len: u64) -> Result<SharedBytesMut<'_>> {
        let (start, len) = check_range(offset, len, self.len)?;
        // SAFETY: `start <= self.len` (checked above), so the sum stays within the mapping or one past its end.
        let ptr = unsafe { self.ptr.add(start) };
        Ok(SharedBytesMut { ptr, len, memory: PhantomData })
    }

    /// A reading view of the same bytes; they cannot be written through `self` while it lives.
    #[must_use]
    pub fn as_shared(&self) -> SharedBytes<'_> {
        // SAFETY: the bytes are readable as one mapping or allocation for the time of the borrow by the constructors'
        // contracts, the pointer comes from mmap(2) or a `&mut [u8]`, and writing through `self` needs `&mut self`.
        unsafe { SharedBytes::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Copies `src` to `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds) unless all of `src` fits; nothing is then written.
    pub fn copy_from(&mut self, offset: u64, src: &[u8]) -> Result<()> {
        let target = self.get_mut(offset, src.len() as u64)?;
        // SAFETY: `src` is readable and `target` writable, both for `src.len()` bytes; a slice cannot overlap memory
        // that this process reaches through `self` alone; alignment 1.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), target.ptr.as_ptr(), src.len()) };
        Ok(())
    }

    /// Stores one little-endian word of 4 bytes at once: a reader sees the old word or the new one. What was written
    /// before is visible before it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds); [`Error::Invalid`](crate::Error::Invalid) at an address that
    /// is no multiple of 4.
    pub fn store_u32(&mut self, offset: u64, word: u32) -> Result<()> {
        let target = self.get_mut(offset, 4)?;
        if !target.ptr.as_ptr().addr().is_multiple_of(4) {
            return Err(Error::invalid("store_u32", "the address is no multiple of 4"));
        }
        #[allow(clippy::cast_ptr_alignment, reason = "checked above")]
        let place = target.ptr.as_ptr().cast::<AtomicU32>();
        // SAFETY: four writable bytes (bounds checked by `get_mut`), aligned (checked above), alive for the borrow;
        // a shared reference to an atomic allows concurrent accesses.
        unsafe { &*place }.store(word.to_le(), Ordering::Release);
        Ok(())
    }

    /// As [`SharedBytes::flush_cache`], after writing: other machines then find the bytes in memory.
    pub fn flush_cache(&mut self) -> bool {
        self.as_shared().flush_cache()
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds) unless the range lies within the view; nothing is then
    /// written.
    pub fn fill_zero(&mut self, offset: u64, len: u64) -> Result<()> {
        let target = self.get_mut(offset, len)?;
        // SAFETY: `target` is writable for `target.len` bytes and reached through `self` alone; alignment 1.
        unsafe { std::ptr::write_bytes(target.ptr.as_ptr(), 0, target.len) };
        Ok(())
    }

    /// Reads from `fd` at `file_offset` into the start of the view with one `pread(2)` and returns the number of
    /// bytes, which is less than [`len`](Self::len) at the end of the file and 0 behind it.
    ///
    /// Where the kernel cannot put bytes straight into the memory (EFAULT: O_DIRECT into a dma-buf), they go through
    /// a buffer of this process, at most 128 KiB in one call.
    ///
    /// # Errors
    /// Those of `pread(2)`; a call interrupted by a signal is repeated.
    pub fn pread_from(&mut self, fd: BorrowedFd<'_>, file_offset: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(file_offset)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file offset exceeds i64"))?;
        loop {
            // SAFETY: the kernel writes at most `self.len` bytes to memory that is writable for as many and that
            // nothing else in this process uses (the view is exclusive and mutably borrowed); `fd` is open.
            let n = unsafe { libc::pread(fd.as_raw_fd(), self.ptr.as_ptr().cast(), self.len, offset) };
            if let Ok(n) = usize::try_from(n) {
                return Ok(n);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EFAULT) => return self.pread_bounced(fd, offset),
                _ => return Err(error),
            }
        }
    }

    fn pread_bounced(&mut self, fd: BorrowedFd<'_>, offset: libc::off_t) -> io::Result<usize> {
        // Twice the largest sector size in use, so that an aligned part exists for O_DIRECT.
        const SECTOR: usize = 4096;
        let mut buf = vec![0u8; BOUNCE.min(self.len.next_multiple_of(SECTOR)) + SECTOR];
        let start = buf.as_ptr().align_offset(SECTOR).min(SECTOR);
        let len = buf.len() - SECTOR;
        let n = loop {
            match nix::sys::uio::pread(fd, &mut buf[start..start + len], offset) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?.min(self.len),
            }
        };
        self.copy_from(0, &buf[start..start + n]).map_err(io::Error::other)?;
        Ok(n)
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// While the slice lives nobody else reads or writes these bytes: no other process, no device, no other mapping
    /// of the memory in this process; and nobody cuts the file short.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: readable and writable for `self.len <= isize::MAX` bytes of one mapping by the constructor's
        // contract, aligned for `u8`, not null; exclusive within the process by `&mut self`, outside by promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

#[cfg(test)]
#[path = "view_mut_tests.rs"]
mod tests;
