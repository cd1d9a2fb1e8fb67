//! A buffer over imported or exportable memory; it holds the memory, the region and the device.

#![allow(unsafe_code, reason = "gives the allocation back, asks for an address")]

use std::fmt;
use std::sync::Arc;

use ash::vk;

use super::device::Device;
use super::owner::Allocation;

/// Memory of one allocation, shared by the buffers in it.
pub(super) struct Memory {
    pub(super) device: Device,
    /// Present until the drop.
    allocation: Option<Allocation>,
    pub(super) exportable: bool,
}

impl Memory {
    pub(super) fn new(device: Device, allocation: Allocation, exportable: bool) -> Arc<Self> {
        Arc::new(Self { device, allocation: Some(allocation), exportable })
    }

    pub(super) fn handle(&self) -> vk::DeviceMemory {
        self.allocation.as_ref().map_or_else(vk::DeviceMemory::null, |allocation| allocation.memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(allocation) = self.allocation.take() {
            // SAFETY: the allocation was made with this device. Every `Buffer` over it holds this value, so they are
            // all gone. Work that uses the handles holds a buffer until it is submitted, and on a lent device until
            // it is done: that is the contract of `Buffer::handle` and of `Device::from_raw`.
            unsafe { self.device.retire(allocation) };
        }
    }
}

/// A Vulkan buffer over shared memory. Cloning shares it.
///
/// It is destroyed, and its memory freed, when the last clone is gone and the device has finished what was submitted
/// before.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
    buffer: vk::Buffer,
    len: u64,
    address: Option<u64>,
}

impl Buffer {
    /// `buffer` is bound to `memory`, one of the buffers of its allocation, and has `len` bytes.
    pub(super) fn new(memory: &Arc<Memory>, buffer: vk::Buffer, len: u64) -> Self {
        let address = memory.device.enabled().buffer_device_address.then(|| {
            let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
            // SAFETY: the feature is enabled, and the buffer was made with the usage SHADER_DEVICE_ADDRESS and bound
            // to memory allocated with DEVICE_ADDRESS, as every buffer of this module is when the feature is enabled.
            unsafe { memory.device.raw().get_buffer_device_address(&info) }
        });
        Self { memory: memory.clone(), buffer, len, address }
    }

    /// The handle, with the usages TRANSFER_SRC, STORAGE_BUFFER and, where the device has addresses,
    /// SHADER_DEVICE_ADDRESS (TRANSFER_DST too if it was made by [`Device::allocate`]). Hold the buffer until work
    /// that uses the handle is submitted, and on a caller's device until it is done.
    pub fn handle(&self) -> vk::Buffer {
        self.buffer
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte for shaders (`buffer_reference`); `None` unless `bufferDeviceAddress` is enabled.
    pub fn address(&self) -> Option<u64> {
        self.address
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.memory.device
    }

    /// The barrier that makes what others wrote before visible to shaders and transfers on the device's queue
    /// family. Record it once before the first use, from stage TOP_OF_PIPE to the stages that read.
    pub fn acquire(&self) -> vk::BufferMemoryBarrier<'static> {
        let foreign = self.device().enabled().foreign_queue;
        vk::BufferMemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::empty())
            .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::TRANSFER_READ)
            .src_queue_family_index(if foreign {
                vk::QUEUE_FAMILY_FOREIGN_EXT
            } else {
                vk::QUEUE_FAMILY_EXTERNAL
            })
            .dst_queue_family_index(self.device().queue_family())
            .buffer(self.buffer)
            .size(vk::WHOLE_SIZE)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("device", &self.device().name())
            .field("len", &self.len)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
