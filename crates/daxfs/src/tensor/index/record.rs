//! Records of the index: where they lie, how one is copied, and what must hold before it is used.

use std::cmp::Ordering;
use std::marker::PhantomData;
use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::{Index, MAX_NAME, MAX_RANK};
use crate::format::index as raw;
use crate::format::{U32, U64};
use crate::tensor::dtype::{Dtype, SizeFault};
use crate::tensor::{ContainerKind, TensorError, TensorInfo};
use crate::{Error, Result, SharedBytes};

/// A regular file as the index describes it. Its values are as the packer wrote them; only their bounds inside the
/// index were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// Number of the record.
    pub number: u32,
    /// Inode number.
    pub ino: u64,
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 of the contents, if the index has hashes.
    pub hash: Option<[u8; 32]>,
    /// True for a file whose tensors are listed, in a container that this version knows.
    pub has_tensors: bool,
    /// What kind of container the packer took it for: [`raw::CONTAINER_NONE`] and those behind it.
    pub container: u32,
    /// Where tensor data begins in the file; 0 for other files.
    pub data_start: u64,
    /// Numbers of its tensor records.
    pub tensors: Range<u32>,
    pub(super) path_offset: u64,
    pub(super) path_len: u32,
    /// Numbers of its groups, if it has any.
    pub(super) groups: Option<Range<u64>>,
    /// Number of its original, if it has one.
    pub(super) original: Option<u32>,
}

/// A sharded checkpoint as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedCheckpoint {
    /// Number of the record.
    pub number: u32,
    /// Inode number of its JSON file.
    pub ino: u64,
    /// Numbers of its entries.
    pub entries: Range<u32>,
}

/// Copies one record out of the shared memory.
pub(super) fn copy<T: FromBytes + IntoBytes>(view: SharedBytes<'_>, offset: u64) -> dmabuf::Result<T> {
    let mut record = T::new_zeroed();
    view.read_at(offset, record.as_mut_bytes())?;
    Ok(record)
}

/// Checks that a section lies in the index, behind `start`. Empty sections lie anywhere.
pub(super) fn range(what: &str, offset: u64, size: u64, start: u64, bound: u64) -> Result<Range<u64>> {
    let end = offset.saturating_add(size);
    if size != 0 && (offset < start || end > bound) {
        let place = format!("index: {what}");
        return Err(Error::OutOfBounds {
            place,
            range: offset..end,
            within: "index behind its header",
            bound,
        });
    }
    Ok(offset..end)
}

/// An array of records that lies inside the index.
#[derive(Debug)]
pub(super) struct Section<T> {
    offset: u64,
    count: u64,
    /// Bytes from one record to the next.
    stride: u64,
    record: PhantomData<fn() -> T>,
}

impl<T> Clone for Section<T> {
    fn clone(&self) -> Self {
        Self { offset: self.offset, count: self.count, stride: self.stride, record: PhantomData }
    }
}

impl<T> Default for Section<T> {
    fn default() -> Self {
        Self { offset: 0, count: 0, stride: size_of::<T>() as u64, record: PhantomData }
    }
}

impl<T: FromBytes + IntoBytes> Section<T> {
    /// `count` records that lie close together.
    pub(super) fn new(what: &str, offset: U64, count: u64, start: u64, bound: u64) -> Result<Self> {
        let stride = size_of::<T>() as u64;
        let range = range(what, offset.get(), count.saturating_mul(stride), start, bound)?;
        Ok(Self { offset: range.start, count, stride, record: PhantomData })
    }

    /// Records of `stride` bytes, which is not less than the record of this version, in a range that was checked.
    pub(super) fn with_stride(range: &Range<u64>, stride: u64) -> Self {
        let count = (range.end - range.start).checked_div(stride).unwrap_or(0);
        Self { offset: range.start, count, stride, record: PhantomData }
    }

    /// Number of records. Dimensions and groups are counted in 64 bits, and they are not asked.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.count).unwrap_or(u32::MAX)
    }

    /// Number of records that are counted in 64 bits.
    pub(super) fn long_count(&self) -> u64 {
        self.count
    }

    /// Copies a record. Numbers at or behind the count read other bytes of the index or fail; callers check them
    /// where that matters.
    pub(super) fn read(&self, view: SharedBytes<'_>, number: u32) -> dmabuf::Result<T> {
        self.read_long(view, number.into())
    }

    /// As [`Section::read`], for records that are counted in 64 bits.
    pub(super) fn read_long(&self, view: SharedBytes<'_>, number: u64) -> dmabuf::Result<T> {
        copy(view, self.offset.saturating_add(number.saturating_mul(self.stride)))
    }
}

