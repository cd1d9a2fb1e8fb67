//! The memory behind a mounted DAXFS: the dma-buf that its kernel module hands out, or the physical range that the
//! mount names.

#![allow(unsafe_code, reason = "the ioctl and the descriptor it returns")]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use crate::error::{Error, Result};
use crate::fd::{fd_name, fs_type};

/// `f_type` of a mounted DAXFS: the magic of its superblock.
const DAXFS_MAGIC: u32 = 0x6461_7835;

nix::ioctl_none!(
    /// `DAXFS_IOC_GET_DMABUF`; returns the new descriptor.
    daxfs_get_dmabuf,
    b'D',
    1
);

/// What a mount of DAXFS lies in.
#[derive(Debug)]
#[non_exhaustive]
pub enum Mounted {
    /// The dma-buf that was mounted.
    DmaBuf(OwnedFd),
    /// A range of physical memory; `/dev/mem` has it (see [`open_physical`](crate::open_physical)).
    Physical {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u64,
    },
}

/// The memory behind `fd`, an open directory or file of a mounted DAXFS; `None` on other file systems.
///
/// The kernel checks no permission for it: whoever can open the root directory of the mount gets a descriptor with
/// the access that the buffer was made with.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer; [`Error::Invalid`] for a physical mount whose options are not understood.
pub fn mounted(fd: BorrowedFd<'_>) -> Result<Option<Mounted>> {
    let fs = crate::uninterrupted(|| fstatfs(fd)).map_err(|e| Error::os("fstatfs", fd_name(fd), e))?;
    if fs_type(&fs) != DAXFS_MAGIC {
        return Ok(None);
    }
    // SAFETY: `fd` is open for as long as it is borrowed; this ioctl takes no argument and touches no memory of ours.
    match unsafe { daxfs_get_dmabuf(fd.as_raw_fd()) } {
        // SAFETY: a successful GET_DMABUF returns a descriptor that it opened for this call: owned by nobody.
        Ok(raw) => Ok(Some(Mounted::DmaBuf(unsafe { OwnedFd::from_raw_fd(raw) }))),
        Err(Errno::ENOENT) => physical(fd).map(Some),
        Err(errno) => Err(Error::os("DAXFS_IOC_GET_DMABUF", fd_name(fd), errno)),
    }
}

fn physical(fd: BorrowedFd<'_>) -> Result<Mounted> {
    let stat = fstat(fd).map_err(|e| Error::os("fstat", fd_name(fd), e))?;
    let table = "/proc/self/mountinfo";
    let text = fs::read(table).map_err(|e| Error::os("read", table, e))?;
    let device = (libc::major(stat.st_dev).into(), libc::minor(stat.st_dev).into());
    find_range(&text, device).map(|(address, len)| Mounted::Physical { address, len }).ok_or_else(|| {
        let why = "is a physical mount, but /proc/self/mountinfo does not say of which range; name the range, as \
                   phys:ADDRESS+LENGTH, or the device that has it, as /dev/daxX.Y";
        Error::invalid(fd_name(fd), why)
    })
}

/// The physical range of the mount with this device number in the text of `/proc/self/mountinfo` (proc(5)).
fn find_range(mountinfo: &[u8], (major, minor): (u64, u64)) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(mountinfo);
    let device = format!("{major}:{minor}");
    text.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        if mount.split(' ').nth(2) != Some(&device) || fs.next() != Some("daxfs") {
            return None;
        }
        // Source, then the options of the file system: [name=..,]source=phys=0x..,size=N or phys=0x..,size=N
        let (_source, options) = (fs.next()?, fs.next()?);
        let mut range = (None, None);
        for option in options.split(',') {
            let option = option.strip_prefix("source=").unwrap_or(option);
            match option.split_once('=') {
                Some(("phys", value)) => range.0 = number(value),
                Some(("size", value)) => range.1 = number(value),
                _ => {}
            }
        }
        range.0.zip(range.1)
    })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Mount points of DAXFS in this mount namespace, sorted.
#[must_use]
pub fn mounts() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = mount_points(&text).collect();
    found.sort();
    found
}

fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let at = line.windows(3).position(|part| part == b" - ")?;
        if !line[at + 3..].starts_with(b"daxfs ") {
            return None;
        }
        let point = line[..at].split(|&byte| byte == b' ').nth(4)?;
        Some(Path::new(OsStr::from_bytes(&unescape(point))).to_path_buf())
    })
}

/// Undoes the octal escapes that the kernel writes for blanks, tabs, newlines and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const MOUNTINFO: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
70 22 0:51 / /mnt/model ro,relatime - daxfs none ro,source=dmabuf,size=67108864
71 22 0:52 / /mnt/with\\040blank ro,relatime shared:5 - daxfs none ro,name=llama,source=phys=0x8000000,size=67108864
72 22 0:53 / /mnt/c ro - daxfs none rw,phys=0x10000000,size=4096,overlay
73 22 0:54 / /mnt/d ro - daxfs none ro,phys=nonsense,size=4096
74 22 0:55 / /mnt/e ro - tmpfs daxfs ro,phys=0x1000,size=4096
";

    #[test]
    fn physical_ranges_are_found_in_mountinfo() {
        let find = |minor| find_range(MOUNTINFO, (0, minor));
        assert_eq!(find(52), Some((0x800_0000, 64 << 20)));
        assert_eq!(find(53), Some((0x1000_0000, 4096)));
        for minor in [1, 51, 54, 55, 99] {
            assert_eq!(find(minor), None, "{minor}");
        }
        assert_eq!(find_range(b"garbage\n - \n\xff\xfe - daxfs\n", (0, 1)), None);
    }

    #[test]
    fn mount_points_are_listed() {
        let points: Vec<PathBuf> = mount_points(MOUNTINFO).collect();
        assert_eq!(points, ["/mnt/model", "/mnt/with blank", "/mnt/c", "/mnt/d"].map(PathBuf::from));
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
    }

    #[test]
    fn other_file_systems_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let fd = crate::open_read_only(dir.path()).unwrap();
        assert!(mounted(fd.as_fd()).unwrap().is_none());
    }
}
