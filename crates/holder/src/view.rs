//! Whose symbolic links are followed out of a folder that is to be packed.
//!
//! With whose rights a folder is read, `load` decides. But links are followed in this process' view of the file systems:
//! root in a container, with mounts of its own, could make links to files that lie outside of the container.

use std::fs;
use std::os::unix::fs::MetadataExt;

use dmabuf::Peer;

/// Whether links mean the same to a client as to this process: it has the same mounts and root directory. What cannot
/// be found out counts as no.
pub(crate) fn is_shared(peer: Peer) -> bool {
    if peer.pid == 0 {
        return false;
    }
    // Entries of /proc: one stat each, of what they lead to.
    let same = |what: &str| {
        let id =
            |of: &str| fs::metadata(format!("/proc/{of}/{what}")).map(|found| (found.dev(), found.ino()));
        matches!((id("self"), id(&peer.pid.to_string())), (Ok(own), Ok(other)) if own == other)
    };
    same("ns/mnt") && same("root")
}
