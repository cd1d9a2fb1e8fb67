//! The kinds of memory: a table with one row for each. A kind is a module with a `Row` that implements [`Kind`], and a
//! row of the table below. Everything that differs between kinds is asked of the rows, here and by the crate's users.

#![forbid(unsafe_code)]

mod devdax;
mod dma_buf;
mod file;
mod memfd;
mod pci;
mod physical;

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{Statfs, fstatfs};

use crate::again::uninterrupted;
use crate::class::MemoryClass;
use crate::error::{Error, Result};
use crate::fd::{fd_link, fd_name, fs_type, open};
use crate::seals::{Seals, seals};
use crate::survey::Offer;

pub(crate) use dma_buf::{HEAPS, LIMIT, LIST_LIMIT};
pub use dma_buf::{heaps, syncs_reads, udmabuf_limit, udmabuf_list_limit};
pub use pci::{PciBar, pci_bars};
pub use physical::open_physical;

/// What is the same for all memory of one kind, for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KindFacts {
    /// What it is called everywhere: `memfd`, `dma-buf`, `file`, `devdax`, `PCI memory`, `physical range`.
    pub name: &'static str,
    /// How it is mapped.
    pub class: MemoryClass,
    /// Whether it is the memory of a device that can go away, and its memory with it.
    pub is_device: bool,
    /// Who can write to it.
    pub writers: &'static str,
    /// Whether it can shrink under a mapping.
    pub shrinks: &'static str,
    /// The pages that it has.
    pub pages: &'static str,
    /// Who sees the same bytes without further measures.
    pub coherence: &'static str,
}

/// What the crate asks of a kind of memory.
pub(crate) trait Kind: Sync {
    /// What is the same for all memory of the kind.
    fn facts(&self) -> &'static KindFacts;

    /// How memory of this kind is mapped; `None` for another kind. It is asked for each mapping, so it asks little.
    ///
    /// # Errors
    /// When it is of this kind and cannot be used.
    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>>;

    /// The kind with what can be said of this memory, once it is recognised.
    fn describe(&self, seen: &Seen<'_>, layout: &Layout) -> Result<FdKind>;

    /// Whether nobody can take the pages of this memory away.
    fn keeps_pages(&self, kind: &FdKind) -> bool;

    /// Whether the kernel keeps everybody from writing this memory, for good.
    fn is_immutable(&self, _: &FdKind) -> bool {
        false
    }

    /// Why the pages of this memory cannot be gathered into huge pages; `None` where the kernel is to be asked.
    fn not_collapsed(&self, _: &FdKind) -> Option<&'static str> {
        None
    }

    /// Whether the device that has the memory is still there.
    fn check_present(&self, _: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }

    /// The file to open for a path that means memory of this kind, where it is not that path.
    fn find(&self, _: &Path) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// What a failed open(2) of this kind of memory means; the same error where it is of another kind.
    fn not_opened(&self, _: &Path, error: Error) -> Error {
        error
    }

    /// What a failed mmap(2) means.
    fn not_mapped(&self, fd: BorrowedFd<'_>, _offset: u64, _len: usize, error: io::Error) -> Error {
        Error::os("mmap", fd_name(fd), error)
    }

    /// What this machine has of it.
    fn offers(&self) -> Vec<Offer>;
}

/// How memory is mapped.
pub(crate) struct Layout {
    /// Bytes that there are.
    pub(crate) len: u64,
    /// Offsets and lengths of mappings are multiples of it.
    pub(crate) unit: u64,
    /// Whether the kernel may map it by transparent huge pages, where addresses allow that.
    pub(crate) has_huge_pages: bool,
}

/// A descriptor, as two system calls show it.
pub(crate) struct Seen<'fd> {
    fd: BorrowedFd<'fd>,
    stat: FileStat,
    fs: Statfs,
    link: OnceCell<Option<PathBuf>>,
    seals: OnceCell<Option<Seals>>,
}

