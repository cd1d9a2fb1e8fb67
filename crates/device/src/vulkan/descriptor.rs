//! The route by descriptor: a dma-buf, or a memfd where the driver takes it, becomes the device's memory.
//!
//! Vulkan imports a descriptor whole, from its first byte. The pieces of a long one are buffers at several offsets of
//! one memory object, and so are those of a region that is a part of it.

#![allow(unsafe_code, reason = "imports a descriptor into Vulkan")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use ash::vk;
use dmabuf::{FdInfo, Seals};

use super::buffer::Buffer;
use super::device::Device;
use super::draft::{Dedicated, Draft, allocate, first_type, reason};
use crate::spans::Cut;
use daxfs::Region;

const DMA_BUF: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT;

pub(super) fn import(device: &Device, region: &Region, cut: Cut) -> Result<Vec<Buffer>, String> {
    let (fd, info) = match (region.fd(), region.info()) {
        (Some(fd), Some(info)) => (fd, info),
        _ => return Err("the memory has no descriptor".into()),
    };
    let Some(functions) = &device.shared().memory_fd else {
        return Err(
            "VK_KHR_external_memory_fd or VK_EXT_external_memory_dma_buf is missing or not enabled".into()
        );
    };
    check_kind(device, info)?;
    check_length(device.shared().driver, info.len)?;
    let usage = device.usage(vk::BufferUsageFlags::empty());
    let features = device.external(usage, DMA_BUF);
    if !features.contains(vk::ExternalMemoryFeatureFlags::IMPORTABLE) {
        return Err("the driver does not import dma-bufs as buffers".into());
    }

    let mut properties = vk::MemoryFdPropertiesKHR::default();
    // SAFETY: the extension is enabled, the descriptor is open and is what the driver takes as a dma-buf (checked
    // above); it stays the region's.
    let asked = unsafe { functions.get_memory_fd_properties(DMA_BUF, fd.as_raw_fd(), &mut properties) };
    asked.map_err(|e| reason(device, "vkGetMemoryFdPropertiesKHR", e))?;

    let must_be_dedicated = features.contains(vk::ExternalMemoryFeatureFlags::DEDICATED_ONLY);
    let memory = Whole { len: info.len, base: region.offset() };
    let (draft, plan) = buffers(device, cut, memory, must_be_dedicated)?;
    let types = properties.memory_type_bits & plan.types;
    let memory_type =
        first_type(types).ok_or("the driver has no type of memory for this dma-buf and buffers")?;
    let imported = allocate_imported(device, fd, plan.allocation, memory_type, plan.dedicated_to)?;
    draft.bind(imported, &plan.places, Some(region.clone()), false)
}

/// What a descriptor leads to, of which the region may be a part.
#[derive(Clone, Copy)]
struct Whole {
    /// Bytes.
    len: u64,
    /// Where the region begins in it.
    base: u64,
}

/// Buffers that are made, and the one allocation that they want.
struct Plan {
    /// Offset and bytes of each buffer.
    places: Vec<(u64, u64)>,
    /// Types of memory that all of them take.
    types: u32,
    /// Bytes to allocate.
    allocation: u64,
    dedicated_to: Option<vk::Buffer>,
}

/// Makes a buffer for each piece, or one for the whole descriptor where the driver wants it alone.
fn buffers(
    device: &Device,
    cut: Cut,
    whole: Whole,
    must_be_dedicated: bool,
) -> Result<(Draft<'_>, Plan), String> {
    let Whole { len, base } = whole;
    let usage = device.usage(vk::BufferUsageFlags::empty());
    let mut draft = Draft::new(device);
    let mut plan = Plan { places: Vec::new(), types: u32::MAX, allocation: len, dedicated_to: None };
    let mut required = must_be_dedicated;
    for (start, piece) in cut.pieces() {
        let (_, needs) = draft.add(piece, usage, DMA_BUF)?;
        required |= needs.dedicated == Dedicated::Required;
        // No overflow: the region lies in the descriptor's memory.
        let offset = base + start;
        if offset % needs.alignment != 0 {
            return Err(format!(
                "the driver wants buffers at multiples of {} bytes, and one would begin at {offset}",
                needs.alignment
            ));
        }
        if offset.checked_add(needs.size).is_none_or(|end| end > len) {
            return Err(format!(
                "a buffer for its {piece} bytes at {offset} takes {} bytes, and the memory ends after {len}",
                needs.size
            ));
        }
        plan.types &= needs.types;
        plan.places.push((offset, piece));
    }
    if !required {
        return Ok((draft, plan));
    }
    check_dedicated(whole, plan.places.len(), device.limits().max_buffer)?;
    // The dedicated buffer is as long as the descriptor, not as the image in it.
    let mut draft = Draft::new(device);
    let (buffer, needs) = draft.add(len, usage, DMA_BUF)?;
    if needs.size > len {
        return Err(format!("a buffer for all of its {len} bytes takes {} bytes", needs.size));
    }
    let plan = Plan {
        places: vec![(0, len)],
        types: needs.types,
        allocation: needs.size,
        dedicated_to: Some(buffer),
    };
    Ok((draft, plan))
}

