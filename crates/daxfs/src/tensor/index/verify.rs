//! Does the index tell the truth? Compares its records with the files that they describe.

use super::{Index, IndexedCheckpoint, IndexedFile};
use crate::tensor::checkpoint::{Checkpoint, header_of};
use crate::tensor::error::escaped;
use crate::tensor::select::{parent, same_directory};
use crate::tensor::{TensorError, TensorInfo};
use crate::{File, Image, Result};

impl Index {
    /// Compares the record of a file with the file: size, path, and every tensor with the file's own header, which
    /// is parsed for that. A file without a record passes. Hashes are not compared; see [`Index::file_hash`].
    ///
    /// # Errors
    /// [`TensorError::IndexMismatch`] with the first difference, or what is wrong with a record or the header.
    pub fn verify_file(&self, file: &File) -> Result<()> {
        let Some(record) = self.file(file.ino())? else { return Ok(()) };
        self.file_of(file.image(), &record)?;
        if !record.has_tensors {
            return same(file, || "tensors".into(), &record.tensors.len(), &0);
        }
        let header = header_of(file)?;
        same(file, || "begin of tensor data".into(), &record.data_start, &header.data_start())?;
        same(file, || "number of tensors".into(), &record.tensors.len(), &header.len())?;
        for (position, expected) in (0..).zip(header.visible()) {
            let found = self.tensor(&record, position)?;
            self.same_tensor(file, &found, expected)?;
        }
        Ok(())
    }

    /// Compares the record of a checkpoint with its JSON file and the headers of its shards, which are parsed for
    /// that. A checkpoint without a record passes, and so does another name of it in another directory, since the
    /// index holds only the shards of its first name.
    ///
    /// # Errors
    /// As for [`Index::verify_file`], and what is wrong with the checkpoint.
    pub fn verify_checkpoint(&self, json: &File) -> Result<()> {
        let path = json.path();
        let directory = parent(&path);
        let Some(record) = self.checkpoint_in(json, directory)? else { return Ok(()) };
        let checkpoint = Checkpoint::read(json, directory)?;
        let files = checkpoint.files(json.image())?;
        same(json, || "number of tensors".into(), &record.entries.len(), &checkpoint.len())?;
        for (position, (shard, expected)) in (0..).zip(checkpoint.iter()) {
            let (file, found) = self.checkpoint_tensor(&record, position)?;
            self.same_tensor(json, &found, expected)?;
            let what = || format!("inode of the shard of tensor {:?}", expected.name);
            same(json, what, &file.ino, &files[shard].ino())?;
        }
        Ok(())
    }

    fn same_tensor(&self, file: &File, found: &TensorInfo, expected: &TensorInfo) -> Result<()> {
        same(file, || "name of a tensor".into(), &found.name, &expected.name)?;
        let what = |what: &str| format!("{what} of tensor {:?}", expected.name);
        same(file, || what("data type"), &found.dtype, &expected.dtype)?;
        same(file, || what("shape"), &found.shape, &expected.shape)?;
        same(file, || what("offset"), &found.offset, &expected.offset)
    }

    /// The record of a checkpoint whose shards are relative to `directory`. The packer resolved them from the
    /// first path of the JSON file; from elsewhere they may be other files.
    pub(in crate::tensor) fn checkpoint_in(
        &self,
        json: &File,
        directory: &[u8],
    ) -> Result<Option<IndexedCheckpoint>> {
        let Some(checkpoint) = self.checkpoint(json.ino())? else { return Ok(None) };
        let Some(record) = self.file(json.ino())? else { return Ok(None) };
        let path = self.path(&record)?;
        Ok(same_directory(parent(&path), directory).then_some(checkpoint))
    }

    /// The file that a record describes, found by its path and checked against the inode.
    pub(in crate::tensor) fn file_of(&self, image: &Image, record: &IndexedFile) -> Result<File> {
        let path = self.path(record)?;
        let fault = |rule, found| TensorError::Index {
            place: super::place("file record", record.number),
            rule,
            found,
        };
        let file = match image.entry_no_follow(&path).and_then(|entry| entry.file()) {
            Ok(file) => file,
            Err(error) => {
                return Err(fault("its path must name a file of the image", error.to_string()).into());
            }
        };
        if file.ino() != record.ino {
            let found = format!("inode {} at {}, {} in the record", file.ino(), escaped(&path), record.ino);
            return Err(fault("its path must name its inode", found).into());
        }
        self.check_size(record, &file)?;
        Ok(file)
    }

    /// The length of a file is what its inode says; a record that says something else is not used.
    pub(in crate::tensor) fn check_size(&self, record: &IndexedFile, file: &File) -> Result<()> {
        if record.size == file.len() {
            return Ok(());
        }
        Err(TensorError::Index {
            place: super::place("file record", record.number),
            rule: "its size must be that of the inode",
            found: format!("{:#x}, inode {} has {:#x}", record.size, record.ino, file.len()),
        }
        .into())
    }
}

/// The same value in the index and in the file, or an error that shows both.
fn same<T: PartialEq + std::fmt::Debug>(
    file: &File,
    what: impl Fn() -> String,
    index: &T,
    header: &T,
) -> Result<()> {
    if index == header {
        return Ok(());
    }
    Err(TensorError::IndexMismatch {
        file: escaped(&file.path()),
        what: what(),
        index: format!("{index:?}"),
        header: format!("{header:?}"),
    }
    .into())
}
