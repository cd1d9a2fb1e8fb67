//! Mounting an image by the kernel's own DAXFS, which is a module that few machines have.

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use dmabuf::Mountable;

/// Whether this kernel has the file system. What is missing is printed.
///
/// # Panics
/// Where it is missing and `DAXFS_REQUIRE_MODULE` is in the environment, as in the kernel tests that were given it.
pub fn are_possible() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.split_whitespace().last() == Some("daxfs"));
    if !known {
        assert!(env::var_os("DAXFS_REQUIRE_MODULE").is_none(), "the kernel's module daxfs is not loaded");
        eprintln!("not run: the kernel's module daxfs is not loaded");
    }
    known
}

/// A mounted DAXFS; unmounted on drop.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts the image in a dma-buf at an existing directory.
    ///
    /// # Errors
    /// What the kernel answered: EINVAL for what is no image to it.
    pub fn of_dma_buf(memory: impl AsFd, at: &Path) -> dmabuf::Result<Mount> {
        dmabuf::mount(Mountable::DmaBuf(memory.as_fd()), at, None)?;
        Ok(Mount(at.to_owned()))
    }

    /// Where another process has mounted something.
    #[must_use]
    pub fn by_another(at: &Path) -> Mount {
        Mount(at.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = dmabuf::unmount(&self.0);
    }
}
