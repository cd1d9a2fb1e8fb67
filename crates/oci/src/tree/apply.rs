//! Applies the members of archives to the tree, one after the other, by the rules for layers of container images.
//!
//! A layer takes away what lower layers have, by members whose names begin with `.wh.`; what it has itself stays,
//! whatever the order. What takes the place of something else takes it away first, unless both are directories. Where
//! the rules leave something open, this does as umoci does.

use super::paths::{Walk, clean};
use super::{Content, Id, Inode, Kind, ROOT, Special, Tree};
use crate::error::{Error, Result, shown};
use crate::limits::{Budget, Limits};
use crate::tar::{self, Attribute, Time};

/// Names of members that take something away.
const WHITEOUT: &[u8] = b".wh.";
/// Behind [`WHITEOUT`]: all that lower layers have in the directory.
const OPAQUE: &[u8] = b".wh..opq";
/// What AUFS keeps for itself at the root.
const PRIVATE: &[u8] = b".wh..wh.";

/// What names mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// An archive of its own: every name is one.
    Archive,
    /// A layer: some take away what is below.
    Layer,
}

/// A member of an archive, whose bytes lie somewhere.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: Box<[u8]>,
    pub(crate) kind: tar::Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) link: Box<[u8]>,
    pub(crate) attributes: Box<[Attribute]>,
    pub(crate) content: Content,
}

/// Puts the members of one archive into a tree.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) budget: &'a Budget,
    pub(crate) rules: Rules,
    /// Messages name the archive so.
    pub(crate) place: &'a str,
    /// Its number, the lowest is 1.
    pub(crate) layer: u32,
}

