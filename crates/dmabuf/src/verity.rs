//! fs-verity: files whose bytes the kernel compares with a Merkle tree whenever it reads them, and that nobody can write
//! any more, root included.

#![allow(unsafe_code, reason = "the ioctls of fs-verity")]

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Error, Result};
use crate::fd::fd_name;

/// `FS_VERITY_HASH_ALG_SHA256` of `linux/fsverity.h`.
const SHA256: u16 = 1;
/// `FS_VERITY_HASH_ALG_SHA512` of `linux/fsverity.h`.
const SHA512: u16 = 2;
/// Most bytes that a leaf of the tree stands for: the pages of most machines, which it may not exceed.
const BLOCK_SIZE: u32 = 4096;
/// Bytes of the longest digest.
const DIGEST_MAX: usize = 64;

/// File systems whose code of fs-verity runs in the kernel: EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC and BTRFS_SUPER_MAGIC of
/// `linux/magic.h`. A server of FUSE can answer the ioctl with any digest.
const CHECKED_BY_THE_KERNEL: [u32; 3] = [0xef53, 0xf2f5_2010, 0x9123_683e];

/// `struct fsverity_digest` of `linux/fsverity.h`, with room for the longest.
#[repr(C)]
#[derive(Debug)]
struct RawDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; DIGEST_MAX],
}

/// `struct fsverity_enable_arg` of `linux/fsverity.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const FS_IOC_ENABLE_VERITY: u64 = nix::request_code_write!(b'f', 133, size_of::<EnableArg>());
/// `_IOWR('f', 134, struct fsverity_digest)`, whose array has no length there.
const FS_IOC_MEASURE_VERITY: u64 = nix::request_code_readwrite!(b'f', 134, 4);

/// The digest of a file with fs-verity: it stands for the file's bytes and its length.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerityDigest {
    algorithm: u16,
    digest: Vec<u8>,
}

impl VerityDigest {
    /// `sha256` or `sha512`, as `fsverity measure` names them; what else a kernel may have is shown as a number.
    pub fn algorithm(&self) -> String {
        match self.algorithm {
            SHA256 => "sha256".to_owned(),
            SHA512 => "sha512".to_owned(),
            other => format!("algorithm-{other}"),
        }
    }
}

impl fmt::Display for VerityDigest {
    /// As `fsverity measure` writes it: `sha256:` and hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm())?;
        crate::hex::Hex(&self.digest).fmt(f)
    }
}

impl FromStr for VerityDigest {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("{text:?} is no digest of fs-verity: sha256: and 64 digits, or sha512: and 128");
        let (algorithm, len, digits) = match text.split_once(':') {
            Some(("sha256", digits)) => (SHA256, 32, digits),
            Some(("sha512", digits)) => (SHA512, 64, digits),
            _ => return Err(wrong()),
        };
        if digits.len() != 2 * len || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let byte =
            |at: usize| digits.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let digest = (0..len).map(byte).collect::<Option<Vec<u8>>>().ok_or_else(wrong)?;
        Ok(Self { algorithm, digest })
    }
}

/// The digest of a file with fs-verity, as the kernel has it; `None` for a file without, and on file systems whose kernel
/// code does not check the bytes itself (FUSE). Nothing is read but the digest.
///
/// # Errors
/// [`Error::Os`] with what the kernel answers otherwise.
pub fn measure_verity(fd: BorrowedFd<'_>) -> Result<Option<VerityDigest>> {
    let FsType(magic) = fstatfs(fd).map_err(|e| Error::os("fstatfs", fd_name(fd), e))?.filesystem_type();
    if !u32::try_from(magic).is_ok_and(|magic| CHECKED_BY_THE_KERNEL.contains(&magic)) {
        return Ok(None);
    }
    let mut raw = RawDigest { algorithm: 0, size: 64, digest: [0; DIGEST_MAX] };
    // SAFETY: `fd` is open for as long as it is borrowed, and a regular file or directory of one of the file systems
    // above, whose ioctl of this number takes a `struct fsverity_digest` with room for `size` bytes behind its two
    // fields: `raw` is live, exclusively borrowed, laid out so (repr(C)), and has that room. The kernel writes no more.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_MEASURE_VERITY as _, &raw mut raw) };
    match Errno::result(answer) {
        Ok(_) => {
            let digest = raw.digest.get(..usize::from(raw.size)).unwrap_or_default().to_vec();
            Ok(Some(VerityDigest { algorithm: raw.algorithm, digest }))
        }
        // No verity, a kernel or a file system without it.
        Err(Errno::ENODATA | Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::os("ioctl FS_IOC_MEASURE_VERITY", fd_name(fd), errno)),
    }
}

