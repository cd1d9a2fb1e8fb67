//! Where everything lies in a view: pure arithmetic over a tree, the same for the same tree.

use std::collections::HashMap;
use std::ops::Range;

use super::{Capability, Content, Inode, Shape, Tree, wrong};
use crate::error::Result;
use crate::format::erofs::{self as raw, SLOT};
use crate::text::Escaped;

/// Bytes of an entry in a directory block, without its name.
pub(super) const DIRENT: u64 = size_of::<raw::Dirent>() as u64;

/// Attributes are padded to this.
pub(super) const XATTR_UNIT: u64 = 4;

/// The name of the one attribute that there is, behind `security.`.
pub(super) const CAPABILITY: &[u8] = b"capability";

/// How an inode of a file stands to others that share its extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alias {
    /// The inode at this place stands for it.
    Same(u32),
    /// It keeps its last block for itself.
    Copy,
}

/// The layout of a view. It does not depend on where in the image files and the view lie.
#[derive(Debug)]
pub struct Layout {
    pub(super) shape: Shape,
    /// Number of each inode in the view, by place; 0 for those that another one stands for.
    pub(super) nids: Vec<u32>,
    pub(super) aliases: HashMap<u32, Alias>,
    /// Names of inodes that stand for others.
    pub(super) links: HashMap<u32, u32>,
    /// Bytes of the slots, in whole blocks.
    pub(super) slots: u64,
    /// Bytes of the blocks behind them.
    pub(super) blocks: u64,
    pub(super) capabilities: u32,
}

/// What a directory holds, with `.` and `..`, in the order of names.
pub(super) struct Listing<'a> {
    pub entries: Vec<(&'a [u8], u32)>,
    /// The entries of each block.
    pub blocks: Vec<Range<usize>>,
    /// Bytes of the last block.
    pub last: u64,
}

/// What an inode takes.
pub(super) struct Measure {
    pub extended: bool,
    /// Bytes of the inode and its attributes.
    pub head: u64,
    /// Bytes of its data.
    pub size: u64,
    /// Bytes of data behind the inode.
    pub tail: u64,
    /// Whether the last block is there.
    pub inline: bool,
    /// Blocks elsewhere in the view.
    pub whole: u64,
}

/// Bytes of the attributes of an inode.
pub(super) fn xattr_len(capability: Option<&Capability>) -> u64 {
    let Some(capability) = capability else { return 0 };
    let entry = size_of::<raw::XattrEntry>().saturating_add(CAPABILITY.len());
    let entry = entry.saturating_add(capability.bytes().len()) as u64;
    (size_of::<raw::XattrHeader>() as u64).saturating_add(entry.next_multiple_of(XATTR_UNIT))
}

impl<'a> Listing<'a> {
    pub fn of(tree: &'a dyn Tree, at: u32, parent: u32, block: u64) -> Listing<'a> {
        let mut entries = tree.list(at);
        for (name, to) in [(&b"."[..], at), (b"..", parent)] {
            let place = entries.partition_point(|(other, _)| *other < name);
            entries.insert(place, (name, to));
        }
        let (mut blocks, mut first, mut last) = (Vec::new(), 0_usize, 0_u64);
        for (number, (name, _)) in entries.iter().enumerate() {
            let len = DIRENT.saturating_add(name.len() as u64);
            if last.saturating_add(len) > block {
                blocks.push(first..number);
                (first, last) = (number, 0);
            }
            last = last.saturating_add(len);
        }
        blocks.push(first..entries.len());
        Listing { entries, blocks, last }
    }
}

/// Among files that share an extent: which inode stands for which, and their names together.
fn find_aliases(tree: &dyn Tree) -> (HashMap<u32, Alias>, HashMap<u32, u32>) {
    let (mut aliases, mut links) = (HashMap::new(), HashMap::new());
    for group in starts(tree).chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1) {
        let mut keys: Vec<_> = group
            .iter()
            .map(|&(_, size, at)| {
                let Inode { mode, uid, gid, capability, .. } = tree.inode(at);
                ((size, mode, uid, gid, capability), at)
            })
            .collect();
        let first = group.first().map_or(0, |(.., at)| *at);
        keys.sort_unstable();
        for equal in keys.chunk_by(|a, b| a.0 == b.0) {
            let Some(((_, stands), others)) = equal.split_first() else { continue };
            if *stands != first {
                aliases.insert(*stands, Alias::Copy);
            }
            if others.is_empty() {
                continue;
            }
            let names = equal.iter().fold(0_u32, |sum, (_, at)| sum.saturating_add(tree.inode(*at).links));
            links.insert(*stands, names);
            aliases.extend(others.iter().map(|(_, at)| (*at, Alias::Same(*stands))));
        }
    }
    (aliases, links)
}

