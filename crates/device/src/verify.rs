//! Comparing a copy in the device's memory with the image: each file's BLAKE3 hash, computed on the device, with the
//! one that the packer stored.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use daxfs::{File, FileType, PieceSource, content_hash_by};

use crate::copy::threads;
use crate::{Buffer, Device, DeviceError, Error, MappedImage, Place, Placement, Result};

/// A BLAKE3 hash.
pub(crate) type Hash = [u8; 32];

/// Told of bytes that are done; an error ends the work.
pub(crate) type Advance<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// Threads that hash on the host, and bytes that they take from the device at a time.
const MAX_THREADS: usize = 8;
const PIECE: usize = 4 << 20;

/// What a comparison saw; a difference is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Files that were compared; hard links count once. What a rank of a plan holds is compared by ranges: no files.
    pub files: u64,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Whether the device computed the hashes. Else all bytes were copied back and hashed on the host.
    pub on_device: bool,
}

/// Bytes of the parts that a rank's copy is compared by.
const PART: usize = 64 << 20;

/// Bytes that lie in one place, and what they should be.
struct Check {
    source: Source,
    place: Place,
    /// Of the index; `None` where the image on the host is asked.
    wanted: Option<Hash>,
}

/// Where they are in the image.
enum Source {
    /// In a file, from there on.
    File(File, u64),
    /// In what a rank holds, from there on.
    Placement(Placement, u64),
}

impl MappedImage {
    /// Compares this copy with the image: every file's BLAKE3, computed from what is in the device's memory, has to be
    /// that of the image's index ([`Index::file_hash`](daxfs::Index::file_hash)), and the hashes together that of the
    /// whole content ([`Image::content_hash`](daxfs::Image::content_hash)). Files that the index has no hash of (an
    /// image that was packed without hashes or was written to, the index itself) are hashed on the host, too. What no
    /// file holds is not compared: metadata, which is read on the host only, and the space between files. What a rank
    /// of a plan holds are parts of files, so all of it is hashed on the host, too.
    ///
    /// The device computes the hashes, so that no byte of a file in its memory goes over the link; what is in host
    /// memory does, once. That takes 36 MiB of its memory meanwhile, or 2 where there are no more. Where the driver
    /// cannot load the kernels (a GPU older than compute capability 7.0, a container without the driver's compiler)
    /// everything is copied back and hashed on the host instead; [`Verified::on_device`] tells.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] names a file that is another on the device; [`daxfs::Error::OtherContent`] for hashes
    /// in the index that do not add up to its content hash; [`DeviceError::NotResident`] for an image that is only
    /// mapped, [`DeviceError::OutOfMemory`], [`DeviceError::Driver`], and [`daxfs::Error::Tensor`] for a broken index.
    pub fn verify(&self) -> Result<Verified> {
        self.verify_with(|_, _| true)
    }

