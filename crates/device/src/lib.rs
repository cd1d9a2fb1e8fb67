//! DAXFS images in the memory of a device: each file and tensor is resolved to buffer, offset, length and address.
//!
//! ```no_run
//! # fn main() -> daxfs_device::Result<()> {
//! use daxfs_device::{Device, ImageExt};
//!
//! let image = daxfs::Image::open("fd:7")?; // a dma-buf, or any other memory that the driver takes
//! let device = Device::parse("vulkan:0")?;
//! let mapped = image.map(&device)?; // no byte is copied
//! let place = mapped.tensor(&image.tensors()?.get("embedding.weight")?)?.one()?;
//! println!("{} bytes at {:#x}", place.len(), place.address().unwrap_or(0));
//! # Ok(()) }
//! ```
//!
//! # Families of devices
//!
//! | name | family | feature |
//! |---|---|---|
//! | `cuda:N` | NVIDIA GPUs: `cuda` | `cuda` |
//! | `opencl:N` | OpenCL devices, PoCL on processors among them: `opencl` | `opencl` |
//! | `vulkan:N` | GPUs and software drivers of Vulkan: `vulkan` | `vulkan` |
//!
//! A feature compiles a family in. No type changes with it: a device of a family that is not there is
//! [`DeviceError::Unavailable`], as it is where the machine has no driver.
//!
//! # From a file to a place
//!
//! [`ImageExt::map`] gives a [`MappedImage`]: the image's [`Region`](daxfs::Region) as one or more buffers of the
//! device, read in place. [`ImageExt::to`] gives the same of a copy in the device's own memory. A driver bounds the
//! size of a buffer, so a long region that is read in place is cut into pieces, each a multiple of 2 MiB and at most 4
//! GiB (Vulkan), 64 GiB (CUDA) or what the driver says (OpenCL) long, and a file that crosses from one piece into the
//! next has several places. That is said, not hidden: [`MappedImage::file`] returns [`Places`], and [`Places::one`] is
//! an error that names their number when there are several.
//!
//! # Lifetime
//!
//! A [`Place`] holds its buffer, the buffer the device and the region: nothing is unmapped, freed or unloaded while
//! any of them lives. Handles and addresses that were taken out of them are plain numbers, and what is submitted with
//! them is the caller's `unsafe` code: hold the place until that work is done.
//!
//! # What the device may do
//!
//! The bytes are those that every other user of the memory sees. A shader that writes them is a fault where the
//! mapping is read-only, and changes the image for everybody where it is not.

#![cfg_attr(
    not(all(feature = "cuda", feature = "opencl", feature = "vulkan")),
    allow(
        dead_code,
        unreachable_code,
        unused_mut,
        unused_variables,
        reason = "used by families that are compiled in"
    )
)]

#[cfg(not(all(feature = "cuda", feature = "opencl", feature = "vulkan")))]
mod absent;
mod backend;
mod copy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dlpack;
mod error;
mod family;
mod image;
mod lookup;
mod map;
#[cfg(feature = "opencl")]
pub mod opencl;
mod options;
mod part;
mod place;
mod placed;
pub mod placement;
mod resident;
mod slice;
mod spans;
mod tensor;
#[cfg(test)]
#[path = "../../daxfs/src/tensor/test_image.rs"]
#[allow(dead_code, reason = "the tests of daxfs use more of it")]
mod test_image;
mod verify;
#[cfg(feature = "vulkan")]
pub mod vulkan;

#[cfg(not(feature = "cuda"))]
mod cuda {
    pub type Device = crate::absent::Device<'c'>;
    pub type Buffer = crate::absent::Buffer<'c'>;
}
#[cfg(not(feature = "opencl"))]
mod opencl {
    pub type Device = crate::absent::Device<'o'>;
    pub type Buffer = crate::absent::Buffer<'o'>;
}
#[cfg(not(feature = "vulkan"))]
mod vulkan {
    pub type Device = crate::absent::Device<'v'>;
    pub type Buffer = crate::absent::Buffer<'v'>;
}

/// What the images of the tests are made of.
#[cfg(test)]
use daxfs::{Dtype, Image, Region, format};

pub use error::{DeviceError, Error, Refusal, Result, Route};
pub use family::{Buffer, Device, DeviceName};
pub use image::{ImageExt, MappedImage};
pub use lookup::Lookup;
pub use map::{MapOptions, MappedRegion};
pub use options::UploadOptions;
pub use place::{Place, Places};
pub use placement::{Placement, Plan};
pub use resident::Shared;
pub use slice::TensorSlice;
pub use tensor::{DeviceTensor, DeviceTensors};
pub use verify::Verified;

/// Compiles the example of the guide.
#[cfg(all(doctest, feature = "vulkan"))]
#[doc = include_str!("../../../docs/vulkan.md")]
struct GuideDoctests;

/// Compiles the examples of the guide.
#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../../../docs/cuda.md")]
struct CudaGuideDoctests;

/// Compiles the example of the guide.
#[cfg(all(doctest, feature = "opencl"))]
#[doc = include_str!("../../../docs/opencl.md")]
struct OpenClGuideDoctests;

/// Compiles the example of the page on plans.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/plans.md")]
struct PlansDoctests;
