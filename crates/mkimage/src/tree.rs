//! The source tree in memory: one compact node per name, directory by directory.
//!
//! Node 0 is the root. The children of a directory are adjacent and sorted by their names' bytes, so a tree is
//! the same whatever order the file system lists it in. Names and link targets lie in one arena.

use crate::archive::Archive;
use crate::remote::Fetched;
use crate::{Error, Result};
use daxfs::format::{S_IFLNK, S_IFMT};
use nix::sys::stat::FileStat;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The root's node number, and the root's own parent.
pub(crate) const ROOT: u32 = 0;

/// A range of the arena.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    offset: u64,
    len: u32,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory; its children are the nodes `first..first + count`.
    Directory { first: u32, count: u32 },
    /// A symbolic link.
    Symlink { target: Span },
}

/// A point in time, as `stat(2)` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: i64,
}

/// What identifies a source file's contents: as long as all of this is the same, the file was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) modified: Stamp,
    pub(crate) changed: Stamp,
}

/// One name of the source tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) parent: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) kind: Kind,
    pub(crate) name: Span,
    pub(crate) identity: Identity,
    /// Names of the inode in the source, inside and outside the tree.
    pub(crate) links: u64,
    /// In the source it is a symbolic link; all else here is of what that leads to.
    pub(crate) followed: bool,
}

/// An input of the command line: the path under which a node and all below it are opened.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) node: u32,
    pub(crate) path: PathBuf,
}

/// What globs left out by name, so that no link brings it back.
#[derive(Debug, Default)]
pub(crate) struct Excluded {
    /// Names in directories of the tree.
    pub(crate) names: HashSet<(u32, Box<[u8]>)>,
    /// Device and inode of files and directories.
    pub(crate) ids: HashSet<(u64, u64)>,
}

impl Excluded {
    /// Notes a name in a directory of the tree.
    pub(crate) fn note(&mut self, directory: u32, name: &[u8], stat: &FileStat) {
        self.names.insert((directory, name.into()));
        // What an excluded link leads to may have other names.
        if stat.st_mode & S_IFMT != S_IFLNK {
            self.ids.insert((stat.st_dev, stat.st_ino));
        }
    }

    /// Whether it is one of them in the source.
    pub(crate) fn has(&self, stat: &FileStat) -> bool {
        self.ids.contains(&(stat.st_dev, stat.st_ino))
    }
}

/// The source tree, as the scan saw it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    arena: Vec<u8>,
    /// Sorted by node. One input for the root, or one for each child of the root.
    pub(crate) inputs: Vec<Input>,
    /// Special files that were left out.
    pub(crate) skipped: Vec<PathBuf>,
    /// A `.daxfs` directory at the root of the source, left out because the packer makes its own.
    pub(crate) dropped: Option<PathBuf>,
    /// What the globs and the like left out, by its path in the image; directories end in a slash.
    pub(crate) left_out: Vec<PathBuf>,
    /// Those of them that links must not lead to. Empty once links are settled.
    pub(crate) excluded: Excluded,
    /// Symbolic links in whose place there is what they lead to.
    pub(crate) followed: u64,
    /// Symbolic links that are kept though they lead to nothing that can be packed.
    pub(crate) dangling: u64,
    /// The first of them, and why.
    pub(crate) dangling_names: Vec<String>,
    /// Where contents lie, when the source is no tree of files.
    pub(crate) archive: Option<Archive>,
    /// What was fetched to be packed, as long as the tree is needed.
    pub(crate) fetched: Option<Fetched>,
}

impl Tree {
    /// The configuration of the container image that it comes from.
    pub(crate) fn config(&self) -> Option<&[u8]> {
        self.archive.as_ref()?.config()
    }

    /// Stores `bytes` in the arena.
    pub(crate) fn intern(&mut self, bytes: &[u8]) -> Result<Span> {
        let offset = self.arena.len() as u64;
        let len = u32::try_from(bytes.len()).map_err(|_| Error::Overflow { what: "a name" })?;
        self.arena.extend_from_slice(bytes);
        Ok(Span { offset, len })
    }

    /// A tree that has a root and nothing in it, which root owns.
    pub(crate) fn of_nothing() -> Tree {
        let zero = Stamp { seconds: 0, nanoseconds: 0 };
        let identity = Identity { dev: 0, ino: 0, size: 0, modified: zero, changed: zero };
        let kind = Kind::Directory { first: 1, count: 0 };
        let name = Span { offset: 0, len: 0 };
        let mode = crate::regions::ROOT_MODE;
        let root =
            Node { parent: ROOT, mode, uid: 0, gid: 0, kind, name, identity, links: 2, followed: false };
        Tree { nodes: vec![root], ..Tree::default() }
    }

