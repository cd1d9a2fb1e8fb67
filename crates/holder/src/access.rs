//! Who may attach to an image, and who may control the holder.

use std::fmt;
use std::os::fd::BorrowedFd;

use dmabuf::Peer;

/// Who may attach: everybody who can connect, or the users and groups that are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, primary or supplementary.
    pub gids: Vec<u32>,
    /// Whether a supervisor keeps that everybody may, since it had a list before.
    explicit: bool,
    /// Whether a supervisor keeps, beside the list, that there is one (see `Notify::change_access`).
    marked: bool,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uids.is_empty() && self.gids.is_empty() {
            return f.write_str("everybody who may connect");
        }
        let ids = |what: &'static str, ids: &[u32]| {
            ids.iter().map(move |id| format!("{what} {id}")).collect::<Vec<_>>()
        };
        let all = [ids("user", &self.uids), ids("group", &self.gids)].concat();
        f.write_str(&all.join(", "))
    }
}

impl Access {
    /// For these users and groups; for everybody who may connect when there are none.
    pub fn new(uids: Vec<u32>, gids: Vec<u32>) -> Self {
        Self { uids, gids, explicit: false, marked: false }
    }

    /// True for the same users and groups, in whatever order.
    pub fn is_same(&self, other: &Self) -> bool {
        let sorted = |ids: &[u32]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        sorted(&self.uids) == sorted(&other.uids) && sorted(&self.gids) == sorted(&other.gids)
    }

    /// True when a supervisor is to keep it: for everybody it need not, unless it keeps something else.
    pub fn is_stored(&self) -> bool {
        self.explicit || !self.uids.is_empty() || !self.gids.is_empty()
    }

    /// How many descriptors a supervisor keeps for it.
    pub fn descriptors(&self) -> usize {
        usize::from(self.is_stored()) + usize::from(self.marked)
    }

    /// With the mark that there is a list: an image that was stored for everybody needs it.
    #[must_use]
    pub fn marked(self) -> Self {
        Self { marked: true, ..self }
    }

    /// For a new generation, which is stored as one with a list at once.
    #[must_use]
    pub fn of_new(self) -> Self {
        Self { marked: false, ..self }
    }

    /// In the place of another one, which a supervisor may keep.
    #[must_use]
    pub fn in_place_of(self, before: &Self) -> Self {
        let explicit = before.is_stored();
        let marked = before.marked || (!explicit && self.is_stored());
        Self { explicit, marked, ..self }
    }

    /// Only root and the holder's own user.
    pub fn nobody() -> Self {
        // The value that no user and no group has: chown(2) takes it for "unchanged".
        Self::new(vec![u32::MAX], Vec::new())
    }

    /// As text, to be kept by a supervisor: `uid N` and `gid N`, one a line, or `everybody`.
    pub fn to_text(&self) -> String {
        if self.uids.is_empty() && self.gids.is_empty() {
            return "everybody\n".to_owned();
        }
        let lines = |key: &'static str, ids: &[u32]| {
            ids.iter().map(move |id| format!("{key} {id}\n")).collect::<String>()
        };
        lines("uid", &self.uids) + &lines("gid", &self.gids)
    }

    /// From such a text; `None` when it is none, or lists nobody.
    pub fn from_text(text: &str) -> Option<Self> {
        if text == "everybody\n" {
            return Some(Self { explicit: true, ..Self::default() });
        }
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

/// User and groups of who asked for a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Rights {
    /// Those of a peer, as of its connect.
    pub fn of(peer: Peer, socket: BorrowedFd<'_>) -> Self {
        Self { uid: peer.uid, gid: peer.gid, groups: peer_groups(socket) }
    }

    /// True when a process with these rights may read what this process may: it is root, as this one, or has its user
    /// and all its groups.
    pub fn cover(&self, own: &Self) -> bool {
        let has = |gid: &u32| self.gid == *gid || self.groups.contains(gid);
        self.uid == own.uid && (own.uid == 0 || (has(&own.gid) && own.groups.iter().all(has)))
    }

    /// Those of this process.
    pub fn own() -> Self {
        let groups = nix::unistd::getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw());
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { uid, gid, groups: groups.collect() }
    }
}

/// Supplementary groups of a peer as of its connect; none when the kernel does not say.
pub fn peer_groups(socket: BorrowedFd<'_>) -> Vec<u32> {
    dmabuf::peer_groups(socket).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_rights_cover() {
        let rights = |uid, gid, groups: &[u32]| Rights { uid, gid, groups: groups.to_vec() };
        let own = rights(7, 8, &[8, 9]);
        assert!(own.cover(&own) && rights(7, 9, &[1, 8]).cover(&own));
        assert!(!rights(7, 8, &[]).cover(&own), "a group less");
        assert!(!rights(0, 0, &[]).cover(&own), "root's files are not this user's to read for it");
        assert!(rights(0, 1, &[]).cover(&rights(0, 0, &[5])));
        assert!(!rights(7, 8, &[8, 9]).cover(&rights(0, 0, &[])));
    }

    #[test]
    fn lists_decide_when_there_are_any() {
        let peer = Peer { pid: 1, uid: 1000, gid: 100 };
        let none = Vec::new;
        assert!(Access::default().allows(peer, 7, none));
        let access = Access::new(vec![1001], vec![50]);
        assert!(!access.allows(peer, 7, none));
        assert!(access.allows(Peer { uid: 1001, ..peer }, 7, none));
        assert!(access.allows(Peer { gid: 50, ..peer }, 7, none));
        assert!(access.allows(peer, 7, || vec![3, 50]));
        assert!(access.allows(Peer { uid: 0, ..peer }, 7, none));
        assert!(access.allows(peer, 1000, none));
        assert!(!Access::nobody().allows(peer, 7, || vec![u32::MAX]));
        assert_eq!(Access::from_text(&access.to_text()).as_ref(), Some(&access));
        let everybody = Access::default().in_place_of(&access);
        assert!(everybody.is_stored() && everybody.allows(peer, 7, none));
        assert_eq!(Access::from_text(&everybody.to_text()).as_ref(), Some(&everybody));
        assert_eq!(
            (access.to_string().as_str(), access.is_same(&access.clone().in_place_of(&everybody))),
            ("user 1001, group 50", true)
        );
        assert!(["", "uid", "uid x", "gid 1\nall 2"].iter().all(|text| Access::from_text(text).is_none()));
        assert!(!may_control(peer, 7, &[8]));
        assert!(may_control(peer, 7, &[1000]));
    }
}