impl<'fd> Seen<'fd> {
    fn new(fd: BorrowedFd<'fd>) -> Result<Self> {
        let stat = fstat(fd).map_err(|e| Error::os("fstat", fd_name(fd), e))?;
        let fs = uninterrupted(|| fstatfs(fd)).map_err(|e| Error::os("fstatfs", fd_name(fd), e))?;
        Ok(Self { fd, stat, fs, link: OnceCell::new(), seals: OnceCell::new() })
    }

    /// What fstat(2) says.
    pub(crate) fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Where `/proc/self/fd` says the descriptor leads; `None` without a mounted `/proc`.
    pub(crate) fn link(&self) -> Option<&Path> {
        self.link.get_or_init(|| fd_link(self.fd)).as_deref()
    }

    /// The seals; `None` for what has none at all.
    fn seals(&self) -> Result<Option<Seals>> {
        if let Some(known) = self.seals.get() {
            return Ok(*known);
        }
        let found = seals(self.fd)?;
        Ok(*self.seals.get_or_init(|| found))
    }

    /// The type bits. A dma-buf has none.
    fn file_type(&self) -> SFlag {
        SFlag::from_bits_truncate(self.stat.st_mode & SFlag::S_IFMT.bits())
    }

    /// Whether it is a regular file of a file system with this magic number.
    fn is_file_of(&self, magic: u32) -> bool {
        self.file_type() == SFlag::S_IFREG && fs_type(&self.fs) == magic
    }

    /// Length of a regular file.
    fn file_len(&self) -> u64 {
        self.stat.st_size.try_into().unwrap_or(0)
    }

    fn refuse<T>(&self, why: &'static str) -> Result<T> {
        Err(Error::NotShareable { what: fd_name(self.fd), why })
    }
}

/// Memory that was recognised.
pub(crate) struct Found<'fd> {
    pub(crate) kind: &'static dyn Kind,
    pub(crate) layout: Layout,
    pub(crate) seen: Seen<'fd>,
}

