//! A program that goes on in the background once it is of use, and whose caller knows when.

#![allow(unsafe_code, reason = "fork(2)")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

/// What the process in the background says when it is ready.
#[derive(Debug)]
pub struct Ready {
    /// Where the caller listens; nothing in the foreground.
    caller: Option<File>,
}

impl Ready {
    /// For a process that stays in the foreground.
    #[must_use]
    pub fn in_foreground() -> Self {
        Self { caller: None }
    }

    /// Says that it is ready: to systemd, if that wants to know (`$NOTIFY_SOCKET`, sd_notify(3)), and to the caller, which
    /// returns. From now on a process in the background has a session of its own and no terminal.
    ///
    /// # Errors
    /// What the system says.
    pub fn tell(self) -> io::Result<()> {
        notify(b"READY=1");
        let Some(mut caller) = self.caller else { return Ok(()) };
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        setsid()?;
        dup2_stdin(null.as_fd())?;
        dup2_stdout(null.as_fd())?;
        caller.write_all(&[0])?;
        // Last: until here there is somebody who reads it.
        Ok(dup2_stderr(null.as_fd())?)
    }
}

/// Runs `body` in a process in the background, and returns its exit status if it ends before it is ready, 0 when it is.
/// The process ends with what `body` returns.
///
/// To be called while there are no other threads, since only the one that calls goes on.
///
/// # Errors
/// When there can be no process.
pub fn run(body: impl FnOnce(Ready) -> u8) -> io::Result<u8> {
    let (mut listen, tell) = pipe().map(|(listen, tell)| (File::from(listen), File::from(tell)))?;
    for end in [&listen, &tell] {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(end, flags)?;
    }
    // SAFETY: the child may do what a process with one thread may, if the parent has one thread, as callers are told. If
    // it has others, whose locks nobody gives back in the child, the allocator's and those that are taken around forks
    // (`dmabuf::around_forks`) are not among them, and no other lock of theirs is used below.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(listen);
            let status = body(Ready { caller: Some(tell) });
            // SAFETY: it ends the process, without handlers of the parent's that would run twice; nothing is
            // buffered in this one.
            unsafe { libc::_exit(status.into()) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            if matches!(listen.read(&mut [0]), Ok(1)) {
                return Ok(0);
            }
            Ok(match waitpid(child, None)? {
                WaitStatus::Exited(_, status) => u8::try_from(status).unwrap_or(u8::MAX),
                WaitStatus::Signaled(_, signal, _) => {
                    u8::try_from((signal as i32).saturating_add(128)).unwrap_or(u8::MAX)
                }
                _ => u8::MAX,
            })
        }
    }
}

/// Tells systemd. Nothing is lost for others when it does not hear.
fn notify(text: &[u8]) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::SocketAddr;
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(text, &address);
    }
}
