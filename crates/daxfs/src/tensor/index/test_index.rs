//! Index files for the tests of this crate, built record by record: the packer depends on this crate.

use zerocopy::IntoBytes;

use super::{Index, raw, records_hash};
use crate::format::{U16, U32, U64};
use crate::tensor::Dtype;
use crate::{Extent, Region, Result};

/// Builds index files record by record, sound unless a test damages them.
#[derive(Default)]
pub(in crate::tensor) struct Builder {
    /// Version 2; else version 1.
    pub v2: bool,
    pub groups: Vec<[u8; 32]>,
    pub originals: Vec<raw::OriginalRecord>,
    pub runs: Vec<raw::RunRecord>,
    pub starts: Vec<u8>,
    pub dtypes: Vec<raw::DtypeRecord>,
    pub files: Vec<raw::FileRecord>,
    pub tensors: Vec<raw::TensorRecord>,
    pub checkpoints: Vec<raw::CheckpointRecord>,
    pub entries: Vec<U32>,
    pub dims: Vec<U64>,
    pub strings: Vec<u8>,
}

/// Name, type, shape and offset in the file.
type Listed<'a> = (&'a str, Dtype, &'a [u64], u64);

fn u32_of(len: usize) -> U32 {
    u32::try_from(len).unwrap().into()
}

impl Builder {
    pub fn string(&mut self, text: &str) -> (U64, U32) {
        let offset = self.strings.len() as u64;
        self.strings.extend_from_slice(text.as_bytes());
        (offset.into(), u32_of(text.len()))
    }

    /// The file of this number has an original, which begins with `start`, and then has these runs of the file.
    pub fn original(&mut self, file: usize, start: &[u8], runs: &[(u64, u64)]) {
        let record = &mut self.files[file];
        record.flags = (record.flags.get() | raw::FILE_ORIGINAL).into();
        record.original = u32_of(self.originals.len());
        record.container = raw::CONTAINER_SAFETENSORS.into();
        self.originals.push(raw::OriginalRecord {
            size: (start.len() as u64 + runs.iter().map(|run| run.1).sum::<u64>()).into(),
            alignment: 64.into(),
            start_offset: (self.starts.len() as u64).into(),
            start_len: (start.len() as u64).into(),
            first_run: u32_of(self.runs.len()),
            run_count: u32_of(runs.len()),
            file: u32_of(file),
            flags: 0.into(),
            reserved: [0; 16],
            hash: [0; 32],
        });
        self.starts.extend_from_slice(start);
        let runs =
            runs.iter().map(|&(offset, len)| raw::RunRecord { offset: offset.into(), len: len.into() });
        self.runs.extend(runs);
    }

