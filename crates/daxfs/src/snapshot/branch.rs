//! The committed branch "main" of version 5: its delta log, replayed over the base image as its writer meant it.
//!
//! The version 5 kernel itself replays some entries wrongly (renames are lost, writes in the middle cut a file);
//! those faults are not imitated. Data stays in the log; a changed file becomes a list of pieces.

use std::ops::Range;

use hashbrown::HashMap;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::base::{Base, TARGET_MAX, check_name};
use super::build::{Child, Source, store_target};
use super::written::Written;
use super::{Content, Inode, Reader, check_changed_size};
use crate::Rule;
use crate::error::{Error, Result};
use crate::format::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, v5};
use crate::superblock::{Superblock, bounded, invalid};
use crate::{FileType, Metadata};

/// Page size of the kernels that write version 5.
const PAGE: u64 = 4096;

/// What a name, an inode and a write of the log cost in the maps that they are kept in, beyond the bytes of the log.
const NAME_COST: u64 = 160;
const INODE_COST: u64 = size_of::<(u64, Changed)>() as u64;
const WRITE_COST: u64 = 48;

/// States of a branch record.
const FREE: u32 = 0;
const COMMITTED: u32 = 2;

/// The log of the branch "main", absolute in the image; `None` for a static image or one never mounted.
pub(super) fn find_main_log(reader: &mut Reader<'_>, superblock: &Superblock) -> Result<Option<Range<u64>>> {
    let Some(table) = superblock.branch_table.clone() else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    reader.copy(|| "branch table".to_owned(), table, &mut bytes)?;
    let (records, _) = bytes.as_chunks::<{ size_of::<v5::BranchRecord>() }>();
    for (number, record) in records.iter().enumerate() {
        let Ok(record) = v5::BranchRecord::read_from_bytes(record) else { continue };
        let name = record.name.split(|&byte| byte == 0).next().unwrap_or_default();
        if [FREE, COMMITTED].contains(&record.state.get()) || name != b"main" {
            continue;
        }
        let place = format!("branch record {number}: log");
        let (offset, size) = (record.delta_log_offset.get(), record.delta_log_size.get());
        return bounded(&place, offset, size, reader.len(), "region").map(Some);
    }
    Ok(None)
}

/// Base image with a log applied.
pub(super) struct Replayed {
    base: Base,
    entries: u64,
    inodes: HashMap<u64, Changed, foldhash::quality::RandomState>,
    directories: HashMap<u64, Names, foldhash::quality::RandomState>,
}

/// An inode that the log touches.
struct Changed {
    metadata: Metadata,
    target: Option<Vec<u8>>,
    /// `Some` once data or size changed.
    data: Option<Written>,
}

/// Names of a directory that the log changes, in order of creation.
#[derive(Default)]
struct Names {
    order: Vec<(Vec<u8>, Option<u64>)>,
    places: HashMap<Vec<u8>, usize, foldhash::quality::RandomState>,
}

impl Names {
    fn set(&mut self, name: &[u8], ino: u64) {
        match self.places.get(name).and_then(|&place| self.order.get_mut(place)) {
            Some(entry) => entry.1 = Some(ino),
            None => {
                self.places.insert(name.to_vec(), self.order.len());
                self.order.push((name.to_vec(), Some(ino)));
            }
        }
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some(entry) = self.places.remove(name).and_then(|place| self.order.get_mut(place)) {
            entry.1 = None;
        }
    }
}

/// One entry of the log: its head, what follows, and where that lies.
struct LogEntry<'a> {
    place: String,
    head: v5::DeltaHeader,
    body: &'a [u8],
    /// Absolute offset of the first byte behind the entry.
    end: u64,
}

impl<'a> LogEntry<'a> {
    fn fields<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<(T, &'a [u8])> {
        T::read_from_prefix(self.body).map_err(|_| self.too_short())
    }