/// Turns fs-verity on for a file, with SHA-256 and blocks of 4096 bytes, or the file system's where those are smaller,
/// which reads all of it once. The descriptor is for reading only, and nobody may have the file open for writing. From
/// then on nobody can write, extend or cut it, and a page that is not what it was is EIO, or SIGBUS in a mapping. It can
/// be renamed, replaced and removed.
///
/// # Errors
/// [`Error::Refused`] with advice where the kernel or the file system has no fs-verity, and while somebody has the file
/// open for writing; [`Error::Os`] otherwise.
pub fn enable_verity(fd: BorrowedFd<'_>) -> Result<()> {
    let file_system = fstatfs(fd).map_err(|e| Error::os("fstatfs", fd_name(fd), e))?;
    // The kernel takes no larger ones.
    let block_size = u32::try_from(file_system.block_size()).unwrap_or(BLOCK_SIZE).min(BLOCK_SIZE);
    let argument =
        EnableArg { version: 1, hash_algorithm: SHA256.into(), block_size, ..EnableArg::default() };
    // SAFETY: `fd` is open for as long as it is borrowed. The ioctl reads a `struct fsverity_enable_arg`, which `argument`
    // is (repr(C), live); its salt and signature have no bytes, so their pointers are not followed. On a descriptor of
    // another kind the number has no meaning in Linux, which answers ENOTTY.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_ENABLE_VERITY as _, &raw const argument) };
    let errno = match Errno::result(answer) {
        Ok(_) => return Ok(()),
        Err(errno) => errno,
    };
    let advice = match errno {
        Errno::ENOTTY => {
            "this file system, or this kernel, has no fs-verity: use ext4, btrfs or f2fs, and CONFIG_FS_VERITY"
        }
        Errno::EOPNOTSUPP => {
            "the file system was made without it (on ext4: tune2fs -O verity DEVICE, or mkfs.ext4 -O verity), or the \
             kernel has no CONFIG_FS_VERITY"
        }
        Errno::ETXTBSY => "somebody has the file open for writing",
        _ => return Err(Error::os("ioctl FS_IOC_ENABLE_VERITY", fd_name(fd), errno)),
    };
    Err(Error::Refused {
        op: "enable fs-verity",
        subject: fd_name(fd),
        source: errno.into(),
        advice: advice.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<EnableArg>(), 128);
        assert_eq!((size_of::<RawDigest>(), std::mem::offset_of!(RawDigest, digest)), (68, 4));
        assert_eq!((FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY), (0x4080_6685, 0xc004_6686));
    }

    #[test]
    fn digests_are_written_as_the_tools_write_them() {
        for text in [format!("sha256:{}", "0f".repeat(32)), format!("sha512:{}", "a1".repeat(64))] {
            assert_eq!(text.parse::<VerityDigest>().unwrap().to_string(), text);
        }
        for text in ["", "sha256:", "sha1:00", &"0".repeat(64), &format!("sha256:{}", "0".repeat(63))] {
            assert!(text.parse::<VerityDigest>().unwrap_err().contains("no digest"), "{text}");
        }
        assert!(format!("sha256:+{}", "0".repeat(63)).parse::<VerityDigest>().is_err());
    }

    #[test]
    fn files_without_it_have_no_digest() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure_verity(file.as_fd()).unwrap(), None);
        let memfd = crate::Memfd::create("verity", 4096, crate::HugePages::No).unwrap();
        assert_eq!(measure_verity(memfd.as_fd()).unwrap(), None);
        // Not on a memfd; on this directory only where there is a reason named.
        let error = enable_verity(memfd.as_fd()).unwrap_err();
        assert!(matches!(&error, Error::Refused { advice, .. } if advice.contains("ext4")), "{error}");
    }
}
