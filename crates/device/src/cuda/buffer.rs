//! Memory that a CUDA device reads: its own, or the host's.

#![allow(unsafe_code, reason = "copies device memory to the host")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxfs::DeviceUuid;

use super::allocation::Allocation;
use super::device::Device;
use super::host::Registered;
use super::stream::Stream;
use crate::{DeviceError, Result, Shared};

/// Memory at an address of the device. Cloning shares it. When the last clone and the last place in it are gone, the
/// device is waited for and the memory given back.
#[derive(Clone, Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    len: u64,
    is_writable: bool,
}

#[derive(Debug)]
enum Memory {
    /// Of the device, or of the host.
    Allocated(Allocation),
    /// Pages of somebody else's.
    Pinned(Arc<Registered>),
}

impl Buffer {
    pub(super) fn allocated(allocation: Allocation, len: u64, is_writable: bool) -> Self {
        Self { memory: Arc::new(Memory::Allocated(allocation)), len, is_writable }
    }

    pub(super) fn registered(registered: Registered) -> Self {
        let len = registered.len();
        // The pages are everybody's.
        Self { memory: Arc::new(Memory::Pinned(registered.shared())), len, is_writable: false }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        match &*self.memory {
            Memory::Allocated(allocation) => allocation.device(),
            Memory::Pinned(registered) => registered.device(),
        }
    }

    /// Bytes of the image, without what the allocation has behind them.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: no buffer without bytes is made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte for the device (`CUdeviceptr`), valid while a clone of the buffer or a place in it
    /// lives. A copy begins at a multiple of what the driver allocates by (2 MiB as a rule), pages that are pinned at
    /// one of these.
    pub fn address(&self) -> u64 {
        match &*self.memory {
            Memory::Allocated(allocation) => allocation.address(),
            Memory::Pinned(registered) => registered.address(),
        }
    }

    /// The CPU's address of the first byte, for host memory that the device reads in place.
    pub fn host_address(&self) -> Option<usize> {
        match &*self.memory {
            Memory::Allocated(allocation) if allocation.is_host() => {
                usize::try_from(allocation.address()).ok()
            }
            Memory::Allocated(_) => None,
            Memory::Pinned(registered) => Some(registered.host_address()),
        }
    }

    /// Whether kernels of this process may write, and the CPU to host memory: only to a copy that was asked for
    /// ([`UploadOptions::writable`](crate::UploadOptions::writable)).
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Whether the bytes are in the device's own memory; else the device reads the host's, over the link.
    pub fn is_resident(&self) -> bool {
        matches!(&*self.memory, Memory::Allocated(allocation) if !allocation.is_host())
    }

    /// Whether the bytes are a copy of the image's, in whatever memory; else they are the image's own.
    pub(crate) fn is_copy(&self) -> bool {
        matches!(&*self.memory, Memory::Allocated(_))
    }

    /// Copies bytes back to the host, and waits for them. The image's own file is the place to read from; this is for
    /// those who want to see what the device has.
    ///
    /// # Errors
    /// [`daxfs::Error::Memory`] for a range outside of the buffer, [`DeviceError::Driver`].
    pub fn copy_to_host(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let len = bytes.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(dmabuf::Error::OutOfBounds { offset, len, bound: self.len }.into());
        }
        let device = self.device();
        let current = device.enter()?;
        let stream = Stream::new(device, &current)?;
        // SAFETY: the buffer has as many bytes from `offset` on (checked above), mapped as long as it lives.
        Ok(unsafe { stream.fetch(bytes, self.address() + offset, &current) }?)
    }

    /// The memory for other processes.
    ///
    /// # Errors
    /// [`DeviceError::NotExportable`] for an image that is only mapped, whose own descriptor can be passed;
    /// [`DeviceError::Driver`].
    pub fn share(&self) -> Result<Shared> {
        let allocation = self.allocation()?;
        let fd = allocation.share()?;
        let uuid = if allocation.is_host() { DeviceUuid::HOST } else { self.device().uuid() };
        Ok(Shared { fd, size: allocation.size(), uuid })
    }

    /// The memory as a dma-buf for network cards, drives, FPGAs and other drivers, which must be able to reach the
    /// device over the bus. Its length is that of the image, rounded up to whole pages. On discrete GPUs the CPU
    /// cannot map it, and CUDA cannot import it: for another CUDA process see [`Buffer::share`].
    ///
    /// # Errors
    /// [`DeviceError::NotExportable`], for all host memory, too.
    pub fn export_dma_buf(&self) -> Result<OwnedFd> {
        Ok(self.allocation()?.export_dma_buf(self.len)?)
    }

    pub(super) fn allocation(&self) -> Result<&Allocation, DeviceError> {
        match &*self.memory {
            Memory::Allocated(allocation) => Ok(allocation),
            Memory::Pinned(_) => Err(DeviceError::NotExportable {
                device: self.device().name().into(),
                why: "it is host memory: pass the descriptor that it was mapped from".into(),
            }),
        }
    }
}
