//! Dma-bufs of a graphics driver: a "dumb buffer" of the kernel's `vgem`, exported by PRIME.

#![allow(unsafe_code, reason = "ioctls of the DRM driver and the descriptor that one returns")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// `struct drm_mode_create_dumb` of `drm/drm_mode.h`.
#[repr(C)]
#[derive(Default)]
struct CreateDumb {
    height: u32,
    width: u32,
    bits_per_pixel: u32,
    flags: u32,
    handle: u32,
    pitch: u32,
    size: u64,
}

/// `struct drm_prime_handle` of `drm/drm.h`.
#[repr(C)]
struct PrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

const _: () = assert!(size_of::<CreateDumb>() == 32 && size_of::<PrimeHandle>() == 12);

nix::ioctl_readwrite!(
    /// `DRM_IOCTL_MODE_CREATE_DUMB`
    create_dumb,
    b'd',
    0xb2,
    CreateDumb
);
nix::ioctl_readwrite!(
    /// `DRM_IOCTL_PRIME_HANDLE_TO_FD`
    prime_handle_to_fd,
    b'd',
    0x2d,
    PrimeHandle
);

/// The card node of vgem, if the module is loaded.
pub fn card() -> Option<PathBuf> {
    fs::read_dir("/sys/class/drm").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let digits = name.strip_prefix("card")?;
        // The module makes a device of its own name; it has no bus with drivers.
        let device = fs::canonicalize(entry.path().join("device")).ok()?;
        let vgem = device.file_name()? == "vgem";
        (vgem && digits.bytes().all(|b| b.is_ascii_digit())).then(|| PathBuf::from("/dev/dri").join(name))
    })
}

/// A dma-buf of at least `len` zero bytes, writable or for reading only.
pub fn buffer(len: u64, writable: bool) -> std::io::Result<OwnedFd> {
    let card = card().ok_or_else(|| std::io::Error::other("no vgem: modprobe vgem"))?;
    let card = File::options().read(true).write(true).open(card)?;
    // Rows of 4096 bytes.
    let height = u32::try_from(len.div_ceil(4096)).map_err(std::io::Error::other)?;
    let mut request = CreateDumb { height, width: 1024, bits_per_pixel: 32, ..CreateDumb::default() };
    // SAFETY: an open DRM node and a live struct of the ioctl's layout (asserted above).
    unsafe { create_dumb(card.as_raw_fd(), &raw mut request) }?;
    let access = if writable { libc::O_RDWR } else { 0 };
    let flags = (libc::O_CLOEXEC | access).cast_unsigned();
    let mut prime = PrimeHandle { handle: request.handle, flags, fd: -1 };
    // SAFETY: as above; the handle is the one that the driver has just given for this open file.
    unsafe { prime_handle_to_fd(card.as_raw_fd(), &raw mut prime) }?;
    // SAFETY: a successful PRIME_HANDLE_TO_FD returns a descriptor that it opened for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
}
