//! Users and groups by the container's own `/etc/passwd` and `/etc/group`, which are read as passwd(5) has them.

use anyhow::{Context, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes of a file of users that are looked at.
pub const MOST: u64 = 16 << 20;
/// Most groups of a user, as for Linux.
const MOST_GROUPS: usize = 65_536;

/// Whose rights a program has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

/// Looks a user up, `USER[:GROUP]`, in the files of the directory `etc`. Numbers need no entry.
///
/// # Errors
/// For a name that is not there.
pub fn find(wanted: &str, etc: &Path) -> anyhow::Result<Identity> {
    let [passwd, group] = ["passwd", "group"].map(|name| read(&etc.join(name)));
    resolve(wanted, &passwd, &group)
}

/// A file's text; of one that is not there, or is none, nothing.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    if let Some(file) = is_file.then(|| File::open(path).ok()).flatten() {
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Looks a user up in the texts of both files.
///
/// # Errors
/// For a name that is not there.
pub fn resolve(wanted: &str, passwd: &str, group: &str) -> anyhow::Result<Identity> {
    let (user, in_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    // A name comes before a number that is one.
    let entry = entries(passwd).find(|fields| fields[0] == user).or_else(|| {
        entries(passwd)
            .find(|fields| number.is_some() && fields.get(2).and_then(|id| id.parse().ok()) == number)
    });
    let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at).copied());
    let uid = match (field(2).and_then(|id| id.parse().ok()), number) {
        (Some(uid), _) | (None, Some(uid)) => uid,
        _ => bail!("the container's /etc/passwd has no user {user:?}"),
    };
    let (gid, groups) = match in_group {
        Some(name) => {
            let named = entries(group).find(|fields| fields[0] == name);
            let found = named.and_then(|fields| fields.get(2)?.parse().ok()).or_else(|| name.parse().ok());
            let gid = found.with_context(|| format!("the container's /etc/group has no group {name:?}"))?;
            (gid, Vec::new())
        }
        None => {
            let own = field(3).and_then(|id| id.parse().ok()).unwrap_or(0);
            let has_user = |fields: &Vec<&str>| {
                let name = field(0).unwrap_or_default();
                let members = fields.get(3).copied().unwrap_or_default();
                !name.is_empty() && members.split(',').any(|member| member == name)
            };
            let with_user = entries(group).filter(has_user);
            let mut groups: Vec<u32> = with_user.filter_map(|fields| fields.get(2)?.parse().ok()).collect();
            groups.sort_unstable();
            groups.dedup();
            groups.truncate(MOST_GROUPS);
            (own, groups)
        }
    };
    let home = field(5).filter(|home| home.starts_with('/') && !home.contains('\0')).map(str::to_owned);
    Ok(Identity { uid, gid, groups, home })
}

/// Lines of fields; there is a first one in each.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']));
    lines.map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no user\n\nbroken\nweb:x:33:34:,,,:/var/www:/bin/sh\n7:x:8:9::/seven:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:50:web,root\nmore:x:51:other,web\nlog2:x:50:web\n";

    #[test]
    fn names_and_numbers_are_looked_up() {
        let found = |wanted| resolve(wanted, PASSWD, GROUP).unwrap();
        let web = Identity { uid: 33, gid: 34, groups: vec![50, 51], home: Some("/var/www".into()) };
        assert_eq!(found("web"), web);
        assert_eq!(found("33"), web);
        assert_eq!(found("web:"), web);
        assert_eq!(found("web:log"), Identity { gid: 50, groups: vec![], ..web.clone() });
        assert_eq!(found("web:7"), Identity { gid: 7, groups: vec![], ..web });
        let root = Identity { uid: 0, gid: 0, groups: vec![50], home: Some("/root".into()) };
        assert_eq!((found(""), found(":")), (root.clone(), root));
        assert_eq!((found("7").uid, found("7").gid), (8, 9));
        assert_eq!(found("1000"), Identity { uid: 1000, gid: 0, groups: vec![], home: None });
        for wrong in ["nobody", "web:nobody", "-1", "4294967296", "broken"] {
            assert!(resolve(wrong, PASSWD, GROUP).is_err(), "{wrong}");
        }
        assert_eq!(resolve("5:6", "", "").unwrap(), Identity { uid: 5, gid: 6, groups: vec![], home: None });
    }
}