/// First byte, bytes and place of each file that is not empty, sorted.
fn starts(tree: &dyn Tree) -> Vec<(u64, u64, u32)> {
    let file = |at| match tree.inode(at).content {
        Content::File { start, size } if size > 0 => Some((start, size, at)),
        _ => None,
    };
    let mut files: Vec<_> = (0..tree.len()).filter_map(file).collect();
    // Of those that share an extent the first by number comes first, whatever their sizes.
    files.sort_unstable_by_key(|&(start, _, at)| (start, at));
    files
}

impl Layout {
    /// Lays the view of `tree` out.
    ///
    /// # Errors
    /// [`Error::ErofsView`](crate::Error::ErofsView) where EROFS cannot show the tree.
    pub fn new(tree: &dyn Tree, shape: Shape) -> Result<Layout> {
        let (aliases, links) = find_aliases(tree);
        let mut layout = Layout {
            shape,
            nids: Vec::with_capacity(usize::try_from(tree.len()).unwrap_or(0)),
            aliases,
            links,
            slots: 0,
            blocks: 0,
            capabilities: 0,
        };
        let block = u64::from(shape.block_size);
        // The first slot is the header's.
        let mut next = SLOT;
        for at in 0..tree.len() {
            let inode = tree.inode(at);
            layout.capabilities = layout.capabilities.saturating_add(u32::from(inode.capability.is_some()));
            if matches!(layout.aliases.get(&at), Some(Alias::Same(_))) {
                layout.nids.push(0);
                continue;
            }
            let measure = layout.measure(&inode, at, layout.listing(tree, at, &inode).as_ref())?;
            let whole = measure.head.saturating_add(measure.tail);
            let used = next.checked_rem(block).unwrap_or(0);
            if whole > block {
                // The last block of a file is nearly one: it begins with a block, and the inode ends before.
                let start = used.saturating_add(measure.head).checked_next_multiple_of(block);
                let start = start.and_then(|end| end.checked_sub(measure.head)).unwrap_or(used);
                next = next.saturating_add(start.saturating_sub(used));
            } else if used.saturating_add(whole) > block {
                next = next.checked_next_multiple_of(block).unwrap_or(u64::MAX);
            }
            layout.nids.push(
                next.checked_div(SLOT)
                    .and_then(|nid| u32::try_from(nid).ok())
                    .ok_or_else(|| wrong(format!("inode {}", inode.ino), "the view would be too large"))?,
            );
            next = next.saturating_add(whole).checked_next_multiple_of(SLOT).unwrap_or(u64::MAX);
            layout.blocks = layout.blocks.saturating_add(measure.whole.saturating_mul(block));
        }
        layout.slots = next.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        Ok(layout)
    }

    /// Bytes of the view.
    pub fn len(&self) -> u64 {
        let records = u64::from(self.capabilities).saturating_mul(size_of::<raw::Capability>() as u64);
        self.slots.saturating_add(self.blocks).saturating_add(records)
    }

    /// Never true: every view has a root.
    pub fn is_empty(&self) -> bool {
        self.nids.is_empty()
    }

    /// Number of the inode at a place, or of the one that stands for it.
    pub(super) fn nid(&self, at: u32) -> u32 {
        let at = match self.aliases.get(&at) {
            Some(Alias::Same(other)) => *other,
            _ => at,
        };
        usize::try_from(at).ok().and_then(|at| self.nids.get(at)).copied().unwrap_or(0)
    }

