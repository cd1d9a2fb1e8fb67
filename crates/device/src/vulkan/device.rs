//! A Vulkan device, of this library's making or lent by the caller, and its limits.

#![allow(unsafe_code, reason = "asks Vulkan for limits, takes over a caller's device")]

use std::fmt;
use std::sync::{Arc, MutexGuard};

use ash::{ext, khr, vk};

use super::load::device_name;
use super::owner::{Allocation, Keep, Owner};

/// What is enabled on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Enabled {
    /// `VK_KHR_external_memory_fd` and `VK_EXT_external_memory_dma_buf`.
    pub dma_buf: bool,
    /// `VK_EXT_external_memory_host`.
    pub host_pointer: bool,
    /// `VK_EXT_queue_family_foreign`.
    pub foreign_queue: bool,
    /// The feature `bufferDeviceAddress`.
    pub buffer_device_address: bool,
}

/// What a device allows, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Longest buffer: `maxBufferSize` of a device of this library's making that has Vulkan 1.3, else
    /// `maxMemoryAllocationSize`; at most 4 GiB.
    pub max_buffer: u64,
    /// Longest storage-buffer binding: `maxStorageBufferRange`.
    pub max_storage_range: u64,
    /// Storage buffers are bound at multiples of this: `minStorageBufferOffsetAlignment`.
    pub storage_alignment: u64,
    /// Mappings are imported in multiples of this: `minImportedHostPointerAlignment`.
    pub mapping_alignment: u64,
}

/// A caller's device and what it was made of; see [`Device::from_raw`].
pub struct RawDevice {
    /// The loader.
    pub entry: ash::Entry,
    /// An instance for Vulkan 1.2 or later.
    pub instance: ash::Instance,
    /// The physical device.
    pub physical_device: vk::PhysicalDevice,
    /// The logical device, for Vulkan 1.2 or later.
    pub device: ash::Device,
    /// The queue family that will use the buffers.
    pub queue_family: u32,
    /// What was enabled when the logical device was made.
    pub enabled: Enabled,
}

impl fmt::Debug for RawDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawDevice").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

/// A Vulkan device. Cloning shares it; it is destroyed, if it is this library's, when the last clone and the last
/// buffer go.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

pub(super) struct Shared {
    pub(super) raw: RawDevice,
    pub(super) name: String,
    pub(super) driver: vk::DriverId,
    pub(super) limits: Limits,
    pub(super) memory_fd: Option<khr::external_memory_fd::Device>,
    pub(super) memory_host: Option<ext::external_memory_host::Device>,
    owner: Owner,
}

impl Device {
    /// Uses the caller's instance and device, for programs that have a renderer or a compute engine already.
    ///
    /// `owner` is held until the last clone of the result, and the last buffer made with it, are gone: let it be what
    /// destroys the device. This library never submits to the device's queues and never waits for them.
    ///
    /// # Safety
    /// * The handles in `raw` are valid, belong together, and stay so as long as `owner` is held.
    /// * Instance and device were made for Vulkan 1.2 or later, and with everything that `raw.enabled` says.
    /// * `raw.queue_family` is a family of the physical device.
    /// * When the last clone of a [`Buffer`](super::Buffer) of this device goes, no work that uses it is pending.
    #[must_use]
    pub unsafe fn from_raw(raw: RawDevice, owner: Arc<dyn std::any::Any + Send + Sync>) -> Self {
        let owner: Keep = owner;
        Self::new(raw, Owner::Caller(owner))
    }

