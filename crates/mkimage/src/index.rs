//! Builds the tensor index, `/.daxfs/index`: its size before the layout, its bytes when all hashes are known.
//!
//! The structure is described with its structs in [`daxfs::format::index`].

use crate::align::Rewrite;
use crate::hash::Hash;
use crate::plan::{Layout, Numbers};
use crate::tensors::{TensorFile, TensorSet};
use crate::tree::{Kind, ROOT, Tree};
use crate::{Error, Result};
use daxfs::format::index::{self as raw, GROUP_LEN};
use daxfs::format::index::{
    CheckpointRecord, DtypeRecord, FileRecord, Header, OriginalRecord, RunRecord, Section, TensorRecord,
};
use daxfs::{ContentHash, DirectoryHasher, Dtype, join_content_hash};
use std::collections::{BTreeSet, HashMap};
use zerocopy::{FromZeros, IntoBytes};

/// Sections in their order in the file, with the length of their records: what opening needs comes first.
const SECTIONS: [(u32, usize); 11] = [
    (raw::FILES, size_of::<FileRecord>()),
    (raw::TENSORS, size_of::<TensorRecord>()),
    (raw::CHECKPOINTS, size_of::<CheckpointRecord>()),
    (raw::ENTRIES, 4),
    (raw::DIMS, 8),
    (raw::STRINGS, 1),
    (raw::DTYPES, size_of::<DtypeRecord>()),
    (raw::ORIGINALS, size_of::<OriginalRecord>()),
    (raw::RUNS, size_of::<RunRecord>()),
    (raw::BYTES, 1),
    (raw::GROUPS, size_of::<Hash>()),
];

/// Bytes in front of so many sections.
fn front(sections: usize) -> u64 {
    (size_of::<Header>() + sections * size_of::<Section>()) as u64
}

/// Whether there is a section of a kind: the types that need none are the rule.
fn has_section(kind: u32, len: u64) -> bool {
    kind != raw::DTYPES || len > 0
}

/// Types that have no code of their own.
fn described(set: &TensorSet) -> Vec<Dtype> {
    let tensors = set.files.values().flat_map(|file| &file.tensors);
    let types: BTreeSet<Dtype> = tensors.map(|t| t.info.dtype).filter(|t| t.code().is_none()).collect();
    types.into_iter().collect()
}

/// Bytes of the index of this tree, in which files have the sizes that `size_of` says, with or without hashes.
pub(crate) fn size(
    tree: &Tree,
    numbers: &Numbers,
    set: &TensorSet,
    size_of: impl Fn(u32, u64) -> u64,
    hash: bool,
) -> u64 {
    let mut counts = [0u64; SECTIONS.len()];
    let [files, tensors, checkpoints, entries, dims, strings, dtypes, originals, runs, bytes, groups] =
        &mut counts;
    for (ino, node) in numbers.files(tree) {
        *files += 1;
        *strings += tree.image_path_len(node);
        if hash {
            *groups += group_count(size_of(ino, tree.node(node).identity.size));
        }
    }
    for tensor in set.files.values().flat_map(|file| &file.tensors) {
        *tensors += 1;
        *dims += tensor.info.shape.len() as u64;
        *strings += tensor.info.name.len() as u64;
    }
    for rewrite in set.files.values().filter_map(|file| file.rewrite.as_ref()) {
        *originals += 1;
        *runs += rewrite.runs().count() as u64;
        *bytes += rewrite.source_start.len() as u64;
    }
    *checkpoints = set.checkpoints.len() as u64;
    *entries = set.checkpoints.iter().map(|checkpoint| checkpoint.entries.len() as u64).sum();
    for dtype in described(set) {
        *dtypes += 1;
        *strings += dtype.name().len() as u64;
    }
    let sections: Vec<u64> = counts
        .iter()
        .zip(SECTIONS)
        .filter(|(count, (kind, _))| has_section(*kind, **count))
        .map(|(count, (_, record))| count * record as u64)
        .collect();
    front(sections.len()) + sections.iter().sum::<u64>()
}

