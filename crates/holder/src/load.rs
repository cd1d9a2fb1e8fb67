//! From a descriptor that a client sent to an image that can be held: packed, copied or kept, and always validated.
//!
//! Nothing is read that the client could not read itself: a directory is packed with the client's rights, and all else is
//! read through the client's own descriptor.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use daxfs::signature::{self, PublicKeys, SIGNATURE_MAX, SignatureError};
use daxfs::{ContentHash, Image, Provenance};
use daxfs_protocol::message::{ImageInfo, MemoryKind, Role};
use dmabuf::{FdKind, HugePages, Seals};
use mkimage::Memory;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::access::{Access, Rights};
use crate::config::{Config, Target};
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::helper::{self, Helper};
use crate::limits::{Budget, Reservation};
use crate::packing::Packing;
use crate::table::Ready;
use crate::{signed, source};

/// What a load can be told, as `key=value` texts.
///
/// | key | value |
/// |---|---|
/// | `into` | a [`Target`] |
/// | `shared` | `1`: leave a memfd unsealed against writing |
/// | `align-tensors` | bytes, a power of two, for directories; 256 without it |
/// | `exact` | `1`: pack directories byte for byte |
/// | `dedupe` | `1` |
/// | `links` | `auto`, `keep`, `follow` or `refuse`, for directories |
/// | `exclude`, `include` | a glob; may be given several times |
/// | `weights-only` | `1` |
/// | `no-copy` | `1`: refuse memory that would have to be copied |
/// | `packed` | `1`: the client has packed this memory for the load, so the image goes where the load says |
/// | `signature` | signatures of the content as a text ([`daxfs::signature`]), which clients get with the image |
/// | `expect` | the content hash that the image must have, `blake3:` and 64 hexadecimal digits |
/// | `allow-uid`, `allow-gid` | a number; may be given several times |
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub(crate) into: Target,
    pub(crate) shared: bool,
    pub(crate) packing: Packing,
    no_copy: bool,
    /// Whether the memory was made for this load, and is nobody's choice.
    packed: bool,
    expect: Option<ContentHash>,
    signature: Option<String>,
    /// Keys one of which must have signed it.
    keys: Option<PublicKeys>,
    /// Who may attach, if the load says so.
    pub(crate) access: Option<Access>,
    /// Whether the load says anything of the memory.
    chooses_memory: bool,
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
            packing: Packing::default(),
            no_copy: false,
            packed: false,
            expect: None,
            signature: None,
            keys: config.require_signed.clone(),
            access: None,
            chooses_memory: false,
        };
        for option in options {
            let wrong = |why: String| Error::Option { option: option.clone(), why };
            let (key, value) = option.split_once('=').ok_or_else(|| wrong("expected key=value".into()))?;
            let number = || value.parse::<u32>().map_err(|_| wrong("expected a number".into()));
            match key {
                "into" => parsed.into = value.parse().map_err(wrong)?,
                "shared" | "no-copy" | "packed" if !["0", "1"].contains(&value) => {
                    return Err(wrong("expected 0 or 1".into()));
                }
                "shared" => parsed.shared = value == "1",
                "no-copy" => parsed.no_copy = value == "1",
                "packed" => parsed.packed = value == "1",
                "expect" => {
                    let hash = value.parse::<ContentHash>();
                    parsed.expect = Some(hash.map_err(|error| wrong(error.to_string()))?);
                }
                "signature" if value.len() > SIGNATURE_MAX => {
                    let why = format!("a signature has at most {SIGNATURE_MAX} bytes");
                    return Err(Error::Option { option: "signature".to_owned(), why });
                }
                "signature" => {
                    let wrong = |error: SignatureError| Error::Option {
                        option: "signature".to_owned(),
                        why: error.to_string(),
                    };
                    parsed.signature = Some(signature::canonical(value).map_err(wrong)?);
                }
                "allow-uid" => parsed.access.get_or_insert_default().uids.push(number()?),
                "allow-gid" => parsed.access.get_or_insert_default().gids.push(number()?),
                // Not for clients to say.
                "confined" => return Err(wrong("this holder does not know it".into())),
                _ => match parsed.packing.take(key, value) {
                    Some(taken) => taken.map_err(wrong)?,
                    None => return Err(wrong("this holder does not know it".into())),
                },
            }
            parsed.chooses_memory |= ["into", "shared"].contains(&key);
        }
        if parsed.keys.is_some() && parsed.signature.is_none() {
            return Err(Error::NotSigned(signed::missing()));
        }
        Ok(parsed)
    }

    /// What only the packer needs to know.
    pub(crate) fn to_pack(into: Target, shared: bool) -> Self {
        Self {
            packing: Packing::default(),
            into,
            shared,
            no_copy: false,
            packed: false,
            expect: None,
            signature: None,
            keys: None,
            access: None,
            chooses_memory: true,
        }
    }

    /// Puts the image into memory like that of the one which it replaces, unless the load says where.
    pub(crate) fn keep_memory(&mut self, replaced: BorrowedFd<'_>) {
        let Ok(info) = dmabuf::describe(replaced) else { return };
        if self.chooses_memory {
            return;
        }
        match info.kind {
            FdKind::Memfd { seals, hugetlb } => {
                // Which of the ordinary pages were asked for, the memory does not say.
                let pages = hugetlb_pages(hugetlb).unwrap_or(match &self.into {
                    Target::Memfd(pages @ (HugePages::No | HugePages::Auto | HugePages::Thp)) => *pages,
                    _ => HugePages::Auto,
                });
                (self.into, self.shared) = (Target::Memfd(pages), !seals.contains(Seals::WRITE));
            }
            FdKind::DmaBuf { exporter, .. } if exporter == "udmabuf" => self.into = Target::Udmabuf,
            FdKind::DmaBuf { exporter, .. } if dmabuf::heaps().contains(&exporter) => {
                self.into = Target::Heap(exporter);
            }
            _ => {}
        }
    }
}