    /// Like [`MappedImage::verify`], and calls `progress` with the bytes that are compared and all bytes, from several
    /// threads, which may overtake each other; `false` ends the comparison.
    ///
    /// # Errors
    /// As for [`MappedImage::verify`]; [`DeviceError::Cancelled`].
    pub fn verify_with(&self, progress: impl Fn(u64, u64) -> bool + Sync) -> Result<Verified> {
        let device = self.memory().device();
        if !self.buffers().first().is_some_and(Buffer::is_copy) {
            return Err(device
                .backend()
                .not_resident("it reads the host's, so verify the image there")
                .into());
        }
        let checks = self.checks()?;
        // Files of an image that was made so may share bytes, and have any number of them together.
        let all = checks.iter().map(|check| check.place.len()).fold(0, u64::saturating_add);
        let done = AtomicU64::new(0);
        let advance = |bytes: u64| match progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, all) {
            true => Ok(()),
            false => Err(DeviceError::Cancelled { device: device.name().into() }.into()),
        };
        let places: Vec<Place> = checks.iter().map(|check| check.place.clone()).collect();
        let (found, on_device) = match device.backend().hash(&places, &advance)? {
            Some(found) => (found, true),
            None => (in_parallel(&places, |place| read_back(place, &advance))?, false),
        };
        compare(device, &checks, &found, &advance)?;
        self.compare_content(&checks, &found)?;
        let files: HashSet<u64> = checks.iter().filter_map(|check| check.source.ino()).collect();
        Ok(Verified { files: files.len() as u64, bytes: all, on_device })
    }

    /// What is to be compared: the bytes of each file, once for all of its names.
    fn checks(&self) -> Result<Vec<Check>> {
        if let Some(placement) = self.placement() {
            return self.parts(placement);
        }
        let index = self.image().index()?.filter(|index| index.has_hashes());
        let (mut known, mut checks) = (HashSet::new(), Vec::new());
        for entry in self.image().walk().filter(|entry| entry.file_type() == FileType::File) {
            let file = entry.file()?;
            if !known.insert(file.ino()) {
                continue;
            }
            let mut add = |start: u64, len: u64, wanted: Option<Hash>| {
                let place = self.file_range(&file, start, len)?.one()?;
                checks.push(Check { source: Source::File(file.clone(), start), place, wanted });
                Ok::<_, Error>(())
            };
            match file.pieces() {
                Ok(pieces) if file.is_changed() => {
                    for piece in pieces.iter() {
                        // Zeros that lie nowhere are nowhere on the device.
                        if piece.source != PieceSource::Zeros {
                            add(piece.start, piece.len, None)?;
                        }
                    }
                }
                Ok(_) => {
                    let record = index.map(|index| index.file(file.ino())).transpose()?.flatten();
                    let record = record.filter(|record| record.size == file.len());
                    add(0, file.len(), record.and_then(|record| record.hash))?;
                }
                // There is nothing of it on the device either.
                Err(daxfs::Error::NoContents { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(checks)
    }

    /// The bytes that a rank holds. What lies between them is not compared.
    fn parts(&self, placement: &Placement) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        for segment in placement.segments().as_slice() {
            for start in (segment.to..segment.end()).step_by(PART) {
                let place = self.memory().packed(start, (PART as u64).min(segment.end() - start))?;
                let source = Source::Placement(placement.clone(), start);
                checks.push(Check { source, place, wanted: None });
            }
        }
        Ok(checks)
    }

    /// The hashes of the index are those that its content hash was made of.
    fn compare_content(&self, checks: &[Check], found: &[Hash]) -> Result<()> {
        let Some(expected) = self.image().content_hash() else { return Ok(()) };
        let hashes: HashMap<u64, Hash> =
            checks.iter().zip(found).filter_map(|(check, hash)| Some((check.source.ino()?, *hash))).collect();
        let mut is_whole = true;
        let content = content_hash_by::<daxfs::Error>(self.image(), |file| {
            let hash = hashes.get(&file.ino()).copied();
            is_whole &= hash.is_some();
            Ok(hash.unwrap_or_default())
        })?;
        // Without all files nothing is known of the whole.
        match content == expected || !is_whole {
            true => Ok(()),
            false => Err(daxfs::Error::OtherContent { expected, found: Some(content) }.into()),
        }
    }
}

/// Compares what was found with the index, or with the host's bytes, which takes as long as they are: `advance` may end
/// it, and is told of no bytes, since those of the device were counted.
fn compare(
    device: &Device,
    checks: &[Check],
    found: &[Hash],
    advance: &(impl Fn(u64) -> Result<()> + Sync),
) -> Result<()> {
    let pairs: Vec<(&Check, &Hash)> = checks.iter().zip(found).collect();
    in_parallel(&pairs, |(check, found)| {
        let wanted = match check.wanted {
            Some(hash) => hash,
            None => hash_pieces(check.place.len(), |offset, bytes| {
                check.source.read_at(offset, bytes)?;
                advance(0)
            })?,
        };
        if wanted == **found {
            return Ok([0; 32]);
        }
        let (device, path) = (device.name().into(), check.source.path());
        let (wanted, found) = (Box::new(wanted), Box::new(**found));
        Err(DeviceError::Mismatch { device, path, wanted, found }.into())
    })
    .map(drop)
}

impl Source {
    fn ino(&self) -> Option<u64> {
        match self {
            Source::File(file, _) => Some(file.ino()),
            Source::Placement(..) => None,
        }
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match self {
            Source::File(file, start) => {
                let (offset, len) = (start + offset, bytes.len() as u64);
                let read = file.read_at(offset, bytes)?;
                let missing = || dmabuf::Error::OutOfBounds { offset, len, bound: file.len() };
                if read == bytes.len() { Ok(()) } else { Err(missing().into()) }
            }
            Source::Placement(placement, start) => {
                placement.segments().read_at(placement.image().region(), start + offset, bytes)
            }
        }
    }

    /// Of the file, for messages; of several, the one that the first byte is in.
    fn path(&self) -> Vec<u8> {
        match self {
            Source::File(file, _) => file.path(),
            Source::Placement(placement, start) => placement.path_at(*start).unwrap_or_default(),
        }
    }
}

/// The hash of the device's bytes, copied back.
fn read_back(place: &Place, advance: &impl Fn(u64) -> Result<()>) -> Result<Hash> {
    hash_pieces(place.len(), |offset, bytes| {
        place.buffer().read(place.offset() + offset, bytes)?;
        advance(bytes.len() as u64)
    })
}

fn hash_pieces(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Hash> {
    let mut piece = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
    let mut hasher = blake3::Hasher::new();
    for offset in (0..len).step_by(PIECE) {
        let bytes = usize::try_from(len - offset).unwrap_or(PIECE).min(PIECE);
        read(offset, &mut piece[..bytes])?;
        hasher.update(&piece[..bytes]);
    }
    Ok(hasher.finalize().into())
}

/// Hashes of all items, in their order, on several threads.
fn in_parallel<T: Sync>(items: &[T], hash: impl Fn(&T) -> Result<Hash> + Sync) -> Result<Vec<Hash>> {
    let hashes = Mutex::new(vec![[0; 32]; items.len()]);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    threads::run(count.min(items.len()), &stop, || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { break };
            let hash = hash(item)?;
            hashes.lock().unwrap_or_else(PoisonError::into_inner)[number] = hash;
        }
        Ok(())
    })?;
    Ok(hashes.into_inner().unwrap_or_else(PoisonError::into_inner))
}
