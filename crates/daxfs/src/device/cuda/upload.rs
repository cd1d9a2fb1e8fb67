//! Copying an image into device memory: several threads read pieces into pinned buffers, two each, and the device
//! fetches one while the next is being read.

#![allow(unsafe_code, reason = "submits copies to device memory")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::DeviceError;
use super::super::segments::Segments;
use super::buffer::Buffer;
use super::staging::{Slot, Stream};
use crate::{Region, Result};

/// Told how many bytes of how many are done; `false` ends the upload.
type Progress = dyn Fn(u64, u64) -> bool + Send + Sync;

/// How an image is copied into device memory.
#[derive(Clone)]
pub struct UploadOptions {
    threads: usize,
    piece: usize,
    verify: bool,
    writable: bool,
    progress: Option<Arc<Progress>>,
}

impl fmt::Debug for UploadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadOptions")
            .field("threads", &self.threads)
            .field("piece", &self.piece)
            .field("verify", &self.verify)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl UploadOptions {
    /// As many threads as there are processors, but at most 8; pieces of 16 MiB; mapped for reading afterwards; no
    /// verification.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        Self { threads, piece: 16 << 20, verify: false, writable: false, progress: None }
    }

    /// Threads that read; each has two pinned buffers of one piece. At least 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Bytes that are read and copied at a time, at least 4096.
    #[must_use]
    pub fn piece(mut self, bytes: usize) -> Self {
        self.piece = bytes.max(4096);
        self
    }

    /// Reads everything back from the device and compares it with the image: [`DeviceError::Mismatch`] when a byte is
    /// another. The copy is a new one then, also where a holder has one.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Makes a copy of its own for this process, and leaves it writable for its kernels. Otherwise it is mapped for
    /// reading, and a kernel that writes to it is a fault, which ends the context: a guard rail, since whoever has the
    /// memory's descriptor may map it otherwise.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Calls `progress` with the bytes that are done and all bytes, from several threads, which may overtake each
    /// other; `false` ends the upload with [`DeviceError::Cancelled`]. Verification counts each byte once more. A split
    /// image is two uploads.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Whether a copy that another process made will do: not for who wants to write, or to see that it is right.
    pub(in crate::device) fn takes_others(&self) -> bool {
        !self.writable && !self.verify
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Fills `to`, which is as long as `segments`, with these of `region`, and waits until they are there.
    pub(super) fn upload(&self, region: &Region, segments: &Segments, to: &Buffer) -> Result<()> {
        let piece = to.len().min(self.piece as u64);
        let work = Work {
            options: self,
            region,
            segments,
            to,
            piece: usize::try_from(piece).unwrap_or(self.piece),
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        work.run(Work::send)?;
        if self.verify {
            work.next.store(0, Ordering::Relaxed);
            work.run(Work::compare)?;
        }
        if !self.writable {
            to.allocation()?.make_read_only()?;
        }
        Ok(())
    }
}

/// One upload.
struct Work<'a> {
    options: &'a UploadOptions,
    region: &'a Region,
    segments: &'a Segments,
    to: &'a Buffer,
    /// Bytes of a piece, at most those of the buffer.
    piece: usize,
    /// First byte that no thread has taken.
    next: AtomicU64,
    done: AtomicU64,
    /// Set by the thread that failed.
    stop: AtomicBool,
}

impl Work<'_> {
    /// Runs one function on all threads; the first error is the result.
    fn run(&self, work: fn(&Self) -> Result<()>) -> Result<()> {
        let pieces = self.to.len().div_ceil(self.piece as u64);
        let most = usize::try_from(pieces).unwrap_or(usize::MAX);
        std::thread::scope(|scope| {
            let guarded = || {
                let mut guard = StopsOthers { stop: &self.stop, is_done: false };
                let result = work(self);
                guard.is_done = result.is_ok();
                result
            };
            // A thread that cannot be had is not missed: this one does all the work that is left.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, guarded).ok();
            let others: Vec<_> = (1..most.min(self.options.threads)).filter_map(spawn).collect();
            let first = guarded();
            others.into_iter().fold(first, |so_far, other| {
                let result = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // That others were stopped is no cause.
                if so_far.is_err() { so_far } else { result }
            })
        })
    }

    /// The next piece: where it begins, and its bytes.
    fn take(&self) -> Option<(u64, usize)> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let piece = self.piece as u64;
        let at = self.next.fetch_add(piece, Ordering::Relaxed);
        let len = self.to.len().checked_sub(at).filter(|&left| left > 0)?.min(piece);
        Some((at, usize::try_from(len).ok()?))
    }

    /// Counts bytes as done, and tells who wants to know.
    fn advance(&self, len: usize) -> Result<()> {
        let Some(progress) = &self.options.progress else { return Ok(()) };
        let done = self.done.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        let all = if self.options.verify { 2 * self.to.len() } else { self.to.len() };
        match progress(done, all) {
            true => Ok(()),
            false => Err(DeviceError::Cancelled { device: self.to.device().name().into() }.into()),
        }
    }

    fn send(&self) -> Result<()> {
        let device = self.to.device();
        // Dropped last.
        let mut current = Some(device.enter()?);
        let mut slots = Vec::new();
        // Dropped before the slots that it reads.
        let stream = Stream::new(device)?;
        for turn in 0.. {
            let Some((at, len)) = self.take() else { break };
            if turn < 2 {
                slots.push(Slot::new(device, self.piece)?);
            }
            let slot = &mut slots[turn % 2];
            self.segments.read_at(self.region, at, &mut slot.bytes()?[..len])?;
            // SAFETY: `take` stays within the buffer's bytes, which are mapped for writing while it is being filled,
            // and outlive the stream.
            unsafe { slot.send(len, self.to.address() + at, &stream) }?;
            if self.options.progress.is_some() {
                // The caller's code may make another context current.
                drop(current.take());
                self.advance(len)?;
                current = Some(device.enter()?);
            }
        }
        stream.synchronize()?;
        slots.iter_mut().try_for_each(Slot::wait)?;
        drop(stream);
        drop(slots);
        drop(current);
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let (mut wanted, mut found) = (vec![0; self.piece], vec![0; self.piece]);
        while let Some((at, len)) = self.take() {
            self.segments.read_at(self.region, at, &mut wanted[..len])?;
            self.to.copy_to_host(at, &mut found[..len])?;
            if let Some(first) = (0..len).find(|&i| wanted[i] != found[i]) {
                let device = self.to.device().name().into();
                return Err(DeviceError::Mismatch { device, offset: at + first as u64 }.into());
            }
            self.advance(len)?;
        }
        Ok(())
    }
}

/// Stops the other threads when one fails, by an error or a panic.
struct StopsOthers<'a> {
    stop: &'a AtomicBool,
    is_done: bool,
}

impl Drop for StopsOthers<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}
