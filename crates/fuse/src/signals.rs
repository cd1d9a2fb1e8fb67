//! Signals that end a program, for one that has a mount to take away first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, raise};

use crate::error::{Error, Result};

/// What ends a program in an orderly way.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// What is done when a signal comes.
enum On {
    /// What it does to programs.
    Default,
    /// It is kept for later.
    Keep {
        came: bool,
    },
    Call(Box<dyn FnMut() + Send>),
}

/// SIGTERM, SIGINT and SIGHUP, which a thread waits for. Until there is something to do about them they end the process
/// as ever.
pub struct Signals(Arc<Mutex<On>>);

impl Signals {
    /// Blocks the signals in this thread and all that it starts from now on, and waits for them in one of its own. To be
    /// called before a program starts threads: one of another thread's would take the process away.
    ///
    /// # Errors
    /// [`Error::System`] when there can be no more threads.
    pub fn wait() -> Result<Self> {
        let set: SigSet = ENDING.into_iter().collect();
        set.thread_block().map_err(Error::system("block signals"))?;
        let on = Arc::new(Mutex::new(On::Default));
        let theirs = Arc::clone(&on);
        let waiting = move || {
            while let Ok(signal) = set.wait() {
                match &mut *theirs.lock().unwrap_or_else(PoisonError::into_inner) {
                    On::Call(call) => call(),
                    On::Keep { came } => *came = true,
                    On::Default => {
                        // Here it is not blocked any more, and does what it does to programs.
                        let _ = set.thread_unblock();
                        let _ = raise(signal);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(waiting);
        thread.map_err(|source| Error::System { what: "start a thread", source })?;
        Ok(Self(on))
    }

    /// Keeps signals from now on until it is said what they do: while something is made that would be left behind.
    pub fn keep(&self) {
        *self.on() = On::Keep { came: false };
    }

    /// Has the signals do this instead, in the thread that waits for them, and at once if one came that was kept.
    pub(crate) fn call(&self, mut call: impl FnMut() + Send + 'static) {
        let mut on = self.on();
        if matches!(*on, On::Keep { came: true }) {
            call();
        }
        *on = On::Call(Box::new(call));
    }

    fn on(&self) -> MutexGuard<'_, On> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_signal_that_came_early_is_not_lost() {
        let signals = Signals(Arc::new(Mutex::new(On::Keep { came: true })));
        let (tell, told) = channel();
        signals.call(move || tell.send(()).unwrap());
        assert!(told.try_recv().is_ok());
        signals.keep();
        assert!(matches!(*signals.on(), On::Keep { came: false }));
    }
}
