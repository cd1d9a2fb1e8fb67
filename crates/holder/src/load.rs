//! From a descriptor that a client sent to an image that can be held: packed, copied or kept, and always validated.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use daxfs::holder::message::{ImageInfo, MemoryKind, Role};
use daxfs::{Image, Provenance, Region};
use dmabuf::{CpuAccess, FdKind, HugePages, Mapping, Memfd, Seals};
use mkimage::{Memory, Packer};

use crate::access::Access;
use crate::config::{Config, Target};
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::limits::{Budget, Reservation};
use crate::table::Ready;

/// Bytes copied between two looks at the cancellation flag.
const COPY_CHUNK: usize = 4 << 20;

/// What a load can be told, as `key=value` texts.
///
/// | key | value |
/// |---|---|
/// | `into` | a [`Target`] |
/// | `shared` | `1`: leave a memfd unsealed against writing |
/// | `align-tensors` | bytes, a power of two |
/// | `dedupe` | `1` |
/// | `allow-uid`, `allow-gid` | a number; may be given several times |
#[derive(Debug, Clone)]
pub struct LoadOptions {
    into: Target,
    shared: bool,
    align_tensors: Option<u64>,
    dedupe: bool,
    access: Access,
}

impl LoadOptions {
    /// Reads the texts of a request; what they do not say comes from the configuration.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn parse(options: &[String], config: &Config) -> Result<Self> {
        let mut parsed = Self {
            into: config.into.clone(),
            shared: config.shared,
            align_tensors: None,
            dedupe: false,
            access: Access::default(),
        };
        for option in options {
            let wrong = |why: String| Error::Option { option: option.clone(), why };
            let (key, value) = option.split_once('=').ok_or_else(|| wrong("expected key=value".into()))?;
            let number = || value.parse::<u32>().map_err(|_| wrong("expected a number".into()));
            match key {
                "into" => parsed.into = value.parse().map_err(wrong)?,
                "shared" | "dedupe" if !["0", "1"].contains(&value) => {
                    return Err(wrong("expected 0 or 1".into()));
                }
                "shared" => parsed.shared = value == "1",
                "dedupe" => parsed.dedupe = value == "1",
                "align-tensors" => {
                    let bytes = value.parse::<u64>().ok().filter(|bytes| bytes.is_power_of_two());
                    parsed.align_tensors =
                        Some(bytes.ok_or_else(|| wrong("expected a power of two".into()))?);
                }
                "allow-uid" => parsed.access.uids.push(number()?),
                "allow-gid" => parsed.access.gids.push(number()?),
                _ => return Err(wrong("this holder does not know it".into())),
            }
        }
        Ok(parsed)
    }
}

/// Progress of a load, and the wish to end it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes in all; 0 while they are not known.
    pub total: AtomicU64,
    /// Bytes done.
    pub done: AtomicU64,
    /// Set when nobody waits for the load any more.
    pub cancel: Arc<AtomicBool>,
}

impl Watch {
    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The packer's progress goes to the watch.
#[derive(Debug)]
struct PackProgress(Arc<Watch>);

impl mkimage::Progress for PackProgress {
    fn start(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&self) {}

    fn cancelled(&self) -> bool {
        self.0.cancel.load(Ordering::Relaxed)
    }
}

/// Makes a holdable image of what `source` is: a directory, a file with an image, or memory with an image.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn load(source: OwnedFd, options: &LoadOptions, budget: &Budget, watch: &Arc<Watch>) -> Result<Ready> {
    crash_point("load-begin");
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let metadata = std::fs::metadata(&descriptor).map_err(|e| Error::system("stat the source", e))?;
    let (fd, reservation) = if metadata.is_dir() {
        pack(&descriptor, options, budget, watch)?
    } else {
        let region = Region::from_fd(source)?;
        let image = Image::from_region(region.clone())?;
        verify(&image, watch)?;
        match region.info().map(|info| &info.kind) {
            Some(FdKind::Memfd { .. } | FdKind::DmaBuf { .. } | FdKind::DevDax { .. }) => {
                keep(&region, budget)?
            }
            _ => copy(&region, options, budget, watch)?,
        }
    };
    crash_point("load-written");
    let image = Image::from_fd(duplicate(&fd)?)?;
    let info = describe(&image)?;
    watch.check()?;
    Ok(Ready { info, fds: vec![fd], access: options.access.clone(), reservation })
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|e| Error::system("duplicate the image's descriptor", e))
}

