//! Whose symbolic links are followed out of a folder that is to be packed.
//!
//! With whose rights a folder is read, `load` decides. But links are followed in this process' view of the file systems:
//! root in a container, with mounts of its own, could make links to files that lie outside of the container.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use dmabuf::Peer;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

/// Whether links mean the same to a client as to this process: it has the same mounts and root directory. What cannot
/// be found out counts as no. So does a client that has ended: another process may have its number by now. Kernels
/// before 6.5 do not tell that (SO_PEERPIDFD).
pub(crate) fn is_shared(peer: Peer, socket: BorrowedFd<'_>) -> bool {
    if peer.pid == 0 {
        return false;
    }
    // Entries of /proc: one stat each, of what they lead to.
    let same = |what: &str| {
        let id =
            |of: &str| fs::metadata(format!("/proc/{of}/{what}")).map(|found| (found.dev(), found.ino()));
        matches!((id("self"), id(&peer.pid.to_string())), (Ok(own), Ok(other)) if own == other)
    };
    let process = getsockopt(&socket, sockopt::PeerPidfd);
    let same = same("ns/mnt") && same("root");
    // After the looks: as long as the process is there, its number is its own.
    same && match process {
        Ok(process) => pid_of(&process) == Some(peer.pid),
        Err(error) => error == Errno::ENOPROTOOPT,
    }
}

/// Number of the process that a pidfd stands for; -1 when that has ended and was reaped.
fn pid_of(process: &OwnedFd) -> Option<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn who_has_ended_shares_nothing() {
        let (own, _theirs) = UnixStream::pair().unwrap();
        let peer = dmabuf::peer(own.as_fd()).unwrap();
        assert!(is_shared(peer, own.as_fd()));
        // As if another process had the number that the client had.
        if getsockopt(&own, sockopt::PeerPidfd).is_ok() {
            let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let reused = Peer { pid: other.id().cast_signed(), ..peer };
            let shared = is_shared(reused, own.as_fd());
            other.kill().unwrap();
            other.wait().unwrap();
            assert!(!shared);
        }
    }
}
