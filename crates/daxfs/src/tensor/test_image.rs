//! Small images for the tests of this crate's tensors, laid out by hand: the packer depends on this crate.

use std::collections::BTreeMap;

use zerocopy::{FromZeros, IntoBytes};

use crate::format::{self, v8};
use crate::{Image, Region};

/// Contents of one name.
enum Node {
    File(Vec<u8>),
    Link(&'static str),
    /// A hard link to an earlier path.
    Same(&'static str),
    Directory(BTreeMap<&'static str, u32>),
}

/// A tree of files; directories are made as paths need them. Inode numbers are given in the order of insertion.
pub(crate) struct TestImage {
    nodes: Vec<Node>,
    inodes: BTreeMap<&'static str, u32>,
}

impl TestImage {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::Directory(BTreeMap::new())], inodes: BTreeMap::from([("", 1)]) }
    }

    pub(crate) fn file(mut self, path: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        self.add(path, Node::File(bytes.into()));
        self
    }

    pub(crate) fn link(mut self, path: &'static str, target: &'static str) -> Self {
        self.add(path, Node::Link(target));
        self
    }

    pub(crate) fn hard_link(mut self, path: &'static str, to: &'static str) -> Self {
        self.add(path, Node::Same(to));
        self
    }

    /// The inode number of a path.
    pub(crate) fn ino(&self, path: &str) -> u32 {
        self.inodes[path]
    }

    fn add(&mut self, path: &'static str, node: Node) -> u32 {
        let (parent, name) = path.rsplit_once('/').expect("absolute paths");
        let directory = match self.inodes.get(parent) {
            Some(&ino) => ino,
            None => self.add(parent, Node::Directory(BTreeMap::new())),
        };
        let ino = match node {
            Node::Same(to) => self.inodes[to],
            node => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len()).unwrap()
            }
        };
        self.inodes.insert(path, ino);
        match &mut self.nodes[directory as usize - 1] {
            Node::Directory(entries) => entries.insert(name, ino),
            _ => panic!("{parent} is no directory"),
        };
        ino
    }

    fn mode(&self, ino: u32) -> u32 {
        match self.nodes[ino as usize - 1] {
            Node::File(_) | Node::Same(_) => format::S_IFREG | 0o644,
            Node::Link(_) => format::S_IFLNK | 0o777,
            Node::Directory(_) => format::S_IFDIR | 0o755,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        const BASE: usize = format::SUPERBLOCK_SIZE;
        let mut table = Vec::new();
        let mut data = Vec::new();
        let data_start = self.nodes.len() * size_of::<format::Inode>();
        for (ino, node) in (1u32..).zip(&self.nodes) {
            // Odd places, so that tensors are not aligned by accident.
            data.resize(data.len().next_multiple_of(8) + 1, 0);
            let mut inode = format::Inode::new_zeroed();
            inode.ino = ino.into();
            inode.mode = self.mode(ino).into();
            inode.nlink =
                u32::try_from(self.inodes.values().filter(|&&other| other == ino).count()).unwrap().into();
            inode.data_offset = ((data_start + data.len()) as u64).into();
            inode.size = match node {
                Node::File(bytes) => {
                    data.extend_from_slice(bytes);
                    bytes.len() as u64
                }
                Node::Link(target) => {
                    data.extend_from_slice(target.as_bytes());
                    data.push(0);
                    target.len() as u64
                }
                Node::Directory(entries) => {
                    for (name, &child) in entries {
                        let mut dirent = format::Dirent::new_zeroed();
                        dirent.ino = child.into();
                        dirent.mode = self.mode(child).into();
                        dirent.name_len = u16::try_from(name.len()).unwrap().into();
                        dirent.name[..name.len()].copy_from_slice(name.as_bytes());
                        data.extend_from_slice(dirent.as_bytes());
                    }
                    entries.len() as u64 * format::DIRENT_SIZE
                }
                Node::Same(_) => unreachable!("hard links have no inode of their own"),
            }
            .into();
            table.extend_from_slice(inode.as_bytes());
        }
        let base_size = (table.len() + data.len()) as u64;
        let mut superblock = v8::Superblock::new_zeroed();
        superblock.magic = format::MAGIC.into();
        superblock.version = v8::VERSION.into();
        superblock.block_size = 4096.into();
        superblock.total_size = (BASE as u64 + base_size).into();
        superblock.base_offset = (BASE as u64).into();
        superblock.base_size = base_size.into();
        superblock.inode_count = u32::try_from(self.nodes.len()).unwrap().into();
        superblock.root_inode = format::ROOT_INO.into();
        superblock.data_offset = (data_start as u64).into();
        let mut image = superblock.as_bytes().to_vec();
        image.resize(BASE, 0);
        image.extend(table);
        image.extend(data);
        image
    }

    pub(crate) fn open(&self) -> Image {
        Image::from_region(Region::from_bytes(self.bytes())).unwrap()
    }
}

