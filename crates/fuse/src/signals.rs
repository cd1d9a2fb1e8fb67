//! Signals that end a program, for one that has a mount to take away first.

use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal, raise};

use crate::error::{Error, Result};

/// What ends a program in an orderly way.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Called when a signal comes.
type Call = Box<dyn FnMut() + Send>;

/// SIGTERM, SIGINT and SIGHUP, which a thread waits for. Until there is something to do about them they end the process
/// as ever.
pub struct Signals(Arc<Mutex<Option<Call>>>);

impl Signals {
    /// Blocks the signals in this thread and all that it starts from now on, and waits for them in one of its own. To be
    /// called before a program starts threads: one of another thread's would take the process away.
    ///
    /// # Errors
    /// [`Error::System`] when there can be no more threads.
    pub fn wait() -> Result<Self> {
        let set: SigSet = ENDING.into_iter().collect();
        set.thread_block().map_err(Error::system("block signals"))?;
        let call: Arc<Mutex<Option<Call>>> = Arc::default();
        let theirs = Arc::clone(&call);
        let waiting = move || {
            while let Ok(signal) = set.wait() {
                match &mut *theirs.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(call) => call(),
                    None => {
                        // Here it is not blocked any more, and does what it does to programs.
                        let _ = set.thread_unblock();
                        let _ = raise(signal);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(waiting);
        thread.map_err(|source| Error::System { what: "start a thread", source })?;
        Ok(Self(call))
    }

    /// Has the signals do this instead, in the thread that waits for them.
    pub(crate) fn call(&self, call: impl FnMut() + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(call));
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}
