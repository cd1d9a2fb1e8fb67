//! Device memory that others can have: allocation, and export as a dma-buf.

#![allow(unsafe_code, reason = "allocates Vulkan memory and takes a descriptor over")]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use ash::vk;
use dmabuf::FdKind;

use super::buffer::Buffer;
use super::device::Device;
use super::draft::{Dedicated, Draft, allocate};
use super::failed;
use crate::DeviceError;
use crate::Result;

const DMA_BUF: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT;

impl Device {
    /// Allocates a buffer in the device's memory that [`Buffer::export_dma_buf`] can give to others. Its bytes are
    /// undefined until the device writes them, for example by a copy; it has the usage TRANSFER_DST besides those of
    /// [`Buffer::handle`].
    ///
    /// # Errors
    /// [`DeviceError::NotExportable`] when the driver cannot export dma-bufs (Mesa's software driver makes them of
    /// `/dev/udmabuf`), [`DeviceError::Driver`] when there is not enough memory; [`daxfs::Error::Memory`] for 0 bytes
    /// or more than a buffer holds.
    pub fn allocate(&self, len: u64) -> Result<Buffer> {
        let refuse = |why: String| DeviceError::NotExportable { device: self.name().into(), why };
        let bound = self.limits().max_buffer;
        if len == 0 || len > bound {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len, bound }.into());
        }
        if self.shared().memory_fd.is_none() {
            let why = "VK_KHR_external_memory_fd or VK_EXT_external_memory_dma_buf is missing or not enabled";
            return Err(refuse(why.into()).into());
        }
        let usage = self.usage(vk::BufferUsageFlags::TRANSFER_DST);
        let features = self.external(usage, DMA_BUF);
        if !features.contains(vk::ExternalMemoryFeatureFlags::EXPORTABLE) {
            let why = match self.takes_memfds() {
                true => "this driver makes dma-bufs of /dev/udmabuf, which is not there or not accessible",
                false => "the driver does not export buffers as dma-bufs",
            };
            return Err(refuse(why.into()).into());
        }
        let mut draft = Draft::new(self);
        let (buffer, needs) = draft.add(len, usage, DMA_BUF).map_err(refuse)?;
        let memory_type =
            self.local_type(needs.types).ok_or_else(|| refuse("there is no type of memory for it".into()))?;
        let dedicated = needs.dedicated != Dedicated::Never
            || features.contains(vk::ExternalMemoryFeatureFlags::DEDICATED_ONLY);
        let mut export = vk::ExportMemoryAllocateInfo::default().handle_types(DMA_BUF);
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(memory_type)
            .push_next(&mut export);
        // SAFETY: the size is what the buffer needs, the type one that it takes, and the driver exports this handle
        // type for such buffers.
        let memory = unsafe { allocate(self, info, dedicated.then_some(buffer)) };
        let memory = memory.map_err(|e| failed(self.name(), "vkAllocateMemory", e))?;
        let bound = draft.bind(memory, &[(0, len)], None, true).map_err(refuse)?;
        Ok(bound.into_iter().next().ok_or_else(|| refuse("no buffer was bound".into()))?)
    }

    /// The first type among the allowed ones that is the device's own memory, else the first.
    fn local_type(&self, bits: u32) -> Option<u32> {
        // SAFETY: a live instance and its physical device.
        let all = unsafe { self.instance().get_physical_device_memory_properties(self.physical_device()) };
        let allowed = || (0..u32::BITS).filter(|n| bits & (1 << n) != 0);
        let local = |n: &u32| {
            let found = all.memory_types_as_slice().get(usize::try_from(*n).unwrap_or(usize::MAX));
            found.is_some_and(|memory| memory.property_flags.contains(vk::MemoryPropertyFlags::DEVICE_LOCAL))
        };
        allowed().find(local).or_else(|| allowed().next())
    }
}

impl Buffer {
    /// Exports the memory of a buffer that [`Device::allocate`] made as a dma-buf: its first byte is the buffer's, and
    /// it may be longer. The memory lives until both the buffer and everybody who has the descriptor are gone.
    ///
    /// An imported buffer is not exported again: pass [`Region::fd`](daxfs::Region::fd) on.
    ///
    /// # Errors
    /// [`DeviceError::NotExportable`] for imported memory, and when the driver gives no descriptor or one that is no
    /// dma-buf; [`DeviceError::Driver`].
    pub fn export_dma_buf(&self) -> Result<OwnedFd> {
        let device = self.device();
        let refuse = |why: String| DeviceError::NotExportable { device: device.name().into(), why };
        let functions = match &device.shared().memory_fd {
            Some(functions) if self.memory().exportable => functions,
            _ => return Err(refuse("it was imported; pass on the descriptor of its region".into()).into()),
        };
        let info = vk::MemoryGetFdInfoKHR::default().memory(self.memory().handle()).handle_type(DMA_BUF);
        // SAFETY: the extension is enabled, and the memory is live and was allocated for export as this handle type.
        let raw = unsafe { functions.get_memory_fd(&info) };
        let raw = raw.map_err(|e| failed(device.name(), "vkGetMemoryFdKHR", e))?;
        // Drivers have been seen to report success without a descriptor.
        if raw < 0 {
            return Err(refuse(format!("vkGetMemoryFdKHR succeeded, but the descriptor is {raw}")).into());
        }
        // SAFETY: a successful call returns a descriptor that is new and the caller's, and it is not negative.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let found = dmabuf::describe(fd.as_fd())?;
        match found.kind {
            FdKind::DmaBuf { .. } if found.len >= self.len() => Ok(fd),
            FdKind::DmaBuf { .. } => {
                Err(refuse(format!("the dma-buf has {} bytes, the buffer {}", found.len, self.len())).into())
            }
            other => {
                Err(refuse(format!("the driver gave a descriptor that is no dma-buf: {other:?}")).into())
            }
        }
    }
}