    /// Appends a node and returns its number.
    pub(crate) fn push(&mut self, node: Node) -> Result<u32> {
        let number = u32::try_from(self.nodes.len()).ok().filter(|&number| number < u32::MAX - 2);
        let number = number.ok_or(Error::TooMany {
            what: "names",
            got: self.nodes.len() as u64 + 1,
            bound: u64::from(u32::MAX - 2),
        })?;
        self.nodes.push(node);
        Ok(number)
    }

    /// Appends what `stat` says of a name.
    pub(crate) fn add(&mut self, parent: u32, name: &[u8], kind: Kind, stat: &FileStat) -> Result<u32> {
        let name = self.intern(name)?;
        self.push(Node {
            parent,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            kind,
            name,
            identity: Identity::of(stat),
            links: links(stat),
            followed: false,
        })
    }

    /// Takes nodes that hold nothing out of the tree. `gone` is sorted.
    pub(crate) fn remove(&mut self, gone: &[u32]) {
        if gone.is_empty() {
            return;
        }
        let before = |number: u32| u32::try_from(gone.partition_point(|&at| at < number)).unwrap_or(u32::MAX);
        let mut kept = Vec::with_capacity(self.nodes.len());
        for (number, mut node) in (0..).zip(std::mem::take(&mut self.nodes)) {
            if gone.binary_search(&number).is_ok() {
                continue;
            }
            node.parent -= before(node.parent);
            if let Kind::Directory { first, count } = &mut node.kind {
                let end = *first + *count;
                let start = *first - before(*first);
                *count = end - before(end) - start;
                *first = start;
            }
            kept.push(node);
        }
        self.nodes = kept;
        for input in &mut self.inputs {
            input.node -= before(input.node);
        }
    }

