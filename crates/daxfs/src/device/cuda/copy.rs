//! Copying a region into device memory, on several threads.
//!
//! Each thread reads pieces into pinned buffers, and the device fetches one while the next is being read. Pages that
//! are pinned where they are, or are to be, are fetched from there, in longer pieces: one thread pins while the device
//! fetches what another has pinned.

#![allow(unsafe_code, reason = "submits copies to device memory")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dmabuf::DirectFile;

use super::super::DeviceError;
use super::super::segments::Segments;
use super::buffer::Buffer;
use super::host::{self, Registered};
use super::staging::{Slots, Staging};
use super::stream::Stream;
use super::threads;
use super::upload::UploadOptions;
use crate::{Region, Result};

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
    /// Bytes that a thread takes at a time, at most those of the image.
    piece: u64,
    /// First byte that no thread has taken.
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
        let piece = if let Origin::Read(_) = origin { options.piece as u64 } else { WINDOW };
        let [next, done] = [0, 0].map(AtomicU64::new);
        Self {
            options,
            region,
            segments,
            to,
            origin,
            piece: piece.min(to.len()),
            next,
            done,
            stop: AtomicBool::new(false),
        }
    }

    /// Copies everything and waits until it is there.
    pub fn run(&self) -> Result<()> {
        let pieces = usize::try_from(self.to.len().div_ceil(self.piece)).unwrap_or(usize::MAX);
        let count = pieces.min(self.options.threads);
        match &self.origin {
            Origin::Pinned(pinned) => threads::run(count, &self.stop, || self.fetch(pinned)),
            Origin::Register => threads::run(count, &self.stop, || self.register()),
            Origin::Read(_) => {
                // Each thread fills one; the device empties a piece in a tenth of the time that this takes.
                let staging = self.staging(pieces.min(count + count.div_ceil(2)))?;
                let slots = self.slots(&staging)?;
                threads::run(count, &self.stop, || self.read(&slots))?;
                let _current = self.to.device().enter()?;
                Ok(slots.wait()?)
            }
        }
    }

    /// Buffers of one piece.
    fn staging(&self, count: usize) -> Result<Staging<'a>> {
        let _current = self.to.device().enter()?;
        Ok(Staging::new(self.to.device(), count, self.buffer_len())?)
    }

    fn slots<'b>(&self, staging: &'b Staging<'b>) -> Result<Slots<'b>> {
        let _current = self.to.device().enter()?;
        Ok(Slots::of(staging)?)
    }

    /// Bytes that are read at a time.
    fn buffer_len(&self) -> usize {
        self.options.piece.min(usize::try_from(self.to.len()).unwrap_or(usize::MAX))
    }

    /// The next piece: where it begins, and its bytes.
    fn take(&self) -> Option<(u64, u64)> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.next.fetch_add(self.piece, Ordering::Relaxed);
        let len = self.to.len().checked_sub(at).filter(|&left| left > 0)?.min(self.piece);
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
                let _current = self.to.device().enter()?;
                let stream = Stream::new(self.to.device())?;
                for memory in pinned {
                    let part = memory.place();
                    let (start, end) = (place.max(part.start), (place + len).min(part.end));
                    if start < end {
                        self.send(memory, start, end - start, &stream)?;
                    }
                }
                stream.synchronize()?;
            }
            self.advance(len)?;
        }
        Ok(())
    }

    fn register(&self) -> Result<()> {
        let device = self.to.device();
        while let Some((at, len)) = self.take() {
            if let Ok(memory) = host::register(device, self.region, at, len, host::Threads::One) {
                let _current = device.enter()?;
                let stream = Stream::new(device)?;
                self.send(&memory, memory.place().start, len, &stream)?;
                stream.synchronize()?;
                // SAFETY: nothing but the copy uses the memory, and that is through.
                unsafe { memory.release() };
            } else {
                // More than the kernel or the driver pins.
                let staging = self.staging(2)?;
                let slots = self.slots(&staging)?;
                let mut stage = Stage::new(self, &slots)?;
                stage.send(at, len)?;
                stage.finish()?;
            }
            self.advance(len)?;
        }
        Ok(())
    }

    fn read(&self, slots: &Slots<'_>) -> Result<()> {
        let mut stage = Stage::new(self, slots)?;
        while let Some((at, len)) = self.take() {
            stage.send(at, len)?;
            self.advance(len)?;
        }
        stage.finish()
    }

    /// Submits the copy of pinned bytes, which are those of the region's file from `place` on. The stream has to be
    /// waited for, or dropped, before the memory is.
    fn send(&self, memory: &Registered, place: u64, len: u64, stream: &Stream<'_>) -> Result<()> {
        let (from, bytes) = memory.part(place, len)?;
        let to = self.to.address() + (place - self.region.offset());
        // SAFETY: `part` is within the memory, which stays pinned until the stream is through, as the callers see to.
        // What was taken is within the buffer's bytes, which are mapped for writing while it is being filled, and
        // outlive the stream.
        Ok(unsafe { stream.send(from, bytes, to) }?)
    }
}

/// A thread's part in filling buffers, and the stream that empties them.
struct Stage<'a, 's> {
    upload: &'a Upload<'a>,
    slots: &'a Slots<'s>,
    /// Dropped, and so waited for, before the slots that it reads.
    stream: Stream<'a>,
}

impl<'a, 's> Stage<'a, 's> {
    fn new(upload: &'a Upload<'a>, slots: &'a Slots<'s>) -> Result<Self> {
        let _current = upload.to.device().enter()?;
        Ok(Self { upload, slots, stream: Stream::new(upload.to.device())? })
    }

    /// Copies a part of the region, piece by piece; the last ones are still on their way then.
    fn send(&mut self, at: u64, len: u64) -> Result<()> {
        let Upload { region, segments, to, origin, .. } = self.upload;
        let _current = to.device().enter()?;
        let piece = self.upload.buffer_len();
        let end = at + len;
        for at in (at..end).step_by(piece) {
            let mut slot = loop {
                match self.slots.take() {
                    Some(slot) => break slot,
                    None => thread::yield_now(),
                }
            };
            let len = usize::try_from(end - at).map_or(piece, |left| left.min(piece));
            let bytes = slot.bytes()?;
            let is_read = match origin {
                Origin::Read(Some(file)) => {
                    file.read(region.view().get(at, len as u64)?, region.offset() + at, bytes)
                }
                _ => false,
            };
            if !is_read {
                segments.read_at(region, at, &mut bytes[..len])?;
            }
            // SAFETY: the part is within the buffer's bytes, which are mapped for writing while it is being filled, and
            // outlive the stream.
            unsafe { slot.send(len, to.address() + at, &self.stream) }?;
            self.slots.put(slot);
        }
        Ok(())
    }

    /// Waits until all that this thread has sent is on the device.
    fn finish(self) -> Result<()> {
        let _current = self.upload.to.device().enter()?;
        Ok(self.stream.synchronize()?)
    }
}
