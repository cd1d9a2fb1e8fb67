//! Copying a region into host memory that the driver allocated, on several threads: each writes its pieces where they
//! stay, so nothing is pinned, and nothing goes over the link.

#![allow(unsafe_code, reason = "writes the memory of a copy by its address")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dmabuf::DirectFile;

use super::buffer::Buffer;
use crate::DeviceError;
use crate::Result;
use crate::UploadOptions;
use crate::copy::segments::Segments;
use crate::copy::threads;
use daxfs::Region;

/// What `O_DIRECT` reads are a multiple of.
const BLOCK: u64 = 4096;

/// One copy. While it lives nobody else has the memory: no other process, since nothing has been shared, and no work of
/// the device.
#[derive(Debug)]
pub(super) struct Fill<'a> {
    options: &'a UploadOptions,
    region: &'a Region,
    segments: &'a Segments,
    to: &'a Buffer,
    /// The CPU's address of the first byte.
    start: *mut u8,
    /// Bytes that may be written, those of the allocation: at least as many as are copied.
    room: u64,
    /// For what is not in the page cache.
    direct: Option<DirectFile>,
    /// First byte that no thread has taken.
    next: AtomicU64,
    done: AtomicU64,
    /// Set by the thread that failed.
    stop: AtomicBool,
}

// SAFETY: through the pointer each thread writes only the piece that it has taken, which no other one has (`take`);
// everything else is shared by what may be shared.
unsafe impl Sync for Fill<'_> {}

impl<'a> Fill<'a> {
    /// Of these parts of `region`, into host memory that was allocated for them and that nobody else has seen.
    pub fn new(
        options: &'a UploadOptions,
        region: &'a Region,
        segments: &'a Segments,
        to: &'a Buffer,
    ) -> Result<Self> {
        let no_address = || DeviceError::NotResident {
            device: to.device().name().into(),
            advice: "its memory has no address of the CPU",
        };
        let address = to.host_address().ok_or_else(no_address)?;
        // As with copies to devices: what several processes read of one file is read through the cache.
        let direct = if options.direct && segments.is_whole() { region.direct() } else { None };
        Ok(Self {
            options,
            region,
            segments,
            to,
            start: std::ptr::with_exposed_provenance_mut(address),
            room: to.allocation()?.size(),
            direct,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Copies everything.
    pub fn run(&self) -> Result<()> {
        let pieces = usize::try_from(self.to.len().div_ceil(self.piece())).unwrap_or(usize::MAX);
        threads::run(pieces.min(self.options.threads), &self.stop, || {
            while let Some((at, len)) = self.take() {
                self.copy(at, len)?;
                let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
                if !self.options.advance(done, self.to.len()) {
                    return Err(DeviceError::Cancelled { device: self.to.device().name().into() }.into());
                }
            }
            Ok(())
        })
    }

    /// Bytes that a thread takes at a time, not 0.
    fn piece(&self) -> u64 {
        self.options.piece as u64
    }

    /// The next piece: where it begins, and its bytes.
    fn take(&self) -> Option<(u64, u64)> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.next.fetch_add(self.piece(), Ordering::Relaxed);
        let len = self.to.len().checked_sub(at).filter(|&left| left > 0)?.min(self.piece());
        Some((at, len))
    }

    /// Fills a piece that this thread has taken.
    fn copy(&self, at: u64, len: u64) -> Result<()> {
        // Behind the last piece there is nobody's memory, in which whole blocks of a disk have room.
        let is_last = at + len == self.to.len();
        let end = if is_last { (at + len).next_multiple_of(BLOCK).min(self.room) } else { at + len };
        let size = |bytes| usize::try_from(bytes).map_err(|_| self.outside(at, len));
        let (from, room, len) = (size(at)?, size(end - at)?, size(len)?);
        // SAFETY: `at..end` lies within the allocation, which is `room` bytes of one mapping at `start`, readable and
        // writable for the CPU until the copy is complete. It holds whatever the driver left there, and any byte is a
        // `u8`. No other thread has taken these bytes, no other process has a descriptor, and the device was given no
        // work on them, so this is the only reference to them.
        let target = unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(from), room) };
        let is_read = match &self.direct {
            Some(file) => {
                file.read(self.region.view().get(at, len as u64)?, self.region.offset() + at, target)
            }
            None => false,
        };
        if !is_read {
            self.segments.read_at(self.region, at, &mut target[..len])?;
        }
        // What the file has behind the image is nobody's business, and a read that failed may have left it, too.
        target[len..].fill(0);
        Ok(())
    }

    fn outside(&self, offset: u64, len: u64) -> dmabuf::Error {
        dmabuf::Error::OutOfBounds { offset, len, bound: self.room }
    }
}
