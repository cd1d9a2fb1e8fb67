//! Headers and checkpoints that were parsed, once per place of an image where one lies.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::TensorError;
use super::error::escaped;
use super::header::Header;
use super::shards::Checkpoint;
use crate::{Error, File, Result};

/// What an image remembers of its tensors. Nothing in it refers to the image, so that it cannot keep it alive.
#[derive(Debug, Default)]
pub(crate) struct TensorCache {
    /// By the place of the file's bytes, and the code of the container that they were taken for.
    pub(super) headers: Parsed<(Place, u32), Header>,
    /// By inode number of the JSON file and the directory that its shards are relative to.
    pub(super) checkpoints: Parsed<(u64, Vec<u8>), Checkpoint>,
    /// Shards without a JSON file, by the inode numbers of all of them and the directory that they lie in.
    pub(super) joined: Parsed<(Vec<u64>, Vec<u8>), Checkpoint>,
}

/// Where the bytes of a file lie: files that share them have one header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Offset and length in the image.
    Image(u64, u64),
    /// Offset and length in the backing file.
    Backing(u64, u64),
    /// Elsewhere or in pieces: by inode number.
    Inode(u64),
}

impl Place {
    pub(crate) fn of(file: &File) -> Self {
        match file.extent() {
            Some(extent) if file.is_backed() => Self::Backing(extent.offset, extent.len),
            Some(extent) => Self::Image(extent.offset, extent.len),
            None => Self::Inode(file.ino()),
        }
    }
}

/// What parsing gave: the value, or what is wrong, without the name of the file that it was found in.
type Outcome<V> = std::result::Result<Arc<V>, Arc<TensorError>>;

/// Values that are made once and shared, and faults that are found once.
#[derive(Debug)]
pub(super) struct Parsed<K, V>(Mutex<HashMap<K, Outcome<V>>>);

impl<K, V> Default for Parsed<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Parsed<K, V> {
    /// The value for `key`, parsed now if it is not there yet. What is wrong with the bytes is remembered as well, and
    /// said of each file that they belong to; other failures are not. `path` names the file in errors.
    ///
    /// The lock is not held while parsing: two threads may parse the same file, and both get the first result.
    pub(super) fn get_or_parse(
        &self,
        key: K,
        path: impl Fn() -> Vec<u8>,
        parse: impl FnOnce() -> Result<V>,
    ) -> Result<Arc<V>> {
        let known = self.lock().get(&key).cloned();
        let outcome = match known {
            Some(outcome) => outcome,
            None => {
                let outcome = match parse() {
                    Ok(value) => Ok(Arc::new(value)),
                    Err(Error::Tensor(TensorError::InFile { file, fault })) if file == escaped(&path()) => {
                        Err(fault)
                    }
                    Err(error) => return Err(error),
                };
                self.lock().entry(key).or_insert(outcome).clone()
            }
        };
        outcome.map_err(|fault| TensorError::InFile { file: escaped(&path()), fault }.into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Outcome<V>>> {
        // A map is whole between any two of our calls, also after a panic of another thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorError;

    #[test]
    fn parses_once_and_remembers_what_is_wrong_with_the_bytes() {
        let cache = Parsed::<u64, u32>::default();
        let path = || b"/a".to_vec();
        // A limit, or memory that is not there: the next try may go well.
        let failure = cache.get_or_parse(1, path, || Err(TensorError::TooShort { len: 0 }.into()));
        assert!(failure.is_err());
        let first = cache.get_or_parse(1, path, || Ok(7)).unwrap();
        let second = cache.get_or_parse(1, path, || panic!("parsed twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*cache.get_or_parse(2, path, || Ok(8)).unwrap(), 8);
        let fault = || Err(TensorError::TooShort { len: 3 }.in_file(b"/a").into());
        let first = cache.get_or_parse(3, path, fault).unwrap_err().to_string();
        let other = cache.get_or_parse(3, || b"/b".to_vec(), || panic!("parsed twice")).unwrap_err();
        assert!(first.starts_with("/a: 3 bytes") && other.to_string().starts_with("/b: 3 bytes"));
    }

    #[test]
    fn a_panic_while_parsing_leaves_the_cache_usable() {
        let cache = Parsed::<u64, u32>::default();
        let parse = || cache.get_or_parse(1, Vec::new, || panic!("parser"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse)).is_err());
        assert_eq!(*cache.get_or_parse(1, Vec::new, || Ok(7)).unwrap(), 7);
    }
}
