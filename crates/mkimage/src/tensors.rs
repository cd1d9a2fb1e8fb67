//! What the packer knows of tensors before it lays the image out: the headers of all files with tensors, the aligned
//! rewriting of safetensors files where it was asked for, and the sharded checkpoints.

use crate::align::{PREFIX, Rewrite, rewrite};
use crate::lfs;
use crate::links::{Lead, lead};
use crate::plan::Numbers;
use crate::source::{Opener, SourceFile};
use crate::tree::{Kind, Tree};
use crate::{Error, Result};
use daxfs::format::index::{CONTAINER_SAFETENSORS, FILLER_PREFIX};
use daxfs::tensor::checkpoint::{MAX_DOCUMENT, WeightMap, shard_path};
use daxfs::tensor::index::{MAX_NAME, MAX_RANK};
use daxfs::tensor::{
    ContainerKind, Header, HeaderSource, TensorInfo, is_checkpoint, is_leftover, listed_kind,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Bytes from which on files are looked into whose names say nothing. Small ones are many, and hold few tensors.
const LARGE_BLOB: u64 = 1024;

/// One tensor of a file, as it will lie in the image.
#[derive(Debug, Clone)]
pub(crate) struct PlacedTensor {
    pub(crate) info: Arc<TensorInfo>,
    /// First byte, from the start of the file in the image.
    pub(crate) offset: u64,
}

/// A file with tensors whose header is sound.
#[derive(Debug)]
pub(crate) struct TensorFile {
    pub(crate) container: ContainerKind,
    /// Bytes of the header, in the image.
    pub(crate) data_start: u64,
    /// By name; fillers are left out.
    pub(crate) tensors: Vec<PlacedTensor>,
    /// How the file is made anew, when it is.
    pub(crate) rewrite: Option<Rewrite>,
}

/// A sharded checkpoint whose promises hold.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Inode of the JSON file.
    pub(crate) ino: u32,
    /// By tensor name: inode of the shard, and position among that file's tensors.
    pub(crate) entries: Vec<(u32, u32)>,
}

/// All tensors of a tree.
#[derive(Debug, Default)]
pub(crate) struct TensorSet {
    /// By inode number.
    pub(crate) files: BTreeMap<u32, TensorFile>,
    /// By inode number.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// What was packed as plain bytes though its name promises tensors, and why.
    pub(crate) warnings: Vec<String>,
}

/// Reads the headers of all files with tensors: those that a name or a symbolic link says so of, and those without a
/// telling name whose contents are one. With `align`, plans the rewriting of safetensors files; GGUF files, which align
/// their tensors themselves, stay as they are.
///
/// A file whose header is broken is packed as it is and gets a warning.
pub(crate) fn read(tree: &Tree, numbers: &Numbers, align: Option<u64>) -> Result<TensorSet> {
    let mut set = TensorSet::default();
    let mut opener = Opener::new(tree);
    let mut checkpoints = Vec::new();
    let mut linked = Vec::new();
    // By inode: what has been looked into.
    let mut seen = HashSet::new();
    for (node, entry) in tree.iter() {
        let name = tree.bytes(entry.name);
        let container = ContainerKind::of_name(name);
        let file = match entry.kind {
            Kind::File => node,
            Kind::Symlink { .. } if container.is_some() => match lead(tree, node, &[]) {
                Lead::Found(file) if matches!(tree.node(file).kind, Kind::File) => file,
                _ => continue,
            },
            _ => continue,
        };
        let (ino, size) = (numbers.ino[file as usize], tree.node(file).identity.size);
        if file == node && lfs::is_pointer(&mut opener, node, name, size)? {
            set.warnings.push(format!("{}: {}", tree.source_path(node).display(), lfs::WARNING));
            seen.insert(ino);
            continue;
        }
        if is_leftover(name) {
            continue;
        }
        if is_checkpoint(name) {
            // The index speaks for a file's first name only.
            if tree.node(numbers.node_of(ino)).parent == entry.parent {
                checkpoints.push((ino, node));
            }
        } else if let Some(container) = container {
            if file != node {
                linked.push((node, ino));
            }
            if !seen.insert(ino) {
                continue;
            }
            match read_file(&mut opener, file, container, align)? {
                Ok((file, warning)) => {
                    let warn = warning.map(|why| format!("{}: {why}", tree.source_path(node).display()));
                    set.warnings.extend(warn);
                    set.files.insert(ino, file);
                }
                Err(why) => set.warnings.push(format!(
                    "{}: packed as plain bytes, its tensors are not indexed: {why}",
                    tree.source_path(node).display()
                )),
            }
        }
    }
    for (ino, node) in numbers.files(tree) {
        let size = tree.node(node).identity.size;
        if may_be_blob(tree.name(node), size)
            && seen.insert(ino)
            && let Some(container) = container_of(&mut opener, node, size)?
        {
            // Its name promises nothing, so that nothing is missed if it is something else.
            if let Ok((file, _)) = read_file(&mut opener, node, container, align)? {
                set.files.insert(ino, file);
            }
        }
    }
    if !set.files.is_empty() && !checkpoints.is_empty() {
        read_checkpoints(tree, numbers, &mut opener, checkpoints, &linked, &mut set)?;
    }
    Ok(set)
}

