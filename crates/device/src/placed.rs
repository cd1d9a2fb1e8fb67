//! Copies by a placement: what one rank holds of an image, in its device's memory.

#![forbid(unsafe_code)]

use daxfs::Tensor;
use daxfs::tensor::strides;

use crate::map::not_placed;
use crate::part::Part;
use crate::placement::{Assigned, PartLayout};
use crate::resident::{checked, kept};
use crate::{Device, DeviceError, MappedImage, Placement, Result, TensorSlice, UploadOptions};

impl Placement {
    /// What the rank holds, in the device's own memory, as one allocation. It is copied there, unless the image came
    /// from a holder that has such a copy on this device already ([`MappedImage::keep`]): that is mapped. See
    /// [`Image::to`](crate::ImageExt::to), which does so with the whole image.
    ///
    /// The result resolves the tensors and files that the rank holds; for all others it says so.
    ///
    /// # Errors
    /// As for [`Placement::to_with`].
    pub fn to(&self, device: &Device) -> Result<MappedImage> {
        self.to_with(device, &UploadOptions::new())
    }

    /// Like [`Placement::to`], with options.
    ///
    /// # Errors
    /// As for [`Image::to_with`](crate::ImageExt::to_with), and [`DeviceError::NotPlaced`]
    /// when the rank holds nothing.
    pub fn to_with(&self, device: &Device, options: &UploadOptions) -> Result<MappedImage> {
        self.image().check_files()?;
        let image = self.image();
        self.check_not_empty()?;
        if let Some(kept) = kept(device, image, Some(self), options)? {
            return Ok(kept);
        }
        let memory = device.upload(image.region(), self.segments(), options)?.of(self.clone());
        checked(MappedImage::new(image.clone(), memory, None), options)
    }

    /// No memory is made without bytes.
    pub(super) fn check_not_empty(&self) -> Result<()> {
        match self.is_empty() {
            true => Err(not_placed("the image".into(), self, "nothing of it").into()),
            false => Ok(()),
        }
    }
}

impl MappedImage {
    /// What is there of the image, if it was copied by a plan.
    pub fn placement(&self) -> Option<&Placement> {
        self.memory().placement()
    }

    /// What is there of a tensor: the part that the rank of a placement has, with its place in the whole, or else all
    /// of it. Parts that were gathered are contiguous.
    ///
    /// # Errors
    /// [`DeviceError::NotPlaced`] when there is a placement that does not hold the
    /// tensor, and as for [`MappedImage::slice`].
    pub fn part(&self, tensor: &Tensor) -> Result<TensorSlice> {
        // A gathered part is found by its bytes alone, which another image may have, too.
        if !tensor.file().image().ptr_eq(self.image()) {
            return Err(DeviceError::OtherImage { path: tensor.file().path() }.into());
        }
        let assigned =
            self.placement().map_or(Ok(Assigned::Whole), |placement| placement.assigned(tensor))?;
        match (assigned, self.placement()) {
            (Assigned::Part { dim, range, layout: PartLayout::Gathered }, Some(placement)) => {
                let nothing = || not_placed(named(tensor), placement, "nothing of it");
                let part = Part::of(tensor, dim, &range).map_err(|_| nothing())?;
                let at = placement.find_gathered(tensor, &part).ok_or_else(nothing)?;
                let strides = strides(&part.shape).ok_or_else(nothing)?;
                let place = self.memory().packed(at, part.run * part.count)?;
                Ok(TensorSlice::new(place, tensor.dtype(), part.shape, strides))
            }
            (Assigned::Part { dim, range, .. }, _) => self.slice(tensor, dim, range),
            _ => self.whole(tensor),
        }
    }

    /// Refuses a tensor that the placement does not hold as a whole.
    pub(super) fn check_whole(&self, placement: &Placement, tensor: &Tensor) -> Result<()> {
        let has = match placement.assigned(tensor)? {
            Assigned::Whole | Assigned::Part { layout: PartLayout::Strided, .. } => return Ok(()),
            Assigned::Nothing => "nothing of it",
            Assigned::Part { .. } => "a part of it",
        };
        Err(not_placed(named(tensor), placement, has).into())
    }
}

/// The tensor, for messages.
fn named(tensor: &Tensor) -> String {
    format!("tensor {:?}", tensor.name())
}
