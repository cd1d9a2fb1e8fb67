//! Host memory whose pages are pinned: for the route by mapping, where the device reads them in place over the link,
//! and for uploads that fetch them from there.

#![allow(unsafe_code, reason = "registers a mapping with the CUDA driver")]

use std::ffi::{c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dmabuf::{FdInfo, FdKind, Mapping, MemoryClass, Seals};

use super::device::{self, Device};
use super::driver::Address;
use crate::Result;
use crate::copy::threads;
use daxfs::Region;

/// `CU_MEMHOSTREGISTER_DEVICEMAP`: for this context, which is waited for in the end.
const FLAGS: c_uint = 2;
/// `CU_MEMHOSTREGISTER_READ_ONLY`: the device only reads, so the mapping need not be writable.
const READ_ONLY: c_uint = 8;
/// Bytes of one registration at most: the driver keeps a table for each, and gives up at 512 GiB. Some kernels (6.11 to
/// 6.13) pin 2 GiB at most, for which there is `MapOptions::max_piece`.
pub(super) const MAX_REGISTRATION: u64 = 64 << 30;

/// Bytes whose pages one thread brings into the page tables at a time.
const POPULATED: usize = 64 << 20;

/// Whether a registration may use several threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// It is one of several that go on at a time.
    One,
    Several,
}

/// What is pinned and shared with others of this process.
static PINNED: Mutex<Vec<Weak<Registered>>> = Mutex::new(Vec::new());

/// A mapping that the driver has pinned. Dropping it waits for the device first; where that cannot be waited for, or
/// the driver does not let go of the pages, they stay mapped.
#[derive(Debug)]
pub(super) struct Registered {
    device: Device,
    mapping: ManuallyDrop<Mapping>,
    address: Address,
    /// What tells the memory's file from all others: `st_dev` and `st_ino`.
    file: (u64, u64),
    /// Where it begins in the file.
    start: u64,
    /// Whether nothing that was submitted uses it.
    is_idle: bool,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.is_idle && !self.device.wait() {
            return;
        }
        let Ok(_current) = self.device.enter() else { return };
        // SAFETY: the range was registered from this address, and is still mapped; no submitted work uses it.
        let code = unsafe { (self.device.functions().host_unregister)(start(&self.mapping)) };
        if code == 0 {
            // SAFETY: nothing uses the field again.
            unsafe { ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

impl Registered {
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The CPU's address of the same bytes.
    pub fn host_address(&self) -> usize {
        self.mapping.view().as_ptr().addr()
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The part of the file that is pinned.
    pub fn place(&self) -> Range<u64> {
        self.start..self.start + self.len()
    }

    /// Where bytes of the file lie, and how many: all of those that are asked for.
    pub fn part(&self, place: u64, len: u64) -> Result<(*const c_void, usize)> {
        let offset = place.wrapping_sub(self.start);
        let view = self.mapping.view().get(offset, len)?;
        Ok((view.as_ptr().cast(), view.len()))
    }

    /// Makes it known to [`pinned`].
    pub fn shared(self) -> Arc<Self> {
        let shared = Arc::new(self);
        let mut list = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|one| one.strong_count() > 0);
        list.push(Arc::downgrade(&shared));
        shared
    }

    /// Gives the pages back without waiting for the device.
    ///
    /// # Safety
    /// Nothing that was submitted uses them any more.
    pub unsafe fn release(mut self) {
        self.is_idle = true;
    }
}

/// What this process has pinned for the device of the first `len` bytes of a region, in order, when that is all of
/// them. Not of a file: who cuts it short and fills it anew leaves the device with pages that are not the file's any
/// more, and the region may have been opened since.
pub(super) fn pinned(device: &Device, region: &Region, len: u64) -> Option<Vec<Arc<Registered>>> {
    let info = region.info().filter(|_| !region.is_writable())?;
    if !matches!(info.kind, FdKind::Memfd { .. }) {
        return None;
    }
    let all = PINNED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Not under the lock: the last share waits for the device.
    let mut list: Vec<Arc<Registered>> = all.iter().filter_map(Weak::upgrade).collect();
    list.retain(|one| one.device.is(&device.uuid()) && one.file == (info.dev, info.ino));
    list.sort_by_key(|one| one.start);
    let (mut at, end) = (region.offset(), region.offset() + len);
    list.retain(|one| {
        let part = one.place();
        let is_next = part.start <= at && at < part.end && at < end;
        at = if is_next { part.end } else { at };
        is_next
    });
    (at >= end).then_some(list)
}

/// Where a mapping begins, as the driver wants it.
fn start(mapping: &Mapping) -> *mut c_void {
    mapping.view().as_ptr().cast_mut().cast()
}

/// Memory that the device can pin.
pub(super) struct Pinnable<'a> {
    fd: BorrowedFd<'a>,
    info: &'a FdInfo,
    /// Whether the device pins what is mapped for reading only.
    reads_only: bool,
}

/// Whether the device can pin the region's memory; else why not.
pub(super) fn check<'a>(device: &Device, region: &'a Region) -> Result<Pinnable<'a>, String> {
    let has = |attribute| device.has(attribute).map_err(|error| error.to_string());
    if !has(device::HOST_REGISTER_SUPPORTED)? {
        return Err("this device does not read host memory in place".into());
    }
    let (Some(fd), Some(info)) = (region.fd(), region.info()) else {
        return Err("the bytes belong to this process and share their pages with others".into());
    };
    let reads_only = has(device::READ_ONLY_HOST_REGISTER_SUPPORTED)?;
    match info.kind.seals() {
        Some(seals) if !reads_only && seals.intersects(Seals::WRITE | Seals::FUTURE_WRITE) => {
            return Err(
                "it is sealed against writing, and this device pins only what could be written".into()
            );
        }
        Some(seals) if !seals.contains(Seals::SHRINK) => {
            return Err("it can shrink under the device: seal it against that".into());
        }
        Some(_) => {}
        None if info.kind.exporter().is_some() => {
            return Err(
                "the mapping of a dma-buf cannot be pinned: pass the memfd that it was made of".into()
            );
        }
        None if info.kind.class() != MemoryClass::Pages => {
            return Err(format!(
                "it is a {}, and only memfds and files are pinned without a copy",
                info.kind
            ));
        }
        None if reads_only => {}
        None => return Err("this device pins only what could be written: a memfd, but no file".into()),
    }
    if region.is_writable() {
        return Err(
            "the mapping is private, and what was written to it is not in the memory behind it".into()
        );
    }
    if !info.writable && !reads_only {
        return Err("the descriptor is read-only, and this device pins only what could be written".into());
    }
    Ok(Pinnable { fd, info, reads_only })
}

