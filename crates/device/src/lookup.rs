//! A block by which a kernel on the device finds files by itself: the tables behind `include/daxfs_device.h`.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::DeviceError;
use crate::Result;
use daxfs::{Entry, FileType, Image, Piece, PieceSource};

/// "daxfslkp".
const MAGIC: u64 = u64::from_le_bytes(*b"daxfslkp");
const VERSION: u32 = 1;
/// Seeds that are tried until no two paths have one hash: two of 2^64 hardly ever do, unless somebody made them.
const SEEDS: u64 = 16;
/// Kinds of nodes.
const OTHER: u32 = 0;
const FILE: u32 = 1;
const DIRECTORY: u32 = 2;
/// `offset` of a file whose bytes are not in one place of the image.
const SCATTERED: u64 = u64::MAX;

/// `struct daxfs_lookup`.
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: U64,
    version: U32,
    node_size: U32,
    nodes: U64,
    path_slots: U64,
    inode_slots: U64,
    seed: U64,
    image_len: U64,
    len: U64,
}

/// `struct daxfs_node`.
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Node {
    hash: U64,
    offset: U64,
    len: U64,
    ino: U64,
    kind: U32,
    children: U32,
    first_child: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<Head>() == 64 && size_of::<Node>() == 48);

/// What a kernel needs to find the files of an image without the host, by `crates/device/include/daxfs_device.h`: give
/// it the address of the image on the device and that of a copy of [`Lookup::as_bytes`], which begins at a multiple of
/// 8.
///
/// The image has to be one buffer on the device ([`MappedImage::buffers`](super::MappedImage::buffers)) and all of it,
/// as copies are but those by a plan. A symbolic link stands for the file or directory that it leads to. Files that
/// were changed after packing, or lie in a backing file, are there without an address.
#[derive(Debug, Clone)]
pub struct Lookup {
    bytes: Vec<u8>,
    seed: u64,
}

impl Lookup {
    /// Makes the block of an image: 48 bytes for each name, and 12 to 24 for the slots.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] for an image with 2^31 names or more, and for one that was made so that the hashes
    /// of its paths are equal.
    pub fn of(image: &Image) -> Result<Self> {
        let refuse = |what: &str| DeviceError::Unavailable {
            what: format!("a lookup block for {what}"),
            needs: "another image; files can still be resolved on the host".into(),
        };
        let (mut nodes, names) = collect(image);
        if u32::try_from(nodes.len()).is_ok_and(|count| count < 1 << 31) {
            let seed = (0..SEEDS).find(|&seed| {
                let mut hashes = hashes(seed, &names);
                for (node, hash) in nodes.iter_mut().zip(&hashes) {
                    node.hash = (*hash).into();
                }
                hashes.sort_unstable();
                hashes.windows(2).all(|pair| pair[0] != pair[1])
            });
            let seed = seed.ok_or_else(|| refuse("paths whose hashes are equal"))?;
            return Ok(Self { bytes: encode(&nodes, seed, image.superblock().total_size), seed });
        }
        Err(refuse("2^31 names").into())
    }

    /// The block.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The hash by which a kernel finds a path (`daxfs_find_hash`); no leading slash.
    pub fn hash(&self, path: impl AsRef<[u8]>) -> u64 {
        let path = path.as_ref();
        hash(self.seed, path.strip_prefix(b"/").unwrap_or(path))
    }
}

/// A name, and the number of the directory that it is in, which comes before it. Not its path: those of a deep tree are
/// long, all together.
struct Name {
    directory: usize,
    name: Vec<u8>,
}

/// All names, level by level, so that the entries of each directory follow each other; the hashes of the nodes are not
/// set.
fn collect(image: &Image) -> (Vec<Node>, Vec<Name>) {
    let mut nodes = vec![node(image, &image.root())];
    let mut names = vec![Name { directory: 0, name: Vec::new() }];
    let mut directories = VecDeque::from([(0, image.root())]);
    // Links to directories, and where those are.
    let mut links = Vec::new();
    let mut places = HashMap::from([(image.root().metadata().ino, 0)]);
    while let Some((index, directory)) = directories.pop_front() {
        let first = nodes.len();
        for child in directory.children() {
            let node = node(image, &child);
            names.push(Name { directory: index, name: child.name().to_vec() });
            match child.file_type() {
                FileType::Directory => {
                    places.insert(child.metadata().ino, nodes.len());
                    directories.push_back((nodes.len(), child));
                }
                FileType::Symlink if node.kind.get() == DIRECTORY => {
                    links.push((nodes.len(), node.ino.get()))
                }
                _ => {}
            }
            nodes.push(node);
        }
        // Too many of them are refused afterwards.
        let count = |n: usize| U32::from(u32::try_from(n).unwrap_or(u32::MAX));
        nodes[index].first_child = count(first);
        nodes[index].children = count(nodes.len() - first);
    }
    for (link, ino) in links {
        if let Some(&place) = places.get(&ino) {
            let (first, count) = (nodes[place].first_child, nodes[place].children);
            (nodes[link].first_child, nodes[link].children) = (first, count);
        }
    }
    (nodes, names)
}

