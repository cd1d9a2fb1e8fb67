//! A device of the caller's own.

#![allow(unsafe_code, reason = "makes a Vulkan device and lends it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs_device::vulkan::ash::{self, vk};
use daxfs_device::vulkan::{self, EXTENSIONS, Enabled, RawDevice};
use daxfs_device::{Device, ImageExt, Route};
use dmabuf::HugePages;
use mkimage::Memory;

use crate::support::{Hasher, device, memfd, open, pack, source};

/// What a program with a renderer has; destroys its device and instance on drop, and notes it.
struct Engine {
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    gone: Arc<AtomicBool>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: dropped by the last holder, after the last buffer; the test waits for each submission.
        unsafe { self.device.destroy_device(None) };
        // SAFETY: its device is destroyed.
        unsafe { self.instance.destroy_instance(None) };
        self.gone.store(true, Ordering::SeqCst);
    }
}

fn lend(gone: Arc<AtomicBool>) -> vulkan::Device {
    // SAFETY: the platform's loader; the engine holds it.
    let entry = unsafe { ash::Entry::load() }.unwrap();
    let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
    let info = vk::InstanceCreateInfo::default().application_info(&application);
    // SAFETY: a valid description; the engine destroys the instance.
    let instance = unsafe { entry.create_instance(&info, None) }.unwrap();
    // SAFETY: a live instance.
    let physical_device = unsafe { instance.enumerate_physical_devices() }.unwrap()[0];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
    let names: Vec<_> = EXTENSIONS.iter().map(|name| name.as_ptr()).collect();
    let mut features = vk::PhysicalDeviceVulkan12Features::default().buffer_device_address(true);
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&names)
        .push_next(&mut features);
    // SAFETY: the caller has found all of this enabled on the same device; family 0 of the software driver computes.
    let device = unsafe { instance.create_device(physical_device, &info, None) }.unwrap();
    let raw = RawDevice {
        entry: entry.clone(),
        instance: instance.clone(),
        physical_device,
        device: device.clone(),
        queue_family: 0,
        enabled: Enabled {
            dma_buf: true,
            host_pointer: true,
            foreign_queue: true,
            buffer_device_address: true,
        },
    };
    let engine = Engine { _entry: entry, instance, device, gone };
    // SAFETY: valid handles that belong together and live as long as the engine, made for Vulkan 1.3 with all that is
    // said to be enabled; every submission of this test is waited for before its buffer is dropped.
    unsafe { vulkan::Device::from_raw(raw, Arc::new(engine)) }
}

#[test]
fn a_lent_device_imports_and_outlives_its_buffers() {
    // Only the software driver is known to have what `lend` asks for.
    let enabled = device().and_then(|device| {
        let device = device.as_vulkan().unwrap();
        device.takes_memfds().then(|| device.enabled())
    });
    let Some(enabled) = enabled else { return eprintln!("not run: no software driver") };
    // `device()` has looked at the other things.
    assert!(enabled.foreign_queue);
    let gone = Arc::new(AtomicBool::new(false));
    let lent = Device::from(lend(gone.clone()));
    assert!(lent.as_vulkan().unwrap().queue().is_none(), "its queues are the lender's");
    let (_work, folder) = source();
    let sealed = open(&pack(&folder, &Memory::Memfd(HugePages::No)));
    let file = folder.parent().unwrap().join("image");
    mkimage::Packer::new().input(&folder).plan().unwrap().write_file(&file).unwrap();
    let shared = open(&memfd(&std::fs::read(&file).unwrap()).into());
    for (image, route) in [(sealed, Route::Mapping), (shared, Route::Descriptor)] {
        let mapped = image.map(&lent).unwrap();
        assert_eq!(mapped.memory().route(), route);
        let file = image.file("file-70001").unwrap();
        Hasher::new(&lent).check("lent", mapped.file(&file).unwrap().as_slice(), &file.to_vec().unwrap());
    }
    let image = open(&pack(&folder, &Memory::Memfd(HugePages::No)));
    let place = image.map(&lent).unwrap().file(&image.file("file-4").unwrap()).unwrap().one().unwrap();
    drop(lent);
    assert!(!gone.load(Ordering::SeqCst), "the place holds the device");
    drop(place);
    assert!(gone.load(Ordering::SeqCst), "the last user has let go");
}