/// Has the kernel make the page tables of a mapping: the driver would have it done page by page. What the kernel does
/// not do now, the driver has it do.
fn populate(mapping: &Mapping) {
    threads::parts(mapping.len(), POPULATED, |at| {
        mapping.populate_part(at, POPULATED.min(mapping.len() - at)).unwrap_or(false)
    });
}

/// Registers `from..from + len` of the region, which it has; the reason where that cannot be. `helpers` says whether
/// several threads may help.
pub(super) fn register(
    device: &Device,
    region: &Region,
    from: u64,
    len: u64,
    helpers: Threads,
) -> Result<Registered, String> {
    let Pinnable { fd, info, reads_only } = check(device, region)?;
    let bytes = usize::try_from(len).map_err(|error| error.to_string())?;
    let start_in_file = region.offset() + from;
    let (map, flags): (fn(_, _, _) -> _, _) =
        if reads_only { (Mapping::read_only, FLAGS | READ_ONLY) } else { (Mapping::read_write, FLAGS) };
    let mapping = map(fd, start_in_file, bytes).map_err(|error| error.to_string())?;
    if helpers == Threads::Several {
        populate(&mapping);
    }
    let functions = device.functions();
    let _current = device.enter().map_err(|error| error.to_string())?;
    // SAFETY: the range is one shared mapping, and the pages that are pinned stay what they are until they are given
    // back, even if a file should lose them. It stays mapped until it is unregistered: both are done by `Registered`,
    // in this order.
    let code = unsafe { (functions.host_register)(start(&mapping), bytes, flags) };
    device.check("cuMemHostRegister", code).map_err(|error| error.to_string())?;
    let mut registered = Registered {
        device: device.clone(),
        mapping: ManuallyDrop::new(mapping),
        address: 0,
        file: (info.dev, info.ino),
        start: start_in_file,
        is_idle: false,
    };
    let (address, memory) = (&raw mut registered.address, start(&registered.mapping));
    // SAFETY: the memory is registered with a place on the device, and the number is alive.
    let code = unsafe { (functions.host_get_address)(address, memory, 0) };
    device.check("cuMemHostGetDevicePointer", code).map_err(|error| error.to_string())?;
    Ok(registered)
}