/// The node of an entry, or of what it leads to if it is a link; without hash and children.
fn node(image: &Image, entry: &Entry) -> Node {
    // A link that leads nowhere stays what it is, and is neither file nor directory.
    let target = match entry.file_type() {
        FileType::Symlink => image.entry(entry.path()).unwrap_or_else(|_| entry.clone()),
        _ => entry.clone(),
    };
    let (kind, offset, len) = match target.file() {
        Ok(file) => {
            let place = match file.pieces().as_deref() {
                _ if file.is_changed() => SCATTERED,
                // A device has the image, and nothing of the region behind it.
                Ok([Piece { source: PieceSource::Image(at), len, .. }])
                    if at.checked_add(*len).is_some_and(|end| end <= image.superblock().total_size) =>
                {
                    *at
                }
                _ if file.is_empty() => 0,
                _ => SCATTERED,
            };
            (FILE, place, file.len())
        }
        Err(_) if target.file_type() == FileType::Directory => (DIRECTORY, 0, 0),
        Err(_) => (OTHER, 0, 0),
    };
    Node {
        hash: U64::ZERO,
        offset: offset.into(),
        len: len.into(),
        ino: target.metadata().ino.into(),
        kind: kind.into(),
        children: U32::ZERO,
        first_child: U32::ZERO,
        reserved: U32::ZERO,
    }
}

/// `daxfs_hash` of a path, which is begun, goes on byte by byte, and is finished.
fn hash(seed: u64, path: &[u8]) -> u64 {
    finished(further(begun(seed), path))
}

fn begun(seed: u64) -> u64 {
    seed ^ 0xcbf2_9ce4_8422_2325
}

fn further(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn finished(state: u64) -> u64 {
    let hash = (state ^ (state >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// The hash of each name's path.
fn hashes(seed: u64, names: &[Name]) -> Vec<u64> {
    let mut states: Vec<u64> = Vec::with_capacity(names.len());
    for (number, Name { directory, name }) in names.iter().enumerate() {
        let state = match (number, *directory) {
            (0, _) | (_, 0) => begun(seed),
            (_, directory) => further(states[directory], b"/"),
        };
        states.push(further(state, name));
    }
    states.into_iter().map(finished).collect()
}

/// Where the search for an inode number begins.
fn spread(ino: u64) -> u64 {
    let word = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ (word >> 32)
}

fn encode(nodes: &[Node], seed: u64, image_len: u64) -> Vec<u8> {
    let paths = slots(nodes, |node| node.hash.get(), |_, _| false);
    // Hard links and symbolic links share an inode; one of them is enough.
    let inodes = slots(nodes, |node| spread(node.ino.get()), |one, other| one.ino == other.ino);
    let len = size_of::<Head>() + size_of_val(nodes) + 4 * (paths.len() + inodes.len());
    let head = Head {
        magic: MAGIC.into(),
        version: VERSION.into(),
        node_size: U32::from(48),
        nodes: (nodes.len() as u64).into(),
        path_slots: (paths.len() as u64).into(),
        inode_slots: (inodes.len() as u64).into(),
        seed: seed.into(),
        image_len: image_len.into(),
        len: (len as u64).into(),
    };
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(nodes.as_bytes());
    bytes.extend_from_slice(paths.as_bytes());
    bytes.extend_from_slice(inodes.as_bytes());
    bytes
}

/// Open addressing, less than two thirds full: index + 1 of each node from where `start` says on, unless an equal one
/// is there.
fn slots(nodes: &[Node], start: impl Fn(&Node) -> u64, equal: impl Fn(&Node, &Node) -> bool) -> Vec<U32> {
    let count = (nodes.len() + nodes.len() / 2 + 1).next_power_of_two();
    let mut slots = vec![U32::ZERO; count];
    for (number, node) in (1_u32..).zip(nodes) {
        let mut at = usize::try_from(start(node) & (count as u64 - 1)).unwrap_or(0);
        loop {
            match slots[at].get() {
                0 => {
                    slots[at] = number.into();
                    break;
                }
                other if equal(&nodes[other as usize - 1], node) => break,
                _ => at = (at + 1) & (count - 1),
            }
        }
    }
    slots
}
