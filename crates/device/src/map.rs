//! Regions in a device's memory.

#![forbid(unsafe_code)]

use daxfs::Region;

use crate::spans::{Cut, PIECE_UNIT};
use crate::{Buffer, Device, DeviceError, Place, Placement, Result, Route};

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
        self.max_piece = Some(bytes.max(PIECE_UNIT));
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
    placement: Option<Placement>,
}

impl MappedRegion {
    /// `buffers` are the pieces of `cut`.
    pub(super) fn new(device: Device, buffers: Vec<Buffer>, cut: Cut, route: Route) -> Self {
        Self { device, buffers, cut, route, placement: None }
    }

    /// The same, of a copy of what a placement has; there is one buffer.
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
    /// [`daxfs::Error::Memory`] when the range is outside of what was mapped, and [`DeviceError::NotPlaced`] when a
    /// placement has none of it, or not all.
    pub fn range(&self, offset: u64, len: u64) -> Result<Vec<Place>> {
        self.places(offset, len, 0)
    }

    pub(super) fn places(&self, offset: u64, len: u64, mut start: u64) -> Result<Vec<Place>> {
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
pub(super) fn not_placed(what: String, placement: &Placement, has: &'static str) -> DeviceError {
    DeviceError::NotPlaced { what, rank: placement.rank(), has }
}

impl Device {
    /// Gives the first `len` bytes of a region to the device, without a copy. For images there is
    /// [`ImageExt::map`](crate::ImageExt::map).
    ///
    /// The descriptor is duplicated: the region's own stays as it is.
    ///
    /// # Errors
    /// [`DeviceError::NotImportable`] says for each route why it does not do; [`daxfs::Error::Memory`] when the region
    /// is shorter than `len`, or `len` is 0.
    pub fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        if len == 0 || len > region.len() {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len, bound: region.len() }.into());
        }
        self.backend().map(region, len, options)
    }
}

/// What the memory is, for messages.
pub(super) fn describe(region: &Region) -> String {
    let len = region.len();
    match region.info() {
        None => format!("{len} bytes of this process"),
        Some(info) => match info.kind.exporter() {
            Some(exporter) => format!("a {} of {len} bytes ({exporter})", info.kind),
            None => format!("a {} of {len} bytes ({})", info.kind, region.provenance()),
        },
    }
}
