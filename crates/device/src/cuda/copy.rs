//! Copying a region into device memory, on several threads.
//!
//! The threads read pieces into a ring of pinned memory, and the device fetches one part of it while others are being
//! read. Pages that are pinned where they are, or are to be, are fetched from there, in longer pieces: one thread pins
//! while the device fetches what another has pinned.

#![allow(unsafe_code, reason = "submits copies to device memory")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmabuf::DirectFile;

use super::buffer::Buffer;
use super::device::Current;
use super::host::{self, Registered};
use super::staging::{Slot, Staging};
use super::stream::Stream;
use crate::DeviceError;
use crate::Result;
use crate::UploadOptions;
use crate::copy::ring::{Layout, Ring, Sink};
use crate::copy::segments::Segments;
use crate::copy::threads;
use daxfs::Region;

/// Bytes that are pinned and fetched at a time.
const WINDOW: u64 = 256 << 20;

/// Where the bytes come from.
#[derive(Debug)]
enum Origin {
    /// Pinned mappings that cover the region's part of its file.
    Pinned(Vec<Arc<Registered>>),
    /// The region, whose pages are pinned for the copy.
    Register,
    /// The region, read into pinned buffers; a file also around the page cache.
    Read(Option<DirectFile>),
}

/// One upload.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    options: &'a UploadOptions,
    region: &'a Region,
    segments: &'a Segments,
    to: &'a Buffer,
    origin: Origin,
    /// First byte that no thread has taken to pin and have fetched.
    next: AtomicU64,
    done: AtomicU64,
    /// Set by the thread that failed.
    stop: AtomicBool,
}

impl<'a> Upload<'a> {
    /// Of these parts of `region`, which are as long as `to`. What is not all of it is always read: its parts are short
    /// for pinning, and several processes that read parts of one file are better off with the page cache.
    pub fn new(
        options: &'a UploadOptions,
        region: &'a Region,
        segments: &'a Segments,
        to: &'a Buffer,
    ) -> Self {
        let origin = if !segments.is_whole() {
            Origin::Read(None)
        } else if let Some(pinned) = host::pinned(to.device(), region, to.len()) {
            Origin::Pinned(pinned)
        } else if options.register && host::check(to.device(), region).is_ok() {
            Origin::Register
        } else {
            Origin::Read(if options.direct { region.direct() } else { None })
        };
        let [next, done] = [0, 0].map(AtomicU64::new);
        Self { options, region, segments, to, origin, next, done, stop: AtomicBool::new(false) }
    }

    /// Copies everything and waits until it is there.
    pub fn run(&self) -> Result<()> {
        match &self.origin {
            Origin::Pinned(pinned) => self.in_threads(self.windows(), || self.fetch(pinned)),
            Origin::Register => {
                let refused = Mutex::new(Vec::new());
                self.in_threads(self.windows(), || self.register(&refused))?;
                for (at, len) in joined(refused.into_inner().unwrap_or_else(PoisonError::into_inner)) {
                    self.read(at, len, None)?;
                }
                Ok(())
            }
            Origin::Read(direct) => self.read(0, self.to.len(), direct.as_ref()),
        }
    }

    fn windows(&self) -> u64 {
        self.to.len().div_ceil(WINDOW)
    }

    /// Runs `work` on as many threads as were asked for, if there are as many pieces of it.
    fn in_threads(&self, pieces: u64, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
        threads::run(self.threads(pieces), &self.stop, work)
    }

    fn threads(&self, pieces: u64) -> usize {
        usize::try_from(pieces).unwrap_or(usize::MAX).min(self.options.threads)
    }

