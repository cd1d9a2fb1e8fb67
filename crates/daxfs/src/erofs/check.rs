//! The view of an image against its tree.

use std::collections::HashMap;
use std::ops::Range;

use dmabuf::SharedBytes;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{Layout, named};
use super::{Capability, Content, Data, Inode, Place, Shape, Time, Tree, wrong};
use crate::error::{Error, Result};
use crate::format::{erofs as raw, index};
use crate::snapshot;
use crate::{FileType, Image, ViewKind};

/// What comparing costs for each inode and each name, in bytes.
const INODE_BYTES: u64 = 96;
const NAME_BYTES: u64 = size_of::<(&[u8], u32)>() as u64;

/// Nobody's place.
const NOWHERE: u32 = u32::MAX;

impl Image {
    /// Compares the EROFS view of the image with its tree, all of it: the view is made anew ([`crate::erofs`]). False
    /// when the image has none. Kernels believe a view, so this comes before the image is given to one; what is opened
    /// with [`OpenOptions::expect`](crate::OpenOptions::expect) or [`Verify`](crate::Verify) was compared then.
    ///
    /// The times and capabilities that a view has are believed, as the modes and owners of the tree are: no hash of the
    /// content covers them.
    ///
    /// # Errors
    /// [`Error::ErofsView`] with the first place that differs, and for a superblock of EROFS without a view;
    /// [`Error::UnsupportedVersion`] for a view that is laid out otherwise; [`Error::MetadataLimit`].
    pub fn check_erofs(&self) -> Result<bool> {
        let Some(view) = self.erofs_extent()? else { return Ok(false) };
        if self.view_kind() != ViewKind::Base {
            let why = "the image was changed after packing, and the view shows what was packed";
            return Err(wrong("view", why));
        }
        let names = (self.len() as u64).saturating_mul(NAME_BYTES);
        let inodes = (self.tree().inode_count() as u64).saturating_mul(INODE_BYTES);
        self.charge("names of the EROFS view", names.saturating_add(inodes))?;
        let _access = self.region().cpu_access()?;
        let bytes = self.region().view().get(view.start, view.end.saturating_sub(view.start))?;
        let header = header(bytes)?;
        let tree = Names::of(self, capabilities(bytes, &header, self.tree().inode_count())?)?;
        let times = header.flags.get() & raw::HAS_TIMES != 0;
        let layout = Layout::new(&tree, Shape { block_size: self.superblock().block_size, times })?;
        let len = view.end.saturating_sub(view.start);
        if layout.len() != len {
            let why = format!("it has {len:#x} bytes, the image's tree makes one of {:#x}", layout.len());
            return Err(wrong("view", why));
        }
        let place = Place { view, image: self.superblock().total_size };
        let mut stored = Stored { bytes, at: 0, hasher: blake3::Hasher::new(), buffer: Vec::new() };
        let data = Found { image: self.region().view(), view: bytes };
        layout.render(&tree, &data, &place, &mut |offset, made| {
            stored.compare(offset, made).map_err(|at| tree.differs(self, &layout, at))
        })?;
        stored.compare(len, &[]).map_err(|at| tree.differs(self, &layout, at))?;
        let made = layout.superblock(&place, stored.hasher.finalize().as_bytes())?;
        if self.erofs_superblock()?.as_bytes() != made.as_bytes() {
            return Err(wrong("superblock", "it is not that of the view in /.daxfs/erofs"));
        }
        Ok(true)
    }

    /// Whether the image has an EROFS view; [`Image::check_erofs`] says whether it is right.
    ///
    /// # Errors
    /// [`Error::ErofsView`] for half a view.
    pub fn has_erofs(&self) -> Result<bool> {
        Ok(self.erofs_extent()?.is_some())
    }

    /// Where the view lies.
    fn erofs_extent(&self) -> Result<Option<Range<u64>>> {
        let is_announced = self.erofs_superblock()?.magic.get() == raw::MAGIC;
        let place = self.root().child(index::DIR).and_then(|directory| directory.child(raw::NAME));
        let file = place.filter(|entry| entry.file_type() == FileType::File);
        match (is_announced, file) {
            (false, None) => Ok(None),
            (true, None) => {
                Err(wrong("superblock", "kernels find one at byte 1024, and the image has no view for it"))
            }
            (false, Some(_)) => Err(wrong("superblock", "there is none at byte 1024 for this view")),
            (true, Some(entry)) => match entry.file()?.extent() {
                Some(extent) if self.backing().is_none() => {
                    Ok(Some(extent.offset..extent.offset.saturating_add(extent.len)))
                }
                _ => Err(wrong("view", "it does not lie in the image")),
            },
        }
    }

