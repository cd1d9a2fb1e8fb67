//! Dma-bufs made of a memfd's pages by `/dev/udmabuf`.

#![allow(unsafe_code, reason = "the ioctl and the descriptor it returns")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::describe::fd_name;
use crate::error::{Error, Result};
use crate::map::page_size;
use crate::memfd::{Memfd, Seals, seals};

const DEVICE: &str = "/dev/udmabuf";
const LIMIT: &str = "/sys/module/udmabuf/parameters/size_limit_mb";
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
    let name = || fd_name(memfd.as_fd());
    let device = File::open(DEVICE).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Unavailable {
            what: DEVICE.into(),
            needs: "a kernel with CONFIG_UDMABUF, and its module loaded (modprobe udmabuf)".into(),
        },
        _ => Error::os("open", DEVICE, e),
    })?;
    let page = page_size();
    if memfd.is_empty() || !memfd.len().is_multiple_of(page) {
        let why =
            format!("a udmabuf needs one or more whole pages of {page} bytes, not {} bytes", memfd.len());
        return Err(Error::invalid(name(), why));
    }
    let present = seals(memfd.as_fd())?.unwrap_or(Seals::empty());
    if present.intersects(Seals::WRITE | Seals::FUTURE_WRITE) {
        return Err(Error::invalid(name(), "is sealed against writing, and every udmabuf is writable"));
    }
    if !present.contains(Seals::SHRINK) {
        memfd.seal(Seals::SHRINK)?;
    }
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
        (Errno::EINVAL, Some(limit)) if memfd.len() > limit => Error::invalid(
            name(),
            format!(
                "{} bytes are more than a udmabuf may have: {LIMIT} is {} MiB; root can raise it there, or with the \
                 boot parameter udmabuf.size_limit_mb",
                memfd.len(),
                limit >> 20
            ),
        ),
        (e, _) => Error::os("UDMABUF_CREATE", name(), e),
    })?;
    // SAFETY: a successful UDMABUF_CREATE returns a descriptor that it opened for this call: valid, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Largest udmabuf in bytes: the module parameter `size_limit_mb` (64 MiB by default). `None` without udmabuf.
#[must_use]
pub fn udmabuf_limit() -> Option<u64> {
    let mebibytes: u64 = fs::read_to_string(LIMIT).ok()?.trim().parse().ok()?;
    mebibytes.checked_mul(1 << 20)
}
