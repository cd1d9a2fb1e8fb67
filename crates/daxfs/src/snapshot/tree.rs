//! The tree of names: built breadth first from the root, refused where it is no tree, searched by path hash.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use hashbrown::HashTable;

use super::{Content, Inode, Reader};
use crate::error::{Error, Result, Rule};
use crate::superblock::{Superblock, invalid};
use crate::{FileType, Metadata};

/// A directory entry as a source hands it out.
pub(super) struct Child<'a> {
    pub name: &'a [u8],
    pub ino: u64,
}

/// Where the tree is built from: a base image, an overlay over it, or a replayed log.
pub(super) trait Source {
    /// Metadata and content of an inode; the target of a link goes to `arena`.
    fn inode(&mut self, reader: &mut Reader<'_>, ino: u64, arena: &mut Vec<u8>) -> Result<Inode>;

    /// Calls `each` with every entry of a directory.
    fn children(
        &mut self,
        reader: &mut Reader<'_>,
        ino: u64,
        each: &mut dyn FnMut(Child<'_>) -> Result<()>,
    ) -> Result<()>;

    /// About how many entries all directories hold; only used to size tables.
    fn expected_entries(&self) -> u64;

    /// A directory that nothing names, if there is one.
    fn unreachable_directory(&self, reached: &dyn Fn(u64) -> bool) -> Option<u64>;
}

/// Longest name that is kept in its node.
const SHORT_NAME: usize = 18;

/// One name in the tree. Node 0 is the root.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Keyed hash of the whole path.
    hash: u64,
    pub parent: u32,
    /// Number in the inode list.
    pub inode: u32,
    name_start: u32,
    name_len: u8,
    /// The name itself if it is short, so that a lookup finds it in the same cache line.
    short_name: [u8; SHORT_NAME],
    /// Type of the inode, here so that a lookup does not have to go there.
    pub file_type: FileType,
    /// Nodes of the children, adjacent.
    pub children: Range<u32>,
}

/// The tree of an image.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
    /// Names and link targets.
    arena: Vec<u8>,
    /// Node numbers by path hash, without the root.
    table: HashTable<u32>,
    /// Random per image, so that nobody can choose names that collide.
    keys: foldhash::quality::RandomState,
}

/// Puts a link target into the arena.
pub(super) fn store_target(arena: &mut Vec<u8>, target: &[u8]) -> Result<Content> {
    Ok(Content::Target(store(arena, target)?))
}

fn store(arena: &mut Vec<u8>, bytes: &[u8]) -> Result<Range<u32>> {
    let start = u32::try_from(arena.len());
    arena.extend_from_slice(bytes);
    match (start, u32::try_from(arena.len())) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(Error::MetadataLimit {
            place: "names".into(),
            needed: arena.len() as u64,
            limit: u64::from(u32::MAX),
        }),
    }
}

fn number(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::MetadataLimit {
        place: "entries".into(),
        needed: len as u64,
        limit: u64::from(u32::MAX),
    })
}

/// Walks from the root. `base_only` says that nothing was laid over the base image, so that link counts and
/// reachability must be right, too.
pub(super) fn build(
    reader: &mut Reader<'_>,
    source: &mut dyn Source,
    superblock: &Superblock,
    base_only: bool,
) -> Result<Tree> {
    let mut builder = Builder {
        tree: Tree {
            nodes: Vec::new(),
            inodes: Vec::new(),
            arena: Vec::new(),
            table: HashTable::new(),
            keys: foldhash::quality::RandomState::default(),
        },
        low: vec![NOT_SEEN; usize::try_from(superblock.inode_count).unwrap_or(0)],
        high: hashbrown::HashMap::default(),
        names: Vec::new(),
    };
    // A hint only: the sum comes from the image, but each entry was bounds-checked against the region.
    let expected = usize::try_from(source.expected_entries().min(reader.len() / 272)).unwrap_or(0);
    builder.tree.table.reserve(expected, |_| 0);
    builder.tree.nodes.reserve(expected.saturating_add(1));
    builder.walk(reader, source)?;
    builder.check_links(base_only)?;
    if base_only {
        let unreached = source.unreachable_directory(&|ino| builder.slot(ino) != NOT_SEEN);
        if let Some(ino) = unreached {
            return Err(invalid(format!("inode {ino}"), Rule::DirectoryReachable, "no entry that names it"));
        }
    }
    Ok(builder.tree)
}

const NOT_SEEN: u32 = u32::MAX;