/// How many groups a file has; one that would have a single one has its hash for that.
fn group_count(size: u64) -> u64 {
    if size > GROUP_LEN { size.div_ceil(GROUP_LEN) } else { 0 }
}

/// Hashes of the regular files of an image, by inode number less 1; empty where the inode is none.
#[derive(Debug)]
pub(crate) struct Hashes {
    /// Of the contents.
    pub(crate) files: Vec<Hash>,
    /// Of each 1 MiB of them.
    pub(crate) groups: Vec<Vec<Hash>>,
    /// Of the sources of files that are made anew, by inode number.
    pub(crate) originals: HashMap<u32, Hash>,
}

/// The tree hash of the root; children come behind their directory and are sorted by name.
fn tree_hash(tree: &Tree, layout: &Layout, files: &[Hash]) -> Hash {
    let mut directories: HashMap<u32, Hash> = HashMap::new();
    let numbers = 0..u32::try_from(tree.nodes.len()).unwrap_or(u32::MAX);
    for number in numbers.rev().filter(|&number| matches!(tree.node(number).kind, Kind::Directory { .. })) {
        let mut hasher = DirectoryHasher::new();
        for child in tree.children(number) {
            let name = tree.name(child);
            match tree.node(child).kind {
                Kind::Directory { .. } => {
                    hasher.directory(name, &directories.remove(&child).unwrap_or_default());
                }
                Kind::Symlink { target } => hasher.link(name, tree.bytes(target)),
                Kind::File => {
                    let ino = layout.numbers.ino[child as usize];
                    hasher.file(name, layout.extent(ino).len, &files[(ino - 1) as usize]);
                }
            }
        }
        if number == ROOT
            && let (Some(_), Some(config)) = (layout.shape.config, tree.config())
        {
            hasher.file(raw::CONFIG_HASHED_NAME, config.len() as u64, blake3::hash(config).as_bytes());
        }
        directories.insert(number, hasher.finish());
    }
    directories.remove(&ROOT).unwrap_or_default()
}

/// Builds the index, and the content hash where there are hashes.
///
/// # Errors
///
/// [`Error::TooMany`] where a 32-bit field would not hold its value.
pub(crate) fn build(
    tree: &Tree,
    layout: &Layout,
    set: &TensorSet,
    hashes: Option<&Hashes>,
) -> Result<(Vec<u8>, Option<ContentHash>)> {
    let mut tables = Tables::default();
    for dtype in described(set) {
        tables.add_dtype(dtype)?;
    }
    for (ino, node) in layout.numbers.files(tree) {
        let at = (ino - 1) as usize;
        let hash = hashes.map(|hashes| (&hashes.files[at], &hashes.groups[at][..]));
        let original = hashes.and_then(|hashes| hashes.originals.get(&ino));
        let hashes = FileHashes { hash, original };
        tables.add_file(ino, &tree.image_path(node), layout.extent(ino).len, hashes, set.files.get(&ino))?;
    }
    for checkpoint in &set.checkpoints {
        tables.add_checkpoint(checkpoint.ino, &checkpoint.entries)?;
    }
    let parts = [
        &tables.files,
        &tables.tensors,
        &tables.checkpoints,
        &tables.entries,
        &tables.dims,
        &tables.strings,
        &tables.dtypes,
        &tables.originals,
        &tables.runs,
        &tables.bytes,
        &tables.groups,
    ];
    let parts = parts.into_iter().zip(SECTIONS);
    let parts: Vec<_> = parts.filter(|(part, (kind, _))| has_section(*kind, part.len() as u64)).collect();
    let (mut table, mut at) = (Vec::with_capacity(parts.len()), front(parts.len()));
    for &(part, (kind, record)) in &parts {
        let mut section = Section::new_zeroed();
        section.kind = kind.into();
        section.offset = at.into();
        section.len = (part.len() as u64).into();
        section.record_size = u32::try_from(record).unwrap_or(u32::MAX).into();
        section.hash = *blake3::hash(part).as_bytes();
        table.push(section);
        at += part.len() as u64;
    }
    let mut header = Header::new_zeroed();
    header.magic = raw::MAGIC;
    header.version = raw::VERSION.into();
    header.total_size = at.into();
    header.section_count = u32::try_from(table.len()).unwrap_or(u32::MAX).into();
    if hashes.is_some() {
        header.flags = raw::HAS_HASHES.into();
    }
    header.records_hash = daxfs::tensor::index::records_hash(&header, &table);
    let content =
        hashes.map(|hashes| join_content_hash(&header.records_hash, &tree_hash(tree, layout, &hashes.files)));
    header.content_hash = content.map_or([0; 32], Into::into);

    let mut bytes = Vec::with_capacity(usize::try_from(at).unwrap_or(0));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(table.as_bytes());
    for (part, _) in parts {
        bytes.extend_from_slice(part);
    }
    Ok((bytes, content))
}

