//! Loading the Vulkan loader, choosing a device, and making an instance and a logical device.

#![allow(unsafe_code, reason = "loads a library and calls Vulkan")]

use std::ffi::CStr;

use ash::{ext, khr, vk};

use super::device::{Device, Enabled, RawDevice};
use super::failed;
use super::owner::Owner;
use crate::DeviceError;
use crate::Result;

/// Device extensions that are used where the device has them. Enable them on a device of your own, and say so in
/// [`Enabled`].
pub const EXTENSIONS: [&CStr; 4] = [
    khr::external_memory_fd::NAME,
    ext::external_memory_dma_buf::NAME,
    ext::external_memory_host::NAME,
    ext::queue_family_foreign::NAME,
];

const LOADER: &str = "the Vulkan loader";

/// Names of the Vulkan devices of this machine, in the order in which [`Device::open`] counts them.
///
/// # Errors
/// As for [`Device::open`].
pub fn devices() -> Result<Vec<String>> {
    let instance = Instance::new()?;
    let names = instance.devices()?.into_iter().map(|device| instance.name(device)).collect();
    Ok(names)
}

/// The loader and an instance of this library's own; destroyed on drop unless a device took it over.
struct Instance {
    entry: ash::Entry,
    instance: Option<ash::Instance>,
}

impl Instance {
    fn new() -> Result<Self> {
        // SAFETY: `libvulkan.so.1` is the platform's Vulkan loader; its initialisers set up that library alone. Whoever
        // can replace it can replace any library of this process. The `Entry` keeps it loaded, and everything that is
        // made of it here holds the `Entry`.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| DeviceError::Unavailable {
            what: format!("Vulkan ({error})"),
            needs: "the Vulkan loader, libvulkan.so.1 (package libvulkan1)".into(),
        })?;
        // SAFETY: the function has no requirements; `entry` is a loaded loader.
        let version = unsafe { entry.try_enumerate_instance_version() }
            .map_err(|e| failed(LOADER, "vkEnumerateInstanceVersion", e))?
            .unwrap_or(vk::API_VERSION_1_0);
        if version < vk::API_VERSION_1_2 {
            let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
            return Err(DeviceError::Unavailable {
                what: format!("Vulkan 1.2 (the loader has {major}.{minor})"),
                needs: "a newer Vulkan loader".into(),
            }
            .into());
        }
        // The highest version whose structs are used; devices may have less.
        let application =
            vk::ApplicationInfo::default().engine_name(c"daxfs").api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: `info` is valid: no layers or extensions are named, and a loader of Vulkan 1.1 or later (1.2 was
        // found above) takes any version here, also one above its own. The instance is destroyed once, by this value
        // or by the `Owner` that takes it, before the entry is dropped.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(|e| match e {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => DeviceError::Unavailable {
                what: "a Vulkan driver".into(),
                needs:
                    "the driver of a graphics card, or Mesa's software driver (package mesa-vulkan-drivers)"
                        .into(),
            },
            e => failed(LOADER, "vkCreateInstance", e),
        })?;
        Ok(Self { entry, instance: Some(instance) })
    }

    fn get(&self) -> &ash::Instance {
        self.instance.as_ref().expect("taken only by the function that consumes the value")
    }

    fn devices(&self) -> Result<Vec<vk::PhysicalDevice>> {
        // SAFETY: a live instance.
        let found = unsafe { self.get().enumerate_physical_devices() };
        Ok(found.map_err(|e| failed(LOADER, "vkEnumeratePhysicalDevices", e))?)
    }

    fn name(&self, device: vk::PhysicalDevice) -> String {
        // SAFETY: `device` came from this live instance.
        let properties = unsafe { self.get().get_physical_device_properties(device) };
        device_name(&properties)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            // SAFETY: this value owns the instance, nothing that was made of it is left (a device would have taken it).
            unsafe { instance.destroy_instance(None) };
        }
    }
}

/// The name of a device, which is bounded by its array and need not be UTF-8.
pub(super) fn device_name(properties: &vk::PhysicalDeviceProperties) -> String {
    properties
        .device_name_as_c_str()
        .map_or_else(|_| "a device without a name".into(), |name| name.to_string_lossy().into())
}