/// A safetensors file: names with type, shape and bytes, in the order of the data.
pub(crate) fn safetensors(tensors: &[(&str, crate::Dtype, &[u64], &[u8])], metadata: &str) -> Vec<u8> {
    let mut members = Vec::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let offsets = [begin, data.len()];
        members
            .push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#));
    }
    if !metadata.is_empty() {
        members.push(format!("\"__metadata__\":{metadata}"));
    }
    let json = format!("{{{}}}", members.join(","));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend(data);
    file
}

/// A pair of a GGUF file: the bytes of the value follow its type.
pub(crate) fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat()
}

/// A GGUF file of version 3: pairs, and tensors with the number of their type, dimensions as they lie in the file, and
/// bytes.
pub(crate) fn gguf(pairs: &[Vec<u8>], tensors: &[(&str, u32, &[u64], &[u8])], alignment: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((pairs.len() as u64).to_le_bytes());
    pairs.iter().for_each(|pair| file.extend(pair));
    let mut data = Vec::new();
    for (name, kind, dims, bytes) in tensors {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(*bytes);
        data.resize(data.len().next_multiple_of(alignment), 0);
    }
    file.resize(file.len().next_multiple_of(alignment), 0);
    file.extend(data);
    file
}

/// An archive of stored entries, as `torch.save` writes them: the bytes of each on a multiple of 64. With `wide`, all
/// places and sizes in 64 bits.
pub(crate) fn zip(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let u16 = |value: usize| u16::try_from(value).unwrap().to_le_bytes();
    let u32 = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    for (name, bytes) in entries {
        let header = file.len();
        let padding = (header + 30 + name.len() + 4).wrapping_neg() % 64;
        let sizes = [u32(bytes.len()); 2];
        let lens = [u16(name.len()), u16(padding + 4)];
        file.extend([&b"PK\x03\x04"[..], &[0; 14], sizes.as_flattened(), lens.as_flattened()].concat());
        file.extend([name.as_bytes(), b"FB", &u16(padding)].concat());
        file.resize(file.len() + padding, b'Z');
        file.extend(*bytes);
        let (size, place, extra) = if wide {
            let values = [bytes.len() as u64, bytes.len() as u64, header as u64].map(u64::to_le_bytes);
            ([0xff; 4], [0xff; 4], [&u16(1)[..], &u16(24), values.as_flattened()].concat())
        } else {
            (u32(bytes.len()), u32(header), Vec::new())
        };
        let lens = [u16(name.len()), u16(extra.len())].concat();
        let record =
            [&b"PK\x01\x02"[..], &[0; 16], &size, &size, &lens, &[0; 10], &place, name.as_bytes(), &extra];
        directory.extend(record.concat());
    }
    let start = file.len();
    file.extend(&directory);
    if wide {
        let end = file.len() as u64;
        let numbers =
            [44, 0, 0, entries.len() as u64, entries.len() as u64, directory.len() as u64, start as u64];
        let mut record: Vec<u8> = numbers.iter().flat_map(|number: &u64| number.to_le_bytes()).collect();
        // Versions and disks have 12 bytes together.
        record.drain(8..12);
        file.extend(b"PK\x06\x06");
        file.extend(record);
        file.extend([&b"PK\x06\x07\0\0\0\0"[..], &end.to_le_bytes(), &[1, 0, 0, 0]].concat());
    }
    let count = u16(entries.len());
    let (len, start) = if wide { ([0xff; 4], [0xff; 4]) } else { (u32(directory.len()), u32(start)) };
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &len, &start, &[0, 0]].concat());
    file
}
