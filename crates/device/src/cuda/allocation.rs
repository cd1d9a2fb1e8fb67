//! Memory that other processes can have, the device's or the host's beside it: one allocation with a descriptor, mapped
//! at one range of addresses.

#![allow(unsafe_code, reason = "calls the CUDA driver and takes descriptors over")]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::device::{self, Current, Device};
use super::driver::{Access, Address, AllocationProperties, Handle, Location, OUT_OF_MEMORY};
use crate::DeviceError;
use daxfs::DeviceUuid;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const DESCRIPTOR: c_int = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: c_int = 1;
/// `CU_MEM_LOCATION_TYPE_HOST_NUMA`.
const ON_HOST_NODE: c_int = 3;
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

/// An allocation, mapped for the device, and host memory at the same addresses for the CPU. Dropping it waits for the
/// device first, since work that was submitted may use it; where that cannot be waited for, the memory is never given
/// back.
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
    /// The device, or a NUMA node of the host.
    location: Location,
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

impl Memory {
    /// Where the driver has it, which a descriptor does not say.
    fn location(&self, current: &Current<'_>) -> Result<Location, DeviceError> {
        current.must_be_of(&self.device);
        let mut properties = properties(&self.device, self.location)?;
        // SAFETY: the struct is alive and complete, and the handle is this value's.
        let code = unsafe { (self.device.functions().mem_get_properties)(&raw mut properties, self.handle) };
        self.device.check("cuMemGetAllocationPropertiesFromHandle", code)?;
        Ok(properties.location)
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
    /// Allocates at least `len` bytes of the device's memory, for this process to read and write.
    pub fn on_device(device: &Device, len: u64) -> Result<Self, DeviceError> {
        Self::new(device, on(device), len)
    }

    /// Allocates at least `len` bytes of the host memory beside the device.
    pub fn in_host(device: &Device, len: u64) -> Result<Self, DeviceError> {
        let location = Location { kind: ON_HOST_NODE, number: device.host_node()? };
        Self::new(device, location, len)
    }

    fn new(device: &Device, location: Location, len: u64) -> Result<Self, DeviceError> {
        let needs = |attribute, what: &str| match device.has(attribute)? {
            true => Ok(()),
            false => Err(DeviceError::Unavailable {
                what: format!("{what} on {}", device.name()),
                needs: "a GPU and driver with CUDA's virtual memory management".into(),
            }),
        };
        needs(device::VIRTUAL_MEMORY_SUPPORTED, "memory with addresses of its own")?;
        needs(device::POSIX_DESCRIPTORS_SUPPORTED, "memory with a descriptor")?;
        let properties = properties(device, location)?;
        let size = rounded(device, &properties, len)?;
        let current = device.enter()?;
        let (functions, mut handle) = (device.functions(), 0);
        // SAFETY: the properties are a live and complete struct, and the size is a multiple of the granularity.
        let code = unsafe { (functions.mem_create)(&raw mut handle, size, &raw const properties, 0) };
        if code == OUT_OF_MEMORY && location.kind == ON_HOST_NODE {
            let (node, need) = (location.number, size as u64);
            return Err(DeviceError::OutOfHostMemory { device: device.name().into(), need, node });
        }
        if code == OUT_OF_MEMORY {
            let free = device.memory().map_or(0, |(free, _)| free);
            return Err(DeviceError::OutOfMemory { device: device.name().into(), need: size as u64, free });
        }
        device.check("cuMemCreate", code)?;
        let memory = Memory { device: device.clone(), handle, location, imported: None };
        Self::map(memory, size, Rights::ReadWrite, &current)
    }

    /// Takes the memory behind a descriptor that [`Allocation::share`] gave, here or in another process, for reading.
    /// `size` is what [`Allocation::size`] was there; the descriptor has none. Host memory is any device's; `uuid` is
    /// that of the device whose memory it is else.
    pub fn import(device: &Device, fd: &OwnedFd, size: u64, uuid: DeviceUuid) -> Result<Self, DeviceError> {
        let is_other = !device.is(&uuid);
        let other =
            || DeviceError::OtherDevice { device: device.name().into(), wanted: uuid, found: device.uuid() };
        let imported = fd.try_clone().map_err(|error| DeviceError::Unavailable {
            what: format!("another descriptor of the memory for {}", device.name()),
            needs: format!("room for it ({error})"),
        })?;
        let current = device.enter()?;
        let mut handle = 0;
        // The descriptor goes through the parameter for the handles of other systems, as its number.
        let number = std::ptr::without_provenance_mut(usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX));
        // SAFETY: the descriptor is open and stays its owner's; the driver refuses one that is no memory of its own.
        let code = unsafe { (device.functions().mem_import)(&raw mut handle, number, DESCRIPTOR) };
        let check = device.check("cuMemImportFromShareableHandle", code);
        // A device may be refused the memory of another one.
        check.map_err(|error| if is_other && !uuid.is_host() { other() } else { error })?;
        let mut memory =
            Memory { device: device.clone(), handle, location: on(device), imported: Some(imported) };
        match memory.location(&current)? {
            // Whatever was sent along: GPUs that reach each other's memory take it.
            Location { kind: ON_DEVICE, number } if is_other || number != device.number() => {
                return Err(other());
            }
            Location { kind: ON_DEVICE, .. } => {}
            location @ Location { kind: ON_HOST_NODE, .. } => {
                device.host_node()?;
                memory.location = location;
            }
            Location { kind, .. } => {
                return Err(DeviceError::Unavailable {
                    what: format!("memory at a location of the kind {kind} for {}", device.name()),
                    needs: "to be a GPU's, or to be allocated on a NUMA node of the host".into(),
                });
            }
        }
        let size = rounded(device, &properties(device, memory.location)?, size)?;
        Self::map(memory, size, Rights::Read, &current)
    }

