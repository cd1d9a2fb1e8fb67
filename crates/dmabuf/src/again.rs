//! System calls that are made again when a signal has interrupted them.

#![forbid(unsafe_code)]

use nix::errno::Errno;

/// Makes a system call until something other than a signal ends it. On file systems that wait for a network or another
/// process even open(2) and fsync(2) can be interrupted, where a program handles signals, as Python does.
///
/// # Errors
/// Those of the call, without EINTR.
pub fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_no_call() {
        let mut answers = vec![Err(Errno::EIO), Ok(7), Err(Errno::EINTR), Err(Errno::EINTR)];
        let mut call = || uninterrupted(|| answers.pop().unwrap());
        assert_eq!([call(), call()], [Ok(7), Err(Errno::EIO)]);
    }
}