impl LoadOptions {
    /// True when the image is to be in memory that clients can write.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared || matches!(self.into, Target::Udmabuf | Target::Heap(_))
    }

    /// True for memory as the load wants it. Which ordinary pages it has is not asked: that is not a property of a memfd.
    pub(crate) fn is_wanted(&self, kind: &FdKind) -> bool {
        match (&self.into, kind) {
            (Target::Memfd(pages), FdKind::Memfd { seals, hugetlb }) => {
                let wanted =
                    Some(*pages).filter(|pages| matches!(pages, HugePages::Hugetlb2M | HugePages::Hugetlb1G));
                hugetlb_pages(*hugetlb) == wanted && seals.contains(Seals::WRITE) != self.shared
            }
            (Target::Udmabuf, FdKind::DmaBuf { exporter, .. }) => exporter == "udmabuf",
            (Target::Heap(name), FdKind::DmaBuf { exporter, .. }) => exporter == name,
            _ => false,
        }
    }

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

/// The hugetlb pages of so many bytes.
fn hugetlb_pages(size: Option<u64>) -> Option<HugePages> {
    size.map(|size| if size < 1 << 30 { HugePages::Hugetlb2M } else { HugePages::Hugetlb1G })
}

/// With whose rights a directory is read.
#[derive(Debug)]
pub(crate) enum By {
    /// This process': nobody else asked, or one with the same rights.
    Own,
    /// Those of a client, by a helper.
    Peer {
        /// The client's.
        rights: Rights,
        /// How a helper is started, if there is one.
        helper: Option<Helper>,
    },
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
    /// What the packer warns of, for who asked for the load.
    warnings: Mutex<Vec<String>>,
}

/// Warnings of a load that are told to its client and the log; their number is up to the tree, or to a helper.
const MOST_WARNINGS: usize = 100;

impl Watch {
    /// Notes a warning of the packer. Who names files chooses the text: the log gets it as a field, which is quoted.
    pub(crate) fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.len() < MOST_WARNINGS {
            tracing::warn!(text, "packing");
            warnings.push(text);
        } else if warnings.len() == MOST_WARNINGS {
            let text = "there are more warnings; daxfs-pack shows all of them".to_owned();
            tracing::warn!(text, "packing");
            warnings.push(text);
        }
    }

    /// Takes the warnings so far.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// [`Error::Cancelled`] once nobody waits any more.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Makes a holdable image of what `source` is: a directory, a file with an image, or memory with an image.