/// Whether a name is that of contents, or none that says anything: stores name files by their hashes.
fn may_be_blob(name: &[u8], size: u64) -> bool {
    let is_hash = || name.len() >= 32 && name.iter().all(u8::is_ascii_hexdigit);
    size > PREFIX && !name.contains(&b'.') && (size >= LARGE_BLOB || is_hash())
}

/// What the first bytes of a file are those of.
fn container_of(opener: &mut Opener<'_>, node: u32, size: u64) -> Result<Option<ContainerKind>> {
    let source = opener.file(node)?;
    let mut start = [0; ContainerKind::HEAD];
    let len = usize::try_from(size).unwrap_or(usize::MAX).min(start.len());
    source.read_exact_at(&mut start[..len], 0)?;
    Ok(ContainerKind::of_head(&start[..len], size))
}

/// A source as headers are read from it. Memory is not counted: who packs trusts the sizes of headers, which are
/// bounded by their formats.
struct Bytes<'a> {
    source: &'a SourceFile<'a>,
    /// Why it could not be read.
    failed: RefCell<Option<Error>>,
}

impl HeaderSource for Bytes<'_> {
    fn len(&self) -> u64 {
        self.source.size()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> daxfs::Result<()> {
        self.source.read_exact_at(buffer, offset).map_err(|error| {
            self.failed.replace(Some(error));
            daxfs::Error::Cancelled
        })
    }

    fn charge(&self, _what: &'static str, _bytes: u64) -> daxfs::Result<()> {
        Ok(())
    }
}

/// The outer error ends packing, the inner one says why the file is not taken for a container.
type Understood<T> = Result<std::result::Result<T, String>>;

fn read_header(source: &SourceFile<'_>, container: ContainerKind) -> Understood<Header> {
    let bytes = Bytes { source, failed: RefCell::default() };
    let header = container.parse(&bytes);
    if let Some(error) = bytes.failed.take() {
        return Err(error);
    }
    source.check()?;
    Ok(header.map_err(|error| error.to_string()))
}

fn read_file(
    opener: &mut Opener<'_>,
    node: u32,
    container: ContainerKind,
    align: Option<u64>,
) -> Understood<(TensorFile, Option<String>)> {
    let source = opener.file(node)?;
    let header = match read_header(&source, container)? {
        Ok(header) => header,
        Err(why) => return Ok(Err(why)),
    };
    let beyond = |info: &&Arc<TensorInfo>| info.name.len() > MAX_NAME || info.shape.len() > MAX_RANK;
    if let Some(info) = header.visible().find(beyond) {
        let start: String = info.name.chars().take(40).collect();
        return Ok(Err(format!(
            "tensor {start:?}: its name has more than {MAX_NAME} bytes, or it has more than {MAX_RANK} dimensions"
        )));
    }
    let (rewrite, warning) = match align.filter(|_| container.code() == CONTAINER_SAFETENSORS) {
        None => (None, None),
        Some(align) => {
            // In range: headers are bounded by their formats.
            let mut start = vec![0; usize::try_from(header.data_start()).unwrap_or_default()];
            source.read_exact_at(&mut start, 0)?;
            source.check()?;
            match rewrite(&header, &start, align) {
                Ok(rewrite) => (rewrite, None),
                Err(why) => (None, Some(format!("not aligned, packed as it is: {why}"))),
            }
        }
    };
    let place = |info: &Arc<TensorInfo>| PlacedTensor {
        offset: rewrite.as_ref().map_or(info.offset, |rewrite| rewrite.offset_of(info)),
        info: Arc::clone(info),
    };
    let tensors = header.visible().map(place).collect();
    let data_start = rewrite.as_ref().map_or(header.data_start(), |rewrite| rewrite.data_start);
    Ok(Ok((TensorFile { container, data_start, tensors, rewrite }, warning)))
}

