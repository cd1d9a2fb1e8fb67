//! Files and tensors in the memory that a device reads: each is resolved to buffer, offset, length and address.
//!
//! Present with the feature of a backend: `vulkan`, `cuda`.
//!
//! ```no_run
//! # #[cfg(feature = "vulkan")]
//! # fn main() -> daxfs::Result<()> {
//! use daxfs::device::Device;
//!
//! let image = daxfs::Image::open("fd:7")?; // a dma-buf, or any other memory that the driver takes
//! let device = Device::vulkan(0)?;
//! let mapped = image.map(&device)?; // no byte is copied
//! let place = mapped.tensor(&image.tensors()?.get("embedding.weight")?)?.one()?;
//! println!("{} bytes at {:#x}", place.len(), place.address().unwrap_or(0));
//! # Ok(()) }
//! # #[cfg(not(feature = "vulkan"))]
//! # fn main() {}
//! ```
//!
//! # From a file to a place
//!
//! [`Image::map`](crate::Image::map) gives a [`MappedImage`]: the image's [`Region`](crate::Region) as one or more
//! buffers of the device, read in place. `Image::to` gives the same of a copy in the device's own
//! memory. A driver bounds the size of a buffer, so a long region that is read in place is cut into pieces, each a
//! multiple of 2 MiB and at most 4 GiB (Vulkan) or 64 GiB (CUDA) long, and a file that crosses from one piece into the
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

#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod image;
mod lookup;
mod part;
mod place;
#[cfg(feature = "cuda")]
mod placed;
#[cfg(feature = "cuda")]
pub mod placement;
#[cfg(feature = "cuda")]
mod resident;
#[cfg(feature = "cuda")]
mod segments;
mod slice;
mod spans;
#[cfg(feature = "vulkan")]
pub mod vulkan;

pub use error::{DeviceError, Refusal};
pub use image::{MapOptions, MappedImage, MappedRegion};
pub use lookup::Lookup;
pub use place::{Place, Places};
#[cfg(feature = "cuda")]
pub use placement::{Placement, Plan};
pub use slice::TensorSlice;

use crate::Result;

/// A device that reads images in place, or keeps copies of them. Cloning shares it; it is given back when nothing uses
/// it any more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// A device of a Vulkan driver.
    #[cfg(feature = "vulkan")]
    Vulkan(vulkan::Device),
    /// A device of the CUDA driver.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Device),
}

impl Device {
    /// The Vulkan device number `n`, counted from 0 in the loader's order ([`vulkan::devices`] lists them), with an
    /// instance and a logical device of its own. To use a device of your own see [`vulkan::Device::from_raw`].
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no Vulkan loader, no driver, or the device is too old;
    /// [`DeviceError::NoSuchDevice`]; [`DeviceError::Driver`] with what else the driver answers.
    #[cfg(feature = "vulkan")]
    pub fn vulkan(n: usize) -> Result<Self> {
        Ok(Self::Vulkan(vulkan::Device::open(n)?))
    }

    /// The CUDA device number `n`, counted from 0 among those that this process may see; [`cuda::devices`] lists them.
    ///
    /// # Errors
    /// As for [`cuda::Device::open`].
    #[cfg(feature = "cuda")]
    pub fn cuda(n: usize) -> Result<Self> {
        Ok(Self::Cuda(cuda::Device::open(n)?))
    }

    /// Name, as the driver gives it.
    pub fn name(&self) -> &str {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(device) => device.name(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.name(),
        }
    }

    /// The Vulkan device, if it is one.
    #[cfg(feature = "vulkan")]
    pub fn as_vulkan(&self) -> Option<&vulkan::Device> {
        match self {
            Self::Vulkan(device) => Some(device),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }

    /// The CUDA device, if it is one.
    #[cfg(feature = "cuda")]
    pub fn as_cuda(&self) -> Option<&cuda::Device> {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_) => None,
            Self::Cuda(device) => Some(device),
        }
    }
}

#[cfg(feature = "vulkan")]
impl From<vulkan::Device> for Device {
    fn from(device: vulkan::Device) -> Self {
        Self::Vulkan(device)
    }
}

#[cfg(feature = "cuda")]
impl From<cuda::Device> for Device {
    fn from(device: cuda::Device) -> Self {
        Self::Cuda(device)
    }
}

/// Memory as a device sees it. Cloning shares it; it is freed when the last clone and the last [`Place`] in it go.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Buffer {
    /// A buffer of a Vulkan device.
    #[cfg(feature = "vulkan")]
    Vulkan(vulkan::Buffer),
    /// Memory that a CUDA device reads.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Buffer),
}

impl Buffer {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(buffer) => buffer.len(),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => buffer.len(),
        }
    }

    /// True for a buffer without bytes; none is ever made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device's address of the first byte, where the device has addresses; valid while the buffer lives.
    pub fn address(&self) -> Option<u64> {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(buffer) => buffer.address(),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => Some(buffer.address()),
        }
    }

    /// The Vulkan buffer, if it is one.
    #[cfg(feature = "vulkan")]
    pub fn as_vulkan(&self) -> Option<&vulkan::Buffer> {
        match self {
            Self::Vulkan(buffer) => Some(buffer),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }

    /// The CUDA buffer, if it is one.
    #[cfg(feature = "cuda")]
    pub fn as_cuda(&self) -> Option<&cuda::Buffer> {
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_) => None,
            Self::Cuda(buffer) => Some(buffer),
        }
    }
}

/// How the memory of a region gets to the device. Only [`Route::Copy`] copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// The device imports the descriptor: a dma-buf, or a memfd where the driver takes those; with CUDA, memory that
    /// another process filled.
    Descriptor,
    /// The device imports the pages that this process has mapped, by their address.
    Mapping,
    /// The bytes were copied into the device's own memory, or into host memory for it (`Image::to`).
    Copy,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptor => "descriptor",
            Self::Mapping => "mapping",
            Self::Copy => "copy",
        })
    }
}

/// Compiles the example of the guide.
#[cfg(all(doctest, feature = "vulkan"))]
#[doc = include_str!("../../../../docs/vulkan.md")]
struct GuideDoctests;

/// Compiles the examples of the guide.
#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../../../../docs/cuda.md")]
struct CudaGuideDoctests;

/// Compiles the example of the page on plans.
#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../../../../docs/plans.md")]
struct PlansDoctests;
