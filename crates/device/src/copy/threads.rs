//! One piece of work on several threads.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::Result;

/// Threads that make pages at most: the kernel's locks keep more from being of use.
const MAKING_PAGES: usize = 8;

/// Calls `work` with the beginning of each part of `part` bytes of `len`, on several threads at once, until it answers
/// with `false`: for having the kernel make pages, of which it makes more in several threads.
pub(crate) fn parts(len: usize, part: usize, work: impl Fn(usize) -> bool + Sync) {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAKING_PAGES);
    let each = || {
        while let at = next.fetch_add(part, Ordering::Relaxed)
            && at < len
            && work(at)
        {}
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(len.div_ceil(part)) {
            // When the system refuses a thread, the others do its part.
            let _ = thread::Builder::new().spawn_scoped(scope, each);
        }
        each();
    });
}

/// Runs `work` on up to `count` threads at once, this one among them, and waits for all; the first error is the result.
/// `stop` is set when one fails: the others are to look at it, and to return `Ok`.
pub(crate) fn run(count: usize, stop: &AtomicBool, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let guarded = || {
            let mut guard = StopsOthers { stop, is_done: false };
            let result = work();
            guard.is_done = result.is_ok();
            result
        };
        // When the system refuses a thread, the others do its part, and in the end this one.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, guarded).ok();
        let others: Vec<_> = (1..count).filter_map(spawn).collect();
        let first = guarded();
        others.into_iter().fold(first, |so_far, other| {
            let result = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // That others were stopped is no cause.
            if so_far.is_err() { so_far } else { result }
        })
    })
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
