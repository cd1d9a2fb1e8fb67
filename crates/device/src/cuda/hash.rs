//! BLAKE3 of device memory, computed by the device: kernels that come with this library as PTX, which the driver
//! compiles for whatever GPU it finds.

#![allow(unsafe_code, reason = "loads kernels into the CUDA driver and launches them")]

use std::ffi::{CStr, c_void};

use zerocopy::IntoBytes;

use super::allocation::Allocation;
use super::device::{Current, Device};
use super::driver::{Address, Opaque};
use super::extents::{Batch, Capacity, Extent, Hash, Range, Work};
use super::staging::{Slot, Staging};
use super::stream::Stream;
use crate::verify::Advance;
use crate::{DeviceError, Place, Result};

/// `hash.cu`, compiled by `scripts/ptx.py`: text, which ends with NUL for the driver.
const PTX: &str = concat!(include_str!("hash.ptx"), "\0");

/// Room for 1 GiB at a time, in 36 MiB of device memory: enough threads to keep a GPU busy.
const LARGE: Capacity = Capacity { slots: 1 << 20, extents: 1 << 16 };
/// Where there is not as much memory: 2 MiB, the least that there is to have.
const SMALL: Capacity = Capacity { slots: 1 << 15, extents: 1 << 13 };

/// The hashes of places in a copy, in their order; `None` where the driver cannot load the kernels. What is wrong with
/// the driver itself shows again when the bytes are fetched.
pub(super) fn places(device: &Device, places: &[Place], advance: Advance<'_>) -> Result<Option<Vec<Hash>>> {
    let Ok(hasher) = Hasher::load(device) else { return Ok(None) };
    // Places of a copy have addresses; those without bytes need none.
    let range = |place: &Place| Range { address: place.address().unwrap_or(0), len: place.len() };
    let ranges: Vec<Range> = places.iter().map(range).collect();
    // SAFETY: each range is a place, whose memory is mapped for the device as long as the place lives; `places` is
    // borrowed until the call has returned.
    Ok(Some(unsafe { hasher.hash(&ranges, advance) }?))
}

/// The kernels, loaded.
#[derive(Debug)]
pub(super) struct Hasher<'a> {
    device: &'a Device,
    module: Opaque,
    chunks: Opaque,
    parents: Opaque,
    collect: Opaque,
}

impl Drop for Hasher<'_> {
    fn drop(&mut self) {
        let Ok(_current) = self.device.enter() else { return };
        // SAFETY: the module was loaded by `load`, is unloaded once, and none of its kernels runs: `hash` waits for
        // them.
        let _ = unsafe { (self.device.functions().module_unload)(self.module) };
    }
}

impl<'a> Hasher<'a> {
    /// Loads the kernels. The driver cannot where the GPU is older than compute capability 7.0, or where its compiler
    /// (`libnvidia-ptxjitcompiler.so.1`) is missing.
    pub fn load(device: &'a Device) -> Result<Self, DeviceError> {
        let current = device.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the pointer is alive and a context current (`current`); the text is PTX that ends with NUL.
        let code = unsafe { (device.functions().module_load)(&raw mut module, PTX.as_ptr().cast()) };
        device.check("cuModuleLoadData", code)?;
        let null = std::ptr::null_mut();
        let mut hasher = Self { device, module, chunks: null, parents: null, collect: null };
        hasher.chunks = hasher.function(c"daxfs_hash_chunks", &current)?;
        hasher.parents = hasher.function(c"daxfs_hash_parents", &current)?;
        hasher.collect = hasher.function(c"daxfs_hash_collect", &current)?;
        Ok(hasher)
    }

    fn function(&self, name: &CStr, current: &Current<'_>) -> Result<Opaque, DeviceError> {
        current.must_be_of(self.device);
        let mut function = std::ptr::null_mut();
        // SAFETY: the pointer is alive, the module loaded, and its context current.
        let code = unsafe {
            (self.device.functions().module_get_function)(&raw mut function, self.module, name.as_ptr())
        };
        self.device.check("cuModuleGetFunction", code)?;
        Ok(function)
    }

