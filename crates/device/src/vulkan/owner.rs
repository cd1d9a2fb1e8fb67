//! Who destroys a device, and when its buffers may go: not before the device is idle.
//!
//! Buffers can be dropped at any moment, also while another thread submits work. `vkDeviceWaitIdle` must not run
//! beside a submission, so what is dropped goes to a list first. Whoever can get the queue waits and empties the list:
//! the thread that dropped, or else the one that has the queue, when it gives it back.

#![allow(unsafe_code, reason = "destroys Vulkan objects")]

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ash::vk;

use daxfs::Region;

/// Buffers and the memory that they are bound to.
pub(super) struct Allocation {
    pub(super) memory: vk::DeviceMemory,
    pub(super) buffers: Vec<vk::Buffer>,
    /// Whose pages the device reads; unmapped after the memory object is freed.
    pub(super) region: Option<Region>,
}

impl Allocation {
    /// Destroys the buffers and frees the memory.
    ///
    /// # Safety
    /// The objects are of `device`, no work that uses them is pending, and nobody uses their handles any more.
    pub(super) unsafe fn destroy(self, device: &ash::Device) {
        for buffer in self.buffers {
            // SAFETY: by this function's contract; each buffer is in one allocation, which is consumed here.
            unsafe { device.destroy_buffer(buffer, None) };
        }
        // SAFETY: as above, and the buffers that were bound to it are gone. A null handle is ignored.
        unsafe { device.free_memory(self.memory, None) };
        drop(self.region);
    }
}

/// For types that keep a caller's device alive.
pub(super) type Keep = Arc<dyn std::any::Any + Send + Sync>;

/// Who made the instance and the device.
pub(super) enum Owner {
    /// This library: it has the only queue, and destroys everything.
    Us { queue: Mutex<vk::Queue>, doomed: Mutex<Vec<Allocation>> },
    /// The caller, who is kept alive and sees to pending work.
    Caller(#[allow(dead_code, reason = "held for its Drop")] Keep),
}

impl Owner {
    pub(super) fn us(queue: vk::Queue) -> Self {
        Self::Us { queue: Mutex::new(queue), doomed: Mutex::default() }
    }

    /// The queue, for this thread alone until the guard goes.
    pub(super) fn queue(&self) -> Option<MutexGuard<'_, vk::Queue>> {
        match self {
            // A thread that panicked between two submissions leaves the queue as good as it was.
            Self::Us { queue, .. } => Some(queue.lock().unwrap_or_else(PoisonError::into_inner)),
            Self::Caller(_) => None,
        }
    }

    /// Destroys an allocation, now or when whoever has the queue gives it back.
    ///
    /// # Safety
    /// The allocation is of `device`, which this value owns or was lent; no handle of it will be used any more; and
    /// with a lent device no work that uses it is pending.
    pub(super) unsafe fn retire(&self, allocation: Allocation, device: &ash::Device) {
        match self {
            Self::Us { doomed, .. } => {
                doomed.lock().unwrap_or_else(PoisonError::into_inner).push(allocation);
                self.collect(device);
            }
            // SAFETY: the caller's contract is that of `destroy`.
            Self::Caller(_) => unsafe { allocation.destroy(device) },
        }
    }

    /// Empties the list of what was dropped, unless another thread has the queue: it will do it.
    ///
    /// Nothing is forgotten: what is pushed after this thread looked into the list is seen by the pusher, who then
    /// finds the queue free, or by the next one who has it, since both look again after they let go.
    pub(super) fn collect(&self, device: &ash::Device) {
        let Self::Us { queue, doomed } = self else { return };
        let list = || doomed.lock().unwrap_or_else(PoisonError::into_inner);
        while !list().is_empty() {
            let guard = match queue.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let taken = mem::take(&mut *list());
            // SAFETY: `guard` is the lock of the device's only queue, so nobody submits meanwhile. An error can only
            // be the loss of the device or memory that ran out: in the first case nothing is pending any more.
            let idle = unsafe { device.device_wait_idle() };
            if matches!(idle, Ok(()) | Err(vk::Result::ERROR_DEVICE_LOST)) {
                for allocation in taken {
                    // SAFETY: what is in the list was given up by its last holder (contract of `retire`), and the
                    // device has finished all that was submitted before the lock was taken.
                    unsafe { allocation.destroy(device) };
                }
            } else {
                // Out of memory while waiting: tried again at the next drop, or when the device goes.
                list().extend(taken);
                return;
            }
            drop(guard);
        }
    }

    /// Waits, and destroys everything that is this library's.
    ///
    /// # Safety
    /// `instance` made `device`, this value is their owner, and neither is used after this call.
    pub(super) unsafe fn destroy(&mut self, instance: &ash::Instance, device: &ash::Device) {
        let Self::Us { doomed, .. } = self else { return };
        // SAFETY: `&mut self`: nobody else has the queue, nor will. If waiting fails the device is lost, or the
        // driver is out of memory: in both cases there is nothing better than to go on.
        let _ = unsafe { device.device_wait_idle() };
        for allocation in doomed.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: given up by its last holder, and the device is idle.
            unsafe { allocation.destroy(device) };
        }
        // SAFETY: all children that this library made are destroyed: buffers hold the device, so the last one went
        // before. The caller of this function vouches that the device is not used any more.
        unsafe { device.destroy_device(None) };
        // SAFETY: its only device is destroyed.
        unsafe { instance.destroy_instance(None) };
    }
}
