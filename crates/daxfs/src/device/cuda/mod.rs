//! Images in the memory of an NVIDIA GPU, by the CUDA driver.
//!
//! The driver is looked for at run time. Without it, or where it is too old, [`Device::open`] returns an error that
//! says what is missing. Nothing is needed to build.
//!
//! | call | where the bytes are | what it costs |
//! |---|---|---|
//! | [`Image::to`](crate::Image::to) | in the device's memory | one copy, at the speed of the link |
//! | [`UploadOptions::in_host`] | in host memory of the driver's, read over the link | one copy, by processors |
//! | [`Device::attach`] | in either, where another process put them | nothing |
//! | [`Image::map`](crate::Image::map) | in host memory, read over the link | nothing is copied, the pages are pinned |
//!
//! # Which descriptor is what
//!
//! Three kinds go by the name of GPU memory, and none does for another. [`Buffer::share`] gives the driver's own, which
//! only CUDA imports, be it of the device's memory or of the host's; [`Buffer::export_dma_buf`] gives a dma-buf, which
//! other drivers import and CUDA on a discrete GPU does not; and host memory has the memfd that it came from. Neither
//! of the first two can be mapped by mmap(2), so metadata is always read from the host's image.
//!
//! # What is there
//!
//! [`MappedImage::verify`](crate::device::MappedImage::verify) compares a copy with the image, whoever made it: kernels
//! of this library hash each file in the device's memory.
//!
//! # Within a process
//!
//! The device's primary context is used, as by PyTorch, JAX and CuPy, and what was current on a thread is current again
//! after each call. Uploads run in streams of their own and are complete when the call returns. Memory is given back
//! when the last place in it is gone, after waiting for the device.

mod allocation;
mod buffer;
mod copy;
mod device;
mod driver;
mod extents;
mod fill;
mod hash;
mod host;
mod ring;
#[cfg(test)]
mod ring_tests;
mod staging;
mod stream;
mod sync;
mod threads;
mod upload;
mod verify;

pub use buffer::{Buffer, Shared};
pub use device::{Device, devices, parse_host_ordinal, parse_ordinal};
pub use upload::UploadOptions;
pub use verify::Verified;

use allocation::Allocation;

use super::image::{MapOptions, MappedImage, MappedRegion, describe};
use super::segments::Segments;
use super::spans::Cut;
use super::{DeviceError, Placement, Refusal, Route};
use crate::holder::message::DeviceCopy;
use crate::{Error, Image, Provenance, Region, Result};

impl Device {
    /// Copies these segments of a region into the device's memory.
    pub(super) fn upload(
        &self,
        region: &Region,
        segments: &Segments,
        options: &UploadOptions,
    ) -> Result<MappedRegion> {
        Ok(self.resident(self.fill(region, segments, options)?, Route::Copy))
    }