/// What is known of a file's bytes.
#[derive(Clone, Copy)]
struct FileHashes<'a> {
    /// Of the file and its groups.
    hash: Option<(&'a Hash, &'a [Hash])>,
    /// Of its source, when it is made anew.
    original: Option<&'a Hash>,
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
    dtypes: Vec<u8>,
    originals: Vec<u8>,
    runs: Vec<u8>,
    bytes: Vec<u8>,
    groups: Vec<u8>,
    file_count: u32,
    tensor_count: u32,
    dim_count: u32,
    entry_count: u32,
    /// Codes of the types that are described.
    described: HashMap<Dtype, u16>,
    /// Number of the first tensor record, by inode.
    first_tensor: HashMap<u32, u32>,
}

impl Tables {
    fn string(&mut self, bytes: &[u8]) -> Result<(u64, u32)> {
        let offset = self.strings.len() as u64;
        self.strings.extend_from_slice(bytes);
        Ok((offset, short("bytes of a name", bytes.len() as u64)?))
    }

    fn add_dtype(&mut self, dtype: Dtype) -> Result<()> {
        let (name_offset, name_len) = self.string(dtype.name().as_bytes())?;
        let block = dtype.block();
        let mut record = DtypeRecord::new_zeroed();
        record.name_offset = name_offset.into();
        record.name_len = name_len.into();
        record.block_elements = block.elements.into();
        record.block_bytes = block.bytes.into();
        self.dtypes.extend_from_slice(record.as_bytes());
        // There are far fewer types than the other half of the codes.
        let number = u16::try_from(self.described.len()).unwrap_or(u16::MAX);
        self.described.insert(dtype, raw::DTYPE_RECORDS.saturating_add(number));
        Ok(())
    }

