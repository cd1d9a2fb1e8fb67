//! A CUDA device with its primary context, which PyTorch, JAX and all others of the process use as well.

#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{CStr, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use daxfs::DeviceUuid;

use super::driver::{self, Code, Functions, Number, Opaque};
use crate::DeviceError;
use crate::Result;

/// Numbers of `CUdevice_attribute` in cuda.h.
pub(super) const HOST_REGISTER_SUPPORTED: c_int = 99;
pub(super) const VIRTUAL_MEMORY_SUPPORTED: c_int = 102;
pub(super) const POSIX_DESCRIPTORS_SUPPORTED: c_int = 103;
pub(super) const RDMA_WITH_VIRTUAL_MEMORY_SUPPORTED: c_int = 110;
pub(super) const READ_ONLY_HOST_REGISTER_SUPPORTED: c_int = 113;
pub(super) const DMA_BUF_SUPPORTED: c_int = 124;
const HOST_NODE: c_int = 134;
const MEMORY_OF_HOST_NODES_SUPPORTED: c_int = 141;

/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` to `CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD`.
const CAPTURING: std::ops::RangeInclusive<Code> = 900..=908;

/// A GPU, as the driver numbers those that this process may see (`CUDA_VISIBLE_DEVICES`). Cloning shares it.
///
/// It retains the device's primary context until the last clone, buffer and place is gone. Each call makes that
/// context current for its own duration and puts back what was current before, so any thread may make it.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    functions: &'static Functions,
    number: Number,
    ordinal: usize,
    context: Opaque,
    name: String,
    uuid: DeviceUuid,
}

// SAFETY: the context is a handle, which the driver lets any thread make current (cuda.h, cuCtxPushCurrent); nothing
// else is reached through the pointer.
unsafe impl Send for Shared {}
// SAFETY: as for Send; nothing in it changes.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the context was retained once by `open`, and everything that uses it holds this value. What the
        // driver answers changes nothing any more.
        let _ = unsafe { (self.functions.primary_context_release)(self.number) };
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("ordinal", &self.0.ordinal).field("name", &self.0.name).finish()
    }
}

/// Names of the CUDA devices that this process may see, in the driver's order.
///
/// # Errors
/// [`DeviceError::Unavailable`] when there is no driver, [`DeviceError::Driver`] with what else it answers.
pub fn devices() -> Result<Vec<String>> {
    let functions = driver::functions()?;
    (0..count(functions)?).map(|ordinal| Ok(name(functions, number(functions, ordinal)?)?)).collect()
}

impl Device {
    /// The device number `ordinal`, counted from 0.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no driver or it is too old, [`DeviceError::NoSuchDevice`], and
    /// [`DeviceError::Driver`] with what else it answers.
    pub fn open(ordinal: usize) -> Result<Self> {
        let functions = driver::functions()?;
        let wanted = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        if wanted >= count(functions)? {
            return Err(DeviceError::NoSuchDevice { number: ordinal, names: devices()? }.into());
        }
        let number = number(functions, wanted)?;
        let name = name(functions, number)?;
        let mut uuid = [0; 16];
        // SAFETY: the device is one of the driver's, and the array has the 16 bytes of a CUuuid.
        let code = unsafe { (functions.device_get_uuid)(&raw mut uuid, number) };
        check(functions, &name, "cuDeviceGetUuid", code)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is one of the driver's; the context is released once, when the last user is gone.
        let code = unsafe { (functions.primary_context_retain)(&raw mut context, number) };
        check(functions, &name, "cuDevicePrimaryCtxRetain", code)?;
        Ok(Self(Arc::new(Shared { functions, number, ordinal, context, name, uuid: uuid.into() })))
    }

    /// Name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Number among the devices that this process may see.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// What tells the device from all others, whatever number a process sees it under.
    pub fn uuid(&self) -> DeviceUuid {
        self.0.uuid
    }

    /// Bytes of device memory: free, and in all.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        let _current = self.enter()?;
        // SAFETY: a context is current (`_current`), and both numbers are alive.
        let code = unsafe { (self.functions().mem_get_info)(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", code)?;
        Ok((free as u64, total as u64))
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.0.functions
    }

    pub(super) fn number(&self) -> Number {
        self.0.number
    }

    /// Whether both are the same GPU.
    pub(super) fn is(&self, uuid: &DeviceUuid) -> bool {
        self.0.uuid == *uuid
    }

    /// Whether the device has something: an attribute that is 0 or 1.
    pub(super) fn has(&self, attribute: c_int) -> Result<bool, DeviceError> {
        Ok(self.attribute(attribute)? != 0)
    }

    fn attribute(&self, attribute: c_int) -> Result<c_int, DeviceError> {
        let (functions, mut value) = (self.functions(), 0);
        // SAFETY: the device is one of the driver's. An attribute that the driver does not know is an error.
        let code = unsafe { (functions.device_get_attribute)(&raw mut value, attribute, self.0.number) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    /// The NUMA node of the host's memory that the driver allocates for this device, the one beside it.
    pub(super) fn host_node(&self) -> Result<c_int, DeviceError> {
        let unavailable = |needs: &str| DeviceError::Unavailable {
            what: format!("host memory with a descriptor for {}", self.name()),
            needs: needs.into(),
        };
        let needs_driver =
            || unavailable("a driver that allocates memory of NUMA nodes, as those since 575 do");
        match self.has(MEMORY_OF_HOST_NODES_SUPPORTED) {
            Ok(true) => {}
            // Older drivers do not know what they are asked for.
            Ok(false) | Err(DeviceError::Driver { code: driver::INVALID_VALUE, .. }) => {
                return Err(needs_driver());
            }
            Err(error) => return Err(error),
        }
        match self.attribute(HOST_NODE)? {
            node @ 0.. => Ok(node),
            _ => Err(unavailable("a kernel with NUMA nodes")),
        }
    }

    /// Makes the context current for this thread until the value is dropped.
    pub(super) fn enter(&self) -> Result<Current<'_>, DeviceError> {
        // SAFETY: the context is retained as long as this value lives, and popped by `Current`.
        let code = unsafe { (self.functions().context_push)(self.0.context) };
        self.check("cuCtxPushCurrent", code)?;
        Ok(Current { device: self, of: PhantomData })
    }

    /// Waits for everything that was submitted in this context, by anybody. False where that cannot be: then memory
    /// that such work may use must not be taken away.
    pub(super) fn wait(&self) -> bool {
        let Ok(_current) = self.enter() else { return false };
        // SAFETY: the context is current (`_current`).
        let code = unsafe { (self.functions().context_synchronize)() };
        // While work is recorded into a graph nothing is waited for. After any other error no work goes on.
        !CAPTURING.contains(&code)
    }

    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<(), DeviceError> {
        check(self.functions(), &self.0.name, call, code)
    }
}

/// A device's context that is current for this thread: who has a reference to such a value knows that it is. Code of
/// the caller's, which may make another one current and leave it so, is run only when there is none.
pub(super) struct Current<'a> {
    device: &'a Device,
    /// Not to be sent: the stack is the thread's.
    of: PhantomData<*const ()>,
}

impl Current<'_> {
    /// Functions that are given the context of another device are wrong, and are found by the tests.
    pub fn must_be_of(&self, device: &Device) {
        debug_assert_eq!(self.device.0.context, device.0.context, "the context of another device is current");
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: what `enter` pushed is on top: values of this type are dropped in the reverse order, being locals.
        let _ = unsafe { (self.device.functions().context_pop)(&raw mut popped) };
    }
}

/// A driver's answer as an error.
fn check(functions: &Functions, device: &str, call: &'static str, code: Code) -> Result<(), DeviceError> {
    match code {
        0 => Ok(()),
        code => {
            Err(DeviceError::Driver { device: device.into(), call, code, meaning: functions.meaning(code) })
        }
    }
}

const DRIVER: &str = "the CUDA driver";

fn count(functions: &Functions) -> Result<c_int, DeviceError> {
    let mut count = 0;
    // SAFETY: the number is alive.
    let code = unsafe { (functions.device_get_count)(&raw mut count) };
    check(functions, DRIVER, "cuDeviceGetCount", code)?;
    Ok(count)
}

fn number(functions: &Functions, ordinal: c_int) -> Result<Number, DeviceError> {
    let mut number = 0;
    // SAFETY: the number is alive; an ordinal that does not exist is an error.
    let code = unsafe { (functions.device_get)(&raw mut number, ordinal) };
    check(functions, DRIVER, "cuDeviceGet", code)?;
    Ok(number)
}

fn name(functions: &Functions, number: Number) -> Result<String, DeviceError> {
    let mut text = [0_u8; 256];
    // SAFETY: the array has as many bytes as the call is told, and the driver ends the name with NUL within them.
    let code = unsafe { (functions.device_get_name)(text.as_mut_ptr().cast(), 256, number) };
    check(functions, DRIVER, "cuDeviceGetName", code)?;
    Ok(CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned())
}
