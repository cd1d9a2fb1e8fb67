//! Files against the records of the index: sizes, paths, hashes, and the hash of all contents.

use super::{Findings, Kind, hash_text};
use crate::paths::each_in_order;
use crate::progress::Progress;
use crate::text::{escape, human};
use daxfs::tensor::index::Groups;
use daxfs::{ContentHash, Entry, File, FileType, Image, Index, Region, format};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// Where the bytes of a file lie; files that share them are hashed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    /// Region, offset and length.
    Extent(usize, u64, u64),
    /// In pieces or elsewhere: the inode.
    Inode(u64),
}

/// Compares every regular file outside `/.daxfs` with its record. Returns false when the index is not worth a further
/// look.
pub fn check(image: &Image, index: &Index, quiet: bool, findings: &mut Findings) -> bool {
    // One entry per inode, by its first path.
    let mut inodes: BTreeMap<u64, Entry> = BTreeMap::new();
    each_in_order(image, |_, entry| {
        if entry.file_type() == FileType::File {
            inodes.entry(entry.metadata().ino).or_insert_with(|| entry.clone());
        }
    });
    let sound = records(image, index, &inodes, findings);
    // Version 1 has no hashes of its records; its tensors are compared with the headers, as those of version 2 are.
    if index.version() != format::index::v1::VERSION
        && let Err(error) = index.check(image)
    {
        findings.judge(Kind::Index, format::index::PATH.as_bytes(), error);
    }
    if !index.has_hashes() {
        return sound;
    }
    let known = hashes(image, &inodes, quiet, findings);
    let mut wrong = WrongGroups::default();
    for (ino, hash) in &known {
        let Some(entry) = inodes.get(ino) else { continue };
        findings.facts.hashed_files = findings.facts.hashed_files.saturating_add(1);
        match index.file_hash(*ino) {
            Ok(Some(stored)) if stored != *hash => {
                let place = entry.file().ok().and_then(|file| wrong.find(&file, index)).unwrap_or_default();
                let (hash, stored) = (hash_text(hash), hash_text(&stored));
                let text = format!("BLAKE3 is {hash}, the index has {stored}{place}");
                findings.differ(Kind::Hash, Some(&entry.path()), text);
            }
            // A record that is missing or wrong was noted above.
            Ok(_) | Err(_) => (),
        }
    }
    if let Some(computed) = content_hash(image, &known, findings) {
        findings.facts.content_hash = Some(computed.digits().to_string());
        match index.content_hash() {
            Some(stored) if stored != computed => {
                let text =
                    format!("content hash is {}, the index has {}", computed.digits(), stored.digits());
                findings.differ(Kind::Hash, None, text);
            }
            _ => (),
        }
    }
    sound
}

/// Every file has a record, and every record a file: one of its paths, and its size.
fn records(image: &Image, index: &Index, inodes: &BTreeMap<u64, Entry>, findings: &mut Findings) -> bool {
    for (ino, entry) in inodes {
        let size = entry.metadata().size;
        match index.file(*ino) {
            Ok(Some(record)) if record.size != size => {
                let text = format!("{size} bytes, the index has {}", record.size);
                findings.differ(Kind::Index, Some(&entry.path()), text);
            }
            Ok(Some(_)) => (),
            Ok(None) => {
                let text = format!("inode {ino} has no record in the index");
                findings.differ(Kind::Index, Some(&entry.path()), text);
            }
            Err(error) => findings.judge(Kind::Index, &entry.path(), error),
        }
    }
    // Files have different paths, so these are together no longer than the index.
    let mut left = image.entry_no_follow(format::index::PATH).map_or(0, |entry| entry.metadata().size);
    let mut last = None;
    for (number, record) in index.files().enumerate() {
        // Broken records of existing inodes were noted above; those of others can only be noted here.
        let Ok(record) = record else { continue };
        let path = match index.path(&record) {
            Ok(path) => path,
            Err(error) => {
                findings.differ(Kind::Index, None, error.to_string());
                continue;
            }
        };
        let Some(rest) = left.checked_sub(path.len() as u64) else {
            let text = format!("file record {number}: the paths of the records share their bytes");
            findings.differ(Kind::Index, None, text);
            return false;
        };
        left = rest;
        if last.is_some_and(|last| last >= record.ino) {
            let text = format!("file record {number}: inode {} is not in order", record.ino);
            findings.differ(Kind::Index, Some(&path), text);
        }
        last = Some(record.ino);
        match inodes.get(&record.ino) {
            None => {
                let text = format!("file record {number}: the image has no file with inode {}", record.ino);
                findings.differ(Kind::Index, Some(&path), text);
            }
            // Any name of an inode is right.
            Some(entry)
                if !image.entry_no_follow(&path).is_ok_and(|named| named.metadata().ino == record.ino) =>
            {
                let text = format!("the index calls this inode {}", escape(&path));
                findings.differ(Kind::Index, Some(&entry.path()), text);
            }
            Some(_) => (),
        }
    }
    true
}

