//! Whether a device sees the bytes that it was given: it sums up samples, and so does the host.

#![allow(unsafe_code, reason = "runs a kernel on a buffer")]

use std::sync::{Mutex, PoisonError};

use daxfs::Region;
use opencl3::error_codes::ClError;
use opencl3::kernel::Kernel;
use opencl3::memory::{Buffer as Memory, CL_MEM_COPY_HOST_PTR, CL_MEM_READ_WRITE, ClMem};
use opencl3::program::Program;
use opencl3::types::CL_BLOCKING;

use super::buffer::Buffer;
use super::device::Device;

/// Samples of an import, and the bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4096;

/// Each work item sums up one sample: FNV-1a, of 64 bits.
const KERNEL: &str = "
kernel void daxfs_sums(global const uchar *from, ulong step, ulong len, ulong end, global ulong *sums) {
    ulong start = get_global_id(0) * step, sum = 0xcbf29ce484222325UL;
    for (ulong at = start; at < min(start + len, end); at++) sum = (sum ^ from[at]) * 0x100000001b3UL;
    sums[get_global_id(0)] = sum;
}";

impl Device {
    /// Whether the device sees the host's bytes: sums of samples, of both.
    pub(super) fn compare(&self, buffer: &Buffer, region: &Region, start: u64) -> Result<(), String> {
        let said = |code: ClError| code.to_string();
        let compiled = self.0.sums.get_or_init(|| {
            let program = Program::create_and_build_from_source(&self.0.context, KERNEL, "")?;
            Kernel::create(&program, "daxfs_sums").map(Mutex::new).map_err(said)
        });
        let kernel = compiled.as_ref().map_err(|why| format!("samples cannot be compared: {why}"))?;
        let kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let count = buffer.len().div_ceil(SAMPLE).min(SAMPLES);
        let step = buffer.len() / count;
        let mut found = vec![0_u64; usize::try_from(count).map_err(|e| e.to_string())?];
        // SAFETY: the bytes are copied before the call returns, as the flag says.
        let sums = unsafe {
            Memory::<u64>::create(
                &self.0.context,
                CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR,
                found.len(),
                found.as_mut_ptr().cast(),
            )
        };
        let sums = sums.map_err(said)?;
        let (handle, end, output, items) = (buffer.handle(), buffer.len(), sums.get(), [found.len()]);
        // SAFETY: the kernel's first parameter is a buffer; this one is of its context and lives until it has run.
        unsafe { kernel.set_arg(0, &handle) }.map_err(said)?;
        for (number, value) in [(1, &step), (2, &SAMPLE), (3, &end)] {
            // SAFETY: these parameters are `ulong`.
            unsafe { kernel.set_arg(number, value) }.map_err(said)?;
        }
        // SAFETY: as for the first; this buffer has a `ulong` for each item.
        unsafe { kernel.set_arg(4, &output) }.map_err(said)?;
        let (null, run) = (std::ptr::null(), kernel.get());
        let queue = &self.0.queue;
        let acquired = buffer.acquire(queue).map_err(|e| e.to_string())?;
        // SAFETY: one dimension, whose size lives for the call. All parameters are set, and no other thread sets them
        // meanwhile. Each item reads below `end`, the length of the buffer, and writes its own sum.
        let done = unsafe { queue.enqueue_nd_range_kernel(run, 1, null, items.as_ptr(), null, &[]) };
        done.and_then(|event| event.wait()).map_err(said)?;
        acquired.release().map_err(|e| e.to_string())?;
        // SAFETY: the call blocks until all of `found`, which is as long as the buffer, is written.
        unsafe { self.0.queue.enqueue_read_buffer(&sums, CL_BLOCKING, 0, &mut found, &[]) }.map_err(said)?;
        for (number, found) in (0..).zip(found) {
            let at = number * step;
            let mut bytes =
                vec![0; usize::try_from(SAMPLE.min(buffer.len() - at)).map_err(|e| e.to_string())?];
            region.read_at(start + at, &mut bytes).map_err(|e| e.to_string())?;
            if found != sum(&bytes) {
                return Err(format!(
                    "the driver took the memory, and the device sees other bytes at {:#x}",
                    start + at
                ));
            }
        }
        Ok(())
    }
}

/// What the kernel computes.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_fnv_1a() {
        assert_eq!(sum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(sum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
