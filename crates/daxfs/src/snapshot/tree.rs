//! The tree of names, laid out for searching by path hash.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use hashbrown::HashTable;

use super::{Content, Directory, Inode};
use crate::FileType;

/// Longest name that is kept in its node.
const SHORT_NAME: usize = 18;

/// A name, or where it lies in the arena if it is a long one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Name {
    len: u8,
    /// The name itself if it fits, else its place in the arena as a little-endian `u32`.
    bytes: [u8; SHORT_NAME],
}

impl Name {
    /// Keeps a name of at most 255 bytes, in the arena if it is long.
    pub fn store(name: &[u8], keep: impl FnOnce(&[u8]) -> crate::Result<Range<u32>>) -> crate::Result<Self> {
        let mut bytes = [0; SHORT_NAME];
        match bytes.get_mut(..name.len()) {
            Some(short) => short.copy_from_slice(name),
            None => {
                let start = keep(name)?.start.to_le_bytes();
                bytes[..start.len()].copy_from_slice(&start);
            }
        }
        // The caller checked the length, against the rule that it is to blame on.
        Ok(Self { len: u8::try_from(name.len()).unwrap_or(u8::MAX), bytes })
    }

    pub fn get<'a>(&'a self, arena: &'a [u8]) -> &'a [u8] {
        let len = usize::from(self.len);
        if let Some(short) = self.bytes.get(..len) {
            return short;
        }
        let [a, b, c, d, ..] = self.bytes;
        let start = u32::from_le_bytes([a, b, c, d]) as usize;
        arena.get(start..start.saturating_add(len)).unwrap_or_default()
    }
}

/// One name in the tree: half a cache line, since a lookup in a large tree waits for little else than for memory.
#[derive(Debug, Clone)]
#[repr(align(32))]
pub(crate) struct Node {
    /// High half of the keyed hash of the whole path.
    tag: u32,
    pub parent: u32,
    /// Number in the inode list.
    pub inode: u32,
    /// Type of the inode, here so that a lookup does not have to go there.
    pub file_type: FileType,
    name: Name,
}

impl Node {
    /// A node whose inode is not known yet.
    pub(super) fn new(parent: u32, name: Name) -> Self {
        Self { tag: 0, parent, inode: 0, file_type: FileType::Special, name }
    }

    pub(super) fn name<'a>(&'a self, arena: &'a [u8]) -> &'a [u8] {
        self.name.get(arena)
    }
}

/// The half of a hash that does not choose the bucket.
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

const _: () = assert!(size_of::<Node>() == 32);

/// The tree of an image. Number 0 is the root; other nodes are numbered by their buckets.
pub(crate) struct Tree {
    root: Node,
    /// The nodes by path hash, without the root. The number of a node is that of its bucket and one.
    table: HashTable<Node>,
    /// Numbers of all nodes, level by level; the children of a directory are adjacent, in stored order.
    order: Vec<u32>,
    inodes: Vec<Inode>,
    /// Names and link targets.
    arena: Vec<u8>,
    keys: Keys,
}

/// Hashes paths, with keys that are random per image, so that nobody can choose names that collide.
#[derive(Default)]
pub(super) struct Keys(foldhash::fast::RandomState);

impl Keys {
    pub fn root(&self) -> u64 {
        self.0.build_hasher().finish()
    }

    pub fn child(&self, parent: u64, name: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(parent);
        hasher.write(name);
        hasher.finish()
    }
}

