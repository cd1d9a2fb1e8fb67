//! The image's own memory as buffers: by its descriptor, or in the pages that are mapped.

#![allow(unsafe_code, reason = "makes buffers over memory of others")]

use std::os::fd::{AsRawFd, IntoRawFd};

use daxfs::Region;
use dmabuf::FdKind;
use opencl3::error_codes::ClError;
use opencl3::memory::{
    Buffer as Memory, CL_MEM_HOST_READ_ONLY, CL_MEM_READ_ONLY, CL_MEM_USE_HOST_PTR, ClMem,
};

use super::buffer::Buffer;
use super::device::Device;
use crate::map::describe;
use crate::spans::Cut;
use crate::{DeviceError, MapOptions, MappedRegion, Refusal, Result, Route};

/// `CL_EXTERNAL_MEMORY_HANDLE_DMA_BUF_KHR`, `CL_IMPORT_TYPE_ARM` and `CL_IMPORT_TYPE_DMA_BUF_ARM`.
const DMA_BUF_KHR: u64 = 0x2067;
const IMPORT_TYPE_ARM: isize = 0x40B2;
const DMA_BUF_ARM: isize = 0x40B4;

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
                Route::Descriptor => self.by_descriptor(region, cut),
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
        let advice =
            "copy the image to the device, or pack it into a dma-heap where the driver imports dma-bufs";
        Err(DeviceError::NotImportable { device, memory, refusals, advice }.into())
    }

    /// A dma-buf by its descriptor: one buffer, from its beginning on.
    fn by_descriptor(&self, region: &Region, cut: Cut) -> Result<Vec<Buffer>, String> {
        let fd = region.info().filter(|info| matches!(info.kind, FdKind::DmaBuf { .. })).and(region.fd());
        let fd = fd.ok_or("only dma-bufs are imported by their descriptor")?;
        let size = usize::try_from(cut.total).map_err(|e| e.to_string())?;
        if region.offset() != 0 || cut.piece != cut.total {
            return Err("a dma-buf is imported from its first byte on, as one buffer".into());
        }
        let fd = fd.try_clone_to_owned().map_err(|e| e.to_string())?;
        let said = |code: ClError| code.to_string();
        let memory = if self.has("cl_khr_external_memory_dma_buf") {
            let properties = [DMA_BUF_KHR, u64::from(fd.as_raw_fd().unsigned_abs()), 0];
            // SAFETY: the list of properties ends with 0 and lives for the call, the descriptor is open, and no host
            // pointer is given.
            let memory = unsafe {
                Memory::create_with_properties(
                    &self.0.context,
                    properties.as_ptr(),
                    CL_MEM_READ_ONLY,
                    size,
                    std::ptr::null_mut(),
                )
            };
            let memory = memory.map_err(said)?;
            // The driver has taken the descriptor over.
            let _ = fd.into_raw_fd();
            let objects = [memory.get().cast_const()];
            // SAFETY: the object was just imported in the context of this queue, and the list lives for the call.
            let acquired = unsafe { self.0.queue.enqueue_acquire_external_mem_objects_khr(&objects, &[]) };
            acquired.and_then(|event| event.wait()).map_err(said)?;
            memory
        } else if self.has("cl_arm_import_memory_dma_buf") {
            let properties = [IMPORT_TYPE_ARM, DMA_BUF_ARM, 0];
            let mut number = fd.as_raw_fd();
            // SAFETY: the list of properties ends with 0; `memory` is for this type a pointer to the descriptor, which is
            // open. Both live for the call, and the driver takes a reference of its own.
            let memory = unsafe {
                self.0.context.import_memory_arm(
                    CL_MEM_READ_ONLY,
                    properties.as_ptr(),
                    (&raw mut number).cast(),
                    size,
                )
            };
            Memory::new(memory.map_err(said)?)
        } else {
            return Err(
                "the driver has neither cl_khr_external_memory_dma_buf nor cl_arm_import_memory_dma_buf"
                    .into(),
            );
        };
        Ok(vec![Buffer::over(self, memory, cut.total, region)])
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
        let piece = |(start, len): (u64, u64)| {
            let view = region.view().get(start, len).map_err(|e| e.to_string())?;
            let flags = CL_MEM_READ_ONLY | CL_MEM_HOST_READ_ONLY | CL_MEM_USE_HOST_PTR;
            // SAFETY: `len` bytes are mapped at the pointer as long as the region lives, which the buffer holds. The
            // flags say that neither kernels nor calls of the host write through it, and all reads are the driver's.
            let memory = unsafe {
                Memory::create(&self.0.context, flags, view.len(), view.as_ptr().cast_mut().cast())
            };
            Ok(Buffer::over(self, memory.map_err(|code| code.to_string())?, len, region))
        };
        cut.pieces().map(piece).collect()
    }
}