    fn name(&self, rest: &'a [u8], start: usize, len: u16) -> Result<&'a [u8]> {
        let len = usize::from(len);
        let name = rest.get(start..start.saturating_add(len)).ok_or_else(|| self.too_short())?;
        if name.is_empty() || name.len() > crate::format::NAME_MAX {
            return Err(invalid(self.place.clone(), Rule::NameLength, name.len()));
        }
        check_name(name, || self.place.clone())?;
        Ok(name)
    }

    fn too_short(&self) -> Error {
        invalid(self.place.clone(), Rule::LogEntry, format_args!("{} bytes", self.head.total_size.get()))
    }
}

impl Replayed {
    /// Copies the log and applies it entry by entry.
    pub fn new(reader: &mut Reader<'_>, base: Base, log: Range<u64>) -> Result<Self> {
        let mut bytes = Vec::new();
        reader.copy(|| "delta log".to_owned(), log.clone(), &mut bytes)?;
        let mut replayed =
            Self { base, entries: 0, inodes: HashMap::default(), directories: HashMap::default() };
        let mut at = 0_usize;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let place =
                format!("delta log entry {} at {:#x}", replayed.entries, log.start.saturating_add(at as u64));
            let Ok((head, _)) = v5::DeltaHeader::read_from_prefix(rest) else {
                return Err(invalid(place, Rule::LogEntry, format_args!("{} bytes", rest.len())));
            };
            let total = head.total_size.get() as usize;
            if total == 0 {
                break;
            }
            let Some(body) = rest.get(size_of::<v5::DeltaHeader>()..total) else {
                return Err(invalid(place, Rule::LogEntry, format_args!("{total} bytes")));
            };
            at = at.saturating_add(total);
            let entry = LogEntry { place, head, body, end: log.start.saturating_add(at as u64) };
            replayed.apply(reader, &entry)?;
            replayed.entries = replayed.entries.saturating_add(1);
        }
        Ok(replayed)
    }

    pub fn entries(&self) -> u64 {
        self.entries
    }

