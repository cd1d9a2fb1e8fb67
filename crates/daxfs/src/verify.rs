//! The bytes of files against the hashes that the content hash is made of: all of them when an image is opened, or each
//! at its first use.
//!
//! What is compared with was copied when the index was checked, so nobody changes it afterwards. What is hashed is read
//! as every reader reads it: of memory that others can write, the bytes that were there then.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::error::{Error, Result};
use crate::tensor::Place;
use crate::{Entry, File, FileType, Image};

/// Which bytes are compared with the hashes of an image, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Every file is hashed when the image is opened.
    Full,
    /// Each file is hashed when it is used for the first time.
    Lazy,
    /// No file is hashed: what the image says of its files is believed.
    Stored,
}

impl Verify {
    /// Every value, with its name.
    pub const NAMES: [(&'static str, Self); 3] =
        [("full", Self::Full), ("lazy", Self::Lazy), ("stored", Self::Stored)];
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Lazy => "lazy",
            Self::Stored => "stored",
        })
    }
}

impl FromStr for Verify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, verify)| *verify);
        found.ok_or_else(|| format!("{text:?} is none of full, lazy and stored"))
    }
}

/// Told how many bytes of how many were hashed; `false` ends the opening.
#[derive(Clone)]
pub(crate) struct Progress(pub(crate) Arc<dyn Fn(u64, u64) -> bool + Send + Sync>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// The hash of each file as the content hash has it, in the order of inode numbers.
#[derive(Debug, Default)]
pub(crate) struct Hashes(Vec<(u64, [u8; 32])>);

impl Hashes {
    /// Of inode numbers in ascending order.
    pub fn new(hashes: Vec<(u64, [u8; 32])>) -> Self {
        Self(hashes)
    }

    /// The index itself has none: the hash of its records stands for it.
    fn of(&self, file: &File) -> Option<[u8; 32]> {
        let found = self.0.binary_search_by_key(&file.ino(), |(ino, _)| *ino).ok()?;
        self.0.get(found).map(|(_, hash)| *hash)
    }

    /// An error unless `found` is the hash of the file.
    fn compare(&self, file: &File, found: [u8; 32]) -> Result<()> {
        match self.of(file) {
            Some(expected) if expected != found => {
                Err(Error::WrongHash { path: file.path(), expected, found })
            }
            _ => Ok(()),
        }
    }
}

/// What a file costs while all are compared: its place, the file twice, its inode.
const CHECKED_BYTES: u64 =
    (size_of::<(Place, usize)>() + size_of::<File>() + size_of::<(File, usize)>() + size_of::<u64>()) as u64;

/// Hashes every file of an image that has a hash, each stretch of it once, on all processors.
///
/// # Errors
/// [`Error::WrongHash`] with one of the files that are not what the image says; [`Error::FilesOverlap`] where there would
/// be more to hash than an honest image has; [`Error::MetadataLimit`]; [`Error::Cancelled`]; as for [`File::read_at`].
pub(crate) fn check_all(image: &Image, hashes: &Hashes, progress: Option<&Progress>) -> Result<()> {
    let mut places: HashMap<Place, usize> = HashMap::new();
    let mut files: Vec<File> = Vec::new();
    let mut names: Vec<(File, usize)> = Vec::new();
    let mut inodes = std::collections::HashSet::new();
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        if !inodes.insert(entry.metadata().ino) {
            continue;
        }
        let file = entry.file()?;
        if hashes.of(&file).is_none() {
            continue;
        }
        image.charge("files that are compared", CHECKED_BYTES)?;
        let place = *places.entry(Place::of(&file)).or_insert_with(|| {
            files.push(file.clone());
            files.len().saturating_sub(1)
        });
        names.push((file, place));
    }
    let total = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.len()));
    let memory = image.region().len().saturating_add(image.backing().map_or(0, crate::Region::len));
    if total > memory.saturating_mul(2) {
        return Err(Error::FilesOverlap { total, memory });
    }
    let report = |done| match progress {
        Some(Progress(tell)) if !tell(done, total) => Err(Error::Cancelled),
        _ => Ok(()),
    };
    // Files are compared when all are hashed: one that several names have is compared under each.
    let found = hash_files(&files, &report)?;
    for (file, place) in &names {
        if let Some(found) = found.get(*place) {
            hashes.compare(file, *found)?;
        }
    }
    Ok(())
}

/// Bytes that one thread hashes at a time: a power of two, so that each is a subtree of BLAKE3's tree.
const PIECE: u64 = 4 << 20;

