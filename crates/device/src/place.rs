//! Where bytes lie in a device's memory.

#![forbid(unsafe_code)]

use super::{Buffer, DeviceError};
use crate::Result;

/// A range of a buffer, and what it is a part of. It holds the buffer.
#[derive(Clone, Debug)]
pub struct Place {
    buffer: Buffer,
    offset: u64,
    len: u64,
    start: u64,
}

impl Place {
    /// `offset` and `len` lie in the buffer; `start` is where the bytes are in what was asked for.
    pub(super) fn new(buffer: Buffer, offset: u64, len: u64, start: u64) -> Self {
        Self { buffer, offset, len, start }
    }

    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First byte, from the start of the buffer, at whatever alignment the image gives it: for a storage buffer's
    /// offset see `vulkan::Binding`.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a place without bytes, as an empty file has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte, from the start of the file, tensor or range that was asked for: 0 unless there are several places.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The device's address of the first byte, where the device has addresses, at whatever alignment the image gives
    /// it; valid while the place lives.
    pub fn address(&self) -> Option<u64> {
        // No overflow: the buffer's addresses are valid to its end.
        self.buffer.address().map(|address| address + self.offset)
    }

    /// The same bytes as places of at most `len` bytes each, in order; at least one.
    #[must_use]
    pub fn split(&self, len: u64) -> Vec<Place> {
        let len = len.max(1);
        let mut parts = Vec::new();
        let mut done = 0;
        loop {
            let part = len.min(self.len - done);
            parts.push(Self::new(self.buffer.clone(), self.offset + done, part, self.start + done));
            done += part;
            if done >= self.len {
                return parts;
            }
        }
    }
}

/// The places of a file or tensor, in order; together they hold all of its bytes once.
#[derive(Clone, Debug)]
pub struct Places {
    places: Vec<Place>,
    /// For messages.
    path: Vec<u8>,
}

impl Places {
    pub(super) fn new(places: Vec<Place>, path: Vec<u8>) -> Self {
        Self { places, path }
    }

    /// The one place that holds everything.
    ///
    /// # Errors
    /// [`DeviceError::NotOnePlace`] when the bytes lie in several: the file crosses from one piece of the region
    /// into the next, or was changed after packing.
    pub fn one(self) -> Result<Place> {
        let (count, path) = (self.places.len(), self.path);
        let mut places = self.places.into_iter();
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            _ => Err(DeviceError::NotOnePlace { path, places: count }.into()),
        }
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Place] {
        &self.places
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Never true: even an empty file has one place.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl IntoIterator for Places {
    type Item = Place;
    type IntoIter = std::vec::IntoIter<Place>;

    fn into_iter(self) -> Self::IntoIter {
        self.places.into_iter()
    }
}

impl<'a> IntoIterator for &'a Places {
    type Item = &'a Place;
    type IntoIter = std::slice::Iter<'a, Place>;

    fn into_iter(self) -> Self::IntoIter {
        self.places.iter()
    }
}
