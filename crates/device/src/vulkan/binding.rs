//! How a place is bound as a storage buffer.

#![forbid(unsafe_code)]

use ash::vk;

use crate::Result;
use crate::{DeviceError, Place};

/// A storage-buffer binding that holds a place.
///
/// Devices bind storage buffers at multiples of [`Limits::storage_alignment`](super::Limits::storage_alignment), and
/// tensors lie where the image has them. So the binding begins at the multiple below the place, and the shader adds
/// [`delta`](Self::delta) bytes. The packer puts tensors on 256 bytes unless told otherwise, which is the largest
/// alignment that Vulkan allows a device to ask for: the delta is 0 then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding {
    /// The buffer.
    pub buffer: vk::Buffer,
    /// First bound byte, from the start of the buffer: a multiple of the device's alignment.
    pub offset: u64,
    /// Bytes bound: to the end of the place, rounded up to whole 32-bit words as far as the buffer goes.
    pub range: u64,
    /// Bytes from the first bound byte to the place's first.
    pub delta: u64,
}

impl Binding {
    /// The binding of a place in a Vulkan buffer; `None` for other devices.
    ///
    /// # Errors
    /// [`DeviceError::TooLongToBind`] when the device cannot bind so many bytes; [`Place::split`] the place, or use
    /// its address.
    pub fn of(place: &Place) -> Result<Option<Self>> {
        let Some(buffer) = place.buffer().as_vulkan() else { return Ok(None) };
        let limits = buffer.device().limits();
        let (delta, range) =
            window(place.offset(), place.len(), buffer.len(), limits.storage_alignment).ok_or_else(|| {
                dmabuf::Error::OutOfBounds { offset: place.offset(), len: place.len(), bound: buffer.len() }
            })?;
        if range > limits.max_storage_range {
            return Err(DeviceError::TooLongToBind {
                device: buffer.device().name().into(),
                len: range,
                bound: limits.max_storage_range,
            }
            .into());
        }
        Ok(Some(Self { buffer: buffer.handle(), offset: place.offset() - delta, range, delta }))
    }

    /// For a descriptor.
    pub fn info(&self) -> vk::DescriptorBufferInfo {
        vk::DescriptorBufferInfo::default().buffer(self.buffer).offset(self.offset).range(self.range)
    }
}

/// Bytes before the place, and bytes to bind. A binding must not be empty, so a place without bytes at the end of the
/// buffer is bound with the bytes before it.
fn window(offset: u64, len: u64, buffer: u64, alignment: u64) -> Option<(u64, u64)> {
    let end = offset.checked_add(len).filter(|&end| end <= buffer)?;
    let mut start = offset - offset % alignment;
    if start == buffer {
        start = start.checked_sub(alignment)?;
    }
    let range = (end - start).max(1).next_multiple_of(4).min(buffer - start);
    Some((offset - start, range))
}

#[cfg(test)]
mod tests {
    use super::window;

    #[test]
    fn the_binding_begins_at_the_multiple_below() {
        assert_eq!(window(0, 100, 4096, 64), Some((0, 100)));
        assert_eq!(window(130, 10, 4096, 64), Some((2, 12)));
        assert_eq!(window(131, 10, 4096, 64), Some((3, 16)), "whole words");
        assert_eq!(window(4095, 1, 4096, 256), Some((255, 256)));
        assert_eq!(window(64, 37, 101, 64), Some((0, 37)), "not beyond the buffer");
        assert_eq!(window(64, 0, 4096, 64), Some((0, 4)), "never empty");
        assert_eq!(window(4096, 0, 4096, 64), Some((64, 64)));
        assert_eq!(window(4096, 1, 4096, 64), None);
        assert_eq!(window(u64::MAX, 2, 4096, 64), None);
    }
}
