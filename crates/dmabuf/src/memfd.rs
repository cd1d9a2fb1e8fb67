//! Anonymous memory with a descriptor: creating, sealing, and giving it huge pages.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sysinfo::sysinfo;

use crate::again::uninterrupted;
use crate::describe::describe;
use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::kind::FdKind;
use crate::map::Mapping;
use crate::numa;
use crate::seals::Seals;

/// Longest name that memfd_create(2) takes, in bytes.
const NAME_MAX: usize = 249;

/// Which pages a memfd is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    No,
    /// Transparent huge pages, made with [`allocate_huge`] by whoever fills the memfd; needs no privilege.
    Thp,
    /// 2 MiB pages of the hugetlb pool, reserved at creation.
    Hugetlb2M,
    /// 1 GiB pages of the hugetlb pool, reserved at creation.
    Hugetlb1G,
    /// As [`Thp`](Self::Thp) where the length is at least [`huge_page_size`](crate::huge_page_size) and the kernel can,
    /// else ordinary pages.
    Auto,
}

/// Anonymous memory with a descriptor; it lives as long as a descriptor, a mapping or a dma-buf of it does.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    len: u64,
    pages: HugePages,
}

impl Memfd {
    /// Creates a sealable, close-on-exec memfd of `len` zero bytes that can never be executed (where the kernel knows
    /// MFD_NOEXEC_SEAL, Linux 6.3). `name` shows up in `/proc/PID/fd` and serves people only.
    ///
    /// With a hugetlb kind the length is rounded up to whole huge pages, which are all reserved and allocated now.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name with a NUL byte or of more than 249 bytes, for a length beyond `i64`, and with
    /// [`HugePages::Thp`] for more than the memory that is available; [`Error::Unavailable`] naming the pool that is
    /// too small with a hugetlb kind; [`Error::Os`] for the rest.
    pub fn create(name: &str, len: u64, pages: HugePages) -> Result<Memfd> {
        Self::create_on(name, len, pages, None)
    }

    /// As [`create`](Self::create), with all pages on one NUMA node: ordinary ones whoever touches them first, hugetlb
    /// pages because they are allocated there now (their memory keeps no policy, so one that replaces a hole punched
    /// later comes from anywhere). [`nodes_of`](crate::nodes_of) says where they are.
    ///
    /// # Errors
    /// As [`create`](Self::create), with the node's share of the hugetlb pool, and [`Error::Unavailable`] for a node
    /// that this machine does not have.
    pub fn create_on(name: &str, len: u64, pages: HugePages, node: Option<u32>) -> Result<Memfd> {
        let subject = || format!("memfd:{name}");
        if name.contains('\0') || name.len() > NAME_MAX {
            return Err(Error::invalid(
                format!("memfd name of {} bytes", name.len()),
                format!("at most {NAME_MAX} bytes and no NUL byte are allowed"),
            ));
        }
        let hugetlb = match pages {
            HugePages::Hugetlb2M => Some((MFdFlags::MFD_HUGE_2MB, 2 << 20)),
            HugePages::Hugetlb1G => Some((MFdFlags::MFD_HUGE_1GB, 1 << 30)),
            HugePages::No | HugePages::Thp | HugePages::Auto => None,
        };
        let too_long = || Error::invalid(subject(), format!("{len} bytes exceed the largest file length"));
        let len = len.checked_next_multiple_of(hugetlb.map_or(1, |(_, size)| size)).ok_or_else(too_long)?;
        let file_len = libc::off_t::try_from(len).map_err(|_| too_long())?;
        if pages == HugePages::Thp {
            check_available(&subject(), len)?;
        }

        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if let Some((size_flag, _)) = hugetlb {
            flags |= MFdFlags::MFD_HUGETLB | size_flag;
        }
        // nix has no name for this flag; kernels before 6.3 answer EINVAL.
        let no_exec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let fd = match memfd_create(name, flags | no_exec) {
            Err(Errno::EINVAL) => memfd_create(name, flags),
            other => other,
        };
        let fd = fd.map_err(|e| match (e, hugetlb) {
            (Errno::EINVAL | Errno::ENODEV | Errno::ENOSYS | Errno::EOPNOTSUPP, Some((_, size))) => {
                Error::Unavailable {
                    what: format!("hugetlb memory in pages of {} MiB", size >> 20),
                    needs: format!("kernel support, see /sys/kernel/mm/hugepages/{}", pool_name(size)),
                }
            }
            _ => Error::os("memfd_create", subject(), e),
        })?;
        uninterrupted(|| nix::unistd::ftruncate(&fd, file_len))
            .map_err(|e| Error::os("ftruncate", subject(), e))?;
        match (hugetlb, node) {
            // The kernel keeps no policy with hugetlb memory (mbind(2) would bind the mapping only), but allocates by
            // that of the thread.
            (Some((_, size)), _) => numa::on_node(node, || match len {
                0 => Ok(()),
                _ => reserve_hugetlb(&fd, &subject(), file_len, size, node),
            })?,
            (None, Some(node)) => {
                let bytes = usize::try_from(len).map_err(|_| too_long())?;
                // The policy belongs to the memory and stays when this mapping is gone.
                numa::bind(&Mapping::read_write(fd.as_fd(), 0, bytes)?, node)?;
            }
            (None, None) => {}
        }
        Ok(Memfd { fd, len, pages })
    }

