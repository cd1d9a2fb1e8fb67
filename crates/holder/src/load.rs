//! From a descriptor that a client sent to an image that can be held: packed, copied or kept, and always validated.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use daxfs::holder::message::{ImageInfo, MemoryKind, Role};
use daxfs::{Image, Provenance};
use dmabuf::{FdKind, HugePages, Seals};
use mkimage::Memory;

use crate::access::Access;
use crate::config::{Config, Target};
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::limits::Budget;
use crate::source;
use crate::table::Ready;

/// What a load can be told, as `key=value` texts.
///
/// | key | value |
/// |---|---|
/// | `into` | a [`Target`] |
/// | `shared` | `1`: leave a memfd unsealed against writing |
/// | `align-tensors` | bytes, a power of two |
/// | `dedupe` | `1` |
/// | `expect` | the content hash that the image must have, `blake3:` and 64 hexadecimal digits |
/// | `allow-uid`, `allow-gid` | a number; may be given several times |
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub(crate) into: Target,
    pub(crate) shared: bool,
    pub(crate) align_tensors: Option<u64>,
    pub(crate) dedupe: bool,
    expect: Option<[u8; 32]>,
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
            expect: None,
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
                "expect" => {
                    let hash = daxfs::parse_content_hash(value);
                    parsed.expect = Some(hash.ok_or_else(|| wrong("expected a BLAKE3 hash".into()))?);
                }
                "allow-uid" => parsed.access.uids.push(number()?),
                "allow-gid" => parsed.access.gids.push(number()?),
                _ => return Err(wrong("this holder does not know it".into())),
            }
        }
        Ok(parsed)
    }
}

impl LoadOptions {
    /// Memory that the packer is to write to.
    pub(crate) fn memory(&self) -> Memory {
        match &self.into {
            Target::Memfd(pages) if self.shared => Memory::SharedMemfd(*pages),
            target => target.memory(),
        }
    }

    /// How many of `bytes` that are to be written come out of the machine's free memory: hugetlb pages are not among
    /// it, and their pool answers for itself.
    pub(crate) fn fresh(&self, bytes: u64) -> u64 {
        match self.into {
            Target::Memfd(HugePages::Hugetlb2M | HugePages::Hugetlb1G) => 0,
            _ => bytes,
        }
    }

    /// Seals of a memfd that holds an image.
    pub(crate) fn seals(&self) -> Seals {
        if self.shared { Seals::SHRINK | Seals::GROW } else { Seals::IMMUTABLE | Seals::SEAL }
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
    /// [`Error::Cancelled`] once nobody waits any more.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Makes a holdable image of what `source` is: a directory, a file with an image, or memory with an image.
///
/// Nothing that can shrink is ever mapped: touching a page that is not there any more would end the holder (SIGBUS),
/// and whoever may load could do that to all others.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn load(source: OwnedFd, options: &LoadOptions, budget: &Budget, watch: &Arc<Watch>) -> Result<Ready> {
    crash_point("load-begin");
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let metadata = std::fs::metadata(&descriptor).map_err(|e| Error::system("stat the source", e))?;
    let (fd, reservation) = if metadata.is_dir() {
        source::pack(&descriptor, options, budget, watch)?
    } else {
        let info = dmabuf::describe(source.as_fd())?;
        if source::is_kept(&info.kind) {
            // Pages that nobody has written yet come into being when they are read; those of hugetlb out of their pool.
            let fresh = match info.kind {
                FdKind::Memfd { hugetlb: None, .. } => {
                    info.len.saturating_sub(metadata.blocks().saturating_mul(512))
                }
                _ => 0,
            };
            let reservation = budget.reserve(info.len, fresh)?;
            // Of its own: a supervisor keeps each open file only once, whatever it is told to call it. Where it
            // cannot be had (a dma-buf, a device that this process may not open), the load is refused in the end if
            // there is a supervisor and an image has this one already.
            (dmabuf::reopen(source.as_fd()).unwrap_or(source), reservation)
        } else {
            source::copy(source.as_fd(), info.len, options, budget, watch)?
        }
    };
    crash_point("load-written");
    let image =
        Image::from_fd(fd.try_clone().map_err(|e| Error::system("duplicate the image's descriptor", e))?)?;
    if !metadata.is_dir() {
        source::verify(&image, watch)?;
    }
    let info = describe(&image)?;
    match options.expect {
        Some(expected) if info.content_hash != Some(expected) => {
            return Err(daxfs::Error::OtherContent { expected, found: info.content_hash }.into());
        }
        _ => {}
    }
    watch.check()?;
    Ok(Ready { info, fds: vec![fd], access: options.access.clone(), reservation })
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
        copies: Vec::new(),
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
        assert_eq!(options.fresh(10), 10);
        for (text, fresh) in [("into=memfd:2M", 0), ("into=memfd:1G", 0), ("into=memfd:4K", 10)] {
            assert_eq!(parse(&[text]).unwrap().fresh(10), fresh, "{text}");
        }
        for wrong in
            ["x=1", "into", "into=cuda:0", "shared=yes", "align-tensors=3", "allow-gid=-1", "expect=blake3:0"]
        {
            assert!(parse(&[wrong]).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
