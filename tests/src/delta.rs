//! Branch table and delta log of version 5, for tests of the committed main branch.

use crate::forge;
use daxfs::format::v5::{
    BranchRecord, DeltaCreate, DeltaDelete, DeltaHeader, DeltaRename, DeltaSetattr, DeltaSymlink,
    DeltaTruncate, DeltaWrite,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Records in the branch tables made here.
pub const RECORDS: u32 = 256;

/// The log of a branch, entry by entry. Names of methods are what the entry does.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Log {
    bytes: Vec<u8>,
}

impl Log {
    /// A log without entries.
    pub fn new() -> Log {
        Log::default()
    }

    /// Writes through write(2), or with `padding` bytes before the data as a write through mmap does.
    pub fn write(self, ino: u64, offset: u64, data: &[u8], padding: usize) -> Log {
        let mut head = DeltaWrite::new_zeroed();
        head.offset = offset.into();
        head.len = u32::try_from(data.len()).unwrap().into();
        self.push(1, ino, &[head.as_bytes(), &vec![0xee; padding], data])
    }

    /// Makes a regular file, or a directory when `mode` says so.
    pub fn create(self, parent: u64, ino: u64, mode: u32, name: &[u8]) -> Log {
        let mut body = DeltaCreate::new_zeroed();
        body.parent_ino = parent.into();
        body.new_ino = ino.into();
        body.mode = mode.into();
        body.name_len = u16::try_from(name.len()).unwrap().into();
        let kind = if mode & 0o170_000 == 0o040_000 { 5 } else { 2 };
        self.push(kind, ino, &[body.as_bytes(), name])
    }

    /// Removes a name.
    pub fn delete(self, parent: u64, ino: u64, name: &[u8]) -> Log {
        let mut body = DeltaDelete::new_zeroed();
        body.parent_ino = parent.into();
        body.name_len = u16::try_from(name.len()).unwrap().into();
        self.push(3, ino, &[body.as_bytes(), name])
    }

    /// Sets the size.
    pub fn truncate(self, ino: u64, size: u64) -> Log {
        let mut body = DeltaTruncate::new_zeroed();
        body.new_size = size.into();
        self.push(4, ino, &[body.as_bytes()])
    }

    /// Moves a name.
    pub fn rename(self, ino: u64, from: (u64, &[u8]), to: (u64, &[u8])) -> Log {
        let mut body = DeltaRename::new_zeroed();
        body.old_parent_ino = from.0.into();
        body.new_parent_ino = to.0.into();
        body.ino = ino.into();
        body.old_name_len = u16::try_from(from.1.len()).unwrap().into();
        body.new_name_len = u16::try_from(to.1.len()).unwrap().into();
        self.push(6, ino, &[body.as_bytes(), from.1, to.1])
    }

    /// Sets the attributes that `valid` selects: 1 mode, 2 uid, 4 gid, 8 size.
    pub fn setattr(self, ino: u64, valid: u32, mode: u32, uid: u32, gid: u32, size: u64) -> Log {
        let mut body = DeltaSetattr::new_zeroed();
        body.mode = mode.into();
        body.uid = uid.into();
        body.gid = gid.into();
        body.valid = valid.into();
        body.size = size.into();
        self.push(7, ino, &[body.as_bytes()])
    }

    /// Makes a symbolic link.
    pub fn symlink(self, parent: u64, ino: u64, name: &[u8], target: &[u8]) -> Log {
        let mut body = DeltaSymlink::new_zeroed();
        body.parent_ino = parent.into();
        body.new_ino = ino.into();
        body.name_len = u16::try_from(name.len()).unwrap().into();
        body.target_len = u16::try_from(target.len()).unwrap().into();
        self.push(8, ino, &[body.as_bytes(), name, target, b"\0"])
    }

    /// An entry of any kind with any body.
    pub fn push(self, kind: u32, ino: u64, parts: &[&[u8]]) -> Log {
        let body: usize = parts.iter().map(|part| part.len()).sum();
        self.push_sized(kind, ino, u32::try_from(size_of::<DeltaHeader>() + body).unwrap(), parts)
    }

    /// An entry whose header claims `total` bytes, whatever its body has.
    pub fn push_sized(mut self, kind: u32, ino: u64, total: u32, parts: &[&[u8]]) -> Log {
        let mut head = DeltaHeader::new_zeroed();
        head.kind = kind.into();
        head.total_size = total.into();
        head.ino = ino.into();
        self.bytes.extend_from_slice(head.as_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self
    }
}

/// Appends a branch table with an active branch "main" that has this log to a static image of version 5.
/// Table and log follow the base image, which does not move.
pub fn attach_main(image: &mut Vec<u8>, log: &Log) {
    forge::pad(image);
    let table = image.len() as u64;
    let log_at = table + u64::from(RECORDS) * size_of::<BranchRecord>() as u64;
    let mut capacity = log.bytes.clone();
    forge::pad(&mut capacity);
    capacity.resize(capacity.len().max(4096), 0);
    let mut record = BranchRecord::new_zeroed();
    record.branch_id = 1.into();
    record.delta_log_offset = log_at.into();
    record.delta_log_size = (log.bytes.len() as u64).into();
    record.delta_log_capacity = (capacity.len() as u64).into();
    record.state = 1.into();
    record.name[..4].copy_from_slice(b"main");
    image.extend_from_slice(record.as_bytes());
    image.resize(usize::try_from(log_at).unwrap(), 0);
    image.extend_from_slice(&capacity);
    let total = image.len() as u64;
    let head = forge::superblock_v5(image);
    head.branch_table_offset = table.into();
    head.branch_table_entries = RECORDS.into();
    head.active_branches = 1.into();
    head.next_branch_id = 2.into();
    head.delta_region_offset = log_at.into();
    head.delta_region_size = (capacity.len() as u64).into();
    head.delta_alloc_offset = (log_at + capacity.len() as u64).into();
    head.coordination[0] = 1;
    head.total_size = total.into();
}

/// Where the record of the branch "main" lies in an image that [`attach_main`] extended.
pub fn main_record(image: &mut [u8]) -> &mut BranchRecord {
    let at = usize::try_from(forge::superblock_v5(image).branch_table_offset.get()).unwrap();
    BranchRecord::mut_from_prefix(&mut image[at..]).unwrap().0
}
