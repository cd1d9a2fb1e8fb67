//! From the names in an archive to places in the tree. No name leads out of it: `..` at the root stays there, and links
//! are followed as if the root were `/`.

use super::{Id, Inode, Kind, ROOT, Tree};
use crate::Error;
use crate::error::{Result, shown};
use crate::limits::{Budget, FIXED, Limits, within};

/// The components of a name, without what means nothing: `.`, slashes at both ends, and what `..` takes back. This is
/// done with the text alone, before any link is looked at.
pub(super) fn clean(name: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// A component that is still to be looked up.
enum Part<'p> {
    Given(&'p [u8]),
    /// Of the target of a link.
    Linked(Box<[u8]>),
}

impl Part<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Given(bytes) => bytes,
            Part::Linked(bytes) => bytes,
        }
    }
}

/// Who walks, and for what.
pub(super) struct Walk<'w> {
    pub(super) place: &'w str,
    pub(super) member: &'w [u8],
    pub(super) budget: &'w Budget,
    /// Whether directories that are not there are made; otherwise nothing is found then.
    pub(super) makes: bool,
}

impl Walk<'_> {
    pub(super) fn wrong(&self, rule: &'static str, found: impl Into<String>) -> Error {
        let (place, path) = (self.place.to_owned(), shown(self.member));
        Error::Member { place, path, rule, found: found.into() }
    }
}

impl Tree {
    /// The directory at the end of `path`, from the root. Links on the way are followed inside the tree, the last one
    /// too.
    pub(super) fn walk(&mut self, path: &[&[u8]], walk: &Walk<'_>) -> Result<Option<Id>> {
        let mut waiting: Vec<Part<'_>> = path.iter().rev().map(|part| Part::Given(part)).collect();
        let mut at = ROOT;
        let mut missing: Vec<Part<'_>> = Vec::new();
        let mut links = 0_u32;
        while let Some(part) = waiting.pop() {
            match part.bytes() {
                b"" | b"." => continue,
                b".." => {
                    // What is not there is left again by its text.
                    if missing.pop().is_none() {
                        at = self.at(at).map_or(ROOT, |name| name.parent);
                    }
                    continue;
                }
                name if name.len() > Limits::NAME => {
                    let rule = "a name must be of at most 255 bytes";
                    return Err(walk.wrong(rule, format!("{} bytes", name.len())));
                }
                _ => {}
            }
            let Some(id) = self.child(at, part.bytes()).filter(|_| missing.is_empty()) else {
                missing.push(part);
                continue;
            };
            match &self.inode(id).kind {
                Kind::Directory => at = id,
                Kind::Symlink(target) => {
                    links = links.saturating_add(1);
                    if links > Limits::LINKS {
                        let rule = "at most 40 symbolic links must lead to a member";
                        return Err(walk.wrong(rule, "more, or a circle of them"));
                    }
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    let before = waiting.len();
                    waiting.extend(target.rsplit(|&byte| byte == b'/').map(|part| Part::Linked(part.into())));
                    let steps = waiting.len().saturating_sub(before) as u64;
                    self.link_steps = self.link_steps.saturating_add(steps);
                    let what = "names on ways through symbolic links";
                    within(self.link_steps, Limits::LINK_STEPS, walk.place, what, FIXED)?;
                }
                _ => {
                    let found = format!("/{} is none", shown(self.path(id).get(1..).unwrap_or_default()));
                    return Err(walk.wrong("what lies around a member must be a directory", found));
                }
            }
        }
        if !missing.is_empty() && !walk.makes {
            return Ok(None);
        }
        for part in missing {
            walk.budget.member(walk.place)?;
            let inode = self.add(Inode::implicit(), walk.place)?;
            // Who walks notes the layer, for all that lies around the member.
            at = self.insert(at, part.bytes(), inode, 0, walk.place)?;
        }
        Ok(Some(at))
    }
}