    /// The next window: where it begins, and its bytes.
    fn take(&self) -> Option<(u64, u64)> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.next.fetch_add(WINDOW, Ordering::Relaxed);
        let len = self.to.len().checked_sub(at).filter(|&left| left > 0)?.min(WINDOW);
        Some((at, len))
    }

    /// Counts bytes as done, and tells who wants to know: code of the caller's, which may make any context current.
    fn advance(&self, len: u64) -> Result<()> {
        let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        match self.options.advance(done, self.to.len()) {
            true => Ok(()),
            false => Err(DeviceError::Cancelled { device: self.to.device().name().into() }.into()),
        }
    }

    fn fetch(&self, pinned: &[Arc<Registered>]) -> Result<()> {
        while let Some((at, len)) = self.take() {
            let place = self.region.offset() + at;
            {
                let current = self.to.device().enter()?;
                let stream = Stream::new(self.to.device(), &current)?;
                for memory in pinned {
                    let part = memory.place();
                    let (start, end) = (place.max(part.start), (place + len).min(part.end));
                    if start < end {
                        self.send(memory, start, end - start, &stream, &current)?;
                    }
                }
                stream.synchronize(&current)?;
            }
            self.advance(len)?;
        }
        Ok(())
    }

    /// Pins windows and has them fetched; those that the kernel or the driver does not pin are `refused`.
    fn register(&self, refused: &Mutex<Vec<(u64, u64)>>) -> Result<()> {
        let device = self.to.device();
        while let Some((at, len)) = self.take() {
            let Ok(memory) = host::register(device, self.region, at, len, host::Threads::One) else {
                lock(refused).push((at, len));
                continue;
            };
            {
                let current = device.enter()?;
                let stream = Stream::new(device, &current)?;
                self.send(&memory, memory.place().start, len, &stream, &current)?;
                stream.synchronize(&current)?;
                // SAFETY: nothing but the copy uses the memory, and that is through.
                unsafe { memory.release() };
            }
            self.advance(len)?;
        }
        Ok(())
    }

    /// Copies a part, not empty, by way of pinned buffers.
    fn read(&self, start: u64, len: u64, direct: Option<&DirectFile>) -> Result<()> {
        let device = self.to.device();
        let piece = self.options.piece as u64;
        let count = self.threads(len.div_ceil(piece));
        let layout = Layout::new(len, piece, count);
        let current = device.enter()?;
        let staging = Staging::new(device, layout.count(), layout.block(), &current)?;
        // One for all: copies of several streams get in each other's way. The memory stays when this is dropped, and so
        // waited for.
        let stream = Mutex::new(Stream::new(device, &current)?);
        let slot = |_| Slot::new(&staging, &current);
        let sink = |number| Ok(Fetched { slot: slot(number)?, stream: &stream, to: self.to, start });
        let sinks: Vec<_> = (0..layout.count()).map(sink).collect::<Result<_, DeviceError>>()?;
        let ring = Ring::new(layout, sinks);
        // Threads may end up without it: what they tell others is code of the caller's.
        drop(current);
        threads::run(count, &self.stop, || {
            while !self.stop.load(Ordering::Relaxed)
                && let Some(piece) = ring.take()?
            {
                // SAFETY: the staging memory has a buffer for each block of the layout, which are as long, and whose
                // slots are in this order; the piece lies within one. It is this thread's alone as long as it is not
                // sent (see `Piece`), and then the bytes are not used any more.
                let bytes = unsafe { staging.part(piece.block, piece.place, layout.piece()) };
                self.fill(start + piece.at, piece.len, bytes, direct)?;
                let len = piece.len as u64;
                piece.send()?;
                self.advance(len)?;
            }
            Ok(())
        })?;
        let current = device.enter()?;
        // This tells whatever went wrong on the device.
        lock(&stream).synchronize(&current)?;
        Ok(ring.wait()?)
    }

    /// Reads `len` bytes of the copy from `at` on into the first of `bytes`.
    fn fill(&self, at: u64, len: usize, bytes: &mut [u8], direct: Option<&DirectFile>) -> Result<()> {
        let region = self.region;
        if let Some(file) = direct
            && file.read(region.view().get(at, len as u64)?, region.offset() + at, bytes)
        {
            return Ok(());
        }
        self.segments.read_at(region, at, &mut bytes[..len])
    }

    /// Submits the copy of pinned bytes, which are those of the region's file from `place` on. The stream has to be
    /// waited for, or dropped, before the memory is.
    fn send(
        &self,
        memory: &Registered,
        place: u64,
        len: u64,
        stream: &Stream<'_>,
        current: &Current<'_>,
    ) -> Result<()> {
        let (from, bytes) = memory.part(place, len)?;
        let to = self.to.address() + (place - self.region.offset());
        // SAFETY: `part` is within the memory, which stays pinned until the stream is through, as the callers see to.
        // What was taken is within the buffer's bytes, which are mapped for writing while it is being filled, and
        // outlive the stream.
        Ok(unsafe { stream.send(from, bytes, to, current) }?)
    }
}

/// A block of pinned memory, and where the device fetches it to.
struct Fetched<'m, 'a> {
    slot: Slot<'m>,
    stream: &'m Mutex<Stream<'a>>,
    to: &'a Buffer,
    /// First byte of the copy in the buffer.
    start: u64,
}

impl Sink for Fetched<'_, '_> {
    fn send(&mut self, at: u64, len: usize) -> Result<(), DeviceError> {
        let current = self.to.device().enter()?;
        let stream = lock(self.stream);
        // SAFETY: the block is within the buffer's bytes, which are mapped for writing while it is being filled, and
        // outlive the stream.
        unsafe { self.slot.send(len, self.to.address() + self.start + at, &stream, &current) }
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let current = self.to.device().enter()?;
        self.slot.wait(&current)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parts that follow each other, made one.
fn joined(mut parts: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    parts.sort_unstable();
    parts.dedup_by(|next, before| {
        let follows = before.0 + before.1 == next.0;
        before.1 += if follows { next.1 } else { 0 };
        follows
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn parts_that_follow_each_other_are_one() {
        assert_eq!(joined(vec![(8, 2), (0, 4), (4, 2), (10, 1)]), [(0, 6), (8, 3)]);
        assert_eq!(joined(Vec::new()), []);
    }
}
