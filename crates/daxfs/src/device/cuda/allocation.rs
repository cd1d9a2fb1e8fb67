//! Device memory that other processes can have: one allocation with a descriptor, mapped at one range of addresses.

#![allow(unsafe_code, reason = "calls the CUDA driver and takes descriptors over")]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::super::DeviceError;
use super::device::{self, Device};
use super::driver::{Access, Address, AllocationProperties, Handle, Location, OUT_OF_MEMORY};

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const DESCRIPTOR: c_int = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: c_int = 1;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
const MINIMUM: c_int = 0;
/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`.
const DMA_BUF: c_int = 1;

/// What this process may do with an allocation: `CUmemAccess_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Read = 1,
    ReadWrite = 3,
}

/// An allocation of device memory, mapped. Dropping it waits for the device first, since work that was submitted may
/// use it; where that cannot be waited for, the memory is never given back.
#[derive(Debug)]
pub(super) struct Allocation {
    range: ManuallyDrop<Range>,
    memory: ManuallyDrop<Memory>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if !self.device().wait() {
            return;
        }
        let Range { device, address, size } = &*self.range;
        // SAFETY: all of the range was mapped by one call, and no submitted work uses it any more.
        let code = unsafe { (device.functions().mem_unmap)(*address, *size) };
        if code == 0 {
            // SAFETY: nothing uses the field again. What is not unmapped must not be freed.
            unsafe { ManuallyDrop::drop(&mut self.range) };
        }
        // SAFETY: nothing uses the field again.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}

/// A handle of memory.
#[derive(Debug)]
struct Memory {
    device: Device,
    handle: Handle,
    /// What it was imported from: the driver exports only what it made itself.
    imported: Option<OwnedFd>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the handle was made for this value, which is its only owner. The driver keeps the memory as long as
        // it is mapped or has descriptors.
        let _ = unsafe { (self.device.functions().mem_release)(self.handle) };
    }
}

/// A range of addresses.
#[derive(Debug)]
struct Range {
    device: Device,
    address: Address,
    size: usize,
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the range was reserved for this value; what was mapped there is unmapped (see `Allocation`).
        let _ = unsafe { (self.device.functions().mem_address_free)(self.address, self.size) };
    }
}

impl Allocation {
    /// Allocates at least `len` bytes, for this process to read and write.
    pub fn new(device: &Device, len: u64) -> Result<Self, DeviceError> {
        let needs = |attribute, what: &str| match device.has(attribute)? {
            true => Ok(()),
            false => Err(DeviceError::Unavailable {
                what: format!("{what} on {}", device.name()),
                needs: "a GPU and driver with CUDA's virtual memory management".into(),
            }),
        };
        needs(device::VIRTUAL_MEMORY_SUPPORTED, "memory with addresses of its own")?;
        needs(device::POSIX_DESCRIPTORS_SUPPORTED, "memory with a descriptor")?;
        let properties = properties(device)?;
        let size = rounded(device, &properties, len)?;
        let _current = device.enter()?;
        let (functions, mut handle) = (device.functions(), 0);
        // SAFETY: the properties are a live and complete struct, and the size is a multiple of the granularity.
        let code = unsafe { (functions.mem_create)(&raw mut handle, size, &raw const properties, 0) };
        if code == OUT_OF_MEMORY {
            let free = device.memory().map_or(0, |(free, _)| free);
            return Err(DeviceError::OutOfMemory { device: device.name().into(), need: size as u64, free });
        }
        device.check("cuMemCreate", code)?;
        Self::map(Memory { device: device.clone(), handle, imported: None }, size, Rights::ReadWrite)
    }

