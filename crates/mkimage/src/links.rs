//! What becomes of the symbolic links of a tree: kept as links, or replaced by what they lead to.
//!
//! A link is looked up in the tree as readers of the image will look it up. Where that leads nowhere, or above the place
//! that the link lies in, the source is asked. A file that several links lead to is one inode of the image. A folder is
//! listed once; further links to it become links to the first place, so a tree of links cannot grow without bound.

use crate::again::openat;
use crate::parallel::Threads;
use crate::scan::Rules;
use crate::source::{Opener, Sort, kind_of};
use crate::tree::{Excluded, Identity, Kind, ROOT, Tree, links};
use crate::walk::{Id, leave_out, walk};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// Links that a path may lead through, as in the kernel.
const MOST_HOPS: usize = 40;

/// Bytes of the longest target of a link that kernels follow.
const LONGEST_TARGET: usize = 4095;

/// Links that are kept though they lead nowhere, and are named in the warnings.
const MOST_NAMED: usize = 8;

/// Characters of a target that are shown.
const LONGEST_SHOWN: usize = 200;

/// Folders that are listed because links lead to them; [`Links::Follow`] may list one many times.
const MOST_FOLDERS: u64 = 65536;

/// What becomes of symbolic links below the inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Links {
    /// Kept where they lead to something in the tree, absolute ones as if its root were `/`. Followed where they lead
    /// out of it, to a file or folder that can be read. Kept with a warning where they lead nowhere.
    #[default]
    Auto,
    /// Kept as they are, wherever they lead.
    Keep,
    /// All followed: the image holds none. One that leads nowhere is an error.
    Follow,
    /// An error.
    Refuse,
}

impl Links {
    /// All kinds, by their names on the command line.
    pub const NAMES: [(&'static str, Links); 4] =
        [("auto", Links::Auto), ("keep", Links::Keep), ("follow", Links::Follow), ("refuse", Links::Refuse)];
}

impl FromStr for Links {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Links, String> {
        let found = Links::NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, links)| *links)
            .ok_or_else(|| format!("{text:?} is none of auto, keep, follow, refuse"))
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Links::NAMES.iter().find(|(_, links)| links == self);
        f.write_str(found.map_or("auto", |(name, _)| name))
    }
}

/// Decides about all symbolic links of a tree, and lists the folders that some of them lead to.
///
/// # Errors
///
/// [`Error::Link`] for a folder that would hold itself, for a link that [`Links::Follow`] cannot follow, and for one that
/// leads out of a tree that is confined; and those of the walk.
pub(crate) fn settle(tree: &mut Tree, rules: &Rules, threads: Threads) -> Result<()> {
    if matches!(rules.links, Links::Keep | Links::Refuse) {
        return Ok(());
    }
    let mut settling = Settling {
        tree,
        rules,
        listed: None,
        begun: Vec::new(),
        folders: 0,
        directory: None,
        gone: Vec::new(),
    };
    // What a link leads through has to be settled first, and what lies in folders comes to light on the way. A path
    // leads through so many links only, so this ends.
    let mut open = settling.links_from(0);
    let mut rounds = 0;
    while !open.is_empty() {
        let mut pending: HashSet<u32> = open.iter().copied().collect();
        if rounds > MOST_HOPS {
            pending.clear();
        }
        let mut waiting = Vec::new();
        for link in open {
            if settling.settle(link, &pending)? {
                pending.remove(&link);
            } else {
                waiting.push(link);
            }
        }
        rounds = if waiting.is_empty() { 0 } else { rounds + 1 };
        let known = settling.tree.nodes.len();
        let begun = std::mem::take(&mut settling.begun);
        walk(settling.tree, &begun, rules, threads)?;
        settling.note_listed(known);
        waiting.extend(settling.links_from(known));
        open = waiting;
    }
    let Settling { tree, mut gone, .. } = settling;
    gone.sort_unstable();
    tree.remove(&gone);
    // Its numbers are those of before.
    tree.excluded = Excluded::default();
    Ok(())
}

/// Where a link leads in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// To this node, which is no link.
    Found(u32),
    /// Nowhere, or above the input or folder that it lies in.
    Out,
    /// As [`Lead::Out`], but first to this link.
    Through(u32),
    /// Into this folder, which is not listed yet.
    Into(u32),
    /// To what globs left out, or through it.
    Excluded,
}

