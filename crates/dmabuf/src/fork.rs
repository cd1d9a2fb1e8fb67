//! Locks and fork(2): a child has the thread that forked, and the locks that all other threads held.
//!
//! Nobody would ever give those back. So a lock that outlives a call is taken around each fork, by the thread that forks:
//! then no other thread has it, and parent and child give it back.

#![allow(unsafe_code, reason = "pthread_atfork")]

use nix::libc;

/// Has `before` called before each fork of this process, by the thread that forks, and `after` after it, in the parent and
/// in the child, until the process ends. A fork by a raw system call passes both by.
///
/// `before` must not wait for anything that waits for a fork. It is called once for each time that it was given here.
pub fn around_forks(before: extern "C" fn(), after: extern "C" fn()) {
    // SAFETY: takes three functions that any thread may call at any time, since they are safe ones. A library that is
    // unloaded takes back what it has registered (its own handle goes with the call). Without memory for the entry it registers nothing, and forks are as they are without.
    unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
}
