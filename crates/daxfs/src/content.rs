//! The content hash: one BLAKE3 over all names and contents of an image, and over the records of its index. What it
//! covers, and how, is described in [`crate::format::index`].

#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::format::erofs;
use crate::format::index::{CONFIG_HASHED_NAME, CONFIG_MOST, CONFIG_NAME, CONTENT_PREFIX, DIR, NAME, v1};
use crate::tensor::error::escaped;
use crate::tensor::{Place, TensorError};
use crate::verify::Hashes;
use crate::{ContentHash, Entry, File, FileType, Image};

/// What the hash of a file costs while it is read from the index, and afterwards.
const STATED_BYTES: u64 = size_of::<(u64, u64, [u8; 32])>() as u64 + size_of::<(u64, [u8; 32])>() as u64;

/// Builds the tree hash of one directory from its entries, which come in the order of their names (bytes).
#[derive(Debug, Clone, Default)]
pub struct DirectoryHasher(blake3::Hasher);

impl DirectoryHasher {
    /// Of no entries yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory by its own tree hash.
    pub fn directory(&mut self, name: &[u8], hash: &[u8; 32]) {
        self.name(b'd', name);
        self.0.update(hash);
    }

    /// Adds a regular file: its bytes, their BLAKE3.
    pub fn file(&mut self, name: &[u8], size: u64, hash: &[u8; 32]) {
        self.name(b'f', name);
        self.0.update(&size.to_le_bytes());
        self.0.update(hash);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &[u8], target: &[u8]) {
        self.name(b'l', name);
        self.0.update(&(target.len() as u64).to_le_bytes());
        self.0.update(blake3::hash(target).as_bytes());
    }

    /// Adds a FIFO, socket or device node.
    pub fn special(&mut self, name: &[u8]) {
        self.name(b's', name);
    }

