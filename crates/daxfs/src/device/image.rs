//! Regions and images in a device's memory, and resolving files and tensors to places there.

#![forbid(unsafe_code)]

use dmabuf::FdKind;

#[cfg(feature = "cuda")]
use super::Placement;
use super::spans::Cut;
use super::{Buffer, Device, DeviceError, Place, Places, Route};
use crate::error::{Error, Result};
use crate::snapshot::{Content, PieceSource};
use crate::{File, Image, Region, Tensor};

/// How a region is to be given to a device, in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct MapOptions {
    route: Option<Route>,
    max_piece: Option<u64>,
}

impl MapOptions {
    /// The descriptor if the driver takes it, else the mapping; pieces as long as the driver allows.
    pub fn new() -> Self {
        Self::default()
    }

    /// This way only.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.route = Some(route);
        self
    }

    /// Pieces of at most this many bytes, rounded down to 2 MiB and raised to at least that: for a driver that
    /// promises more than it keeps.
    #[must_use]
    pub fn max_piece(mut self, bytes: u64) -> Self {
        self.max_piece = Some(bytes.max(super::spans::PIECE_UNIT));
        self
    }

    /// Ways to try, in order.
    pub(super) fn routes(&self) -> &[Route] {
        match self.route {
            Some(Route::Descriptor) => &[Route::Descriptor],
            Some(Route::Mapping) => &[Route::Mapping],
            Some(Route::Copy) => &[Route::Copy],
            None => &[Route::Descriptor, Route::Mapping],
        }
    }

    /// The pieces of `total` bytes on a device whose buffers hold `limit`.
    pub(super) fn cut(&self, total: u64, limit: u64) -> Option<Cut> {
        Cut::new(total, self.max_piece.map_or(limit, |bytes| bytes.min(limit)))
    }
}

/// The memory of a region as buffers of a device. It holds the region and the device.
#[derive(Clone, Debug)]
pub struct MappedRegion {
    device: Device,
    buffers: Vec<Buffer>,
    cut: Cut,
    route: Route,
    /// What is there of the region, if not all of it.
    #[cfg(feature = "cuda")]
    placement: Option<Placement>,
}

impl MappedRegion {
    /// `buffers` are the pieces of `cut`.
    pub(super) fn new(device: Device, buffers: Vec<Buffer>, cut: Cut, route: Route) -> Self {
        Self {
            device,
            buffers,
            cut,
            route,
            #[cfg(feature = "cuda")]
            placement: None,
        }
    }

    /// The same, of a copy of what a placement has; there is one buffer.
    #[cfg(feature = "cuda")]
    pub(super) fn of(self, placement: Placement) -> Self {
        Self { placement: Some(placement), ..self }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The pieces, in order. All but the last are equally long.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// What is there of the region, if it was copied by a plan.
    #[cfg(feature = "cuda")]
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// How the memory got to the device.
    pub fn route(&self) -> Route {
        self.route
    }

    /// Bytes that can be reached: those of a placement, where there is one, as they are packed.
    pub fn len(&self) -> u64 {
        self.cut.total
    }

    /// Never true: a region without bytes is not mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places of a range of the region, in order; one without bytes for an empty range.
    ///
    /// # Errors
    /// [`Error::Memory`] when the range is outside of what was mapped, and [`DeviceError::NotPlaced`] when a placement
    /// has none of it, or not all.
    pub fn range(&self, offset: u64, len: u64) -> Result<Vec<Place>> {
        self.places(offset, len, 0)
    }

    fn places(&self, offset: u64, len: u64, mut start: u64) -> Result<Vec<Place>> {
        #[cfg(feature = "cuda")]
        if let Some(placement) = &self.placement {
            let at = if len == 0 { Some(0) } else { placement.find(offset, len) };
            let what = format!("bytes {offset:#x}..{:#x} of the image", offset.saturating_add(len));
            let at = at.ok_or_else(|| not_placed(what, placement, "a part of the image"))?;
            return Ok(vec![self.packed(at, len)?]);
        }
        let outside = || dmabuf::Error::OutOfBounds { offset, len, bound: self.len() };
        let spans = self.cut.spans(offset, len).ok_or_else(outside)?;
        let mut places = Vec::with_capacity(spans.len());
        for span in spans {
            let buffer = self.buffers.get(span.piece).ok_or_else(outside)?;
            places.push(Place::new(buffer.clone(), span.offset, span.len, start));
            start += span.len;
        }
        Ok(places)
    }
}

#[cfg(feature = "cuda")]
impl MappedRegion {
    /// The place of `len` bytes at `at` of the one buffer.
    pub(super) fn packed(&self, at: u64, len: u64) -> Result<Place> {
        let outside = || dmabuf::Error::OutOfBounds { offset: at, len, bound: self.len() };
        let buffer =
            self.buffers.first().filter(|_| at.checked_add(len).is_some_and(|end| end <= self.len()));
        Ok(Place::new(buffer.ok_or_else(outside)?.clone(), at, len, 0))
    }
}

/// Something is not among what a placement holds, which is `has` of it.
#[cfg(feature = "cuda")]
pub(super) fn not_placed(what: String, placement: &Placement, has: &'static str) -> DeviceError {
    DeviceError::NotPlaced { what, rank: placement.rank(), has }
}

impl Device {
    /// Gives the first `len` bytes of a region to the device, without a copy. For images there is [`Image::map`].
    ///
    /// The descriptor is duplicated: the region's own stays as it is.
    ///
    /// # Errors
    /// [`DeviceError::NotImportable`] says for each route why it does not do; [`Error::Memory`] when the region is
    /// shorter than `len`, or `len` is 0.
    pub fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        if len == 0 || len > region.len() {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len, bound: region.len() }.into());
        }
        match self {
            #[cfg(feature = "vulkan")]
            Self::Vulkan(device) => {
                let (buffers, cut, route) = device.import(region, len, options)?;
                let buffers = buffers.into_iter().map(Buffer::Vulkan).collect();
                Ok(MappedRegion::new(self.clone(), buffers, cut, route))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.map(region, len, options),
        }
    }
}