/// Follows a link in the tree. `unlisted` are folders whose names are not known yet.
pub(crate) fn lead(tree: &Tree, link: u32, unlisted: &[u32]) -> Lead {
    let Kind::Symlink { target } = tree.node(link).kind else { return Lead::Found(link) };
    let mut through = None;
    let mut hops = 0;
    let mut at = tree.node(link).parent;
    let mut todo: Vec<&[u8]> = Vec::new();
    let add = |todo: &mut Vec<_>, at: &mut u32, target| {
        let target = tree.bytes(target);
        if target.starts_with(b"/") {
            *at = ROOT;
        }
        todo.extend(target.split(|&byte| byte == b'/').rev());
    };
    add(&mut todo, &mut at, target);
    while let Some(name) = todo.pop() {
        let out = through.map_or(Lead::Out, Lead::Through);
        if !matches!(tree.node(at).kind, Kind::Directory { .. }) {
            return out;
        }
        match name {
            b"" | b"." => continue,
            // What lies around it in the source may be something else than in the image.
            b".." if at == ROOT || tree.node(at).followed || tree.input_at(at).is_some() => return out,
            b".." => at = tree.node(at).parent,
            _ if unlisted.contains(&at) => return Lead::Into(at),
            _ => match tree.child(at, name) {
                None if tree.excluded.names.contains(&(at, name.into())) => return Lead::Excluded,
                None => return out,
                Some(child) => match tree.node(child).kind {
                    Kind::Symlink { target } => {
                        hops += 1;
                        if hops > MOST_HOPS {
                            return Lead::Out;
                        }
                        through.get_or_insert(child);
                        add(&mut todo, &mut at, target);
                    }
                    _ => at = child,
                },
            },
        }
    }
    Lead::Found(at)
}

struct Settling<'s> {
    tree: &'s mut Tree,
    rules: &'s Rules,
    /// The first place of each folder, once it is needed.
    listed: Option<HashMap<Id, u32>>,
    /// Links that became folders in this round.
    begun: Vec<u32>,
    folders: u64,
    /// The directory of the last link.
    directory: Option<(u32, OwnedFd)>,
    /// Links to what globs left out: they are left out as well.
    gone: Vec<u32>,
}

