//! Dma-bufs of every exporter.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::unistd::{Whence, lseek};

use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::{Error, Result};
use crate::fd::{fd_name, fs_type};
use crate::page::page_size;
use crate::survey::{Offer, access};

/// `DMA_BUF_MAGIC` of `linux/magic.h`: the file system type of every dma-buf.
const DMA_BUF_MAGIC: u32 = 0x444d_4142;
/// Where the kernel's heaps have their nodes.
pub(crate) const HEAPS: &str = "/dev/dma_heap";
/// Largest udmabuf in MiB.
pub(crate) const LIMIT: &str = "/sys/module/udmabuf/parameters/size_limit_mb";
pub(crate) const LIST_LIMIT: &str = "/sys/module/udmabuf/parameters/list_limit";
const NAME: &str = "dma-buf";

pub(super) struct Row;

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &KindFacts {
            name: NAME,
            class: MemoryClass::PfnMap,
            is_device: false,
            writers: "every process with a writable descriptor",
            shrinks: "no",
            pages: "mapped by 4 KiB",
            coherence: "this machine, devices between SYNC brackets",
        }
    }

    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        // It has no type bits in st_mode: the file system type tells.
        if fs_type(&seen.fs) != DMA_BUF_MAGIC {
            return Ok(None);
        }
        let len = lseek(seen.fd, 0, Whence::SeekEnd).map_err(|e| Error::os("lseek", fd_name(seen.fd), e))?;
        Ok(Some(Layout { len: len.try_into().unwrap_or(0), unit: page_size(), has_huge_pages: false }))
    }

    fn describe(&self, seen: &Seen<'_>, _: &Layout) -> Result<FdKind> {
        Ok(named(seen.fd))
    }

    fn keeps_pages(&self, _: &FdKind) -> bool {
        true
    }

    fn not_collapsed(&self, _: &FdKind) -> Option<&'static str> {
        Some("the pages of a dma-buf belong to its exporter")
    }

    fn offers(&self) -> Vec<Offer> {
        let mut offers = vec![udmabufs()];
        let heaps = heaps();
        if heaps.is_empty() {
            let why = "dma-heap: needs CONFIG_DMABUF_HEAPS and CONFIG_DMABUF_HEAPS_SYSTEM";
            offers.push(Offer::missing(NAME, why));
        }
        offers.extend(heaps.into_iter().map(|name| {
            let node = Path::new(HEAPS).join(&name);
            Offer::new(NAME, format!("heap:{name}"), access(&node))
        }));
        offers
    }
}

fn udmabufs() -> Offer {
    let device = Path::new("/dev/udmabuf");
    if !device.exists() {
        return Offer::missing(NAME, "udmabuf: needs CONFIG_UDMABUF and its module: modprobe udmabuf");
    }
    let list = udmabuf_list_limit().map_or_else(String::new, |limit| format!(", list_limit {limit}"));
    let note = format!("size_limit_mb is in /sys/module/udmabuf/parameters{list}");
    Offer { note, size: udmabuf_limit(), ..Offer::new(NAME, "udmabuf", access(device)) }
}

fn named(fd: BorrowedFd<'_>) -> FdKind {
    // Not an error if /proc is missing: the names are for people.
    let text = fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(|v| v.trim().to_owned());
    FdKind::DmaBuf { exporter: field("exp_name:").unwrap_or_default(), name: field("name:") }
}

/// Names of the heaps of this machine, sorted: `system` where the kernel has CONFIG_DMABUF_HEAPS_SYSTEM, and names
/// such as `linux,cma`, `reserved` or a vendor's for contiguous memory.
#[must_use]
pub fn heaps() -> Vec<String> {
    // No directory: the kernel has no heaps.
    let mut names: Vec<String> = fs::read_dir(HEAPS)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Most memfds that [`udmabuf_join`](crate::udmabuf_join) takes: the module parameter `list_limit` (1024 by default).
/// `None` without udmabuf.
#[must_use]
pub fn udmabuf_list_limit() -> Option<u64> {
    fs::read_to_string(LIST_LIMIT).ok()?.trim().parse().ok()
}

/// Largest udmabuf in bytes: the module parameter `size_limit_mb` (64 MiB by default). `None` without udmabuf.
#[must_use]
pub fn udmabuf_limit() -> Option<u64> {
    let mebibytes: u64 = fs::read_to_string(LIMIT).ok()?.trim().parse().ok()?;
    mebibytes.checked_mul(1 << 20)
}

/// Whether CPU reads of a dma-buf of this exporter are bracketed by [`CpuAccess`](crate::CpuAccess) on their own.
///
/// GPU drivers answer the bracket by moving the buffer out of the device's memory (amdgpu, xe, i915), which would
/// evict weights from it for the sake of a few bytes of metadata. Their mappings need no bracket to be read. Most of
/// them export under the name `drm`.
#[must_use]
pub fn syncs_reads(exporter: &str) -> bool {
    !matches!(exporter, "drm" | "amdgpu" | "radeon" | "xe" | "i915" | "nouveau" | "nvidia" | "nv_dmabuf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_gpus_is_not_moved_for_a_read() {
        for exporter in ["drm", "amdgpu", "xe", "i915", "nv_dmabuf"] {
            assert!(!syncs_reads(exporter), "{exporter}");
        }
        // Plain memory, and exporters that are not known: the bracket is right for them.
        for exporter in ["udmabuf", "system", "linux,cma", "my-fpga", ""] {
            assert!(syncs_reads(exporter), "{exporter}");
        }
        let dma_buf = |exporter: &str| FdKind::DmaBuf { exporter: exporter.into(), name: None };
        assert!(
            dma_buf("system").syncs_reads() && !dma_buf("drm").syncs_reads() && !FdKind::File.syncs_reads()
        );
    }
}
