//! Builds the tree of names: breadth first from the root, refused where it is no tree.

use std::ops::Range;

use hashbrown::HashTable;

use super::tree::{Keys, Name, Node, Tree};
use super::{Content, Directory, Inode, Piece, Reader};
use crate::Rule;
use crate::error::{Error, Result};
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

    /// Called when the tree is complete, with its inodes and a test for which numbers are among them: fills in what
    /// could only be read then.
    fn settle(
        &mut self,
        _reader: &mut Reader<'_>,
        _inodes: &mut [Inode],
        _has: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        Ok(())
    }

    /// About how many entries all directories hold; only used to size tables.
    fn expected_entries(&self) -> u64;

    /// A directory that nothing names, if there is one.
    fn unreachable_directory(&self, reached: &dyn Fn(u64) -> bool) -> Option<u64>;
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

pub(super) fn number(len: usize) -> Result<u32> {
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
        nodes: Vec::new(),
        table: HashTable::new(),
        inodes: Vec::new(),
        arena: Vec::new(),
        keys: Keys::default(),
        low: vec![NOT_SEEN; usize::try_from(superblock.inode_count).unwrap_or(0)],
        high: hashbrown::HashMap::default(),
        names: Vec::new(),
    };
    // A hint only: the sum comes from the image, but each entry was bounds-checked against the region.
    let expected = usize::try_from(source.expected_entries().min(reader.len() / 272)).unwrap_or(0);
    builder.table.reserve(expected, |_| 0);
    builder.nodes.reserve(expected.saturating_add(1));
    builder.walk(reader, source)?;
    let mut inodes = std::mem::take(&mut builder.inodes);
    source.settle(reader, &mut inodes, &|ino| builder.slot(ino) != NOT_SEEN)?;
    builder.inodes = inodes;
    builder.check_links(base_only)?;
    if base_only {
        let unreached = source.unreachable_directory(&|ino| builder.slot(ino) != NOT_SEEN);
        if let Some(ino) = unreached {
            return Err(invalid(format!("inode {ino}"), Rule::DirectoryReachable, "no entry that names it"));
        }
    }
    Tree::lay_out(builder.nodes, builder.inodes, builder.arena, builder.keys)
}

const NOT_SEEN: u32 = u32::MAX;

/// What a name costs when its tree is laid out: its node in the table, a third of which is empty, its place in the
/// order, and its inode's number while its directory is read.
const NAME_COST: u64 = 64;

struct Builder {
    /// Level by level, each with the keyed hash of its path. Here nodes are numbered by their places.
    nodes: Vec<(u64, Node)>,
    /// Numbers by path hash, without the root.
    table: HashTable<u32>,
    inodes: Vec<Inode>,
    arena: Vec<u8>,
    keys: Keys,
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
        let inode = source.inode(reader, ino, &mut self.arena)?;
        let pieces = match &inode.content {
            Content::Pieces(pieces) => size_of_val::<[Piece]>(pieces),
            _ => 0,
        };
        let built = size_of::<Inode>().saturating_add(pieces) as u64;
        reader.charge(|| format!("inode {ino}"), built)?;
        let place = number(self.inodes.len())?;
        self.inodes.push(inode);
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
        if self.inodes.first().map(|inode| inode.metadata.file_type()) != Some(FileType::Directory) {
            return Err(invalid("inode 1", Rule::RootIsDirectory, "another type"));
        }
        let hash = self.keys.root();
        let mut node = Node::new(0, Name::default());
        node.inode = root;
        node.file_type = FileType::Directory;
        self.nodes.push((hash, node));
        self.count_name(root)?;
        let mut next = 0_usize;
        // Children of one directory are adjacent because directories are expanded in the order of their nodes.
        while let Some(&(hash, Node { inode, .. })) = self.nodes.get(next) {
            let metadata = self.metadata(inode);
            if metadata.file_type() == FileType::Directory {
                let first = number(self.nodes.len())?;
                let parent = number(next)?;
                let mut names = Vec::new();
                source.children(reader, metadata.ino, &mut |child| {
                    self.add(parent, hash, metadata.ino, &child, &mut names)
                })?;
                // A directory's entries are charged as they are copied, so what is built of them is at most a part of
                // that before it is charged here.
                let built = (names.len() as u64).saturating_mul(NAME_COST);
                reader.charge(|| format!("directory {}: names", metadata.ino), built)?;
                for (index, ino) in names {
                    let place = self.inode(reader, source, ino)?;
                    self.count_name(place)?;
                    let file_type = self.metadata(place).file_type();
                    if let Some((_, node)) = self.nodes.get_mut(index) {
                        node.inode = place;
                        node.file_type = file_type;
                    }
                }
                let children = first..number(self.nodes.len())?;
                if let Some(inode) = self.inodes.get_mut(inode as usize) {
                    inode.content = Content::Directory(Directory { hash, children });
                }
            }
            next = next.saturating_add(1);
        }
        Ok(())
    }

    /// Adds a name; its inode is resolved once the directory is complete.
    fn add(
        &mut self,
        parent: u32,
        directory: u64,
        directory_ino: u64,
        child: &Child<'_>,
        names: &mut Vec<(usize, u64)>,
    ) -> Result<()> {
        let hash = self.keys.child(directory, child.name);
        let index = self.nodes.len();
        let nodes = &self.nodes;
        let arena = &self.arena;
        let entry = self.table.entry(
            hash,
            |&other| {
                nodes.get(other as usize).is_some_and(|(known, node)| {
                    *known == hash && node.parent == parent && node.name(arena) == child.name
                })
            },
            |&other| nodes.get(other as usize).map_or(0, |(known, _)| *known),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(_) => {
                let found = crate::text::Escaped(child.name).to_string();
                return Err(invalid(format!("directory {directory_ino}"), Rule::NameUnique, found));
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                vacant.insert(number(index)?);
            }
        }
        if child.name.len() > usize::from(u8::MAX) {
            return Err(invalid(format!("directory {directory_ino}"), Rule::NameLength, child.name.len()));
        }
        let name = Name::store(child.name, |long| store(&mut self.arena, long))?;
        self.nodes.push((hash, Node::new(parent, name)));
        names.push((index, child.ino));
        Ok(())
    }

    /// Counts a name of an inode. A directory has exactly one, which excludes cycles and second parents.
    fn count_name(&mut self, inode: u32) -> Result<()> {
        let metadata = self.metadata(inode);
        if let Some(names) = self.names.get_mut(inode as usize) {
            *names = names.saturating_add(1);
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
        self.inodes.get(inode as usize).map_or_else(Metadata::default, |inode| inode.metadata)
    }

    /// Kernels do not store changes of link counts in overlays and logs, so there they prove nothing.
    fn check_links(&self, base_only: bool) -> Result<()> {
        if !base_only {
            return Ok(());
        }
        for (inode, &names) in self.inodes.iter().zip(&self.names) {
            let Metadata { ino, nlink, .. } = inode.metadata;
            if nlink < names {
                let found = format_args!("{nlink} for {names} names").to_string();
                return Err(invalid(format!("inode {ino}"), Rule::LinkCount, found));
            }
        }
        Ok(())
    }
}
