//! Reader of `/.daxfs/index` ([`crate::format::index`]): tensors by binary search in the mapped memory, no JSON.
//!
//! The header is copied once and checked when the index is opened; each record is copied once, checked and then
//! used. Nothing is trusted beyond that: whatever the index holds, a lookup reads a bounded number of records,
//! allocates no more than the caps below, and yields a tensor inside its file, or an error, or nothing. Whether the
//! index tells the truth about the headers is what [`Index::verify`] checks; whether its records are those that the
//! content hash covers, [`Index::check`].

mod groups;
mod open;
mod original;
mod record;
mod verify;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

pub use groups::Groups;
pub use open::records_hash;
pub use original::IndexedOriginal;
pub use record::{IndexedCheckpoint, IndexedFile};
use record::{Section, place};

use super::{TensorError, TensorInfo};
use crate::format::index as raw;
use crate::{ContentHash, Error, Extent, Image, Region, Result, SharedBytes, ViewKind};

/// Longest tensor name in an index, in bytes.
pub const MAX_NAME: usize = 64 << 10;
/// Longest path in an index, in bytes.
pub const MAX_PATH: usize = 1 << 20;
/// Most dimensions of a tensor in an index.
pub const MAX_RANK: usize = 64;

/// The tensor index of an image. Cloning it shares the memory.
#[derive(Debug, Clone)]
pub struct Index {
    region: Region,
    /// The index file in the region.
    extent: Extent,
    version: u32,
    flags: u32,
    content_hash: ContentHash,
    /// The header; none in version 1.
    header: Option<Arc<raw::Header>>,
    /// The table of sections; empty in version 1.
    table: Arc<[raw::Section]>,
    files: Section<raw::FileRecord>,
    tensors: Section<raw::TensorRecord>,
    checkpoints: Section<raw::CheckpointRecord>,
    entries: Section<crate::format::U32>,
    dims: Section<crate::format::U64>,
    dtypes: Section<raw::DtypeRecord>,
    groups: Section<[u8; 32]>,
    originals: Section<raw::OriginalRecord>,
    runs: Section<raw::RunRecord>,
    /// What originals begin with.
    bytes: Range<u64>,
    strings: Range<u64>,
}

