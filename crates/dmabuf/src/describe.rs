//! What a descriptor is: which kind of memory stands behind it, how long it is, who may write it.

#![allow(unsafe_code, reason = "fcntl on a descriptor that is known by its number only")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{Statfs, fstatfs};
use nix::unistd::{Whence, lseek};

use crate::again::uninterrupted;
use crate::device::{DEV_MEM, devdax, pci_present, pci_resource};
use crate::error::{Error, Result};
use crate::memfd::{Seals, seals};

/// `DMA_BUF_MAGIC` of `linux/magic.h`: the file system type of every dma-buf.
const DMA_BUF_MAGIC: u32 = 0x444d_4142;
/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
/// `SYSFS_MAGIC` of `linux/magic.h`.
const SYSFS_MAGIC: u32 = 0x6265_6572;
/// `F_DUPFD_QUERY` of `linux/fcntl.h` (Linux 6.10): whether two descriptors of this process are duplicates.
const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
/// `KCMP_FILE` of `linux/kcmp.h`: compare what two descriptors of two processes lead to.
const KCMP_FILE: libc::c_long = 0;
/// What stands for the length of the physical address space: all that a file offset can name.
const PHYSICAL_LEN: u64 = i64::MAX as u64;

/// Kind of memory behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdKind {
    /// Anonymous memory made by `memfd_create(2)`.
    Memfd {
        /// Seals at the time of the call; more may be added later unless [`Seals::SEAL`] is among them.
        seals: Seals,
        /// Size of a page in bytes if it is made of hugetlb pages.
        hugetlb: Option<u64>,
    },
    /// A dma-buf: cannot shrink, has only shared mappings, needs [`CpuAccess`](crate::CpuAccess) around CPU access.
    DmaBuf {
        /// Name of the driver that made it: `udmabuf`, `system` (the heap), `drm`, ...
        exporter: String,
        /// Name given with `DMA_BUF_SET_NAME`, if any.
        name: Option<String>,
    },
    /// A regular file, on tmpfs too. Whoever may write it may also cut it short under a mapping (SIGBUS).
    File,
    /// A device-dax character device: the memory itself, without a page cache.
    DevDax {
        /// Alignment in bytes that mappings need; [`Mapping`](crate::Mapping) takes care of it.
        align: u64,
    },
    /// The memory of a PCI device, by its file `resourceN` or `resourceN_wc` in sysfs: not cached, cannot shrink, and
    /// cannot be read with read(2).
    PciMemory {
        /// Whether it is the `_wc` file, through which loads and stores are combined; else they are uncached.
        write_combining: bool,
    },
    /// `/dev/mem`: offsets are physical addresses. Its length is that of the address space, whatever is there.
    Physical,
}

impl FdKind {
    /// True for memory whose pages nobody can take away under a mapping, which would make the next touch SIGBUS: a
    /// memfd sealed against shrinking, and against writing as well if it has hugetlb pages; a dma-buf; devdax, as
    /// long as it has its driver. Files can be cut short. Mappings of [`FdKind::PciMemory`] and [`FdKind::Physical`]
    /// can be revoked when a driver claims the memory for itself, so these are not among it, although they cannot
    /// shrink.
    pub fn keeps_pages(&self) -> bool {
        match self {
            // A hole can be punched into it until it is sealed against writing, and then the pool may have no page
            // for the next touch; ordinary pages come back as zeros.
            Self::Memfd { seals, hugetlb: Some(_) } => seals.contains(Seals::SHRINK | Seals::WRITE),
            Self::Memfd { seals, hugetlb: None } => seals.contains(Seals::SHRINK),
            Self::DmaBuf { .. } | Self::DevDax { .. } => true,
            Self::File | Self::PciMemory { .. } | Self::Physical => false,
        }
    }
}

/// What [`describe`] finds out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FdInfo {
    /// Kind of memory.
    pub kind: FdKind,
    /// Length in bytes.
    pub len: u64,
    /// Whether the descriptor's access mode allows writing (seals may still forbid it).
    pub writable: bool,
    /// `st_dev`; together with `ino` the same for two descriptors exactly when they are of one object.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Where `/proc/self/fd` says the descriptor leads (`/memfd:NAME (deleted)`, `/dmabuf:NAME`, a path). For
    /// people only: a file may have been renamed or replaced since. `None` without a mounted `/proc`.
    pub path: Option<PathBuf>,
}

impl FdInfo {
    /// Memory of which only this is known, for code that plans before there is a descriptor, and for tests.
    pub fn new(kind: FdKind, len: u64) -> Self {
        Self { kind, len, writable: false, dev: 0, ino: 0, path: None }
    }
}

/// Finds out what `fd` is.
///
/// # Errors
/// [`Error::NotShareable`] for everything that is not memory: directories, pipes, sockets, terminals, block devices,
/// other character devices. [`Error::Unavailable`] for a devdax device without a driver and a PCI device that was
/// removed. [`Error::Invalid`] for descriptors that cannot be read (O_WRONLY, O_PATH).
pub fn describe(fd: BorrowedFd<'_>) -> Result<FdInfo> {
    describe_probed(fd).map(|(info, _)| info)
}

