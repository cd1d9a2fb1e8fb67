//! Which tensors are meant: by a file, by a path, or by a whole image.
//!
//! In a directory, the files that have the name of a set of tensors ([`SetName`]) are candidates: lists of shards, whole
//! files, and numbered shards without a list, which are joined. A variant gives way to the set that it is a variant of,
//! unless it was asked for; safetensors go before other containers, and a list of shards before files; hidden names and
//! leftovers count only where there are no others.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, HashMap, HashSet, btree_map};

use super::checkpoint::{join_shards, read_checkpoint};
use super::container::{ContainerKind, header_of};
use super::error::escaped;
use super::leftover::is_leftover;
use super::names::{Kind, SetName};
use super::paths::parent;
use super::{TensorError, Tensors};
use crate::{Entry, Error, File, FileType, Image, Result};

/// How many candidates an error lists, and how many missing shards it has.
const LISTED: usize = 5;
const MISSING: usize = 100;

/// The tensors of a file: a checkpoint if its name says so, else a container.
pub(crate) fn tensors_of_file(file: &File) -> Result<Tensors> {
    let path = file.path();
    if is_checkpoint(&path) { tensors_of_checkpoint(file, parent(&path)) } else { tensors_of_container(file) }
}

fn tensors_of_container(file: &File) -> Result<Tensors> {
    if let Some(index) = usable_index(file.image())?
        && let Some(record) = index.file(file.ino())?.filter(|record| record.has_tensors)
    {
        index.check_size(&record, file)?;
        return Ok(Tensors::indexed_file(index, file.clone(), record));
    }
    Ok(Tensors::parsed_file(file.clone(), header_of(file)?))
}

/// The tensors of a checkpoint whose shards are relative to `directory`.
///
/// The directory is that of the name by which the checkpoint was reached, not of the file behind a symbolic link:
/// in a Hugging Face cache all names are links to a directory of blobs, and the shards' names are with the links.
fn tensors_of_checkpoint(json: &File, directory: &[u8]) -> Result<Tensors> {
    if let Some(index) = usable_index(json.image())?
        && let Some(record) = index.checkpoint_in(json, directory)?
    {
        return Ok(Tensors::indexed_checkpoint(index, json.clone(), record));
    }
    let cache = json.image().tensor_cache();
    let key = (json.ino(), directory.to_vec());
    let read = || read_checkpoint(json, directory);
    let checkpoint = cache.checkpoints.get_or_parse(key, || json.path(), read)?;
    Tensors::parsed_checkpoint(json.clone(), checkpoint)
}

