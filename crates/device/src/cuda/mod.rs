//! Images in the memory of an NVIDIA GPU, by the CUDA driver.
//!
//! The driver is looked for at run time. Without it, or where it is too old, [`Device::open`] returns an error that
//! says what is missing. Nothing is needed to build.
//!
//! | call | where the bytes are | what it costs |
//! |---|---|---|
//! | [`Image::to`](crate::ImageExt::to) | in the device's memory | one copy, at the speed of the link |
//! | [`UploadOptions::in_host`] | in host memory of the driver's, read over the link | one copy, by processors |
//! | [`Device::attach`](crate::Device::attach) | in either, where another process put them | nothing |
//! | [`Image::map`](crate::ImageExt::map) | in host memory, read over the link | nothing is copied, the pages are pinned |
//!
//! # Which descriptor is what
//!
//! Descriptors of GPU memory are of three kinds that do not replace each other. [`Buffer::share`] gives the driver's
//! own, which only CUDA imports, be it of the device's memory or of the host's; [`Buffer::export_dma_buf`] gives a
//! dma-buf, which other drivers import and CUDA on a discrete GPU does not; and host memory has the memfd that it came
//! from. Neither of the first two can be mapped by mmap(2), so metadata is always read from the host's image.
//!
//! # What is there
//!
//! [`MappedImage::verify`](crate::MappedImage::verify) compares a copy with the image, also one that another process
//! made: kernels of this library hash each file in the device's memory.
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
mod staging;
mod stream;

pub use buffer::Buffer;
pub use device::{Device, devices};

use allocation::Allocation;

use daxfs::DeviceUuid;
use daxfs::Region;
use daxfs::dlpack::DLDevice;

use crate::backend::{Backend, Memory};
use crate::copy::segments::Segments;
use crate::map::describe;
use crate::verify::{Advance, Hash};
use crate::{DeviceError, MapOptions, MappedRegion, Place, Refusal, Result, Route, Shared, UploadOptions};
use copy::Upload;
use fill::Fill;

impl Device {
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
        match buffer.is_resident() {
            true => Upload::new(options, region, segments, &buffer).run()?,
            false => Fill::new(options, region, segments, &buffer)?.run()?,
        }
        if !options.is_writable() {
            buffer.allocation()?.make_read_only()?;
        }
        Ok(buffer)
    }

    /// Copies bytes of this process into the device's memory, mapped for reading, at a multiple of 2 MiB or whatever
    /// the driver allocates by: a [`Lookup`](crate::Lookup), for example. Each takes at least that much.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Driver`]; [`daxfs::Error::Memory`] for no bytes.
    pub fn copy(&self, bytes: &[u8]) -> Result<Buffer> {
        let region = Region::from_bytes(bytes.to_vec());
        self.fill(&region, &Segments::whole(region.len()), &UploadOptions::new().threads(1))
    }
}

impl Backend for Device {
    fn open(_: &str, number: usize) -> Result<Self> {
        Self::open(number)
    }

    fn name(&self) -> &str {
        self.name()
    }

    /// Pins the pages, which are read over the link from then on.
    fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
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
                    let buffers = buffers.into_iter().map(crate::Buffer::Cuda).collect();
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

    fn upload(&self, region: &Region, segments: &Segments, options: &UploadOptions) -> Result<crate::Buffer> {
        Ok(self.fill(region, segments, options)?.into())
    }

    fn uuid(&self) -> Option<DeviceUuid> {
        Some(self.uuid())
    }

    fn import(&self, shared: &Shared, len: u64) -> Result<crate::Buffer> {
        let allocation = Allocation::import(self, &shared.fd, shared.size, shared.uuid)?;
        Ok(Buffer::allocated(allocation, len, false).into())
    }

    fn hash(&self, places: &[Place], advance: Advance<'_>) -> Result<Option<Vec<Hash>>> {
        hash::places(self, places, advance)
    }
}

impl Memory for Buffer {
    fn len(&self) -> u64 {
        self.len()
    }

    fn address(&self) -> Option<u64> {
        Some(self.address())
    }

    fn is_resident(&self) -> bool {
        self.is_resident()
    }

    fn is_copy(&self) -> bool {
        self.is_copy()
    }

    fn is_writable(&self) -> bool {
        self.is_writable()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.copy_to_host(offset, bytes)
    }

    fn dl_own(&self) -> Option<(DLDevice, u64)> {
        match self.host_address() {
            Some(address) => Some((DLDevice::CUDA_HOST, address as u64)),
            None => self.dl_reader(),
        }
    }

    fn dl_reader(&self) -> Option<(DLDevice, u64)> {
        // Nobody has 2^31 devices.
        let device_id = i32::try_from(self.device().ordinal()).unwrap_or(i32::MAX);
        Some((DLDevice { device_type: DLDevice::CUDA, device_id }, self.address()))
    }

    fn share(&self) -> Option<Result<Shared>> {
        Some(self.share())
    }
}
