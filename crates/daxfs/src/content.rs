//! The content hash: one BLAKE3 over all names and contents of an image. What it covers is described in
//! [`crate::format::index`].

#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::error::Error;
use crate::format::index::{CONTENT_PREFIX, DIR};
use crate::{Entry, File, FileType, Image};

/// Builds a content hash from names in bytewise order of their absolute paths.
#[derive(Debug, Clone)]
pub struct ContentHasher(blake3::Hasher);

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHasher {
    /// Of nothing yet.
    pub fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(CONTENT_PREFIX);
        Self(hasher)
    }

    /// Whether the content hash covers a path: everything but `/.daxfs` and what is in it.
    pub fn covers(path: &[u8]) -> bool {
        let rest = path.strip_prefix(b"/").and_then(|path| path.strip_prefix(DIR.as_bytes()));
        rest.is_none_or(|rest| !rest.is_empty() && !rest.starts_with(b"/"))
    }

    /// Adds a name of a regular file: its absolute path, its bytes, their BLAKE3.
    pub fn file(&mut self, path: &[u8], size: u64, hash: &[u8; 32]) {
        self.name(b'f', path, size, hash);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &[u8], target: &[u8]) {
        self.name(b'l', path, target.len() as u64, blake3::hash(target).as_bytes());
    }

    fn name(&mut self, kind: u8, path: &[u8], size: u64, hash: &[u8; 32]) {
        self.0.update(&[kind]);
        self.0.update(&(path.len() as u64).to_le_bytes());
        self.0.update(path);
        self.0.update(&size.to_le_bytes());
        self.0.update(hash);
    }

    /// The hash.
    pub fn finish(&self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// Reads a content hash as people write it: 64 hexadecimal digits, with or without `blake3:` before them. `None` for
/// anything else.
///
/// ```
/// let hash = daxfs::parse_content_hash(&format!("blake3:{}", "0f".repeat(32)));
/// assert_eq!(hash, Some([0x0f; 32]));
/// assert_eq!(daxfs::parse_content_hash("blake3:0f"), None);
/// ```
pub fn parse_content_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("blake3:").unwrap_or(text);
    let mut digits =
        digits.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let mut hash = [0; 32];
    for byte in &mut hash {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    digits.next().is_none().then_some(hash)
}

/// Hashes every file of an image now, each inode once, and all of it together. `each` gets every hashed file and may
/// end the work with an error.
///
/// # Errors
/// [`Error::NoContents`] as `E`, or what `each` returns.
pub fn content_hash<E: From<Error>>(
    image: &Image,
    mut each: impl FnMut(&File, [u8; 32]) -> Result<(), E>,
) -> Result<[u8; 32], E> {
    let mut known: HashMap<u64, [u8; 32]> = HashMap::new();
    content_hash_by(image, |file| match known.get(&file.ino()) {
        Some(hash) => Ok(*hash),
        None => {
            let hash = file.hash()?;
            each(file, hash)?;
            known.insert(file.ino(), hash);
            Ok(hash)
        }
    })
}

/// The content hash of an image from the hashes of its files, which `hash` gives for every name.
pub(crate) fn content_hash_by<E: From<Error>>(
    image: &Image,
    mut hash: impl FnMut(&File) -> Result<[u8; 32], E>,
) -> Result<[u8; 32], E> {
    let mut hasher = ContentHasher::new();
    in_order(image, |path, entry| {
        match entry.file_type() {
            _ if !ContentHasher::covers(path) => {}
            FileType::Symlink => hasher.link(path, entry.read_link()?),
            FileType::File => {
                let file = entry.file()?;
                hasher.file(path, file.len(), &hash(&file)?);
            }
            _ => {}
        }
        Ok::<_, E>(())
    })?;
    Ok(hasher.finish())
}

/// Calls `each` with all that is no directory, in bytewise order of the absolute paths. These are made one by one: in a
/// tree that is made to be deep they are together far longer than the image.
fn in_order<E>(image: &Image, mut each: impl FnMut(&[u8], &Entry) -> Result<(), E>) -> Result<(), E> {
    // What is in a directory is ordered among its neighbours by the slash behind its name.
    let key = |entry: &Entry| {
        let slash: &[u8] = if entry.file_type() == FileType::Directory { b"/" } else { b"" };
        [entry.name(), slash].concat()
    };
    let sorted = |directory: &Entry| {
        let mut entries: Vec<_> = directory.children().collect();
        entries.sort_by_cached_key(key);
        entries.into_iter()
    };
    let mut path = Vec::new();
    // Entries that are left of a directory, and the bytes of its path.
    let mut levels = vec![(sorted(&image.root()), 0)];
    while let Some((entries, len)) = levels.last_mut() {
        path.truncate(*len);
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        path.push(b'/');
        path.extend_from_slice(entry.name());
        if entry.file_type() == FileType::Directory {
            levels.push((sorted(&entry), path.len()));
        } else {
            each(&path, &entry)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::test_image::TestImage;

    #[test]
    fn names_come_in_the_order_of_their_paths() {
        let paths =
            ["/b/c", "/a/b/c", "/a-", "/a.b", "/a.b.c/d", "/a.b.c/d.e", "/a0", "/c/z/a", "/c/z-", "/c0/a/a"];
        let image =
            paths.iter().fold(TestImage::new(), |image, path| image.file(path, path.as_bytes().to_vec()));
        let image = image.link("/a/link", "b/c").open();
        let mut found = Vec::new();
        in_order(&image, |path, entry| {
            assert_eq!(path, entry.path());
            found.push(path.to_vec());
            Ok::<_, Error>(())
        })
        .unwrap();
        let mut wanted: Vec<_> =
            image.walk().filter(|entry| entry.file_type() != FileType::Directory).map(|e| e.path()).collect();
        wanted.sort_unstable();
        assert_eq!((found.len(), &found), (11, &wanted));
    }

    #[test]
    fn covers_all_but_the_index_directory() {
        for path in ["/a", "/.daxfsx", "/a/.daxfs", "/a/.daxfs/index", "/"] {
            assert!(ContentHasher::covers(path.as_bytes()), "{path}");
        }
        for path in ["/.daxfs", "/.daxfs/index"] {
            assert!(!ContentHasher::covers(path.as_bytes()), "{path}");
        }
    }
}