/// Packs a directory. Its files are read with the holder's rights, through the client's descriptor.
fn pack(
    directory: &Path,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<(OwnedFd, Reservation)> {
    let packer = Packer::new()
        .input(directory)
        .tensor_alignment(options.align_tensors)
        .dedupe(options.dedupe)
        .progress(PackProgress(Arc::clone(watch)));
    let plan = packer.plan()?;
    let reservation = budget.reserve(plan.total_size(), plan.total_size())?;
    let (fd, _) = plan.write_memory(&options.memory())?;
    Ok((fd, reservation))
}

/// Keeps memory that holds an image already.
fn keep(region: &Region, budget: &Budget) -> Result<(OwnedFd, Reservation)> {
    let reservation = budget.reserve(region.len(), 0)?;
    let fd = region.fd().map(|fd| fd.try_clone_to_owned());
    match fd {
        Some(Ok(fd)) => Ok((fd, reservation)),
        Some(Err(error)) => Err(Error::system("duplicate the image's descriptor", error)),
        None => Err(Error::Cancelled),
    }
}

/// Copies an image from a file into memory of its own. What was validated is the file; the copy is validated again.
fn copy(
    region: &Region,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Watch,
) -> Result<(OwnedFd, Reservation)> {
    let reservation = budget.reserve(region.len(), region.len())?;
    let bytes = region.view();
    watch.total.store(region.len(), Ordering::Relaxed);
    watch.done.store(0, Ordering::Relaxed);
    let fill = |fd: BorrowedFd<'_>, huge: bool| -> Result<()> {
        let mut mapping = Mapping::read_write(fd, 0, bytes.len())?;
        if huge {
            dmabuf::allocate_huge(&mapping, 0..region.len())?;
        }
        let mut target = mapping.view_mut()?;
        let mut buffer = vec![0; COPY_CHUNK.min(bytes.len().max(1))];
        bytes.chunks(&mut buffer, |offset, chunk| {
            watch.check()?;
            target.copy_from(offset, chunk)?;
            watch.done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Ok::<(), Error>(())
        })
    };
    let fd = match &options.into {
        Target::Memfd(pages) => {
            let memfd = Memfd::create("daxfs", region.len(), *pages)?;
            fill(memfd.as_fd(), matches!(pages, HugePages::Auto | HugePages::Thp))?;
            memfd.seal(options.seals())?;
            memfd.into()
        }
        Target::Udmabuf => {
            let memfd = Memfd::create("daxfs", region.len(), HugePages::No)?;
            fill(memfd.as_fd(), false)?;
            dmabuf::udmabuf_from(&memfd)?
        }
        Target::Heap(name) => {
            let fd = dmabuf::heap_allocate(name, region.len())?;
            let access = CpuAccess::begin(fd.as_fd(), dmabuf::Access::Write)?;
            fill(fd.as_fd(), false)?;
            access.finish()?;
            fd
        }
    };
    Ok((fd, reservation))
}

impl LoadOptions {
    fn memory(&self) -> Memory {
        match &self.into {
            Target::Memfd(pages) if self.shared => Memory::SharedMemfd(*pages),
            target => target.memory(),
        }
    }

    fn seals(&self) -> Seals {
        if self.shared { Seals::SHRINK | Seals::GROW } else { Seals::IMMUTABLE | Seals::SEAL }
    }
}

/// Recomputes the hashes that the image carries, so that a name's content hash is what clients really get.
fn verify(image: &Image, watch: &Watch) -> Result<()> {
    let Some(index) = image.index()? else { return Ok(()) };
    let Some(stored) = index.content_hash() else { return Ok(()) };
    watch.total.store(image.region().len(), Ordering::Relaxed);
    let found = daxfs::content_hash(image, |file, hash| {
        watch.check()?;
        watch.done.fetch_add(file.len(), Ordering::Relaxed);
        let stored = index.file_hash(file.ino())?;
        if stored.is_some_and(|stored| stored != hash) {
            return Err(Error::WrongHash {
                path: String::from_utf8_lossy(&file.path()).into_owned(),
                stored: stored.map_or_else(String::new, |hash| hex(&hash)),
                found: hex(&hash),
            });
        }
        Ok(())
    })?;
    if found != stored {
        let path = "content hash of the image".to_owned();
        return Err(Error::WrongHash { path, stored: hex(&stored), found: hex(&found) });
    }
    Ok(())
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What clients are told of an image.
///
/// # Errors
/// [`Error::Image`] when its pages cannot be looked at.
pub fn describe(image: &Image) -> Result<ImageInfo> {
    let region = image.region();
    let kind = match region.info().map(|info| &info.kind) {
        Some(FdKind::Memfd { .. }) if region.provenance() == Provenance::Sealed => MemoryKind::SealedMemfd,
        Some(FdKind::Memfd { .. }) => MemoryKind::SharedMemfd,
        Some(FdKind::DmaBuf { .. }) => MemoryKind::DmaBuf,
        _ => MemoryKind::File,
    };
    // What is mapped tells which pages were obtained.
    region.populate()?;
    let pages = region.pages()?;
    let page_size = pages.map_or(0, |pages| {
        let huge = pages.huge > pages.mapped / 2;
        if huge { pages.page_size.max(2 << 20) } else { pages.page_size }
    });
    let loaded = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(ImageInfo {
        name: String::new(),
        generation: 0,
        size: region.len(),
        kind,
        page_size,
        content_hash: image.content_hash(),
        device: [0; 16],
        loaded,
        attaches: 0,
        roles: vec![Role::Image],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let config = Config::new("/s");
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            LoadOptions::parse(&texts, &config)
        };
        let options =
            parse(&["into=heap:system", "shared=1", "align-tensors=256", "allow-uid=7", "allow-uid=8"]);
        let options = options.unwrap();
        assert_eq!(options.into, Target::Heap("system".into()));
        assert_eq!((options.shared, options.align_tensors), (true, Some(256)));
        assert_eq!(options.access.uids, [7, 8]);
        for wrong in ["x=1", "into", "into=cuda:0", "shared=yes", "align-tensors=3", "allow-gid=-1"] {
            assert!(parse(&[wrong]).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