    fn fill(&self, region: &Region, segments: &Segments, options: &UploadOptions) -> Result<Buffer> {
        let (len, source_len) = (segments.len(), segments.source_len());
        if len == 0 || source_len > region.len() {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len: source_len, bound: region.len() }.into());
        }
        let allocation = match options.is_in_host() {
            true => Allocation::in_host(self, len)?,
            false => Allocation::on_device(self, len)?,
        };
        let buffer = Buffer::allocated(allocation, len, options.is_writable());
        options.upload(region, segments, &buffer)?;
        Ok(buffer)
    }

    /// The copy that the image's holder has on this device, or in host memory: of the whole image, or by a placement.
    /// One that cannot be had or mapped, or lies elsewhere, is none: the image can be copied.
    pub(super) fn kept(
        &self,
        image: &Image,
        placement: Option<&Placement>,
        in_host: bool,
    ) -> Option<MappedImage> {
        // The holder knows generations of names, not of what is written into memory that it has.
        if image.region().provenance() != Provenance::Sealed {
            return None;
        }
        let identity = placement.map_or(DeviceCopy::WHOLE, Placement::identity);
        let uuid = if in_host { DeviceCopy::HOST } else { self.uuid() };
        let (fd, size) = image.region().attachment()?.copy_on(uuid, identity).ok()??;
        let shared = Shared { fd, size, uuid };
        let kept = match placement {
            Some(placement) => self.attach_placed(placement, &shared).ok(),
            None => self.attach(image, &shared).ok(),
        }?;
        // The holder believes whoever left it.
        let is_there =
            |buffer: &super::Buffer| buffer.as_cuda().is_some_and(|buffer| buffer.is_resident() != in_host);
        kept.buffers().iter().all(is_there).then_some(kept)
    }

    /// Copies bytes of this process into the device's memory, mapped for reading, at a multiple of 2 MiB or whatever
    /// the driver allocates by: a [`Lookup`](super::Lookup), for example. Each takes at least that much.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Driver`]; [`Error::Memory`] for no bytes.
    pub fn copy(&self, bytes: &[u8]) -> Result<Buffer> {
        let region = Region::from_bytes(bytes.to_vec());
        self.fill(&region, &Segments::whole(region.len()), &UploadOptions::new().threads(1))
    }

    /// An image whose bytes another process put into the device's memory, or into host memory for a device of the
    /// machine: `shared` is what [`Buffer::share`] gave there, and `image` the same image, opened from the host, where
    /// its metadata is. Mapped for reading, host memory for the CPU, too. Nothing is compared: [`MappedImage::verify`]
    /// does that.
    ///
    /// # Errors
    /// [`DeviceError::OtherDevice`] for memory of another GPU, [`Error::Memory`] when it is shorter than the image,
    /// [`DeviceError::Driver`] when the descriptor is none of the driver's or the size is not that of the memory, and
    /// [`DeviceError::Unavailable`] for a split image, and for host memory where the driver has none to allocate.
    pub fn attach(&self, image: &Image, shared: &Shared) -> Result<MappedImage> {
        if image.backing().is_some_and(|region| !region.is_empty()) {
            let what = "a split image, whose files lie in a second memory,".into();
            return Err(Error::from(DeviceError::Unavailable {
                what,
                needs: "to be packed as one image".into(),
            }));
        }
        let memory = self.take(image.superblock().total_size, shared)?;
        Ok(MappedImage::new(image.clone(), memory, None))
    }

    /// Like [`Device::attach`], of a copy by a placement ([`Placement::to`]): `placement` is that of the same plan,
    /// rank and image, or another one with the same identity.
    ///
    /// # Errors
    /// As for [`Device::attach`], and [`DeviceError::NotPlaced`] for a placement of nothing.
    pub fn attach_placed(&self, placement: &Placement, shared: &Shared) -> Result<MappedImage> {
        placement.check_not_empty()?;
        let memory = self.take(placement.len(), shared)?.of(placement.clone());
        Ok(MappedImage::new(placement.image().clone(), memory, None))
    }

    /// Maps memory that another process filled, of which `len` bytes are used.
    fn take(&self, len: u64, shared: &Shared) -> Result<MappedRegion> {
        if len > shared.size {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len, bound: shared.size }.into());
        }
        let allocation = Allocation::import(self, &shared.fd, shared.size, shared.uuid)?;
        Ok(self.resident(Buffer::allocated(allocation, len, false), Route::Descriptor))
    }

    /// One buffer, however long: the whole allocation is at one range of addresses.
    fn resident(&self, buffer: Buffer, route: Route) -> MappedRegion {
        let cut = Cut { total: buffer.len(), piece: buffer.len() };
        MappedRegion::new(self.clone().into(), vec![super::Buffer::Cuda(buffer)], cut, route)
    }

    /// Pins the first `len` bytes of a region, which are read over the link from then on.
    pub(super) fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        let cut = options.cut(len, host::MAX_REGISTRATION).ok_or_else(|| DeviceError::Unavailable {
            what: "host memory in pieces".into(),
            needs: "pieces of at least 2 MiB".into(),
        })?;
        let mut refusals = Vec::new();
        for &route in options.routes() {
            let registered: Result<Vec<_>, _> = match route {
                Route::Mapping => {
                    let register = |(at, len)| host::register(self, region, at, len, host::Threads::Several);
                    cut.pieces().map(|piece| register(piece).map(Buffer::registered)).collect()
                }
                Route::Descriptor => Err("CUDA imports no descriptors of host memory".into()),
                Route::Copy => Err("mapping does not copy".into()),
            };
            match registered {
                Ok(buffers) => {
                    let buffers = buffers.into_iter().map(super::Buffer::Cuda).collect();
                    return Ok(MappedRegion::new(self.clone().into(), buffers, cut, route));
                }
                Err(why) => refusals.push(Refusal { route, why }),
            }
        }
        let memory = describe(region);
        let advice = "put the image into a memfd (not sealed against writing, where the device pins only what could \
                      be written), map in smaller pieces (max_piece) if the kernel did not pin it, or copy the image \
                      to the device";
        Err(DeviceError::NotImportable { device: self.name().into(), memory, refusals, advice }.into())
    }
}
