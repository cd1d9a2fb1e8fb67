//! Dma-bufs made of a memfd's pages by `/dev/udmabuf`.

#![allow(unsafe_code, reason = "the ioctl and the descriptor it returns")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::kind::{LIMIT, LIST_LIMIT, udmabuf_limit, udmabuf_list_limit};
use crate::memfd::Memfd;
use crate::page::page_size;
use crate::seals::{Seals, seals};

const DEVICE: &str = "/dev/udmabuf";
/// `UDMABUF_FLAGS_CLOEXEC` of `linux/udmabuf.h`.
const FLAGS_CLOEXEC: u32 = 1;

/// `struct udmabuf_create` of `linux/udmabuf.h`.
#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const _: () = assert!(size_of::<UdmabufCreate>() == 24 && align_of::<UdmabufCreate>() == 8);
const _: () = assert!(std::mem::offset_of!(UdmabufCreate, offset) == 8);
const _: () = assert!(std::mem::offset_of!(UdmabufCreate, size) == 16);
const _: () = assert!(nix::request_code_write!(b'u', 0x42, size_of::<UdmabufCreate>()) == 0x4018_7542);

/// `struct udmabuf_create_item` of `linux/udmabuf.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UdmabufItem {
    memfd: u32,
    padding: u32,
    offset: u64,
    size: u64,
}

/// `struct udmabuf_create_list` of `linux/udmabuf.h` without the items, which follow it in memory.
#[repr(C)]
struct UdmabufList {
    flags: u32,
    count: u32,
}

const _: () = assert!(size_of::<UdmabufItem>() == 24 && align_of::<UdmabufItem>() == 8);
const _: () = assert!(size_of::<UdmabufList>() == 8);
const _: () = assert!(nix::request_code_write!(b'u', 0x43, size_of::<UdmabufList>()) == 0x4008_7543);

nix::ioctl_write_ptr!(
    /// `UDMABUF_CREATE_LIST`; returns the new descriptor.
    udmabuf_create_list,
    b'u',
    0x43,
    UdmabufList
);

nix::ioctl_write_ptr!(
    /// `UDMABUF_CREATE`; returns the new descriptor.
    udmabuf_create,
    b'u',
    0x42,
    UdmabufCreate
);

