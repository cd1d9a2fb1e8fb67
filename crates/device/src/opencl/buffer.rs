//! A buffer over an image's memory, or over a copy.

#![allow(unsafe_code, reason = "reads a buffer")]

use std::sync::Arc;

use daxfs::Region;
use opencl3::memory::{Buffer as Memory, ClMem};
use opencl3::types::{CL_BLOCKING, cl_mem};

use super::device::Device;
use super::external::{External, HandOvers};
use super::failed;
use crate::Result;

/// A buffer over an image's memory, or over a copy. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    // Dropped in this order: the object, then its context, then the pages.
    memory: Memory<u8>,
    device: Device,
    /// The pages, where they are the image's own.
    region: Option<Region>,
    len: u64,
    is_writable: bool,
    /// Set where the memory is handed over for each use.
    external: Option<External>,
}

impl Buffer {
    /// Over memory of an image.
    pub(super) fn over(device: &Device, memory: Memory<u8>, len: u64, region: &Region) -> Self {
        Self::imported(device, memory, len, region, None)
    }

    /// Over memory of an image, which the driver has by its descriptor.
    pub(super) fn imported(
        device: &Device,
        memory: Memory<u8>,
        len: u64,
        region: &Region,
        hands: Option<HandOvers>,
    ) -> Self {
        let (region, external) = (Some(region.clone()), hands.map(External::new));
        Self(Arc::new(Shared { memory, device: device.clone(), region, len, is_writable: false, external }))
    }

    /// Over a copy.
    pub(super) fn copied(device: &Device, memory: Memory<u8>, len: u64, is_writable: bool) -> Self {
        Self(Arc::new(Shared {
            memory,
            device: device.clone(),
            region: None,
            len,
            is_writable,
            external: None,
        }))
    }

    /// The memory object, for arguments of kernels. Hold the buffer until work that uses it is done, and acquire it for
    /// that work ([`Buffer::acquire`]): a driver that has the memory by its descriptor wants that.
    pub fn handle(&self) -> cl_mem {
        self.0.memory.get()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Never true: no buffer without bytes is made.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    pub(super) fn external(&self) -> Option<&External> {
        self.0.external.as_ref()
    }

    /// Whether the bytes are a copy of the image's; else they are the image's own.
    pub(super) fn is_copy(&self) -> bool {
        self.0.region.is_none()
    }

    /// Whether kernels may write: only to a copy that was asked for.
    pub fn is_writable(&self) -> bool {
        self.0.is_writable
    }

    /// Reads bytes through the device, and waits for them.
    ///
    /// # Errors
    /// [`daxfs::Error::Memory`] for a range outside of the buffer, [`DeviceError::Driver`](crate::DeviceError::Driver).
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let outside = || dmabuf::Error::OutOfBounds { offset, len, bound: self.len() };
        let at = offset
            .checked_add(len)
            .filter(|&end| end <= self.len())
            .and_then(|_| usize::try_from(offset).ok());
        let at = at.ok_or_else(outside)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let queue = self.device().queue();
        let acquired = self.acquire(queue)?;
        // SAFETY: the buffer has these bytes (just checked), and the call blocks until all of them are read.
        unsafe { queue.enqueue_read_buffer(&self.0.memory, CL_BLOCKING, at, bytes, &[]) }
            .map_err(|code| failed(self.device().name(), "clEnqueueReadBuffer", code))?;
        Ok(acquired.release()?)
    }
}
