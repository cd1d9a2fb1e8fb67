//! Does the index tell the truth? Compares its records with the files that they describe.

use dmabuf::Hex;

use super::open::section_name;
use super::record::place;
use super::{Index, IndexedCheckpoint, IndexedFile};
use crate::format::index as raw;
use crate::tensor::checkpoint::read_checkpoint;
use crate::tensor::container::header_as;
use crate::tensor::error::escaped;
use crate::tensor::paths::{parent, same_directory};
use crate::tensor::{ContainerKind, TensorError, TensorInfo};
use crate::{Error, File, Image, Result};

/// Bytes that are hashed at a time.
const STEP: usize = 64 << 10;

impl Index {
    /// Proves the records that lookups believe: in version 2 by the hashes of the sections, of which the content hash
    /// is made; in version 1, which has none, by the headers of the files, as [`Index::verify`] does. The files' own
    /// hashes are not compared with their bytes.
    ///
    /// # Errors
    /// [`TensorError::IndexHash`] for a section or a table that is another than its hash says, and as for
    /// [`Index::verify`].
    pub fn check(&self, image: &Image) -> Result<()> {
        match self.header {
            None => self.verify(image),
            Some(_) => {
                self.check_hashes()?;
                self.check_order()
            }
        }
    }

    /// Every section is what the table says, and the table what the header says. Nothing to compare in version 1.
    pub(super) fn check_hashes(&self) -> Result<()> {
        let (Some(header), Some(found)) = (&self.header, self.records_hash()) else { return Ok(()) };
        same_hash("table of sections", &header.records_hash, &found)?;
        for section in self.table.iter() {
            same_hash(section_name(section.kind.get()), &section.hash, &self.hash_of(section)?)?;
        }
        Ok(())
    }

    /// Compares every record with the image: its files by path, inode and size, its tensors and checkpoints with the
    /// headers and JSON files that they were made of, which are parsed for that, under
    /// [`OpenOptions::max_metadata`](crate::OpenOptions::max_metadata).
    ///
    /// # Errors
    /// [`TensorError::IndexMismatch`] with the first difference, what is wrong with a record or a header, or
    /// [`Error::MetadataLimit`].
    pub fn verify(&self, image: &Image) -> Result<()> {
        self.check_order()?;
        for number in 0..self.file_count() {
            let record = self.file_record(number)?;
            image.charge("paths of the index", record.path_len.into())?;
            let file = self.file_of(image, &record)?;
            self.same_original(&file, &record)?;
            self.same_tensors(&file, &record)?;
        }
        for number in 0..self.checkpoint_count() {
            let checkpoint = self.checkpoint_record(number)?;
            // Readers do not look at one whose file has no record.
            let Some(record) = self.file(checkpoint.ino)? else { continue };
            image.charge("checkpoints", record.size)?;
            let json = self.file_of(image, &record)?;
            self.same_checkpoint(&json, &checkpoint, parent(&self.path(&record)?))?;
        }
        Ok(())
    }

    /// Files and checkpoints are sorted, each inode once, so that every search finds the same record.
    fn check_order(&self) -> Result<()> {
        let view = self.view()?;
        let sorted = |kind, count, ino: &dyn Fn(u32) -> Result<u32>| {
            let mut last = 0;
            for number in 0..count {
                let next = ino(number)?;
                if next <= last {
                    return Err(Error::from(TensorError::Index {
                        place: place(kind, number),
                        rule: "its inode number must be higher than that of the record before it",
                        found: format!("{next} behind {last}"),
                    }));
                }
                last = next;
            }
            Ok(())
        };
        sorted("file record", self.file_count(), &|number| Ok(self.files.read(view, number)?.ino.get()))?;
        sorted("checkpoint record", self.checkpoint_count(), &|number| {
            Ok(self.checkpoints.read(view, number)?.ino.get())
        })
    }

    fn hash_of(&self, section: &raw::Section) -> Result<[u8; 32]> {
        let view = match section.len.get() {
            // It may lie anywhere.
            0 => self.view()?.get(0, 0)?,
            len => self.view()?.get(section.offset.get(), len)?,
        };
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; STEP.min(view.len())];
        for at in (0..view.len()).step_by(STEP) {
            let len = STEP.min(view.len() - at);
            view.read_at(at as u64, &mut buffer[..len])?;
            hasher.update(&buffer[..len]);
        }
        Ok(hasher.finalize().into())
    }

    /// Compares the record of a file with the file: size, path, and every tensor with the file's own header, which
    /// is parsed for that. A file without a record passes. Hashes are not compared; see [`Index::file_hash`].
    ///
    /// # Errors
    /// [`TensorError::IndexMismatch`] with the first difference, or what is wrong with a record or the header.
    pub fn verify_file(&self, file: &File) -> Result<()> {
        let Some(record) = self.file(file.ino())? else { return Ok(()) };
        self.file_of(file.image(), &record)?;
        self.same_original(file, &record)?;
        self.same_tensors(file, &record)
    }

    /// The file's original, if it has one, has the same tensors, and the file nothing else but padding.
    fn same_original(&self, file: &File, record: &IndexedFile) -> Result<()> {
        let Some(original) = self.original(record)? else { return Ok(()) };
        self.check_original(file, record, &original)?;
        self.check_padding(file, record, &original)
    }

    /// The tensors that the record lists are those of the file, in the container that the record takes it for.
    fn same_tensors(&self, file: &File, record: &IndexedFile) -> Result<()> {
        let header = match ContainerKind::from_code(record.container) {
            Some(kind) if record.has_tensors => header_as(kind, file)?,
            // Tensors of a container that this version does not know are not shown either.
            None if record.container != raw::CONTAINER_NONE => return Ok(()),
            _ => return same(file, || "tensors".into(), &record.tensors.len(), &0),
        };
        same(file, || "begin of tensor data".into(), &record.data_start, &header.data_start())?;
        same(file, || "number of tensors".into(), &record.tensors.len(), &header.len())?;
        for (position, expected) in (0..).zip(header.visible()) {
            let found = self.tensor(record, position)?;
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
        self.same_checkpoint(json, &record, directory)
    }

    fn same_checkpoint(&self, json: &File, record: &IndexedCheckpoint, directory: &[u8]) -> Result<()> {
        let checkpoint = read_checkpoint(json, directory)?;
        let files = checkpoint.files(json.image())?;
        same(json, || "number of tensors".into(), &record.entries.len(), &checkpoint.len())?;
        for (position, (shard, expected)) in (0..).zip(checkpoint.iter()) {
            let (file, found) = self.checkpoint_tensor(record, position)?;
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
        let fault =
            |rule, found| TensorError::Index { place: place("file record", record.number), rule, found };
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
    pub(crate) fn check_size(&self, record: &IndexedFile, file: &File) -> Result<()> {
        if record.size == file.len() {
            return Ok(());
        }
        Err(TensorError::Index {
            place: place("file record", record.number),
            rule: "its size must be that of the inode",
            found: format!("{:#x}, inode {} has {:#x}", record.size, record.ino, file.len()),
        }
        .into())
    }
}

fn same_hash(what: &str, stored: &[u8; 32], found: &[u8; 32]) -> Result<()> {
    if stored == found {
        return Ok(());
    }
    Err(TensorError::IndexHash {
        place: what.to_owned(),
        stored: Hex(stored).to_string(),
        found: Hex(found).to_string(),
    }
    .into())
}

/// The same value in the index and in the file, or an error that shows both.
pub(super) fn same<T: PartialEq + std::fmt::Debug>(
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
