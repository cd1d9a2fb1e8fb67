//! Giving a region to a Vulkan device: which route, and the steps that the routes share.

#![allow(unsafe_code, reason = "makes Vulkan buffers and memory")]

use ash::vk;
use daxfs::Region;

use super::device::Device;
use super::{descriptor, mapping};
use crate::map::describe;
use crate::{DeviceError, MapOptions, MappedRegion, Refusal, Result, Route};

/// Usages of every imported buffer: reading by shaders and transfers.
const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw() | vk::BufferUsageFlags::STORAGE_BUFFER.as_raw(),
);

impl Device {
    /// Imports the first `len` bytes of a region, which has as many and at least one.
    pub(super) fn import(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion> {
        let limits = self.limits();
        let cut = options.cut(len, limits.max_buffer).ok_or_else(|| DeviceError::Unavailable {
            what: format!("buffers of 2 MiB on {}", self.name()),
            needs: format!("a device whose buffers may be longer than {} bytes", limits.max_buffer),
        })?;
        let mut refusals = Vec::new();
        for &route in options.routes() {
            let imported = match route {
                Route::Descriptor => descriptor::import(self, region, cut),
                Route::Mapping => mapping::import(self, region, cut),
                Route::Copy => Err("mapping does not copy".into()),
            };
            match imported {
                Ok(buffers) => {
                    let buffers = buffers.into_iter().map(crate::Buffer::from).collect();
                    return Ok(MappedRegion::new(self.clone().into(), buffers, cut, route));
                }
                Err(why) => refusals.push(Refusal { route, why }),
            }
        }
        Err(DeviceError::NotImportable {
            device: self.name().into(),
            memory: describe(region),
            refusals,
            advice: "pack the image into a dma-heap or a udmabuf (daxfs-pack --into heap:system), or copy",
        }
        .into())
    }

    /// Usages of a buffer, with those that every buffer has.
    pub(super) fn usage(&self, more: vk::BufferUsageFlags) -> vk::BufferUsageFlags {
        let address = match self.enabled().buffer_device_address {
            true => vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS,
            false => vk::BufferUsageFlags::empty(),
        };
        USAGE | address | more
    }

    /// What the driver does with buffers over such memory.
    pub(super) fn external(
        &self,
        usage: vk::BufferUsageFlags,
        kind: vk::ExternalMemoryHandleTypeFlags,
    ) -> vk::ExternalMemoryFeatureFlags {
        let info = vk::PhysicalDeviceExternalBufferInfo::default().usage(usage).handle_type(kind);
        let mut answer = vk::ExternalBufferProperties::default();
        // SAFETY: a live instance and its physical device; the handle type is of an extension that is enabled (the
        // routes check that first).
        unsafe {
            self.instance().get_physical_device_external_buffer_properties(
                self.physical_device(),
                &info,
                &mut answer,
            );
        }
        answer.external_memory_properties.external_memory_features
    }
}
