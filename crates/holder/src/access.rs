//! Who may attach to an image, and who may control the holder.

use std::os::fd::BorrowedFd;

use dmabuf::Peer;

/// Who may attach: everybody who can connect, or the users and groups that are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, primary or supplementary.
    pub gids: Vec<u32>,
}

impl Access {
    /// Only root and the holder's own user.
    pub fn nobody() -> Self {
        // The value that no user and no group has: chown(2) takes it for "unchanged".
        Self { uids: vec![u32::MAX], gids: Vec::new() }
    }

    /// As text, to be kept by a supervisor: `uid N` and `gid N`, one a line.
    pub fn to_text(&self) -> String {
        let lines = |key: &'static str, ids: &[u32]| {
            ids.iter().map(move |id| format!("{key} {id}\n")).collect::<String>()
        };
        lines("uid", &self.uids) + &lines("gid", &self.gids)
    }

    /// From such a text; `None` when it is none, or lists nobody.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut access = Self::default();
        for line in text.lines() {
            match line.split_once(' ')? {
                ("uid", id) => access.uids.push(id.parse().ok()?),
                ("gid", id) => access.gids.push(id.parse().ok()?),
                _ => return None,
            }
        }
        (access != Self::default()).then_some(access)
    }

    /// True when a peer may attach. Root and the holder's own user (`own`) always may; `groups` are asked for only
    /// when they decide.
    pub fn allows(&self, peer: Peer, own: u32, groups: impl FnOnce() -> Vec<u32>) -> bool {
        if self.uids.is_empty() && self.gids.is_empty() {
            return true;
        }
        [0, own].contains(&peer.uid)
            || self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || (!self.gids.is_empty() && groups().iter().any(|gid| self.gids.contains(gid)))
    }
}

/// True when a peer may load, drop, swap, stop and take over.
pub fn may_control(peer: Peer, own: u32, listed: &[u32]) -> bool {
    [0, own].contains(&peer.uid) || listed.contains(&peer.uid)
}

/// Supplementary groups of a peer as of its connect; none when the kernel does not say.
pub fn peer_groups(socket: BorrowedFd<'_>) -> Vec<u32> {
    dmabuf::peer_groups(socket).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_decide_when_there_are_any() {
        let peer = Peer { pid: 1, uid: 1000, gid: 100 };
        let none = Vec::new;
        assert!(Access::default().allows(peer, 7, none));
        let access = Access { uids: vec![1001], gids: vec![50] };
        assert!(!access.allows(peer, 7, none));
        assert!(access.allows(Peer { uid: 1001, ..peer }, 7, none));
        assert!(access.allows(Peer { gid: 50, ..peer }, 7, none));
        assert!(access.allows(peer, 7, || vec![3, 50]));
        assert!(access.allows(Peer { uid: 0, ..peer }, 7, none));
        assert!(access.allows(peer, 1000, none));
        assert!(!Access::nobody().allows(peer, 7, || vec![u32::MAX]));
        assert_eq!(Access::from_text(&access.to_text()), Some(access));
        assert!(["", "uid", "uid x", "gid 1\nall 2"].iter().all(|text| Access::from_text(text).is_none()));
        assert!(!may_control(peer, 7, &[8]));
        assert!(may_control(peer, 7, &[1000]));
    }
}
