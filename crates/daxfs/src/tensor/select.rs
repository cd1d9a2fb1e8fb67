//! Which tensors are meant: by a file, by a path, or by a whole image.

use std::collections::HashSet;

use super::checkpoint::{self, Checkpoint, header_of};
use super::error::escaped;
use super::{TensorError, Tensors};
use crate::{Entry, Error, File, FileType, Image, Result};

/// How names of safetensors files end.
const SUFFIX: &str = ".safetensors";

/// How many candidates an error lists.
const LISTED: usize = 5;

/// The tensors of a file: a checkpoint if its name says so, else a safetensors file.
pub(crate) fn tensors_of_file(file: &File) -> Result<Tensors> {
    let path = file.path();
    if is_checkpoint(&path) {
        tensors_of_checkpoint(file, parent(&path))
    } else {
        tensors_of_safetensors(file)
    }
}

fn tensors_of_safetensors(file: &File) -> Result<Tensors> {
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
    let checkpoint = cache.checkpoints.get_or_parse(key, || Checkpoint::read(json, directory))?;
    Tensors::parsed_checkpoint(json.clone(), checkpoint)
}

/// The image's index; `None` also when a later packer wrote it, since the headers say the same.
fn usable_index(image: &Image) -> Result<Option<super::Index>> {
    match image.index() {
        Ok(index) => Ok(index.cloned()),
        Err(Error::UnsupportedVersion { .. } | Error::UnknownFlags { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The one set of tensors of an image: at its root, or anywhere if there is none at the root.
pub(crate) fn default_tensors(image: &Image) -> Result<Tensors> {
    if let Some(tensors) = choose(image.root().children(), "/")? {
        return Ok(tensors);
    }
    match choose(image.walk(), "image")? {
        Some(tensors) => Ok(tensors),
        None => Err(TensorError::NoTensors { place: "image".into() }.into()),
    }
}

/// The tensors of a safetensors file, of a checkpoint, or of the one set in a directory.
pub(crate) fn tensors_at(image: &Image, path: &[u8]) -> Result<Tensors> {
    let entry = image.entry(path)?;
    if entry.file_type() == FileType::Directory {
        let place = escaped(path);
        let tensors = choose(entry.children(), &place)?;
        return tensors.ok_or_else(|| TensorError::NoTensors { place }.into());
    }
    let file = entry.file()?;
    if is_checkpoint(path) { tensors_of_checkpoint(&file, parent(path)) } else { tensors_of_file(&file) }
}

/// The only checkpoint among `entries`, else the only safetensors file.
fn choose(entries: impl Iterator<Item = Entry>, place: &str) -> Result<Option<Tensors>> {
    let mut checkpoints = Candidates::default();
    let mut files = Candidates::default();
    for entry in entries {
        if is_checkpoint(entry.name()) {
            checkpoints.add(&entry);
        } else if entry.name().ends_with(SUFFIX.as_bytes()) {
            files.add(&entry);
        }
    }
    match (checkpoints.found.as_slice(), files.found.as_slice()) {
        ([(path, json)], _) => tensors_of_checkpoint(json, parent(path)).map(Some),
        ([], [(_, file)]) => tensors_of_safetensors(file).map(Some),
        ([], []) => Ok(None),
        ([], several) | (several, _) => {
            let paths = several.iter().take(LISTED).map(|(path, _)| escaped(path)).collect();
            Err(TensorError::Ambiguous { place: place.into(), count: several.len(), paths }.into())
        }
    }
}

/// Files by the paths that name them. Names of one inode (hard links, symbolic links) are one candidate.
#[derive(Default)]
struct Candidates {
    found: Vec<(Vec<u8>, File)>,
    inodes: HashSet<u64>,
}

impl Candidates {
    fn add(&mut self, entry: &Entry) {
        let path = entry.path();
        // A link that leads nowhere, or to a directory, is no candidate.
        let Ok(file) = entry.image().file(&path) else { return };
        if self.inodes.insert(file.ino()) {
            self.found.push((path, file));
        }
    }
}

fn is_checkpoint(path: &[u8]) -> bool {
    path.ends_with(checkpoint::SUFFIX.as_bytes())
}

/// The directory part of a path, without the last slash.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    &path[..slash.unwrap_or(0)]
}

/// Paths from the root, with or without a slash at their ends.
pub(super) fn same_directory(left: &[u8], right: &[u8]) -> bool {
    let trim = |path: &[u8]| -> Vec<u8> {
        let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
        parts.flat_map(|part| part.iter().chain(b"/")).copied().collect()
    };
    trim(left) == trim(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_directories() {
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"/b"), b"");
        assert_eq!(parent(b"b"), b"");
        assert!(same_directory(b"/a//b", b"a/b/"));
        assert!(same_directory(b"", b"/"));
        assert!(!same_directory(b"/a/b", b"/ab"));
        assert!(!same_directory(b"/a", b"/"));
    }

    #[test]
    fn checkpoints_are_known_by_their_names() {
        assert!(is_checkpoint(b"/m/model.safetensors.index.json"));
        assert!(!is_checkpoint(b"model.safetensors"));
        assert!(!is_checkpoint(b"index.json"));
    }
}
