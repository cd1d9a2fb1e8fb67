//! The image's own memory as buffers: by its descriptor, or in the pages that are mapped.

#![allow(unsafe_code, reason = "makes buffers over memory of others")]

use daxfs::{Provenance, Region};
use opencl3::memory::{Buffer as Memory, CL_MEM_HOST_READ_ONLY, CL_MEM_READ_ONLY, CL_MEM_USE_HOST_PTR};

use super::buffer::Buffer;
use super::device::Device;
use crate::map::describe;
use crate::spans::Cut;
use crate::{DeviceError, MapOptions, MappedRegion, Refusal, Result, Route};

/// Drivers that read pages in place want addresses of pages, and lengths of whole lines of a cache.
const UNIT: u64 = 4096;

impl Device {
    /// Imports the first `len` bytes of a region, which has as many and at least one.
    pub(super) fn import(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        let cut = options.cut(len, self.0.max_buffer).ok_or_else(|| DeviceError::Unavailable {
            what: format!("buffers of 2 MiB on {}", self.name()),
            needs: format!("a device whose buffers may be longer than {} bytes", self.0.max_buffer),
        })?;
        let mut refusals = Vec::new();
        for &route in options.routes() {
            let made = match route {
                Route::Descriptor => {
                    self.by_descriptor(region, len, cut.pieces().count()).map(|buffer| vec![buffer])
                }
                Route::Mapping => self.in_place(region, cut),
                Route::Copy => Err("mapping does not copy".into()),
            };
            let compared = made.and_then(|buffers| {
                let starts = cut.pieces().map(|(start, _)| start);
                buffers
                    .iter()
                    .zip(starts)
                    .try_for_each(|(buffer, start)| self.compare(buffer, region, start))?;
                Ok(buffers)
            });
            match compared {
                Ok(buffers) => {
                    let buffers = buffers.into_iter().map(crate::Buffer::from).collect();
                    return Ok(MappedRegion::new(self.clone().into(), buffers, cut, route));
                }
                Err(why) => refusals.push(Refusal { route, why }),
            }
        }
        let (device, memory) = (self.name().into(), describe(region));
        let advice = "copy the image to the device";
        Err(DeviceError::NotImportable { device, memory, refusals, advice }.into())
    }

    /// The pages that this process has mapped, in place.
    fn in_place(&self, region: &Region, cut: Cut) -> Result<Vec<Buffer>, String> {
        if !self.0.shares_memory {
            return Err("the device has memory of its own, and its driver may copy the pages there".into());
        }
        if region.is_writable() {
            return Err(
                "the mapping is a private copy-on-write one, of which the device would get copies".into()
            );
        }
        // A processor reads memory itself. Other drivers may keep what they have read, and nobody tells them of writes.
        if !self.0.is_processor && region.provenance() == Provenance::Shared {
            return Err("others can write to the memory, and the driver may keep what it has read: make a sealed copy".into());
        }
        let piece = |(start, len): (u64, u64)| {
            let view = region.view().get(start, len).map_err(|e| e.to_string())?;
            // What is mapped of a descriptor are whole pages, whose rest is zeros.
            let whole = match region.info() {
                Some(_) => len.next_multiple_of(UNIT),
                None => len,
            };
            let address = view.as_ptr();
            if !(address.addr() as u64).is_multiple_of(UNIT) || !whole.is_multiple_of(64) {
                return Err("it does not begin with a page, or ends inside a line of the cache".into());
            }
            let size = usize::try_from(whole).map_err(|e| e.to_string())?;
            let flags = CL_MEM_READ_ONLY | CL_MEM_HOST_READ_ONLY | CL_MEM_USE_HOST_PTR;
            // SAFETY: `size` bytes are mapped at the pointer as long as the region lives, which the buffer holds: `len` of
            // the region, and the rest of their last page. The flags say that neither kernels nor calls of the host write
            // through it, and all reads are the driver's. Buffers over the same pages are read only, all of them.
            let memory = unsafe { Memory::create(&self.0.context, flags, size, address.cast_mut().cast()) };
            Ok(Buffer::over(self, memory.map_err(|code| code.to_string())?, len, region))
        };
        cut.pieces().map(piece).collect()
    }
}
