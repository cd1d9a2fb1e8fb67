//! The content hash: one BLAKE3 over all names and contents of an image. What it covers is described in
//! [`crate::format::index`].

#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::error::Error;
use crate::format::index::{CONTENT_PREFIX, DIR};
use crate::{File, FileType, Image};

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
    let mut names: Vec<_> = image
        .walk()
        .filter(|entry| matches!(entry.file_type(), FileType::File | FileType::Symlink))
        .map(|entry| (entry.path(), entry))
        .filter(|(path, _)| ContentHasher::covers(path))
        .collect();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut hasher = ContentHasher::new();
    for (path, entry) in &names {
        if entry.file_type() == FileType::Symlink {
            hasher.link(path, entry.read_link()?);
            continue;
        }
        let file = entry.file()?;
        hasher.file(path, file.len(), &hash(&file)?);
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

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
