//! A stream, and what is submitted to it.

#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;

use super::device::{Current, Device};
use super::driver::{Address, Opaque};
use crate::DeviceError;

/// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream, nor that for it.
const NON_BLOCKING: c_uint = 1;

/// Threads of a block: `__launch_bounds__` of the kernels.
const BLOCK: u32 = 128;

/// A stream of this library's own. Dropping it waits until it is through.
pub(super) struct Stream<'a> {
    device: &'a Device,
    stream: Opaque,
}

// SAFETY: the stream is a handle, which cuda.h binds to a context and not to a thread; nothing else is reached through
// the pointer.
unsafe impl Send for Stream<'_> {}

impl<'a> Stream<'a> {
    /// A stream of the device's context, which is current here, and for all other functions but `drop`.
    pub fn new(device: &'a Device, current: &Current<'_>) -> Result<Self, DeviceError> {
        current.must_be_of(device);
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is alive, and `current` shows that a context is current.
        let code = unsafe { (device.functions().stream_create)(&raw mut stream, NON_BLOCKING) };
        device.check("cuStreamCreate", code)?;
        Ok(Self { device, stream })
    }

    /// Copies pinned memory of the host to an address of the device, as the next thing.
    ///
    /// # Safety
    /// `len` bytes are pinned and readable at `from`, and are device memory that this process may write at `to`, until
    /// the stream is through.
    pub unsafe fn send(
        &self,
        from: *const c_void,
        len: usize,
        to: Address,
        current: &Current<'_>,
    ) -> Result<(), DeviceError> {
        current.must_be_of(self.device);
        // SAFETY: the stream is alive; the caller answers for both memories.
        let code = unsafe { (self.device.functions().copy_to_device)(to, from, len, self.stream) };
        self.device.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies device memory to the host, and waits for it.
    ///
    /// # Safety
    /// The device memory from `address` on has as many bytes as the slice, mapped until the call returns.
    pub unsafe fn fetch(
        &self,
        bytes: &mut [u8],
        address: Address,
        current: &Current<'_>,
    ) -> Result<(), DeviceError> {
        current.must_be_of(self.device);
        let (target, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the slice has `len` bytes and stays borrowed until the copy is through: into ordinary memory the call
        // returns when it is (cuda.h, API synchronisation behaviour), into pinned memory the stream is waited for,
        // which fails only when its context is dead. The caller answers for the address.
        let code = unsafe { (self.device.functions().copy_to_host)(target, address, len, self.stream) };
        self.device.check("cuMemcpyDtoHAsync", code)?;
        self.synchronize(current)
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
        current: &Current<'_>,
    ) -> Result<(), DeviceError> {
        current.must_be_of(self.device);
        let (blocks, launch) = (threads.div_ceil(BLOCK), self.device.functions().launch);
        let (stream, parameters) = (self.stream, parameters.as_mut_ptr());
        // SAFETY: the stream is alive, and its context current (`current`); the caller answers for the kernel and its parameters,
        // which are copied before the call returns. No shared memory is asked for.
        let code = unsafe { launch(function, blocks, 1, 1, BLOCK, 1, 1, 0, stream, parameters, null_mut()) };
        self.device.check("cuLaunchKernel", code)
    }

    /// Has an event happen when everything that was submitted so far is done.
    ///
    /// # Safety
    /// The event is alive and of this stream's context.
    pub unsafe fn record(&self, event: Opaque, current: &Current<'_>) -> Result<(), DeviceError> {
        current.must_be_of(self.device);
        // SAFETY: the stream is alive; the caller answers for the event.
        let code = unsafe { (self.device.functions().event_record)(event, self.stream) };
        self.device.check("cuEventRecord", code)
    }

    /// Waits until everything is done.
    pub fn synchronize(&self, current: &Current<'_>) -> Result<(), DeviceError> {
        current.must_be_of(self.device);
        // SAFETY: the stream was made by `new` and is alive.
        let code = unsafe { (self.device.functions().stream_synchronize)(self.stream) };
        self.device.check("cuStreamSynchronize", code)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        let Ok(current) = self.device.enter() else { return };
        let _ = self.synchronize(&current);
        // SAFETY: the stream was made by `new` and is destroyed once.
        let _ = unsafe { (self.device.functions().stream_destroy)(self.stream) };
    }
}
