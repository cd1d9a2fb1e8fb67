//! Memory that an image can be written into.

use crate::packer::Settings;
use crate::target::{Access, DISK_STEP, Target};
use crate::{Error, Result};
use daxfs::format::MAGIC;
use dmabuf::{
    CpuAccess, FdKind, HugePages, Mapping, Memfd, Seals, describe, heap_allocate, udmabuf_from, udmabuf_limit,
};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What kind of memory an image is written into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// A memfd; sealed against every change when the image is complete.
    Memfd(HugePages),
    /// A memfd that cannot shrink or grow, but whose holders can write to it, so that devices can pin it.
    SharedMemfd(HugePages),
    /// A memfd that `/dev/udmabuf` turns into a dma-buf.
    Udmabuf,
    /// A buffer of the dma-heap of this name.
    Heap(String),
    /// Memory that is there already: a devdax device, or a file of fixed length that stands for memory.
    Device(PathBuf),
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Memfd(_) => f.write_str("memfd"),
            Memory::SharedMemfd(_) => f.write_str("shared memfd"),
            Memory::Udmabuf => f.write_str("udmabuf"),
            Memory::Heap(name) => write!(f, "heap:{name}"),
            Memory::Device(path) => path.display().fmt(f),
        }
    }
}

/// What is left to do when the image is written.
#[derive(Debug)]
pub(crate) enum Finish {
    Seal(Memfd, Seals),
    Udmabuf(Memfd),
    Heap,
    Device { sync: bool },
}

/// Makes or opens memory for an image of `len` bytes.
pub(crate) fn create(memory: &Memory, len: u64, settings: &Settings) -> Result<(Target, Finish)> {
    match memory {
        Memory::Memfd(pages) => {
            let (target, memfd) = memfd(*pages, len)?;
            Ok((target, Finish::Seal(memfd, Seals::IMMUTABLE | Seals::SEAL)))
        }
        Memory::SharedMemfd(pages) => {
            let (target, memfd) = memfd(*pages, len)?;
            Ok((target, Finish::Seal(memfd, Seals::SHRINK | Seals::GROW)))
        }
        Memory::Udmabuf => {
            check_udmabuf(len)?;
            let (target, memfd) = memfd(settings.pages, len)?;
            Ok((target, Finish::Udmabuf(memfd)))
        }
        Memory::Heap(name) => {
            let fd = heap_allocate(name, len)?;
            let path = PathBuf::from(memory.to_string());
            Ok((Target::new(fd, &path, Access::Map, true), Finish::Heap))
        }
        Memory::Device(path) => device(path, len, settings.replace),
    }
}

/// Finds out before all the work whether a udmabuf of `len` bytes is to be had.
fn check_udmabuf(len: u64) -> Result<()> {
    udmabuf_from(&Memfd::create("daxfs", dmabuf::page_size(), HugePages::No)?)?;
    match udmabuf_limit() {
        Some(limit) if limit < len => Err(Error::Memory(dmabuf::Error::Invalid {
            what: format!("udmabuf of {len} bytes"),
            why: format!(
                "at most {limit} are allowed: /sys/module/udmabuf/parameters/size_limit_mb, which root can raise"
            ),
        })),
        _ => Ok(()),
    }
}

fn memfd(pages: HugePages, len: u64) -> Result<(Target, Memfd)> {
    let path = Path::new("memfd:daxfs");
    // Whole pages of this machine, as a udmabuf wants them; the image may be for one with smaller pages.
    let memfd = Memfd::create("daxfs", len.next_multiple_of(dmabuf::page_size()), pages)?;
    let fd = memfd.as_fd().try_clone_to_owned().map_err(|error| Error::io("open", path, error))?;
    Ok((Target::of_pages(fd, path, pages), memfd))
}

fn device(path: &Path, len: u64, replace: bool) -> Result<(Target, Finish)> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
    let fd = OwnedFd::from(file.map_err(|error| Error::io("open", path, error))?);
    let info = describe(fd.as_fd())?;
    if info.len < len {
        return Err(Error::TooSmall { path: path.to_path_buf(), have: info.len, need: len });
    }
    let mut map = Mapping::read_write(fd.as_fd(), 0, 4096)?;
    let mut magic = [0; 4];
    map.view().read_at(0, &mut magic)?;
    if u32::from_le_bytes(magic) == MAGIC {
        if !replace {
            return Err(Error::HoldsImage { path: path.to_path_buf() });
        }
        // From here to the end it is no image.
        map.view_mut()?.fill_zero(0, 4)?;
    }
    // A file on a file system may have holes, where a mapping would end the process when the disk is full.
    let is_file = info.kind == FdKind::File;
    let access = if is_file { Access::Write(DISK_STEP) } else { Access::Map };
    Ok((Target::new(fd, path, access, false), Finish::Device { sync: is_file }))
}

impl Finish {
    /// Brackets the writing, where the memory needs that.
    pub(crate) fn begin<'t>(&self, target: &'t Target) -> Result<Option<CpuAccess<'t>>> {
        match self {
            Finish::Heap => Ok(Some(CpuAccess::begin(target.file.as_fd(), dmabuf::Access::Write)?)),
            _ => Ok(None),
        }
    }

    /// Whether the kernel can say which pages the memory is made of.
    pub(crate) fn has_pages(&self) -> bool {
        matches!(self, Finish::Seal(..) | Finish::Udmabuf(_))
    }

    /// Takes back an image that turned out wrong: a device must not look like one.
    pub(crate) fn withdraw(fd: &OwnedFd) -> Result<()> {
        let mut map = Mapping::read_write(fd.as_fd(), 0, 4096)?;
        Ok(map.view_mut()?.fill_zero(0, 4)?)
    }

    /// Makes the memory what it is to be and gives its descriptor.
    pub(crate) fn end(self, target: Target, sync: bool) -> Result<OwnedFd> {
        match self {
            Finish::Seal(memfd, seals) => {
                drop(target);
                memfd.seal(seals)?;
                Ok(memfd.into())
            }
            Finish::Udmabuf(memfd) => {
                drop(target);
                Ok(udmabuf_from(&memfd)?)
            }
            Finish::Device { sync: true } if sync => {
                target.file.sync_all().map_err(|error| Error::io("sync", &target.path, error))?;
                Ok(target.file.into())
            }
            Finish::Heap | Finish::Device { .. } => Ok(target.file.into()),
        }
    }
}
