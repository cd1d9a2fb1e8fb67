//! What a user can name as the place of an image, and how that becomes a descriptor.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dmabuf::{FdInfo, FdKind, Mounted};

use super::{RemoteAddress, Wanted};
use crate::holder::{Address, Attachment, DEFAULT_TIMEOUT};
use crate::{ContentHash, Error, Result};

/// Paths with these beginnings may carry `@OFFSET+LENGTH`: all others are names of files, which may hold an `@`.
const DEVICES: [&[u8]; 3] = [b"/dev/dax", b"/sys/bus/pci/devices/", b"/sys/devices/"];

/// A named source of an image.
///
/// | text | meaning |
/// |---|---|
/// | `fd:N` | the inherited descriptor N, duplicated; N stays open |
/// | `-` | standard input, which must be a file or shareable memory, not a pipe |
/// | `daxfs://NAME` | an image that a holder keeps, see [`crate::holder`] |
/// | `daxfs+unix:///path/to.sock/NAME` | the same, at that socket |
/// | `s3://...`, `gs://...`, `az://...`, `oci://...`, `hf://...`, `https://...` | an image that lies elsewhere, see [`RemoteAddress`] |
/// | `phys:ADDRESS+LENGTH` | a physical range, through `/dev/mem` |
/// | `/dev/daxX.Y` | a devdax device |
/// | `/sys/bus/pci/devices/D/resourceN` | the memory of a PCI device; `resourceN_wc` is taken where it is there |
/// | `/sys/bus/pci/devices/D` | the largest memory of that device |
/// | a directory | the root of a mounted DAXFS: the memory that was mounted |
/// | anything else | the path of a regular file |
///
/// Devdax, PCI memory and `fd:N` may be followed by `@OFFSET` or `@OFFSET+LENGTH`: the image begins there, and ends
/// with the device or within so many bytes. Numbers are decimal or begin with `0x`; `K`, `M` and `G` behind them
/// multiply by 2^10, 2^20 and 2^30. Offsets and physical addresses are multiples of 4096.
///
/// A file whose name looks like one of the others is reached as `./fd:3` or `./-`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A path.
    Path {
        /// The path.
        path: PathBuf,
        /// Which part of it, for devices.
        part: Part,
    },
    /// A descriptor number of this process.
    Descriptor {
        /// The number.
        fd: RawFd,
        /// Which part of what it leads to.
        part: Part,
    },
    /// A physical range.
    Physical {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// An image of a holder.
    Holder(Address),
    /// An image that lies elsewhere, and is fetched into sealed memory.
    Remote(RemoteAddress),
}

/// A part of a device or descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Part {
    /// First byte, a multiple of 4096.
    pub offset: u64,
    /// Bytes; `None`: all that follow.
    pub len: Option<u64>,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { offset: 0, len: None };

    /// Offset and length within the memory behind a descriptor.
    ///
    /// # Errors
    /// [`Error::Memory`] with [`dmabuf::Error::OutOfBounds`] when the part is not within it; with
    /// [`dmabuf::Error::Invalid`] for `/dev/mem` without a length, since that is all of physical memory.
    pub fn of(self, info: &FdInfo) -> Result<(u64, u64)> {
        if info.kind == FdKind::Physical && self.len.is_none() {
            return Err(dmabuf::Error::Invalid {
                what: "/dev/mem".into(),
                why: "it is all of physical memory; name the range, as phys:ADDRESS+LENGTH".into(),
            }
            .into());
        }
        self.within(info.len)
    }

    fn within(self, size: u64) -> Result<(u64, u64)> {
        let len = self.len.unwrap_or_else(|| size.saturating_sub(self.offset));
        match self.offset.checked_add(len) {
            Some(end) if end <= size => Ok((self.offset, len)),
            _ => Err(dmabuf::Error::OutOfBounds { offset: self.offset, len, bound: size }.into()),
        }
    }
}

impl fmt::Display for Part {
    /// As behind a path: nothing for the whole, else `@0x200000` or `@0x200000+0x1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { offset: 0, len: None } => Ok(()),
            Self { offset, len: None } => write!(f, "@{offset:#x}"),
            Self { offset, len: Some(len) } => write!(f, "@{offset:#x}+{len:#x}"),
        }
    }
}

/// A source that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The memory, or what has it.
    pub fd: OwnedFd,
    /// Where in it.
    pub part: Part,
    /// What a holder said, if it came from one.
    pub attachment: Option<Attachment>,
}