/// BLAKE3 of files, in their order, by as many threads as there are processors. `report` is told how many bytes are
/// done, and may end the work.
fn hash_files(files: &[File], report: &(dyn Fn(u64) -> Result<()> + Sync)) -> Result<Vec<[u8; 32]>> {
    let mut pieces: Vec<(usize, Range<u64>)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let mut start = 0_u64;
        loop {
            let end = start.saturating_add(PIECE).min(file.len());
            pieces.push((number, start..end));
            if end == file.len() {
                break;
            }
            start = end;
        }
    }
    let values: Vec<OnceLock<[u8; 32]>> = pieces.iter().map(|_| OnceLock::new()).collect();
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        let mut buffer = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some((number, range)), Some(value)) = (pieces.get(at), values.get(at)) else { break };
            let Some(file) = files.get(*number) else { break };
            let hashed = hash_piece(file, range.clone(), &mut buffer).and_then(|hash| {
                let len = range.end.saturating_sub(range.start);
                let done = done.fetch_add(len, Ordering::Relaxed).saturating_add(len);
                report(done).map(|()| hash)
            });
            match hashed {
                // Each piece has its turn once.
                Ok(hash) => drop(value.set(hash)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces.len());
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("daxfs-hash".into()).spawn_scoped(scope, work);
        // Where no thread can be had, those that there are do the work.
        let others: Vec<_> = (1..threads).map_while(|number| spawn(number).ok()).collect();
        let mut outcome = work();
        for other in others {
            match other.join() {
                Ok(result) => outcome = outcome.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        outcome
    })?;
    let mut values = values.into_iter().map(|value| value.into_inner().unwrap_or_default());
    Ok(files
        .iter()
        .map(|file| {
            let count = usize::try_from(file.len().div_ceil(PIECE).max(1)).unwrap_or(usize::MAX);
            let own: Vec<_> = values.by_ref().take(count).collect();
            match own.as_slice() {
                [whole] => *whole,
                parts => root(parts, file.len()),
            }
        })
        .collect())
}

/// The hash of a file that is one piece, else the chaining value of one of its pieces.
fn hash_piece(file: &File, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let whole = range.start == 0 && range.end == file.len();
    if !whole {
        hasher.set_input_offset(range.start);
    }
    file.each_chunk_unchecked(range, buffer, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(if whole { hasher.finalize().into() } else { hasher.finalize_non_root() })
}

/// The hash of a file of `len` bytes, more than one piece, from its pieces.
fn root(values: &[[u8; 32]], len: u64) -> [u8; 32] {
    let (left, right) = halves(values, len);
    *merge_subtrees_root(&subtree(left.0, left.1), &subtree(right.0, right.1), Mode::Hash).as_bytes()
}

/// The chaining value of a subtree; as deep as the logarithm of its length.
fn subtree(values: &[[u8; 32]], len: u64) -> [u8; 32] {
    match values {
        [value] => *value,
        // There are as many as the length says.
        [] => [0; 32],
        _ => {
            let (left, right) = halves(values, len);
            merge_subtrees_non_root(&subtree(left.0, left.1), &subtree(right.0, right.1), Mode::Hash)
        }
    }
}

type Half<'a> = (&'a [[u8; 32]], u64);

fn halves(values: &[[u8; 32]], len: u64) -> (Half<'_>, Half<'_>) {
    let left = left_subtree_len(len);
    let middle = usize::try_from(left.div_ceil(PIECE)).unwrap_or(usize::MAX).min(values.len());
    let (a, b) = values.split_at(middle);
    ((a, left), (b, len.saturating_sub(left)))
}

/// The hash of a place, once it was computed.
type Slot = Arc<Mutex<Option<[u8; 32]>>>;

/// Which files of an image were compared already.
#[derive(Debug)]
pub(crate) struct Lazy {
    hashes: Hashes,
    /// A bit for each inode of the image's tree.
    right: Box<[AtomicU64]>,
    /// The hashes that were computed, by place: files that share their bytes are read once. A thread that finds the
    /// lock of a place taken waits for the hash that another one computes.
    computed: Mutex<HashMap<Place, Slot>>,
}

impl Lazy {
    /// Of an image with `inodes` inodes, none of which was looked at yet.
    pub fn new(hashes: Hashes, inodes: usize) -> Self {
        let words = (0..inodes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { hashes, right: words, computed: Mutex::default() }
    }

    /// Hashes the file unless it was found to be right before; `inode` is its number in the image's tree.
    ///
    /// # Errors
    /// [`Error::WrongHash`], each time; as for [`File::read_at`].
    pub fn check(&self, file: &File, inode: u32) -> Result<()> {
        let word = usize::try_from(inode / 64).ok().and_then(|word| self.right.get(word));
        let bit = 1_u64 << (inode % 64);
        // Acquire and Release: who sees the bit also sees what the thread that set it has read.
        if word.is_some_and(|word| word.load(Ordering::Acquire) & bit != 0) {
            return Ok(());
        }
        if self.hashes.of(file).is_some() {
            let slot = {
                // A map is whole between any two calls, also after a panic of another thread.
                let mut computed = self.computed.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(computed.entry(Place::of(file)).or_default())
            };
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let found = match *slot {
                Some(found) => found,
                None => {
                    let hashed = hash_files(std::slice::from_ref(file), &|_| Ok(()))?;
                    *slot.insert(hashed.first().copied().unwrap_or_default())
                }
            };
            self.hashes.compare(file, found)?;
        }
        if let Some(word) = word {
            word.fetch_or(bit, Ordering::Release);
        }
        Ok(())
    }
}

impl Image {
    /// Compares every file that was not used yet with its hash, for an image that was opened with [`Verify::Lazy`]:
    /// before all of the memory goes to somebody who does not ask file by file.
    ///
    /// # Errors
    /// As for [`Entry::file`] and [`File::check`].
    pub fn check_files(&self) -> Result<()> {
        if self.lazy().is_none() {
            return Ok(());
        }
        let mut files = self.walk().filter(|entry: &Entry| entry.file_type() == FileType::File);
        files.try_for_each(|entry| entry.file()?.check())
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
