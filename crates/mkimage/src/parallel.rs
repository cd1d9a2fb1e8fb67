//! Work that several threads take from one queue, in its order.

use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Calls `work` for every number below `count` on up to `threads` threads, each with a state of its own made by
/// `state`, and gives the results in the order of the numbers. The first error ends all of it.
pub(crate) fn map<S, T: Send>(
    count: usize,
    threads: usize,
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
        let others: Vec<_> = (1..threads.min(count)).map_while(spawn).collect();
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
            let doubled = map(20, threads, || (), |(), at| Ok(at * 2)).unwrap();
            assert_eq!(doubled, (0..20).map(|at| at * 2).collect::<Vec<_>>());
        }
        assert!(map(0, 4, || (), |(), at| Ok(at)).unwrap().is_empty());
    }

    #[test]
    fn the_first_error_is_returned() {
        let work = |(): &mut (), at| if at == 7 { Err(Error::NoInput) } else { Ok(at) };
        assert!(matches!(map(1000, 2, || (), work), Err(Error::NoInput)));
    }
}