impl Settling<'_> {
    /// The symbolic links among the nodes from `first` on.
    fn links_from(&self, first: usize) -> Vec<u32> {
        let is_link = |number: &u32| matches!(self.tree.node(*number).kind, Kind::Symlink { .. });
        let numbers = (0..self.tree.nodes.len()).skip(first).map(|at| u32::try_from(at).unwrap_or(u32::MAX));
        numbers.filter(is_link).collect()
    }

    /// Decides about a link; `false` when that depends on one of `pending`.
    fn settle(&mut self, link: u32, pending: &HashSet<u32>) -> Result<bool> {
        let has_excluded = !self.tree.excluded.names.is_empty();
        if self.rules.links == Links::Follow
            && has_excluded
            && lead(self.tree, link, &self.begun) == Lead::Excluded
        {
            self.leave_out(link);
            return Ok(true);
        }
        if self.rules.links == Links::Auto {
            match lead(self.tree, link, &self.begun) {
                Lead::Found(_) => return Ok(true),
                Lead::Excluded => {
                    self.leave_out(link);
                    return Ok(true);
                }
                Lead::Through(other) if pending.contains(&other) => return Ok(false),
                Lead::Into(_) => return Ok(false),
                Lead::Through(_) | Lead::Out => {}
            }
        }
        self.follow(link)?;
        Ok(true)
    }

    /// Asks the source where a link leads.
    fn follow(&mut self, link: u32) -> Result<()> {
        let (parent, name) = (self.tree.node(link).parent, self.tree.name(link).to_vec());
        let name = OsStr::from_bytes(&name);
        if self.directory.as_ref().is_none_or(|(open, _)| *open != parent) {
            self.directory = Some((parent, Opener::new(self.tree).directory(parent)?));
        }
        let Some((_, directory)) = &self.directory else { return Ok(()) };
        let stat = match fstatat(directory, name, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return self.keep(link, "leads nowhere"),
            Err(Errno::ELOOP) => return self.keep(link, "leads in a circle"),
            Err(Errno::ENAMETOOLONG) => return self.keep(link, "leads nowhere: no path is that long"),
            Err(Errno::EACCES | Errno::EPERM) => return self.keep(link, "leads to what cannot be read"),
            Err(errno) => return Err(Error::io("follow", &self.tree.source_path(link), errno)),
        };
        if self.is_excluded(link, &stat) {
            self.leave_out(link);
            return Ok(());
        }
        if self.rules.confined {
            let why = self.describe(link, "leads out of the folder");
            return Err(Error::Confined { path: self.tree.source_path(link), why });
        }
        let kind = match kind_of(stat.st_mode) {
            Ok(Sort::File) => OFlag::empty(),
            Ok(Sort::Directory) => OFlag::O_DIRECTORY,
            Ok(Sort::Symlink) => return self.keep(link, "leads to a symbolic link"),
            Err(kind) => return self.keep(link, &format!("leads to a {kind}")),
        };
        // O_NONBLOCK: for a FIFO that took its place meanwhile.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | kind;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(fd) if is_of_the_kernel(&fd) => self.keep(link, "leads to what the kernel makes up"),
            Ok(_) if kind == OFlag::O_DIRECTORY => self.folder(link, &stat),
            Ok(_) => {
                self.replace(link, Kind::File, &stat);
                Ok(())
            }
            Err(Errno::EACCES | Errno::EPERM) => self.keep(link, "leads to what cannot be read"),
            Err(errno) => Err(Error::io("open", &self.tree.source_path(link), errno)),
        }
    }

    /// A link to a folder.
    fn folder(&mut self, link: u32, stat: &FileStat) -> Result<()> {
        let id = (stat.st_dev, stat.st_ino);
        if self.rules.links == Links::Auto
            && let Some(&place) = self.listed().get(&id)
        {
            let path = self.tree.relative_path(self.tree.node(link).parent, place);
            if path.len() <= LONGEST_TARGET {
                let target = self.tree.intern(&path)?;
                self.tree.nodes[link as usize].kind = Kind::Symlink { target };
                self.tree.followed += 1;
                return Ok(());
            }
        }
        let mut at = link;
        while at != ROOT {
            at = self.tree.node(at).parent;
            let around = self.tree.node(at).identity;
            if (around.dev, around.ino) == id && self.tree.origin(at).is_some() {
                let why = self.describe(link, "leads to a folder around it, which would hold itself");
                let why = format!("{why} (--links keep packs links as they are)");
                return Err(Error::Link { path: self.tree.source_path(link), why });
            }
        }
        self.folders += 1;
        if self.folders > MOST_FOLDERS {
            let what = "folders that symbolic links lead to";
            return Err(Error::TooMany { what, got: self.folders, bound: MOST_FOLDERS });
        }
        self.replace(link, Kind::Directory { first: 0, count: 0 }, stat);
        if let Some(listed) = &mut self.listed {
            listed.entry(id).or_insert(link);
        }
        self.begun.push(link);
        Ok(())
    }

    /// Whether globs left out what a link leads to, or a directory around that.
    fn is_excluded(&self, link: u32, stat: &FileStat) -> bool {
        let excluded = &self.tree.excluded;
        if excluded.ids.is_empty() {
            return false;
        }
        let around = || self.tree.source_path(link).canonicalize().unwrap_or_default();
        excluded.has(stat)
            || around().ancestors().skip(1).any(|path| {
                !path.as_os_str().is_empty()
                    && nix::sys::stat::stat(path).is_ok_and(|stat| excluded.has(&stat))
            })
    }

    fn leave_out(&mut self, link: u32) {
        let (parent, name) = (self.tree.node(link).parent, self.tree.name(link).to_vec());
        leave_out(self.tree, parent, &name, false);
        self.gone.push(link);
    }

    fn replace(&mut self, link: u32, kind: Kind, stat: &FileStat) {
        let node = &mut self.tree.nodes[link as usize];
        node.kind = kind;
        node.mode = stat.st_mode;
        (node.uid, node.gid) = (stat.st_uid, stat.st_gid);
        node.identity = Identity::of(stat);
        node.links = links(stat);
        node.followed = true;
        self.tree.followed += 1;
    }

    /// A link that cannot be followed.
    fn keep(&mut self, link: u32, what: &str) -> Result<()> {
        if self.rules.links == Links::Follow {
            let why = self.describe(link, what);
            return Err(Error::Link { path: self.tree.source_path(link), why });
        }
        self.tree.dangling += 1;
        if self.tree.dangling_names.len() < MOST_NAMED {
            let text = format!("{}: {}", self.tree.source_path(link).display(), self.describe(link, what));
            self.tree.dangling_names.push(text);
        }
        Ok(())
    }

    fn describe(&self, link: u32, what: &str) -> String {
        let Kind::Symlink { target } = self.tree.node(link).kind else { return what.to_owned() };
        let target = String::from_utf8_lossy(self.tree.bytes(target));
        let short: String = target.chars().take(LONGEST_SHOWN).collect();
        let more = if short.len() < target.len() { "..." } else { "" };
        format!("the symbolic link to {short}{more} {what}")
    }

    fn listed(&mut self) -> &HashMap<Id, u32> {
        let tree = &*self.tree;
        self.listed.get_or_insert_with(|| {
            let mut listed = HashMap::new();
            note(tree, 0, &mut listed);
            listed
        })
    }

    fn note_listed(&mut self, first: usize) {
        if let Some(listed) = &mut self.listed {
            note(self.tree, first, listed);
        }
    }
}

/// Notes the first places of the folders among the nodes from `first` on.
fn note(tree: &Tree, first: usize, listed: &mut HashMap<Id, u32>) {
    for (number, node) in tree.iter().skip(first) {
        // The root of several inputs stands for no directory.
        let is_real = number != ROOT || tree.input_at(ROOT).is_some();
        if is_real && matches!(node.kind, Kind::Directory { .. }) {
            listed.entry((node.identity.dev, node.identity.ino)).or_insert(number);
        }
    }
}

/// Files of /proc and /sys say nothing of their size, and differ from machine to machine.
fn is_of_the_kernel(fd: &OwnedFd) -> bool {
    let kinds = [PROC_SUPER_MAGIC, SYSFS_MAGIC];
    fstatfs(fd).is_ok_and(|fs| kinds.contains(&fs.filesystem_type()))
}