/// Finds the kind of memory behind a descriptor.
pub(crate) fn recognise(fd: BorrowedFd<'_>) -> Result<Found<'_>> {
    let seen = Seen::new(fd)?;
    for kind in KINDS {
        if let Some(layout) = kind.recognise(&seen)? {
            return Ok(Found { kind: *kind, layout, seen });
        }
    }
    seen.refuse(match seen.file_type() {
        SFlag::S_IFCHR if nix::unistd::isatty(fd).unwrap_or(false) => "it is a terminal",
        SFlag::S_IFCHR => "it is a character device other than device-dax and /dev/mem",
        SFlag::S_IFBLK => {
            "it is a block device: its mapping is this kernel's page cache, not the device, and goes stale; \
             use devdax or a file"
        }
        SFlag::S_IFDIR => {
            "it is a directory; `daxfs-pack DIR -o IMAGE.daxfs` packs it, `daxfs serve NAME=DIR` keeps it in memory \
             for others"
        }
        SFlag::S_IFIFO => "it is a pipe; write it to a file or a memfd first",
        SFlag::S_IFSOCK => "it is a socket; receive into a file or a memfd first",
        _ => "it is neither a file, a memfd, a dma-buf nor a device with memory",
    })
}

/// Makes the public enum and the table from the rows: documentation, variant with what is known of each memory, module.
/// Rows are tried in this order.
macro_rules! kinds {
    ($(
        $(#[$doc:meta])*
        $variant:ident $({ $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })? = $module:ident;
    )*) => {
        /// Kind of memory behind a descriptor.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum FdKind {
            $($(#[$doc])* $variant $({ $($(#[$field_doc])* $field: $type,)* })?,)*
        }

        const KINDS: &[&dyn Kind] = &[$(&$module::Row),*];

        impl FdKind {
            fn row(&self) -> &'static dyn Kind {
                match self {
                    $(Self::$variant { .. } => &$module::Row,)*
                }
            }
        }
    };
}

kinds! {
    /// A dma-buf: cannot shrink, has only shared mappings, needs [`CpuAccess`](crate::CpuAccess) around CPU access.
    DmaBuf {
        /// Name of the driver that made it: `udmabuf`, `system` (the heap), `drm`, ...
        exporter: String,
        /// Name given with `DMA_BUF_SET_NAME`, if any.
        name: Option<String>,
    } = dma_buf;
    /// The memory of a PCI device, by its file `resourceN` or `resourceN_wc` in sysfs: not cached, cannot shrink, and
    /// cannot be read with read(2).
    PciMemory {
        /// Whether it is the `_wc` file, through which loads and stores are combined; else they are uncached.
        write_combining: bool,
    } = pci;
    /// Anonymous memory made by `memfd_create(2)`.
    Memfd {
        /// Seals at the time of the call; more may be added later unless [`Seals::SEAL`] is among them.
        seals: Seals,
        /// Size of a page in bytes if it is made of hugetlb pages.
        hugetlb: Option<u64>,
    } = memfd;
    /// A regular file, on tmpfs too. Whoever may write it may also cut it short under a mapping (SIGBUS).
    File = file;
    /// `/dev/mem`: offsets are physical addresses. Its length is that of the address space, whatever is there.
    Physical = physical;
    /// A device-dax character device: the memory itself, without a page cache.
    DevDax {
        /// Alignment in bytes that mappings need; [`Mapping`](crate::Mapping) takes care of it.
        align: u64,
    } = devdax;
}

/// The kinds of memory that there are.
pub fn kinds() -> impl ExactSizeIterator<Item = &'static KindFacts> {
    KINDS.iter().map(|kind| kind.facts())
}

/// The memory of each kind that this machine offers at the moment, and what is missing for the rest.
#[must_use]
pub fn offers() -> Vec<Offer> {
    // As the table of `docs/sources.md` has them.
    let mut offers: Vec<Offer> = KINDS.iter().flat_map(|kind| kind.offers()).collect();
    offers.sort_by_key(|offer| offer.kind != memfd::FACTS.name);
    offers
}

impl FdKind {
    /// What is the same for all memory of this kind.
    pub fn facts(&self) -> &'static KindFacts {
        self.row().facts()
    }

    /// What it is called: `memfd`, `dma-buf`, `file`, `devdax`, `PCI memory`, `physical range`.
    pub fn name(&self) -> &'static str {
        self.facts().name
    }

    /// How it is mapped.
    pub fn class(&self) -> MemoryClass {
        self.facts().class
    }

    /// True for memory whose pages nobody can take away under a mapping, which would make the next touch SIGBUS: a
    /// memfd sealed against shrinking, and against writing as well if it has hugetlb pages; a dma-buf; devdax, as
    /// long as it has its driver. Files can be cut short. Mappings of [`FdKind::PciMemory`] and [`FdKind::Physical`]
    /// can be revoked when a driver claims the memory for itself, so these are not among it, although they cannot
    /// shrink.
    pub fn keeps_pages(&self) -> bool {
        self.row().keeps_pages(self)
    }

    /// True for memory that nobody can write or cut short any more, as the kernel guarantees: a memfd with
    /// [`Seals::IMMUTABLE`]. Of a file [`measure_verity`](crate::measure_verity) has to be asked.
    pub fn is_immutable(&self) -> bool {
        self.row().is_immutable(self)
    }

    /// Why [`Mapping::collapse`](crate::Mapping::collapse) can do nothing for this memory; `None` where the kernel has
    /// to be asked.
    pub fn not_collapsed(&self) -> Option<&'static str> {
        self.row().not_collapsed(self)
    }

    /// The seals of a memfd.
    pub fn seals(&self) -> Option<Seals> {
        let Self::Memfd { seals, .. } = self else { return None };
        Some(*seals)
    }

    /// The driver that made a dma-buf.
    pub fn exporter(&self) -> Option<&str> {
        let Self::DmaBuf { exporter, .. } = self else { return None };
        Some(exporter)
    }

    /// Whether reads of it are bracketed by [`CpuAccess`](crate::CpuAccess) on their own: those of a dma-buf, unless
    /// [`syncs_reads`] says otherwise of its exporter.
    pub fn syncs_reads(&self) -> bool {
        self.exporter().is_some_and(syncs_reads)
    }
}