    pub(super) fn new(raw: RawDevice, owner: Owner) -> Self {
        let (properties, driver, limits) = properties(&raw, &owner);
        let memory_fd =
            raw.enabled.dma_buf.then(|| khr::external_memory_fd::Device::new(&raw.instance, &raw.device));
        let memory_host = raw
            .enabled
            .host_pointer
            .then(|| ext::external_memory_host::Device::new(&raw.instance, &raw.device));
        let name = device_name(&properties);
        Self(Arc::new(Shared { raw, name, driver, limits, memory_fd, memory_host, owner }))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What the device allows.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// What is enabled.
    pub fn enabled(&self) -> Enabled {
        self.0.raw.enabled
    }

    /// True when the driver imports memfds as if they were dma-bufs: Mesa's software driver, which maps them.
    pub fn takes_memfds(&self) -> bool {
        self.0.driver == vk::DriverId::MESA_LLVMPIPE
    }

    /// The loader's functions.
    pub fn entry(&self) -> &ash::Entry {
        &self.0.raw.entry
    }

    /// The instance.
    pub fn instance(&self) -> &ash::Instance {
        &self.0.raw.instance
    }

    /// The physical device.
    pub fn physical_device(&self) -> vk::PhysicalDevice {
        self.0.raw.physical_device
    }

    /// The logical device: make pipelines and command buffers with it, and destroy them before this value goes.
    pub fn raw(&self) -> &ash::Device {
        &self.0.raw.device
    }

    /// The queue family that the device was made for.
    pub fn queue_family(&self) -> u32 {
        self.0.raw.queue_family
    }

    /// The device's queue, for this thread alone until the guard is dropped; waits for other threads. `None` for a
    /// caller's device, whose queues are the caller's.
    ///
    /// Buffers that are dropped meanwhile are destroyed when the guard is.
    pub fn queue(&self) -> Option<Queue<'_>> {
        let guard = self.0.owner.queue()?;
        Some(Queue { shared: &self.0, guard: Some(guard) })
    }

    /// Destroys an allocation as soon as the device is idle.
    ///
    /// # Safety
    /// The allocation is of this device, and its handles are not used any more but by work that was submitted; with
    /// a caller's device, not even by that.
    pub(super) unsafe fn retire(&self, allocation: Allocation) {
        // SAFETY: the contract is passed on; the owner's device is `raw.device`.
        unsafe { self.0.owner.retire(allocation, &self.0.raw.device) };
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name())
            .field("enabled", &self.enabled())
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: for a device of this library's making, `raw` holds the instance that made it. This is the last
        // reference: every buffer holds one, and what callers made with the handles had to go before (`Device::raw`).
        unsafe { self.owner.destroy(&self.raw.instance, &self.raw.device) };
    }
}

/// The queue of a [`Device`] of this library's making, held by one thread.
pub struct Queue<'a> {
    shared: &'a Shared,
    /// Present until the drop.
    guard: Option<MutexGuard<'a, vk::Queue>>,
}

impl Queue<'_> {
    /// The queue's handle, for use while this guard lives.
    pub fn handle(&self) -> vk::Queue {
        self.guard.as_deref().copied().unwrap_or_default()
    }
}

impl fmt::Debug for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({:?})", self.handle())
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.guard = None;
        self.shared.owner.collect(&self.shared.raw.device);
    }
}

/// No buffer is longer, whatever a driver says: some keep lengths in 32 bits.
const MAX_PIECE: u64 = 4 << 30;

/// Properties, driver and limits of the physical device.
fn properties(raw: &RawDevice, owner: &Owner) -> (vk::PhysicalDeviceProperties, vk::DriverId, Limits) {
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut maintenance3 = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut maintenance4 = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    // SAFETY: the handles belong together (contract of `from_raw`, or made by `open`).
    let basic = unsafe { raw.instance.get_physical_device_properties(raw.physical_device) };
    let mut all =
        vk::PhysicalDeviceProperties2::default().push_next(&mut driver).push_next(&mut maintenance3);
    // Of Vulkan 1.3, for which a caller's instance need not be made.
    if basic.api_version >= vk::API_VERSION_1_3 && matches!(owner, Owner::Us { .. }) {
        all = all.push_next(&mut maintenance4);
    }
    if raw.enabled.host_pointer {
        all = all.push_next(&mut host);
    }
    // SAFETY: each chained struct belongs to a version or extension that instance and physical device have, and
    // outlives the call: the first two are of Vulkan 1.2, for which both were made (`from_raw`'s contract, checked by
    // `open`), `open` makes its instances for 1.3, and the extension is enabled.
    unsafe { raw.instance.get_physical_device_properties2(raw.physical_device, &mut all) };
    let max_allocation = maintenance3.max_memory_allocation_size;
    let max_buffer = match maintenance4.max_buffer_size {
        0 => max_allocation,
        known => known,
    };
    let limits = Limits {
        max_buffer: max_buffer.min(MAX_PIECE),
        max_storage_range: basic.limits.max_storage_buffer_range.into(),
        storage_alignment: basic.limits.min_storage_buffer_offset_alignment.max(1),
        mapping_alignment: host.min_imported_host_pointer_alignment.max(1),
    };
    (basic, driver.driver_id, limits)
}
