//! The files of an image in memory: names, and the inodes that they stand for.
//!
//! A name is found by its directory and its bytes in one hash table. Names that a layer takes away stay in their arena,
//! marked, so that every operation costs what it changes, and numbers mean the same for good.

mod apply;
mod paths;

pub(crate) use apply::{Applier, Record, Rules};

use crate::error::{Error, Result};
use crate::limits::{FIXED, Limits, within};
use crate::tar::{Attribute, Time};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::ops::Range;

/// Number of a name.
pub type Id = u32;

/// The root's number; it is its own parent.
pub const ROOT: Id = 0;

/// Where the bytes of a file lie: in one of the files of [`Rootfs::sources`](crate::Rootfs::sources).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Content {
    /// Number of the file.
    pub source: u32,
    /// The first byte there.
    pub offset: u64,
    /// How many there are.
    pub len: u64,
}

/// What an image of DAXFS cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A FIFO.
    Fifo,
}

impl Special {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Special::Character => "character device",
            Special::Block => "block device",
            Special::Fifo => "FIFO",
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A device or a FIFO.
    Special(Special),
}

/// What a name stands for. Hard links are names of one inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permissions: the lowest twelve bits.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// When it was written; the beginning of 1970 for directories that no archive has.
    pub mtime: Time,
    /// Extended attributes, sorted by name.
    pub attributes: Box<[Attribute]>,
}

impl Inode {
    /// A directory that is there because something lies in it.
    fn implicit() -> Inode {
        let (mtime, attributes) = (Time::default(), Box::default());
        Inode { kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, mtime, attributes }
    }
}

#[derive(Debug, Clone)]
struct Name {
    parent: Id,
    inode: u32,
    /// In the arena.
    offset: u64,
    len: u16,
    is_gone: bool,
    /// The last layer that had it, or something in it.
    layer: u32,
    /// For directories: what they hold.
    directory: u32,
}

/// What only directories have.
#[derive(Debug, Clone, Default)]
struct Directory {
    /// Names, in the order in which they came; some may be gone.
    children: Vec<Id>,
    /// The last layer that took away what lay in it before.
    cleared: u32,
    /// Bytes of its path.
    path_len: u32,
}

/// No directory.
const NONE: u32 = u32::MAX;

/// The files of an image.
#[derive(Debug)]
pub struct Tree {
    names: Vec<Name>,
    arena: Vec<u8>,
    inodes: Vec<Inode>,
    directories: Vec<Directory>,
    table: HashTable<Id>,
    hasher: RandomState,
    /// Names that were looked up on ways through links.
    link_steps: u64,
    /// A directory that no archive has.
    implicit: Inode,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree {
            names: vec![Name {
                parent: ROOT,
                inode: 0,
                offset: 0,
                len: 0,
                is_gone: false,
                layer: 0,
                directory: 0,
            }],
            arena: Vec::new(),
            inodes: vec![Inode::implicit()],
            directories: vec![Directory::default()],
            table: HashTable::new(),
            hasher: RandomState::default(),
            link_steps: 0,
            implicit: Inode::implicit(),
        }
    }
}

impl Tree {
    /// The bytes of a name; none for the root.
    pub fn name(&self, id: Id) -> &[u8] {
        self.at(id).map_or(&[], |name| self.bytes(name))
    }

    /// Number of the inode that a name stands for: names of one inode have the same.
    pub fn inode_number(&self, id: Id) -> u32 {
        self.at(id).map_or(0, |name| name.inode)
    }

    /// What a name stands for.
    pub fn inode(&self, id: Id) -> &Inode {
        let inode = self.inodes.get(self.inode_number(id) as usize);
        inode.unwrap_or(&self.implicit)
    }

    /// All inodes, by number; also those that have no name any more.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The names in a directory, in the order of their bytes; none in anything else.
    pub fn children(&self, id: Id) -> Vec<Id> {
        let Some(directory) = self.directory(id) else { return Vec::new() };
        let mut children: Vec<Id> =
            directory.children.iter().copied().filter(|&id| !self.is_gone(id)).collect();
        children.sort_unstable_by(|&left, &right| self.name(left).cmp(self.name(right)));
        children
    }