    fn erofs_superblock(&self) -> Result<raw::Superblock> {
        let mut superblock = raw::Superblock::new_zeroed();
        let view = self.region().view();
        view.read_at(raw::SUPERBLOCK_OFFSET as u64, superblock.as_mut_bytes())?;
        Ok(superblock)
    }
}

/// The header of a view.
fn header(view: SharedBytes<'_>) -> Result<raw::Header> {
    let mut header = raw::Header::new_zeroed();
    if view.len() < size_of::<raw::Header>() {
        return Err(wrong("header", format!("{:#x} bytes are less than it has", view.len())));
    }
    view.read_at(0, header.as_mut_bytes())?;
    if header.magic != raw::HEADER_MAGIC {
        return Err(wrong("header", format!("it begins with {}", named(&header.magic))));
    }
    match (header.version.get(), header.flags.get() & !raw::HAS_TIMES) {
        (raw::VERSION, 0) => Ok(header),
        (raw::VERSION, bits) => Err(Error::UnknownFlags { place: raw::PATH, bits }),
        (found, _) => Err(Error::UnsupportedVersion { place: raw::PATH, found, supported: "1" }),
    }
}

/// The capabilities at the end of a view, by inode number. Each is one of so many inodes, whose costs were charged.
fn capabilities(
    view: SharedBytes<'_>,
    header: &raw::Header,
    inodes: usize,
) -> Result<HashMap<u32, Capability>> {
    let record = size_of::<raw::Capability>() as u64;
    let len = u64::from(header.capabilities.get()).saturating_mul(record);
    let start = (view.len() as u64).checked_sub(len);
    let start = start.ok_or_else(|| {
        let why = format!("{} records are more than its {:#x} bytes", header.capabilities, view.len());
        wrong("capabilities", why)
    })?;
    if usize::try_from(header.capabilities.get()).unwrap_or(usize::MAX) > inodes {
        return Err(wrong("capabilities", format!("there are {} of {inodes} inodes", header.capabilities)));
    }
    let mut found = HashMap::new();
    for number in 0..header.capabilities.get() {
        let mut bytes = [0; size_of::<raw::Capability>()];
        view.read_at(start.saturating_add(u64::from(number).saturating_mul(record)), &mut bytes)?;
        let Ok(record) = raw::Capability::read_from_bytes(&bytes) else { break };
        let value = Capability::of(&record)
            .ok_or_else(|| wrong(format!("capability {number}"), "it has not 20 or 24 bytes"))?;
        found.insert(record.ino.get(), value);
    }
    Ok(found)
}

/// The tree of an image as the view shows it.
struct Names<'a> {
    tree: &'a snapshot::Tree,
    /// A node of each inode, by the inode's place.
    nodes: Vec<u32>,
    /// The place of each inode of the tree.
    places: Vec<u32>,
    /// What is not shown.
    hidden: Option<u32>,
    capabilities: HashMap<u32, Capability>,
}

impl<'a> Names<'a> {
    fn of(image: &'a Image, capabilities: HashMap<u32, Capability>) -> Result<Self> {
        let tree = image.tree();
        let hidden = tree.child(0, index::DIR.as_bytes());
        let mut places = vec![NOWHERE; tree.inode_count()];
        let (mut nodes, mut next) = (Vec::from([0_u32]), 0_usize);
        let inode = |node| usize::try_from(tree.node(node).inode).unwrap_or(usize::MAX);
        let mut seen =
            |node| places.get_mut(inode(node)).is_none_or(|place| std::mem::replace(place, 0) == 0);
        seen(0);
        while let Some(directory) = nodes.get(next).copied() {
            next = next.saturating_add(1);
            let children = tree.children(directory).iter().copied();
            nodes.extend(children.filter(|&child| Some(child) != hidden && !seen(child)));
        }
        nodes.sort_unstable_by_key(|&node| tree.inode(node).metadata.ino);
        for (at, &node) in (0_u32..).zip(&nodes) {
            let found = tree.inode(node);
            if u32::try_from(found.metadata.ino).is_err() {
                return Err(wrong(
                    format!("inode {}", found.metadata.ino),
                    "its number has more than 32 bits",
                ));
            }
            match found.content {
                snapshot::Content::Backing(_)
                | snapshot::Content::Pieces(_)
                | snapshot::Content::Elsewhere(_) => {
                    let why = "its bytes are not contiguous in the image";
                    return Err(wrong(format!("inode {}", found.metadata.ino), why));
                }
                _ => {}
            }
            if let Some(place) = places.get_mut(inode(node)) {
                *place = at;
            }
        }
        let names = Self { tree, nodes, places, hidden, capabilities };
        // A capability without a file would be shown nowhere, and so be covered by nothing.
        let shown = (0..names.len()).filter(|&at| names.inode(at).capability.is_some()).count();
        if shown != names.capabilities.len() {
            return Err(wrong("capabilities", "there are some for inodes that are no files"));
        }
        Ok(names)
    }