/// As [`describe`], with what matters for mapping.
pub(crate) fn describe_probed(fd: BorrowedFd<'_>) -> Result<(FdInfo, Probe)> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl F_GETFL", fd_name(fd), e))?;
    if flags & libc::O_PATH != 0 {
        return Err(Error::invalid(fd_name(fd), "opened with O_PATH, which gives no access to the contents"));
    }
    let access = flags & libc::O_ACCMODE;
    let probe = probe(fd)?;
    if access == libc::O_WRONLY {
        return Err(Error::invalid(fd_name(fd), "open for writing only, but it has to be read"));
    }
    let path = fd_link(fd);
    let kind = match probe.class {
        Class::DmaBuf => dma_buf_kind(fd),
        Class::DevDax { align } => FdKind::DevDax { align },
        Class::PciMemory { write_combining } => FdKind::PciMemory { write_combining },
        Class::Physical => FdKind::Physical,
        Class::Pages { hugetlb } => match seals(fd)? {
            Some(seals) if is_memfd(path.as_deref(), &probe.stat) => FdKind::Memfd { seals, hugetlb },
            _ => FdKind::File,
        },
    };
    let info = FdInfo {
        kind,
        len: probe.len,
        writable: access != libc::O_RDONLY,
        dev: probe.stat.st_dev,
        ino: probe.stat.st_ino,
        path,
    };
    Ok((info, probe))
}

/// What matters for mapping a descriptor: the class decides on lengths, alignment and the bound.
pub(crate) struct Probe {
    pub(crate) class: Class,
    pub(crate) len: u64,
    stat: FileStat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Page cache pages: regular files and memfds, those of hugetlb with their page size.
    Pages {
        hugetlb: Option<u64>,
    },
    DmaBuf,
    DevDax {
        align: u64,
    },
    PciMemory {
        write_combining: bool,
    },
    Physical,
}

/// Classifies a descriptor with three system calls (and sysfs for devdax).
pub(crate) fn probe(fd: BorrowedFd<'_>) -> Result<Probe> {
    let stat = fstat(fd).map_err(|e| Error::os("fstat", fd_name(fd), e))?;
    let refuse = |why| Err(Error::NotShareable { what: fd_name(fd), why });
    // A dma-buf has no type bits in st_mode: the file system type tells.
    let fs = uninterrupted(|| fstatfs(fd)).map_err(|e| Error::os("fstatfs", fd_name(fd), e))?;
    if fs_type(&fs) == DMA_BUF_MAGIC {
        let len = lseek(fd, 0, Whence::SeekEnd).map_err(|e| Error::os("lseek", fd_name(fd), e))?;
        return Ok(Probe { class: Class::DmaBuf, len: len.try_into().unwrap_or(0), stat });
    }
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG if fs_type(&fs) == SYSFS_MAGIC => {
            match fd_link(fd).as_deref().and_then(pci_resource) {
                Some(write_combining) => {
                    pci_present(fd)?;
                    let len = stat.st_size.try_into().unwrap_or(0);
                    Ok(Probe { class: Class::PciMemory { write_combining }, len, stat })
                }
                None => refuse("it is a file of sysfs other than the memory of a PCI device"),
            }
        }
        SFlag::S_IFREG => {
            let hugetlb = (fs_type(&fs) == HUGETLBFS_MAGIC).then(|| block_size(&fs));
            Ok(Probe { class: Class::Pages { hugetlb }, len: stat.st_size.try_into().unwrap_or(0), stat })
        }
        SFlag::S_IFCHR if DEV_MEM == (libc::major(stat.st_rdev).into(), libc::minor(stat.st_rdev).into()) => {
            Ok(Probe { class: Class::Physical, len: PHYSICAL_LEN, stat })
        }
        SFlag::S_IFCHR => match devdax(Path::new("/sys"), stat.st_rdev)? {
            Some((len, align)) => Ok(Probe { class: Class::DevDax { align }, len, stat }),
            None if nix::unistd::isatty(fd).unwrap_or(false) => refuse("it is a terminal"),
            None => refuse("it is a character device other than device-dax and /dev/mem"),
        },
        SFlag::S_IFBLK => refuse(
            "it is a block device: its mapping is this kernel's page cache, not the device, and goes stale; \
             use devdax or a file",
        ),
        SFlag::S_IFDIR => refuse(
            "it is a directory; `daxfs-pack DIR -o IMAGE.daxfs` packs it, `daxfs serve NAME=DIR` keeps it in memory \
             for others",
        ),
        SFlag::S_IFIFO => refuse("it is a pipe; write it to a file or a memfd first"),
        SFlag::S_IFSOCK => refuse("it is a socket; receive into a file or a memfd first"),
        _ => refuse("it is neither a file, a memfd, a dma-buf nor a device with memory"),
    }
}

pub(crate) fn fs_type(fs: &Statfs) -> u32 {
    // The magic numbers have 32 bits; f_type is a signed word of the architecture's size.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "keeps the 32 bits that are defined"
    )]
    let magic = fs.filesystem_type().0 as u32;
    magic
}