impl Applier<'_> {
    /// Applies one member.
    ///
    /// # Errors
    /// [`Error::Member`] where it cannot be there, [`Error::Limit`].
    pub(crate) fn apply(&mut self, record: Record) -> Result<()> {
        let name = record.name.clone();
        let parts = clean(&name);
        let Some((&last, around)) = parts.split_last() else { return self.apply_root(record) };
        if self.rules == Rules::Layer {
            let is_private = parts.first().is_some_and(|first| first.starts_with(PRIVATE));
            if is_private && !(around.is_empty() && last.strip_prefix(WHITEOUT) == Some(OPAQUE)) {
                return Ok(());
            }
            if let Some(gone) = last.strip_prefix(WHITEOUT) {
                return self.take_away(&name, around, gone);
            }
        }
        if last.len() > Limits::NAME {
            return Err(self.wrong(
                &name,
                "a name must be of at most 255 bytes",
                format!("{} bytes", last.len()),
            ));
        }
        let walk = self.walk(&name, true);
        let Some(parent) = self.tree.walk(around, &walk)? else { return Ok(()) };
        let is_directory = record.kind == tar::Kind::Directory;
        if let Some(there) = self.tree.child(parent, last) {
            let stays = is_directory && self.tree.inode(there).kind == Kind::Directory;
            if stays {
                self.describe(there, record);
                self.touch(there);
                return Ok(());
            }
            self.tree.remove(there);
        }
        let inode = match record.kind {
            tar::Kind::HardLink => self.linked(&name, &record.link)?,
            _ => {
                let inode = self.inode(&name, record)?;
                self.tree.add(inode, self.place)?
            }
        };
        let id = self.tree.insert(parent, last, inode, 0, self.place)?;
        self.touch(id);
        Ok(())
    }

    /// A member that is the root itself.
    fn apply_root(&mut self, record: Record) -> Result<()> {
        if record.kind != tar::Kind::Directory {
            let found = format!("{:?}", record.kind);
            return Err(self.wrong(&record.name, "the root must be a directory", found));
        }
        self.describe(ROOT, record);
        Ok(())
    }

    /// Gives a directory the attributes of a member.
    fn describe(&mut self, id: Id, record: Record) {
        let number = self.tree.inode_number(id);
        if let Some(inode) = self.tree.inodes.get_mut(number as usize) {
            let Record { mode, uid, gid, mtime, attributes, .. } = record;
            *inode = Inode { kind: Kind::Directory, mode, uid, gid, mtime, attributes };
        }
    }

    /// The inode that a member becomes.
    fn inode(&self, name: &[u8], record: Record) -> Result<Inode> {
        let Record { kind, mode, uid, gid, mtime, link, attributes, content, .. } = record;
        let kind = match kind {
            tar::Kind::Directory => Kind::Directory,
            tar::Kind::Symlink if link.is_empty() || link.len() > Limits::PATH => {
                let rule = "a symbolic link must have a target of 1 to 4095 bytes";
                return Err(self.wrong(name, rule, format!("{} bytes", link.len())));
            }
            tar::Kind::Symlink => Kind::Symlink(link),
            tar::Kind::Character => Kind::Special(Special::Character),
            tar::Kind::Block => Kind::Special(Special::Block),
            tar::Kind::Fifo => Kind::Special(Special::Fifo),
            tar::Kind::File | tar::Kind::HardLink => Kind::File(content),
        };
        let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { mode };
        Ok(Inode { kind, mode, uid, gid, mtime, attributes })
    }

    /// The inode that a hard link leads to, in this layer or a lower one.
    fn linked(&mut self, name: &[u8], target: &[u8]) -> Result<u32> {
        let parts = clean(target);
        let found = match parts.split_last() {
            Some((last, around)) => {
                let walk = self.walk(name, false);
                self.tree.walk(around, &walk)?.and_then(|parent| self.tree.child(parent, last))
            }
            None => Some(ROOT),
        };
        let rule = "a hard link must lead to a file that is there";
        match found {
            None => Err(self.wrong(name, rule, format!("nothing at \"{}\"", shown(target)))),
            Some(id) if self.tree.inode(id).kind == Kind::Directory => {
                Err(self.wrong(name, rule, format!("the directory \"{}\"", shown(target))))
            }
            Some(id) => Ok(self.tree.inode_number(id)),
        }
    }

    /// Takes away what lower layers have: a name in a directory, or all in it.
    fn take_away(&mut self, name: &[u8], around: &[&[u8]], gone: &[u8]) -> Result<()> {
        if matches!(gone, b"" | b"." | b"..") {
            let found = format!("\"{}\"", shown(gone));
            return Err(self.wrong(name, "behind .wh. there must be a name", found));
        }
        let walk = self.walk(name, false);
        let Some(parent) = self.tree.walk(around, &walk)? else { return Ok(()) };
        if gone == OPAQUE {
            self.clear(parent);
        } else if let Some(id) = self.tree.child(parent, gone) {
            if self.is_own(id) { self.clear(id) } else { self.tree.remove(id) }
        }
        Ok(())
    }

    /// Takes away what lower layers have in a directory and below it. Each directory is looked at once in a layer: what
    /// is added later is of this layer.
    fn clear(&mut self, directory: Id) {
        let mut waiting = vec![directory];
        while let Some(id) = waiting.pop() {
            let layer = self.layer;
            let Some(directory) = self.tree.directory_mut(id).filter(|found| found.cleared != layer) else {
                continue;
            };
            directory.cleared = layer;
            let children = std::mem::take(&mut directory.children);
            let (mut own, mut others) = (Vec::new(), Vec::new());
            for child in children {
                if self.tree.is_gone(child) {
                    continue;
                }
                if self.is_own(child) { own.push(child) } else { others.push(child) }
            }
            others.into_iter().for_each(|child| self.tree.remove(child));
            waiting.extend_from_slice(&own);
            if let Some(directory) = self.tree.directory_mut(id) {
                directory.children = own;
            }
        }
    }

    /// Whether this layer has it, or something in it.
    fn is_own(&self, id: Id) -> bool {
        self.tree.at(id).is_some_and(|name| name.layer == self.layer)
    }

    /// Notes that this layer has a name, and so the directories around it.
    fn touch(&mut self, id: Id) {
        let mut at = id;
        while at != ROOT {
            let layer = self.layer;
            let Some(name) = self.tree.at_mut(at).filter(|name| name.layer != layer) else { return };
            name.layer = layer;
            at = name.parent;
        }
    }

    fn walk<'w>(&self, member: &'w [u8], makes: bool) -> Walk<'w>
    where
        Self: 'w,
    {
        Walk { place: self.place, member, budget: self.budget, makes }
    }

    fn wrong(&self, name: &[u8], rule: &'static str, found: String) -> Error {
        Error::Member { place: self.place.to_owned(), path: shown(name), rule, found }
    }
}