/// Opens the index of an image.
///
/// `Ok(None)` when the image has none, or when an overlay or a branch may have changed files since the index was
/// written: the tensors are then parsed from their headers.
///
/// # Errors
/// What [`Index`] finds wrong with the header; [`Error::UnsupportedVersion`] and [`Error::UnknownFlags`] for an
/// index of a later packer, [`Error::NotAFile`] when the path is something else.
pub(crate) fn load_index(image: &Image) -> Result<Option<Index>> {
    if image.view_kind() != ViewKind::Base {
        return Ok(None);
    }
    let file = match image.entry_no_follow(raw::PATH) {
        Ok(entry) => entry.file()?,
        Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let extent = file.extent().ok_or_else(|| TensorError::Index {
        place: "file".into(),
        rule: "it must lie in one place",
        found: "pieces".into(),
    })?;
    Index::open(file.region().clone(), extent).map(Some)
}

impl Index {
    /// Version of the format: 1 or 2.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// True when the index holds hashes of the files and of the content.
    pub fn has_hashes(&self) -> bool {
        self.flags & raw::HAS_HASHES != 0
    }

    /// The content hash as the header has it; [`crate::format::index`] defines what it covers.
    pub fn content_hash(&self) -> Option<ContentHash> {
        self.has_hashes().then_some(self.content_hash)
    }

    /// Bytes of the index.
    pub(in crate::tensor) fn size(&self) -> u64 {
        self.extent.len
    }

    /// What stands for all records in the content hash: BLAKE3 of the header and the table of sections, which has the
    /// hash of each section. It is computed from the copy of both that is in use. `None` for version 1.
    pub fn records_hash(&self) -> Option<[u8; 32]> {
        self.header.as_deref().map(|header| records_hash(header, &self.table))
    }

    /// Number of file records: one per regular file, hard links counted once, the index left out.
    pub fn file_count(&self) -> u32 {
        self.files.count()
    }

    /// Number of tensor records.
    pub fn tensor_count(&self) -> u32 {
        self.tensors.count()
    }

    /// Number of checkpoint records.
    pub fn checkpoint_count(&self) -> u32 {
        self.checkpoints.count()
    }

    /// The record of the file with this inode number, by binary search.
    ///
    /// # Errors
    /// [`Error::Tensor`] with [`TensorError::Index`], or [`Error::UnknownFlags`], when the record is wrong.
    pub fn file(&self, ino: u64) -> Result<Option<IndexedFile>> {
        let Ok(ino) = u32::try_from(ino) else { return Ok(None) };
        let found = self.search(0..self.file_count(), |index, number| {
            Ok(index.files.read(index.view()?, number)?.ino.get().cmp(&ino))
        })?;
        found.map(|number| self.file_record(number)).transpose()
    }

    /// All file records, in the order of their inode numbers.
    pub fn files(&self) -> impl Iterator<Item = Result<IndexedFile>> + '_ {
        (0..self.file_count()).map(|number| self.file_record(number))
    }

    /// BLAKE3 of the contents of the file with this inode number.
    ///
    /// # Errors
    /// As for [`Index::file`].
    pub fn file_hash(&self, ino: u64) -> Result<Option<[u8; 32]>> {
        Ok(self.file(ino)?.and_then(|file| file.hash))
    }

    /// First path of a file, absolute.
    ///
    /// # Errors
    /// [`TensorError::Index`] when the path lies outside the strings or is longer than [`MAX_PATH`].
    pub fn path(&self, file: &IndexedFile) -> Result<Vec<u8>> {
        let what = || format!("path of {}", place("file record", file.number));
        self.string(file.path_offset, file.path_len, MAX_PATH, what).map(SharedBytes::to_vec)
    }

    /// The `position`th tensor of a file, in the order of names.
    ///
    /// # Errors
    /// [`TensorError::Index`] when there is no such tensor or its record is wrong: names that are not UTF-8, hidden
    /// or too long, unknown types, a size that does not fit type and dimensions, data outside the file.
    pub fn tensor(&self, file: &IndexedFile, position: u32) -> Result<TensorInfo> {
        let number = self.number_of(file, position)?;
        self.tensor_record(number).and_then(|record| self.tensor_info(number, &record, file))
    }

    /// The tensor of a file with this name, by binary search; `None` also where an unsorted index hides it.
    ///
    /// # Errors
    /// As for [`Index::tensor`].
    pub fn find(&self, file: &IndexedFile, name: &str) -> Result<Option<TensorInfo>> {
        let found = self.search(file.tensors.clone(), |index, number| {
            let record = index.tensor_record(number)?;
            index.compare_name(number, &record, name)
        })?;
        match found {
            Some(number) => self.tensor(file, number - file.tensors.start).map(Some),
            None => Ok(None),
        }
    }

    /// The record of the checkpoint whose JSON file has this inode number, by binary search.
    ///
    /// # Errors
    /// [`TensorError::Index`] when the record is wrong.
    pub fn checkpoint(&self, ino: u64) -> Result<Option<IndexedCheckpoint>> {
        let Ok(ino) = u32::try_from(ino) else { return Ok(None) };
        let found = self.search(0..self.checkpoint_count(), |index, number| {
            Ok(index.checkpoints.read(index.view()?, number)?.ino.get().cmp(&ino))
        })?;
        found.map(|number| self.checkpoint_record(number)).transpose()
    }

    /// All checkpoint records.
    pub fn checkpoints(&self) -> impl Iterator<Item = Result<IndexedCheckpoint>> + '_ {
        (0..self.checkpoint_count()).map(|number| self.checkpoint_record(number))
    }

    /// The `position`th tensor of a checkpoint, in the order of names, and the file that holds it.
    ///
    /// # Errors
    /// As for [`Index::tensor`].
    pub fn checkpoint_tensor(
        &self,
        checkpoint: &IndexedCheckpoint,
        position: u32,
    ) -> Result<(IndexedFile, TensorInfo)> {
        self.entry_tensor(self.entry_of(checkpoint, position)?)
    }

    /// The tensor of a checkpoint with this name, and the file that holds it.
    ///
    /// # Errors
    /// As for [`Index::tensor`].
    pub fn checkpoint_find(
        &self,
        checkpoint: &IndexedCheckpoint,
        name: &str,
    ) -> Result<Option<(IndexedFile, TensorInfo)>> {
        let found = self.search(checkpoint.entries.clone(), |index, entry| {
            let number = index.entry(entry)?;
            let record = index.tensor_record(number)?;
            index.compare_name(number, &record, name)
        })?;
        found.map(|entry| self.entry_tensor(entry)).transpose()
    }

    /// Numbers of the file records that hold a checkpoint's tensors. Reads every entry.
    pub(super) fn checkpoint_files(&self, checkpoint: &IndexedCheckpoint) -> Result<BTreeSet<u32>> {
        let files = checkpoint.entries.clone().map(|entry| {
            let number = self.entry(entry)?;
            let record = self.tensor_record(number)?;
            self.file_number(number, &record)
        });
        files.collect()
    }

    /// Binary search: at most 32 probes, whatever the records hold.
    fn search(
        &self,
        range: Range<u32>,
        compare: impl Fn(&Self, u32) -> Result<std::cmp::Ordering>,
    ) -> Result<Option<u32>> {
        let Range { mut start, mut end } = range;
        while start < end {
            let middle = start + (end - start) / 2;
            match compare(self, middle)? {
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Equal => return Ok(Some(middle)),
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        Ok(None)
    }

    fn view(&self) -> Result<SharedBytes<'_>> {
        Ok(self.region.view().get(self.extent.offset, self.extent.len)?)
    }
}

#[cfg(test)]
pub(super) mod test_index;
#[cfg(test)]
mod tests;
