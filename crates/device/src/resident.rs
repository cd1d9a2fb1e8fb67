//! Copies of images in a device's own memory: made, taken over from others, and left to a holder.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use daxfs::{Image, Provenance, Region};
use daxfs_protocol::DeviceUuid;
use daxfs_protocol::message::DeviceCopy;

use crate::copy::segments::Segments;
use crate::spans::Cut;
use crate::{
    Buffer, Device, DeviceError, Error, MappedImage, MappedRegion, Placement, Result, Route, UploadOptions,
};

/// Memory of a device, or host memory for it, for another process: send the descriptor with the two numbers, which it
/// does not carry. [`Device::attach`] takes it there. Whoever has the descriptor keeps the memory, without a context,
/// and also when the process that filled it is gone.
#[derive(Debug)]
pub struct Shared {
    /// The memory. It is no dma-buf, and has no mmap(2).
    pub fd: OwnedFd,
    /// Bytes of the allocation.
    pub size: u64,
    /// The device that has it: [`Device::uuid`]; [`DeviceUuid::HOST`] for host memory, which every device of the machine reads.
    pub uuid: DeviceUuid,
}

/// The image in the device's own memory: see [`ImageExt::to_with`](crate::ImageExt::to_with).
pub(crate) fn copy(image: &Image, device: &Device, options: &UploadOptions) -> Result<MappedImage> {
    image.check_files()?;
    if let Some(kept) = kept(device, image, None, options)? {
        return Ok(kept);
    }
    let upload = |region: &Region, len| device.upload(region, &Segments::whole(len), options);
    let memory = upload(image.region(), image.superblock().total_size)?;
    let backing = image.backing().filter(|region| !region.is_empty());
    let backing = backing.map(|region| upload(region, region.len())).transpose()?;
    checked(MappedImage::new(image.clone(), memory, backing), options)
}

impl Device {
    /// Copies these segments of a region into the device's memory.
    pub(crate) fn upload(
        &self,
        region: &Region,
        segments: &Segments,
        options: &UploadOptions,
    ) -> Result<MappedRegion> {
        Ok(self.whole(self.backend().upload(region, segments, options)?, Route::Copy))
    }

