//! Tensors of several files under one set of names: what a checkpoint promised, or what numbered shards have.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::Arc;

use super::error::escaped;
use super::header::Header;
use super::{TensorError, TensorInfo};
use crate::{File, Image, Result};

/// A checkpoint whose shards were found and whose promises were checked.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Paths of the shards in the image, with their headers.
    shards: Vec<(Vec<u8>, Arc<Header>)>,
    /// Tensors sorted by name: shard, and position in [`Header::all`].
    entries: Vec<(usize, usize)>,
}

impl Checkpoint {
    /// Of entries that are sorted by the names of their tensors, each name once.
    pub(super) fn new(shards: Vec<(Vec<u8>, Arc<Header>)>, entries: Vec<(usize, usize)>) -> Self {
        Self { shards, entries }
    }

    /// Of entries in any order.
    ///
    /// # Errors
    /// [`TensorError::TensorInTwoShards`].
    pub(super) fn joined(
        shards: Vec<(Vec<u8>, Arc<Header>)>,
        mut entries: Vec<(usize, usize)>,
    ) -> Result<Self, TensorError> {
        let mut joined = Self { shards, entries: Vec::new() };
        entries.sort_by(|&left, &right| joined.resolve(left).1.name.cmp(&joined.resolve(right).1.name));
        let twice = entries.windows(2).find(|pair| match *pair {
            [left, right] => joined.resolve(*left).1.name == joined.resolve(*right).1.name,
            _ => false,
        });
        if let Some(&[left, right]) = twice {
            let path = |entry: (usize, usize)| escaped(&joined.shards[entry.0].0);
            let tensor = joined.resolve(left).1.name.clone();
            return Err(TensorError::TensorInTwoShards { tensor, first: path(left), second: path(right) });
        }
        joined.entries = entries;
        Ok(joined)
    }

    /// The shards as files of `image`, which is the one that the checkpoint was read from.
    pub(super) fn files(&self, image: &Image) -> Result<Vec<File>> {
        self.shards.iter().map(|(path, _)| image.file(path)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `position`th tensor by name, and the number of its shard.
    pub(super) fn nth(&self, position: usize) -> Option<(usize, &Arc<TensorInfo>)> {
        self.entries.get(position).map(|&entry| self.resolve(entry))
    }

    pub(super) fn find(&self, name: &str) -> Option<(usize, &Arc<TensorInfo>)> {
        let by_name = |&entry: &(usize, usize)| self.resolve(entry).1.name.as_str().cmp(name);
        self.entries.binary_search_by(by_name).ok().and_then(|position| self.nth(position))
    }

    /// All tensors by name, with the numbers of their shards.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<TensorInfo>)> {
        self.entries.iter().map(|&entry| self.resolve(entry))
    }

    fn resolve(&self, (shard, position): (usize, usize)) -> (usize, &Arc<TensorInfo>) {
        (shard, &self.shards[shard].1.all()[position])
    }
}