impl Device {
    /// Opens device number `n`, counted from 0, with an instance, a logical device and a queue of its own.
    ///
    /// Every extension of [`EXTENSIONS`] and these features are enabled where the device has them:
    /// `bufferDeviceAddress`, `shaderInt64`, `shaderInt16`, `shaderInt8`, `shaderFloat16`, and 16-bit and 8-bit
    /// storage.
    ///
    /// # Errors
    /// As for [`crate::Device::open`].
    pub fn open(n: usize) -> Result<Self> {
        let mut instance = Instance::new()?;
        let found = instance.devices()?;
        let Some(&physical) = found.get(n) else {
            let names = found.into_iter().map(|device| instance.name(device)).collect();
            return Err(DeviceError::NoSuchDevice { number: n, names }.into());
        };
        // SAFETY: `physical` came from this live instance.
        let properties = unsafe { instance.get().get_physical_device_properties(physical) };
        let name = device_name(&properties);
        if properties.api_version < vk::API_VERSION_1_2 {
            return Err(DeviceError::Unavailable {
                what: format!("Vulkan 1.2 on {name}"),
                needs: "a newer driver of that device".into(),
            }
            .into());
        }
        let queue_family =
            queue_family(instance.get(), physical).ok_or_else(|| DeviceError::Unavailable {
                what: format!("a queue for shaders on {name}"),
                needs: "a device that computes".into(),
            })?;
        let extensions = extensions(instance.get(), physical, &name)?;
        let (device, enabled) = logical_device(instance.get(), physical, queue_family, &extensions, &name)?;
        // SAFETY: the device was made with one queue of this family, number 0, without flags.
        let queue = unsafe { device.get_device_queue(queue_family, 0) };
        let entry = instance.entry.clone();
        let taken = instance.instance.take().expect("nobody took it before");
        let raw =
            RawDevice { entry, instance: taken, physical_device: physical, device, queue_family, enabled };
        Ok(Self::new(raw, Owner::us(queue)))
    }
}

/// The first family that computes; those that also draw are as good.
fn queue_family(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Option<u32> {
    // SAFETY: `physical` came from this live instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let computes = |family: &vk::QueueFamilyProperties| {
        family.queue_count > 0 && family.queue_flags.contains(vk::QueueFlags::COMPUTE)
    };
    families.iter().position(computes).and_then(|n| u32::try_from(n).ok())
}

/// Those of [`EXTENSIONS`] that the device has.
fn extensions(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    name: &str,
) -> Result<Vec<&'static CStr>> {
    // SAFETY: `physical` came from this live instance.
    let offered = unsafe { instance.enumerate_device_extension_properties(physical) };
    let offered = offered.map_err(|e| failed(name, "vkEnumerateDeviceExtensionProperties", e))?;
    let has = |wanted: &CStr| offered.iter().any(|have| have.extension_name_as_c_str() == Ok(wanted));
    Ok(EXTENSIONS.into_iter().filter(|wanted| has(wanted)).collect())
}

/// A logical device with one queue and all that it offers of what images and shaders over them use.
fn logical_device(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    queue_family: u32,
    extensions: &[&'static CStr],
    name: &str,
) -> Result<(ash::Device, Enabled)> {
    let mut offered_11 = vk::PhysicalDeviceVulkan11Features::default();
    let mut offered_12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut offered =
        vk::PhysicalDeviceFeatures2::default().push_next(&mut offered_11).push_next(&mut offered_12);
    // SAFETY: the device has Vulkan 1.2 (checked by the caller), of which the two chained structs are part.
    unsafe { instance.get_physical_device_features2(physical, &mut offered) };
    let core = offered.features;

    let mut wanted_11 = vk::PhysicalDeviceVulkan11Features::default()
        .storage_buffer16_bit_access(offered_11.storage_buffer16_bit_access == vk::TRUE);
    let mut wanted_12 = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(offered_12.buffer_device_address == vk::TRUE)
        .storage_buffer8_bit_access(offered_12.storage_buffer8_bit_access == vk::TRUE)
        .shader_int8(offered_12.shader_int8 == vk::TRUE)
        .shader_float16(offered_12.shader_float16 == vk::TRUE);
    let features = vk::PhysicalDeviceFeatures::default()
        .shader_int64(core.shader_int64 == vk::TRUE)
        .shader_int16(core.shader_int16 == vk::TRUE);

    let queues =
        [vk::DeviceQueueCreateInfo::default().queue_family_index(queue_family).queue_priorities(&[1.0])];
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&names)
        .enabled_features(&features)
        .push_next(&mut wanted_11)
        .push_next(&mut wanted_12);
    // SAFETY: the family has a queue that computes, the device offers each extension and feature that is named, and
    // everything that `info` points to lives until the call returns.
    let device = unsafe { instance.create_device(physical, &info, None) };
    let device = device.map_err(|e| failed(name, "vkCreateDevice", e))?;

    let has = |wanted: &CStr| extensions.contains(&wanted);
    let enabled = Enabled {
        dma_buf: has(khr::external_memory_fd::NAME) && has(ext::external_memory_dma_buf::NAME),
        host_pointer: has(ext::external_memory_host::NAME),
        foreign_queue: has(ext::queue_family_foreign::NAME),
        buffer_device_address: offered_12.buffer_device_address == vk::TRUE,
    };
    Ok((device, enabled))
}
