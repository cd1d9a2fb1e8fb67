//! Memory that holds an image: who owns it, and what is known of its writers.
//!
//! Opening any source is safe, since no reference to memory that others may write is ever made. A slice comes
//! only from a region that is proven immutable, or through the `unsafe` promise of [`Region::assume_immutable`].

#![allow(unsafe_code, reason = "hands out slices of regions that are proven or promised immutable")]

mod owned;
mod remote;
mod source;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use dmabuf::DirectFile;
use dmabuf::{
    CpuAccess, FdInfo, FdKind, HugePages, Mapping, Memfd, MemoryClass, Mounted, PageStats, Seals,
    SharedBytes, SharedBytesMut, VerityDigest,
};

pub use remote::{RemoteAddress, RemoteError, Wanted};
pub use source::{Opened, Part, Source};

use crate::holder::{Attachment, DEFAULT_TIMEOUT};
use crate::{ContentHash, Error, Result};

/// What is known of the writers of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Provenance {
    /// Proven immutable: a memfd sealed against writing, shrinking and growing, bytes that only this process owns, or a
    /// file with fs-verity ([`Region::verity`]), of which a page that the disk has lost or changed is SIGBUS.
    Sealed,
    /// Promised immutable by [`Region::assume_immutable`].
    Trusted,
    /// Others may write at any time. Reads are bounded and safe, but can see a mixture of old and new bytes.
    Shared,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sealed => "sealed",
            Self::Trusted => "trusted",
            Self::Shared => "shared",
        })
    }
}

enum Memory {
    Mapped { mapping: Mapping, fd: OwnedFd, info: FdInfo, offset: u64, verity: Option<VerityDigest> },
    Owned(owned::Bytes),
}

/// Memory that holds an image. Cloning shares it; it is unmapped when the last clone goes.
#[derive(Clone)]
pub struct Region {
    memory: Arc<Memory>,
    provenance: Provenance,
    /// Set when a holder gave the memory.
    attachment: Option<Arc<Attachment>>,
    /// Set when it was opened by name.
    source: Option<Arc<Source>>,
}

impl Region {
    /// Opens and maps a source read-only; see [`Source`] for what can be named.
    ///
    /// A regular file stays writable for others: the region is [`Provenance::Shared`], and if somebody truncates
    /// the file, touching a page beyond its new end raises SIGBUS. Where that can happen use [`Region::sealed_copy`].
    ///
    /// # Errors
    /// [`Error::Memory`] when the source cannot be opened, is no shareable memory, or cannot be mapped;
    /// [`Error::Holder`] when a holder cannot be reached or refuses.
    pub fn open(source: impl AsRef<OsStr>) -> Result<Self> {
        Self::open_with(source.as_ref(), None, false, DEFAULT_TIMEOUT, &|_, _| true)
    }