    fn node(&self, at: u32) -> u32 {
        usize::try_from(at).ok().and_then(|at| self.nodes.get(at)).copied().unwrap_or(0)
    }

    fn place(&self, node: u32) -> u32 {
        let inode = usize::try_from(self.tree.node(node).inode).ok();
        inode.and_then(|inode| self.places.get(inode)).copied().unwrap_or(NOWHERE)
    }

    /// The error for a byte of the view.
    fn differs(&self, image: &Image, layout: &Layout, offset: u64) -> Error {
        let shown = layout.nids.iter().zip(&self.nodes).filter(|(nid, _)| **nid != 0);
        let before = shown.take_while(|(nid, _)| u64::from(**nid).saturating_mul(raw::SLOT) <= offset).last();
        let place = match before {
            Some((_, node)) if offset < layout.slots => {
                let entry = crate::Entry::new(image.clone(), *node);
                format!("byte {offset:#x}, at the inode of {}", named(&entry.path()))
            }
            None => format!("byte {offset:#x}, in the header"),
            Some(_) => format!("byte {offset:#x}, among the directories"),
        };
        wrong(place, "it is not what the image's tree makes")
    }
}

impl Tree for Names<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    fn inode(&self, at: u32) -> Inode<'_> {
        let node = self.node(at);
        let found = self.tree.inode(node);
        let metadata = &found.metadata;
        let content = match (metadata.file_type(), &found.content) {
            (FileType::Directory, _) => Content::Directory(self.place(self.tree.node(node).parent)),
            (FileType::Symlink, _) => Content::Link(self.tree.target(node).unwrap_or_default()),
            (FileType::File, snapshot::Content::Image(range)) => {
                Content::File { start: range.start, size: range.end.saturating_sub(range.start) }
            }
            (FileType::File, _) => Content::File { start: 0, size: 0 },
            (FileType::Special, _) => Content::Special,
        };
        let ino = u32::try_from(metadata.ino).unwrap_or(0);
        let own = u32::from(
            node == 0
                && self.hidden.is_some_and(|hidden| self.tree.node(hidden).file_type == FileType::Directory),
        );
        let capability = self.capabilities.get(&ino).copied();
        Inode {
            ino,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            links: metadata.nlink.saturating_sub(own),
            capability: capability.filter(|_| metadata.file_type() == FileType::File),
            content,
        }
    }

    fn list(&self, at: u32) -> Vec<(&[u8], u32)> {
        let children = self.tree.children(self.node(at)).iter().copied();
        let shown = children.filter(|&child| Some(child) != self.hidden);
        let mut list: Vec<_> = shown.map(|child| (self.tree.name(child), self.place(child))).collect();
        if !list.is_sorted() {
            list.sort_unstable();
        }
        list
    }
}

/// What a view has that is not in the tree.
struct Found<'a> {
    image: SharedBytes<'a>,
    view: SharedBytes<'a>,
}

impl Data for Found<'_> {
    fn time(&self, _: u32, nid: u32) -> Result<Time> {
        let mut inode = raw::ExtendedInode::new_zeroed();
        self.view.read_at(u64::from(nid).saturating_mul(raw::SLOT), inode.as_mut_bytes())?;
        let nanoseconds = inode.nanoseconds.get();
        if nanoseconds >= 1_000_000_000 {
            let why = format!("{nanoseconds} nanoseconds are no part of a second");
            return Err(wrong(format!("inode {}", inode.ino), why));
        }
        Ok(Time { seconds: inode.seconds.get().cast_signed(), nanoseconds })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(self.image.read_at(offset, buffer)?)
    }
}

/// A view as it lies there, compared from its beginning on.
struct Stored<'a> {
    bytes: SharedBytes<'a>,
    at: u64,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Stored<'_> {
    /// Compares what lies before `offset` with zeros, then `made` with what is there; the error is where they differ.
    fn compare(&mut self, offset: u64, made: &[u8]) -> Result<(), u64> {
        while self.at < offset {
            let zeros = [0; 4096];
            let len = offset.saturating_sub(self.at).min(zeros.len() as u64);
            self.expect(zeros.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default())?;
        }
        self.expect(made)
    }

    fn expect(&mut self, made: &[u8]) -> Result<(), u64> {
        self.buffer.resize(made.len(), 0);
        self.bytes.read_at(self.at, &mut self.buffer).map_err(|_| self.at)?;
        if let Some(differs) = made.iter().zip(&self.buffer).position(|(made, found)| made != found) {
            return Err(self.at.saturating_add(differs as u64));
        }
        self.hasher.update(made);
        self.at = self.at.saturating_add(made.len() as u64);
        Ok(())
    }
}