/// How errors name a record.
pub(super) fn place(kind: &str, number: u32) -> String {
    format!("{kind} {number}")
}

/// Checks that records `first..first + count` exist.
fn numbers(
    place: impl Fn() -> String,
    rule: &'static str,
    first: U32,
    count: U32,
    bound: u32,
) -> Result<Range<u32>> {
    let (first, count) = (first.get(), count.get());
    match first.checked_add(count) {
        Some(end) if end <= bound => Ok(first..end),
        _ if count == 0 => Ok(0..0),
        _ => {
            let found = format!("{count} from {first} on, of {bound}");
            Err(TensorError::Index { place: place(), rule, found }.into())
        }
    }
}

impl Index {
    pub(in crate::tensor) fn file_record(&self, number: u32) -> Result<IndexedFile> {
        let record = self.files.read(self.view()?, number)?;
        let flags = record.flags.get();
        let known = match self.version {
            raw::v1::VERSION => raw::FILE_TENSORS,
            _ => raw::FILE_TENSORS | raw::FILE_GROUPS | raw::FILE_ORIGINAL,
        };
        if flags & !known != 0 {
            let bits = flags & !known;
            return Err(Error::UnknownFlags { place: "/.daxfs/index: file record", bits });
        }
        let listed = flags & raw::FILE_TENSORS != 0;
        let container = match self.version {
            // Its only container.
            raw::v1::VERSION if listed => raw::CONTAINER_SAFETENSORS,
            raw::v1::VERSION => raw::CONTAINER_NONE,
            _ => record.container.get(),
        };
        let tensors = numbers(
            || place("file record", number),
            "its tensors must be in the index",
            record.first_tensor,
            record.tensor_count,
            self.tensor_count(),
        )?;
        let groups = match flags & raw::FILE_GROUPS {
            0 => None,
            _ => Some(self.group_numbers(number, &record)?),
        };
        Ok(IndexedFile {
            number,
            ino: record.ino.get().into(),
            size: record.size.get(),
            hash: self.has_hashes().then_some(record.hash),
            has_tensors: listed && ContainerKind::from_code(container).is_some(),
            container,
            data_start: record.data_start.get(),
            tensors,
            path_offset: record.path_offset.get(),
            path_len: record.path_len.get(),
            groups,
            original: (flags & raw::FILE_ORIGINAL != 0).then_some(record.original.get()),
        })
    }

    pub(super) fn checkpoint_record(&self, number: u32) -> Result<IndexedCheckpoint> {
        let record = self.checkpoints.read(self.view()?, number)?;
        let entries = numbers(
            || place("checkpoint record", number),
            "its entries must be in the index",
            record.first_entry,
            record.entry_count,
            self.entries.count(),
        )?;
        Ok(IndexedCheckpoint { number, ino: record.ino.get().into(), entries })
    }

    /// The tensor record that a checkpoint entry names.
    pub(super) fn entry(&self, entry: u32) -> Result<u32> {
        let number = self.entries.read(self.view()?, entry)?.get();
        if number < self.tensor_count() {
            return Ok(number);
        }
        let (rule, found) = ("it must name a tensor record", format!("{number} of {}", self.tensor_count()));
        Err(TensorError::Index { place: place("checkpoint entry", entry), rule, found }.into())
    }

    /// The tensor that a checkpoint entry names, and its file.
    pub(super) fn entry_tensor(&self, entry: u32) -> Result<(IndexedFile, TensorInfo)> {
        let number = self.entry(entry)?;
        let record = self.tensor_record(number)?;
        let file = self.file_record(self.file_number(number, &record)?)?;
        let info = self.tensor_info(number, &record, &file)?;
        Ok((file, info))
    }

    /// The number of the file record that a tensor record names.
    pub(super) fn file_number(&self, number: u32, record: &raw::TensorRecord) -> Result<u32> {
        let file = record.file.get();
        if file < self.file_count() {
            return Ok(file);
        }
        let (rule, found) = ("it must name a file record", format!("{file} of {}", self.file_count()));
        Err(TensorError::Index { place: place("tensor record", number), rule, found }.into())
    }