    /// A memfd that somebody else made, with the length that it has now.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other descriptor; [`Error::Os`] where it cannot be looked at.
    pub fn from_fd(fd: OwnedFd) -> Result<Memfd> {
        let info = describe(fd.as_fd())?;
        let FdKind::Memfd { hugetlb, .. } = info.kind else {
            return Err(Error::invalid(fd_name(fd.as_fd()), "is no memfd"));
        };
        let pages = match hugetlb {
            None => HugePages::No,
            Some(size) if size < 1 << 30 => HugePages::Hugetlb2M,
            Some(_) => HugePages::Hugetlb1G,
        };
        Ok(Memfd { fd, len: info.len, pages })
    }

    /// Length in bytes, after rounding.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of pages that was asked for; where that is not known, hugetlb pages or ordinary ones.
    #[must_use]
    pub fn pages(&self) -> HugePages {
        self.pages
    }

    /// Adds seals; they hold for every descriptor of this memory, for good.
    ///
    /// # Errors
    /// [`Error::Os`]: EBUSY for [`Seals::WRITE`] while a writable shared mapping or a udmabuf of it exists, EPERM
    /// after [`Seals::SEAL`].
    pub fn seal(&self, s: Seals) -> Result<()> {
        // The bits are those of the kernel; nix has no name for F_SEAL_EXEC.
        let flags = SealFlag::from_bits_retain(s.bits().cast_signed());
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(flags))
            .map(drop)
            .map_err(|e| Error::os("seal", fd_name(self.as_fd()), e))
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Memfd> for OwnedFd {
    fn from(memfd: Memfd) -> OwnedFd {
        memfd.fd
    }
}

/// Makes the whole blocks of [`huge_page_size`](crate::huge_page_size) within `range` (offsets in the mapping) of a
/// writable shared mapping of a memfd or tmpfs file huge pages, and returns how many bytes now are. Contents do not
/// change, but call it before filling: empty blocks cost 0.07 s per GiB, full ones have to be copied.
///
/// The kernel does not collapse an empty block, hence one page of each is allocated first (MADV_POPULATE_WRITE); then
/// MADV_COLLAPSE (Linux 6.1) builds the huge page around it. Neither privilege nor
/// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is needed. A result below the length of the range means that
/// the kernel cannot (0; so where ordinary pages have 64 KiB, since its page cache holds nothing of 512 MiB), or that
/// contiguous memory ran out; the rest works as ordinary pages.
///
/// # Errors
/// [`Error::OutOfBounds`] for a range outside of the mapping, [`Error::Invalid`] for a mapping that is not writable
/// and shared, or for more than the memory that is available; [`Error::Os`] if the first page of a block cannot be
/// allocated.
pub fn allocate_huge(map: &Mapping, range: Range<u64>) -> Result<u64> {
    let len = range.end.saturating_sub(range.start);
    let part = map.view().get(range.start, len)?;
    if !map.is_writable() || map.is_private() {
        return Err(Error::invalid("allocate_huge", "the mapping is not writable and shared"));
    }
    check_available("huge pages", len)?;
    map.allocate_huge_blocks(part)
}

/// Allocates the huge pages, so that no later touch meets an exhausted pool (SIGBUS). `node` is for messages.
fn reserve_hugetlb(
    fd: &OwnedFd,
    subject: &str,
    len: libc::off_t,
    page: u64,
    node: Option<u32>,
) -> Result<()> {
    loop {
        match fallocate(fd, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOSPC | Errno::ENOMEM) => {
                let place =
                    node.map_or("/sys/kernel/mm".into(), |n| format!("/sys/devices/system/node/node{n}"));
                let pool = format!("{place}/hugepages/{}", pool_name(page));
                // What was had so far counts as free again; the file is to be given up anyway.
                nix::unistd::ftruncate(fd, 0).map_err(|e| Error::os("ftruncate", subject, e))?;
                let free = fs::read_to_string(format!("{pool}/free_hugepages"));
                return Err(Error::Unavailable {
                    what: format!("{len} bytes of hugetlb memory for {subject}"),
                    needs: format!(
                        "{} free pages, of which there are {}; raise {pool}/nr_hugepages",
                        len.cast_unsigned() / page,
                        free.as_deref().map_or("none", str::trim),
                    ),
                });
            }
            Err(e) => return Err(Error::os("fallocate", subject, e)),
        }
    }
}

fn pool_name(page: u64) -> String {
    format!("hugepages-{}kB", page >> 10)
}

/// Refuses what would not fit into memory: the kernel would not say ENOMEM but end some process.
pub(crate) fn check_available(what: &str, len: u64) -> Result<()> {
    // What is free is available, and asking for that much costs less than reading a file.
    if sysinfo().is_ok_and(|now| now.ram_unused() / 2 >= len) {
        return Ok(());
    }
    match available_memory() {
        Some(available) if len > available => {
            Err(Error::invalid(what, format!("{len} bytes asked for, but only {available} are available")))
        }
        _ => Ok(()),
    }
}

/// `MemAvailable` in bytes; `None` without a readable `/proc/meminfo`.
pub(crate) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
#[path = "memfd_tests.rs"]
pub(crate) mod tests;
