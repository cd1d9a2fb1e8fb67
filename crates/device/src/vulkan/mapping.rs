//! The route by mapping: the device imports the pages that this process has mapped, by their address.
//!
//! It is the only one for memory that nobody may write, and for what is no dma-buf. Each piece is an allocation of its
//! own.

#![allow(unsafe_code, reason = "imports pages into Vulkan")]

use ash::vk;
use dmabuf::page_size;

use super::buffer::Buffer;
use super::device::Device;
use super::draft::{Dedicated, Draft, allocate, first_type, reason};
use crate::spans::Cut;
use daxfs::Region;

const HOST: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

pub(super) fn import(device: &Device, region: &Region, cut: Cut) -> Result<Vec<Buffer>, String> {
    if device.shared().memory_host.is_none() {
        return Err("VK_EXT_external_memory_host is missing or not enabled".into());
    }
    if region.info().is_none() {
        return Err(
            "the bytes belong to this process and share their pages with others: make a sealed copy".into()
        );
    }
    if region.is_writable() {
        return Err("the mapping is a private copy-on-write one, of which the device would get copies".into());
    }
    let features = device.external(device.usage(vk::BufferUsageFlags::empty()), HOST);
    if !features.contains(vk::ExternalMemoryFeatureFlags::IMPORTABLE) {
        return Err("the driver does not import mappings as buffers".into());
    }
    cut.pieces().map(|(start, len)| piece(device, region, start, len)).collect()
}

/// One allocation and its buffer over `start..start + len` of the region, which it has.
fn piece(device: &Device, region: &Region, start: u64, len: u64) -> Result<Buffer, String> {
    let view = region.view().get(start, region.len() - start).map_err(|e| e.to_string())?;
    let unit = device.limits().mapping_alignment;
    let address = view.as_ptr();
    if !(address.addr() as u64).is_multiple_of(unit) {
        return Err(format!("its mapping does not begin at a multiple of {unit} bytes, as the device wants"));
    }
    // The mapping consists of whole pages. What is behind its last byte in the last one is zeros at the end of the
    // memory, and for a part of longer memory that memory's next bytes; no buffer reaches so far.
    let mapped = (view.len() as u64).next_multiple_of(page_size());
    let allocation = len.next_multiple_of(unit);
    if allocation > mapped {
        return Err(format!(
            "the device takes multiples of {unit} bytes, and its mapping ends before {allocation}"
        ));
    }

    let mut draft = Draft::new(device);
    let (buffer, needs) = draft.add(len, device.usage(vk::BufferUsageFlags::empty()), HOST)?;
    if needs.size > allocation {
        return Err(format!(
            "a buffer for its {len} bytes takes {}, and the mapping ends before",
            needs.size
        ));
    }
    let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
    let Some(functions) = &device.shared().memory_host else {
        return Err("VK_EXT_external_memory_host is missing".into());
    };
    // SAFETY: the extension is enabled, the handle type is one of its two, the pointer is aligned (checked above) and
    // to memory that `region` keeps mapped.
    let asked = unsafe {
        (functions.fp().get_memory_host_pointer_properties_ext)(
            functions.device(),
            HOST,
            address.cast(),
            &raw mut properties,
        )
    };
    if asked != vk::Result::SUCCESS {
        return Err(reason(device, "vkGetMemoryHostPointerPropertiesEXT", asked));
    }
    let memory_type = first_type(properties.memory_type_bits & needs.types)
        .ok_or("the driver has no type of memory for these pages and buffers")?;
    let dedicated = (needs.dedicated == Dedicated::Required && needs.size == allocation).then_some(buffer);
    if needs.dedicated == Dedicated::Required && dedicated.is_none() {
        return Err("the driver wants a dedicated allocation, which must be as long as the buffer".into());
    }
    // Vulkan's struct has a pointer to mutable memory; nothing here lets the device write, and a driver that insists on
    // writable pages answers with an error.
    let mut import = vk::ImportMemoryHostPointerInfoEXT::default()
        .handle_type(HOST)
        .host_pointer(address.cast_mut().cast());
    let info = vk::MemoryAllocateInfo::default()
        .allocation_size(allocation)
        .memory_type_index(memory_type)
        .push_next(&mut import);
    // SAFETY: pointer and length are multiples of the device's unit and lie in whole mapped pages of the region
    // (checked above), the type is one that the driver named for them. The pages stay mapped until the memory is
    // freed: the allocation holds a clone of the region.
    let memory = unsafe { allocate(device, info, dedicated) };
    let memory = memory.map_err(|e| reason(device, "vkAllocateMemory", e))?;
    let mut bound = draft.bind(memory, &[(0, len)], Some(region.clone()), false)?;
    bound.pop().ok_or_else(|| "no buffer was bound".into())
}
