//! An image that lies elsewhere: its metadata, or all of it in sealed memory.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Once};

use daxfs::{ContentHash, Image, OpenOptions, Region, Verify};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

use crate::check::Check;
use crate::fetch::{Fetch, Total};
use crate::plan::{Part, Piece, Plan};
use crate::target::Target;
use crate::{Error, Location, Options, Result, metadata, object};

/// Threads that receive and hash.
const MOST_THREADS: usize = 8;

/// An image on a server.
#[derive(Debug)]
pub struct Remote {
    runtime: Runtime,
    fetch: Arc<Fetch>,
}

/// An image in memory.
#[derive(Debug)]
pub struct Loaded {
    /// A memfd, sealed against any change.
    pub fd: OwnedFd,
    /// Bytes of the image.
    pub len: u64,
    /// Its content hash, which every file was compared with; `None` for an image without hashes, of which nothing was
    /// compared but its structure.
    pub content_hash: Option<ContentHash>,
}

impl Remote {
    /// Asks the server for the length of an image. Nothing else is fetched.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Denied`], [`Error::NoRanges`], and what the server and the network say.
    pub fn open(location: &Location, options: Options) -> Result<Self> {
        install_provider();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name("remote").enable_all().build();
        let runtime = runtime.map_err(|error| Error::system("start threads", error))?;
        let object = async || object::open(location, &options).await;
        let object = runtime.block_on(with_retries(&options, object))?;
        let fetch = Fetch { object, location: location.clone(), options };
        Ok(Self { runtime, fetch: Arc::new(fetch) })
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.fetch.object.head().len
    }

    /// Fetches the metadata, and opens an image that has nothing else: names, sizes, links, and the index with all
    /// tensors' names, dtypes and shapes. **Its files read as zeros**; it is for listings.
    ///
    /// # Errors
    /// [`Error::Image`] for what is no image or another one than [`Options::expect`] says, [`Error::TooMuch`] for more
    /// than [`Options::max_metadata`], and as for [`Remote::open`].
    pub fn metadata(&self) -> Result<Image> {
        self.check_not_empty()?;
        let target = Arc::new(Target::new(self.size(), dmabuf::HugePages::No)?);
        let image = self.runtime.block_on(metadata::fetch(&self.fetch, &target))?;
        drop(image);
        let region = self.region(&sealed(target)?)?;
        let options = self.options().verify(Verify::Stored);
        options.open_region(region).map_err(|error| self.fetch.image(error))
    }

    /// Fetches the image into a memfd of its own, compares each file with its hash, and seals the memory.
    ///
    /// # Errors
    /// [`Error::NoMemory`] before anything is fetched, [`Error::WrongBytes`] for what stays wrong after
    /// [`Options::retries`] repetitions, [`Error::NoHashes`] when [`Options::expect`] is given and the image has none, and
    /// as for [`Remote::metadata`]. Nothing is left behind.
    pub fn load(&self) -> Result<Loaded> {
        let len = self.size();
        self.check_not_empty()?;
        self.check_memory(len)?;
        let target = Arc::new(Target::new(len, self.fetch.options.pages)?);
        let fetch = &self.fetch;
        let image = self.runtime.block_on(metadata::fetch(fetch, &target))?;
        let content_hash = image.content_hash();
        if fetch.options.expect.is_some() && content_hash.is_none() {
            return Err(Error::NoHashes { place: fetch.place() });
        }
        let plan = Plan::new(fetch, &image, &target)?;
        drop(image);
        target.populate()?;
        let total = Arc::new(Total::new(target.held(), len));
        fetch.tell(Some(&total), 0)?;
        self.runtime.block_on(fetch.all(target.sink(), plan.parts, Some(&total)))?;
        self.check_later(&target, &plan.later)?;
        let fd = sealed(target)?;
        if let Some(expected) = fetch.object.digest(content_hash.is_some()) {
            self.check_digest(&fd, expected)?;
        }
        // Of the sealed memory: what is believed is what is handed out.
        let mut options = self.options();
        if let Some(hash) = content_hash {
            let verify = if plan.is_whole { Verify::Stored } else { Verify::Full };
            options = options.expect(hash).verify(verify);
        }
        options.open_region(self.region(&fd)?).map_err(|error| fetch.image(error))?;
        Ok(Loaded { fd, len, content_hash })
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::new().max_metadata(self.fetch.options.max_metadata)
    }

    fn region(&self, fd: &OwnedFd) -> Result<Region> {
        let fd = fd.try_clone().map_err(|error| Error::system("duplicate a memfd", error))?;
        Region::from_fd(fd).map_err(|error| self.fetch.image(error))
    }

    /// Compares pieces of which a part came with the metadata.
    fn check_later(&self, target: &Target, pieces: &[Piece]) -> Result<()> {
        let region = target.region()?;
        let mut buffer = vec![0; 64 << 10];
        for piece in pieces {
            let part = Part { range: piece.range.clone(), pieces: vec![piece.clone()] };
            let mut check = Check::new(&part, piece.range.start);
            let mut at = piece.range.start;
            while at < piece.range.end {
                let count = (piece.range.end - at).min(buffer.len() as u64);
                let bytes = &mut buffer[..usize::try_from(count).unwrap_or_default()];
                region.read_at(at, bytes).map_err(|error| self.fetch.image(error))?;
                check.update(bytes).map_err(|piece| self.fetch.wrong(piece))?;
                at += count;
            }
        }
        Ok(())
    }

    /// Compares the whole object with the digest that it was asked for by, in one pass over the sealed memory.
    fn check_digest(&self, fd: &OwnedFd, expected: &str) -> Result<()> {
        let region = self.region(fd)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < region.len() {
            let count = (region.len() - at).min(buffer.len() as u64);
            let bytes = &mut buffer[..usize::try_from(count).unwrap_or_default()];
            region.read_at(at, bytes).map_err(|error| self.fetch.image(error))?;
            hasher.update(&*bytes);
            at += count;
        }
        let got = object::registry::sha256(&hasher.finalize());
        match expected == got {
            true => Ok(()),
            false => {
                Err(Error::WrongDigest { place: self.fetch.place(), expected: expected.to_owned(), got })
            }
        }
    }

    /// Memory has at least a byte.
    fn check_not_empty(&self) -> Result<()> {
        match self.size() {
            0 => Err(self.fetch.image(daxfs::Error::NotAnImage { found: 0 })),
            _ => Ok(()),
        }
    }

    /// Refuses what does not fit before anything is fetched.
    fn check_memory(&self, needed: u64) -> Result<()> {
        match available_memory() {
            Some(available) if available < needed => {
                Err(Error::NoMemory { place: self.fetch.place(), needed, available })
            }
            _ => Ok(()),
        }
    }
}

/// Seals memory that nobody writes any more.
fn sealed(target: Arc<Target>) -> Result<OwnedFd> {
    let target = Arc::into_inner(target)
        .ok_or_else(|| Error::system("seal the memory", std::io::Error::other("it is in use")))?;
    target.seal()
}

/// Asks again where that may help: a server that is not there yet may be in a moment.
pub(crate) async fn with_retries<T>(options: &Options, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut tries = 0;
    loop {
        match ask().await {
            Err(error) if error.is_worth_again() && tries < options.retries.min(3) => {
                tries += 1;
                tokio::time::sleep(std::time::Duration::from_millis(200 << tries)).await;
                if !options.progress.tell(0, 0) {
                    return Err(Error::Cancelled);
                }
            }
            done => return done,
        }
    }
}

/// What the kernel says could be had without swapping.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The library for TLS takes its cryptography from one place for the whole process; one that is there already stays.
pub(crate) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
