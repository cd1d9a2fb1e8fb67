//! What [`ring`](super::ring) needs of threads: a module of its own, so that `tests/tests/loom.rs` can put loom's in
//! its place, and has the very same ring run in every order that there is.

#![forbid(unsafe_code)]

pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread that waits stays awake: a device is through with several blocks in that time, and to wake a
/// processor of a virtual machine may take as long.
const AWAKE: Duration = Duration::from_millis(2);
/// And how long it sleeps at a time after that, as when a disk is what all wait for.
const ASLEEP: Duration = Duration::from_micros(200);

/// One wait of a thread for others.
#[derive(Debug, Default)]
pub(crate) struct Pause(Option<Instant>);

impl Pause {
    /// Lets others run.
    pub fn wait(&mut self) {
        if self.0.get_or_insert_with(Instant::now).elapsed() < AWAKE {
            thread::yield_now();
        } else {
            thread::sleep(ASLEEP);
        }
    }
}
