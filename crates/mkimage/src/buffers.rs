//! The buffers of one thread, in which blocks are made that are then written to the target.
//!
//! File systems let one thread write to a file at a time, and another one spins until it may. So while others write, a
//! thread makes its next block before it writes the last one: reading and hashing go on beside the writing.

use crate::Result;
use crate::block::{Block, index};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks that a thread makes before it writes them, whoever else does.
const MOST: usize = 2;

/// A block that is complete.
#[derive(Debug)]
struct Made {
    start: u64,
    bytes: Vec<u8>,
    /// What of it is to be written.
    runs: Vec<Range<u64>>,
}

/// Buffers that are used again and again.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<u8>>,
}

impl Buffers {
    /// Makes the bytes `window` block by block, each up to the next multiple of `step`, and gives to `write` what is in
    /// them, in order: an offset in the image, and bytes. `writers` counts the threads that do.
    pub(crate) fn pass(
        &mut self,
        window: &Range<u64>,
        step: u64,
        writers: &AtomicUsize,
        mut fill: impl FnMut(&mut Block<'_>, Range<u64>) -> Result<()>,
        mut write: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut made = Vec::with_capacity(MOST);
        let mut at = window.start;
        while at < window.end {
            let end = window.end.min((at / step + 1) * step);
            let mut bytes = self.take(step);
            let mut block = Block::buffered(&mut bytes, at);
            fill(&mut block, at..end)?;
            let runs = block.runs().to_vec();
            made.push(Made { start: at, bytes, runs });
            at = end;
            if made.len() < MOST && at < window.end && writers.load(Ordering::Relaxed) > 0 {
                continue;
            }
            writers.fetch_add(1, Ordering::Relaxed);
            let written = made.iter().try_for_each(|Made { start, bytes, runs }| {
                runs.iter().filter(|run| !run.is_empty()).try_for_each(|run| {
                    write(run.start, &bytes[index(run.start - start)..index(run.end - start)])
                })
            });
            writers.fetch_sub(1, Ordering::Relaxed);
            written?;
            self.free.extend(made.drain(..).map(|made| made.bytes));
        }
        Ok(())
    }

    /// A buffer of `step` bytes, whose contents are garbage.
    fn take(&mut self, step: u64) -> Vec<u8> {
        match self.free.pop() {
            Some(bytes) if bytes.len() == index(step) => bytes,
            // Not `resize`, which would touch every page of it, also of those that are never needed.
            _ => vec![0; index(step)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const STEP: u64 = 1000;

    /// Each byte is the lowest of its offset; the third block leaves out its middle.
    fn fill(block: &mut Block<'_>, range: Range<u64>) -> Result<()> {
        let bytes: Vec<u8> = range.clone().map(|at| at.to_le_bytes()[0]).collect();
        if range.start == 2 * STEP {
            block.put(range.start, &bytes[..10])?;
            block.leave_out(range.start + 10, 980);
            return block.put(range.end - 10, &bytes[990..]);
        }
        block.put(range.start, &bytes)
    }

    /// What is made (as an empty range) and written, in order. With `others`, another thread writes until the second
    /// block is made.
    fn events(window: Range<u64>, others: bool) -> Vec<Range<u64>> {
        let writers = AtomicUsize::new(usize::from(others));
        let events = RefCell::new(Vec::new());
        let fill = |block: &mut Block<'_>, range: Range<u64>| {
            if range.start > window.start {
                writers.store(0, Ordering::Relaxed);
            }
            events.borrow_mut().push(range.start..range.start);
            fill(block, range)
        };
        let write = |offset: u64, bytes: &[u8]| {
            assert_eq!(writers.load(Ordering::Relaxed), 1);
            assert!(bytes.iter().zip(offset..).all(|(&byte, at)| byte == at.to_le_bytes()[0]));
            events.borrow_mut().push(offset..offset + bytes.len() as u64);
            Ok(())
        };
        let mut buffers = Buffers::default();
        buffers.pass(&window, STEP, &writers, fill, write).unwrap();
        assert_eq!(buffers.free.len(), if others { 2 } else { 1 });
        events.into_inner()
    }

    #[test]
    fn a_thread_makes_one_more_block_while_others_write() {
        let rest = [2000..2000, 2000..2010, 2990..3000, 3000..3000, 3000..3700];
        let free = [500..500, 500..1000, 1000..1000, 1000..2000];
        assert_eq!(events(500..3700, false), [&free[..], &rest].concat());
        let beside = [500..500, 1000..1000, 500..1000, 1000..2000];
        assert_eq!(events(500..3700, true), [&beside[..], &rest].concat());
    }
}
