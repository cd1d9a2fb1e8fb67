//! Copies of whole images in a device's own memory, and leaving copies to a holder.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use super::cuda::{self, UploadOptions};
use super::segments::Segments;
use super::{Buffer, Device, DeviceError, MappedImage, Placement};
use crate::error::{Error, Result};
use crate::holder::message::DeviceCopy;
use crate::{Image, Provenance, Region};

impl Image {
    /// The image in the device's own memory, and its backing file if it has one. It is copied there, unless it came
    /// from a holder that has a copy on this device already ([`MappedImage::keep`]): that is mapped, which takes
    /// milliseconds whatever the size; [`MappedRegion::route`](super::MappedRegion::route) tells which. Who has opened
    /// the image for one content ([`OpenOptions::expect`](crate::OpenOptions::expect)) gets it after it was compared
    /// with that ([`MappedImage::verify`]). The result resolves files and tensors as [`Image::map`]'s does, each to one
    /// place.
    ///
    /// # Errors
    /// As for [`Image::to_with`].
    pub fn to(&self, device: &Device) -> Result<MappedImage> {
        self.to_with(device, &UploadOptions::new())
    }

    /// Like [`Image::to`], with options, one of which is that the copy is in host memory ([`UploadOptions::in_host`]).
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::OutOfHostMemory`], with nothing left behind;
    /// [`Error::BeingReplaced`] when another image took this one's place while it was copied;
    /// [`DeviceError::Mismatch`] and [`DeviceError::Cancelled`] if the options asked for it;
    /// [`DeviceError::NotResident`] for a Vulkan device, [`DeviceError::Unavailable`] where the driver allocates no
    /// such memory, [`DeviceError::Driver`]; as for [`Image::check_files`].
    pub fn to_with(&self, device: &Device, options: &UploadOptions) -> Result<MappedImage> {
        self.check_files()?;
        let device = resident(device)?;
        if let Some(kept) = kept(device, self, None, options)? {
            return Ok(kept);
        }
        let upload = |region: &Region, len| device.upload(region, &Segments::whole(len), options);
        let memory = upload(self.region(), self.superblock().total_size)?;
        let backing = self.backing().filter(|region| !region.is_empty());
        let backing = backing.map(|region| upload(region, region.len())).transpose()?;
        checked(MappedImage::new(self.clone(), memory, backing), options)
    }
}

/// The copy that the image's holder has, if it will do. Nobody has checked what others made: it is compared with the
/// image if that is asked for, or one content is.
pub(super) fn kept(
    device: &cuda::Device,
    image: &Image,
    placement: Option<&Placement>,
    options: &UploadOptions,
) -> Result<Option<MappedImage>> {
    let kept =
        if options.takes_others() { device.kept(image, placement, options.is_in_host()) } else { None };
    let Some(kept) = kept else { return Ok(None) };
    if !options.verifies() && !image.is_expected() {
        return Ok(Some(kept));
    }
    match kept.verify_with(|done, all| options.advance(done, all)) {
        Ok(_) => Ok(Some(kept)),
        Err(error @ Error::Device(DeviceError::Cancelled { .. })) => Err(error),
        Err(_) => Ok(None),
    }
}

/// A new copy, compared with the image if that is asked for.
pub(super) fn checked(copy: MappedImage, options: &UploadOptions) -> Result<MappedImage> {
    let verified = match options.verifies() {
        true => copy.verify_with(|done, all| options.advance(done, all)).map(drop),
        false => Ok(()),
    };
    // A copy that is a mixture is not found to be wrong, but to be none.
    if !copy.image().is_there()? {
        return Err(Error::BeingReplaced { generation: copy.image().generation() });
    }
    verified.map(|()| copy)
}

/// The device, if it has memory of its own for images.
pub(super) fn resident(device: &Device) -> Result<&cuda::Device> {
    let advice = "map it, which copies nothing";
    let refuse = || DeviceError::NotResident { device: device.name().into(), advice };
    Ok(device.as_cuda().ok_or_else(refuse)?)
}

impl MappedImage {
    /// Gives the image's holder this copy to keep: it holds the descriptor, and nothing of CUDA. From then on
    /// [`Image::to`], or [`Placement::to`] by a placement that is the same, maps it in every process that attaches to
    /// the image, also when this one has ended. It goes when the holder drops or swaps the image, or ends without
    /// another one that takes over; those who have mapped it keep it. Of copies in host memory it has one for all
    /// devices.
    ///
    /// # Errors
    /// [`DeviceError::NotKept`] for an image that came from no holder, lies in memory that could change, or is split,
    /// for a copy that kernels may write to, and on a Vulkan device; [`Error::Holder`] when the holder does not let
    /// this user load images, or the name means another image by now.
    pub fn keep(&self) -> Result<()> {
        let refuse = |why| DeviceError::NotKept { device: self.memory().device().name().into(), why };
        let attachment = self.image().region().attachment();
        let attachment = attachment.ok_or_else(|| refuse("the image came from no holder"))?;
        if self.backing().is_some() {
            return Err(refuse("its files lie in two memories").into());
        }
        let buffer = self.buffers().first().and_then(Buffer::as_cuda);
        let buffer = buffer.ok_or_else(|| refuse("only memory of CUDA devices is kept"))?;
        if self.image().region().provenance() != Provenance::Sealed {
            return Err(refuse("the image's own memory could change, and the copy would not").into());
        }
        if buffer.is_writable() {
            return Err(refuse("kernels may have written to it").into());
        }
        let shared = buffer.share()?;
        let placement = self.placement().map_or(DeviceCopy::WHOLE, Placement::identity);
        Ok(attachment
            .keep(shared.fd.as_fd(), DeviceCopy { device: shared.uuid, size: shared.size, placement })?)
    }
}
