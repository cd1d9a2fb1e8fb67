//! The order in which several threads fill memory that the device empties: which bytes of a copy go through which part
//! of it, and when.
//!
//! Threads fill pieces, and whoever fills the last piece of a block sends the block. So a thread is soon through with
//! what it has, and the device still gets long copies: between two of them it rests for some microseconds, which at
//! 55 GB/s is the time of a hundred KiB.

#![forbid(unsafe_code)]

use std::sync::{PoisonError, TryLockError};

use crate::DeviceError;

use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Pause};

/// Bytes that are sent at a time, where pieces are not longer.
const BLOCK: u64 = 8 << 20;
/// Blocks that are full, or on their way, while others are being filled.
const FULL: u64 = 3;
/// What pieces are a multiple of: `O_DIRECT` reads whole blocks of a disk.
const UNIT: u64 = 4096;

/// How many bytes are filled and sent at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the copy.
    pub(crate) len: u64,
    pub(crate) piece: u64,
    /// Bytes of a block: whole pieces.
    pub(crate) block: u64,
    /// Blocks that there is memory for.
    pub(crate) count: u64,
}

impl Layout {
    /// For a copy of `len` bytes by so many threads, that fill about `piece` bytes at a time; none of them is 0.
    pub fn new(len: u64, piece: u64, threads: usize) -> Self {
        let piece = piece.min(len).next_multiple_of(UNIT);
        let block = piece * (BLOCK / piece).clamp(1, len.div_ceil(piece));
        let filling = (threads as u64).div_ceil(block / piece);
        Self { len, piece, block, count: (filling + FULL).min(len.div_ceil(block)) }
    }

    /// Bytes of a piece in memory, also of the last one, which may be filled with less.
    pub fn piece(&self) -> usize {
        usize::try_from(self.piece).unwrap_or(usize::MAX)
    }

    /// Bytes of a block in memory.
    pub fn block(&self) -> usize {
        usize::try_from(self.block).unwrap_or(usize::MAX)
    }

    /// Blocks in memory.
    pub fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Bytes of the copy's block of this number, which it has.
    pub(crate) fn block_len(&self, number: u64) -> u64 {
        (self.len - number * self.block).min(self.block)
    }
}

/// What takes the bytes of a block in memory further.
pub(crate) trait Sink {
    /// Begins to take the first `len` bytes to `at` in the copy.
    fn send(&mut self, at: u64, len: usize) -> Result<(), DeviceError>;
    /// Waits until what was sent has left the memory.
    fn wait(&mut self) -> Result<(), DeviceError>;
}

/// One copy on its way.
#[derive(Debug)]
pub(crate) struct Ring<S> {
    layout: Layout,
    blocks: Vec<Block<S>>,
    /// First byte that no thread has taken.
    pub(crate) next: AtomicU64,
    /// Set when a piece will not be filled or sent.
    is_broken: AtomicBool,
}

#[derive(Debug)]
struct Block<S> {
    /// Which block of the copy is in the memory.
    number: AtomicU64,
    /// Bytes of it that are not filled yet.
    left: AtomicU64,
    /// Set when it was sent.
    is_sent: AtomicBool,
    sink: Mutex<S>,
}

/// Bytes that one thread has to fill, and to send then; if it does not, the copy is broken.
///
/// While it lives, the [`Layout::piece`] bytes at `place` in the memory of block `block` are this thread's alone: they
/// were given out once, what was there before was sent and has left the memory, and the block is sent after this piece.
#[derive(Debug)]
pub(crate) struct Piece<'r, S: Sink> {
    ring: &'r Ring<S>,
    /// First byte in the copy.
    pub at: u64,
    pub len: usize,
    /// Which block of the memory it is in.
    pub block: usize,
    /// First byte there.
    pub place: usize,
    /// Whether the block counts it as filled.
    is_counted: bool,
}

