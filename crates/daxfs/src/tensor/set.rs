//! One flat, sorted set of tensors.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::container::header_of;
use super::error::escaped;
use super::header::Header;
use super::metadata::Value;
use super::shards::Checkpoint;
use super::{Index, IndexedCheckpoint, IndexedFile, Tensor, TensorError};
use crate::format::index::FILLER_PREFIX;
use crate::nearest::{MOST, nearest};
use crate::{File, Image, Result};

/// Tensors by name: those of one file, or of all shards of a checkpoint.
///
/// Sorted by name (bytes). Filler tensors that the packer inserted for alignment are hidden. It holds the image;
/// cloning is cheap.
#[derive(Clone)]
pub struct Tensors(Source);

#[derive(Clone)]
enum Source {
    File {
        file: File,
        header: Arc<Header>,
    },
    Checkpoint {
        json: File,
        files: Arc<[File]>,
        checkpoint: Arc<Checkpoint>,
    },
    /// Numbered shards without a list, under the name that stands for all of them.
    Shards {
        label: Arc<str>,
        first: File,
        files: Arc<[File]>,
        checkpoint: Arc<Checkpoint>,
    },
    IndexedFile {
        index: Index,
        file: File,
        record: IndexedFile,
    },
    IndexedCheckpoint {
        index: Index,
        json: File,
        record: IndexedCheckpoint,
    },
}

impl Tensors {
    pub(super) fn parsed_file(file: File, header: Arc<Header>) -> Self {
        Self(Source::File { file, header })
    }

    pub(super) fn parsed_checkpoint(json: File, checkpoint: Arc<Checkpoint>) -> Result<Self> {
        let files = checkpoint.files(json.image())?.into();
        Ok(Self(Source::Checkpoint { json, files, checkpoint }))
    }

    /// Shards that were joined, in their order.
    pub(super) fn joined_shards(
        label: String,
        first: File,
        files: Vec<File>,
        checkpoint: Arc<Checkpoint>,
    ) -> Self {
        Self(Source::Shards { label: label.into(), first, files: files.into(), checkpoint })
    }

    /// The caller checked that the record's size is the file's.
    pub(super) fn indexed_file(index: Index, file: File, record: IndexedFile) -> Self {
        Self(Source::IndexedFile { index, file, record })
    }

    pub(super) fn indexed_checkpoint(index: Index, json: File, record: IndexedCheckpoint) -> Self {
        Self(Source::IndexedCheckpoint { index, json, record })
    }

    /// The file with the tensors, or the JSON file of the checkpoint, or the first of numbered shards.
    pub fn file(&self) -> &File {
        match &self.0 {
            Source::File { file, .. } | Source::IndexedFile { file, .. } => file,
            Source::Checkpoint { json, .. } | Source::IndexedCheckpoint { json, .. } => json,
            Source::Shards { first, .. } => first,
        }
    }

