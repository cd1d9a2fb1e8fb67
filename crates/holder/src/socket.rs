//! The listening socket: made anew without racing other starters, and removed only by its owner.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::error::{Error, Result};

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
    /// Makes the socket. A file that a dead holder left is removed; a lock beside it keeps two starters apart.
    ///
    /// # Errors
    /// [`Error::Running`] when a holder answers there; [`Error::Memory`] and [`Error::System`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self> {
        let _lock = lock(path)?;
        if std::fs::symlink_metadata(path).is_ok() {
            match dmabuf::connect_seqpacket(path, Duration::from_secs(2)) {
                Ok(other) => {
                    let pid = dmabuf::peer(other.as_fd()).map_or(0, |peer| peer.pid);
                    return Err(Error::Running { socket: path.to_owned(), pid });
                }
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
                    tracing::info!(socket = %path.display(), "removing the socket of a holder that is gone");
                    std::fs::remove_file(path)
                        .map_err(|e| Error::system(format!("remove {}", path.display()), e))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let fd = dmabuf::listen_seqpacket(path, mode, group)?;
        Self::over(fd, path)
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
    /// [`Error::Socket`] when it is no socket that listens for messages (`ListenSequentialPacket=`).
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

    /// Removes the socket file, if it is still this socket's.
    pub fn remove(self) {
        let Ok(_lock) = lock(&self.path) else { return };
        if self.is_in_place() {
            // Nothing is lost if it stays: the next holder removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&name);
    let file = file.map_err(|e| Error::system(format!("open {}", name.display()), e))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| Error::system(format!("lock {}", name.display()), e))
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