/// Makes a dma-buf of all of a memfd, without copying: both show the same bytes from then on.
///
/// Adds [`Seals::SHRINK`], which the kernel requires. The dma-buf is always writable, whatever the memfd's descriptor
/// allows, and a memfd sealed against writing is refused: a kernel-proven constant memfd and a dma-buf exclude each
/// other. Afterwards [`Seals::WRITE`] is refused (EBUSY) while the dma-buf lives.
/// Punching holes into the memfd later separates the two.
///
/// # Errors
/// [`Error::Unavailable`] without `/dev/udmabuf`; [`Error::Invalid`] for a memfd that is empty, not whole pages long,
/// sealed against writing, or longer than [`udmabuf_limit`]; [`Error::Os`] for the rest (EACCES: the device usually
/// belongs to the group `kvm`).
pub fn udmabuf_from(memfd: &Memfd) -> Result<OwnedFd> {
    let device = open_device()?;
    check(memfd, 0, memfd.len())?;
    let request = UdmabufCreate {
        // An open descriptor is never negative.
        memfd: memfd.as_fd().as_raw_fd().cast_unsigned(),
        flags: FLAGS_CLOEXEC,
        offset: 0,
        size: memfd.len(),
    };
    // SAFETY: `device` is open and the request is a live `struct udmabuf_create` (layout asserted above), which this
    // ioctl only reads; a device that does not know the number answers ENOTTY.
    let created = unsafe { udmabuf_create(device.as_raw_fd(), &raw const request) };
    let raw = created.map_err(|e| match (e, udmabuf_limit()) {
        (Errno::EINVAL, Some(limit)) if memfd.len() > limit => {
            too_large(&fd_name(memfd.as_fd()), memfd.len(), limit)
        }
        (e, _) => Error::os("UDMABUF_CREATE", fd_name(memfd.as_fd()), e),
    })?;
    // SAFETY: a successful UDMABUF_CREATE returns a descriptor that it opened for this call: valid, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Makes one dma-buf of parts of several memfds, in this order (`UDMABUF_CREATE_LIST`): huge pages in front and
/// ordinary ones behind, or memory of several NUMA nodes. Each part is a memfd, an offset and a length, both whole
/// pages.
///
/// It is no way around [`udmabuf_limit`]: the kernel counts the sum.
///
/// # Errors
/// As [`udmabuf_from`], and [`Error::Invalid`] for no parts or more than [`udmabuf_list_limit`].
pub fn udmabuf_join(parts: &[(&Memfd, u64, u64)]) -> Result<OwnedFd> {
    let what = || format!("a udmabuf of {} memfds", parts.len());
    let device = open_device()?;
    if let Some(limit) = udmabuf_list_limit().filter(|&limit| parts.len() as u64 > limit) {
        let why = format!("at most {limit} can be joined: {LIST_LIMIT}, which root can raise");
        return Err(Error::invalid(what(), why));
    }
    if parts.is_empty() {
        return Err(Error::invalid(what(), "there is nothing to join"));
    }
    let mut total = 0_u64;
    for &(memfd, offset, len) in parts {
        check(memfd, offset, len)?;
        total = total.saturating_add(len);
    }
    if let Some(limit) = udmabuf_limit().filter(|&limit| total > limit) {
        return Err(too_large(&what(), total, limit));
    }
    let count = u32::try_from(parts.len()).map_err(|_| Error::invalid(what(), "too many"))?;
    // Words of 8 bytes: the head, then three for each item, which gives the whole the alignment of its structs.
    let mut request = vec![0_u64; 1 + 3 * parts.len()];
    let head = UdmabufList { flags: FLAGS_CLOEXEC, count };
    // SAFETY: the buffer has room for the head at its start and is aligned for it.
    unsafe { request.as_mut_ptr().cast::<UdmabufList>().write(head) };
    for (item, &(memfd, offset, size)) in request[1..].chunks_exact_mut(3).zip(parts) {
        let memfd = memfd.as_fd().as_raw_fd().cast_unsigned();
        // SAFETY: three words are the 24 bytes of an item, aligned to 8.
        unsafe {
            item.as_mut_ptr().cast::<UdmabufItem>().write(UdmabufItem { memfd, padding: 0, offset, size })
        };
    }
    // SAFETY: `device` is open; the request is a live head with `count` items behind it (layouts asserted above), all
    // in one buffer, which this ioctl only reads.
    let created = unsafe { udmabuf_create_list(device.as_raw_fd(), request.as_ptr().cast()) };
    let raw = created.map_err(|e| Error::os("UDMABUF_CREATE_LIST", what(), e))?;
    // SAFETY: a successful UDMABUF_CREATE_LIST returns a descriptor that it opened for this call, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn open_device() -> Result<File> {
    File::open(DEVICE).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Unavailable {
            what: DEVICE.into(),
            needs: "a kernel with CONFIG_UDMABUF, and its module loaded (modprobe udmabuf)".into(),
        },
        io::ErrorKind::PermissionDenied => Error::Refused {
            op: "open",
            subject: DEVICE.into(),
            source: e,
            advice: "it usually belongs to the group kvm".into(),
        },
        _ => Error::os("open", DEVICE, e),
    })
}

/// Refuses memfds that cannot become a udmabuf, and seals the others against shrinking, which the kernel requires.
fn check(memfd: &Memfd, offset: u64, len: u64) -> Result<()> {
    let name = || fd_name(memfd.as_fd());
    let page = page_size();
    if len == 0 || !len.is_multiple_of(page) {
        let why = format!("a udmabuf needs one or more whole pages of {page} bytes, not {len} bytes");
        return Err(Error::invalid(name(), why));
    }
    if !offset.is_multiple_of(page) {
        let why = format!("a udmabuf begins with a whole page of {page} bytes, not at byte {offset}");
        return Err(Error::invalid(name(), why));
    }
    if offset.checked_add(len).is_none_or(|end| end > memfd.len()) {
        return Err(Error::OutOfBounds { offset, len, bound: memfd.len() });
    }
    let present = seals(memfd.as_fd())?.unwrap_or(Seals::empty());
    if present.intersects(Seals::WRITE | Seals::FUTURE_WRITE) {
        return Err(Error::invalid(name(), "is sealed against writing, and every udmabuf is writable"));
    }
    if !present.contains(Seals::SHRINK) {
        memfd.seal(Seals::SHRINK)?;
    }
    Ok(())
}

fn too_large(what: &str, len: u64, limit: u64) -> Error {
    Error::invalid(
        what,
        format!(
            "{len} bytes are more than a udmabuf may have: {LIMIT} is {} MiB; root can raise it there, or with the \
             boot parameter udmabuf.size_limit_mb",
            limit >> 20
        ),
    )
}