    pub fn file(&mut self, ino: u32, size: u64, tensors: &[Listed<'_>]) -> &mut Self {
        self.file_at(&format!("/file{ino}"), ino, size, 0, tensors)
    }

    /// A file of `size` bytes with tensors, which must be sorted.
    pub fn file_at(
        &mut self,
        path: &str,
        ino: u32,
        size: u64,
        data_start: u64,
        tensors: &[Listed<'_>],
    ) -> &mut Self {
        let (path_offset, path_len) = self.string(path);
        let first_tensor = u32_of(self.tensors.len());
        for &(name, dtype, shape, offset) in tensors {
            let code = dtype.code().unwrap_or_else(|| self.described(dtype));
            let (name_offset, name_len) = self.string(name);
            let first_dim = u32_of(self.dims.len());
            self.dims.extend(shape.iter().map(|&dim| U64::new(dim)));
            self.tensors.push(raw::TensorRecord {
                name_offset,
                name_len,
                first_dim,
                offset: offset.into(),
                size: dtype.size_of(shape).unwrap().into(),
                file: u32_of(self.files.len()),
                dtype: code.into(),
                rank: U16::new(u16::try_from(shape.len()).unwrap()),
                reserved: [0; 8],
            });
        }
        let container = if tensors.is_empty() { raw::CONTAINER_NONE } else { raw::CONTAINER_SAFETENSORS };
        self.files.push(raw::FileRecord {
            path_offset,
            path_len,
            ino: ino.into(),
            size: size.into(),
            first_tensor,
            tensor_count: u32_of(tensors.len()),
            flags: if tensors.is_empty() { 0.into() } else { raw::FILE_TENSORS.into() },
            container: if self.v2 { container.into() } else { 0.into() },
            data_start: data_start.into(),
            first_group: 0.into(),
            original: 0.into(),
            reserved: 0.into(),
            hash: [u8::try_from(ino).unwrap(); 32],
        });
        self
    }

    /// The code of a type that is described.
    fn described(&mut self, dtype: Dtype) -> u16 {
        let (name_offset, name_len) = self.string(dtype.name());
        let block = dtype.block();
        self.dtypes.push(raw::DtypeRecord {
            name_offset,
            name_len,
            block_elements: block.elements.into(),
            block_bytes: block.bytes.into(),
            reserved: [0; 12],
        });
        raw::DTYPE_RECORDS + u16::try_from(self.dtypes.len() - 1).unwrap()
    }

    pub fn checkpoint(&mut self, ino: u32, entries: &[u32]) -> &mut Self {
        let first_entry = u32_of(self.entries.len());
        self.entries.extend(entries.iter().map(|&entry| U32::new(entry)));
        let entry_count = u32_of(entries.len());
        self.checkpoints.push(raw::CheckpointRecord {
            ino: ino.into(),
            first_entry,
            entry_count,
            reserved: [0; 20],
        });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        if self.v2 { self.bytes_v2(&[]) } else { self.bytes_v1() }
    }

    /// Version 2, with more sections behind: kind, flags, bytes.
    pub fn bytes_v2(&self, more: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let own: [(u32, usize, &[u8]); 11] = [
            (raw::FILES, 96, self.files.as_bytes()),
            (raw::TENSORS, 48, self.tensors.as_bytes()),
            (raw::CHECKPOINTS, 32, self.checkpoints.as_bytes()),
            (raw::ENTRIES, 4, self.entries.as_bytes()),
            (raw::DIMS, 8, self.dims.as_bytes()),
            (raw::STRINGS, 1, &self.strings),
            (raw::DTYPES, 32, self.dtypes.as_bytes()),
            (raw::GROUPS, 32, self.groups.as_bytes()),
            (raw::ORIGINALS, 96, self.originals.as_bytes()),
            (raw::RUNS, 16, self.runs.as_bytes()),
            (raw::BYTES, 1, &self.starts),
        ];
        let own = own.iter().map(|&(kind, record, bytes)| (kind, 0, record, bytes));
        let sections: Vec<_> =
            own.chain(more.iter().map(|&(kind, flags, bytes)| (kind, flags, 1, bytes))).collect();
        let mut body = Vec::new();
        let mut table = Vec::new();
        for (kind, flags, record, bytes) in &sections {
            table.push(raw::Section {
                kind: (*kind).into(),
                flags: (*flags).into(),
                offset: ((128 + 64 * sections.len() + body.len()) as u64).into(),
                len: (bytes.len() as u64).into(),
                record_size: u32_of(*record),
                reserved: 0.into(),
                hash: *blake3::hash(bytes).as_bytes(),
            });
            body.extend_from_slice(bytes);
        }
        let mut header = raw::Header {
            magic: raw::MAGIC,
            version: raw::VERSION.into(),
            flags: raw::HAS_HASHES.into(),
            total_size: ((128 + 64 * sections.len() + body.len()) as u64).into(),
            section_count: u32_of(sections.len()),
            reserved0: 0.into(),
            content_hash: [9; 32],
            records_hash: [0; 32],
            reserved1: [0; 32],
        };
        header.records_hash = records_hash(&header, &table);
        [header.as_bytes(), table.as_bytes(), &body].concat()
    }

    pub fn bytes_v1(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut section = |bytes: &[u8]| {
            let offset = (size_of::<raw::v1::Header>() + body.len()) as u64;
            body.extend_from_slice(bytes);
            U64::new(offset)
        };
        let header = raw::v1::Header {
            magic: raw::MAGIC,
            version: raw::v1::VERSION.into(),
            flags: raw::HAS_HASHES.into(),
            files_offset: section(self.files.as_bytes()),
            tensors_offset: section(self.tensors.as_bytes()),
            checkpoints_offset: section(self.checkpoints.as_bytes()),
            entries_offset: section(self.entries.as_bytes()),
            dims_offset: section(self.dims.as_bytes()),
            strings_offset: section(&self.strings),
            file_count: u32_of(self.files.len()),
            tensor_count: u32_of(self.tensors.len()),
            checkpoint_count: u32_of(self.checkpoints.len()),
            entry_count: u32_of(self.entries.len()),
            dim_count: (self.dims.len() as u64).into(),
            strings_size: (self.strings.len() as u64).into(),
            total_size: ((size_of::<raw::v1::Header>() + body.len()) as u64).into(),
            reserved: [0; 24],
            content_hash: [9; 32],
        };
        [header.as_bytes(), &body].concat()
    }

    pub fn open(&self) -> Index {
        open(self.bytes()).unwrap()
    }
}

/// The index lies somewhere in a region, with foreign bytes around it.
pub(super) fn open(bytes: Vec<u8>) -> Result<Index> {
    let extent = Extent { offset: 3, len: bytes.len() as u64 };
    let region = [vec![0xaa; 3], bytes, vec![0xaa; 5]].concat();
    Index::open(Region::from_bytes(region), extent)
}
