//! Unix sockets that keep messages whole (`SOCK_SEQPACKET`): a message and its descriptors arrive together or not at
//! all, so nobody has to buffer half of one.

#![allow(unsafe_code, reason = "accept4 and getsockopt")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use crate::again::uninterrupted;
use crate::error::{Error, Result};
use crate::fd::fd_name;

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
    // Of a local socket: a call that was interrupted has left nothing behind.
    uninterrupted(|| socket::connect(fd.as_raw_fd(), &address))
        .map_err(|e| Error::os("connect", path.display().to_string(), e))?;
    Ok(fd)
}

/// Two sockets that are connected with each other.
///
/// # Errors
/// [`Error::Os`]: EMFILE, ENFILE.
pub fn pair_seqpacket() -> Result<(OwnedFd, OwnedFd)> {
    socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::os("socketpair", "AF_UNIX", e))
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
/// Nobody can connect before the file has its permission bits and group. What somebody who may write the directory puts
/// in its place meanwhile does not get them.
///
/// # Errors
/// [`Error::Os`]: EADDRINUSE when something is there, EACCES, ENOENT for a missing directory, ENAMETOOLONG;
/// [`Error::Invalid`] when the socket was replaced.
pub fn listen_seqpacket(path: &Path, mode: u32, group: Option<u32>) -> Result<OwnedFd> {
    let subject = || path.display().to_string();
    let address = address(path)?;
    let fd = socket(path, SockFlag::SOCK_NONBLOCK)?;
    // The file gets the mode of the socket, less what the umask takes.
    fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|e| Error::os("fchmod", subject(), e))?;
    socket::bind(fd.as_raw_fd(), &address).map_err(|e| Error::os("bind", subject(), e))?;
    set_rights(path, mode, group)?;
    socket::listen(&fd, socket::Backlog::MAXALLOWABLE).map_err(|e| Error::os("listen", subject(), e))?;
    Ok(fd)
}

/// Gives a socket that this process has just made its group and the permission bits that the umask took. Nothing is
/// followed or changed by its path: a link, or what was put in its place, stays as it is.
fn set_rights(path: &Path, mode: u32, group: Option<u32>) -> Result<()> {
    let subject = || path.display().to_string();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::io::retry_on_intr(|| fs::openat(fs::CWD, path, flags, Mode::empty()))
        .map_err(|e| Error::os("open", subject(), e))?;
    let found = fs::fstat(&file).map_err(|e| Error::os("fstat", subject(), e))?;
    // A second name could be of a socket that somebody else serves.
    let is_own = FileType::from_raw_mode(found.st_mode) == FileType::Socket
        && found.st_nlink == 1
        && found.st_uid == nix::unistd::geteuid().as_raw();
    if !is_own {
        return Err(Error::invalid(
            subject(),
            "something else lies there than the socket that was just made; another process may write the directory",
        ));
    }
    if let Some(group) = group {
        fs::chownat(&file, "", None, Some(fs::Gid::from_raw(group)), AtFlags::EMPTY_PATH)
            .map_err(|e| Error::os("chgrp", subject(), e))?;
    }
    if found.st_mode & 0o7777 == mode {
        return Ok(());
    }
    // The kernel knows no fchmod of such a descriptor before 6.6; its entry in /proc leads to the very file.
    let entry = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(entry, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::os("chmod", subject(), e))
}

/// Takes one waiting connection, nonblocking and close-on-exec; `None` when nobody waits.
///
/// # Errors
/// [`Error::Os`] from accept: EMFILE or ENFILE when there are too many descriptors.
pub fn accept_seqpacket(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    loop {
        match socket::accept4(listener.as_raw_fd(), flags) {
            // SAFETY: accept4 just made this descriptor for us, and nothing else owns it.
            Ok(fd) => return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(Errno::EAGAIN) => return Ok(None),
            // The client gave up while it waited; ask for the next one.
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(e) => return Err(Error::os("accept", fd_name(listener), e)),
        }
    }
}

/// Supplementary groups of the other end, as of its connect (SO_PEERGROUPS).
///
/// # Errors
/// [`Error::Os`] from getsockopt.
pub fn peer_groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the pointer is to a live, exclusively borrowed buffer of `bytes` bytes of integers, and the kernel
        // writes at most that many and updates `bytes`.
        let result = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        // ERANGE says how much room it takes.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(Error::os("getsockopt SO_PEERGROUPS", fd_name(fd), error));
        }
        groups.resize(count, 0);
    }
}

nix::ioctl_read_bad!(
    /// Bytes of memory that messages take which the other end has not read (unix(7)).
    siocoutq,
    libc::TIOCOUTQ,
    libc::c_int
);

/// Whether the other end has read all that was sent to it, and so has all descriptors.
///
/// # Errors
/// [`Error::Os`] from ioctl.
pub fn is_all_read(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut bytes = 0;
    // SAFETY: the pointer is to a live, exclusively borrowed integer, which is all that this ioctl writes.
    unsafe { siocoutq(fd.as_raw_fd(), &raw mut bytes) }
        .map_err(|e| Error::os("ioctl SIOCOUTQ", fd_name(fd), e))?;
    Ok(bytes == 0)
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
        let listener = listen_seqpacket(&path, 0o600, None).unwrap();
        let client = connect_seqpacket(&path, Duration::from_millis(20)).unwrap();
        let server = accept_seqpacket(listener.as_fd()).unwrap().unwrap();
        assert!(accept_seqpacket(listener.as_fd()).unwrap().is_none());
        crate::send_fds(client.as_fd(), b"one", &[]).unwrap();
        crate::send_fds(client.as_fd(), b"three", &[]).unwrap();
        let mut buffer = [0; 16];
        assert!(!is_all_read(client.as_fd()).unwrap());
        assert_eq!(crate::recv_fds(server.as_fd(), &mut buffer, 0).unwrap().0, 3);
        assert!(!is_all_read(client.as_fd()).unwrap());
        assert_eq!(crate::recv_fds(server.as_fd(), &mut buffer, 0).unwrap().0, 5);
        assert!(is_all_read(client.as_fd()).unwrap());
        let error = crate::recv_fds(client.as_fd(), &mut buffer, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EAGAIN));
        let peer = peer(server.as_fd()).unwrap();
        let groups = peer_groups(server.as_fd()).unwrap();
        assert_eq!(groups.len(), nix::unistd::getgroups().unwrap().len());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn rights_go_to_the_socket_and_nothing_else() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let group = nix::unistd::getegid().as_raw();
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let path = path(&mode.to_string());
            let _listener = listen_seqpacket(&path, mode, Some(group)).unwrap();
            let made = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!((made.mode() & 0o7777, made.gid()), (mode, group));
        }
        // What could be put in the place of a socket that was just bound.
        std::fs::write(path("file"), "x").unwrap();
        std::fs::set_permissions(path("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let _listener = listen_seqpacket(&path("other"), 0o600, None).unwrap();
        std::fs::hard_link(path("other"), path("second")).unwrap();
        for (name, target) in [("file", "file"), ("link", "file"), ("second", "other")] {
            let error = set_rights(&path(name), 0o666, Some(group)).unwrap_err();
            assert!(error.to_string().contains("something else lies there"), "{name}: {error}");
            assert_eq!(std::fs::metadata(path(target)).unwrap().mode() & 0o7777, 0o600, "{name}");
        }
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