fn block_size(fs: &Statfs) -> u64 {
    #[allow(
        clippy::unnecessary_fallible_conversions,
        reason = "the field's type differs between architectures"
    )]
    u64::try_from(fs.block_size()).unwrap_or(2 << 20)
}

/// A memfd answers F_GET_SEALS, but so do tmpfs and hugetlbfs files: only a memfd has the link `/memfd:NAME` and
/// never had a directory entry.
fn is_memfd(path: Option<&Path>, stat: &FileStat) -> bool {
    stat.st_nlink == 0 && path.is_none_or(|p| p.as_os_str().as_bytes().starts_with(b"/memfd:"))
}

fn dma_buf_kind(fd: BorrowedFd<'_>) -> FdKind {
    // Not an error if /proc is missing: the names are for people.
    let text = fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(|v| v.trim().to_owned());
    FdKind::DmaBuf { exporter: field("exp_name:").unwrap_or_default(), name: field("name:") }
}

fn fd_link(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// A name for messages: `memfd:llama`, `dmabuf:`, a path, or `fd 7`.
pub(crate) fn fd_name(fd: BorrowedFd<'_>) -> String {
    let Some(link) = fd_link(fd) else { return format!("fd {}", fd.as_raw_fd()) };
    let text = link.to_string_lossy();
    let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
    match text.strip_prefix('/') {
        Some(rest) if rest.starts_with("memfd:") || rest.starts_with("dmabuf:") => rest.to_owned(),
        _ => text.to_owned(),
    }
}

/// Duplicates a descriptor that this process inherited and knows by its number only, as `fd:N` on a command line.
/// The copy is close-on-exec; the original stays as it is.
///
/// # Errors
/// [`Error::Os`] with EBADF if no such descriptor is open.
pub fn duplicate(raw: RawFd) -> Result<OwnedFd> {
    // SAFETY: this fcntl takes integers only and touches no memory; a number that is not open is answered EBADF.
    let new = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(Error::os("duplicate", format!("fd {raw}"), io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just opened `new` for this call, so it is valid and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Opens the memory of `fd` once more, through `/proc/self/fd`, for writing too if `fd` is for reading and writing: a
/// new open file, which nobody else has, over the same memory.
///
/// # Errors
/// [`Error::Os`]: a dma-buf cannot be opened by any path (ENXIO); EACCES where the mode of a memfd or a device does not
/// allow it; ENOENT without a mounted `/proc`.
pub fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl F_GETFL", fd_name(fd), e))?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(Path::new(&path), flags & libc::O_ACCMODE == libc::O_RDWR)
}

/// Whether two descriptors are of one open file, as duplicates are, and descriptors that were passed over a socket.
/// Where the kernel does not tell (it is older than 6.10, and kcmp(2) is left out or forbidden, as in containers),
/// all descriptors of one memory count as that.
///
/// # Errors
/// [`Error::Os`] from fstat.
pub fn same_open_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let object = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let object = |fd| object(fd).map_err(|e| Error::os("fstat", fd_name(fd), e));
    if object(one)? != object(other)? {
        return Ok(false);
    }
    Ok(are_duplicates(one, other).or_else(|| compare_files(one, other)).unwrap_or(true))
}

/// `F_DUPFD_QUERY`; `None` where the kernel does not know it.
fn are_duplicates(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Option<bool> {
    // SAFETY: this fcntl takes integers only and touches no memory; both descriptors are open.
    match unsafe { libc::fcntl(one.as_raw_fd(), F_DUPFD_QUERY, libc::c_long::from(other.as_raw_fd())) } {
        1 => Some(true),
        0 => Some(false),
        _ => None,
    }
}

/// kcmp(2); `None` where the kernel does not have it or forbids it.
fn compare_files(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Option<bool> {
    let pid = libc::c_long::from(std::process::id().cast_signed());
    // The call takes words: a number of 32 bits would leave the upper half of its word open.
    let [one, other] = [one, other].map(|fd| libc::c_long::from(fd.as_raw_fd()));
    // SAFETY: this system call takes five integers and touches no memory of the process.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) } {
        0 => Some(true),
        // They differ, and this is the order in which they are.
        1..=3 => Some(false),
        _ => None,
    }
}

/// Opens `path` for reading, close-on-exec. A FIFO does not block and a terminal does not become the controlling one.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer.
pub fn open_read_only(path: &Path) -> Result<OwnedFd> {
    open(path, false)
}

/// Opens `path` as [`open_read_only`] does, if it is no symbolic link.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer: `ELOOP` for a link.
pub fn open_no_follow(path: &Path) -> Result<OwnedFd> {
    open_with(path, false, OFlag::O_NOFOLLOW)
}

/// Opens `path` for reading, and for writing if asked to.
pub(crate) fn open(path: &Path, write: bool) -> Result<OwnedFd> {
    open_with(path, write, OFlag::empty())
}

fn open_with(path: &Path, write: bool, more: OFlag) -> Result<OwnedFd> {
    fs::OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | more).bits())
        .open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::os("open", path.display().to_string(), e))
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
