//! The listening socket: made anew without racing other starters, and removed only by its owner.
//!
//! What lies at the path is removed only if it is a socket of this user at which nobody listens. A lock beside it keeps
//! two starters apart; it is waited for a few seconds at most, and goes with the socket.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daxfs_protocol::Connection;
use daxfs_protocol::message::{Reply, Request};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, sockopt};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// How long another starter may have the lock. It has it for a moment, unless somebody squats it.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How long a running holder may take to say which process it is.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// A listening socket and the file that it is bound to.
#[derive(Debug)]
pub struct Listener {
    /// Nonblocking.
    pub fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file; `None` for a socket that systemd made, which is not ours to remove.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Makes the socket. One that a dead holder of this user left is removed; a lock beside it keeps two starters apart.
    ///
    /// # Errors
    /// [`Error::Running`] when a holder answers there; [`Error::Occupied`] when something else lies there, which stays;
    /// [`Error::Locked`]; [`Error::Memory`] and [`Error::System`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self> {
        let lock = Lock::take(path)?;
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => remove_dead(path, &metadata)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::system(format!("stat {}", path.display()), error)),
        }
        let bound = dmabuf::listen_seqpacket(path, mode, group)
            .map_err(Error::from)
            .and_then(|fd| Self::over(fd, path));
        if bound.is_err() {
            lock.remove();
        }
        bound
    }

    /// A socket that is bound and listens already, at `path`.
    ///
    /// # Errors
    /// [`Error::System`] when the file cannot be looked at.
    pub fn over(fd: OwnedFd, path: &Path) -> Result<Self> {
        let metadata = std::fs::symlink_metadata(path)
            .map_err(|e| Error::system(format!("stat {}", path.display()), e))?;
        Ok(Self { fd, path: path.to_owned(), file: Some((metadata.dev(), metadata.ino())) })
    }

    /// A socket that belongs to systemd, which passes it blocking unless the unit says otherwise.
    ///
    /// # Errors
    /// [`Error::Socket`] when it is not a socket that listens for messages (`ListenSequentialPacket=`).
    pub fn foreign(fd: OwnedFd, path: &Path) -> Result<Self> {
        let listens = getsockopt(&fd, sockopt::AcceptConn) == Ok(true);
        if !listens || getsockopt(&fd, sockopt::SockType) != Ok(SockType::SeqPacket) {
            return Err(Error::Socket);
        }
        let failed = |e| Error::system("make the passed socket nonblocking", e);
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(failed)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
        Ok(Self { fd, path: path.to_owned(), file: None })
    }

    /// True for a socket that a supervisor made.
    pub fn is_foreign(&self) -> bool {
        self.file.is_none()
    }

    /// True while the socket file is the one that was there at first, and ours.
    pub fn is_in_place(&self) -> bool {
        let now = std::fs::symlink_metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        self.file.is_some() && now.ok() == self.file
    }

    /// Names this process as the one that listens, instead of the one that made the socket: the kernel tells clients
    /// who called listen(2) last.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn claim(&self) -> Result<()> {
        listen(&self.fd, Backlog::MAXALLOWABLE).map_err(|e| Error::system("listen", e))
    }

    /// Removes the socket file, if it is still this socket's, and the lock beside it.
    pub fn remove(self) {
        if self.file.is_none() {
            return;
        }
        let Ok(lock) = Lock::take(&self.path) else { return };
        if self.is_in_place() {
            // Nothing is lost if it stays: the next holder removes it.
            let _ = std::fs::remove_file(&self.path);
            lock.remove();
        }
    }
}

/// Removes what lies at the path if it is a socket of this user at which nobody listens.
fn remove_dead(path: &Path, metadata: &Metadata) -> Result<()> {
    let occupied = |what: String| Err(Error::Occupied { socket: path.to_owned(), what });
    let kind = metadata.file_type();
    if !kind.is_socket() {
        let what = match () {
            () if kind.is_symlink() => "a symbolic link",
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a named pipe",
            () if kind.is_file() => "a regular file",
            () => "a device",
        };
        return occupied(what.to_owned());
    }
    match dmabuf::connect_seqpacket(path, ASK_PATIENCE) {
        Ok(other) => {
            // Who made the socket may have ended since; who answers knows better.
            let pid = ask_pid(path).or_else(|| dmabuf::peer(other.as_fd()).ok().map(|peer| peer.pid));
            return Err(Error::Running { socket: path.to_owned(), pid: pid.unwrap_or(0) });
        }
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
        // It takes other messages, so it is another program's.
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            return occupied("the socket of another program".to_owned());
        }
        Err(error) => return Err(error.into()),
    }
    let own = nix::unistd::geteuid().as_raw();
    if metadata.uid() != own {
        return occupied(format!("a socket of user {}, at which nobody listens", metadata.uid()));
    }
    tracing::info!(socket = %path.display(), "removing the socket of a holder that is gone");
    std::fs::remove_file(path).map_err(|e| Error::system(format!("remove {}", path.display()), e))
}