impl Source {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`Error::Source`] for a text that begins like one of the forms and does not keep to it, [`Error::Holder`] for
    /// a holder's address.
    pub fn parse(text: &OsStr) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Descriptor { fd: 0, part: Part::WHOLE });
        }
        if let Some(address) = Address::parse(text) {
            return Ok(Self::Holder(address?));
        }
        if let Some(address) = RemoteAddress::parse(text) {
            return Ok(Self::Remote(address?));
        }
        let bytes = text.as_bytes();
        let wrong = |why| Error::Source { text: text.to_string_lossy().into_owned(), why };
        if let Some(range) = bytes.strip_prefix(b"phys:") {
            let (address, len) = range_of(range).and_then(|(at, len)| Some((at, len?))).ok_or_else(|| {
                wrong("a physical range is phys:ADDRESS+LENGTH, such as phys:0x8000000+64M")
            })?;
            check_aligned(address).map_err(wrong)?;
            if len == 0 || address.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
                return Err(wrong("the range is empty or passes the end of the address space"));
            }
            return Ok(Self::Physical { address, len });
        }
        let at = bytes.iter().rposition(|&byte| byte == b'@').filter(|&at| !bytes[at..].contains(&b'/'));
        let (head, tail) = at.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + 1..])));
        let number = std::str::from_utf8(head).ok().and_then(|head| head.strip_prefix("fd:"));
        let fd = number.and_then(|number| number.parse::<RawFd>().ok()).filter(|fd| *fd >= 0);
        if fd.is_none() && !DEVICES.iter().any(|start| bytes.starts_with(start)) {
            return Ok(Self::Path { path: PathBuf::from(text), part: Part::WHOLE });
        }
        let part = match tail {
            None => Part::WHOLE,
            Some(tail) => {
                let (offset, len) = range_of(tail).ok_or_else(|| {
                    wrong("behind the @ belongs OFFSET or OFFSET+LENGTH, such as 2M or 0x200000+64M")
                })?;
                check_aligned(offset).map_err(wrong)?;
                if len == Some(0) {
                    return Err(wrong("the length is 0"));
                }
                Part { offset, len }
            }
        };
        Ok(match fd {
            Some(fd) => Self::Descriptor { fd, part },
            None => Self::Path { path: PathBuf::from(OsString::from_vec(head.to_vec())), part },
        })
    }

    /// Opens it for reading, and for writing too if `write` is set. A holder's image is asked to be the one with the
    /// content hash `expect`.
    ///
    /// # Errors
    /// [`Error::Memory`] when it cannot be opened or is no memory; [`Error::Holder`].
    pub fn open(&self, write: bool, expect: Option<ContentHash>) -> Result<Opened> {
        self.open_within(write, expect, DEFAULT_TIMEOUT, &|_, _| true)
    }

    /// As [`Source::open`], with a bound for how long a holder may take to answer, and with somebody who is told how much
    /// of an image that lies elsewhere is there, and may end that.
    pub(crate) fn open_within(
        &self,
        write: bool,
        expect: Option<ContentHash>,
        timeout: Duration,
        progress: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Opened> {
        let opened = |fd, part| Ok(Opened { fd, part, attachment: None });
        match self {
            Self::Path { path, part } => {
                if !write && !path.starts_with("/sys") && path.is_dir() {
                    return open_directory(path);
                }
                opened(dmabuf::open_memory(path, write)?, *part)
            }
            Self::Descriptor { fd, part } => opened(dmabuf::duplicate(*fd)?, *part),
            Self::Physical { address, len } => {
                opened(dmabuf::open_physical(write)?, Part { offset: *address, len: Some(*len) })
            }
            Self::Holder(address) => {
                let (attachment, fd) = Attachment::within(address.clone(), expect, timeout)?;
                Ok(Opened { fd, part: Part::WHOLE, attachment: Some(attachment) })
            }
            Self::Remote(address) => {
                if write {
                    return Err(Error::Source {
                        text: address.to_string(),
                        why: "an image that lies elsewhere cannot be written to",
                    });
                }
                opened(
                    address.fetch(Wanted::Image, expect, &mut |done, total| progress(done, total))?,
                    Part::WHOLE,
                )
            }
        }
    }
}

impl From<PathBuf> for Source {
    /// The path as it is, whatever it looks like.
    fn from(path: PathBuf) -> Self {
        Self::Path { path, part: Part::WHOLE }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, part } => write!(f, "{}{part}", path.display()),
            Self::Descriptor { fd, part } => write!(f, "fd:{fd}{part}"),
            Self::Physical { address, len } => write!(f, "phys:{address:#x}+{len:#x}"),
            Self::Holder(address) => address.fmt(f),
            Self::Remote(address) => address.fmt(f),
        }
    }
}

/// The memory behind the DAXFS that is mounted at a path; `None` where something else is.
pub(super) fn behind_mount(path: &Path) -> dmabuf::Result<Option<Mounted>> {
    dmabuf::mounted(dmabuf::open_read_only(path)?.as_fd())
}

/// The memory behind a mounted DAXFS. The descriptor of a directory is what is mapped otherwise, which says what it
/// is when that is tried.
fn open_directory(path: &Path) -> Result<Opened> {
    let fd = dmabuf::open_read_only(path)?;
    let (fd, part) = match dmabuf::mounted(fd.as_fd())? {
        Some(Mounted::DmaBuf(memory)) => (memory, Part::WHOLE),
        Some(Mounted::Physical { address, len }) => {
            let opened = dmabuf::open_physical(false).map_err(|error| Error::PhysicalMount {
                path: path.to_path_buf(),
                address,
                len,
                source: error,
            })?;
            (opened, Part { offset: address, len: Some(len) })
        }
        _ => (fd, Part::WHOLE),
    };
    Ok(Opened { fd, part, attachment: None })
}

/// `NUMBER` or `NUMBER+NUMBER`.
fn range_of(text: &[u8]) -> Option<(u64, Option<u64>)> {
    let text = std::str::from_utf8(text).ok()?;
    match text.split_once('+') {
        Some((start, len)) => Some((number(start)?, Some(number(len)?))),
        None => Some((number(text)?, None)),
    }
}

/// A decimal or `0x` number with a binary suffix.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (digits, 10),
    };
    // `from_str_radix` takes a sign.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()?.checked_mul(1 << shift)
}

fn check_aligned(offset: u64) -> Result<(), &'static str> {
    match offset.is_multiple_of(4096) {
        true => Ok(()),
        false => Err("an image begins on a multiple of 4096 bytes"),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