    fn apply(&mut self, reader: &mut Reader<'_>, entry: &LogEntry<'_>) -> Result<()> {
        let ino = entry.head.ino.get();
        match entry.head.kind.get() {
            1 => {
                let (fields, rest) = entry.fields::<v5::DeltaWrite>()?;
                let len = u64::from(fields.len.get());
                let start = fields.offset.get();
                let end = start.checked_add(len).filter(|_| len <= rest.len() as u64);
                let end = end.ok_or_else(|| entry.too_short())?;
                reader.charge(|| entry.place.clone(), WRITE_COST)?;
                let file = self.file(reader, ino, entry)?;
                // The data is the end of the entry's body.
                data(file).write(start, len, entry.end.saturating_sub(len));
                file.metadata.size = file.metadata.size.max(end);
            }
            2 | 5 => {
                let (fields, rest) = entry.fields::<v5::DeltaCreate>()?;
                let name = entry.name(rest, 0, fields.name_len.get())?;
                let mode = fields.mode.get();
                let expected = if entry.head.kind.get() == 5 { S_IFDIR } else { mode & S_IFMT };
                if mode & S_IFMT != expected || mode & S_IFMT == 0 {
                    return Err(invalid(entry.place.clone(), Rule::FileType, format_args!("mode {mode:o}")));
                }
                // Only entries of kind 8 have a target.
                if expected == S_IFLNK {
                    return Err(invalid(entry.place.clone(), Rule::LinkTarget, "none"));
                }
                let nlink = if expected == S_IFDIR { 2 } else { 1 };
                let owner = (fields.uid.get(), fields.gid.get());
                self.create(
                    reader,
                    entry,
                    fields.parent_ino.get(),
                    name,
                    fields.new_ino.get(),
                    mode,
                    owner,
                    nlink,
                )?;
            }
            3 => {
                let (fields, rest) = entry.fields::<v5::DeltaDelete>()?;
                let name = entry.name(rest, 0, fields.name_len.get())?;
                self.names(reader, fields.parent_ino.get(), entry)?.remove(name);
                let inode = self.inode_mut(reader, ino, entry)?;
                inode.metadata.nlink = inode.metadata.nlink.saturating_sub(1);
            }
            4 => {
                let (fields, _) = entry.fields::<v5::DeltaTruncate>()?;
                self.resize(reader, ino, fields.new_size.get(), entry)?;
            }
            6 => {
                let (fields, rest) = entry.fields::<v5::DeltaRename>()?;
                let old = entry.name(rest, 0, fields.old_name_len.get())?;
                let new = entry.name(rest, old.len(), fields.new_name_len.get())?;
                self.inode_mut(reader, fields.ino.get(), entry)?;
                self.names(reader, fields.old_parent_ino.get(), entry)?.remove(old);
                self.names(reader, fields.new_parent_ino.get(), entry)?.set(new, fields.ino.get());
            }
            7 => {
                let (fields, _) = entry.fields::<v5::DeltaSetattr>()?;
                let valid = fields.valid.get();
                if valid & 8 != 0 {
                    self.resize(reader, ino, fields.size.get(), entry)?;
                }
                let metadata = &mut self.inode_mut(reader, ino, entry)?.metadata;
                if valid & 1 != 0 {
                    if fields.mode.get() & S_IFMT != metadata.mode & S_IFMT {
                        let found = format_args!("mode {:o}", fields.mode.get()).to_string();
                        return Err(invalid(entry.place.clone(), Rule::FileType, found));
                    }
                    metadata.mode = fields.mode.get();
                }
                if valid & 2 != 0 {
                    metadata.uid = fields.uid.get();
                }
                if valid & 4 != 0 {
                    metadata.gid = fields.gid.get();
                }
            }
            8 => {
                let (fields, rest) = entry.fields::<v5::DeltaSymlink>()?;
                let name = entry.name(rest, 0, fields.name_len.get())?;
                let len = usize::from(fields.target_len.get());
                let target =
                    rest.get(name.len()..name.len().saturating_add(len)).ok_or_else(|| entry.too_short())?;
                if target.is_empty() || target.len() as u64 > TARGET_MAX || target.contains(&0) {
                    let found = format_args!("{len} bytes").to_string();
                    return Err(invalid(entry.place.clone(), Rule::LinkTarget, found));
                }
                let owner = (fields.uid.get(), fields.gid.get());
                let new = fields.new_ino.get();
                self.create(reader, entry, fields.parent_ino.get(), name, new, S_IFLNK | 0o777, owner, 1)?;
                let link = self.inode_mut(reader, new, entry)?;
                link.metadata.size = target.len() as u64;
                link.target = Some(target.to_vec());
            }
            kind => return Err(invalid(entry.place.clone(), Rule::LogEntryKind, kind)),
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one log entry, used in two places")]
    fn create(
        &mut self,
        reader: &mut Reader<'_>,
        entry: &LogEntry<'_>,
        parent: u64,
        name: &[u8],
        ino: u64,
        mode: u32,
        (uid, gid): (u32, u32),
        nlink: u32,
    ) -> Result<()> {
        self.names(reader, parent, entry)?.set(name, ino);
        reader.charge(|| entry.place.clone(), INODE_COST.saturating_add(NAME_COST))?;
        let metadata = Metadata { ino, mode, uid, gid, size: 0, nlink };
        let data = (mode & S_IFMT == S_IFREG).then(|| Written::new(0));
        self.inodes.insert(ino, Changed { metadata, target: None, data });
        if mode & S_IFMT == S_IFDIR {
            self.directories.insert(ino, Names::default());
        }
        Ok(())
    }

    fn resize(&mut self, reader: &mut Reader<'_>, ino: u64, size: u64, entry: &LogEntry<'_>) -> Result<()> {
        let file = self.file(reader, ino, entry)?;
        data(file).truncate(size);
        file.metadata.size = size;
        Ok(())
    }

    fn file(&mut self, reader: &mut Reader<'_>, ino: u64, entry: &LogEntry<'_>) -> Result<&mut Changed> {
        let inode = self.inode_mut(reader, ino, entry)?;
        if inode.metadata.file_type() != FileType::File {
            return Err(invalid(entry.place.clone(), Rule::LogInode, inode.metadata.file_type()));
        }
        Ok(inode)
    }

    /// The inode as the log has it so far; a base inode is copied in at its first change.
    fn inode_mut(&mut self, reader: &mut Reader<'_>, ino: u64, entry: &LogEntry<'_>) -> Result<&mut Changed> {
        if !self.inodes.contains_key(&ino) {
            let Some(slot) = self.base.slot(ino).copied() else {
                return Err(invalid(entry.place.clone(), Rule::LogInode, format_args!("inode {ino}")));
            };
            let metadata = Metadata {
                ino,
                mode: slot.mode,
                uid: slot.uid,
                gid: slot.gid,
                size: slot.size,
                nlink: slot.nlink,
            };
            let target = match metadata.file_type() {
                FileType::Symlink => Some(self.base.read_target(reader, ino, &slot)?),
                _ => None,
            };
            reader.charge(|| entry.place.clone(), INODE_COST)?;
            self.inodes.insert(ino, Changed { metadata, target, data: None });
        }
        self.inodes
            .get_mut(&ino)
            .ok_or_else(|| invalid(entry.place.clone(), Rule::LogInode, format_args!("inode {ino}")))
    }

    /// The names of a directory as the log has them so far.
    fn names(&mut self, reader: &mut Reader<'_>, ino: u64, entry: &LogEntry<'_>) -> Result<&mut Names> {
        if !self.directories.contains_key(&ino) {
            let mode = match (self.inodes.get(&ino), self.base.slot(ino)) {
                (Some(inode), _) => inode.metadata.mode,
                (None, Some(slot)) => slot.mode,
                (None, None) => 0,
            };
            if mode & S_IFMT != S_IFDIR {
                let found = format_args!("inode {ino}, which is no directory").to_string();
                return Err(invalid(entry.place.clone(), Rule::LogInode, found));
            }
            let mut names = Names::default();
            self.base.entries(reader, ino, &mut |child| {
                names.set(child.name, child.ino);
                Ok(())
            })?;
            let built = (names.order.len() as u64).saturating_mul(NAME_COST);
            reader.charge(|| format!("{}: names of directory {ino}", entry.place), built)?;
            self.directories.insert(ino, names);
        }
        self.directories
            .get_mut(&ino)
            .ok_or_else(|| invalid(entry.place.clone(), Rule::LogInode, format_args!("inode {ino}")))
    }
}

/// The changed data of a file; at its first change all packed bytes still show.
fn data(file: &mut Changed) -> &mut Written {
    let base_len = file.metadata.size;
    file.data.get_or_insert_with(|| Written::new(base_len))
}

impl Source for Replayed {
    fn inode(&mut self, reader: &mut Reader<'_>, ino: u64, arena: &mut Vec<u8>) -> Result<Inode> {
        let Some(changed) = self.inodes.get(&ino) else {
            return self.base.inode(reader, ino, arena);
        };
        let metadata = changed.metadata;
        let packed = self.base.slot(ino).filter(|slot| slot.is_file()).map_or(0, |slot| slot.size);
        check_changed_size(ino, metadata.size, packed, reader.len(), PAGE)?;
        let content = match (metadata.file_type(), &changed.data, &changed.target) {
            (FileType::Symlink, _, Some(target)) => store_target(arena, target)?,
            (FileType::File, data, _) => {
                let base = self.base.slot(ino).filter(|slot| slot.is_file());
                let base = base.map_or(Content::Empty, |slot| self.base.file_content(slot));
                match (data, base) {
                    (None, base) => base,
                    (Some(data), Content::Elsewhere(why)) if data.base_len() > 0 => Content::Elsewhere(why),
                    (Some(data), base) => data.pieces(metadata.size, &base),
                }
            }
            _ => Content::Empty,
        };
        Ok(Inode { metadata, content })
    }

    fn children(
        &mut self,
        reader: &mut Reader<'_>,
        ino: u64,
        each: &mut dyn FnMut(Child<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(names) = self.directories.get(&ino) else {
            return self.base.entries(reader, ino, each);
        };
        for (name, child) in &names.order {
            if let Some(ino) = *child {
                each(Child { name, ino })?;
            }
        }
        Ok(())
    }

    fn expected_entries(&self) -> u64 {
        self.base.expected_entries().saturating_add(self.entries)
    }

    fn unreachable_directory(&self, _reached: &dyn Fn(u64) -> bool) -> Option<u64> {
        None
    }
}