    pub(super) fn tensor_record(&self, number: u32) -> Result<raw::TensorRecord> {
        Ok(self.tensors.read(self.view()?, number)?)
    }

    /// Checks a copied tensor record against its file record, and resolves its name and dimensions.
    pub(super) fn tensor_info(
        &self,
        number: u32,
        record: &raw::TensorRecord,
        file: &IndexedFile,
    ) -> Result<TensorInfo> {
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("tensor record", number), rule, found }.into()
        };
        if record.file.get() != file.number {
            let found = format!("{}, reached from {}", record.file.get(), file.number);
            return Err(fault("it must name the file record that lists it", found));
        }
        let mut name = Vec::new();
        let name = self.read_name(number, record, &mut name)?.to_owned();
        let dtype = self.dtype(number, record.dtype.get())?;
        let shape = self.shape(number, record)?;
        let (offset, size) = (record.offset.get(), record.size.get());
        let needed = dtype.size_of(&shape).map_err(|error| {
            let rule = match error {
                SizeFault::Overflow => "its size must fit 64 bits",
                SizeFault::PartialByte => "it must end on a byte boundary",
                SizeFault::PartialBlock => "its last dimension must be a multiple of the block",
            };
            fault(rule, format!("{dtype}{shape:?}"))
        })?;
        if size != needed {
            let found = format!("{size} bytes for {dtype}{shape:?}, which takes {needed}");
            return Err(fault("its size must be what type and dimensions take", found));
        }
        let end = offset.checked_add(size).filter(|end| *end <= file.size);
        if end.is_none() {
            let end = offset.saturating_add(size);
            let found = format!("{offset:#x}..{end:#x} in a file of {:#x} bytes", file.size);
            return Err(fault("its data must lie in its file", found));
        }
        Ok(TensorInfo { name, dtype, shape, offset, size })
    }

    /// The data type with a code, or the one that a record describes by name and block.
    fn dtype(&self, number: u32, code: u16) -> Result<Dtype> {
        if let Some(dtype) = Dtype::from_code(code) {
            return Ok(dtype);
        }
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("tensor record", number), rule, found }.into()
        };
        let described = code.checked_sub(raw::DTYPE_RECORDS).map(u32::from);
        let Some(described) = described.filter(|at| *at < self.dtypes.count()) else {
            return Err(fault("its data type must be 1 to 22, or described", code.to_string()));
        };
        let record = self.dtypes.read(self.view()?, described)?;
        let what = || format!("name of {}", place("data type", described));
        let name = self.string(record.name_offset.get(), record.name_len.get(), MAX_NAME, what)?.to_vec();
        let block = (record.block_elements.get(), record.block_bytes.get());
        let known = std::str::from_utf8(&name).ok().and_then(Dtype::parse);
        let is_same = |dtype: &Dtype| (dtype.block().elements, dtype.block().bytes) == block;
        known.filter(is_same).ok_or_else(|| {
            let name = crate::tensor::error::escaped(&name);
            let found = format!("{name}, {} elements in {} bytes", block.0, block.1);
            fault("its data type must be one that this library knows", found)
        })
    }

    fn shape(&self, number: u32, record: &raw::TensorRecord) -> Result<Vec<u64>> {
        let rank = usize::from(record.rank.get());
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("tensor record", number), rule, found }.into()
        };
        if rank > MAX_RANK {
            return Err(fault("it must have at most 64 dimensions", rank.to_string()));
        }
        let first = record.first_dim.get();
        if rank != 0 && u64::from(first) + rank as u64 > self.dims.count {
            let found = format!("{rank} from {first} on, of {}", self.dims.count);
            return Err(fault("its dimensions must be in the index", found));
        }
        let mut dims = [U64::ZERO; MAX_RANK];
        let dims = &mut dims[..rank];
        if rank != 0 {
            self.view()?.read_at(self.dims.offset + u64::from(first) * 8, dims.as_mut_bytes())?;
        }
        Ok(dims.iter().map(|dim| dim.get()).collect())
    }

    fn name(&self, number: u32, record: &raw::TensorRecord) -> Result<SharedBytes<'_>> {
        let what = || format!("name of {}", place("tensor record", number));
        self.string(record.name_offset.get(), record.name_len.get(), MAX_NAME, what)
    }

    /// Copies a tensor's name into a buffer, in place of what is there, and checks it.
    fn read_name<'b>(
        &self,
        number: u32,
        record: &raw::TensorRecord,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b str> {
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("tensor record", number), rule, found }.into()
        };
        let name = self.name(number, record)?;
        buffer.clear();
        buffer.resize(name.len(), 0);
        name.read_at(0, buffer)?;
        match std::str::from_utf8(buffer) {
            Ok(name) if name.starts_with(raw::FILLER_PREFIX) => {
                Err(fault("fillers are not listed", format!("{name:?}")))
            }
            Ok(name) => Ok(name),
            Err(_) => Err(fault("its name must be UTF-8", crate::tensor::error::escaped(buffer))),
        }
    }

    /// The name alone of the `position`th tensor of a file, read into a buffer.
    pub(in crate::tensor) fn tensor_name<'b>(
        &self,
        file: &IndexedFile,
        position: u32,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b str> {
        let number = self.number_of(file, position)?;
        self.read_name(number, &self.tensor_record(number)?, buffer)
    }

    /// The name alone of the `position`th tensor of a checkpoint, read into a buffer.
    pub(in crate::tensor) fn checkpoint_name<'b>(
        &self,
        checkpoint: &IndexedCheckpoint,
        position: u32,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b str> {
        let number = self.entry(self.entry_of(checkpoint, position)?)?;
        self.read_name(number, &self.tensor_record(number)?, buffer)
    }

    /// The number of the record of a file's `position`th tensor.
    pub(super) fn number_of(&self, file: &IndexedFile, position: u32) -> Result<u32> {
        let number = file.tensors.start.checked_add(position).filter(|number| *number < file.tensors.end);
        number.ok_or_else(|| {
            TensorError::Index {
                place: place("file record", file.number),
                rule: "the tensor's position must be less than their number",
                found: format!("{position} of {}", file.tensors.len()),
            }
            .into()
        })
    }

    /// The number of a checkpoint's `position`th entry.
    pub(super) fn entry_of(&self, checkpoint: &IndexedCheckpoint, position: u32) -> Result<u32> {
        let entry = checkpoint.entries.start.checked_add(position).filter(|n| *n < checkpoint.entries.end);
        entry.ok_or_else(|| {
            TensorError::Index {
                place: place("checkpoint record", checkpoint.number),
                rule: "the tensor's position must be less than their number",
                found: format!("{position} of {}", checkpoint.entries.len()),
            }
            .into()
        })
    }

    /// Compares a tensor's name with `name` bytewise, without allocating.
    pub(super) fn compare_name(
        &self,
        number: u32,
        record: &raw::TensorRecord,
        name: &str,
    ) -> Result<Ordering> {
        let (view, theirs) = (self.name(number, record)?, name.as_bytes());
        let mut buffer = [0; 128];
        let common = view.len().min(theirs.len());
        for (at, theirs) in (0u64..).step_by(buffer.len()).zip(theirs[..common].chunks(buffer.len())) {
            let ours = &mut buffer[..theirs.len()];
            view.read_at(at, ours)?;
            match (*ours).cmp(theirs) {
                Ordering::Equal => {}
                different => return Ok(different),
            }
        }
        Ok(view.len().cmp(&theirs.len()))
    }

    /// A string, `len` bytes from `offset` in the strings.
    pub(super) fn string(
        &self,
        offset: u64,
        len: u32,
        cap: usize,
        what: impl Fn() -> String,
    ) -> Result<SharedBytes<'_>> {
        let bound = self.strings.end - self.strings.start;
        let end = offset.saturating_add(len.into());
        if end > bound {
            let found = format!("{offset:#x}..{end:#x} of {bound:#x} bytes");
            return Err(
                TensorError::Index { place: what(), rule: "it must lie in the strings", found }.into()
            );
        }
        if len as usize > cap {
            let found = format!("{len} bytes, more than {cap}");
            return Err(TensorError::Index { place: what(), rule: "it must not be too long", found }.into());
        }
        Ok(self.view()?.get(self.strings.start + offset, len.into())?)
    }
}