struct Builder {
    tree: Tree,
    /// Inode numbers of the table: place in the inode list.
    low: Vec<u32>,
    /// The same for numbers beyond the table, which only overlays and logs have.
    high: hashbrown::HashMap<u64, u32, foldhash::quality::RandomState>,
    /// Names found for each inode of the list.
    names: Vec<u32>,
}

impl Builder {
    fn slot(&self, ino: u64) -> u32 {
        let low = usize::try_from(ino.wrapping_sub(1)).ok().and_then(|index| self.low.get(index));
        low.or_else(|| self.high.get(&ino)).copied().unwrap_or(NOT_SEEN)
    }

    /// Place of an inode in the list; new ones are read from the source.
    fn inode(&mut self, reader: &mut Reader<'_>, source: &mut dyn Source, ino: u64) -> Result<u32> {
        let seen = self.slot(ino);
        if seen != NOT_SEEN {
            return Ok(seen);
        }
        let inode = source.inode(reader, ino, &mut self.tree.arena)?;
        let place = number(self.tree.inodes.len())?;
        self.tree.inodes.push(inode);
        self.names.push(0);
        match usize::try_from(ino.wrapping_sub(1)).ok().and_then(|index| self.low.get_mut(index)) {
            Some(low) => *low = place,
            None => {
                self.high.insert(ino, place);
            }
        }
        Ok(place)
    }

    fn walk(&mut self, reader: &mut Reader<'_>, source: &mut dyn Source) -> Result<()> {
        let root = self.inode(reader, source, u64::from(crate::format::ROOT_INO))?;
        if self.tree.inodes.first().map(|inode| inode.metadata.file_type()) != Some(FileType::Directory) {
            return Err(invalid("inode 1", Rule::RootIsDirectory, "another type"));
        }
        let hash = self.tree.keys.build_hasher().finish();
        self.tree.nodes.push(Node {
            hash,
            parent: 0,
            inode: root,
            name_start: 0,
            name_len: 0,
            short_name: [0; SHORT_NAME],
            file_type: FileType::Directory,
            children: 0..0,
        });
        self.count_name(root)?;
        let mut next = 0;
        // Children of one directory are adjacent because directories are expanded in the order of their nodes.
        while let Some(node) = self.tree.nodes.get(next).cloned() {
            let metadata = self.metadata(node.inode);
            if metadata.file_type() == FileType::Directory {
                let first = number(self.tree.nodes.len())?;
                let parent = number(next)?;
                let mut names = Vec::new();
                source.children(reader, metadata.ino, &mut |child| {
                    self.add(parent, &node, metadata.ino, &child, &mut names)
                })?;
                for (index, ino) in names {
                    let place = self.inode(reader, source, ino)?;
                    self.count_name(place)?;
                    let file_type = self.metadata(place).file_type();
                    if let Some(node) = self.tree.nodes.get_mut(index) {
                        node.inode = place;
                        node.file_type = file_type;
                    }
                }
                let end = number(self.tree.nodes.len())?;
                if let Some(node) = self.tree.nodes.get_mut(next) {
                    node.children = first..end;
                }
            }
            next += 1;
        }
        Ok(())
    }

    /// Adds a name; its inode is resolved once the directory is complete.
    fn add(
        &mut self,
        parent: u32,
        directory: &Node,
        directory_ino: u64,
        child: &Child<'_>,
        names: &mut Vec<(usize, u64)>,
    ) -> Result<()> {
        let tree = &mut self.tree;
        let hash = tree.hash_child(directory.hash, child.name);
        let index = tree.nodes.len();
        let nodes = &tree.nodes;
        let arena = &tree.arena;
        let entry = tree.table.entry(
            hash,
            |&other| {
                nodes.get(other as usize).is_some_and(|node| {
                    node.hash == hash && node.parent == parent && node.name(arena) == child.name
                })
            },
            |&other| nodes.get(other as usize).map_or(0, |node| node.hash),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(_) => {
                let found = crate::error::Escaped(child.name).to_string();
                return Err(invalid(format!("directory {directory_ino}"), Rule::NameUnique, found));
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert(number(index)?);
            }
        }
        let mut short_name = [0; SHORT_NAME];
        let name = match short_name.get_mut(..child.name.len()) {
            Some(short) => {
                short.copy_from_slice(child.name);
                0..0
            }
            None => store(&mut tree.arena, child.name)?,
        };
        let name_len = u8::try_from(child.name.len())
            .map_err(|_| invalid(format!("directory {directory_ino}"), Rule::NameLength, child.name.len()))?;
        tree.nodes.push(Node {
            hash,
            parent,
            inode: 0,
            name_start: name.start,
            name_len,
            short_name,
            file_type: FileType::Special,
            children: 0..0,
        });
        names.push((index, child.ino));
        Ok(())
    }