/// BLAKE3 of every file, each stretch of the image hashed once.
fn hashes(
    image: &Image,
    inodes: &BTreeMap<u64, Entry>,
    quiet: bool,
    findings: &mut Findings,
) -> BTreeMap<u64, [u8; 32]> {
    let mut places: BTreeMap<Place, File> = BTreeMap::new();
    let mut of_inode: Vec<(u64, Place)> = Vec::with_capacity(inodes.len());
    for (ino, entry) in inodes {
        match entry.file() {
            Ok(file) => {
                let place = Place::of(&file);
                of_inode.push((*ino, place));
                places.entry(place).or_insert(file);
            }
            Err(error) => findings.fail(error),
        }
    }
    let total = places.values().fold(0_u64, |sum, file| sum.saturating_add(file.len()));
    let memory = image.backing().map_or(0, Region::len).saturating_add(image.region().len());
    if total > memory.saturating_mul(2) {
        let text = format!(
            "files overlap without being the same: they have {}, more than twice the image's {}; not hashed",
            human(total),
            human(memory)
        );
        findings.differ(Kind::Structure, None, text);
        return BTreeMap::new();
    }
    let progress = Progress::new("hashing", total, quiet);
    let hashed: HashMap<Place, daxfs::Result<[u8; 32]>> =
        places.par_iter().map(|(place, file)| (*place, hash(file, &progress))).collect();
    drop(progress);
    let mut known = BTreeMap::new();
    let mut failed = Vec::new();
    for (place, outcome) in hashed {
        match outcome {
            Ok(_) if !places.contains_key(&place) => (),
            Ok(hash) => {
                let bytes = places.get(&place).map_or(0, File::len);
                findings.facts.hashed_bytes = findings.facts.hashed_bytes.saturating_add(bytes);
                known.insert(place, hash);
            }
            Err(error) => failed.push((place, error)),
        }
    }
    failed.sort_by_key(|(place, _)| *place);
    failed.into_iter().for_each(|(_, error)| findings.fail(error));
    of_inode.into_iter().filter_map(|(ino, place)| Some((ino, *known.get(&place)?))).collect()
}

impl Place {
    fn of(file: &File) -> Self {
        match file.extent() {
            Some(extent) => Self::Extent(file.region().view().as_ptr().addr(), extent.offset, extent.len),
            None => Self::Inode(file.ino()),
        }
    }
}

/// BLAKE3 of a file, on all cores when it is large.
fn hash(file: &File, progress: &Progress) -> daxfs::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; usize::try_from(file.len()).unwrap_or(CHUNK).min(CHUNK)];
    let mut offset = 0_u64;
    while offset < file.len() {
        let len = file.read_at(offset, &mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update_rayon(bytes);
        progress.add(len as u64);
        offset = offset.saturating_add(len as u64);
    }
    Ok(hasher.finalize().into())
}

/// The hash of all contents; `None` when the hash of a file is not known, or it would take too long.
fn content_hash(
    image: &Image,
    hashes: &BTreeMap<u64, [u8; 32]>,
    findings: &mut Findings,
) -> Option<ContentHash> {
    let mut complete = true;
    let hash = daxfs::content_hash_by(image, |file| {
        let hash = hashes.get(&file.ino()).copied();
        complete &= hash.is_some();
        Ok::<_, daxfs::Error>(hash.unwrap_or_default())
    });
    match hash {
        Ok(hash) => complete.then_some(hash),
        Err(error) => {
            findings.fail(error);
            None
        }
    }
}

/// Files whose groups are looked at: each is read once more for that.
const MOST_FILES: usize = 8;

/// Where files differ from their groups, by place and the hash in the index, which the groups give.
#[derive(Default)]
struct WrongGroups(HashMap<(Place, [u8; 32]), Option<String>>);

impl WrongGroups {
    /// The first 1 MiB of a file that differs, and how many do. Nothing where the index has no groups, where they do
    /// not give its hash, and for all but the first few files.
    fn find(&mut self, file: &File, index: &Index) -> Option<String> {
        let record = index.file(file.ino()).ok()??;
        // Groups of another size stand for other bytes.
        let hash = record.hash.filter(|_| record.size == file.len())?;
        let key = (Place::of(file), hash);
        if let Some(known) = self.0.get(&key) {
            return known.clone();
        }
        if self.0.len() >= MOST_FILES {
            return None;
        }
        let groups = index.groups(&record).ok()??;
        let found = wrong_groups(file, &groups);
        self.0.insert(key, found.clone());
        found
    }
}

fn wrong_groups(file: &File, groups: &Groups) -> Option<String> {
    let mut buffer = Vec::new();
    let (mut first, mut wrong) = (None, 0_u64);
    for group in 0..groups.count() {
        let range = groups.range(group);
        buffer.resize(usize::try_from(range.end.saturating_sub(range.start)).ok()?, 0);
        let len = file.read_at(range.start, &mut buffer).ok()?;
        if !groups.matches(group, buffer.get(..len)?) {
            first.get_or_insert(range.start);
            wrong = wrong.saturating_add(1);
        }
    }
    Some(format!("; {wrong} of {} MiB differ, the first from byte {} on", groups.count(), first?))
}