    /// Like [`Region::open`]; a holder is told which content hash is expected, and has so much time to answer, and
    /// `private` maps copy-on-write. `progress` is told how much of an image that lies elsewhere is there; `false` ends
    /// it.
    pub(crate) fn open_with(
        source: &OsStr,
        expect: Option<ContentHash>,
        private: bool,
        timeout: Duration,
        progress: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Self> {
        Self::open_source(Source::parse(source)?, expect, private, timeout, progress)
    }

    fn open_source(
        source: Source,
        expect: Option<ContentHash>,
        private: bool,
        timeout: Duration,
        progress: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Self> {
        let Opened { fd, part, attachment } = source.open_within(false, expect, timeout, progress)?;
        let region = Self::map(fd, part, private).map_err(|error| error.of_source(&source))?;
        if let (Some(attachment), Some(found)) = (&attachment, region.info()) {
            attachment.check(found)?;
        }
        Ok(Self {
            attachment: attachment.map(Arc::new),
            source: Some(Arc::new(source)),
            provenance: if private { Provenance::Shared } else { region.provenance },
            ..region
        })
    }

    /// Has an image that lies elsewhere fetched, as [`Region::open`] does with such a source, and is told how far that is:
    /// see [`RemoteAddress::fetch`].
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::Cancelled`].
    pub fn fetch(
        address: &RemoteAddress,
        expect: Option<ContentHash>,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<Self> {
        let region = Self::from_fd(address.fetch(Wanted::Image, expect, &mut progress)?)?;
        Ok(Self { source: Some(Arc::new(Source::Remote(address.clone()))), ..region })
    }

    /// Maps a descriptor read-only: a memfd, a dma-buf, a regular file, a devdax device, the memory of a PCI device.
    ///
    /// # Errors
    /// [`Error::Memory`], as for [`Region::open`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::map(fd, Part::WHOLE, false)
    }

    /// Maps a part of a descriptor's memory read-only. For `/dev/mem` the offset is a physical address.
    ///
    /// # Errors
    /// [`Error::Memory`], as for [`Region::open`], also when the part is not within the memory.
    pub fn from_fd_part(fd: OwnedFd, part: Part) -> Result<Self> {
        Self::map(fd, part, false)
    }

    /// Maps a descriptor copy-on-write: writes through raw pointers (a numpy or torch array) stay private to this
    /// process and cost a copy of each page that is written.
    ///
    /// # Errors
    /// [`Error::Memory`]; most dma-bufs cannot be mapped this way.
    pub fn from_fd_private(fd: OwnedFd) -> Result<Self> {
        let mut region = Self::map(fd, Part::WHOLE, true)?;
        // Pages that this process has not copied yet still show what others write, and it writes itself.
        region.provenance = Provenance::Shared;
        Ok(region)
    }

    fn map(fd: OwnedFd, part: Part, private: bool) -> Result<Self> {
        let mut offset = 0;
        let (info, mapping) = Mapping::described(fd.as_fd(), private, |info| {
            let (start, len) = part.of(info)?;
            offset = start;
            let len = usize::try_from(len).map_err(|_| dmabuf::Error::Invalid {
                what: format!("a region of {len} bytes"),
                why: "it does not fit the address space".into(),
            })?;
            Ok::<_, Error>((start, len))
        })?;
        // A file of which this cannot be asked is one without.
        let is_file = info.kind == FdKind::File;
        let verity = is_file.then(|| dmabuf::measure_verity(fd.as_fd()).ok().flatten()).flatten();
        // Seals are only ever added, and fs-verity is never turned off, so what holds now holds for the life of the
        // mapping.
        let provenance = match info.kind.is_immutable() || verity.is_some() {
            true => Provenance::Sealed,
            false => Provenance::Shared,
        };
        Ok(Self::new(Memory::Mapped { mapping, fd, info, offset, verity }, provenance))
    }

    /// A region over bytes that this process owns: immutable, without a descriptor, aligned as a mapping is. Bytes that
    /// lie elsewhere, as those of most vectors do, are copied.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self::new(Memory::Owned(owned::Bytes::new(bytes)), Provenance::Sealed)
    }

    fn new(memory: Memory, provenance: Provenance) -> Self {
        Self { memory: Arc::new(memory), provenance, attachment: None, source: None }
    }

    /// Copies the whole region once into a new memfd, sealed against any change, and maps that.
    ///
    /// This is the safe choice for a regular file that others may write or truncate: it is read by `pread(2)`, so one
    /// that is cut short meanwhile is an error, not SIGBUS. What was written to a private mapping
    /// ([`Region::from_fd_private`]) is copied with the rest, from the mapping. The copy has no source:
    /// [`Region::is_current`] is true of it for good.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not enough memory, when the file was cut short, and when the region's device has
    /// gone.
    pub fn sealed_copy(&self) -> Result<Self> {
        let memfd = Memfd::create("daxfs-copy", self.len(), HugePages::Auto)?;
        let len = self.view().len();
        {
            let mut mapping = Mapping::read_write(memfd.as_fd(), 0, len)?;
            dmabuf::allocate_huge(&mapping, 0..self.len())?;
            let mut target = mapping.view_mut()?;
            let _access = self.cpu_access()?;
            if !self.pread(0, &mut target)? {
                let mut buffer = vec![0; COPY_CHUNK];
                self.view().chunks(&mut buffer, |offset, bytes| target.copy_from(offset, bytes))?;
                self.check_present()?;
            }
        }
        memfd.seal(Seals::IMMUTABLE | Seals::SEAL)?;
        Self::from_fd(memfd.into())
    }

    /// Copies `bytes.len()` bytes from `offset` on out of the region. A file that was cut short is an error, where that
    /// can be seen, and so is a device that has gone.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) for a range that is not within the region, and for what the system says.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut target = SharedBytesMut::from_slice(bytes);
        if self.pread(offset, &mut target)? {
            return Ok(());
        }
        // Of a memfd the kernel copies without making page tables, which is a third of the work the first time.
        if let Memory::Mapped { fd, info, offset: start, .. } = &*self.memory
            && matches!(info.kind, FdKind::Memfd { .. })
            && !self.is_writable()
            && target.len() >= LARGE
            && read_all(fd.as_fd(), start + offset, &mut target).is_ok()
        {
            return Ok(());
        }
        let _access = self.cpu_access()?;
        self.view().read_at(offset, bytes)?;
        self.check_present()
    }

    /// A regular file to be read around the page cache; `None` for other memory, for what was written to a private
    /// mapping of it, and where the file system refuses that.
    pub fn direct(&self) -> Option<DirectFile> {
        match &*self.memory {
            Memory::Mapped { fd, info, .. } if matches!(info.kind, FdKind::File) && !self.is_writable() => {
                DirectFile::open(fd.as_fd())
            }
            _ => None,
        }
    }

    /// Fills `target` from a file that others can cut short. False for other memory, and for a descriptor opened with
    /// O_DIRECT that does not take this buffer: the mapping is read then.
    fn pread(&self, offset: u64, target: &mut SharedBytesMut<'_>) -> Result<bool> {
        let Some((fd, start)) = self.file_that_shrinks().filter(|_| !self.is_writable()) else {
            return Ok(false);
        };
        match read_all(fd, start + offset, target) {
            Err(dmabuf::Error::Os { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                Ok(false)
            }
            read => Ok(read.map(|()| true)?),
        }
    }

    /// Declares the region immutable, so that it hands out slices. The promise is for this region alone:
    /// [`Image::refresh`](crate::Image::refresh) opens another one, which has no promise.
    ///
    /// # Safety
    /// Nobody, in this process or any other, on this machine or any device, may write to the memory or truncate
    /// it while this region or a clone of it lives.
    #[must_use]
    pub unsafe fn assume_immutable(self) -> Self {
        let provenance = match self.provenance {
            Provenance::Sealed => Provenance::Sealed,
            Provenance::Trusted | Provenance::Shared => Provenance::Trusted,
        };
        Self { provenance, ..self }
    }

    /// Bytes of the region. It may be larger than the image.
    pub fn len(&self) -> u64 {
        self.view().len() as u64
    }

    /// True for a region without bytes.
    pub fn is_empty(&self) -> bool {
        self.view().is_empty()
    }

    /// The region as a bounded view.
    pub fn view(&self) -> SharedBytes<'_> {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => mapping.view(),
            Memory::Owned(bytes) => SharedBytes::from_slice(bytes.as_slice()),
        }
    }

    /// The region as a slice.
    ///
    /// # Errors
    /// [`Error::NotImmutable`] unless the region is proven or promised immutable.
    pub fn as_slice(&self) -> Result<&[u8]> {
        self.slice(0, self.len())
    }

    /// Part of the region as a slice.
    ///
    /// # Errors
    /// [`Error::NotImmutable`] as for [`Region::as_slice`]; [`Error::Memory`] when the range is outside the region.
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8]> {
        let view = self.view().get(offset, len)?;
        match self.provenance {
            Provenance::Shared => Err(Error::NotImmutable(self.provenance)),
            // SAFETY: `view` was just cut from this region, so its bytes stay mapped or allocated while `self` is
            // borrowed. Nobody writes to them: `Sealed` is set only for a memfd whose seals forbid writing,
            // shrinking and growing for good (fcntl(2), F_ADD_SEALS), for a file with fs-verity on a file system whose
            // kernel code compares each page with the digest before it maps it and refuses writing and truncation for
            // good (a page that differs is SIGBUS, never other bytes), and for memory that this process owns and never
            // lends mutably; `Trusted` only by the caller's promise in `assume_immutable`. A copy-on-write
            // mapping is `Shared` unless that promise was made for it.
            Provenance::Sealed | Provenance::Trusted => Ok(unsafe { view.as_slice() }),
        }
    }

    /// What is known of the writers.
    pub fn provenance(&self) -> Provenance {
        self.provenance
    }

    /// What the descriptor is; `None` for bytes that this process owns.
    pub fn info(&self) -> Option<&FdInfo> {
        match &*self.memory {
            Memory::Mapped { info, .. } => Some(info),
            Memory::Owned(_) => None,
        }
    }

    /// The digest of fs-verity, for a file that has it: it stands for all bytes of the file, the kernel compares what it
    /// reads with it, and nobody can write the file any more.
    pub fn verity(&self) -> Option<&VerityDigest> {
        match &*self.memory {
            Memory::Mapped { verity, .. } => verity.as_ref(),
            Memory::Owned(_) => None,
        }
    }

    /// True for memory that a holder gave and that nobody can write, the holder neither: it has hashed every file of it
    /// before it gave it a name.
    pub(crate) fn is_vouched(&self) -> bool {
        let is_compared = matches!(self.source(), Some(Source::Remote(_)));
        (self.attachment.is_some() || is_compared) && self.info().is_some_and(|info| info.kind.is_immutable())
    }

    /// The descriptor, to pass the memory on; `None` for bytes that this process owns.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &*self.memory {
            Memory::Mapped { fd, .. } => Some(fd.as_fd()),
            Memory::Owned(_) => None,
        }
    }

    /// Where the region begins in what the descriptor leads to: 0, unless a part was named. The physical address for
    /// a physical range.
    pub fn offset(&self) -> u64 {
        match &*self.memory {
            Memory::Mapped { offset, .. } => *offset,
            Memory::Owned(_) => 0,
        }
    }

    /// How the memory is mapped, which decides on what can be done with it.
    pub fn class(&self) -> MemoryClass {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => mapping.class(),
            Memory::Owned(_) => MemoryClass::Pages,
        }
    }

    /// The source that it was opened from; `None` for descriptors and for bytes that this process owns.
    pub fn source(&self) -> Option<&Source> {
        self.source.as_deref()
    }

    /// What a holder said of the memory, if it came from one.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.attachment.as_deref()
    }

    /// True while the source still means this memory: a holder's name was not swapped, a path was not replaced by
    /// another file, a file or memfd was not cut short, a device is still there, a mount was not replaced or taken
    /// away. Memory that came as a descriptor has no name that could change.
    /// [`crate::Image::is_current`] looks at the contents, too.
    ///
    /// # Errors
    /// [`Error::Holder`] when the holder cannot be asked.
    pub fn is_current(&self) -> Result<bool> {
        if let Some(attachment) = self.attachment() {
            return Ok(attachment.is_current()?);
        }
        if !self.is_whole()? {
            return Ok(false);
        }
        let (Some(Source::Path { path, .. }), Some(info)) = (self.source(), self.info()) else {
            return Ok(true);
        };
        let now = std::fs::metadata(path);
        if info.kind.class() == MemoryClass::Pages {
            return Ok(now.is_ok_and(|now| (now.dev(), now.ino()) == (info.dev, info.ino)));
        }
        // A device keeps its name.
        if info.kind.facts().is_device || now.is_ok_and(|now| now.file_type().is_char_device()) {
            return Ok(true);
        }
        // Otherwise only the root of a mounted DAXFS is a path to the memory.
        Ok(match source::behind_mount(path) {
            Ok(Some(Mounted::DmaBuf(fd))) => {
                dmabuf::describe(fd.as_fd()).is_ok_and(|now| (now.dev, now.ino) == (info.dev, info.ino))
            }
            Ok(Some(Mounted::Physical { address, len })) => {
                info.kind == FdKind::Physical && (address, len) == (self.offset(), self.len())
            }
            _ => false,
        })
    }

    /// Opens the source again: its name, or the descriptor where there is none that stays.
    pub(crate) fn reopen(&self, private: bool, timeout: Duration) -> Result<Self> {
        match (self.source(), &*self.memory) {
            (Some(source @ (Source::Path { .. } | Source::Holder(_))), _) => {
                Self::open_source(source.clone(), None, private, timeout, &|_, _| true)
            }
            (_, Memory::Mapped { fd, offset, .. }) => {
                let fd = fd.try_clone().map_err(|source| dmabuf::Error::Os {
                    op: "duplicate",
                    subject: "the image's descriptor".into(),
                    source,
                })?;
                let part = Part { offset: *offset, len: Some(self.len()) };
                let region = Self::map(fd, part, private)?;
                let provenance = if private { Provenance::Shared } else { region.provenance };
                Ok(Self { source: self.source.clone(), provenance, ..region })
            }
            (_, Memory::Owned(_)) => Ok(self.clone()),
        }
    }

    /// The descriptor of a file or memfd whose pages others can take away, and where the region begins in it: reading
    /// it is an error then, touching the mapping SIGBUS.
    pub(crate) fn file_that_shrinks(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &*self.memory {
            Memory::Mapped { fd, info, offset, .. } => {
                let is_file = info.kind.class() == MemoryClass::Pages;
                (is_file && !info.kind.keeps_pages()).then(|| (fd.as_fd(), *offset))
            }
            Memory::Owned(_) => None,
        }
    }

    /// Whether a file is still as long as when it was mapped, and a device still has its memory: elsewhere a touch is
    /// SIGBUS, or reads what nobody wrote.
    fn is_whole(&self) -> Result<bool> {
        if let Some((fd, start)) = self.file_that_shrinks() {
            return Ok(dmabuf::describe(fd)?.len >= start.saturating_add(self.len()));
        }
        match &*self.memory {
            Memory::Mapped { fd, info, .. } if info.kind.facts().is_device => {
                Ok(dmabuf::describe(fd.as_fd()).is_ok_and(|now| now.len >= info.len))
            }
            _ => Ok(true),
        }
    }

    /// An error when the region's device has gone ([`dmabuf::check_present`]). What was read before that is known to be
    /// the device's, what is read without it may be anybody's.
    pub(crate) fn check_present(&self) -> Result<()> {
        match &*self.memory {
            Memory::Mapped { fd, info, .. } => Ok(dmabuf::check_present(fd.as_fd(), &info.kind)?),
            Memory::Owned(_) => Ok(()),
        }
    }

    /// True when the mapping is private and writable ([`Region::from_fd_private`]).
    pub fn is_writable(&self) -> bool {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => mapping.is_writable(),
            Memory::Owned(_) => false,
        }
    }

    /// Begins a bracket of CPU reads (`DMA_BUF_IOCTL_SYNC`) on a dma-buf; `None` on other memory, which needs none, and
    /// on dma-bufs of GPU drivers, which would move the buffer out of the device's memory
    /// ([`dmabuf::syncs_reads`]); [`CpuAccess::begin`] on [`Region::fd`] does it all the same.
    ///
    /// The bracket orders caches; it does not keep writers out. The reading methods of [`crate::File`] use it
    /// themselves; raw views are the caller's business.
    ///
    /// # Errors
    /// [`Error::Memory`] when the ioctl fails, and when the region's device has gone: a devdax device without a driver,
    /// a PCI device that was removed.
    pub fn cpu_access(&self) -> Result<Option<CpuAccess<'_>>> {
        self.check_present()?;
        match &*self.memory {
            Memory::Mapped { fd, info, .. } if info.kind.syncs_reads() => {
                Ok(Some(CpuAccess::begin(fd.as_fd(), dmabuf::Access::Read)?))
            }
            _ => Ok(None),
        }
    }

    /// Maps all pages now instead of at first touch. `Ok(false)` where the kernel cannot (dma-bufs are mapped by
    /// page faults only) or nothing is to be done.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not enough memory.
    pub fn populate(&self) -> Result<bool> {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => Ok(mapping.populate()?),
            Memory::Owned(_) => Ok(false),
        }
    }

    /// Asks the kernel to move the memory to huge pages ([`dmabuf::huge_page_size`], `MADV_COLLAPSE`), for everybody who
    /// maps it. `Ok(false)` where it cannot.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not enough memory.
    pub fn collapse(&self) -> Result<bool> {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => Ok(mapping.collapse()?),
            Memory::Owned(_) => Ok(false),
        }
    }

    /// Which pages this process has mapped, and how large they are; `None` for bytes that this process owns, and without
    /// a mounted `/proc`.
    ///
    /// # Errors
    /// [`Error::Memory`] when `/proc/self/smaps` cannot be read.
    pub fn pages(&self) -> Result<Option<PageStats>> {
        match &*self.memory {
            Memory::Mapped { mapping, .. } => match mapping.pages() {
                Err(error) if error.io_kind() == io::ErrorKind::NotFound => Ok(None),
                pages => Ok(Some(pages?)),
            },
            Memory::Owned(_) => Ok(None),
        }
    }
}

/// Fills `target` with what a file has from `start` on.
pub(crate) fn read_all(
    fd: BorrowedFd<'_>,
    start: u64,
    target: &mut SharedBytesMut<'_>,
) -> dmabuf::Result<()> {
    let len = target.len() as u64;
    let mut done = 0;
    let failed = |source| dmabuf::Error::Os { op: "read", subject: "the image".into(), source };
    while done < len {
        match target.get_mut(done, len - done)?.pread_from(fd, start + done) {
            Ok(0) => {
                let why = format!("the file was cut short to {} bytes", start + done);
                return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
            Ok(count) => done += count as u64,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Bytes from which on a call of the kernel is quicker than the page faults that it saves.
const LARGE: usize = 64 * 1024;

/// Bytes moved at a time by reads that go through a buffer: small enough for the second-level cache.
pub(crate) const COPY_CHUNK: usize = 256 * 1024;

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("kind", &self.info().map(|info| &info.kind))
            .field("len", &self.len())
            .field("provenance", &self.provenance)
            .finish_non_exhaustive()
    }
}
