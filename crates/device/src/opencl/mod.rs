//! Images in the memory of an OpenCL device: import without a copy, and copies in its own memory.
//!
//! The loader (`libOpenCL.so`) is opened at run time. Devices are numbered over all platforms, in the loader's order.
//!
//! | memory | route | needs |
//! |---|---|---|
//! | dma-buf | descriptor | `cl_khr_external_memory_dma_buf` or `cl_arm_import_memory_dma_buf` |
//! | anything that is mapped | mapping (`CL_MEM_USE_HOST_PTR`) | a device that shares the host's memory, such as a CPU (PoCL) or an integrated GPU |
//!
//! A device with memory of its own may copy the pages that it is given, so mappings are refused there: copy
//! ([`ImageExt::to`](crate::ImageExt::to)), which is one buffer of at most `CL_DEVICE_MAX_MEM_ALLOC_SIZE` bytes.
//!
//! There are drivers that take memory and show the device other bytes. So after every import the device sums up
//! samples of what it sees, and an import whose sums are not those of the host's bytes is refused.
//!
//! A place is [`Buffer::handle`] and an offset: OpenCL has no addresses. Work on a buffer belongs between
//! [`Buffer::acquire`] and [`Acquired::release`].

mod buffer;
mod copy;
mod device;
mod external;
mod import;
mod sums;

pub use buffer::Buffer;
pub use device::{Device, devices};
pub use external::Acquired;
pub use opencl3;

use daxfs::Region;
use opencl3::error_codes::ClError;

use crate::backend::{Backend, Memory};
use crate::copy::segments::Segments;
use crate::{DeviceError, MapOptions, MappedRegion, Result, UploadOptions};

/// A driver's answer as an error.
fn failed(device: &str, call: &'static str, code: ClError) -> DeviceError {
    DeviceError::Driver { device: device.into(), call, code: code.0, meaning: code.to_string() }
}

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

    fn upload(&self, region: &Region, segments: &Segments, options: &UploadOptions) -> Result<crate::Buffer> {
        Ok(self.copy(region, segments, options)?.into())
    }
}

impl Memory for Buffer {
    fn len(&self) -> u64 {
        self.len()
    }

    fn address(&self) -> Option<u64> {
        None
    }

    fn is_resident(&self) -> bool {
        self.is_copy()
    }

    fn is_copy(&self) -> bool {
        self.is_copy()
    }

    fn is_writable(&self) -> bool {
        self.is_writable()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.read(offset, bytes)
    }
}