/// Whether one buffer for all of the memory can take the place of `buffers` of the region.
fn check_dedicated(whole: Whole, buffers: usize, max_buffer: u64) -> Result<(), String> {
    const WANTS: &str = "the driver wants a dedicated allocation, one buffer for all of the memory";
    let Whole { len, base } = whole;
    if base > 0 {
        return Err(format!("{WANTS}, and the region begins at byte {base} of it"));
    }
    if len > max_buffer {
        return Err(format!("{WANTS}, which has {len} bytes, and buffers have at most {max_buffer}"));
    }
    if buffers > 1 {
        return Err(format!("{WANTS}, and {buffers} are asked for"));
    }
    Ok(())
}

/// Whether the driver may see the descriptor at all.
fn check_kind(device: &Device, info: &FdInfo) -> Result<(), String> {
    const READ_ONLY: &str = "it is open for reading only, and the driver maps what it imports for writing";
    let (takes_memfds, is_dma_buf) = (device.takes_memfds(), info.kind.exporter().is_some());
    match info.kind.seals() {
        None if !is_dma_buf => Err(format!("it is a {}, not a dma-buf", info.kind)),
        _ if takes_memfds && !info.writable => Err(READ_ONLY.into()),
        None => Ok(()),
        Some(_) if !takes_memfds => {
            Err("it is a memfd, not a dma-buf, and only Mesa's software driver takes those".into())
        }
        Some(seals) if seals.intersects(Seals::WRITE | Seals::FUTURE_WRITE) => {
            Err("it is sealed against writing, and the driver maps what it imports for writing".into())
        }
        Some(_) => Ok(()),
    }
}

/// NVIDIA's kernel module keeps the length of an imported dma-buf in 32 bits (`nv-dmabuf.c`) and says nothing.
fn check_length(driver: vk::DriverId, len: u64) -> Result<(), String> {
    if driver == vk::DriverId::NVIDIA_PROPRIETARY && len > u32::MAX.into() {
        return Err(format!("NVIDIA's driver keeps lengths in 32 bits, and it has {len} bytes"));
    }
    Ok(())
}

/// Imports a duplicate of the descriptor, which the driver closes if it succeeds and which is closed here if not.
fn allocate_imported(
    device: &Device,
    fd: BorrowedFd<'_>,
    len: u64,
    memory_type: u32,
    dedicated_to: Option<vk::Buffer>,
) -> Result<vk::DeviceMemory, String> {
    let copy = fd.try_clone_to_owned().map_err(|e| format!("duplicating the descriptor: {e}"))?;
    let raw = copy.into_raw_fd();
    let mut import = vk::ImportMemoryFdInfoKHR::default().handle_type(DMA_BUF).fd(raw);
    let info = vk::MemoryAllocateInfo::default()
        .allocation_size(len)
        .memory_type_index(memory_type)
        .push_next(&mut import);
    // SAFETY: `raw` is an open descriptor that nobody else owns, of a kind that the driver takes (`check_kind`); the
    // length is that of its memory, the type is one that the driver named for it. On success it is the driver's.
    let result = unsafe { allocate(device, info, dedicated_to) };
    result.map_err(|e| {
        // Mesa's software driver closes the descriptor of a failed import (seen in 25.0), and closing it twice could
        // hit one that another thread has just opened. Should it leave it open some day, this loses one descriptor.
        if !device.takes_memfds() {
            // SAFETY: by the specification a failed import leaves the descriptor with the application: `raw` is open
            // and owned by nobody but this line.
            drop(unsafe { OwnedFd::from_raw_fd(raw) });
        }
        reason(device, "vkAllocateMemory", e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dedicated_buffer_is_all_of_its_memory() {
        let refusal =
            |len, base, buffers| check_dedicated(Whole { len, base }, buffers, 8 << 20).unwrap_err();
        assert!(check_dedicated(Whole { len: 8 << 20, base: 0 }, 1, 8 << 20).is_ok());
        assert!(refusal(4 << 20, 2 << 20, 1).contains("begins at byte 2097152"));
        assert!(refusal(4 << 20, 0, 2).contains("2 are asked for"));
        // The image may be short, and fit one buffer: the memory behind it counts.
        assert!(refusal((8 << 20) + 4096, 0, 1).contains("at most 8388608"));
    }

    #[test]
    fn lengths_that_a_driver_would_cut_are_refused() {
        assert!(check_length(vk::DriverId::NVIDIA_PROPRIETARY, (4 << 30) - 1).is_ok());
        assert!(check_length(vk::DriverId::NVIDIA_PROPRIETARY, 4 << 30).unwrap_err().contains("32 bits"));
        assert!(check_length(vk::DriverId::MESA_LLVMPIPE, 5 << 30).is_ok());
    }
}