    /// Names of the inode at a place.
    pub(super) fn links(&self, at: u32, inode: &Inode<'_>) -> u32 {
        self.links.get(&at).copied().unwrap_or(inode.links)
    }

    /// What the directory at a place holds; `None` for another inode.
    pub(super) fn listing<'a>(&self, tree: &'a dyn Tree, at: u32, inode: &Inode<'_>) -> Option<Listing<'a>> {
        let Content::Directory(parent) = inode.content else { return None };
        Some(Listing::of(tree, at, parent, self.shape.block_size.into()))
    }

    pub(super) fn measure(
        &self,
        inode: &Inode<'_>,
        at: u32,
        listing: Option<&Listing<'_>>,
    ) -> Result<Measure> {
        let block = u64::from(self.shape.block_size);
        let size = match (&inode.content, listing) {
            (Content::File { size, .. }, _) => *size,
            (Content::Link(target), _) => target.len() as u64,
            (Content::Directory(_), Some(listing)) => (listing.blocks.len() as u64)
                .saturating_sub(1)
                .saturating_mul(block)
                .saturating_add(listing.last),
            _ => 0,
        };
        let is_large = inode.uid.max(inode.gid).max(self.links(at, inode)) > u32::from(u16::MAX)
            || size > u64::from(u32::MAX);
        let extended = self.shape.times || is_large;
        let head = if extended { size_of::<raw::ExtendedInode>() } else { size_of::<raw::CompactInode>() };
        let head = (head as u64).saturating_add(xattr_len(inode.capability.as_ref()));
        let mut measure = Measure { extended, head, size, tail: 0, inline: false, whole: 0 };
        match inode.content {
            Content::File { .. } if self.aliases.get(&at) == Some(&Alias::Copy) => {
                let rest = size.checked_rem(block).unwrap_or(0);
                (measure.inline, measure.tail) = (true, if rest == 0 { block } else { rest });
                let whole = head.saturating_add(measure.tail);
                if whole > block && !head.is_multiple_of(SLOT) {
                    let why = "it shares its bytes with another file, and its capabilities leave no room for its end";
                    return Err(wrong(format!("inode {}", inode.ino), why));
                }
            }
            Content::Link(_) | Content::Directory(_) => {
                let (last, blocks) = match listing {
                    Some(listing) => (listing.last, listing.blocks.len() as u64),
                    None => (size, 1),
                };
                measure.inline = head.saturating_add(last) <= block;
                measure.tail = if measure.inline { last } else { 0 };
                measure.whole = blocks.saturating_sub(u64::from(measure.inline));
            }
            Content::File { .. } | Content::Special => {}
        }
        if inode.mode > u32::from(u16::MAX) {
            let why = format!("mode {:o} has more than 16 bits", inode.mode);
            return Err(wrong(format!("inode {}", inode.ino), why));
        }
        Ok(measure)
    }

    /// Refuses files that lie in each other or in the view: two of the kernel's files would map one page.
    pub(super) fn check_extents(&self, tree: &dyn Tree, view: &Range<u64>, image: u64) -> Result<()> {
        let block = u64::from(self.shape.block_size);
        let mut end = 0;
        for (start, size, at) in starts(tree) {
            if self.aliases.contains_key(&at) {
                continue;
            }
            let place = || format!("inode {}", tree.inode(at).ino);
            let own = start.checked_add(size).filter(|end| *end <= image);
            let own = own.and_then(|end| end.checked_next_multiple_of(block));
            let Some(own) = own else { return Err(wrong(place(), "its bytes are not in the image")) };
            if start < end || start < view.end && own > view.start {
                return Err(wrong(place(), "its bytes overlap those of another file or of the view"));
            }
            end = own;
        }
        Ok(())
    }
}

/// A name in a message.
pub(super) fn named(name: &[u8]) -> String {
    Escaped(name).to_string()
}