impl fmt::Display for FdKind {
    /// The name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Opens memory by its path: a regular file, a devdax device, the memory of a PCI device. A directory of
/// `/sys/bus/pci/devices` stands for the largest memory of that device, and `resourceN` for `resourceN_wc` where
/// there is one: uncached reads are the slowest there are.
///
/// # Errors
/// [`Error::Unavailable`] for a devdax device without a driver and a PCI device without memory; [`Error::Os`] with
/// the kernel's answer.
pub fn open_memory(path: &Path, write: bool) -> Result<OwnedFd> {
    let mut found = None;
    for kind in KINDS {
        if found.is_none() {
            found = kind.find(path)?;
        }
    }
    let path = found.as_deref().unwrap_or(path);
    open(path, write).map_err(|error| KINDS.iter().fold(error, |error, kind| kind.not_opened(path, error)))
}

/// Whether the device of a descriptor of this kind still has its memory: a devdax device its driver, a PCI device its
/// place on the bus. Other kinds do not go away. A mapping outlives the device, and reading it is SIGBUS (devdax) or
/// bytes of nobody (PCI), so this is asked right before and after reading where that can be.
///
/// # Errors
/// [`Error::Unavailable`] with what has gone.
pub fn check_present(fd: BorrowedFd<'_>, kind: &FdKind) -> Result<()> {
    kind.row().check_present(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_offers_bear_them() {
        let names: std::collections::BTreeSet<_> = kinds().map(|facts| facts.name).collect();
        assert_eq!(names.len(), KINDS.len());
        let offers = offers();
        assert!(offers.iter().all(|offer| names.contains(offer.kind)), "{offers:?}");
        assert_eq!(offers[0].kind, "memfd", "it is there without any device");
        assert_eq!(FdKind::Physical.to_string(), "physical range");
    }

    #[test]
    fn which_memory_keeps_its_pages() {
        let memfd = |seals, hugetlb| FdKind::Memfd { seals, hugetlb }.keeps_pages();
        assert!(memfd(Seals::SHRINK, None) && memfd(Seals::IMMUTABLE, None));
        assert!(!memfd(Seals::GROW | Seals::WRITE, None));
        assert!(!memfd(Seals::SHRINK | Seals::GROW, Some(2 << 20)), "a hole may be punched into it");
        assert!(!memfd(Seals::WRITE, Some(2 << 20)));
        assert!(memfd(Seals::IMMUTABLE, Some(2 << 20)));
        assert!(FdKind::DmaBuf { exporter: "udmabuf".into(), name: None }.keeps_pages());
        assert!(FdKind::DevDax { align: 2 << 20 }.keeps_pages());
        let others = [FdKind::File, FdKind::PciMemory { write_combining: true }, FdKind::Physical];
        assert!(others.iter().all(|kind| !kind.keeps_pages()));
    }

    #[test]
    fn only_seals_prove_that_memory_is_immutable() {
        let memfd = |seals| FdKind::Memfd { seals, hugetlb: None }.is_immutable();
        assert!(memfd(Seals::IMMUTABLE) && memfd(Seals::IMMUTABLE | Seals::SEAL));
        for seal in Seals::IMMUTABLE.iter() {
            assert!(!memfd(Seals::IMMUTABLE - seal), "without {seal:?}");
        }
        assert!(!memfd(Seals::SHRINK | Seals::GROW | Seals::FUTURE_WRITE));
        let dma_buf = FdKind::DmaBuf { exporter: "udmabuf".into(), name: None };
        let others = [dma_buf, FdKind::File, FdKind::PciMemory { write_combining: true }, FdKind::Physical];
        assert!(others.iter().all(|kind| !kind.is_immutable() && kind.seals().is_none()));
    }
}