/// Resolves checkpoints against the headers. One that promises what is not there stays out of the index: a
/// reader then parses it and says by name what is missing.
fn read_checkpoints(
    tree: &Tree,
    numbers: &Numbers,
    opener: &mut Opener<'_>,
    mut checkpoints: Vec<(u32, u32)>,
    linked: &[(u32, u32)],
    set: &mut TensorSet,
) -> Result<()> {
    let paths: HashMap<Vec<u8>, u32> = tree
        .iter()
        .map(|(node, _)| (node, numbers.ino[node as usize]))
        .chain(linked.iter().copied())
        .filter(|(_, ino)| set.files.contains_key(ino))
        .map(|(node, ino)| (tree.image_path(node), ino))
        .collect();
    // Another name of the same file may stand in another directory; the first one counts.
    checkpoints.sort_by_key(|(ino, _)| *ino);
    checkpoints.dedup_by_key(|(ino, _)| *ino);
    for (ino, node) in checkpoints {
        let directory = tree.image_path(tree.node(node).parent);
        let resolved = match read_map(opener, node)? {
            // Of a format that was not downloaded.
            Ok(map) if is_other_format(tree.name(node)) && is_nowhere(&map, &directory, &paths) => continue,
            Ok(map) => resolve(&map, &directory, &paths, set),
            Err(why) => Err(why),
        };
        match resolved {
            Ok(entries) => set.checkpoints.push(Checkpoint { ino, entries }),
            Err(why) => {
                let path = tree.source_path(node);
                set.warnings.push(format!("{}: not indexed: {why}", path.display()));
            }
        }
    }
    Ok(())
}

/// Whether a list of shards is one of a format that goes after safetensors.
fn is_other_format(name: &[u8]) -> bool {
    listed_kind(name).is_some_and(|kind| kind.code() != CONTAINER_SAFETENSORS)
}

/// Whether none of the shards is there.
fn is_nowhere(map: &WeightMap, directory: &[u8], paths: &HashMap<Vec<u8>, u32>) -> bool {
    map.shards.iter().all(|shard| shard_path(directory, shard).is_ok_and(|path| !paths.contains_key(&path)))
}

fn read_map(opener: &mut Opener<'_>, node: u32) -> Understood<WeightMap> {
    let source = opener.file(node)?;
    let size = source.size();
    let Some(len) = usize::try_from(size).ok().filter(|_| size <= MAX_DOCUMENT) else {
        return Ok(Err(format!("{size} bytes are more than {MAX_DOCUMENT}")));
    };
    let mut json = vec![0; len];
    source.read_exact_at(&mut json, 0)?;
    source.check()?;
    Ok(WeightMap::parse(&json).map_err(|error| error.to_string()))
}

fn resolve(
    map: &WeightMap,
    directory: &[u8],
    paths: &HashMap<Vec<u8>, u32>,
    set: &TensorSet,
) -> std::result::Result<Vec<(u32, u32)>, String> {
    let mut shards = Vec::with_capacity(map.shards.len());
    for shard in &map.shards {
        let path = shard_path(directory, shard).map_err(|error| error.to_string())?;
        let ino =
            paths.get(&path).ok_or_else(|| format!("shard {shard:?} is not there or not understood"))?;
        shards.push((*ino, &set.files[ino]));
    }
    let entry = |(tensor, shard): &(String, usize)| {
        let (ino, file) = shards[*shard];
        let found = file.tensors.binary_search_by(|placed| placed.info.name.as_str().cmp(tensor));
        match found.map(u32::try_from) {
            Ok(Ok(position)) => Ok((ino, position)),
            _ => Err(format!("tensor {tensor:?} is not in shard {:?}", map.shards[*shard])),
        }
    };
    map.entries.iter().map(entry).collect()
}

/// Fails when the index's counters cannot hold the set.
pub(crate) fn check_counts(set: &TensorSet) -> Result<()> {
    let tensors = set.files.values().map(|file| file.tensors.len() as u64).sum();
    let entries = set.checkpoints.iter().map(|checkpoint| checkpoint.entries.len() as u64).sum();
    let dims = set.files.values().flat_map(|file| &file.tensors).map(|t| t.info.shape.len() as u64).sum();
    for (what, got) in [("tensors", tensors), ("checkpoint entries", entries), ("dimensions", dims)] {
        if got > u64::from(u32::MAX) {
            return Err(Error::TooMany { what, got, bound: u64::from(u32::MAX) });
        }
    }
    debug_assert!(
        set.files.values().flat_map(|f| &f.tensors).all(|t| !t.info.name.starts_with(FILLER_PREFIX))
    );
    Ok(())
}
