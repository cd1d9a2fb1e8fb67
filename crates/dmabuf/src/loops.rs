//! Loop devices: a file or memory as a disk, for file systems of the kernel that take disks only. One device gives one file
//! system, however often it is mounted, and so one copy in the page cache.

#![allow(unsafe_code, reason = "the ioctls of loop devices")]

use std::fs::{File, OpenOptions, read_dir, read_to_string};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{FlockOperation, Stat, flock, fstat};

use crate::error::{Error, Result};

const CONTROL: &str = "/dev/loop-control";
/// How often another process may be quicker.
const ATTEMPTS: u32 = 64;
const BLOCKS: &str = "/sys/block";
/// `LO_FLAGS_READ_ONLY` and `LO_FLAGS_AUTOCLEAR` of `linux/loop.h`.
const FLAGS: u32 = 1 | 4;
/// `LO_FLAGS_DIRECT_IO`: the device reads around the page cache of its file. The kernel drops it where that cannot be.
const DIRECT: u32 = 16;
/// Bytes of a name that the kernel shows, with its NUL.
const NAME: usize = 64;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
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
nix::ioctl_read_bad!(
    /// `LOOP_GET_STATUS64`; `ENXIO` for a device that nobody has.
    loop_get_status,
    0x4c05,
    LoopInfo
);

/// Bytes of an open file or memory, as a device has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backing<'a> {
    /// What is open.
    pub(crate) fd: BorrowedFd<'a>,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Another number for other contents.
    pub(crate) state: u64,
}

