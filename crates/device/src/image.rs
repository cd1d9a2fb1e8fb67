//! Images in a device's memory, and resolving files and tensors to places there.

#![forbid(unsafe_code)]

use daxfs::{File, Image, Piece, PieceSource, Tensor};

use crate::{
    Buffer, Device, DeviceError, Error, MapOptions, MappedRegion, Place, Places, Result, UploadOptions,
    resident,
};

/// An image in the memory of a device. Cloning is cheap enough; everything is shared.
#[derive(Clone, Debug)]
pub struct MappedImage {
    image: Image,
    memory: MappedRegion,
    backing: Option<MappedRegion>,
}

/// What a device does with an image.
pub trait ImageExt {
    /// Gives the image's memory to a device, without a copy, and its backing file's if it has one.
    ///
    /// # Errors
    /// As for [`Device::map`].
    fn map(&self, device: &Device) -> Result<MappedImage> {
        self.map_with(device, &MapOptions::new())
    }

    /// Like [`ImageExt::map`], with options.
    ///
    /// # Errors
    /// As for [`Device::map`] and [`Image::check_files`].
    fn map_with(&self, device: &Device, options: &MapOptions) -> Result<MappedImage>;

    /// The image in the device's own memory, and its backing file if it has one. It is copied there, unless it came
    /// from a holder that has a copy on this device already ([`MappedImage::keep`]): that is mapped, which takes
    /// milliseconds whatever the size; [`MappedRegion::route`] tells which. Who has opened the image for one content
    /// ([`OpenOptions::expect`](daxfs::OpenOptions::expect)) gets it after it was compared with that
    /// ([`MappedImage::verify`]). The result resolves files and tensors as [`ImageExt::map`]'s does, each to one place.
    ///
    /// # Errors
    /// As for [`ImageExt::to_with`].
    fn to(&self, device: &Device) -> Result<MappedImage> {
        self.to_with(device, &UploadOptions::new())
    }

    /// Like [`ImageExt::to`], with options, one of which is that the copy is in host memory
    /// ([`UploadOptions::in_host`]).
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::OutOfHostMemory`], with nothing left behind;
    /// [`daxfs::Error::BeingReplaced`] when another image took this one's place while it was copied;
    /// [`DeviceError::Mismatch`] and [`DeviceError::Cancelled`] if the options asked for it;
    /// [`DeviceError::NotResident`] for a device without memory of its own for images, [`DeviceError::Unavailable`]
    /// where the driver allocates no such memory, [`DeviceError::Driver`]; as for [`Image::check_files`].
    fn to_with(&self, device: &Device, options: &UploadOptions) -> Result<MappedImage>;
}

impl ImageExt for Image {
    fn map_with(&self, device: &Device, options: &MapOptions) -> Result<MappedImage> {
        self.check_files()?;
        // A device such as /dev/dax0.0 may be far longer than its image; pages beyond it are not the device's business.
        let memory = device.map(self.region(), self.superblock().total_size, options)?;
        let backing = self.backing().filter(|region| !region.is_empty());
        let backing = backing.map(|region| device.map(region, region.len(), options)).transpose()?;
        Ok(MappedImage { image: self.clone(), memory, backing })
    }

    fn to_with(&self, device: &Device, options: &UploadOptions) -> Result<MappedImage> {
        resident::copy(self, device, options)
    }
}

impl MappedImage {
    pub(super) fn new(image: Image, memory: MappedRegion, backing: Option<MappedRegion>) -> Self {
        Self { image, memory, backing }
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The image's own memory.
    pub fn memory(&self) -> &MappedRegion {
        &self.memory
    }

    /// The backing file's memory, for a split image.
    pub fn backing(&self) -> Option<&MappedRegion> {
        self.backing.as_ref()
    }

    /// The buffers of the image's own memory.
    pub fn buffers(&self) -> &[Buffer] {
        self.memory.buffers()
    }

    /// Where the contents of a file lie.
    ///
    /// # Errors
    /// [`DeviceError::OtherImage`], [`DeviceError::Hole`] for a file that was changed after packing and has one,
    /// [`daxfs::Error::NoContents`], and [`DeviceError::NotPlaced`] when there is a placement that does not hold all
    /// of it.
    pub fn file(&self, file: &File) -> Result<Places> {
        self.file_range(file, 0, file.len())
    }

    /// Where a part of a file lies; `offset` and `len` are bytes in the file.
    ///
    /// # Errors
    /// As for [`MappedImage::file`], and [`daxfs::Error::OutsideFile`].
    pub fn file_range(&self, file: &File, offset: u64, len: u64) -> Result<Places> {
        let path = file.path();
        if !file.image().ptr_eq(&self.image) {
            return Err(DeviceError::OtherImage { path }.into());
        }
        let end = offset.checked_add(len).filter(|&end| end <= file.len()).ok_or_else(|| {
            daxfs::Error::OutsideFile {
                path: path.clone(),
                range: offset..offset.saturating_add(len),
                len: file.len(),
            }
        })?;
        let named = |error| named(error, || String::from_utf8_lossy(&path).into_owned());
        let pieces = file.pieces()?;
        let mut places = Vec::new();
        let first = pieces.partition_point(|piece| piece.start + piece.len <= offset);
        for piece in pieces.iter().skip(first).take_while(|piece| piece.start < end) {
            let from = offset.max(piece.start);
            let (skip, len) = (from - piece.start, end.min(piece.start + piece.len) - from);
            places.extend(match piece.source {
                PieceSource::Image(at) => self.memory.places(at + skip, len, from - offset).map_err(named)?,
                PieceSource::Backing(at) => {
                    self.backing_memory(&path)?.places(at + skip, len, from - offset).map_err(named)?
                }
                _ => return Err(DeviceError::Hole { path, start: from }.into()),
            });
        }
        if places.is_empty() {
            places = self.empty(&pieces, offset)?;
        }
        Ok(Places::new(places, path))
    }

    /// Where the data of a tensor lies.
    ///
    /// # Errors
    /// As for [`MappedImage::file`], and [`DeviceError::NotPlaced`] when there is a placement that does not hold the
    /// tensor, or only a part of it ([`MappedImage::part`]).
    pub fn tensor(&self, tensor: &Tensor) -> Result<Places> {
        if let Some(placement) = self.placement() {
            self.check_whole(placement, tensor)?;
        }
        self.file_range(tensor.file(), tensor.offset(), tensor.nbytes())
    }

    /// The place without bytes at `offset` of a file that consists of `pieces`.
    fn empty(&self, pieces: &[Piece], offset: u64) -> Result<Vec<Place>> {
        match pieces
            .iter()
            .rev()
            .find(|piece| piece.start <= offset)
            .map(|piece| (piece.source, offset - piece.start))
        {
            Some((PieceSource::Image(at), skip)) => self.memory.range(at + skip, 0),
            Some((PieceSource::Backing(at), skip)) => match &self.backing {
                Some(backing) => backing.range(at + skip, 0),
                None => self.memory.range(0, 0),
            },
            _ => self.memory.range(0, 0),
        }
    }

    fn backing_memory(&self, path: &[u8]) -> Result<&MappedRegion> {
        let why = "in a backing file that was not given";
        self.backing.as_ref().ok_or_else(|| daxfs::Error::NoContents { path: path.to_vec(), why }.into())
    }
}

/// The error with a name, where it speaks of a range of the image.
pub(super) fn named(error: Error, what: impl FnOnce() -> String) -> Error {
    match error {
        Error::Device(DeviceError::NotPlaced { rank, has, .. }) => {
            DeviceError::NotPlaced { what: what(), rank, has }.into()
        }
        error => error,
    }
}