    /// Takes the memory behind a descriptor that [`Allocation::share`] gave, here or in another process, for reading.
    /// `size` is what [`Allocation::size`] was there; the descriptor has none.
    pub fn import(device: &Device, fd: &OwnedFd, size: u64) -> Result<Self, DeviceError> {
        let size = rounded(device, &properties(device)?, size)?;
        let imported = Some(closed_on_exec(device, fd)?);
        let _current = device.enter()?;
        let mut handle = 0;
        // The descriptor goes through the parameter for the handles of other systems, as its number.
        let number = std::ptr::without_provenance_mut(usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX));
        // SAFETY: the descriptor is open and stays its owner's; the driver refuses one that is no memory of its own.
        let code = unsafe { (device.functions().mem_import)(&raw mut handle, number, DESCRIPTOR) };
        device.check("cuMemImportFromShareableHandle", code)?;
        Self::map(Memory { device: device.clone(), handle, imported }, size, Rights::Read)
    }

    /// Maps all of `memory`, which has `size` bytes; if it has not, the driver refuses. The context is current.
    fn map(memory: Memory, size: usize, rights: Rights) -> Result<Self, DeviceError> {
        let device = &memory.device;
        let functions = device.functions();
        let mut address = 0;
        // SAFETY: the number is alive; the size is a multiple of the granularity; the driver chooses alignment and
        // place.
        let code = unsafe { (functions.mem_address_reserve)(&raw mut address, size, 0, 0, 0) };
        device.check("cuMemAddressReserve", code)?;
        let range = Range { device: device.clone(), address, size };
        // SAFETY: the range is reserved and nothing is mapped there; offset 0 is the only one that there is.
        let code = unsafe { (functions.mem_map)(address, size, 0, memory.handle, 0) };
        device.check("cuMemMap", code)?;
        let allocation = Self { range: ManuallyDrop::new(range), memory: ManuallyDrop::new(memory) };
        allocation.set_rights(rights)?;
        Ok(allocation)
    }

    /// Leaves this process the right to read. Nothing that was submitted may still write.
    pub fn make_read_only(&self) -> Result<(), DeviceError> {
        if self.set_rights(Rights::Read).is_ok() {
            return Ok(());
        }
        // A driver that does not take rights away from a mapping gives them to a new one.
        let (device, address, size) = (self.device(), self.address(), self.range.size);
        let _current = device.enter()?;
        // SAFETY: all of the range was mapped by one call; nothing that was submitted uses it.
        let code = unsafe { (device.functions().mem_unmap)(address, size) };
        device.check("cuMemUnmap", code)?;
        // SAFETY: the range is reserved and nothing is mapped there; offset 0 is the only one that there is.
        let code = unsafe { (device.functions().mem_map)(address, size, 0, self.memory.handle, 0) };
        device.check("cuMemMap", code)?;
        self.set_rights(Rights::Read)
    }

    fn set_rights(&self, rights: Rights) -> Result<(), DeviceError> {
        let device = self.device();
        let access = Access { location: location(device), flags: rights as c_int };
        let _current = device.enter()?;
        // SAFETY: all of the range is mapped, and the struct is alive.
        let code = unsafe {
            (device.functions().mem_set_access)(self.address(), self.range.size, &raw const access, 1)
        };
        device.check("cuMemSetAccess", code)
    }

    /// A descriptor of the memory for another process, or to keep the memory after this one. It is no dma-buf, cannot
    /// be mapped by the CPU, and does not know its size.
    pub fn share(&self) -> Result<OwnedFd, DeviceError> {
        let mut fd = -1;
        let device = self.device();
        if let Some(fd) = &self.memory.imported {
            return closed_on_exec(device, fd);
        }
        // SAFETY: the handle is of memory that was made with this type of handle, and the number is alive.
        let code = unsafe { (device.functions().mem_export)(&raw mut fd, self.memory.handle, DESCRIPTOR, 0) };
        device.check("cuMemExportToShareableHandle", code)?;
        own(device, fd)
    }

    /// A dma-buf of the first `len` bytes, rounded up to whole pages, for network cards, drives and other devices.
    /// CUDA itself does not import it on discrete GPUs.
    pub fn export_dma_buf(&self, len: u64) -> Result<OwnedFd, DeviceError> {
        let device = self.device();
        let refused = |why: String| DeviceError::NotExportable { device: device.name().into(), why };
        if !device.has(device::DMA_BUF_SUPPORTED)? {
            return Err(refused("the driver was built for a kernel without dma-bufs".into()));
        }
        let len = usize::try_from(len.next_multiple_of(dmabuf::page_size())).unwrap_or(usize::MAX);
        let mut fd = -1;
        let _current = device.enter()?;
        let len = len.min(self.range.size);
        // SAFETY: the range is mapped with equal properties on one device, and begins and ends at whole pages. Flags
        // are 0: the other mapping type is for systems whose GPU and CPU are coherent.
        let code = unsafe {
            (device.functions().mem_get_range_handle)(&raw mut fd, self.address(), len, DMA_BUF, 0)
        };
        match code {
            0 => own(device, fd),
            code => Err(refused(format!("{} ({code})", device.functions().meaning(code)))),
        }
    }

    pub fn device(&self) -> &Device {
        &self.memory.device
    }

    pub fn address(&self) -> Address {
        self.range.address
    }

    /// Bytes, rounded up to what the driver allocates.
    pub fn size(&self) -> u64 {
        self.range.size as u64
    }
}

fn location(device: &Device) -> Location {
    Location { kind: ON_DEVICE, number: device.number() }
}

fn properties(device: &Device) -> Result<AllocationProperties, DeviceError> {
    Ok(AllocationProperties {
        kind: PINNED,
        handle_types: DESCRIPTOR,
        location: location(device),
        security: std::ptr::null(),
        compression: 0,
        rdma: u8::from(device.has(device::RDMA_WITH_VIRTUAL_MEMORY_SUPPORTED)?),
        usage: 0,
        reserved: [0; 4],
    })
}

/// `len`, not 0, rounded up to the device's granularity.
fn rounded(device: &Device, properties: &AllocationProperties, len: u64) -> Result<usize, DeviceError> {
    let mut unit = 0;
    // SAFETY: both are alive, and the struct is complete.
    let code = unsafe {
        (device.functions().mem_get_granularity)(&raw mut unit, std::ptr::from_ref(properties), MINIMUM)
    };
    device.check("cuMemGetAllocationGranularity", code)?;
    let size = usize::try_from(len).ok().and_then(|len| len.max(1).checked_next_multiple_of(unit.max(1)));
    size.ok_or_else(|| DeviceError::OutOfMemory { device: device.name().into(), need: len, free: 0 })
}

/// Takes a descriptor over that the driver made.
fn own(device: &Device, fd: c_int) -> Result<OwnedFd, DeviceError> {
    if fd < 0 {
        let why = "the driver answers with no descriptor".into();
        return Err(DeviceError::NotExportable { device: device.name().into(), why });
    }
    // SAFETY: the driver has just made the descriptor for this call, and gives it away.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    closed_on_exec(device, &fd)
}

/// Another descriptor of the same, closed on exec: a child of this process must not keep the memory.
fn closed_on_exec(device: &Device, fd: &OwnedFd) -> Result<OwnedFd, DeviceError> {
    fd.try_clone()
        .map_err(|error| DeviceError::NotExportable { device: device.name().into(), why: error.to_string() })
}