    /// Counts a name of an inode. A directory has exactly one, which excludes cycles and second parents.
    fn count_name(&mut self, inode: u32) -> Result<()> {
        let metadata = self.metadata(inode);
        if let Some(names) = self.names.get_mut(inode as usize) {
            *names += 1;
            if *names > 1 && metadata.file_type() == FileType::Directory {
                let place = format!("directory {}", metadata.ino);
                return Err(invalid(
                    place,
                    Rule::DirectoryParents,
                    format_args!("{names} entries that name it"),
                ));
            }
        }
        Ok(())
    }

    fn metadata(&self, inode: u32) -> Metadata {
        self.tree.inodes.get(inode as usize).map_or_else(Metadata::default, |inode| inode.metadata)
    }

    /// Kernels do not store changes of link counts in overlays and logs, so there they prove nothing.
    fn check_links(&self, base_only: bool) -> Result<()> {
        if !base_only {
            return Ok(());
        }
        for (inode, &names) in self.tree.inodes.iter().zip(&self.names) {
            let Metadata { ino, nlink, .. } = inode.metadata;
            if nlink < names {
                let found = format_args!("{nlink} for {names} names").to_string();
                return Err(invalid(format!("inode {ino}"), Rule::LinkCount, found));
            }
        }
        Ok(())
    }
}

impl Node {
    pub fn name<'a>(&'a self, arena: &'a [u8]) -> &'a [u8] {
        let len = usize::from(self.name_len);
        let start = self.name_start as usize;
        self.short_name.get(..len).or_else(|| arena.get(start..start + len)).unwrap_or_default()
    }
}

impl Tree {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, number: u32) -> &Node {
        // Numbers come from this tree only: `children`, `parent` and the table hold indices of pushed nodes.
        &self.nodes[number as usize]
    }

    pub fn inode(&self, node: u32) -> &Inode {
        &self.inodes[self.node(node).inode as usize]
    }

    pub fn name(&self, node: u32) -> &[u8] {
        self.node(node).name(&self.arena)
    }

    /// Target of a symbolic link.
    pub fn target(&self, node: u32) -> Option<&[u8]> {
        match &self.inode(node).content {
            Content::Target(range) => self.arena.get(range.start as usize..range.end as usize),
            _ => None,
        }
    }

    fn hash_child(&self, parent: u64, name: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u64(parent);
        hasher.write(name);
        hasher.finish()
    }

    /// The child of a directory by name.
    pub fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hash_child(self.node(parent).hash, name);
        let found = self.table.find(hash, |&number| {
            let node = self.node(number);
            node.hash == hash && node.parent == parent && node.name(&self.arena) == name
        });
        found.copied()
    }

    /// The node at a path of plain components: one hash over all of them, one probe. `None` when there is none or
    /// the path holds `..`; links are not followed.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let mut hash = self.nodes.first()?.hash;
        let mut depth = 0;
        for name in components(path) {
            hash = self.hash_child(hash, name);
            depth += 1;
        }
        if depth == 0 {
            return Some(0);
        }
        self.table.find(hash, |&number| self.node(number).hash == hash && self.is_at(number, path)).copied()
    }

    /// True when the components of `path` are the names from the root to the node. The names tell where the
    /// components must end, so the path is not searched again.
    fn is_at(&self, node: u32, path: &[u8]) -> bool {
        let mut rest = path;
        let mut current = node;
        while current != 0 {
            let Some(head) = trim_end(rest).strip_suffix(self.name(current)) else { return false };
            if !head.is_empty() && !head.ends_with(b"/") {
                return false;
            }
            rest = head;
            current = self.node(current).parent;
        }
        trim_end(rest).is_empty()
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
    let mut rest = Some(path);
    let all = std::iter::from_fn(move || {
        let path = rest?;
        let Some(slash) = memchr::memchr(b'/', path) else { return rest.take() };
        let (name, tail) = path.split_at(slash);
        rest = tail.get(1..);
        Some(name)
    });
    all.filter(|name| !name.is_empty() && *name != b".")
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