    /// The node with this number.
    pub(crate) fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// All nodes with their numbers, in walk order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Node)> {
        (0..).zip(&self.nodes)
    }

    /// The bytes of a span of this tree's arena.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        let start = usize::try_from(span.offset).unwrap_or(usize::MAX);
        self.arena.get(start..start.saturating_add(span.len as usize)).unwrap_or_default()
    }

    /// Name of a node; empty for the root.
    pub(crate) fn name(&self, number: u32) -> &[u8] {
        self.bytes(self.node(number).name)
    }

    /// Numbers of a directory's children; empty for anything else.
    pub(crate) fn children(&self, number: u32) -> Range<u32> {
        match self.node(number).kind {
            Kind::Directory { first, count } => first..first + count,
            _ => 0..0,
        }
    }

    /// The child of a directory that has this name.
    pub(crate) fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let children = self.children(directory);
        let nodes = &self.nodes[children.start as usize..children.end as usize];
        let at = nodes.binary_search_by(|node| self.bytes(node.name).cmp(name)).ok()?;
        Some(children.start + u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// The nodes from below `top` down to `number`, the deepest last.
    fn steps(&self, number: u32, top: u32) -> Vec<u32> {
        let mut steps = Vec::new();
        let mut at = number;
        while at != top && at != ROOT {
            steps.push(at);
            at = self.node(at).parent;
        }
        steps.reverse();
        steps
    }

    /// Absolute path in the image: `/a/b`, `/` for the root.
    pub(crate) fn image_path(&self, number: u32) -> Vec<u8> {
        let mut path = Vec::new();
        for step in self.steps(number, ROOT) {
            path.push(b'/');
            path.extend_from_slice(self.name(step));
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }

    /// The file of the tree that this is in the source.
    pub(crate) fn file_at(&self, dev: u64, ino: u64) -> Option<u32> {
        let is_it = |node: &Node| {
            matches!(node.kind, Kind::File) && (node.identity.dev, node.identity.ino) == (dev, ino)
        };
        self.iter().find(|(_, node)| is_it(node)).map(|(number, _)| number)
    }

    /// Path in the image from a directory to a node.
    pub(crate) fn relative_path(&self, from: u32, to: u32) -> Vec<u8> {
        let (from, to) = (self.steps(from, ROOT), self.steps(to, ROOT));
        let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        let up = from[common..].iter().map(|_| &b".."[..]);
        let path: Vec<&[u8]> = up.chain(to[common..].iter().map(|&step| self.name(step))).collect();
        if path.is_empty() { b".".to_vec() } else { path.join(&b'/') }
    }

    /// Bytes of [`Tree::image_path`] without making it.
    pub(crate) fn image_path_len(&self, number: u32) -> u64 {
        let (mut len, mut at) = (0, number);
        while at != ROOT {
            len += 1 + u64::from(self.node(at).name.len);
            at = self.node(at).parent;
        }
        len.max(1)
    }

    /// The path of the input that is this node.
    pub(crate) fn input_at(&self, number: u32) -> Option<&Path> {
        let at = self.inputs.binary_search_by_key(&number, |input| input.node).ok()?;
        Some(&self.inputs[at].path)
    }

    /// The input that a node comes from, and the nodes on the way from there. `None` for a root that stands
    /// for several inputs.
    pub(crate) fn origin(&self, number: u32) -> Option<(&Path, Vec<u32>)> {
        let mut top = number;
        while top != ROOT && self.node(top).parent != ROOT {
            top = self.node(top).parent;
        }
        let find = |node| self.inputs.binary_search_by_key(&node, |input| input.node).ok();
        let top = if find(ROOT).is_some() { ROOT } else { top };
        let input = &self.inputs[find(top)?];
        Some((&input.path, self.steps(number, top)))
    }

    /// Path of a node in the source, for opening and for messages.
    pub(crate) fn source_path(&self, number: u32) -> PathBuf {
        let Some((input, steps)) = self.origin(number) else { return PathBuf::from("/") };
        let mut path = input.to_path_buf();
        for step in steps {
            path.push(OsStr::from_bytes(self.name(step)));
        }
        path
    }
}

#[allow(clippy::useless_conversion, reason = "32 bits wide on some architectures")]
pub(crate) fn links(stat: &FileStat) -> u64 {
    u64::from(stat.st_nlink)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    impl Tree {
        /// A tree out of nothing: `(parent, name, kind)`; children must be adjacent and sorted.
        pub(crate) fn synthetic(names: &[(u32, &str, Kind, u64)]) -> Tree {
            let mut tree = Tree::default();
            for (at, &(parent, name, kind, size)) in names.iter().enumerate() {
                let name = tree.intern(name.as_bytes()).unwrap();
                let stamp = Stamp { seconds: 0, nanoseconds: 0 };
                let kind = match kind {
                    Kind::Symlink { .. } => {
                        let target = vec![b't'; usize::try_from(size).unwrap()];
                        Kind::Symlink { target: tree.intern(&target).unwrap() }
                    }
                    kind => kind,
                };
                let mode = match kind {
                    Kind::File => 0o100_644,
                    Kind::Directory { .. } => 0o040_755,
                    Kind::Symlink { .. } => 0o120_777,
                };
                let identity = Identity { dev: 1, ino: at as u64, size, modified: stamp, changed: stamp };
                let node =
                    Node { parent, mode, uid: 1, gid: 2, kind, name, identity, links: 1, followed: false };
                tree.push(node).unwrap();
            }
            tree.inputs.push(Input { node: ROOT, path: PathBuf::from("/source") });
            tree
        }

        /// A root with `count` files of `size` bytes.
        pub(crate) fn flat(count: u32, size: u64) -> Tree {
            let names: Vec<String> = (0..count).map(|n| format!("f{n:06}")).collect();
            let mut list = vec![(ROOT, "", Kind::Directory { first: 1, count }, 0)];
            list.extend(names.iter().map(|name| (ROOT, name.as_str(), Kind::File, size)));
            Tree::synthetic(&list)
        }
    }

    #[test]
    fn paths() {
        let tree = Tree::synthetic(&[
            (0, "", Kind::Directory { first: 1, count: 4 }, 0),
            (0, "a", Kind::Directory { first: 5, count: 1 }, 0),
            (0, "a!", Kind::File, 1),
            (0, "a.b", Kind::File, 1),
            (0, "a0", Kind::File, 1),
            (1, "c", Kind::File, 1),
        ]);
        let paths: Vec<_> = tree.iter().skip(1).map(|(number, _)| tree.image_path(number)).collect();
        assert_eq!(paths, [&b"/a"[..], b"/a!", b"/a.b", b"/a0", b"/a/c"]);
        assert_eq!(tree.source_path(5), Path::new("/source/a/c"));
        assert_eq!(tree.image_path(0), b"/");
        for (number, _) in tree.iter() {
            assert_eq!(tree.image_path_len(number), tree.image_path(number).len() as u64);
        }
    }

    #[test]
    fn a_node_is_compact() {
        assert!(size_of::<Node>() <= 136, "{}", size_of::<Node>());
    }
}
