//! Builds the tensor index, `/.daxfs/index`: its size before the layout, its bytes when all hashes are known.
//!
//! The structure is described with its structs in [`daxfs::format::index`].

use crate::hash::Hash;
use crate::plan::{Layout, Numbers};
use crate::tensors::{TensorFile, TensorSet};
use crate::tree::{Kind, Tree};
use crate::{Error, Result};
use daxfs::format::index::{
    CheckpointRecord, FILE_TENSORS, FileRecord, HAS_HASHES, Header, MAGIC, TensorRecord, VERSION,
};
use std::collections::HashMap;
use zerocopy::{FromZeros, IntoBytes};

/// Where the parts of the index lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    files: u64,
    tensors: u64,
    checkpoints: u64,
    entries: u64,
    dims: u64,
    strings: u64,
    end: u64,
}

/// How many of everything there are.
#[derive(Debug, Clone, Copy)]
struct Counts {
    files: u64,
    tensors: u64,
    checkpoints: u64,
    entries: u64,
    dims: u64,
    string_bytes: u64,
}

impl Counts {
    fn of(tree: &Tree, numbers: &Numbers, set: &TensorSet) -> Counts {
        let tensors = || set.files.values().flat_map(|file| &file.tensors);
        let (mut files, mut path_bytes) = (0, 0);
        for (_, node) in numbers.files(tree) {
            files += 1;
            path_bytes += tree.image_path_len(node);
        }
        Counts {
            files,
            tensors: tensors().count() as u64,
            checkpoints: set.checkpoints.len() as u64,
            entries: set.checkpoints.iter().map(|checkpoint| checkpoint.entries.len() as u64).sum(),
            dims: tensors().map(|tensor| tensor.info.shape.len() as u64).sum(),
            string_bytes: path_bytes + tensors().map(|tensor| tensor.info.name.len() as u64).sum::<u64>(),
        }
    }

    fn parts(&self) -> Parts {
        let files = size_of::<Header>() as u64;
        let tensors = files + self.files * size_of::<FileRecord>() as u64;
        let checkpoints = tensors + self.tensors * size_of::<TensorRecord>() as u64;
        let entries = checkpoints + self.checkpoints * size_of::<CheckpointRecord>() as u64;
        let dims = entries + self.entries * 4;
        let strings = dims + self.dims * 8;
        Parts { files, tensors, checkpoints, entries, dims, strings, end: strings + self.string_bytes }
    }
}

/// Bytes of the index of this tree.
pub(crate) fn size(tree: &Tree, numbers: &Numbers, set: &TensorSet) -> u64 {
    Counts::of(tree, numbers, set).parts().end
}

/// Hashes of an image's contents.
#[derive(Debug)]
pub(crate) struct Hashes {
    /// By inode number less 1; zero where the inode is no regular file.
    pub(crate) files: Vec<Hash>,
    /// Of names, links and contents.
    pub(crate) content: Hash,
}

impl Hashes {
    /// Completes the hashes of regular files by that of the whole content.
    pub(crate) fn new(tree: &Tree, layout: &Layout, files: Vec<Hash>) -> Hashes {
        let mut hasher = daxfs::ContentHasher::new();
        for number in tree.in_path_order() {
            let node = tree.node(number);
            let path = tree.image_path(number);
            if let Kind::Symlink { target } = node.kind {
                hasher.link(&path, tree.bytes(target));
            } else {
                let ino = layout.numbers.ino[number as usize];
                hasher.file(&path, layout.extent(ino).len, &files[(ino - 1) as usize]);
            }
        }
        Hashes { files, content: hasher.finish() }
    }
}

