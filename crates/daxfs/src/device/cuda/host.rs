//! The route by mapping: host memory that the device reads in place, over the link. Its pages are pinned.

#![allow(unsafe_code, reason = "registers a mapping with the CUDA driver")]

use std::ffi::{c_uint, c_void};
use std::mem::ManuallyDrop;

use dmabuf::{FdKind, Mapping, Seals};

use super::buffer::Buffer;
use super::device::{self, Device};
use super::driver::Address;
use crate::Region;

/// `CU_MEMHOSTREGISTER_DEVICEMAP`: for this context, which is waited for in the end.
const FLAGS: c_uint = 2;
/// Bytes of one registration at most: the driver keeps a table for each, and gives up at 512 GiB. Some kernels (6.11 to
/// 6.13) pin 2 GiB at most, for which there is `MapOptions::max_piece`.
pub(super) const MAX_REGISTRATION: u64 = 64 << 30;

/// A mapping that the driver has pinned. Dropping it waits for the device first; where that cannot be waited for, or
/// the driver does not let go of the pages, they stay mapped.
#[derive(Debug)]
pub(super) struct Registered {
    device: Device,
    mapping: ManuallyDrop<Mapping>,
    address: Address,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.device.wait() {
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
}

/// Where a mapping begins, as the driver wants it.
fn start(mapping: &Mapping) -> *mut c_void {
    mapping.view().as_ptr().cast_mut().cast()
}

/// Registers `from..from + len` of the region, which it has; the reason where that cannot be.
pub(super) fn register(device: &Device, region: &Region, from: u64, len: u64) -> Result<Buffer, String> {
    if !device.has(device::HOST_REGISTER_SUPPORTED).map_err(|error| error.to_string())? {
        return Err("this device does not read host memory in place".into());
    }
    let (Some(fd), Some(info)) = (region.fd(), region.info()) else {
        return Err("the bytes belong to this process and share their pages with others".into());
    };
    match &info.kind {
        FdKind::Memfd { seals, .. } if seals.intersects(Seals::WRITE | Seals::FUTURE_WRITE) => {
            return Err("it is sealed against writing, and the driver pins only what could be written".into());
        }
        FdKind::Memfd { seals, .. } if !seals.contains(Seals::SHRINK) => {
            return Err("it can shrink under the device: seal it against that".into());
        }
        FdKind::Memfd { .. } => {}
        FdKind::DmaBuf { .. } => {
            return Err(
                "the mapping of a dma-buf cannot be pinned: pass the memfd that it was made of".into()
            );
        }
        _ => return Err("only a memfd is pinned without a copy".into()),
    }
    if !info.writable {
        return Err("the descriptor is read-only, and the driver pins only what could be written".into());
    }
    let bytes = usize::try_from(len).map_err(|error| error.to_string())?;
    let mapping =
        Mapping::read_write(fd, region.offset() + from, bytes).map_err(|error| error.to_string())?;
    let functions = device.functions();
    let _current = device.enter().map_err(|error| error.to_string())?;
    // SAFETY: the range is one shared mapping of memory that cannot shrink. It stays mapped until it is unregistered:
    // both are done by `Registered`, in this order.
    let code = unsafe { (functions.host_register)(start(&mapping), bytes, FLAGS) };
    device.check("cuMemHostRegister", code).map_err(|error| error.to_string())?;
    let mapping = ManuallyDrop::new(mapping);
    let mut registered = Registered { device: device.clone(), mapping, address: 0 };
    let (address, memory) = (&raw mut registered.address, start(&registered.mapping));
    // SAFETY: the memory is registered with a place on the device, and the number is alive.
    let code = unsafe { (functions.host_get_address)(address, memory, 0) };
    device.check("cuMemHostGetDevicePointer", code).map_err(|error| error.to_string())?;
    Ok(Buffer::registered(registered))
}
