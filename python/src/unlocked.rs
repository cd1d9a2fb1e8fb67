//! What runs without the interpreter lock: work that can be stopped, and values whose end may take long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use pyo3::prelude::*;

/// How often it is looked whether Ctrl-C was pressed.
const POLL: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own, while this one looks out for signals, and calls `heard` with the lock when the
/// work has sent something to the channel that it gets; what was sent meanwhile counts once. When a signal's handler
/// raises, as Python's own does for Ctrl-C, or `heard` does, `stop` is set, and once the work has ended, however it
/// did, the exception goes on.
///
/// The work drops all copies of the sender before it ends, at the latest by ending.
pub fn stoppable<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    work: impl FnOnce(Sender<()>) -> T + Send,
    mut heard: impl FnMut(Python<'_>) -> PyResult<()> + Send,
) -> PyResult<T> {
    py.detach(|| {
        std::thread::scope(|scope| {
            let (wake, woken) = mpsc::channel::<()>();
            // The sender goes with the work, whatever its end is: that ends the loop below.
            let worker = scope.spawn(move || work(wake));
            let mut failure = None;
            loop {
                let was_woken = match woken.recv_timeout(POLL) {
                    Ok(()) => true,
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                while woken.try_recv().is_ok() {}
                if failure.is_none() {
                    let listen = |py: Python<'_>| {
                        py.check_signals()?;
                        if was_woken { heard(py) } else { Ok(()) }
                    };
                    failure = Python::attach(listen).err();
                    stop.store(failure.is_some(), Ordering::Relaxed);
                }
            }
            match (failure, worker.join()) {
                (Some(failure), _) => Err(failure),
                (None, Ok(result)) => Ok(result),
                (None, Err(panic)) => std::panic::resume_unwind(panic),
            }
        })
    })
}

/// Drops a value without the lock, whether this thread has it or not.
pub fn drop_unlocked(value: impl Send) {
    let mut value = Some(value);
    // Nothing is run while the interpreter ends: the value is dropped below then.
    let _ = Python::try_attach(|py| py.detach(|| drop(value.take())));
    drop(value);
}
