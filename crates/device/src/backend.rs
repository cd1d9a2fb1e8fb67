//! What a family of devices does for the rest of the crate. A family is a module with a `Device` and a `Buffer` that
//! implement these, and a row of the table in `family.rs`.

#![forbid(unsafe_code)]

use std::fmt::Debug;

use daxfs::DeviceUuid;
use daxfs::Region;
use daxfs::dlpack::DLDevice;

use crate::copy::segments::Segments;
use crate::verify::{Advance, Hash};
use crate::{Buffer, DeviceError, MapOptions, MappedRegion, Place, Result, Shared, UploadOptions};

/// A device. A device without memory of its own for images has the first three only.
pub(crate) trait Backend: Debug {
    /// Device number `number` of the family, which texts call `family`.
    fn open(family: &str, number: usize) -> Result<Self>
    where
        Self: Sized;

    /// Name, as the driver gives it.
    fn name(&self) -> &str;

    /// Gives the first `len` bytes of a region, not 0 and at most all, to the device, without a copy.
    fn map(&self, region: &Region, len: u64, options: &MapOptions) -> Result<MappedRegion>;

    /// Copies these segments of a region into memory of the device's own, or of the host for it.
    fn upload(&self, _: &Region, _: &Segments, _: &UploadOptions) -> Result<Buffer> {
        Err(self.not_resident("map it, which copies nothing").into())
    }

    /// The device, whatever number a process sees it under; `None` where its memory cannot be shared.
    fn uuid(&self) -> Option<DeviceUuid> {
        None
    }

    /// Memory that another process filled, of which `len` bytes, not more than there are, are used.
    fn import(&self, _: &Shared, _len: u64) -> Result<Buffer> {
        Err(self.not_resident("map it, which copies nothing").into())
    }

    /// BLAKE3 hashes of places, computed by the device, in their order; `None` where it cannot compute them. `advance`
    /// is told of bytes that are done, and may end it.
    fn hash(&self, _: &[Place], _advance: Advance<'_>) -> Result<Option<Vec<Hash>>> {
        Ok(None)
    }

    /// The device keeps no images in memory of its own.
    fn not_resident(&self, advice: &'static str) -> DeviceError {
        DeviceError::NotResident { device: self.name().into(), advice }
    }
}

/// Memory that a device reads.
pub(crate) trait Memory: Debug {
    /// Bytes, not 0.
    fn len(&self) -> u64;

    /// The device's address of the first byte, where it has addresses.
    fn address(&self) -> Option<u64>;

    /// Whether the bytes are in the device's own memory; else the device reads the host's.
    fn is_resident(&self) -> bool {
        false
    }

    /// Whether the bytes are a copy of the image's, in whatever memory; else they are the image's own.
    fn is_copy(&self) -> bool {
        false
    }

    /// Whether work that this process gives the device may write.
    fn is_writable(&self) -> bool {
        false
    }

    /// Copies bytes of a copy back to the host, and waits for them.
    fn read(&self, _offset: u64, _bytes: &mut [u8]) -> Result<()> {
        let why = "the device does not copy it back: read the image's own file".into();
        Err(DeviceError::NotExportable { device: "the buffer".into(), why }.into())
    }

    /// Where the memory is, in the terms of DLPack, and the address of the first byte there; `None` where DLPack's
    /// consumers do not share it.
    fn dl_own(&self) -> Option<(DLDevice, u64)> {
        None
    }

    /// The device that reads it in place, in the terms of DLPack, and the address of the first byte for that.
    fn dl_reader(&self) -> Option<(DLDevice, u64)> {
        None
    }

    /// The memory for other processes; `None` where the family shares none.
    fn share(&self) -> Option<Result<Shared>> {
        None
    }
}