impl<S: Sink> Ring<S> {
    /// For a copy through memory whose blocks have these sinks, [`Layout::count`] of them.
    pub fn new(layout: Layout, sinks: impl IntoIterator<Item = S>) -> Self {
        let block = |(number, sink)| Block {
            number: AtomicU64::new(number),
            left: AtomicU64::new(layout.block_len(number)),
            is_sent: AtomicBool::new(false),
            sink: Mutex::new(sink),
        };
        let blocks: Vec<_> = (0..).zip(sinks).map(block).collect();
        assert_eq!(blocks.len(), layout.count());
        Self { layout, blocks, next: AtomicU64::new(0), is_broken: AtomicBool::new(false) }
    }

    /// The next piece, as soon as there is memory for it; `None` when all are taken, and instead of waiting for a copy
    /// that is broken.
    pub fn take(&self) -> Result<Option<Piece<'_, S>>, DeviceError> {
        let Layout { len, piece, block, count } = self.layout;
        let at = self.next.fetch_add(piece, Ordering::Relaxed);
        if at >= len {
            return Ok(None);
        }
        // Others may be waiting for what this thread would have filled.
        if !self.open(at / block).inspect_err(|_| self.break_up())? {
            return Ok(None);
        }
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (number, place) = (size(at / block % count), size(at % block));
        let len = size(piece.min(len - at));
        Ok(Some(Piece { ring: self, at, len, block: number, place, is_counted: false }))
    }

    /// Waits until everything that was sent has left the memory.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.blocks
            .iter()
            .try_for_each(|block| block.sink.lock().unwrap_or_else(PoisonError::into_inner).wait())
    }

    fn block(&self, number: u64) -> &Block<S> {
        &self.blocks[usize::try_from(number % self.layout.count).unwrap_or(0)]
    }

    /// Waits until what was in a block's memory has left it. False for a copy that is broken.
    ///
    /// Nobody waits for ever: what was there are pieces that were taken before, by threads that have them and wait for
    /// nothing, or wait for still earlier ones.
    fn open(&self, number: u64) -> Result<bool, DeviceError> {
        let block = self.block(number);
        let mut pause = Pause::default();
        while block.number.load(Ordering::Acquire) != number {
            if self.is_broken.load(Ordering::Acquire) {
                return Ok(false);
            }
            if block.is_sent.load(Ordering::Acquire) && self.reopen(block)? {
                continue;
            }
            pause.wait();
        }
        Ok(true)
    }

    /// Waits until what was sent has left the memory of a block, for what comes next; one thread does this for all.
    /// False where another one does.
    fn reopen(&self, block: &Block<S>) -> Result<bool, DeviceError> {
        let mut sink = match block.sink.try_lock() {
            Ok(sink) => sink,
            Err(TryLockError::Poisoned(sink)) => sink.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        // Another one may have been through with it before; and what could not be sent is not waited for.
        if !block.is_sent.load(Ordering::Acquire) || self.is_broken.load(Ordering::Acquire) {
            return Ok(true);
        }
        sink.wait()?;
        let number = block.number.load(Ordering::Acquire) + self.layout.count;
        block.left.store(self.layout.block_len(number), Ordering::Relaxed);
        block.is_sent.store(false, Ordering::Relaxed);
        // From here on it is filled.
        block.number.store(number, Ordering::Release);
        Ok(true)
    }

    /// Counts a piece as filled, and sends its block if it is the last one.
    fn fill(&self, at: u64, len: u64) -> Result<(), DeviceError> {
        let number = at / self.layout.block;
        let block = self.block(number);
        // What the other threads have filled is seen by the one that sends it.
        if block.left.fetch_sub(len, Ordering::AcqRel) == len {
            let len = usize::try_from(self.layout.block_len(number)).unwrap_or(usize::MAX);
            let mut sink = block.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.send(number * self.layout.block, len)?;
            block.is_sent.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Has everybody give up who waits for a piece that will not come.
    fn break_up(&self) {
        self.is_broken.store(true, Ordering::Release);
    }
}

impl<S: Sink> Piece<'_, S> {
    /// Gives the piece up, which is filled, to be sent with the others of its block.
    pub fn send(mut self) -> Result<(), DeviceError> {
        self.ring.fill(self.at, self.len as u64)?;
        self.is_counted = true;
        Ok(())
    }
}

impl<S: Sink> Drop for Piece<'_, S> {
    fn drop(&mut self) {
        if !self.is_counted {
            self.ring.break_up();
        }
    }
}
