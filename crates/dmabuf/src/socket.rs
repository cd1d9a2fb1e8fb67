//! Unix sockets that keep messages whole (`SOCK_SEQPACKET`): a message and its descriptors arrive together or not at
//! all, so nobody has to buffer half of one.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;

use crate::describe::fd_name;
use crate::error::{Error, Result};

/// Who is at the other end of a socket, as the kernel recorded it at connect (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process, as numbered in this process' PID namespace; 0 if it is not visible here.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

fn address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).map_err(|e| Error::os("socket address", path.display().to_string(), e))
}

fn socket(path: &Path, flags: SockFlag) -> Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|e| Error::os("socket", path.display().to_string(), e))
}

/// Connects to a listening socket. Each later send or receive waits at most `timeout`, and so does this call.
///
/// # Errors
/// [`Error::Os`]: ENOENT when nobody made the socket, ECONNREFUSED when nobody listens any more, EACCES, EAGAIN after
/// the time-out, ENAMETOOLONG for a path over 107 bytes.
pub fn connect_seqpacket(path: &Path, timeout: Duration) -> Result<OwnedFd> {
    let address = address(path)?;
    let fd = socket(path, SockFlag::empty())?;
    set_timeout(&fd, timeout)?;
    socket::connect(fd.as_raw_fd(), &address)
        .map_err(|e| Error::os("connect", path.display().to_string(), e))?;
    Ok(fd)
}

/// Bounds how long each send and receive on a socket waits.
///
/// # Errors
/// [`Error::Os`] from setsockopt.
pub fn set_timeout(fd: &OwnedFd, timeout: Duration) -> Result<()> {
    // A time value of zero means for ever.
    let timeout = timeout.max(Duration::from_millis(1));
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let value = TimeVal::new(seconds, i64::from(timeout.subsec_micros()));
    let failed = |e| Error::os("setsockopt", "SO_RCVTIMEO", e);
    socket::setsockopt(fd, sockopt::ReceiveTimeout, &value).map_err(failed)?;
    socket::setsockopt(fd, sockopt::SendTimeout, &value).map_err(failed)
}

/// Makes a socket at `path` and listens on it, nonblocking. The caller makes sure that nothing is at the path.
///
/// # Errors
/// [`Error::Os`]: EADDRINUSE when something is there, EACCES, ENOENT for a missing directory, ENAMETOOLONG.
pub fn listen_seqpacket(path: &Path) -> Result<OwnedFd> {
    let address = address(path)?;
    let fd = socket(path, SockFlag::SOCK_NONBLOCK)?;
    socket::bind(fd.as_raw_fd(), &address).map_err(|e| Error::os("bind", path.display().to_string(), e))?;
    socket::listen(&fd, socket::Backlog::MAXALLOWABLE)
        .map_err(|e| Error::os("listen", path.display().to_string(), e))?;
    Ok(fd)
}

/// Who connected to, or listens at, the other end.
///
/// # Errors
/// [`Error::Os`] from getsockopt.
pub fn peer(fd: BorrowedFd<'_>) -> Result<Peer> {
    let credentials = socket::getsockopt(&fd, sockopt::PeerCredentials)
        .map_err(|e| Error::os("getsockopt SO_PEERCRED", fd_name(fd), e))?;
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_stay_whole_and_time_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen_seqpacket(&path).unwrap();
        let client = connect_seqpacket(&path, Duration::from_millis(20)).unwrap();
        let server = socket::accept(listener.as_raw_fd()).unwrap();
        // SAFETY: accept just returned this descriptor, and nothing else owns it.
        #[allow(unsafe_code, reason = "owning what accept returned")]
        let server = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(server) };
        crate::send_fds(client.as_fd(), b"one", &[]).unwrap();
        crate::send_fds(client.as_fd(), b"three", &[]).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(crate::recv_fds(server.as_fd(), &mut buffer, 0).unwrap().0, 3);
        assert_eq!(crate::recv_fds(server.as_fd(), &mut buffer, 0).unwrap().0, 5);
        let error = crate::recv_fds(client.as_fd(), &mut buffer, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EAGAIN));
        let peer = peer(server.as_fd()).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn absent_and_long_paths() {
        let timeout = Duration::from_millis(20);
        let error = connect_seqpacket(Path::new("/nonexistent/s"), timeout).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOENT));
        let long = format!("/tmp/{}", "x".repeat(200));
        let error = connect_seqpacket(Path::new(&long), timeout).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENAMETOOLONG));
    }
}
