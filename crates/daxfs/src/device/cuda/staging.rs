//! Pinned buffers and the streams that empty them: what an upload needs of the driver, one value for each thing.

#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr::null_mut;

use memmap2::{Advice, MmapMut, MmapRaw};

use super::super::DeviceError;
use super::device::{self, Device};
use super::driver::{Address, Opaque};

/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for all contexts.
const PORTABLE: c_uint = 1;
/// `CU_MEMHOSTREGISTER_PORTABLE`: likewise.
const REGISTER_PORTABLE: c_uint = 1;
/// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream, nor that for it.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC`: who waits sleeps.
const EVENT: c_uint = 2 | 1;

/// Threads of a block: `__launch_bounds__` of the kernels.
const BLOCK: u32 = 128;

/// A stream of this library's own. Dropping it waits until it is through.
pub(super) struct Stream<'a> {
    device: &'a Device,
    stream: Opaque,
}

impl<'a> Stream<'a> {
    /// The context is current here, and for all other functions of this module but `drop`.
    pub fn new(device: &'a Device) -> Result<Self, DeviceError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is alive, and a context is current.
        let code = unsafe { (device.functions().stream_create)(&raw mut stream, NON_BLOCKING) };
        device.check("cuStreamCreate", code)?;
        Ok(Self { device, stream })
    }

    /// Copies pinned memory of the host to an address of the device, as the next thing.
    ///
    /// # Safety
    /// `len` bytes are pinned and readable at `from`, and are device memory that this process may write at `to`, until
    /// the stream is through.
    pub unsafe fn send(&self, from: *const c_void, len: usize, to: Address) -> Result<(), DeviceError> {
        // SAFETY: the stream is alive; the caller answers for both memories.
        let code = unsafe { (self.device.functions().copy_to_device)(to, from, len, self.stream) };
        self.device.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies device memory to the host, and waits for it.
    ///
    /// # Safety
    /// The device memory from `address` on has as many bytes as the slice, mapped until the call returns.
    pub unsafe fn fetch(&self, bytes: &mut [u8], address: Address) -> Result<(), DeviceError> {
        let (target, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the slice has `len` bytes and stays borrowed until the copy is through: into ordinary memory the call
        // returns when it is (cuda.h, API synchronisation behaviour), into pinned memory the stream is waited for,
        // which fails only when its context is dead. The caller answers for the address.
        let code = unsafe { (self.device.functions().copy_to_host)(target, address, len, self.stream) };
        self.device.check("cuMemcpyDtoHAsync", code)?;
        self.synchronize()
    }

    /// Launches a kernel for `threads` threads, not 0, as the next thing. Its blocks have [`BLOCK`] threads, so the
    /// last one may have some that are not wanted.
    ///
    /// # Safety
    /// `function` is a kernel whose parameters have the types of what `parameters` points to, one by one. Its module
    /// stays loaded, and the memory that it uses mapped, until the stream is through.
    pub unsafe fn launch(
        &self,
        function: Opaque,
        threads: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let (blocks, launch) = (threads.div_ceil(BLOCK), self.device.functions().launch);
        let (stream, parameters) = (self.stream, parameters.as_mut_ptr());
        // SAFETY: the stream is alive, and its context current; the caller answers for the kernel and its parameters,
        // which are copied before the call returns. No shared memory is asked for.
        let code = unsafe { launch(function, blocks, 1, 1, BLOCK, 1, 1, 0, stream, parameters, null_mut()) };
        self.device.check("cuLaunchKernel", code)
    }

    /// Waits until everything is done.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream was made by `new` and is alive.
        let code = unsafe { (self.device.functions().stream_synchronize)(self.stream) };
        self.device.check("cuStreamSynchronize", code)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        let Ok(_current) = self.device.enter() else { return };
        let _ = self.synchronize();
        // SAFETY: the stream was made by `new` and is destroyed once.
        let _ = unsafe { (self.device.functions().stream_destroy)(self.stream) };
    }
}

/// Pinned memory and the event that says when the device has read it.
pub(super) struct Slot<'a> {
    memory: ManuallyDrop<Pinned<'a>>,
    event: Opaque,
    /// Whether a copy was submitted whose end was not waited for.
    is_busy: bool,
}

/// Pinned memory. Dropping it gives it back: nothing that was submitted may use it any more.
struct Pinned<'a> {
    device: &'a Device,
    bytes: *mut u8,
    len: usize,
    /// The mapping that was registered, which stays if the driver does not let go of it; otherwise the driver allocated
    /// the memory.
    mapping: Option<ManuallyDrop<MmapRaw>>,
}

