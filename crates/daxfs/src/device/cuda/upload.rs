//! Copying an image into device memory: several threads read pieces into pinned buffers, two each, and the device
//! fetches one while the next is being read.

#![allow(unsafe_code, reason = "submits copies to device memory")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::DeviceError;
use super::allocation::Rights;
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
    /// another.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Leaves the memory writable for this process's kernels. Otherwise it is mapped for reading, and a kernel that
    /// writes to it is a fault, which ends the context: a guard rail, since whoever has the memory's descriptor may map
    /// it otherwise.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Calls `progress` with the bytes that are done and all bytes, from several threads; `false` ends the upload with
    /// [`DeviceError::Cancelled`].
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Fills `to` with the first bytes of `region`, which has as many, and waits until they are there.
    pub(super) fn upload(&self, region: &Region, to: &Buffer) -> Result<()> {
        let work = Work {
            options: self,
            region,
            to,
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
            to.allocation()?.set_rights(Rights::Read)?;
        }
        Ok(())
    }
}

/// One upload.
struct Work<'a> {
    options: &'a UploadOptions,
    region: &'a Region,
    to: &'a Buffer,
    /// First byte that no thread has taken.
    next: AtomicU64,
    done: AtomicU64,
    /// Set by the thread that failed.
    stop: AtomicBool,
}

impl Work<'_> {
    /// Runs one function on all threads; the first error is the result.
    fn run(&self, work: fn(&Self) -> Result<()>) -> Result<()> {
        let pieces = self.to.len().div_ceil(self.options.piece as u64);
        let threads =
            usize::try_from(pieces).map_or(self.options.threads, |most| most.min(self.options.threads));
        std::thread::scope(|scope| {
            let guarded = || {
                let result = work(self);
                if result.is_err() {
                    self.stop.store(true, Ordering::Relaxed);
                }
                result
            };
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(guarded)).collect();
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
        let piece = self.options.piece as u64;
        let at = self.next.fetch_add(piece, Ordering::Relaxed);
        let len = self.to.len().checked_sub(at).filter(|&left| left > 0)?.min(piece);
        Some((at, usize::try_from(len).ok()?))
    }

    fn send(&self) -> Result<()> {
        let device = self.to.device();
        let _current = device.enter()?;
        let mut slots = [Slot::new(device, self.options.piece)?, Slot::new(device, self.options.piece)?];
        // Dropped before the slots that it reads.
        let stream = Stream::new(device)?;
        for turn in 0.. {
            let Some((at, len)) = self.take() else { break };
            let slot = &mut slots[turn % 2];
            self.region.read_at(at, &mut slot.bytes()?[..len])?;
            // SAFETY: `take` stays within the buffer's bytes, which are mapped for writing while it is being filled, and
            // outlive the stream.
            unsafe { slot.send(len, self.to.address() + at, &stream) }?;
            let done = self.done.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
            if self.options.progress.as_ref().is_some_and(|progress| !progress(done, self.to.len())) {
                return Err(DeviceError::Cancelled { device: device.name().into() }.into());
            }
        }
        Ok(stream.synchronize()?)
    }

    fn compare(&self) -> Result<()> {
        let (mut wanted, mut found) = (vec![0; self.options.piece], vec![0; self.options.piece]);
        while let Some((at, len)) = self.take() {
            self.region.read_at(at, &mut wanted[..len])?;
            self.to.copy_to_host(at, &mut found[..len])?;
            if let Some(first) = (0..len).find(|&i| wanted[i] != found[i]) {
                let device = self.to.device().name().into();
                return Err(DeviceError::Mismatch { device, offset: at + first as u64 }.into());
            }
        }
        Ok(())
    }
}
