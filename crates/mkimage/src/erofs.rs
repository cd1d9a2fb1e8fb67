//! The EROFS view of a planned image: what [`daxfs::erofs`] makes of the source tree, and what DAXFS cannot hold of it.

use crate::packer::Plan;
use crate::parallel::{self, Threads};
use crate::plan::{Layout, Numbers};
use crate::source::Opener;
use crate::target::Target;
use crate::tree::{Kind, Tree};
use crate::{Error, Result};
use daxfs::erofs::{Capability, Content, Data, Inode, Place, Shape, Time, Tree as Names};
use daxfs::format::{ROOT_INO, erofs as raw};
use dmabuf::Mapping;
use rustix::fs::fgetxattr;
use std::collections::HashMap;
use std::os::fd::AsFd;

/// Bits of a mode that make a file a program: no other file has capabilities that count.
const EXECUTABLE: u32 = 0o111;

/// Bytes that a capability has at most.
const CAPABILITY_MOST: usize = 24;

/// What is planned of a view.
#[derive(Debug)]
pub(crate) struct View {
    layout: daxfs::erofs::Layout,
    capabilities: HashMap<u32, Capability>,
}

/// Capabilities of the files of a tree, by inode number.
pub(crate) fn capabilities(
    tree: &Tree,
    numbers: &Numbers,
    threads: Threads,
) -> Result<HashMap<u32, Capability>> {
    let programs = numbers.files(tree).filter(|(_, node)| tree.node(*node).mode & EXECUTABLE != 0);
    let programs: Vec<(u32, u32)> = programs.collect();
    let state = || Opener::new(tree);
    let found = parallel::map(programs.len(), threads, state, |opener, at| {
        let source = opener.unchecked_file(programs[at].1)?;
        let Some(file) = source.whole() else {
            let ino = tree.node(programs[at].1).identity.ino;
            let value = tree.archive.as_ref().and_then(|archive| archive.capability(ino));
            return Ok(value.and_then(Capability::new));
        };
        let mut value = [0; CAPABILITY_MOST];
        match fgetxattr(file, c"security.capability", &mut value[..]) {
            Ok(len) => Ok(Capability::new(&value[..len])),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(source.fail("read the capabilities of", errno)),
        }
    })?;
    Ok(programs.iter().zip(found).filter_map(|(&(ino, _), found)| Some((ino, found?))).collect())
}

impl View {
    /// Plans the view of a tree in which files have the sizes that `size_of` says, and share the extents of those that
    /// `shares` says.
    ///
    /// # Errors
    /// What [`daxfs::erofs::Layout::new`] says.
    pub(crate) fn plan(
        tree: &Tree,
        numbers: &Numbers,
        capabilities: HashMap<u32, Capability>,
        shape: Shape,
        size_of: &dyn Fn(u32, u64) -> u64,
        shares: &HashMap<u32, u32>,
    ) -> Result<View> {
        // Where files lie depends on how large the view is, and not the other way round: any different places will do.
        let place = |ino, size| (u64::from(*shares.get(&ino).unwrap_or(&ino)), size_of(ino, size));
        let source = Source { tree, numbers, capabilities: &capabilities, place: &place };
        let layout = daxfs::erofs::Layout::new(&source, shape)?;
        Ok(View { layout, capabilities })
    }

    /// Bytes of the view.
    pub(crate) fn len(&self) -> u64 {
        self.layout.len()
    }

    /// Makes the view of an image that is written to `target` but for it, and writes it there. Returns its superblock.
    pub(crate) fn write(&self, plan: &Plan, target: &Target) -> Result<Option<raw::Superblock>> {
        let Some(ino) = plan.layout.erofs_file() else { return Ok(None) };
        let extent = plan.layout.extent(ino);
        let place = |ino, _| {
            let extent = plan.layout.extent(ino);
            (extent.offset + target.shift, extent.len)
        };
        let numbers = &plan.layout.numbers;
        let source = Source { tree: &plan.tree, numbers, capabilities: &self.capabilities, place: &place };
        let written = Written { source: &source, target, layout: &plan.layout };
        let start = extent.offset + target.shift;
        let place = Place { view: start..start + extent.len, image: plan.layout.total + target.shift };
        let mut bytes = vec![0; crate::block::index(extent.len)];
        self.layout.render(&source, &written, &place, &mut |offset, piece| {
            let offset = crate::block::index(offset);
            bytes[offset..offset + piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        let superblock = self.layout.superblock(&place, blake3::hash(&bytes).as_bytes())?;
        target.write_late(extent.offset, &bytes)?;
        Ok(Some(superblock))
    }
}

/// The source tree as a view shows it; inodes are at the places of their numbers less 1.
struct Source<'p> {
    tree: &'p Tree,
    numbers: &'p Numbers,
    capabilities: &'p HashMap<u32, Capability>,
    /// Where a file lies and how long it is, by its number and its size in the source.
    place: &'p dyn Fn(u32, u64) -> (u64, u64),
}

impl Names for Source<'_> {
    fn len(&self) -> u32 {
        self.numbers.count()
    }

    fn inode(&self, at: u32) -> Inode<'_> {
        let ino = ROOT_INO + at;
        let node = self.tree.node(self.numbers.node_of(ino));
        let content = match node.kind {
            Kind::File => {
                let (start, size) = (self.place)(ino, node.identity.size);
                Content::File { start, size }
            }
            Kind::Directory { .. } => Content::Directory(self.numbers.ino[node.parent as usize] - ROOT_INO),
            Kind::Symlink { target } => Content::Link(self.tree.bytes(target)),
        };
        Inode {
            ino,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            links: self.numbers.links[at as usize],
            capability: self.capabilities.get(&ino).copied(),
            content,
        }
    }

    fn list(&self, at: u32) -> Vec<(&[u8], u32)> {
        let children = self.tree.children(self.numbers.node_of(ROOT_INO + at));
        children.map(|node| (self.tree.name(node), self.numbers.ino[node as usize] - ROOT_INO)).collect()
    }
}

/// What was written already, and times.
struct Written<'p> {
    source: &'p Source<'p>,
    target: &'p Target,
    layout: &'p Layout,
}

impl Data for Written<'_> {
    fn time(&self, at: u32, _: u32) -> daxfs::Result<Time> {
        let node = self.source.tree.node(self.layout.numbers.node_of(ROOT_INO + at));
        let modified = node.identity.modified;
        let nanoseconds = u32::try_from(modified.nanoseconds).unwrap_or(0);
        Ok(Time { seconds: modified.seconds, nanoseconds })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> daxfs::Result<()> {
        let offset = self.target.place(offset - self.target.shift);
        let map = Mapping::read_only(self.target.file.as_fd(), offset, buffer.len())?;
        Ok(map.view().read_at(0, buffer)?)
    }
}

/// Why an image of such settings has no view, if it has none.
pub(crate) fn obstacle(plain: bool, overlay: bool, split: bool, empty: bool) -> Option<&'static str> {
    if plain {
        Some("--plain leaves out everything but the source")
    } else if empty {
        Some("an image without files has none to show")
    } else if overlay {
        Some("it would not show what kernels write to the --overlay")
    } else if split {
        Some("what is in the files lies elsewhere with --split")
    } else {
        None
    }
}

/// Refuses the option where there is an obstacle.
pub(crate) fn refuse(why: String) -> Error {
    Error::Setting { option: "--erofs", why }
}
