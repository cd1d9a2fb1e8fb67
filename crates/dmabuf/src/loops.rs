//! Loop devices: a file or memory as a disk, for file systems of the kernel that take disks only.

#![allow(unsafe_code, reason = "the ioctls of loop devices")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};

const CONTROL: &str = "/dev/loop-control";
/// How often another process may be quicker.
const ATTEMPTS: u32 = 64;
/// `LO_FLAGS_READ_ONLY` and `LO_FLAGS_AUTOCLEAR` of `linux/loop.h`.
const FLAGS: u32 = 1 | 4;
/// Bytes of a name that the kernel shows, with its NUL.
const NAME: usize = 64;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME],
    crypt_name: [u8; NAME],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && std::mem::offset_of!(LoopInfo, flags) == 52);
const _: () = assert!(size_of::<LoopConfig>() == 304 && std::mem::offset_of!(LoopConfig, info) == 8);

nix::ioctl_none_bad!(
    /// `LOOP_CTL_GET_FREE`; returns the number of a device that nobody has.
    loop_get_free,
    0x4c82
);
nix::ioctl_write_ptr_bad!(
    /// `LOOP_CONFIGURE` (Linux 5.8).
    loop_configure,
    0x4c0a,
    LoopConfig
);

/// A loop device, which goes with its last user: with this, unless it was mounted meanwhile.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    _device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Makes a device of `len` bytes of what is open, from `offset` on, for reading. `name` is what lists of devices show.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without loop devices; [`Error::Refused`] without the right to; [`Error::Os`].
    pub(crate) fn attach(fd: BorrowedFd<'_>, offset: u64, len: u64, name: &Path) -> Result<Self> {
        let control = File::open(CONTROL).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::Unavailable {
                what: "loop devices".into(),
                needs: "/dev/loop-control, of the kernel's module loop".into(),
            },
            _ => Error::os("open", CONTROL, error),
        })?;
        let mut config = LoopConfig {
            // An open descriptor is never negative.
            fd: fd.as_raw_fd().cast_unsigned(),
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset,
                size_limit: len,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: FLAGS,
                file_name: [0; NAME],
                crypt_name: [0; NAME],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        let shown = name.as_os_str().as_encoded_bytes();
        let shown = &shown[..shown.len().min(NAME - 1)];
        config.info.file_name[..shown.len()].copy_from_slice(shown);
        let mut last = Errno::EBUSY;
        for _ in 0..ATTEMPTS {
            // SAFETY: the descriptor is open, and the call takes no argument.
            let number = unsafe { loop_get_free(control.as_raw_fd()) };
            let number = number.map_err(|e| Error::os("LOOP_CTL_GET_FREE", CONTROL, e))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let subject = || path.display().to_string();
            let device = OpenOptions::new().read(true).open(&path);
            let device = device.map_err(|error| Error::os("open", subject(), error))?;
            // SAFETY: `device` is open and the request is a live `struct loop_config` (layout asserted above), which
            // this ioctl only reads; a device that does not know the number answers ENOTTY or EINVAL.
            match unsafe { loop_configure(device.as_raw_fd(), &raw const config) } {
                Ok(_) => return Ok(Self { _device: device, path }),
                // Somebody else has it by now.
                Err(errno @ (Errno::EBUSY | Errno::ENXIO)) => last = errno,
                Err(errno) => return Err(Error::os("LOOP_CONFIGURE", subject(), errno)),
            }
        }
        Err(Error::os("LOOP_CONFIGURE", CONTROL, last))
    }

    /// The device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, Mapping, Memfd};
    use std::io::Read;
    use std::os::fd::AsFd;

    /// Where root runs the tests.
    #[test]
    fn memory_is_a_disk_as_long_as_somebody_has_it() {
        let memfd = Memfd::create("disk", 65536, HugePages::No).unwrap();
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 65536).unwrap();
        map.view_mut().unwrap().copy_from(8192, b"here").unwrap();
        let attached = LoopDevice::attach(memfd.as_fd(), 8192, 4096, Path::new(&"n".repeat(100)));
        let device = match attached {
            Ok(device) => device,
            Err(error) => {
                assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{error}");
                return;
            }
        };
        let mut bytes = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!((&bytes[..4], bytes.len()), (&b"here"[..], 4096));
    }
}
