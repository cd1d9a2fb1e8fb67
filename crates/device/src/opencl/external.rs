//! Import of memory by its descriptor, and the handing over that Khronos' extension asks for: who works on such memory
//! acquires it first and releases it then.

#![allow(unsafe_code, reason = "calls functions of extensions")]

use std::ffi::{CStr, c_int, c_void};
use std::mem::transmute;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};

use daxfs::Region;
use opencl3::command_queue::CommandQueue;
use opencl3::device::Device as Handle;
use opencl3::error_codes::ClError;
use opencl3::event::Event;
use opencl3::memory::{Buffer as Memory, CL_MEM_READ_ONLY};
use opencl3::types::{cl_command_queue, cl_context, cl_event, cl_mem, cl_mem_flags, cl_platform_id, cl_uint};

use super::buffer::Buffer;
use super::device::Device;
use super::failed;
use crate::{DeviceError, Result};

/// `CL_EXTERNAL_MEMORY_HANDLE_DMA_BUF_KHR` of `CL/cl_ext.h`.
const HANDLE_DMA_BUF: isize = 0x2067;
/// `CL_IMPORT_TYPE_ARM`, `CL_IMPORT_TYPE_DMA_BUF_ARM` and `CL_IMPORT_DMA_BUF_DATA_CONSISTENCY_WITH_HOST_ARM` of
/// `CL/cl_ext.h`.
const IMPORT_TYPE: isize = 0x40B2;
const IMPORT_DMA_BUF: isize = 0x40B4;
const CONSISTENT_WITH_HOST: isize = 0x41E3;

/// `clEnqueueAcquireExternalMemObjectsKHR` and `clEnqueueReleaseExternalMemObjectsKHR`.
type HandOver = unsafe extern "C" fn(
    cl_command_queue,
    cl_uint,
    *const cl_mem,
    cl_uint,
    *const cl_event,
    *mut cl_event,
) -> c_int;
/// `clImportMemoryARM`.
type Import =
    unsafe extern "C" fn(cl_context, cl_mem_flags, *const isize, *mut c_void, usize, *mut c_int) -> cl_mem;

/// How a driver takes the descriptor of a dma-buf.
#[derive(Clone, Copy, Debug)]
pub(super) enum Importer {
    /// `cl_khr_external_memory_dma_buf`.
    Khronos(HandOvers),
    /// `cl_arm_import_memory_dma_buf`.
    Arm(Import),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct HandOvers {
    acquire: HandOver,
    release: HandOver,
}

impl Importer {
    /// The way that the driver of a device has; `None` where it has none.
    pub(super) fn of(device: &Handle) -> Option<Self> {
        let extensions = device.extensions().ok()?;
        let has = |name| extensions.split_whitespace().any(|found| found == name);
        let platform = device.platform().ok()?.cast();
        if has("cl_khr_external_memory_dma_buf") {
            let acquire = function(platform, c"clEnqueueAcquireExternalMemObjectsKHR")?;
            let release = function(platform, c"clEnqueueReleaseExternalMemObjectsKHR")?;
            // SAFETY: the driver has the extension, in which the function of this name has this type.
            let acquire = unsafe { transmute::<*mut c_void, HandOver>(acquire) };
            // SAFETY: as for the other one.
            let release = unsafe { transmute::<*mut c_void, HandOver>(release) };
            return Some(Self::Khronos(HandOvers { acquire, release }));
        }
        if has("cl_arm_import_memory_dma_buf") {
            let import = function(platform, c"clImportMemoryARM")?;
            // SAFETY: the driver has the extension, in which the function of this name has this type.
            return Some(Self::Arm(unsafe { transmute::<*mut c_void, Import>(import) }));
        }
        None
    }
}

/// A function of an extension, which the loader itself does not have.
fn function(platform: cl_platform_id, name: &CStr) -> Option<*mut c_void> {
    let library = cl3::load_library().as_ref().ok()?;
    let address = library.clGetExtensionFunctionAddressForPlatform(platform, name.as_ptr())?;
    (!address.is_null()).then_some(address)
}

impl Device {
    /// The first `len` bytes of a region by its descriptor, in one buffer; the reason where that cannot be.
    pub(super) fn by_descriptor(&self, region: &Region, len: u64, pieces: usize) -> Result<Buffer, String> {
        let importer = self.0.importer.ok_or(
            "the driver imports no descriptors: it has neither cl_khr_external_memory_dma_buf nor \
             cl_arm_import_memory_dma_buf",
        )?;
        let (Some(fd), Some(info)) = (region.fd(), region.info()) else {
            return Err("the bytes belong to this process and have no descriptor".into());
        };
        // Drivers that map what they import, as software does, take memfds as well. What they took is compared.
        if info.kind.exporter().is_none() && info.kind.seals().is_none() {
            return Err(format!("it is a {}, not a dma-buf", info.kind));
        }
        if region.is_writable() {
            return Err(
                "the mapping is private, and what was written to it is not in the memory behind it".into()
            );
        }
        if region.offset() > 0 || pieces > 1 {
            let (at, most) = (region.offset(), self.0.max_buffer);
            return Err(format!(
                "a descriptor is imported from its first byte on, in one buffer of at most {most} bytes; the image \
                 begins at byte {at} and takes {pieces}"
            ));
        }
        let size = usize::try_from(len).map_err(|e| e.to_string())?;
        match importer {
            Importer::Khronos(hands) => {
                let fd = fd.try_clone_to_owned().map_err(|e| e.to_string())?;
                let memory = self.khronos(fd, size).map_err(|code| code.to_string())?;
                Ok(Buffer::imported(self, memory, len, region, Some(hands)))
            }
            Importer::Arm(import) => {
                let memory = self.arm(import, fd.as_raw_fd(), size).map_err(|code| code.to_string())?;
                Ok(Buffer::imported(self, memory, len, region, None))
            }
        }
    }

