//! `daxfs.DeviceLookup`: the block by which kernels find files themselves.

use daxfs_device::{Buffer, Lookup, cuda};
use pyo3::prelude::*;

use super::Held;
use crate::error::{self, OrRaise};
use crate::text::{self, ImagePath};
use crate::unlocked;

/// The tables by which a kernel finds files and directories of an image: give it device_ptr and that of the
/// DeviceImage, and compile it with daxfs_device.h, which is in daxfs.get_include(). It holds its memory and that of
/// the image.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceLookup {
    lookup: Lookup,
    /// Until it is dropped.
    block: Option<cuda::Buffer>,
    held: Held,
}

impl DeviceLookup {
    /// Makes the block, and copies it to the device.
    pub fn new(py: Python<'_>, held: Held) -> PyResult<Self> {
        let mapped = &held.mapped;
        if mapped.placement().is_some() {
            return Err(error::device(
                "the tables are of whole images, and this is what one rank of a plan has",
            ));
        }
        if mapped.buffers().len() != 1 || mapped.backing().is_some() {
            let why = "the image lies in several pieces of memory, and kernels are given one address";
            return Err(error::device(why));
        }
        let (lookup, block) = py
            .detach(|| {
                let lookup = Lookup::of(mapped.image())?;
                let block = held.device.copy(lookup.as_bytes())?;
                Ok::<_, daxfs_device::Error>((lookup, block))
            })
            .or_raise()?;
        Ok(Self { lookup, block: Some(block), held })
    }
}

impl Drop for DeviceLookup {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            // The last one waits for the device.
            unlocked::drop_unlocked(block);
        }
    }
}

#[pymethods]
impl DeviceLookup {
    /// The GPU's address of the block (CUdeviceptr), a multiple of 8, good as long as this object is alive.
    #[getter]
    fn device_ptr(&self) -> PyResult<u64> {
        let block = self.block.clone().map(Buffer::Cuda);
        block.as_ref().and_then(Buffer::address).ok_or_else(|| error::device("the device has no addresses"))
    }

    /// Bytes of the block.
    #[getter]
    fn nbytes(&self) -> usize {
        self.lookup.as_bytes().len()
    }

    /// The device: "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device_text()
    }

    /// The hash by which a kernel finds a path of this image (daxfs_find_hash).
    fn hash(&self, path: ImagePath) -> u64 {
        self.lookup.hash(path.0)
    }

    fn __repr__(&self) -> String {
        let (size, device) = (text::size(self.nbytes() as u64), self.held.device_text());
        format!("<daxfs.DeviceLookup: {size} on {device}>")
    }
}
