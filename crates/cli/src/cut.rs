//! What happens when somebody cuts the image's file short while it is read: an error and exit status 2, not a signal.
//!
//! Touching a page behind the new end of a mapped file is SIGBUS. A library may not handle that, since the program may
//! have a handler of its own; the command may. The handler says what happened and ends the process: nothing of what it
//! was doing can be relied on.

#![allow(unsafe_code, reason = "installs the handler of a signal")]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::BorrowedFd;

const MESSAGE: &[u8] =
    b"daxfs: the image was cut short while it was read: its file has lost bytes, or its device has \
gone; --sealed-copy copies it first\n";

/// Ends the process with [`MESSAGE`] and status 2 at a SIGBUS from now on.
///
/// # Errors
/// What sigaction(2) says.
pub fn end_with_an_error() -> nix::Result<()> {
    let handler = SigHandler::Handler(at_bus_error);
    let action = SigAction::new(handler, SaFlags::SA_RESETHAND, SigSet::empty());
    // SAFETY: the handler calls only write(2) and _exit(2), which are async-signal-safe, and touches no memory
    // but its own stack and constants.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

extern "C" fn at_bus_error(_: libc::c_int) {
    // SAFETY: standard error is descriptor 2 as long as the process lives; if it was closed, write(2) fails with EBADF
    // or goes where the number leads now, as any message of the command does.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    let _ = nix::unistd::write(stderr, MESSAGE);
    // SAFETY: _exit(2) runs no destructors and no handlers, and is async-signal-safe.
    unsafe { libc::_exit(2) }
}
