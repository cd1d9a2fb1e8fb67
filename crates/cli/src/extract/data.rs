//! Copies the contents of a file out of an image.

use anyhow::bail;
use daxfs::File;
use dmabuf::FdKind;
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use std::fs;
use std::os::fd::AsFd;

/// Copies everything; returns the bytes.
///
/// Within one file system the kernel copies by itself, and shares the blocks where the file system can. Elsewhere
/// the bytes are copied from the mapping.
///
/// # Errors
/// What reading the image or writing the file reports.
pub fn copy(file: &File, to: &mut fs::File) -> anyhow::Result<u64> {
    match copy_in_kernel(file, to)? {
        Some(bytes) => Ok(bytes),
        None => Ok(file.write_to(to)?),
    }
}

/// `None` when the kernel cannot do it, before anything was written.
fn copy_in_kernel(file: &File, to: &fs::File) -> anyhow::Result<Option<u64>> {
    let region = file.region();
    let is_file = matches!(region.info().map(|info| &info.kind), Some(FdKind::File | FdKind::Memfd { .. }));
    let (Some(extent), Some(fd), true) = (file.extent(), region.fd(), is_file) else { return Ok(None) };
    let Ok(mut from) = i64::try_from(extent.offset) else { return Ok(None) };
    let mut left = extent.len;
    while left > 0 {
        // Larger counts are cut by the kernel anyway.
        let count = usize::try_from(left.min(1 << 30))?;
        match copy_file_range(fd, Some(&mut from), to.as_fd(), None, count) {
            Ok(0) => bail!("the image ends {left} bytes early; it was truncated"),
            Ok(copied) => left -= copied as u64,
            Err(Errno::EINTR) => (),
            Err(
                Errno::EXDEV
                | Errno::EINVAL
                | Errno::ENOSYS
                | Errno::EOPNOTSUPP
                | Errno::EPERM
                | Errno::EBADF,
            ) if left == extent.len => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(extent.len))
}