/// The process of the holder that answers there, if it does.
fn ask_pid(path: &Path) -> Option<i32> {
    let mut connection = Connection::open(path).ok()?;
    connection.set_timeout(ASK_PATIENCE).ok()?;
    match connection.request(&Request::Health, &[]).ok()?.0 {
        Reply::Health { pid, .. } => i32::try_from(pid).ok(),
        _ => None,
    }
}

/// The lock beside a socket, `SOCKET.lock`; held until it is dropped.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Closing it gives the lock back, which cannot fail.
    file: File,
}

impl Lock {
    /// # Errors
    /// [`Error::Locked`] when another process keeps it; [`Error::System`].
    fn take(socket: &Path) -> Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let deadline = Instant::now() + LOCK_PATIENCE;
        let failed = |what: &str, e: std::io::Error| Error::system(format!("{what} {}", path.display()), e);
        loop {
            // Neither a link nor a named pipe leads elsewhere or waits for anybody.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let mut options = File::options();
            options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags.bits());
            let file = options.open(&path).map_err(|e| failed("open", e))?;
            let opened = file.metadata().map_err(|e| failed("stat", e))?;
            if !opened.is_file() {
                return Err(Error::Occupied { socket: path, what: "no regular file".to_owned() });
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    // Whoever had it may have removed it meanwhile: then it locks nothing.
                    let now = std::fs::symlink_metadata(&path).map(|now| (now.dev(), now.ino()));
                    if now.is_ok_and(|now| now == (opened.dev(), opened.ino())) {
                        return Ok(Self { path, file });
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    if Instant::now() > deadline {
                        return Err(Error::Locked { pid: owner(&opened), path });
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(failed("lock", error.into())),
            }
        }
    }

    /// Removes the file while it is locked.
    fn remove(self) {
        // The next starter makes another one, or takes this one.
        let _ = std::fs::remove_file(&self.path);
        drop(self.file);
    }
}

/// The process that has a file locked, as far as `/proc/locks` tells; 0 otherwise. Its lines are
/// `N: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`.
fn owner(file: &Metadata) -> i32 {
    let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&wanted.as_str()))
            .then(|| fields.get(4)?.parse().ok())?
    });
    pid.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daxfs.sock");
        drop(Listener::bind(&path, 0o600, None).unwrap());
        assert!(path.exists(), "dropping is dying: the file stays");
        let second = Listener::bind(&path, 0o640, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let error = Listener::bind(&path, 0o600, None).unwrap_err();
        let own = std::process::id();
        assert!(matches!(error, Error::Running { pid, .. } if pid.cast_unsigned() == own), "{error}");
        second.remove();
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nor does the lock stay");
    }

    #[test]
    fn nothing_but_a_dead_socket_is_removed() {
        use std::os::unix::net::{UnixDatagram, UnixListener};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "mine").unwrap();
        std::fs::write(path("target"), "mine").unwrap();
        std::os::unix::fs::symlink("target", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _other = UnixListener::bind(path("stream")).unwrap();
        let _datagram = UnixDatagram::bind(path("datagram")).unwrap();
        for name in ["file", "link", "dangling", "dir", "fifo", "stream", "datagram"] {
            let error = Listener::bind(&path(name), 0o600, None).unwrap_err();
            assert!(matches!(error, Error::Occupied { .. }), "{name}: {error}");
            assert!(path(name).symlink_metadata().is_ok(), "{name} is gone");
        }
        assert_eq!(std::fs::read(path("file")).unwrap(), b"mine");
        // Of another user, if that can be made.
        if nix::unistd::geteuid().is_root() {
            drop(Listener::bind(&path("foreign"), 0o600, None).unwrap());
            std::os::unix::fs::chown(path("foreign"), Some(4321), None).unwrap();
            let error = Listener::bind(&path("foreign"), 0o600, None).unwrap_err().to_string();
            assert!(error.contains("user 4321"), "{error}");
        }
    }

    #[test]
    fn a_squatted_lock_is_named_and_not_waited_for_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let squatted = File::create(dir.path().join("s.lock")).unwrap();
        flock(&squatted, FlockOperation::LockExclusive).unwrap();
        let lock = squatted;
        let error = Listener::bind(&path, 0o600, None).unwrap_err();
        let own = std::process::id();
        assert!(matches!(error, Error::Locked { pid, .. } if pid.cast_unsigned() == own), "{error}");
        assert!(error.to_string().contains(&format!("process {own}")), "{error}");
        drop(lock);
        std::fs::remove_file(dir.path().join("s.lock")).unwrap();
        // A named pipe would wait for a reader, and a link would lead elsewhere.
        nix::unistd::mkfifo(&dir.path().join("s.lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        Listener::bind(&path, 0o600, None).unwrap_err();
        std::fs::remove_file(dir.path().join("s.lock")).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("s.lock")).unwrap();
        Listener::bind(&path, 0o600, None).unwrap_err();
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn only_the_own_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daxfs.sock");
        let first = Listener::bind(&path, 0o600, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, 0o600, None).unwrap();
        first.remove();
        assert!(path.exists());
    }
}