    /// The image that holds the tensors.
    pub fn image(&self) -> &Image {
        self.file().image()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::File { header, .. } => header.len(),
            Source::Checkpoint { checkpoint, .. } | Source::Shards { checkpoint, .. } => checkpoint.len(),
            Source::IndexedFile { record, .. } => record.tensors.len(),
            Source::IndexedCheckpoint { record, .. } => record.entries.len(),
        }
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor of this name, by binary search.
    ///
    /// # Errors
    /// [`TensorError::NoTensor`], which names the tensors that are like it; or [`TensorError::Index`] when a record of
    /// the index is wrong.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let missing = || {
            let file = match &self.0 {
                Source::Shards { label, .. } => label.to_string(),
                _ => escaped(&self.file().path()),
            };
            TensorError::NoTensor { name: name.into(), file, near: self.nearest(name) }.into()
        };
        self.find(name)?.ok_or_else(missing)
    }

    /// Names that are like one that is not there. Of very many, those that are sorted near it are looked at.
    fn nearest(&self, name: &str) -> Vec<String> {
        let half = MOST / 2;
        let first = if self.len() <= MOST { 0 } else { self.position(name).saturating_sub(half) };
        let names = (first..self.len())
            .map_while(|position| self.name_at(position, &mut Vec::new()).ok().flatten().map(str::to_owned));
        nearest(name, names)
    }

    /// Where the name would stand among the tensors; anywhere when records of the index are wrong.
    pub(super) fn position(&self, name: &str) -> usize {
        let (mut start, mut end, mut buffer) = (0, self.len(), Vec::new());
        while start < end {
            let middle = start.midpoint(end);
            match self.name_at(middle, &mut buffer) {
                Ok(Some(found)) if found < name => start = middle.saturating_add(1),
                _ => end = middle,
            }
        }
        start
    }

    /// The tensor of this name, by binary search, if there is one.
    ///
    /// # Errors
    /// [`TensorError::Index`] when a record of the index is wrong.
    pub fn find(&self, name: &str) -> Result<Option<Tensor>> {
        if name.starts_with(FILLER_PREFIX) {
            return Ok(None);
        }
        match &self.0 {
            Source::File { file, header } => {
                header.get(name).map(|info| Tensor::new(Arc::clone(info), file.clone())).transpose()
            }
            Source::Checkpoint { files, checkpoint, .. } | Source::Shards { files, checkpoint, .. } => {
                checkpoint
                    .find(name)
                    .and_then(|(shard, info)| Some((files.get(shard)?, info)))
                    .map(|(file, info)| Tensor::new(Arc::clone(info), file.clone()))
                    .transpose()
            }
            Source::IndexedFile { index, file, record } => {
                let info = index.find(record, name)?;
                info.map(|info| Tensor::new(Arc::new(info), file.clone())).transpose()
            }
            Source::IndexedCheckpoint { index, json, record } => {
                let Some((file, info)) = index.checkpoint_find(record, name)? else { return Ok(None) };
                Tensor::new(Arc::new(info), index.file_of(json.image(), &file)?).map(Some)
            }
        }
    }

    /// The `position`th tensor in the order of names; `None` behind the last.
    ///
    /// # Errors
    /// [`TensorError::Index`] when a record of the index is wrong.
    pub fn nth(&self, position: usize) -> Result<Option<Tensor>> {
        let Some(number) = u32::try_from(position).ok().filter(|_| position < self.len()) else {
            return Ok(None);
        };
        match &self.0 {
            Source::File { file, header } => {
                header.nth(position).map(|info| Tensor::new(Arc::clone(info), file.clone())).transpose()
            }
            Source::Checkpoint { files, checkpoint, .. } | Source::Shards { files, checkpoint, .. } => {
                checkpoint
                    .nth(position)
                    .and_then(|(shard, info)| Some((files.get(shard)?, info)))
                    .map(|(file, info)| Tensor::new(Arc::clone(info), file.clone()))
                    .transpose()
            }
            Source::IndexedFile { index, file, record } => {
                Tensor::new(Arc::new(index.tensor(record, number)?), file.clone()).map(Some)
            }
            Source::IndexedCheckpoint { index, json, record } => {
                let (file, info) = index.checkpoint_tensor(record, number)?;
                Tensor::new(Arc::new(info), index.file_of(json.image(), &file)?).map(Some)
            }
        }
    }

    /// The name alone of the `position`th tensor, read into the buffer where it lies in an index; `None` behind the last.
    pub(super) fn name_at<'a>(&'a self, position: usize, buffer: &'a mut Vec<u8>) -> Result<Option<&'a str>> {
        let Some(number) = u32::try_from(position).ok().filter(|_| position < self.len()) else {
            return Ok(None);
        };
        Ok(match &self.0 {
            Source::File { header, .. } => header.nth(position).map(|info| info.name.as_str()),
            Source::Checkpoint { checkpoint, .. } | Source::Shards { checkpoint, .. } => {
                checkpoint.nth(position).map(|(_, info)| info.name.as_str())
            }
            Source::IndexedFile { index, record, .. } => Some(index.tensor_name(record, number, buffer)?),
            Source::IndexedCheckpoint { index, record, .. } => {
                Some(index.checkpoint_name(record, number, buffer)?)
            }
        })
    }

    /// How long all names together can be.
    pub(super) fn bytes_for_names(&self) -> u64 {
        match &self.0 {
            Source::IndexedFile { index, .. } | Source::IndexedCheckpoint { index, .. } => index.size(),
            _ => u64::MAX,
        }
    }

    /// What the file says beside its tensors: the texts under `__metadata__` of a safetensors file, the keys and
    /// values of GGUF. For a checkpoint those of all shards together, where the first shard by name decides. Parses
    /// the headers, also when there is an index.
    ///
    /// # Errors
    /// What is wrong with a header.
    pub fn metadata(&self) -> Result<BTreeMap<String, Value>> {
        let mut merged = BTreeMap::new();
        for shard in self.shards()? {
            let header = header_of(&shard)?;
            for (key, value) in header.metadata().into_iter().flatten() {
                merged.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(merged)
    }

    /// The files that hold the tensors: one, or the shards of a checkpoint sorted by path.
    ///
    /// # Errors
    /// [`TensorError::Index`] when a record of the index is wrong.
    pub fn shards(&self) -> Result<Vec<File>> {
        match &self.0 {
            Source::File { file, .. } | Source::IndexedFile { file, .. } => Ok(vec![file.clone()]),
            Source::Checkpoint { files, .. } | Source::Shards { files, .. } => Ok(files.to_vec()),
            Source::IndexedCheckpoint { index, json, record } => {
                let mut files = BTreeMap::new();
                for number in index.checkpoint_files(record)? {
                    let file = index.file_of(json.image(), &index.file_record(number)?)?;
                    files.insert(file.path(), file);
                }
                Ok(files.into_values().collect())
            }
        }
    }

    /// True when the tensors come from the index that the packer wrote, false when headers were parsed.
    pub fn indexed(&self) -> bool {
        matches!(self.0, Source::IndexedFile { .. } | Source::IndexedCheckpoint { .. })
    }
}

impl fmt::Debug for Tensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensors")
            .field("file", &format_args!("{}", escaped(&self.file().path())))
            .field("len", &self.len())
            .field("indexed", &self.indexed())
            .finish_non_exhaustive()
    }
}