/// The image's index; `None` also when a later packer wrote it, since the headers say the same.
pub(crate) fn usable_index(image: &Image) -> Result<Option<super::Index>> {
    match image.index() {
        Ok(index) => Ok(index.cloned()),
        Err(Error::UnsupportedVersion { .. } | Error::UnknownFlags { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tensors of numbered shards, all of which are there.
fn tensors_of_shards(set: &ShardSet) -> Result<Tensors> {
    let Some((_, (_, first))) = set.shards.first_key_value() else {
        return Err(TensorError::NoTensors { place: set.label() }.into());
    };
    if let Some(error) = set.incomplete() {
        return Err(error.into());
    }
    if let Some(error) = set.ambiguous() {
        return Err(error.into());
    }
    let files: Vec<_> = set.shards.values().map(|(entry, file)| (entry.path(), file.clone())).collect();
    // All of them: two sets in one directory may begin with links to one file.
    let key = (set.inodes(), set.directory.path());
    let label = set.label();
    let cache = &first.image().tensor_cache().joined;
    let joined = cache.get_or_parse(key, || set.pattern(), || join_shards(&files))?;
    let files = files.into_iter().map(|(_, file)| file).collect();
    Ok(Tensors::joined_shards(label, first.clone(), files, joined))
}

/// The one set of tensors of an image: at its root, or anywhere if there is none at the root.
pub(crate) fn default_tensors(image: &Image, variant: Option<&str>) -> Result<Tensors> {
    if let Some(tensors) = choose(&in_directory(&image.root()), "/", variant)? {
        return Ok(tensors);
    }
    match choose(&everywhere(image), "image", variant)? {
        Some(tensors) => Ok(tensors),
        None => Err(TensorError::NoTensors { place: "image".into() }.into()),
    }
}

/// The tensors of one file, of a checkpoint, or of the one set in a directory. Numbered shards are named by
/// what errors call them, with a `*` in place of the number.
pub(crate) fn tensors_at(image: &Image, path: &[u8], variant: Option<&str>) -> Result<Tensors> {
    let entry = match image.entry(path) {
        Err(error @ Error::NotFound { .. }) => return shards_at(image, path)?.ok_or(error),
        found => found?,
    };
    if entry.file_type() == FileType::Directory {
        let place = escaped(path);
        let tensors = choose(&in_directory(&entry), &place, variant)?;
        return tensors.ok_or_else(|| TensorError::NoTensors { place }.into());
    }
    let file = entry.file()?;
    if variant.is_some() {
        return Err(TensorError::VariantOfFile { file: escaped(path) }.into());
    }
    if is_checkpoint(path) { tensors_of_checkpoint(&file, parent(path)) } else { tensors_of_file(&file) }
}

/// The shards that a path with a `*` means.
fn shards_at(image: &Image, path: &[u8]) -> Result<Option<Tensors>> {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if !name.windows(5).any(|window| window == b"*-of-") {
        return Ok(None);
    }
    let Ok(directory) = image.entry(parent(path)) else { return Ok(None) };
    let sets = in_directory(&directory);
    let found = sets.shards.values().find(|set| set.pattern().ends_with(name) && set.name() == name);
    found.map(tensors_of_shards).transpose()
}

/// Numbered shards in a directory that no list joins, set by set: how errors call them, and their tensors, if all shards
/// are there and sound. Where there is a list of shards, it is the list that says what belongs together, and this is
/// empty.
pub fn shard_sets(directory: &Entry) -> Vec<(String, Result<Tensors>)> {
    let sets = in_directory(directory);
    if sets.files.iter().any(|found| found.list) {
        return Vec::new();
    }
    sets.shards.values().map(|set| (set.label(), tensors_of_shards(set))).collect()
}

/// True for names of lists of shards: `*.safetensors.index.json`, and those of variants.
pub fn is_checkpoint(path: &[u8]) -> bool {
    listed_kind(path).is_some()
}

/// The format of the shards that the name of a list of shards promises; `None` for the names of other files.
pub fn listed_kind(path: &[u8]) -> Option<ContainerKind> {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    SetName::parse(name).filter(|name| name.kind == Kind::Checkpoint).map(|name| name.container)
}

/// A list of shards, or a whole set.
struct Found {
    entry: Entry,
    file: File,
    list: bool,
}

/// Numbered shards of one set.
struct ShardSet {
    directory: Entry,
    /// By number; the first of each.
    shards: BTreeMap<u32, (Entry, File)>,
    /// The first shard that has the number of another one and is another file.
    second: Option<(u32, Entry, u64)>,
}

/// What was found in a place.
#[derive(Default)]
struct Sets {
    files: Vec<Found>,
    /// By directory, what is around the number in their names, and the count with its digits.
    shards: BTreeMap<ShardKey, ShardSet>,
    /// Names of one inode (hard links, symbolic links) are one candidate; those of a list only in one directory, of
    /// which this has the inode, since its shards are relative to that.
    inodes: HashSet<(u64, Option<u64>)>,
}

type ShardKey = (u64, Vec<u8>, Vec<u8>, u32, usize);

impl ShardSet {
    /// The name of the shards, with a `*` for their numbers.
    fn name(&self) -> Vec<u8> {
        let Some((entry, _)) = self.shards.values().next() else { return Vec::new() };
        match SetName::parse(entry.name()).map(|name| name.kind) {
            Some(Kind::Shard { count, before, behind, count_width, .. }) => {
                [before, b"-*-of-", format!("{count:0count_width$}").as_bytes(), behind].concat()
            }
            _ => Vec::new(),
        }
    }

    /// The same as an absolute path.
    fn pattern(&self) -> Vec<u8> {
        let mut path = self.directory.path();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend(self.name());
        path
    }

    fn label(&self) -> String {
        escaped(&self.pattern())
    }

    /// The error that names the missing shards.
    fn incomplete(&self) -> Option<TensorError> {
        let (entry, _) = self.shards.values().next()?;
        let name = SetName::parse(entry.name())?;
        let Kind::Shard { count, width, .. } = name.kind else { return None };
        let here = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        let absent = count.checked_sub(here).filter(|absent| *absent > 0)?;
        let missing = (1..=count).filter(|number| !self.shards.contains_key(number)).take(MISSING);
        let missing = missing.map(|number| format!("{number:0width$}")).collect();
        Some(TensorError::IncompleteShards { set: self.label(), missing, absent, count })
    }

    /// The error that names two files of one number, such as `m-1-of-2` and `m-01-of-2`.
    fn ambiguous(&self) -> Option<TensorError> {
        let (number, second, _) = self.second.as_ref()?;
        let (first, _) = self.shards.get(number)?;
        let paths = [first, second].map(|entry| escaped(&entry.path())).into();
        Some(TensorError::Ambiguous { place: self.label(), count: 2, paths, variants: Vec::new() })
    }

    /// What tells sets of the same shards apart from others: two revisions of a Hugging Face cache link to one blob.
    fn inodes(&self) -> Vec<u64> {
        let second = self.second.iter().map(|(.., ino)| *ino);
        self.shards.values().map(|(_, file)| file.ino()).chain(second).collect()
    }
}

impl Sets {
    fn add(&mut self, entry: Entry) {
        let Some(name) = SetName::parse(entry.name()) else { return };
        // A link that leads nowhere, or to a directory, is no candidate.
        let Ok(file) = entry.followed().and_then(|target| target.file()) else { return };
        if let Kind::Shard { number, count, before, behind, count_width, .. } = name.kind {
            let directory = entry.parent().unwrap_or_else(|| entry.clone());
            let key = (directory.metadata().ino, before.to_vec(), behind.to_vec(), count, count_width);
            let set = self.shards.entry(key);
            let set = set.or_insert_with(|| ShardSet { directory, shards: BTreeMap::new(), second: None });
            match set.shards.entry(number) {
                btree_map::Entry::Vacant(place) => {
                    place.insert((entry, file));
                }
                btree_map::Entry::Occupied(first) if first.get().1.ino() != file.ino() => {
                    set.second.get_or_insert((number, entry, file.ino()));
                }
                btree_map::Entry::Occupied(_) => (),
            }
            return;
        }
        let list = name.kind == Kind::Checkpoint;
        let directory = if list { entry.parent().map(|parent| parent.metadata().ino) } else { None };
        if self.inodes.insert((file.ino(), directory)) {
            self.files.push(Found { entry, file, list });
        }
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.shards.is_empty()
    }
}

/// Names that begin with a dot are left out where others are.
fn in_directory(directory: &Entry) -> Sets {
    let mut sets = Sets::default();
    directory.children().filter(|entry| !is_hidden(entry)).for_each(|entry| sets.add(entry));
    if sets.is_empty() {
        directory.children().filter(is_hidden).for_each(|entry| sets.add(entry));
    }
    sets
}

fn everywhere(image: &Image) -> Sets {
    let (mut sets, mut hidden) = (Sets::default(), Sets::default());
    let mut pending = vec![(image.root(), false)];
    while let Some((entry, is_below_hidden)) = pending.pop() {
        let is_hidden = is_below_hidden || is_hidden(&entry);
        if entry.file_type() == FileType::Directory {
            pending.extend(entry.children().rev().map(|child| (child, is_hidden)));
        } else if is_hidden {
            hidden.add(entry);
        } else {
            sets.add(entry);
        }
    }
    if sets.is_empty() { hidden } else { sets }
}

fn is_hidden(entry: &Entry) -> bool {
    entry.name().starts_with(b".") || is_leftover(entry.name())
}

/// A candidate: a file, or numbered shards.
#[derive(Clone, Copy)]
enum Candidate<'a> {
    File(&'a Found),
    Shards(&'a ShardSet),
}

impl<'a> Candidate<'a> {
    /// An entry with the name of the set.
    fn entry(self) -> Option<&'a Entry> {
        match self {
            Self::File(found) => Some(&found.entry),
            Self::Shards(set) => set.shards.values().next().map(|(entry, _)| entry),
        }
    }

    fn name(self) -> Option<SetName<'a>> {
        SetName::parse(self.entry()?.name())
    }

    fn is_list(self) -> bool {
        matches!(self, Self::File(found) if found.list)
    }

    /// Inode of a list; 0 for others.
    fn list_ino(self) -> u64 {
        match self {
            Self::File(found) if found.list => found.file.ino(),
            _ => 0,
        }
    }

    /// Inode of its directory: what variants have in common.
    fn directory(self) -> u64 {
        self.entry().and_then(Entry::parent).map_or(0, |parent| parent.metadata().ino)
    }

    fn path(self) -> String {
        match self {
            Self::File(found) => escaped(&found.entry.path()),
            Self::Shards(set) => set.label(),
        }
    }

    fn open(self) -> Result<Tensors> {
        match self {
            Self::File(Found { entry, file, list: true }) => {
                let path = entry.path();
                tensors_of_checkpoint(file, parent(&path))
            }
            Self::File(found) => tensors_of_container(&found.file),
            Self::Shards(set) => tensors_of_shards(set),
        }
    }
}

/// The one set that is meant.
fn choose(sets: &Sets, place: &str, variant: Option<&str>) -> Result<Option<Tensors>> {
    let mut seen = HashSet::new();
    let shards = sets.shards.values().filter(|set| seen.insert(set.inodes()));
    let files = sets.files.iter().map(Candidate::File);
    let mut candidates: Vec<Candidate<'_>> = files.chain(shards.map(Candidate::Shards)).collect();
    let variant_of =
        |candidate: &Candidate<'_>| candidate.name().and_then(|name| name.variant.map(str::to_owned));
    match variant {
        Some(variant) if !candidates.is_empty() => {
            let mut known: Vec<String> = candidates.iter().filter_map(variant_of).collect();
            candidates.retain(|candidate| candidate.name().is_some_and(|name| name.variant == Some(variant)));
            if candidates.is_empty() {
                known.sort();
                known.dedup();
                return Err(
                    TensorError::NoVariant { place: place.into(), variant: variant.into(), known }.into()
                );
            }
        }
        _ => drop_variants(&mut candidates),
    }
    let rank = |candidate: &Candidate<'_>| candidate.name().map(|name| name.container.rank());
    let first = candidates.iter().filter_map(rank).min();
    candidates.retain(|candidate| rank(candidate) == first);
    if candidates.iter().any(|candidate| candidate.is_list()) {
        candidates.retain(|candidate| candidate.is_list());
        drop_same_lists(&mut candidates)?;
    }
    match candidates.as_slice() {
        [] => Ok(None),
        [one] => one.open().map(Some),
        several => {
            let paths = several.iter().take(LISTED).map(|candidate| candidate.path()).collect();
            let mut variants: Vec<String> = several.iter().filter_map(variant_of).collect();
            variants.sort();
            variants.dedup();
            // Only variants of one stem in one directory can be told apart by their variant.
            let stems: HashSet<_> =
                several.iter().map(|c| (c.directory(), c.name().map(|n| n.stem))).collect();
            if variants.len() != several.len() || stems.len() != 1 {
                variants.clear();
            }
            let (place, count) = (place.into(), several.len());
            Err(TensorError::Ambiguous { place, count, paths, variants }.into())
        }
    }
}

/// Leaves out lists that say the same of the same files as another name of the list does: two revisions of a Hugging
/// Face cache. The same list may mean other shards in another directory.
fn drop_same_lists(candidates: &mut Vec<Candidate<'_>>) -> Result<()> {
    let mut names: HashMap<u64, usize> = HashMap::new();
    for candidate in &*candidates {
        let count = names.entry(candidate.list_ino()).or_default();
        *count = count.saturating_add(1);
    }
    // What the first name of each means; nothing when its shards are not all there.
    let mut firsts: HashMap<u64, Option<Tensors>> = HashMap::new();
    let mut kept = Vec::with_capacity(candidates.len());
    for candidate in candidates.drain(..) {
        let ino = candidate.list_ino();
        if names.get(&ino).is_some_and(|count| *count > 1) {
            let tensors = match candidate.open() {
                Ok(tensors) => Some(tensors),
                Err(Error::Tensor(_)) => None,
                Err(error) => return Err(error),
            };
            match (firsts.get(&ino), tensors) {
                (None, tensors) => {
                    firsts.insert(ino, tensors);
                }
                (Some(Some(first)), Some(tensors)) if same_tensors(first, &tensors)? => continue,
                _ => (),
            }
        }
        kept.push(candidate);
    }
    *candidates = kept;
    Ok(())
}

/// The same names in the same files.
fn same_tensors(left: &Tensors, right: &Tensors) -> Result<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right.iter()) {
        let (left, right) = (left?, right?);
        if left.name() != right.name() || left.file().ino() != right.file().ino() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Leaves out what is a variant of another candidate in its directory.
fn drop_variants(candidates: &mut Vec<Candidate<'_>>) {
    let whole_stem = |name: &SetName<'_>| match name.variant {
        Some(variant) => [name.stem, b".", variant.as_bytes()].concat(),
        None => name.stem.to_vec(),
    };
    let key = |candidate: &Candidate<'_>, name: &SetName<'_>, stem: Vec<u8>| {
        (candidate.directory(), name.container.code(), stem)
    };
    let stems: HashSet<(u64, u32, Vec<u8>)> = candidates
        .iter()
        .filter_map(|candidate| candidate.name().map(|name| key(candidate, &name, whole_stem(&name))))
        .collect();
    candidates.retain(|candidate| match candidate.name() {
        Some(name) if name.variant.is_some() => !stems.contains(&key(candidate, &name, name.stem.to_vec())),
        _ => true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_known_by_their_names() {
        assert!(is_checkpoint(b"/m/model.safetensors.index.json"));
        assert!(is_checkpoint(b"/m/model.safetensors.index.fp16.json"));
        assert!(!is_checkpoint(b"model.safetensors"));
        assert!(!is_checkpoint(b"index.json"));
    }
}