/// A loop device, which goes with its last user: with this, unless it was mounted meanwhile.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// The device of these bytes that a mount has already, else a new one. They are only read.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without loop devices; [`Error::Refused`] without the right to; [`Error::Os`].
    pub(crate) fn of(backing: Backing<'_>) -> Result<Self> {
        let control = File::open(CONTROL).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::Unavailable {
                what: "loop devices".into(),
                needs: "/dev/loop-control, of the kernel's module loop".into(),
            },
            _ => Error::os("open", CONTROL, error),
        })?;
        // Two that begin at once find each other's device. systemd takes the same lock. It goes with `control`.
        flock(&control, FlockOperation::LockExclusive).map_err(|errno| Error::os("flock", CONTROL, errno))?;
        let wanted = Self::wanted(backing)?;
        match Self::find(&wanted) {
            Some(found) => Ok(found),
            None => Self::attach(&control, backing.fd, wanted),
        }
    }

    /// What the kernel says of a device of these bytes. Its name says in what state they were: pages that were read from
    /// a file are not read again when it changes, and what is mounted later must not see them.
    fn wanted(backing: Backing<'_>) -> Result<LoopInfo> {
        let stat = fstat(backing.fd).map_err(|errno| Error::os("fstat", "the memory of a mount", errno))?;
        let mut info = LoopInfo {
            device: stat.st_dev,
            inode: stat.st_ino,
            rdevice: 0,
            offset: backing.offset,
            size_limit: backing.len,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: FLAGS | DIRECT,
            file_name: [0; NAME],
            crypt_name: [0; NAME],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        let name = Self::name(&stat, backing.state);
        info.file_name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(info)
    }

    /// At most 58 bytes.
    fn name(stat: &Stat, state: u64) -> String {
        format!("daxfs {}.{:09} {state:016x}", stat.st_ctime, stat.st_ctime_nsec)
    }

    /// A device that is attached so already, held open, which keeps it from going.
    fn find(wanted: &LoopInfo) -> Option<Self> {
        read_dir(BLOCKS).ok()?.flatten().find_map(|entry| {
            let number: u32 = entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok()?;
            // Others are not touched: a device that is open does not go.
            let said = |name: &str| read_to_string(entry.path().join("loop").join(name)).ok();
            let is = |name: &str, value: u64| said(name).is_some_and(|text| text.trim().parse() == Ok(value));
            if !(is("offset", wanted.offset) && is("sizelimit", wanted.size_limit) && is("autoclear", 1)) {
                return None;
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).open(&path).ok()?;
            let found = Self::status(device.as_fd())?;
            let is_same = found.number == number
                && (found.device, found.inode) == (wanted.device, wanted.inode)
                && (found.offset, found.size_limit) == (wanted.offset, wanted.size_limit)
                && found.flags & FLAGS == FLAGS
                && found.file_name == wanted.file_name;
            is_same.then_some(Self { device, path })
        })
    }

    /// What a device is attached to.
    fn status(device: BorrowedFd<'_>) -> Option<LoopInfo> {
        let mut info = std::mem::MaybeUninit::<LoopInfo>::zeroed();
        // SAFETY: `device` is open, and `info` is room for the `struct loop_info64` (layout asserted above) that this
        // ioctl writes; a device that does not know the number answers ENOTTY or EINVAL.
        unsafe { loop_get_status(device.as_raw_fd(), info.as_mut_ptr()) }.ok()?;
        // SAFETY: all fields are integers, for which every pattern of bits is a value, and none is uninitialised.
        Some(unsafe { info.assume_init() })
    }

    fn attach(control: &File, fd: BorrowedFd<'_>, info: LoopInfo) -> Result<Self> {
        // An open descriptor is never negative.
        let fd = fd.as_raw_fd().cast_unsigned();
        let info = LoopInfo { device: 0, inode: 0, ..info };
        let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
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
                Ok(_) => return Ok(Self { device, path }),
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

    /// Whether it is still the one that was looked for: another process with the rights could have changed it meanwhile.
    pub(crate) fn is_of(&self, backing: Backing<'_>) -> bool {
        let (found, wanted) = (Self::status(self.device.as_fd()), Self::wanted(backing).ok());
        found.zip(wanted).is_some_and(|(found, wanted)| {
            (found.device, found.inode, found.offset) == (wanted.device, wanted.inode, wanted.offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, Mapping, Memfd};
    use std::io::Read;
    use std::os::fd::AsFd;

    fn memory() -> Memfd {
        let memfd = Memfd::create("disk", 65536, HugePages::No).unwrap();
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 65536).unwrap();
        map.view_mut().unwrap().copy_from(8192, b"here").unwrap();
        memfd
    }

    /// A device, where root runs the tests.
    fn device(backing: Backing<'_>) -> Option<LoopDevice> {
        let made = LoopDevice::of(backing);
        if let Err(error) = &made {
            assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{error}");
        }
        made.ok()
    }

    #[test]
    fn memory_is_a_disk_as_long_as_somebody_has_it() {
        let memfd = memory();
        let backing = Backing { fd: memfd.as_fd(), offset: 8192, len: 4096, state: 1 };
        let Some(device) = device(backing) else { return };
        let mut bytes = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!((&bytes[..4], bytes.len()), (&b"here"[..], 4096));
    }

    #[test]
    fn the_same_bytes_in_the_same_state_are_one_device() {
        let (memfd, other) = (memory(), memory());
        let backing = Backing { fd: memfd.as_fd(), offset: 8192, len: 4096, state: u64::MAX };
        let Some(first) = device(backing) else { return };
        let again = LoopDevice::of(backing).unwrap();
        assert_eq!(again.path(), first.path());
        assert!(again.is_of(backing));
        drop(first);
        // It lives as long as one that was found.
        let third = LoopDevice::of(backing).unwrap();
        assert_eq!(third.path(), again.path());
        for different in [
            Backing { fd: other.as_fd(), ..backing },
            Backing { offset: 4096, ..backing },
            Backing { len: 8192, ..backing },
            Backing { state: 0, ..backing },
        ] {
            assert_ne!(LoopDevice::of(different).unwrap().path(), again.path(), "{different:?}");
        }
        assert!(!again.is_of(Backing { fd: other.as_fd(), ..backing }));
        // Its owner has changed it: what was read of it before is old.
        nix::sys::stat::fchmod(&memfd, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_ne!(LoopDevice::of(backing).unwrap().path(), again.path());
    }
}