/// Builds the index.
///
/// # Errors
///
/// [`Error::TooMany`] where a 32-bit field would not hold its value.
pub(crate) fn build(
    tree: &Tree,
    layout: &Layout,
    set: &TensorSet,
    hashes: Option<&Hashes>,
) -> Result<Vec<u8>> {
    let counts = Counts::of(tree, &layout.numbers, set);
    let parts = counts.parts();
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.total_size = parts.end.into();
    header.files_offset = parts.files.into();
    header.file_count = short("files", counts.files)?.into();
    header.tensor_count = short("tensors", counts.tensors)?.into();
    header.tensors_offset = parts.tensors.into();
    header.checkpoints_offset = parts.checkpoints.into();
    header.checkpoint_count = short("checkpoints", counts.checkpoints)?.into();
    header.entry_count = short("checkpoint entries", counts.entries)?.into();
    header.entries_offset = parts.entries.into();
    header.dims_offset = parts.dims.into();
    header.dim_count = u64::from(short("dimensions", counts.dims)?).into();
    header.strings_offset = parts.strings.into();
    header.strings_size = counts.string_bytes.into();
    if let Some(hashes) = hashes {
        header.flags = HAS_HASHES.into();
        header.content_hash = hashes.content;
    }

    let mut tables = Tables::default();
    for (ino, node) in layout.numbers.files(tree) {
        let hash = hashes.map_or([0; 32], |hashes| hashes.files[(ino - 1) as usize]);
        tables.add_file(ino, &tree.image_path(node), layout.extent(ino).len, hash, set.files.get(&ino))?;
    }
    for checkpoint in &set.checkpoints {
        tables.add_checkpoint(checkpoint.ino, &checkpoint.entries)?;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(parts.end).unwrap_or(0));
    bytes.extend_from_slice(header.as_bytes());
    for part in
        [&tables.files, &tables.tensors, &tables.checkpoints, &tables.entries, &tables.dims, &tables.strings]
    {
        bytes.extend_from_slice(part);
    }
    debug_assert_eq!(bytes.len() as u64, parts.end);
    Ok(bytes)
}

/// The parts of the index while they grow.
#[derive(Default)]
struct Tables {
    files: Vec<u8>,
    tensors: Vec<u8>,
    checkpoints: Vec<u8>,
    entries: Vec<u8>,
    dims: Vec<u8>,
    strings: Vec<u8>,
    file_count: u32,
    tensor_count: u32,
    dim_count: u32,
    entry_count: u32,
    /// Number of the first tensor record, by inode.
    first_tensor: HashMap<u32, u32>,
}

impl Tables {
    fn string(&mut self, bytes: &[u8]) -> Result<(u64, u32)> {
        let offset = self.strings.len() as u64;
        self.strings.extend_from_slice(bytes);
        Ok((offset, short("bytes of a name", bytes.len() as u64)?))
    }

    fn add_file(
        &mut self,
        ino: u32,
        path: &[u8],
        size: u64,
        hash: Hash,
        file: Option<&TensorFile>,
    ) -> Result<()> {
        let (path_offset, path_len) = self.string(path)?;
        let tensors = file.map_or(&[][..], |file| &file.tensors);
        let mut record = FileRecord::new_zeroed();
        record.path_offset = path_offset.into();
        record.path_len = path_len.into();
        record.ino = ino.into();
        record.size = size.into();
        record.first_tensor = self.tensor_count.into();
        record.tensor_count = short("tensors", tensors.len() as u64)?.into();
        if let Some(file) = file {
            record.flags = FILE_TENSORS.into();
            record.data_start = file.data_start.into();
            self.first_tensor.insert(ino, self.tensor_count);
        }
        record.hash = hash;
        self.files.extend_from_slice(record.as_bytes());
        for tensor in tensors {
            let info = &tensor.info;
            let (name_offset, name_len) = self.string(info.name.as_bytes())?;
            let rank = u16::try_from(info.shape.len()).map_err(|_| Error::TooMany {
                what: "dimensions of a tensor",
                got: info.shape.len() as u64,
                bound: u64::from(u16::MAX),
            })?;
            let mut record = TensorRecord::new_zeroed();
            record.name_offset = name_offset.into();
            record.name_len = name_len.into();
            record.first_dim = self.dim_count.into();
            record.offset = tensor.offset.into();
            record.size = info.size.into();
            record.file = self.file_count.into();
            record.dtype = info.dtype.code().into();
            record.rank = rank.into();
            self.tensors.extend_from_slice(record.as_bytes());
            for dim in &info.shape {
                self.dims.extend_from_slice(&dim.to_le_bytes());
            }
            self.dim_count += u32::from(rank);
            self.tensor_count += 1;
        }
        self.file_count += 1;
        Ok(())
    }