    fn name(&mut self, kind: u8, name: &[u8]) {
        self.0.update(&[kind]);
        // Names have at most 255 bytes.
        self.0.update(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.update(name);
    }

    /// The tree hash.
    pub fn finish(&self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The content hash of version 2 from the hash of the index's records and the tree hash of the root.
pub fn join_content_hash(records_hash: &[u8; 32], tree_hash: &[u8; 32]) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTENT_PREFIX).update(records_hash).update(tree_hash);
    <[u8; 32]>::from(hasher.finalize()).into()
}

/// Whether the tree hash covers a path: everything but `/.daxfs` and what is in it.
pub fn is_content(path: &[u8]) -> bool {
    let rest = path.strip_prefix(b"/").and_then(|path| path.strip_prefix(DIR.as_bytes()));
    rest.is_none_or(|rest| !rest.is_empty() && !rest.starts_with(b"/"))
}

/// What is in the place of the index, `/.daxfs`, and is neither the index, nor the EROFS view, nor a configuration that the
/// content hash covers: [`is_content`] is false of it, so that no hash covers it, and nothing may be there. An image with a
/// content to rely on has none. Nor does a hash cover the view, which [`Image::check_erofs`] compares.
pub fn beside_index(image: &Image) -> impl Iterator<Item = Entry> + use<> {
    let place = image.root().child(DIR);
    // In the stead of the directory a link or a file is left out of hashes just so.
    let (directory, other) = match place {
        Some(place) if place.file_type() == FileType::Directory => (Some(place), None),
        other => (None, other),
    };
    let children = directory.into_iter().flat_map(|directory| directory.children());
    // The content hash of version 1 leaves the configuration out.
    let covers_config = !matches!(image.index(), Ok(Some(index)) if index.records_hash().is_none())
        && config(image).is_some();
    let is_own = move |child: &Entry| {
        let name = child.name();
        let is_config = covers_config && name == CONFIG_NAME.as_bytes();
        (name == NAME.as_bytes() || name == erofs::NAME.as_bytes() || is_config)
            && child.file_type() == FileType::File
    };
    other.into_iter().chain(children.filter(move |child| !is_own(child)))
}

/// The configuration of the container image that an image was packed from: a file of no more than [`CONFIG_MOST`] bytes.
pub(crate) fn config(image: &Image) -> Option<File> {
    let file = image.root().child(DIR)?.child(CONFIG_NAME)?.file().ok()?;
    (file.len() <= CONFIG_MOST).then_some(file)
}

/// Hashes every file of an image now, each stretch of the image once, and all of it together, as the version of its
/// index says. `each` gets every inode's file and may end the work with an error.
///
/// # Errors
/// [`Error::NoContents`] and [`Error::FilesOverlap`] as `E`, or what `each` returns.
pub fn content_hash<E: From<Error>>(
    image: &Image,
    mut each: impl FnMut(&File, [u8; 32]) -> Result<(), E>,
) -> Result<ContentHash, E> {
    let mut inodes: HashMap<u64, [u8; 32]> = HashMap::new();
    // Files that share their bytes are read once.
    let mut places: HashMap<Place, [u8; 32]> = HashMap::new();
    let memory = image.region().len().saturating_add(image.backing().map_or(0, crate::Region::len));
    let mut total = 0_u64;
    content_hash_by(image, |file| match inodes.get(&file.ino()) {
        Some(hash) => Ok(*hash),
        None => {
            let place = Place::of(file);
            let hash = match places.get(&place) {
                Some(hash) => *hash,
                None => {
                    total = total.saturating_add(file.len());
                    // Files that overlap would be more to hash than an honest image has.
                    if total > memory.saturating_mul(2) {
                        return Err(Error::FilesOverlap { total, memory }.into());
                    }
                    file.hash()?
                }
            };
            places.insert(place, hash);
            each(file, hash)?;
            inodes.insert(file.ino(), hash);
            Ok(hash)
        }
    })
}

/// The content hash of an image from the hashes of its files, which `hash` gives for every name. The records of an
/// index of version 2 are covered as they lie in the memory, by the hashes in its table.
///
/// # Errors
/// What `hash` returns; [`Error::MetadataLimit`] where the paths that version 1 covers are too long together.
pub fn content_hash_by<E: From<Error>>(
    image: &Image,
    hash: impl FnMut(&File) -> Result<[u8; 32], E>,
) -> Result<ContentHash, E> {
    match image.index() {
        Ok(Some(index)) => match index.records_hash() {
            Some(records) => Ok(join_content_hash(&records, &tree_hash(image, hash)?)),
            None => paths_hash(image, hash),
        },
        _ => Ok(join_content_hash(&[0; 32], &tree_hash(image, hash)?)),
    }
}

/// What the image is, if it is what it says: its content hash from its names, its links and the records of its index,
/// which are proven, and from the hashes of the files that the index holds, which are not compared with the files. With
/// it come these hashes.
///
/// # Errors
/// What is wrong with the index; see [`Index::check`].
pub(crate) fn stated_content(image: &Image) -> Result<Option<(ContentHash, Hashes)>> {
    let Some(index) = image.index()?.filter(|index| index.has_hashes()) else { return Ok(None) };
    index.check(image)?;
    if let Some(other) = beside_index(image).next() {
        let (place, rule) = (
            "directory".into(),
            "/.daxfs must hold the index, the EROFS view, a configuration and nothing else",
        );
        return Err(TensorError::Index { place, rule, found: escaped(&other.path()) }.into());
    }
    image.check_erofs()?;
    image.charge("hashes of the index", u64::from(index.file_count()).saturating_mul(STATED_BYTES))?;
    let mut hashes = Vec::new();
    for record in index.files() {
        let record = record?;
        hashes.push((record.ino, record.size, record.hash.unwrap_or_default()));
    }
    // As the search of readers finds them: a file whose record it misses has none.
    let content = content_hash_by(image, |file| {
        let found = hashes.binary_search_by_key(&file.ino(), |(ino, ..)| *ino);
        match found.map(|at| hashes[at]) {
            Ok((_, size, hash)) if size == file.len() => Ok(hash),
            _ => Err(unlisted(file)),
        }
    })?;
    Ok(Some((content, Hashes::new(hashes.into_iter().map(|(ino, _, hash)| (ino, hash)).collect()))))
}

fn unlisted(file: &File) -> Error {
    TensorError::IndexMismatch {
        file: escaped(&file.path()),
        what: "size".into(),
        index: "no record, or another size".into(),
        header: format!("{} bytes", file.len()),
    }
    .into()
}

/// The tree hash of the root. Directories are done from the deepest up, without recursion.
fn tree_hash<E: From<Error>>(
    image: &Image,
    mut hash: impl FnMut(&File) -> Result<[u8; 32], E>,
) -> Result<[u8; 32], E> {
    let sorted = |directory: &Entry| {
        let mut entries: Vec<_> = directory.children().collect();
        entries.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        entries.into_iter()
    };
    let root = image.root();
    let mut levels = vec![(sorted(&root), DirectoryHasher::new(), root)];
    loop {
        let depth = levels.len();
        let Some((entries, hasher, directory)) = levels.last_mut() else {
            return Ok(DirectoryHasher::new().finish());
        };
        let Some(entry) = entries.next() else {
            if depth == 1
                && let Some(config) = config(image)
            {
                // Small, and in no list of files.
                hasher.file(CONFIG_HASHED_NAME, config.len(), &config.hash()?);
            }
            let (name, hash) = (directory.name().to_vec(), hasher.finish());
            levels.pop();
            match levels.last_mut() {
                Some((_, parent, _)) => parent.directory(&name, &hash),
                None => return Ok(hash),
            }
            continue;
        };
        if depth == 1 && entry.name() == DIR.as_bytes() {
            continue;
        }
        match entry.file_type() {
            FileType::Directory => levels.push((sorted(&entry), DirectoryHasher::new(), entry)),
            FileType::Symlink => hasher.link(entry.name(), entry.read_link()?),
            FileType::Special => hasher.special(entry.name()),
            FileType::File => {
                let file = entry.file()?;
                hasher.file(entry.name(), file.len(), &hash(&file)?);
            }
        }
    }
}

/// The content hash of version 1, over whole paths.
fn paths_hash<E: From<Error>>(
    image: &Image,
    mut hash: impl FnMut(&File) -> Result<[u8; 32], E>,
) -> Result<ContentHash, E> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(v1::CONTENT_PREFIX);
    let (mut total, limit) = (0u64, image.options().metadata_bound());
    image.root().each_below(|path, entry| {
        if entry.file_type() == FileType::Directory {
            return Ok(());
        }
        // Paths are not stored: in a tree that is made to be deep they are together far longer than the image.
        total = total.saturating_add(path.len() as u64);
        if total > limit {
            let place = "content hash of version 1: paths".to_owned();
            return Err(Error::MetadataLimit { place, needed: total, limit }.into());
        }
        let mut name = |kind: u8, size: u64, hash: &[u8; 32]| {
            hasher.update(&[kind]).update(&(path.len() as u64).to_le_bytes()).update(path);
            hasher.update(&size.to_le_bytes()).update(hash);
        };
        match entry.file_type() {
            _ if !is_content(path) => {}
            FileType::Symlink => {
                let target = entry.read_link()?;
                name(b'l', target.len() as u64, blake3::hash(target).as_bytes());
            }
            FileType::File => {
                let file = entry.file()?;
                name(b'f', file.len(), &hash(&file)?);
            }
            _ => {}
        }
        Ok::<_, E>(())
    })?;
    Ok(<[u8; 32]>::from(hasher.finalize()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_all_but_the_index_directory() {
        for path in ["/a", "/.daxfsx", "/a/.daxfs", "/a/.daxfs/index", "/"] {
            assert!(is_content(path.as_bytes()), "{path}");
        }
        for path in ["/.daxfs", "/.daxfs/index"] {
            assert!(!is_content(path.as_bytes()), "{path}");
        }
    }
}