    /// Absolute path of a name; `/` for the root.
    pub fn path(&self, id: Id) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            names.push(self.name(at));
            at = self.at(at).map_or(ROOT, |name| name.parent);
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// The paths of all names together must not be too long: an index of the image holds them.
    pub(crate) fn check_paths(&self, place: &str) -> Result<()> {
        let mut total = 0_u64;
        for name in self.names.iter().filter(|name| !name.is_gone) {
            let around = self.directory(name.parent).map_or(0, |directory| u64::from(directory.path_len));
            total = total.saturating_add(around).saturating_add(u64::from(name.len)).saturating_add(1);
        }
        within(total, Limits::PATHS, place, "bytes of paths", FIXED)
    }

    fn at(&self, id: Id) -> Option<&Name> {
        self.names.get(id as usize)
    }

    fn at_mut(&mut self, id: Id) -> Option<&mut Name> {
        self.names.get_mut(id as usize)
    }

    fn is_gone(&self, id: Id) -> bool {
        self.at(id).is_none_or(|name| name.is_gone)
    }

    fn directory(&self, id: Id) -> Option<&Directory> {
        self.directories.get(self.at(id)?.directory as usize)
    }

    fn directory_mut(&mut self, id: Id) -> Option<&mut Directory> {
        let number = self.at(id)?.directory;
        self.directories.get_mut(number as usize)
    }

    fn bytes(&self, name: &Name) -> &[u8] {
        let start = usize::try_from(name.offset).unwrap_or(usize::MAX);
        self.arena.get(range(start, name.len.into())).unwrap_or_default()
    }

    fn hash(&self, parent: Id, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    /// The name in a directory with these bytes.
    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        let is_it =
            |&id: &Id| self.at(id).is_some_and(|found| found.parent == parent && self.bytes(found) == name);
        self.table.find(self.hash(parent, name), is_it).copied()
    }

    /// Adds an inode.
    fn add(&mut self, inode: Inode, place: &str) -> Result<u32> {
        let number = u32::try_from(self.inodes.len()).ok().filter(|&number| number < u32::MAX);
        let number = number.ok_or_else(|| full(self.inodes.len(), "inodes", place))?;
        self.inodes.push(inode);
        Ok(number)
    }

    /// Adds a name to a directory that has none with these bytes.
    fn insert(&mut self, parent: Id, name: &[u8], inode: u32, layer: u32, place: &str) -> Result<Id> {
        let id = u32::try_from(self.names.len()).ok().filter(|&id| id < u32::MAX);
        let id = id.ok_or_else(|| full(self.names.len(), "names", place))?;
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let around = self.directory(parent).map_or(0, |directory| directory.path_len);
        let path_len = around.saturating_add(1).saturating_add(len.into());
        within(path_len.into(), Limits::PATH as u64, place, "bytes of a path", FIXED)?;
        let mut directory = NONE;
        if matches!(self.inodes.get(inode as usize).map(|inode| &inode.kind), Some(Kind::Directory)) {
            directory = u32::try_from(self.directories.len()).unwrap_or(NONE);
            self.directories.push(Directory { path_len, ..Directory::default() });
        }
        let offset = self.arena.len() as u64;
        self.arena.extend_from_slice(name);
        self.names.push(Name { parent, inode, offset, len, is_gone: false, layer, directory });
        let hash = self.hash(parent, name);
        let Tree { table, names, arena, hasher, .. } = self;
        let again = |&id: &Id| {
            let found = names.get(id as usize);
            let bytes = found.and_then(|name| {
                let start = usize::try_from(name.offset).unwrap_or(usize::MAX);
                arena.get(range(start, name.len.into()))
            });
            hasher.hash_one((found.map_or(ROOT, |name| name.parent), bytes.unwrap_or_default()))
        };
        table.insert_unique(hash, id, again);
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.push(id);
        }
        Ok(id)
    }

    /// Takes a name away, and all below it.
    fn remove(&mut self, id: Id) {
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            let Some(name) = self.at(id).filter(|name| !name.is_gone && id != ROOT) else { continue };
            let hash = self.hash(name.parent, self.bytes(name));
            if let Ok(entry) = self.table.find_entry(hash, |&found| found == id) {
                entry.remove();
            }
            if let Some(directory) = self.directory_mut(id) {
                waiting.append(&mut directory.children);
            }
            if let Some(name) = self.at_mut(id) {
                name.is_gone = true;
            }
        }
    }
}

fn range(start: usize, len: usize) -> Range<usize> {
    start..start.saturating_add(len)
}

fn full(got: usize, what: &'static str, place: &str) -> Error {
    let bound = u64::from(u32::MAX).saturating_sub(1);
    Error::Limit { place: place.to_owned(), what, got: (got as u64).saturating_add(1), bound, advice: FIXED }
}