    /// The hashes of ranges of the device's memory. `advance` is told the bytes of each batch that is done, and may end
    /// the work with an error.
    ///
    /// # Safety
    /// All ranges are mapped for the device until the call returns.
    pub unsafe fn hash(
        &self,
        ranges: &[Range],
        mut advance: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Hash>> {
        let (capacity, scratch) = self.scratch()?;
        let at = |offset: usize| scratch.address() + offset as u64;
        let nodes = at(0);
        let extents = at(capacity.slots as usize * size_of::<Hash>());
        let hashes = extents + (capacity.extents * size_of::<Extent>()) as u64;
        let places = Places { nodes, extents, hashes };

        let mut work = Work::new(ranges, capacity);
        let current = self.device.enter()?;
        let staging = Staging::new(self.device, 1, capacity.extents * size_of::<Extent>(), &current)?;
        let mut table = Slot::new(&staging, &current)?;
        // Dropped before the slot and the memory that it uses.
        let stream = Stream::new(self.device, &current)?;
        drop(current);
        let mut found = vec![[0; 32]; capacity.extents];
        while let Some(batch) = work.batch() {
            let current = self.device.enter()?;
            let bytes = batch.extents.as_bytes();
            table.bytes(&current)?[..bytes.len()].copy_from_slice(bytes);
            // SAFETY: the scratch memory has room for as many extents as a batch has, and outlives the stream.
            unsafe { table.send(bytes.len(), extents, &stream, &current) }?;
            // SAFETY: the scratch memory has room for the batch's nodes, extents and hashes, the caller answers for the
            // ranges, and both stay until the stream is waited for, which `fetch` and the drop of the stream do.
            unsafe { self.launch(&batch, places, &stream, &current) }?;
            let found = &mut found[..batch.extents.len()];
            // SAFETY: the last kernel writes as many hashes there.
            unsafe { stream.fetch(found.as_mut_bytes(), hashes, &current) }?;
            work.put(&batch, found);
            // The caller's code may make another context current.
            drop(current);
            advance(batch.len())?;
        }
        Ok(work.finish())
    }

    /// Device memory for nodes, extents and hashes, in this order, and how many of them it holds.
    fn scratch(&self) -> Result<(Capacity, Allocation), DeviceError> {
        let size = |capacity: Capacity| {
            let each = size_of::<Extent>() + size_of::<Hash>();
            (capacity.slots as usize * size_of::<Hash>() + capacity.extents * each) as u64
        };
        match Allocation::on_device(self.device, size(LARGE)) {
            Ok(memory) => Ok((LARGE, memory)),
            Err(DeviceError::OutOfMemory { .. }) => {
                Ok((SMALL, Allocation::on_device(self.device, size(SMALL))?))
            }
            Err(error) => Err(error),
        }
    }

    /// Launches the kernels of one batch, one after the other.
    ///
    /// # Safety
    /// The memory of `places` holds the batch's nodes, extents and hashes, and the extents were sent there before. It
    /// stays, as do the ranges, until the stream is through.
    unsafe fn launch(
        &self,
        batch: &Batch,
        places: Places,
        stream: &Stream<'_>,
        current: &Current<'_>,
    ) -> Result<(), DeviceError> {
        let Places { mut nodes, mut extents, mut hashes } = places;
        let (mut count, mut slots) = (len(&batch.extents), batch.slots);
        let [extents, nodes, hashes] = [&raw mut extents, &raw mut nodes, &raw mut hashes].map(|p| p.cast());
        let mut parameters = [extents, pointer(&mut count), nodes, pointer(&mut slots)];
        // SAFETY: the types are those of the kernel's parameters in `hash.cu`; the caller answers for the memory.
        unsafe { stream.launch(self.chunks, batch.slots, &mut parameters, current) }?;
        for (level, pairs) in (0_u32..).zip(&batch.levels) {
            let (mut level, mut count, mut threads) = (level, pairs.extents, pairs.pairs);
            let mut parameters =
                [extents, pointer(&mut count), nodes, pointer(&mut threads), pointer(&mut level)];
            // SAFETY: as above.
            unsafe { stream.launch(self.parents, pairs.pairs, &mut parameters, current) }?;
        }
        let mut parameters = [extents, pointer(&mut count), nodes, hashes];
        // SAFETY: as above.
        unsafe { stream.launch(self.collect, len(&batch.extents), &mut parameters, current) }
    }
}

/// Where a batch's things are on the device.
#[derive(Debug, Clone, Copy)]
struct Places {
    nodes: Address,
    extents: Address,
    hashes: Address,
}

/// A number that a kernel takes.
fn pointer(number: &mut u32) -> *mut c_void {
    std::ptr::from_mut(number).cast()
}

fn len(extents: &[Extent]) -> u32 {
    u32::try_from(extents.len()).unwrap_or(u32::MAX)
}
