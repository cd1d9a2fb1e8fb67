//! Buffers on their way into an allocation: what each route makes, and what becomes of it when a step fails.

#![allow(unsafe_code, reason = "makes Vulkan buffers and memory")]

use ash::vk;
use daxfs::Region;

use super::buffer::{Buffer, Memory};
use super::device::Device;
use super::failed;
use super::owner::Allocation;
use crate::DeviceError;

/// Buffers that belong to nobody yet; destroyed on drop unless an allocation takes them.
pub(super) struct Draft<'a> {
    device: &'a Device,
    pub(super) buffers: Vec<vk::Buffer>,
}

/// What a buffer needs of its memory.
pub(super) struct Needs {
    pub(super) size: u64,
    pub(super) alignment: u64,
    pub(super) types: u32,
    /// The driver wants an allocation of its own for it, or would like one.
    pub(super) dedicated: Dedicated,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dedicated {
    Never,
    Preferred,
    Required,
}

impl<'a> Draft<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self { device, buffers: Vec::new() }
    }

    /// Adds a buffer of `len` bytes, at least 1, over memory of this kind.
    pub(super) fn add(
        &mut self,
        len: u64,
        usage: vk::BufferUsageFlags,
        kind: vk::ExternalMemoryHandleTypeFlags,
    ) -> Result<(vk::Buffer, Needs), String> {
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
        let info = vk::BufferCreateInfo::default().size(len).usage(usage).push_next(&mut external);
        // SAFETY: a live device; a length that is not 0, usages that need no feature that is not enabled, and a handle
        // type of an enabled extension.
        let buffer = unsafe { self.device.raw().create_buffer(&info, None) };
        let buffer = buffer.map_err(|e| format!("vkCreateBuffer of {len} bytes: {e}"))?;
        self.buffers.push(buffer);

        let mut dedicated = vk::MemoryDedicatedRequirements::default();
        let mut answer = vk::MemoryRequirements2::default().push_next(&mut dedicated);
        let info = vk::BufferMemoryRequirementsInfo2::default().buffer(buffer);
        // SAFETY: a live device and a buffer of it; both structs are of Vulkan 1.1.
        unsafe { self.device.raw().get_buffer_memory_requirements2(&info, &mut answer) };
        let found = answer.memory_requirements;
        let dedicated = if dedicated.requires_dedicated_allocation == vk::TRUE {
            Dedicated::Required
        } else if dedicated.prefers_dedicated_allocation == vk::TRUE {
            Dedicated::Preferred
        } else {
            Dedicated::Never
        };
        let needs =
            Needs { size: found.size, alignment: found.alignment, types: found.memory_type_bits, dedicated };
        Ok((buffer, needs))
    }

    /// Binds the buffers to `memory`, each at its offset, and makes them the caller's. `memory` is freed on failure.
    pub(super) fn bind(
        mut self,
        memory: vk::DeviceMemory,
        places: &[(u64, u64)],
        region: Option<Region>,
        exportable: bool,
    ) -> Result<Vec<Buffer>, String> {
        // From here on the allocation owns the buffers, also if binding fails.
        let buffers = std::mem::take(&mut self.buffers);
        let allocation = Allocation { memory, buffers: buffers.clone(), region };
        let memory = Memory::new(self.device.clone(), allocation, exportable);
        let mut bound = Vec::with_capacity(buffers.len());
        for (buffer, &(offset, len)) in buffers.into_iter().zip(places) {
            // SAFETY: buffer and memory are of this device and not bound yet; the callers have checked that the
            // offset is a multiple of the buffer's alignment, that its size fits behind the offset, that the memory's
            // type is among those that it takes, and that a dedicated allocation has one buffer at offset 0.
            let result = unsafe { self.device.raw().bind_buffer_memory(buffer, memory.handle(), offset) };
            result.map_err(|e| format!("vkBindBufferMemory: {e}"))?;
            bound.push(Buffer::new(&memory, buffer, len));
        }
        Ok(bound)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        for &buffer in &self.buffers {
            // SAFETY: made by this value, of this device, bound to nothing and never handed out.
            unsafe { self.device.raw().destroy_buffer(buffer, None) };
        }
    }
}

/// Allocates memory; `info` may carry an import.
///
/// # Safety
/// `info` is valid for `vkAllocateMemory` on this device, but for what its chain says of dedication and addresses: that
/// is added here.
pub(super) unsafe fn allocate(
    device: &Device,
    info: vk::MemoryAllocateInfo<'_>,
    dedicated_to: Option<vk::Buffer>,
) -> Result<vk::DeviceMemory, vk::Result> {
    let mut dedicated = vk::MemoryDedicatedAllocateInfo::default().buffer(dedicated_to.unwrap_or_default());
    let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
    let mut info = info;
    if dedicated_to.is_some() {
        info = info.push_next(&mut dedicated);
    }
    if device.enabled().buffer_device_address {
        info = info.push_next(&mut flags);
    }
    // SAFETY: valid by the caller's contract; the buffer of a dedicated allocation is a live one of this device, and
    // the flag DEVICE_ADDRESS is used only where its feature is enabled.
    unsafe { device.raw().allocate_memory(&info, None) }
}

/// The first type among the allowed ones.
pub(super) fn first_type(bits: u32) -> Option<u32> {
    (bits != 0).then(|| bits.trailing_zeros())
}

/// A call that failed, as a reason for a refusal.
pub(super) fn reason(device: &Device, call: &'static str, result: vk::Result) -> String {
    match failed(device.name(), call, result) {
        DeviceError::Driver { meaning, code, .. } => format!("{call}: {meaning} ({code})"),
        other => other.to_string(),
    }
}
