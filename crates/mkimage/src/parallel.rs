//! Work that several threads take from one queue, in its order.

use crate::{Error, Result};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::available_parallelism;

/// How many threads work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// One for each processor that this process may use.
    Processors,
    /// At most so many.
    Most(usize),
}

impl Threads {
    /// Threads for so many pieces of work. Processors are counted where more than one could be of use: the limits of
    /// control groups are read from several files.
    pub(crate) fn for_pieces(self, pieces: usize) -> usize {
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        if pieces <= 1 {
            return pieces;
        }
        let most = match self {
            Threads::Processors => {
                *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, NonZero::get))
            }
            Threads::Most(count) => count,
        };
        most.min(pieces)
    }
}

/// Calls `work` for every number below `count` on some `threads`, each with a state of its own made by `state`, and gives
/// the results in the order of the numbers. The first error ends all of it.
pub(crate) fn map<S, T: Send>(
    count: usize,
    threads: Threads,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let worker = || {
        let mut state = state();
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            match work(&mut state, at) {
                Ok(result) => done.push((at, result)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
        done
    };
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        // Where there can be no more threads, those that there are do the work.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, worker).ok();
        let others: Vec<_> = (1..threads.for_pieces(count)).map_while(spawn).collect();
        let mut results = worker();
        for other in others {
            match other.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            results.sort_unstable_by_key(|(at, _)| *at);
            Ok(results.into_iter().map(|(_, result)| result).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        for threads in [0, 1, 3, 50] {
            let doubled = map(20, Threads::Most(threads), || (), |(), at| Ok(at * 2)).unwrap();
            assert_eq!(doubled, (0..20).map(|at| at * 2).collect::<Vec<_>>());
        }
        assert!(map(0, Threads::Processors, || (), |(), at| Ok(at)).unwrap().is_empty());
    }

    #[test]
    fn no_more_threads_than_work_or_than_allowed() {
        let counts = [0, 1, 2, 100].map(|pieces| Threads::Most(7).for_pieces(pieces));
        assert_eq!(counts, [0, 1, 2, 7]);
        let processors = available_parallelism().unwrap().get();
        let counts = [0, 1, processors, 2 * processors].map(|pieces| Threads::Processors.for_pieces(pieces));
        assert_eq!(counts, [0, 1, processors, processors]);
    }

    #[test]
    fn the_first_error_is_returned() {
        let work = |(): &mut (), at| if at == 7 { Err(Error::NoInput) } else { Ok(at) };
        assert!(matches!(map(1000, Threads::Most(2), || (), work), Err(Error::NoInput)));
    }
}
