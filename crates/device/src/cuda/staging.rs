//! Pinned buffers that are filled by the host and emptied by the device.

#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{c_uint, c_void};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut, MmapRaw};

use super::device::{self, Current, Device};
use super::driver::{Address, Opaque};
use super::stream::Stream;
use crate::DeviceError;
use crate::copy::threads;

/// `CU_MEMHOSTALLOC_PORTABLE` and `CU_MEMHOSTREGISTER_PORTABLE`: pinned for all contexts.
const PORTABLE: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`. Who waits does so as the context's users wish; to have them sleep (`BLOCKING_SYNC`) takes
/// 2.5 % longer, and there is no use for a processor that waits for a buffer.
const EVENT: c_uint = 2;
/// Bytes that one thread brings into memory at a time: a few huge pages.
const TOUCHED: usize = 4 << 20;

/// Pinned memory for several buffers of one size, initialised. One piece, since each costs the driver a tenth of a
/// millisecond, whatever its size, and all threads wait for the same lock meanwhile.
pub(super) struct Staging<'a> {
    device: &'a Device,
    bytes: *mut u8,
    /// Bytes of a buffer.
    len: usize,
    count: usize,
    /// First buffer that nobody has.
    next: AtomicUsize,
    /// Set where the device may still read: then the memory stays.
    is_kept: AtomicBool,
    /// The mapping that was registered; otherwise the driver allocated the memory.
    mapping: Option<ManuallyDrop<MmapRaw>>,
}

// SAFETY: the pointer is to memory of this value's own, which any thread may use and give back: each buffer is handed
// out once (`next`), or lent by `part`, whose caller answers for that, and the driver's calls are for any thread.
unsafe impl Send for Staging<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Staging<'_> {}

impl<'a> Staging<'a> {
    /// `count` buffers of at least `len` bytes, neither 0: whole pages, so that whole blocks of a disk have
    /// room.
    ///
    /// The driver takes ten times as long to allocate memory as to pin what is there already (350 and 25 ms a GiB on an
    /// H100 with driver 580).
    pub fn new(
        device: &'a Device,
        count: usize,
        len: usize,
        current: &Current<'_>,
    ) -> Result<Self, DeviceError> {
        current.must_be_of(device);
        let len = len.next_multiple_of(usize::try_from(dmabuf::page_size()).unwrap_or(4096));
        let staging = |bytes, mapping| {
            let (next, is_kept) = (AtomicUsize::new(0), AtomicBool::new(false));
            Self { device, bytes, len, count, next, is_kept, mapping }
        };
        let all = len.saturating_mul(count);
        if device.has(device::HOST_REGISTER_SUPPORTED)?
            && let Some(mapping) = registered(device, all, current)
        {
            return Ok(staging(mapping.as_mut_ptr(), Some(ManuallyDrop::new(mapping))));
        }
        let mut bytes: *mut c_void = std::ptr::null_mut();
        // SAFETY: the pointer is alive, and `current` shows that a context is current.
        let code = unsafe { (device.functions().host_alloc)(&raw mut bytes, all, PORTABLE) };
        device.check("cuMemHostAlloc", code)?;
        let staging = staging(bytes.cast(), None);
        // SAFETY: the memory is `all` bytes of this value's own; zeros make all of them initialised.
        unsafe { std::ptr::write_bytes(staging.bytes, 0, all) };
        Ok(staging)
    }

    /// Bytes of a buffer, by its number in the order in which they are handed out.
    ///
    /// # Safety
    /// There is such a buffer, and it has these bytes. While the slice lives nobody else uses them: no other slice, be
    /// it of the slot that has the buffer ([`Slot::bytes`]), and no copy by the device.
    #[allow(clippy::mut_from_ref, reason = "the caller answers for it")]
    pub unsafe fn part(&self, buffer: usize, start: usize, len: usize) -> &mut [u8] {
        let bytes = self.bytes.wrapping_add(buffer * self.len + start);
        // SAFETY: the memory is initialised (see `Staging`), and the caller answers for everything else.
        unsafe { std::slice::from_raw_parts_mut(bytes, len) }
    }

    /// A buffer that nobody has; none when all were handed out.
    fn buffer(&self) -> Option<*mut u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Within the memory, which has `count` times `len` bytes.
        (number < self.count).then(|| self.bytes.wrapping_add(number * self.len))
    }
}

/// Memory of this process, pinned; none where there is no memory, or the driver does not pin it.
fn registered(device: &Device, len: usize, _current: &Current<'_>) -> Option<MmapRaw> {
    let mapping = MmapMut::map_anon(len).ok()?;
    // After a fork, by whichever thread, what is written would go to pages of this process's own, and older kernels
    // leave those that the device reads to the child.
    mapping.advise(Advice::DontFork).ok()?;
    // Huge pages are quicker to make and to pin. Where there are none, it is as good.
    let _ = mapping.advise(Advice::HugePage);
    // The driver would ask for one page after the other, in one thread. What the kernel does not know how to do before
    // is done then.
    let touch = |at| mapping.advise_range(Advice::PopulateWrite, at, TOUCHED.min(len - at)).is_ok();
    threads::parts(len, TOUCHED, touch);
    let mapping = MmapRaw::from(mapping);
    // SAFETY: a context is current (`_current`). The range is mapped, and stays so until it is unregistered (`Staging`).
    let code = unsafe { (device.functions().host_register)(mapping.as_mut_ptr().cast(), len, PORTABLE) };
    (code == 0).then_some(mapping)
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if self.is_kept.load(Ordering::Relaxed) {
            return;
        }
        let Ok(_current) = self.device.enter() else { return };
        let (functions, bytes) = (self.device.functions(), self.bytes.cast());
        if let Some(mapping) = &mut self.mapping {
            // SAFETY: the range was registered from this address on, and nothing uses it any more: buffers borrow this
            // value, and wait for the device when they are dropped.
            let code = unsafe { (functions.host_unregister)(bytes) };
            if code == 0 {
                // SAFETY: nothing uses the field again.
                unsafe { ManuallyDrop::drop(mapping) };
            }
        } else {
            // SAFETY: the memory was allocated by `new`, is freed once, and as above nothing uses it.
            let _ = unsafe { (functions.host_free)(bytes) };
        }
    }
}

/// A buffer and the event that says when the device has read it.
pub(super) struct Slot<'a> {
    staging: &'a Staging<'a>,
    bytes: *mut u8,
    event: Opaque,
    /// Whether a copy was submitted whose end was not waited for.
    is_busy: bool,
}

// SAFETY: the buffer was handed out to this value alone, and any thread may use the event (cuda.h binds neither
// cuEventSynchronize nor cuEventDestroy to the thread that made it), as long as its context is current, which
// each function has shown to it; nothing else is reached through the pointers.
unsafe impl Send for Slot<'_> {}

impl<'a> Slot<'a> {
    /// The next buffer of `staging`.
    pub fn new(staging: &'a Staging<'a>, current: &Current<'_>) -> Result<Self, DeviceError> {
        let device = staging.device;
        current.must_be_of(device);
        let none =
            || DeviceError::OutOfMemory { device: device.name().into(), need: staging.len as u64, free: 0 };
        let bytes = staging.buffer().ok_or_else(none)?;
        let mut slot = Self { staging, bytes, event: std::ptr::null_mut(), is_busy: false };
        // SAFETY: the pointer is alive, and `current` shows that a context is current.
        let code = unsafe { (device.functions().event_create)(&raw mut slot.event, EVENT) };
        device.check("cuEventCreate", code)?;
        Ok(slot)
    }

    /// The memory, when the device is through with it.
    pub fn bytes(&mut self, current: &Current<'_>) -> Result<&mut [u8], DeviceError> {
        self.wait(current)?;
        // SAFETY: `len` initialised bytes (see `Staging`: zeros at first) that were handed out to this value alone, and
        // which the device does not read now; they are borrowed with `self`, so nothing is submitted meanwhile.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.bytes, self.staging.len) })
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
        current: &Current<'_>,
    ) -> Result<(), DeviceError> {
        self.is_busy = true;
        // SAFETY: at most `len` bytes of this value's own, which stay until the event has happened (`wait`, in `drop`
        // at the latest); the caller answers for the address.
        unsafe { stream.send(self.bytes.cast(), len.min(self.staging.len), address, current) }?;
        // SAFETY: the event is alive and of the stream's context.
        unsafe { stream.record(self.event, current) }
    }

    fn device(&self) -> &'a Device {
        self.staging.device
    }

    /// Waits until the device has read what was sent.
    pub fn wait(&mut self, current: &Current<'_>) -> Result<(), DeviceError> {
        current.must_be_of(self.device());
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
            self.staging.is_kept.store(true, Ordering::Relaxed);
            return;
        }
        if !self.event.is_null()
            && let Ok(_current) = self.device().enter()
        {
            // SAFETY: the event was made by `new` and is destroyed once.
            let _ = unsafe { (self.device().functions().event_destroy)(self.event) };
        }
    }
}