    /// Maps all of `memory`, which has `size` bytes; if it has not, the driver refuses.
    fn map(memory: Memory, size: usize, rights: Rights, current: &Current<'_>) -> Result<Self, DeviceError> {
        let device = &memory.device;
        current.must_be_of(device);
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
        let access = |location| Access { location, flags: rights as c_int };
        // The CPU has the same addresses; without this it has no rights there.
        let both = [access(on(device)), access(self.memory.location)];
        let access = if self.is_host() { &both[..] } else { &both[..1] };
        let _current = device.enter()?;
        // SAFETY: all of the range is mapped, and the structs are alive, as many as the call is told.
        let code = unsafe {
            (device.functions().mem_set_access)(
                self.address(),
                self.range.size,
                access.as_ptr(),
                access.len(),
            )
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
        if self.is_host() {
            return Err(refused(
                "the driver makes no dma-buf of its host memory: the image's own descriptor is one for other drivers, \
                 or a udmabuf of it is"
                    .into(),
            ));
        }
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

    /// Whether it is memory of the host, which the CPU has at the same addresses.
    pub fn is_host(&self) -> bool {
        self.memory.location.kind == ON_HOST_NODE
    }

    /// Bytes, rounded up to what the driver allocates.
    pub fn size(&self) -> u64 {
        self.range.size as u64
    }
}

fn on(device: &Device) -> Location {
    Location { kind: ON_DEVICE, number: device.number() }
}

fn properties(device: &Device, location: Location) -> Result<AllocationProperties, DeviceError> {
    let is_for_rdma = location.kind == ON_DEVICE && device.has(device::RDMA_WITH_VIRTUAL_MEMORY_SUPPORTED)?;
    Ok(AllocationProperties {
        kind: PINNED,
        handle_types: DESCRIPTOR,
        location,
        security: std::ptr::null(),
        compression: 0,
        rdma: u8::from(is_for_rdma),
        usage: 0,
        reserved: [0; 4],
    })
}

/// `len`, not 0, rounded up to what the driver allocates by.
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
