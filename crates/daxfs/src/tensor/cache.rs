//! Headers and checkpoints that were parsed, once per file of an image.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::checkpoint::Checkpoint;
use super::safetensors::Header;
use crate::Result;

/// What an image remembers of its tensors. Nothing in it refers to the image, so that it cannot keep it alive.
#[derive(Debug, Default)]
pub(crate) struct TensorCache {
    /// By inode number.
    pub(super) headers: Parsed<u64, Header>,
    /// By inode number of the JSON file and the directory that its shards are relative to.
    pub(super) checkpoints: Parsed<(u64, Vec<u8>), Checkpoint>,
}

/// Values that are made once and shared.
#[derive(Debug)]
pub(super) struct Parsed<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K, V> Default for Parsed<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Parsed<K, V> {
    /// The value for `key`, parsed now if it is not there yet. Failures are not remembered.
    ///
    /// The lock is not held while parsing: two threads may parse the same file, and both get the first result.
    pub(super) fn get_or_parse(&self, key: K, parse: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        if let Some(value) = self.lock().get(&key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(parse()?);
        Ok(Arc::clone(self.lock().entry(key).or_insert(value)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<V>>> {
        // A map is whole between any two of our calls, also after a panic of another thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorError;

    #[test]
    fn parses_once_and_forgets_failures() {
        let cache = Parsed::<u64, u32>::default();
        let failure = cache.get_or_parse(1, || Err(TensorError::TooShort { len: 0 }.into()));
        assert!(failure.is_err());
        let first = cache.get_or_parse(1, || Ok(7)).unwrap();
        let second = cache.get_or_parse(1, || panic!("parsed twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*cache.get_or_parse(2, || Ok(8)).unwrap(), 8);
    }

    #[test]
    fn a_panic_while_parsing_leaves_the_cache_usable() {
        let cache = Parsed::<u64, u32>::default();
        let parse = || cache.get_or_parse(1, || panic!("parser"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse)).is_err());
        assert_eq!(*cache.get_or_parse(1, || Ok(7)).unwrap(), 7);
    }
}