/// An image in the memory of a device. Cloning is cheap enough; everything is shared.
#[derive(Clone, Debug)]
pub struct MappedImage {
    image: Image,
    memory: MappedRegion,
    backing: Option<MappedRegion>,
}

impl Image {
    /// Gives the image's memory to a device, without a copy, and its backing file's if it has one.
    ///
    /// # Errors
    /// As for [`Device::map`].
    pub fn map(&self, device: &Device) -> Result<MappedImage> {
        self.map_with(device, &MapOptions::new())
    }

    /// Like [`Image::map`], with options.
    ///
    /// # Errors
    /// As for [`Device::map`] and [`Image::check_files`].
    pub fn map_with(&self, device: &Device, options: &MapOptions) -> Result<MappedImage> {
        self.check_files()?;
        // A device such as /dev/dax0.0 may be far longer than its image; pages beyond it are not the device's business.
        let memory = device.map(self.region(), self.superblock().total_size, options)?;
        let backing = self.backing().filter(|region| !region.is_empty());
        let backing = backing.map(|region| device.map(region, region.len(), options)).transpose()?;
        Ok(MappedImage { image: self.clone(), memory, backing })
    }
}

impl MappedImage {
    #[cfg(feature = "cuda")]
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
    /// [`Error::NoContents`], and [`DeviceError::NotPlaced`] when there is a placement that does not hold all of it.
    pub fn file(&self, file: &File) -> Result<Places> {
        self.file_range(file, 0, file.len())
    }

    /// Where a part of a file lies; `offset` and `len` are bytes in the file.
    ///
    /// # Errors
    /// As for [`MappedImage::file`], and [`Error::OutsideFile`].
    pub fn file_range(&self, file: &File, offset: u64, len: u64) -> Result<Places> {
        let path = file.path();
        if !file.image().is_same(&self.image) {
            return Err(DeviceError::OtherImage { path }.into());
        }
        let end =
            offset.checked_add(len).filter(|&end| end <= file.len()).ok_or_else(|| Error::OutsideFile {
                path: path.clone(),
                range: offset..offset.saturating_add(len),
                len: file.len(),
            })?;
        let places = match file.entry().content() {
            Content::Image(range) => self
                .memory
                .range(range.start + offset, len)
                .map_err(|error| named(error, || String::from_utf8_lossy(&path).into_owned()))?,
            Content::Backing(range) => self.backing_memory(&path)?.range(range.start + offset, len)?,
            Content::Elsewhere(why) => return Err(Error::NoContents { path, why }),
            Content::Pieces(pieces) => {
                let mut places = Vec::new();
                let first = pieces.partition_point(|piece| piece.start + piece.len <= offset);
                for piece in pieces.iter().skip(first).take_while(|piece| piece.start < end) {
                    let from = offset.max(piece.start);
                    let (skip, len) = (from - piece.start, end.min(piece.start + piece.len) - from);
                    places.extend(match piece.source {
                        PieceSource::Image(at) => self.memory.places(at + skip, len, from - offset)?,
                        PieceSource::Backing(at) => {
                            self.backing_memory(&path)?.places(at + skip, len, from - offset)?
                        }
                        PieceSource::Zeros => return Err(DeviceError::Hole { path, start: from }.into()),
                    });
                }
                if places.is_empty() { self.memory.range(0, 0)? } else { places }
            }
            _ => self.memory.range(0, 0)?,
        };
        Ok(Places::new(places, path))
    }

    /// Where the data of a tensor lies.
    ///
    /// # Errors
    /// As for [`MappedImage::file`], and [`DeviceError::NotPlaced`] when there is a placement that does not hold the
    /// tensor, or only a part of it (`MappedImage::part`).
    pub fn tensor(&self, tensor: &Tensor) -> Result<Places> {
        #[cfg(feature = "cuda")]
        if let Some(placement) = self.placement() {
            self.check_whole(placement, tensor)?;
        }
        self.file_range(tensor.file(), tensor.offset(), tensor.nbytes())
    }

    fn backing_memory(&self, path: &[u8]) -> Result<&MappedRegion> {
        let why = "in a backing file that was not given";
        self.backing.as_ref().ok_or_else(|| Error::NoContents { path: path.to_vec(), why })
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

/// What the memory is, for messages.
pub(super) fn describe(region: &Region) -> String {
    let len = region.len();
    match region.info() {
        None => format!("{len} bytes of this process"),
        Some(info) => match &info.kind {
            FdKind::Memfd { .. } => format!("a memfd of {len} bytes ({})", region.provenance()),
            FdKind::DmaBuf { exporter, .. } => format!("a dma-buf of {len} bytes ({exporter})"),
            FdKind::DevDax { .. } => format!("a devdax device of {len} bytes"),
            FdKind::File => format!("a file of {len} bytes"),
            _ => format!("memory of {len} bytes"),
        },
    }
}