    fn add_checkpoint(&mut self, ino: u32, entries: &[(u32, u32)]) -> Result<()> {
        let mut record = CheckpointRecord::new_zeroed();
        record.ino = ino.into();
        record.first_entry = self.entry_count.into();
        record.entry_count = short("checkpoint entries", entries.len() as u64)?.into();
        self.checkpoints.extend_from_slice(record.as_bytes());
        for (shard, position) in entries {
            let number = self.first_tensor.get(shard).map_or(u32::MAX, |first| first + position);
            self.entries.extend_from_slice(&number.to_le_bytes());
        }
        self.entry_count += record.entry_count.get();
        Ok(())
    }
}

fn short(what: &'static str, got: u64) -> Result<u32> {
    u32::try_from(got).map_err(|_| Error::TooMany { what, got, bound: u64::from(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Format, Placement, Shape};
    use zerocopy::FromBytes;

    #[test]
    fn an_index_without_tensors_lists_every_file_once() {
        let mut tree = Tree::flat(5, 100);
        for number in [2, 4] {
            tree.nodes[number].links = 2;
            tree.nodes[number].identity.ino = 1000;
        }
        let numbers = Numbers::assign(&tree);
        let set = TensorSet::default();
        let len = size(&tree, &numbers, &set);
        let shape = Shape { format: Format::V8, block_size: 4096, align: 2 << 20, index: Some(len) };
        let layout = Layout::new(&tree, numbers, |_| Placement::default(), shape).unwrap();
        let files = (0..6).map(|n| [n; 32]).collect();
        let hashes = Hashes::new(&tree, &layout, files);
        let bytes = build(&tree, &layout, &set, Some(&hashes)).unwrap();
        assert_eq!(bytes.len() as u64, len);
        let header = Header::read_from_bytes(&bytes[..160]).unwrap();
        assert_eq!(header.file_count.get(), 4);
        assert_eq!(header.content_hash, hashes.content);
        let record = |at: usize| FileRecord::read_from_bytes(&bytes[160 + at * 96..][..96]).unwrap();
        let inodes: Vec<_> = (0..4).map(|at| record(at).ino.get()).collect();
        assert_eq!(inodes, [2, 3, 4, 5]);
        let path = |at: usize| {
            let start = usize::try_from(header.strings_offset.get() + record(at).path_offset.get()).unwrap();
            &bytes[start..start + record(at).path_len.get() as usize]
        };
        assert_eq!(path(1), b"/f000001");
        assert_eq!(record(1).hash, [2; 32]);
    }

    #[test]
    fn the_content_hash_follows_names_and_contents_only() {
        let hash = |tree: &Tree, seed: u8| {
            let shape = Shape { format: Format::V8, block_size: 4096, align: 4096, index: None };
            let layout = Layout::new(tree, Numbers::assign(tree), |_| Placement::default(), shape).unwrap();
            Hashes::new(tree, &layout, (0..9).map(|n| [n + seed; 32]).collect()).content
        };
        let tree = Tree::flat(8, 100);
        let mut other = Tree::flat(8, 100);
        other.nodes[3].uid = 7;
        assert_eq!(hash(&tree, 0), hash(&other, 0));
        assert_ne!(hash(&tree, 0), hash(&tree, 1));
        assert_ne!(hash(&tree, 0), hash(&Tree::flat(7, 100), 0));
    }
}