impl Tree {
    /// Moves the nodes into buckets and numbers them by these. Each comes with the hash of its path and, as its
    /// parent, that one's place among all; parents come first.
    pub(super) fn lay_out(
        nodes: Vec<(u64, Node)>,
        inodes: Vec<Inode>,
        arena: Vec<u8>,
        keys: Keys,
    ) -> crate::Result<Self> {
        let mut order = Vec::with_capacity(nodes.len());
        let mut nodes = nodes.into_iter();
        let root = nodes.next().map_or_else(|| Node::new(0, Name::default()), |(_, root)| root);
        order.push(0);
        // Room for all of them: no bucket moves while others are filled.
        let mut table = HashTable::with_capacity(nodes.len());
        for (hash, mut node) in nodes {
            node.tag = tag(hash);
            node.parent = order.get(node.parent as usize).copied().unwrap_or(0);
            let bucket = table.insert_unique(hash, node, |_| 0).bucket_index();
            order.push(super::build::number(bucket.saturating_add(1))?);
        }
        Ok(Self { root, table, order, inodes, arena, keys })
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Inodes in the list.
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    pub fn node(&self, number: u32) -> &Node {
        // Numbers come from this tree only, so the bucket of any but the root is there, and full.
        let bucket = number.checked_sub(1).and_then(|bucket| self.table.get_bucket(bucket as usize));
        bucket.unwrap_or(&self.root)
    }

    pub fn inode(&self, node: u32) -> &Inode {
        &self.inodes[self.node(node).inode as usize]
    }

    pub fn name(&self, node: u32) -> &[u8] {
        self.node(node).name.get(&self.arena)
    }

    fn directory(&self, node: u32) -> Option<&Directory> {
        match &self.inode(node).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Numbers of the children, in stored order.
    pub fn children(&self, node: u32) -> &[u32] {
        let children = self.directory(node).map(|directory| &directory.children);
        children
            .and_then(|range| self.order.get(range.start as usize..range.end as usize))
            .unwrap_or_default()
    }

    /// Target of a symbolic link.
    pub fn target(&self, node: u32) -> Option<&[u8]> {
        match &self.inode(node).content {
            Content::Target(range) => self.arena.get(range.start as usize..range.end as usize),
            _ => None,
        }
    }

    fn bucket(&self, hash: u64, is_wanted: impl Fn(&Node) -> bool) -> Option<u32> {
        let tag = tag(hash);
        let bucket = self.table.find_bucket_index(hash, |node| node.tag == tag && is_wanted(node))?;
        u32::try_from(bucket.checked_add(1)?).ok()
    }

    /// The child of a directory by name.
    pub fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let hash = self.keys.child(self.directory(parent)?.hash, name);
        self.bucket(hash, |node| node.parent == parent && node.name.get(&self.arena) == name)
    }

    /// The node at a path of plain components: one hash over all of them, one probe. `None` when there is none or
    /// the path holds `..`; links are not followed.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut hash = self.keys.root();
        let mut is_root = true;
        for name in components(path) {
            hash = self.keys.child(hash, name);
            is_root = false;
        }
        if is_root {
            return Some(0);
        }
        self.bucket(hash, |node| self.is_at(node, path))
    }

    /// True when the components of `path` are the names from the root to the node, which is not the root. The names
    /// tell where the components must end, so the path is not searched again.
    fn is_at<'a>(&'a self, mut node: &'a Node, path: &[u8]) -> bool {
        let mut rest = path;
        loop {
            let Some(head) = trim_end(rest).strip_suffix(node.name.get(&self.arena)) else { return false };
            if !head.is_empty() && !head.ends_with(b"/") {
                return false;
            }
            rest = head;
            if node.parent == 0 {
                return trim_end(rest).is_empty();
            }
            node = self.node(node.parent);
        }
    }
}

/// A path without the empty and `.` components at its end.
fn trim_end(mut path: &[u8]) -> &[u8] {
    loop {
        path = match path {
            [head @ .., b'/'] => head,
            [b'.'] => &[],
            [head @ .., b'/', b'.'] => head,
            _ => return path,
        };
    }
}

/// Components of a path; empty ones and `.` are dropped.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Components are short: a search by vectors (memchr) would take longer to begin than this does to end.
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_ends() {
        let split = |path: &'static str| components(path.as_bytes()).collect::<Vec<_>>();
        assert_eq!(split("//a/./b/../c/"), [&b"a"[..], b"b", b"..", b"c"]);
        assert!(split("").is_empty() && split("/").is_empty() && split("./.").is_empty());
        for (path, trimmed) in
            [("/a//", "/a"), ("a/./.", "a"), (".", ""), ("/", ""), ("a.", "a."), ("a/..", "a/..")]
        {
            assert_eq!(trim_end(path.as_bytes()), trimmed.as_bytes(), "{path}");
        }
    }
}