    fn add_file(
        &mut self,
        ino: u32,
        path: &[u8],
        size: u64,
        hashes: FileHashes<'_>,
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
        let mut flags = 0;
        if let Some(file) = file {
            flags |= raw::FILE_TENSORS;
            record.container = file.container.code().into();
            record.data_start = file.data_start.into();
            self.first_tensor.insert(ino, self.tensor_count);
        }
        if let Some(rewrite) = file.and_then(|file| file.rewrite.as_ref()) {
            flags |= raw::FILE_ORIGINAL;
            record.original = self.add_original(rewrite, hashes.original)?.into();
        }
        if let Some((hash, groups)) = hashes.hash {
            record.hash = *hash;
            if !groups.is_empty() {
                flags |= raw::FILE_GROUPS;
                record.first_group = ((self.groups.len() / size_of::<Hash>()) as u64).into();
                self.groups.extend_from_slice(groups.as_flattened());
            }
        }
        record.flags = flags.into();
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
            let code = info.dtype.code().or_else(|| self.described.get(&info.dtype).copied());
            // All types without a code were described before.
            record.dtype = code.unwrap_or_default().into();
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

    /// Adds what is needed to put the source of a file together again, and returns its number.
    fn add_original(&mut self, rewrite: &Rewrite, hash: Option<&Hash>) -> Result<u32> {
        let number = self.originals.len() / size_of::<OriginalRecord>();
        let mut record = OriginalRecord::new_zeroed();
        record.size = rewrite.source_len.into();
        record.alignment = rewrite.align.into();
        record.start_offset = (self.bytes.len() as u64).into();
        record.start_len = (rewrite.source_start.len() as u64).into();
        record.first_run =
            short("runs of originals", (self.runs.len() / size_of::<RunRecord>()) as u64)?.into();
        record.run_count = short("runs of originals", rewrite.runs().count() as u64)?.into();
        record.file = self.file_count.into();
        if let Some(hash) = hash {
            record.flags = raw::ORIGINAL_HASH.into();
            record.hash = *hash;
        }
        self.originals.extend_from_slice(record.as_bytes());
        self.bytes.extend_from_slice(&rewrite.source_start);
        for (offset, len) in rewrite.runs() {
            let run = RunRecord { offset: offset.into(), len: len.into() };
            self.runs.extend_from_slice(run.as_bytes());
        }
        short("originals", number as u64)
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

    fn layout(tree: &Tree, index: Option<u64>) -> Layout {
        let shape = Shape {
            format: Format::V8,
            block_size: 4096,
            align: 2 << 20,
            index,
            config: None,
            erofs: None,
            overlay: None,
            split: None,
            empty: false,
        };
        Layout::new(tree, Numbers::assign(tree), |_| Placement::default(), shape).unwrap()
    }

    #[test]
    fn an_index_without_tensors_lists_every_file_once() {
        let mut tree = Tree::flat(5, 2 << 20);
        for number in [2, 4] {
            tree.nodes[number].links = 2;
            tree.nodes[number].identity.ino = 1000;
        }
        let set = TensorSet::default();
        let len = size(&tree, &Numbers::assign(&tree), &set, |_, size| size, true);
        let layout = layout(&tree, Some(len));
        let groups = (0..6u8).map(|n| vec![[n; 32]; 2]).collect();
        let hashes = Hashes { files: (0..6).map(|n| [n; 32]).collect(), groups, originals: HashMap::new() };
        let (bytes, content) = build(&tree, &layout, &set, Some(&hashes)).unwrap();
        assert_eq!(bytes.len() as u64, len);
        let header = Header::read_from_bytes(&bytes[..128]).unwrap();
        assert_eq!(Some(header.content_hash.into()), content);
        let section = |at: usize| {
            let section = Section::read_from_bytes(&bytes[128 + at * 64..][..64]).unwrap();
            let start = usize::try_from(section.offset.get()).unwrap();
            let part = &bytes[start..start + usize::try_from(section.len.get()).unwrap()];
            assert_eq!(section.hash, *blake3::hash(part).as_bytes());
            part
        };
        assert_eq!((section(0).len(), section(9).len()), (4 * 96, 4 * 2 * 32));
        let record = |at: usize| FileRecord::read_from_bytes(&section(0)[at * 96..][..96]).unwrap();
        let inodes: Vec<_> = (0..4).map(|at| record(at).ino.get()).collect();
        assert_eq!(inodes, [2, 3, 4, 5]);
        let path = |at: usize| {
            let start = usize::try_from(record(at).path_offset.get()).unwrap();
            &section(5)[start..start + record(at).path_len.get() as usize]
        };
        assert_eq!(path(1), b"/f000001");
        assert_eq!(record(1).hash, [2; 32]);
        assert_eq!((record(1).flags.get(), record(1).first_group.get()), (raw::FILE_GROUPS, 2));
    }

    #[test]
    fn the_content_hash_follows_names_contents_and_records_only() {
        let hash = |tree: &Tree, seed: u8| {
            let hashes = Hashes {
                files: (0..9).map(|n| [n + seed; 32]).collect(),
                groups: vec![Vec::new(); 9],
                originals: HashMap::new(),
            };
            build(tree, &layout(tree, None), &TensorSet::default(), Some(&hashes)).unwrap().1
        };
        let tree = Tree::flat(8, 100);
        let mut other = Tree::flat(8, 100);
        other.nodes[3].uid = 7;
        assert_eq!(hash(&tree, 0), hash(&other, 0));
        assert_ne!(hash(&tree, 0), hash(&tree, 1));
        assert_ne!(hash(&tree, 0), hash(&Tree::flat(7, 100), 0));
    }
}
