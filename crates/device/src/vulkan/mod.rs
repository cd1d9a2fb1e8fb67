//! Images in the memory of a Vulkan device: import without a copy, storage-buffer bindings, export as a dma-buf.
//!
//! The loader is opened at run time. Without it, or without a driver, [`Device::open`] returns an error that says what
//! is needed; programs that are built with this feature start on every machine.
//!
//! # What is imported how
//!
//! | memory | route | needs |
//! |---|---|---|
//! | dma-buf | descriptor | `VK_KHR_external_memory_fd`, `VK_EXT_external_memory_dma_buf` |
//! | memfd, not sealed against writing | descriptor | the same, and Mesa's software driver, the only one that takes memfds |
//! | sealed memfd, file, devdax, read-only dma-buf | mapping | `VK_EXT_external_memory_host`, and a driver that takes read-only pages |
//!
//! Drivers check little: the software driver maps whatever descriptor it is given. So the kind of each descriptor is
//! checked here, by the kernel's answer and not by its name, before a driver sees it. A sealed memfd cannot be imported
//! by its descriptor, since drivers map what they import for writing; its mapping can where the driver allows that. The
//! error lists both reasons otherwise. A driver for a graphics card may refuse the mapping of a file or of read-only
//! pages: pack into a dma-heap or a udmabuf for those.
//!
//! # Limits
//!
//! * A buffer has at most `maxBufferSize` bytes, and at most 4 GiB here; see [`Limits`]. Longer regions are cut.
//! * Where the driver wants a dedicated allocation, the one buffer must hold the whole dma-buf: a longer one than
//!   a buffer may be is refused.
//! * NVIDIA's driver keeps the length of an imported dma-buf in 32 bits; dma-bufs of 4 GiB and more are refused there.
//! * A storage buffer is bound at multiples of `minStorageBufferOffsetAlignment`; a [`Binding`] gives the multiple
//!   below a place and the bytes between.
//!
//! # Order of access
//!
//! Memory that others wrote is foreign to the device: begin with the barrier of [`Buffer::acquire`] before the first
//! use. Writers have to be done by then; nothing here waits for them.

mod binding;
mod buffer;
mod descriptor;
mod device;
mod draft;
mod export;
mod import;
mod load;
mod mapping;
mod owner;

pub use ash;

pub use binding::Binding;
pub use buffer::Buffer;
pub use device::{Device, Enabled, Limits, Queue, RawDevice};
pub use load::{EXTENSIONS, devices};

use ash::vk;
use daxfs::Region;

use crate::backend::{Backend, Memory};
use crate::{DeviceError, MapOptions, MappedRegion, Result};

impl Backend for Device {
    fn open(_: &str, number: usize) -> Result<Self> {
        Self::open(number)
    }

    fn name(&self) -> &str {
        self.name()
    }

    fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        self.import(region, len, options)
    }
}

impl Memory for Buffer {
    fn len(&self) -> u64 {
        self.len()
    }

    fn address(&self) -> Option<u64> {
        self.address()
    }
}

/// A driver's answer as an error.
fn failed(device: &str, call: &'static str, result: vk::Result) -> DeviceError {
    DeviceError::Driver { device: device.into(), call, code: result.as_raw(), meaning: result.to_string() }
}