    fn khronos(&self, fd: OwnedFd, size: usize) -> Result<Memory<u8>, ClError> {
        let properties = [HANDLE_DMA_BUF, isize::try_from(fd.as_raw_fd()).unwrap_or(-1), 0];
        let properties = properties.map(|property| property as u64);
        // SAFETY: the list ends with 0 and lives for the call. The memory behind the descriptor stays as long as the
        // object does, which has a reference to it.
        let memory = unsafe {
            Memory::create_with_properties(
                &self.0.context,
                properties.as_ptr(),
                CL_MEM_READ_ONLY,
                size,
                null_mut(),
            )
        }?;
        // As with Khronos' other imports of descriptors, the driver owns it now. The extension does not say so; a
        // driver that leaves it open costs one descriptor an import, where closing one that it has would be worse.
        let _ = fd.into_raw_fd();
        Ok(memory)
    }

    /// The descriptor is borrowed: the driver takes a reference to the memory.
    fn arm(&self, import: Import, mut fd: c_int, size: usize) -> Result<Memory<u8>, ClError> {
        let consistent = [IMPORT_TYPE, IMPORT_DMA_BUF, CONSISTENT_WITH_HOST, 1, 0];
        // Older drivers do not know the second property.
        let plain = [IMPORT_TYPE, IMPORT_DMA_BUF, 0];
        let mut code = 0;
        for properties in [&consistent[..], &plain[..]] {
            let (context, list, flags) = (self.0.context.get(), properties.as_ptr(), CL_MEM_READ_ONLY);
            let (fd, code_at) = ((&raw mut fd).cast(), &raw mut code);
            // SAFETY: the list ends with 0, and it, the number and the code live for the call. The memory behind the
            // descriptor stays as long as the object does: the region holds it, and the buffer the region.
            let memory = unsafe { import(context, flags, list, fd, size, code_at) };
            if code == 0 && !memory.is_null() {
                return Ok(Memory::new(memory));
            }
        }
        Err(ClError(code))
    }
}

/// Memory that the driver and others hand to each other.
#[derive(Debug)]
pub(super) struct External {
    hands: HandOvers,
    /// How many have it acquired.
    users: Mutex<usize>,
}

impl External {
    pub(super) fn new(hands: HandOvers) -> Self {
        Self { hands, users: Mutex::new(0) }
    }

    /// Has it handed over in the one direction, and waits for that.
    fn hand_over(&self, by: HandOver, memory: cl_mem, queue: &CommandQueue) -> Result<(), ClError> {
        let mut event: cl_event = null_mut();
        // SAFETY: the memory object and the queue are alive; one object is named, no event is waited for, and the place
        // for the new one is alive. Where the two are of different contexts, which the caller of a safe function may
        // bring about, the extension has the driver answer CL_INVALID_CONTEXT.
        let code = unsafe { by(queue.get(), 1, &raw const memory, 0, null(), &raw mut event) };
        if code != 0 {
            return Err(ClError(code));
        }
        Event::new(event).wait()
    }

    fn acquire(&self, memory: cl_mem, queue: &CommandQueue) -> Result<(), ClError> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            self.hand_over(self.hands.acquire, memory, queue)?;
        }
        *users += 1;
        Ok(())
    }

    fn release(&self, memory: cl_mem, queue: &CommandQueue) -> Result<(), ClError> {
        // Others may still use it in queues of theirs: what was submitted to this one is through.
        let finished = queue.finish();
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            self.hand_over(self.hands.release, memory, queue)?;
        }
        finished
    }
}

/// The right to use a buffer in a queue; [`release`](Self::release) or drop ends it. Work on a buffer whose memory was
/// imported by its descriptor belongs between the two; for other buffers they do nothing.
#[derive(Debug)]
#[must_use = "the buffer is released when this value is dropped"]
pub struct Acquired<'a> {
    buffer: &'a Buffer,
    queue: &'a CommandQueue,
    is_open: bool,
}

impl Buffer {
    /// Acquires the buffer for work that is submitted to `queue`, which is one of the buffer's context
    /// ([`Device::context`]). When this returns the device has it. Several may have it at once.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a queue of another context.
    pub fn acquire<'a>(&'a self, queue: &'a CommandQueue) -> Result<Acquired<'a>, DeviceError> {
        if let Some(external) = self.external() {
            let acquired = external.acquire(self.handle(), queue);
            acquired.map_err(|code| self.failed("clEnqueueAcquireExternalMemObjectsKHR", code))?;
        }
        Ok(Acquired { buffer: self, queue, is_open: true })
    }

    fn failed(&self, call: &'static str, code: ClError) -> DeviceError {
        failed(self.device().name(), call, code)
    }
}

impl Acquired<'_> {
    /// Waits for what was submitted to the queue, and releases the buffer.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn release(mut self) -> Result<(), DeviceError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        let Some(external) = self.buffer.external() else { return Ok(()) };
        let released = external.release(self.buffer.handle(), self.queue);
        released.map_err(|code| self.buffer.failed("clEnqueueReleaseExternalMemObjectsKHR", code))
    }
}

impl Drop for Acquired<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell; who needs to know calls `release`.
        let _ = self.end();
    }
}
