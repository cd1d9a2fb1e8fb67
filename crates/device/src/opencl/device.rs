//! OpenCL devices, their contexts and queues.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::{CL_DEVICE_TYPE_ALL, CL_DEVICE_TYPE_CPU, Device as Handle};
use opencl3::error_codes::{ClError, DLOPEN_RUNTIME_LOAD_FAILED};
use opencl3::kernel::Kernel;
use opencl3::platform::get_platforms;
use opencl3::types::cl_device_id;

use super::external::Importer;
use super::failed;
use crate::{DeviceError, Result};

/// A device of an OpenCL driver, with a context and a queue of its own. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Device(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) max_buffer: u64,
    pub(super) shares_memory: bool,
    pub(super) is_processor: bool,
    /// How descriptors are imported; `None` where the driver has no way.
    pub(super) importer: Option<Importer>,
    pub(super) context: Context,
    pub(super) queue: CommandQueue,
    /// Compiled at the first import. One thread at a time sets its arguments.
    pub(super) sums: OnceLock<Result<Mutex<Kernel>, String>>,
}

/// Names of the OpenCL devices of all platforms.
///
/// # Errors
/// [`DeviceError::Unavailable`] without a loader, [`DeviceError::Driver`] with what else it answers.
pub fn devices() -> Result<Vec<String>> {
    let _alone = alone();
    handles()?.into_iter().map(|id| Ok(name(Handle::new(id))?)).collect()
}

fn name(handle: Handle) -> Result<String, DeviceError> {
    handle.name().map_err(|code| failed("the loader", "clGetDeviceInfo", code))
}

/// Drivers start when they are first asked for devices. PoCL 3.1 gives a second thread that asks meanwhile devices that
/// are not ready, and it crashes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn handles() -> Result<Vec<cl_device_id>, DeviceError> {
    let platforms = match get_platforms() {
        // The loader has no driver.
        Err(code) if code.0 == NO_PLATFORM => Vec::new(),
        found => found.map_err(failed_to_start)?,
    };
    // A platform without a device answers with an error, which is no reason to hide the devices of the others.
    Ok(platforms
        .iter()
        .flat_map(|platform| platform.get_devices(CL_DEVICE_TYPE_ALL).unwrap_or_default())
        .collect())
}

/// `CL_PLATFORM_NOT_FOUND_KHR`.
const NO_PLATFORM: i32 = -1001;

fn failed_to_start(code: ClError) -> DeviceError {
    match code.0 {
        DLOPEN_RUNTIME_LOAD_FAILED => DeviceError::Unavailable {
            what: "OpenCL".into(),
            needs: "a loader, libOpenCL.so (package ocl-icd-libopencl1), and a driver such as PoCL (pocl-opencl-icd)".into(),
        },
        _ => failed("the loader", "clGetPlatformIDs", code),
    }
}

impl Device {
    /// Opens device number `number`, counted from 0 over all platforms.
    ///
    /// # Errors
    /// As for [`crate::Device::open`].
    pub fn open(number: usize) -> Result<Self> {
        let _alone = alone();
        let found = handles()?;
        let Some(&id) = found.get(number) else {
            let names = found.into_iter().map(|id| name(Handle::new(id))).collect::<Result<_, _>>()?;
            return Err(DeviceError::NoSuchDevice { number, names }.into());
        };
        let handle = Handle::new(id);
        let name = name(handle)?;
        let asked = |code| failed(&name, "clGetDeviceInfo", code);
        let context = Context::from_device(&handle).map_err(|code| failed(&name, "clCreateContext", code))?;
        #[allow(
            deprecated,
            reason = "the call that replaces it is one of OpenCL 2.0, which not every driver has"
        )]
        let queue = CommandQueue::create_default(&context, 0);
        let queue = queue.map_err(|code| failed(&name, "clCreateCommandQueue", code))?;
        Ok(Self(Arc::new(Inner {
            max_buffer: handle.max_mem_alloc_size().map_err(asked)?,
            shares_memory: handle.host_unified_memory().map_err(asked)?,
            importer: Importer::of(&handle),
            is_processor: handle.dev_type().map_err(asked)? & CL_DEVICE_TYPE_CPU != 0,
            name,
            context,
            queue,
            sums: OnceLock::new(),
        })))
    }

    /// Name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The context that buffers are made in; programs and kernels that use them are made in it, too.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The queue. Others may be made in the context.
    pub fn queue(&self) -> &CommandQueue {
        &self.0.queue
    }
}