    /// An image whose bytes another process put into the device's memory, or into host memory for a device of the
    /// machine: `shared` is what [`Buffer::share`] gave there, and `image` the same image, opened from the host, where
    /// its metadata is. Mapped for reading, host memory for the CPU, too. Nothing is compared: [`MappedImage::verify`]
    /// does that.
    ///
    /// # Errors
    /// [`DeviceError::OtherDevice`] for memory of another GPU, [`daxfs::Error::Memory`] when it is shorter than the
    /// image, [`DeviceError::Driver`] when the descriptor is none of the driver's or the size is not that of the
    /// memory, [`DeviceError::NotResident`] for a device whose memory is not shared, and [`DeviceError::Unavailable`]
    /// for a split image, and for host memory where the driver has none to allocate.
    pub fn attach(&self, image: &Image, shared: &Shared) -> Result<MappedImage> {
        if image.backing().is_some_and(|region| !region.is_empty()) {
            let what = "a split image, whose files lie in a second memory,".into();
            return Err(DeviceError::Unavailable { what, needs: "to be packed as one image".into() }.into());
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
        Ok(self.whole(self.backend().import(shared, len)?, Route::Descriptor))
    }

    /// One buffer, however long: the whole allocation is at one range of addresses.
    fn whole(&self, buffer: Buffer, route: Route) -> MappedRegion {
        let cut = Cut { total: buffer.len(), piece: buffer.len() };
        MappedRegion::new(self.clone(), vec![buffer], cut, route)
    }

    /// The copy that the image's holder has on this device, or in host memory: of the whole image, or by a placement.
    /// One that cannot be mapped, or lies elsewhere, does not count: the image can be copied.
    fn held(&self, image: &Image, placement: Option<&Placement>, in_host: bool) -> Option<MappedImage> {
        // The holder knows generations of names, not of what is written into memory that it has.
        if image.region().provenance() != Provenance::Sealed {
            return None;
        }
        let identity = placement.map_or(DeviceCopy::WHOLE, Placement::identity);
        let uuid = self.uuid()?;
        let uuid = if in_host { DeviceUuid::HOST } else { uuid };
        let (fd, size) = image.region().attachment()?.copy_on(uuid, identity).ok()??;
        let shared = Shared { fd, size, uuid };
        let held = match placement {
            Some(placement) => self.attach_placed(placement, &shared).ok(),
            None => self.attach(image, &shared).ok(),
        }?;
        // The holder believes whoever left it.
        held.buffers().iter().all(|buffer| buffer.is_resident() != in_host).then_some(held)
    }
}

/// The copy that the image's holder has, if it will do. Nobody has checked what others made: it is compared with the
/// image if that is asked for, or one content is.
pub(crate) fn kept(
    device: &Device,
    image: &Image,
    placement: Option<&Placement>,
    options: &UploadOptions,
) -> Result<Option<MappedImage>> {
    let kept =
        if options.takes_others() { device.held(image, placement, options.is_in_host()) } else { None };
    let Some(kept) = kept else { return Ok(None) };
    if !options.verifies() && !image.is_compared() {
        return Ok(Some(kept));
    }
    match kept.verify_with(|done, all| options.advance(done, all)) {
        Ok(_) => Ok(Some(kept)),
        Err(error @ Error::Device(DeviceError::Cancelled { .. })) => Err(error),
        Err(_) => Ok(None),
    }
}

/// A new copy, compared with the image if that is asked for.
pub(crate) fn checked(copy: MappedImage, options: &UploadOptions) -> Result<MappedImage> {
    let verified = match options.verifies() {
        true => copy.verify_with(|done, all| options.advance(done, all)).map(drop),
        false => Ok(()),
    };
    // A copy of two images at once is refused as such, not as one with wrong bytes.
    if !copy.image().is_in_place()? {
        return Err(daxfs::Error::BeingReplaced { generation: copy.image().generation() }.into());
    }
    verified.map(|()| copy)
}

impl MappedImage {
    /// As [`MappedImage::keep`], unless the copy is the one that the holder has; whether it was given.
    ///
    /// # Errors
    /// As for [`MappedImage::keep`].
    pub fn keep_if_new(&self) -> Result<bool> {
        if self.memory().route() != Route::Copy {
            return Ok(false);
        }
        self.keep()?;
        Ok(true)
    }

    /// Gives the image's holder this copy to keep: it holds the descriptor, and nothing of the driver's. From then on
    /// [`ImageExt::to`](crate::ImageExt::to), or [`Placement::to`] by a placement that is the same, maps it in every
    /// process that attaches to the image, also when this one has ended. It goes when the holder drops or swaps the
    /// image, or ends without another one that takes over; those who have mapped it keep it. Of copies in host memory
    /// it has one for all devices.
    ///
    /// # Errors
    /// [`DeviceError::NotKept`] for an image that came from no holder, lies in memory that could change, or is split,
    /// for a copy that kernels may write to, and on a device whose memory is not shared; [`daxfs::Error::Holder`] when
    /// the holder does not let this user load images, or the name means another image by now.
    pub fn keep(&self) -> Result<()> {
        let refuse = |why| DeviceError::NotKept { device: self.memory().device().name().into(), why };
        let attachment = self.image().region().attachment();
        let attachment = attachment.ok_or_else(|| refuse("the image came from no holder"))?;
        if self.backing().is_some() {
            return Err(refuse("its files lie in two memories").into());
        }
        let cannot = "the memory of this device is not shared";
        let buffer = self.buffers().first().ok_or_else(|| refuse(cannot))?;
        if self.image().region().provenance() != Provenance::Sealed {
            return Err(refuse("the image's own memory could change, and the copy would not").into());
        }
        if buffer.is_writable() {
            return Err(refuse("kernels may have written to it").into());
        }
        let shared = buffer.share().ok_or_else(|| refuse(cannot))??;
        let placement = self.placement().map_or(DeviceCopy::WHOLE, Placement::identity);
        let copy = DeviceCopy { device: shared.uuid, size: shared.size, placement };
        Ok(attachment.keep(shared.fd.as_fd(), copy).map_err(daxfs::Error::from)?)
    }
}
