//! One piece of work on several threads.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;

/// Runs `work` on up to `count` threads at once, this one among them, and waits for all; the first error is the result.
/// `stop` is set when one fails: the others are to look at it, and to return `Ok`.
pub(super) fn run(count: usize, stop: &AtomicBool, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let guarded = || {
            let mut guard = StopsOthers { stop, is_done: false };
            let result = work();
            guard.is_done = result.is_ok();
            result
        };
        // A thread that cannot be had is not missed: this one does all the work that is left.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, guarded).ok();
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
