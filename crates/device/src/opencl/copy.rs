//! Copies in a device's own memory.

#![allow(unsafe_code, reason = "makes a buffer and writes to it")]

use daxfs::Region;
use opencl3::memory::{Buffer as Memory, CL_MEM_READ_ONLY, CL_MEM_READ_WRITE};
use opencl3::types::CL_BLOCKING;

use super::buffer::Buffer;
use super::device::Device;
use super::failed;
use crate::copy::segments::Segments;
use crate::{DeviceError, Result, UploadOptions};

/// Bytes that are read or written at a time.
const PIECE: usize = 4 << 20;

impl Device {
    /// Copies these segments of a region, not more bytes than a buffer may have, into the device's memory.
    pub(super) fn copy(
        &self,
        region: &Region,
        segments: &Segments,
        options: &UploadOptions,
    ) -> Result<Buffer> {
        let len = segments.len();
        let source_len = segments.source_len();
        if len == 0 || source_len > region.len() {
            return Err(dmabuf::Error::OutOfBounds { offset: 0, len: source_len, bound: region.len() }.into());
        }
        let unavailable = |what: String, needs: String| DeviceError::Unavailable { what, needs };
        if options.is_in_host() {
            let needs = "a device of another family; image.map reads the host's memory in place".into();
            return Err(unavailable(format!("a copy in host memory for {}", self.name()), needs).into());
        }
        if len > self.0.max_buffer {
            let needs = format!("an image, or a rank's part of one, of at most {} bytes", self.0.max_buffer);
            return Err(unavailable(format!("one buffer of {len} bytes on {}", self.name()), needs).into());
        }
        let failed = |call, code| failed(self.name(), call, code);
        let size = usize::try_from(len).map_err(|_| dmabuf::Error::OutOfBounds {
            offset: 0,
            len,
            bound: self.0.max_buffer,
        })?;
        // What a kernel does that writes to the first kind is undefined, and a fault on devices that can tell.
        let flags = if options.is_writable() { CL_MEM_READ_WRITE } else { CL_MEM_READ_ONLY };
        // SAFETY: no host pointer is given.
        let memory = unsafe { Memory::<u8>::create(&self.0.context, flags, size, std::ptr::null_mut()) };
        let mut memory = memory.map_err(|code| failed("clCreateBuffer", code))?;
        let mut piece = vec![0; size.min(PIECE)];
        for start in (0..size).step_by(PIECE) {
            let bytes = &mut piece[..PIECE.min(size - start)];
            segments.read_at(region, start as u64, bytes)?;
            // SAFETY: the buffer has these bytes, and the call blocks until they are written.
            unsafe { self.0.queue.enqueue_write_buffer(&mut memory, CL_BLOCKING, start, bytes, &[]) }
                .map_err(|code| failed("clEnqueueWriteBuffer", code))?;
            if !options.advance((start + bytes.len()) as u64, len) {
                return Err(DeviceError::Cancelled { device: self.name().into() }.into());
            }
        }
        Ok(Buffer::copied(self, memory, len, options.is_writable()))
    }
}
