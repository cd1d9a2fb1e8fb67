//! Memory that an image can be written into.

use crate::packer::Settings;
use crate::plan::Layout;
use crate::publish::{self, Region};
use crate::target::{Access, Target};
use crate::{Error, Result, metadata};
use daxfs::Source;
use daxfs::format::{GENERATION_OFFSET, Generation, erofs};
use dmabuf::{CpuAccess, HugePages, Memfd, Seals, heap_allocate_on, udmabuf_from, udmabuf_limit};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// What kind of memory an image is written into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// A memfd; sealed against every change when the image is complete.
    Memfd(HugePages),
    /// A memfd that cannot shrink or grow, but whose holders can write to it, so that devices can pin it.
    SharedMemfd(HugePages),
    /// A memfd that `/dev/udmabuf` turns into a dma-buf; of ordinary pages, unless
    /// [`Packer::huge_pages`](crate::Packer::huge_pages) asks for others.
    Udmabuf,
    /// A buffer of the dma-heap of this name.
    Heap(String),
    /// Memory that is there already, by the name that it is opened with: a devdax device, the memory of a PCI device,
    /// a physical range, an inherited descriptor, or a file of fixed length that stands for memory.
    Device(Source),
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Memfd(_) => f.write_str("memfd"),
            Memory::SharedMemfd(_) => f.write_str("shared memfd"),
            Memory::Udmabuf => f.write_str("udmabuf"),
            Memory::Heap(name) => write!(f, "heap:{name}"),
            Memory::Device(source) => source.fmt(f),
        }
    }
}

impl Memory {
    /// Whether it is made for the image and goes with its last descriptor. What stays where it is, a device's memory,
    /// is not.
    pub fn is_new(&self) -> bool {
        !matches!(self, Memory::Device(_))
    }

    /// Whether it can be had on a NUMA node of choice.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for memory that lies where it is.
    pub(crate) fn check_node(&self) -> Result<()> {
        let why = match self {
            Memory::Device(_) => "is for new memory; a device lies where it is".to_owned(),
            Memory::Heap(name) if name != "system" => {
                format!("is for the heap system; {name} has a place of its own")
            }
            _ => return Ok(()),
        };
        Err(Error::Setting { option: "--numa", why })
    }

    /// Reads the text form: `memfd`, `udmabuf`, `heap:NAME`, or a [`Source`] that holds a `/` or begins with `phys:` or
    /// `fd:`. New memory of pages is made of such as `pages` says.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else; [`Error::Target`] for a wrong source.
    pub fn parse(text: &OsStr, pages: HugePages) -> Result<Memory> {
        let refuse = |why: &str| Err(Error::Setting { option: "--into", why: why.to_owned() });
        match text.as_bytes() {
            b"memfd" => Ok(Memory::Memfd(pages)),
            b"udmabuf" => Ok(Memory::Udmabuf),
            b"heap:" => refuse("heap: needs the name of a heap, such as heap:system"),
            bytes if bytes.starts_with(b"heap:") => match text.to_str() {
                Some(text) => Ok(Memory::Heap(text["heap:".len()..].to_owned())),
                None => refuse("the name of a heap is text"),
            },
            bytes
                if bytes.contains(&b'/')
                    || [b"phys:", &b"fd:"[..]].iter().any(|start| bytes.starts_with(start)) =>
            {
                Ok(Memory::Device(Source::parse(text).map_err(Error::Target)?))
            }
            _ => refuse(
                "is memfd, udmabuf, heap:NAME, phys:ADDRESS+LENGTH, fd:N, or a path such as /dev/dax0.0",
            ),
        }
    }
}

/// What is left to do when the image is written.
#[derive(Debug)]
pub(crate) enum Finish {
    Seal(Memfd, Seals),
    Udmabuf(Memfd),
    Heap,
    Region { region: Region, sync: bool, is_dma_buf: bool },
}

/// Makes or opens memory for an image of `len` bytes. What is there already is shown to `check` first.
pub(crate) fn create(
    memory: &Memory,
    len: u64,
    settings: &Settings,
    check: impl FnOnce(&Path, BorrowedFd<'_>) -> Result<()>,
) -> Result<(Target, Finish)> {
    if settings.node.is_some() {
        memory.check_node()?;
    }
    let memfd = |pages, len| memfd(pages, len, settings.node);
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
            // A dma-buf is mapped by 4 KiB whatever it is made of, and Linux 6.12 maps wrong pages of a udmabuf of huge
            // pages for itself, so that the kernel's own DAXFS could not be mounted from it.
            let pages = if settings.pages == HugePages::Auto { HugePages::No } else { settings.pages };
            let (target, memfd) = memfd(pages, len)?;
            Ok((target, Finish::Udmabuf(memfd)))
        }
        Memory::Heap(name) => {
            let fd = heap_allocate_on(name, len, settings.node)?;
            let path = PathBuf::from(memory.to_string());
            Ok((Target::new(fd, &path, Access::Map, true), Finish::Heap))
        }
        Memory::Device(source) => publish::open(source, len, settings, check),
    }
}

/// Finds out before all the work whether the kernel would make a udmabuf of `len` bytes.
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

fn memfd(pages: HugePages, len: u64, node: Option<u32>) -> Result<(Target, Memfd)> {
    let path = Path::new("memfd:daxfs");
    // Whole pages of this machine, as a udmabuf wants them; the image may be for one with smaller pages.
    let memfd = Memfd::create_on("daxfs", len.next_multiple_of(dmabuf::page_size()), pages, node)?;
    let fd = duplicate(memfd.as_fd(), path)?;
    Ok((Target::of_pages(fd, path, pages), memfd))
}

impl Finish {
    /// Brackets the writing, where the memory needs that.
    pub(crate) fn begin<'t>(&self, target: &'t Target) -> Result<Option<CpuAccess<'t>>> {
        match self {
            Finish::Heap | Finish::Region { is_dma_buf: true, .. } => {
                Ok(Some(CpuAccess::begin(target.file.as_fd(), dmabuf::Access::Write)?))
            }
            _ => Ok(None),
        }
    }

    /// Whether the kernel can say which pages the memory is made of.
    pub(crate) fn has_pages(&self) -> bool {
        matches!(self, Finish::Seal(..) | Finish::Udmabuf(_))
    }

    /// The superblock that makes the image valid.
    pub(crate) fn superblock(
        &self,
        layout: &Layout,
        shift: u64,
        erofs: Option<&erofs::Superblock>,
    ) -> Vec<u8> {
        let mut bytes = metadata::superblock(layout, shift, erofs);
        if let Finish::Region { region, .. } = self
            && region.generation > 0
        {
            let record = Generation::new(region.generation, false);
            bytes[GENERATION_OFFSET..GENERATION_OFFSET + size_of::<Generation>()]
                .copy_from_slice(record.as_bytes());
        }
        bytes
    }

    /// Makes the memory what it is to be and gives its descriptor.
    pub(crate) fn end(&self, target: &Target, sync: bool) -> Result<OwnedFd> {
        match self {
            Finish::Seal(memfd, seals) => {
                memfd.seal(*seals)?;
                duplicate(memfd.as_fd(), &target.path)
            }
            Finish::Udmabuf(memfd) => Ok(udmabuf_from(memfd)?),
            Finish::Region { sync: true, .. } if sync => {
                target.file.sync_all().map_err(|error| Error::io("sync", &target.path, error))?;
                duplicate(target.file.as_fd(), &target.path)
            }
            Finish::Heap | Finish::Region { .. } => duplicate(target.file.as_fd(), &target.path),
        }
    }
}

fn duplicate(fd: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|error| Error::io("open", path, error))
}