///
/// Nothing that can shrink is ever mapped: touching a page that is not there any more would end the holder (SIGBUS),
/// and every client that may load could do that to all others.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub(crate) fn load(
    source: OwnedFd,
    options: &LoadOptions,
    by: &By,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<Ready> {
    crash_point("load-begin");
    if options.keys.is_some() && options.is_shared() {
        return Err(Error::SignedNotSealed);
    }
    refuse_path_only(source.as_fd())?;
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let metadata = std::fs::metadata(&descriptor).map_err(|e| Error::system("stat the source", e))?;
    let own = matches!(by, By::Own);
    let (fd, reservation) = match by {
        By::Own if metadata.is_dir() => source::pack(&descriptor, options, budget, watch)?,
        By::Peer { rights, helper } if metadata.is_dir() => {
            helper::pack(source.as_fd(), helper.as_ref(), rights, options, budget, watch)?
        }
        _ => keep_or_copy(source, &metadata, options, budget, watch)?,
    };
    crash_point("load-written");
    let image =
        Image::from_fd(fd.try_clone().map_err(|e| Error::system("duplicate the image's descriptor", e))?)?;
    // What this process has packed itself needs no second look.
    if !(metadata.is_dir() && own) {
        source::verify(&image, watch)?;
    }
    let mut info = describe(&image)?;
    let fd = if info.kind == MemoryKind::SealedMemfd { read_only(fd) } else { fd };
    match options.expect {
        Some(expected) if info.content_hash != Some(expected) => {
            return Err(daxfs::Error::OtherContent { expected, found: info.content_hash }.into());
        }
        _ => {}
    }
    signed::check(options.keys.as_ref(), &info, options.signature.as_deref())?;
    let mut fds = vec![fd];
    if let Some(signature) = &options.signature {
        fds.push(signed::sealed(signature)?);
        info.roles.push(Role::Signature);
    }
    watch.check()?;
    Ok(Ready { info, fds, access: options.access.clone(), reservation })
}

/// Refuses a descriptor that stands for a path and gives no right to read.
pub(crate) fn refuse_path_only(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::system("look at the descriptor", e))?;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) { Err(Error::PathOnly) } else { Ok(()) }
}

/// Takes an image from a file, or from memory.
fn keep_or_copy(
    source: OwnedFd,
    metadata: &Metadata,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Watch,
) -> Result<(OwnedFd, Reservation)> {
    let mut info = dmabuf::describe(source.as_fd())?;
    if options.is_shared() {
        source::forbid_growing(source.as_fd(), &info.kind);
        info = dmabuf::describe(source.as_fd())?;
    }
    let is_elsewhere = options.packed && !options.is_wanted(&info.kind);
    if is_elsewhere || !source::is_kept(&info.kind, options.is_shared()) {
        if options.no_copy {
            return Err(Error::WouldCopy);
        }
        return source::copy(source.as_fd(), info.len, options, budget, watch);
    }
    // Pages that nobody has written yet come into being when they are read; those of hugetlb out of their pool.
    let fresh = match info.kind {
        FdKind::Memfd { hugetlb: None, .. } => info.len.saturating_sub(metadata.blocks().saturating_mul(512)),
        _ => 0,
    };
    let reservation = budget.reserve(info.len, fresh)?;
    // Of its own: a supervisor keeps each open file only once, whatever it is told to call it. Where it cannot be had (a
    // dma-buf, a device that this process may not open), the load is refused in the end if there is a supervisor and an
    // image has this one already.
    Ok((dmabuf::reopen(source.as_fd()).unwrap_or(source), reservation))
}

/// The same memory, open for reading only: no client gets a descriptor that its seals alone keep from writing. Without
/// `/proc` they have to do.
fn read_only(fd: OwnedFd) -> OwnedFd {
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_or(fd, OwnedFd::from)
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
    let mut info = ImageInfo::new("", kind, region.len());
    info.page_size = page_size;
    info.content_hash = image.content_hash();
    info.loaded = loaded;
    Ok(info)
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
        assert!(options.shared);
        assert_eq!(options.access.as_ref().unwrap().uids, [7, 8]);
        assert_eq!(options.fresh(10), 10);
        for (text, fresh) in [("into=memfd:2M", 0), ("into=memfd:1G", 0), ("into=memfd:4K", 10)] {
            assert_eq!(parse(&[text]).unwrap().fresh(10), fresh, "{text}");
        }
        for wrong in [
            "x=1",
            "into",
            "links=all",
            "weights-only=yes",
            "confined=0",
            "into=cuda:0",
            "shared=yes",
            "align-tensors=3",
            "exact=yes",
            "allow-gid=-1",
            "expect=blake3:0",
        ] {
            assert!(parse(&[wrong]).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