impl<'a> Pinned<'a> {
    /// At least `len` bytes, initialised. A context is current.
    ///
    /// The driver takes ten times as long to allocate memory as to pin what is there already (350 and 30 ms a GiB on an
    /// H100 with driver 580), which is as long as the copy of a small image takes.
    fn new(device: &'a Device, len: usize) -> Result<Self, DeviceError> {
        if device.has(device::HOST_REGISTER_SUPPORTED)?
            && let Some(pinned) = Self::registered(device, len)
        {
            return Ok(pinned);
        }
        let mut bytes: *mut c_void = std::ptr::null_mut();
        // SAFETY: the pointer is alive, and a context is current.
        let code = unsafe { (device.functions().host_alloc)(&raw mut bytes, len, PORTABLE) };
        device.check("cuMemHostAlloc", code)?;
        let pinned = Self { device, bytes: bytes.cast(), len, mapping: None };
        // SAFETY: the memory is `len` bytes of this value's own; zeros make all of them initialised.
        unsafe { std::ptr::write_bytes(pinned.bytes, 0, len) };
        Ok(pinned)
    }

    /// Memory of this process, pinned; none where there is no memory, or the driver does not pin it.
    fn registered(device: &'a Device, len: usize) -> Option<Self> {
        let mut mapping = MmapMut::map_anon(len).ok()?;
        // Huge pages are quicker to make and to pin. Where there are none, it is as good.
        let _ = mapping.advise(Advice::HugePage);
        // Now they are there, which is quicker than having the driver ask for one after the other.
        mapping.fill(0);
        let mapping = MmapRaw::from(mapping);
        let bytes = mapping.as_mut_ptr();
        // SAFETY: the range is mapped, and stays so until it is unregistered (`drop`).
        let code = unsafe { (device.functions().host_register)(bytes.cast(), len, REGISTER_PORTABLE) };
        (code == 0).then_some(Self { device, bytes, len, mapping: Some(ManuallyDrop::new(mapping)) })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let functions = self.device.functions();
        let Ok(_current) = self.device.enter() else { return };
        let bytes = self.bytes.cast();
        if let Some(mapping) = &mut self.mapping {
            // SAFETY: the range was registered from this address on by `registered`, and nothing uses it any more.
            let code = unsafe { (functions.host_unregister)(bytes) };
            if code == 0 {
                // SAFETY: nothing uses the field again.
                unsafe { ManuallyDrop::drop(mapping) };
            }
        } else {
            // SAFETY: the memory was allocated by `new`, is freed once, and no copy of it is under way.
            let _ = unsafe { (functions.host_free)(bytes) };
        }
    }
}

impl<'a> Slot<'a> {
    /// At least `len` bytes: whole pages, so that whole blocks of a disk have room.
    pub fn new(device: &'a Device, len: usize) -> Result<Self, DeviceError> {
        let len = len.next_multiple_of(usize::try_from(dmabuf::page_size()).unwrap_or(4096));
        let memory = ManuallyDrop::new(Pinned::new(device, len)?);
        let mut slot = Self { memory, event: std::ptr::null_mut(), is_busy: false };
        // SAFETY: the pointer is alive, and a context is current.
        let code = unsafe { (device.functions().event_create)(&raw mut slot.event, EVENT) };
        device.check("cuEventCreate", code)?;
        Ok(slot)
    }

    /// The memory, when the device is through with it.
    pub fn bytes(&mut self) -> Result<&mut [u8], DeviceError> {
        self.wait()?;
        // SAFETY: `len` initialised bytes of this value's own (see `Pinned`), which the device does not read now; they
        // are borrowed with `self`, so nothing is submitted meanwhile.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.bytes, self.memory.len) })
    }

    /// Copies the first `len` bytes to an address of the device, as the next thing in `stream`.
    ///
    /// # Safety
    /// `address..address + len` is device memory that this process may write, until `stream` is through.
    pub unsafe fn send(
        &mut self,
        len: usize,
        address: Address,
        stream: &Stream<'_>,
    ) -> Result<(), DeviceError> {
        self.is_busy = true;
        // SAFETY: at most `len` bytes of this value's own, which stay until the event has happened (`wait`, in `drop`
        // at the latest); the caller answers for the address.
        unsafe { stream.send(self.memory.bytes.cast(), len.min(self.memory.len), address) }?;
        // SAFETY: event and stream are alive and of one context.
        let code = unsafe { (self.device().functions().event_record)(self.event, stream.stream) };
        self.device().check("cuEventRecord", code)
    }

    fn device(&self) -> &'a Device {
        self.memory.device
    }

    /// Waits until the device has read what was sent.
    pub fn wait(&mut self) -> Result<(), DeviceError> {
        if self.is_busy {
            // SAFETY: the event was made by `new` and is alive.
            let code = unsafe { (self.device().functions().event_synchronize)(self.event) };
            self.device().check("cuEventSynchronize", code)?;
            self.is_busy = false;
        }
        Ok(())
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // After an error the event may not have been recorded, so it says nothing: wait for everything, and keep memory
        // that may still be read.
        if self.is_busy && !self.device().wait() {
            return;
        }
        if !self.event.is_null()
            && let Ok(_current) = self.device().enter()
        {
            // SAFETY: the event was made by `new` and is destroyed once.
            let _ = unsafe { (self.device().functions().event_destroy)(self.event) };
        }
        // SAFETY: nothing uses the field again.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}
