//! `daxfs.DeviceHandle`, by which a GPU's memory gets from process to process, and `Image.attach`, which takes it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use daxfs::DeviceUuid;
use daxfs_device::{Device, Shared};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::{DeviceImage, Held, Ranked, open, parse_uuid, uuid_text};
use crate::error::OrRaise;
use crate::{source, text};

/// Memory of a GPU, or host memory for GPUs, for other processes, from DeviceImage.share(): send the descriptor with
/// size and uuid, which it does not carry, and pass all three to Image.attach() there.
///
/// The descriptor is the driver's own: it is not a dma-buf, and the CPU cannot map it. As long as it is open, here or
/// anywhere, the memory stays, even when the process that filled it is gone. Close it, or use it in a `with`
/// statement.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceHandle {
    fd: Mutex<Option<OwnedFd>>,
    size: u64,
    uuid: DeviceUuid,
}

impl DeviceHandle {
    pub fn new(shared: Shared) -> Self {
        let Shared { fd, size, uuid } = shared;
        Self { fd: Mutex::new(Some(fd)), size, uuid }
    }

    fn slot(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // The slot holds a whole value at any time, so a panic elsewhere cannot have left it half done.
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same memory, with a descriptor of its own.
    fn shared(&self) -> PyResult<Shared> {
        let slot = self.slot();
        let fd = slot.as_ref().ok_or_else(closed)?.try_clone()?;
        Ok(Shared { fd, size: self.size, uuid: self.uuid })
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the handle is closed")
}

#[pymethods]
impl DeviceHandle {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().fileno()?;
        Ok(slf)
    }

    #[pyo3(signature = (_exception_type, _exception, _traceback, /))]
    fn __exit__(
        &self,
        _exception_type: Option<&Bound<'_, PyAny>>,
        _exception: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) {
        self.close();
    }

    /// Closes the descriptor. The memory stays as long as images or other descriptors of it do.
    fn close(&self) {
        let fd = self.slot().take();
        drop(fd);
    }

    /// True after close().
    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    /// The descriptor, to pass it on: subprocess.Popen(..., pass_fds=[handle.fileno()]), or socket.send_fds.
    ///
    /// It belongs to the handle, which closes it when it goes.
    fn fileno(&self) -> PyResult<RawFd> {
        self.slot().as_ref().map(AsRawFd::as_raw_fd).ok_or_else(closed)
    }

    /// Bytes of the memory: those of the image, rounded up to what the driver allocates.
    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    /// The GPU that has the memory, whatever number a process sees it under:
    /// "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx". All digits are 0 for host memory, which any GPU of the machine
    /// reads.
    #[getter]
    fn uuid(&self) -> String {
        uuid_text(self.uuid)
    }

    fn __repr__(&self) -> String {
        let size = text::size(self.size);
        let state = if self.closed() { ", closed" } else { "" };
        let place = match self.uuid {
            DeviceUuid::HOST => "in host memory".to_owned(),
            uuid => format!("on {}", uuid_text(uuid)),
        };
        format!("<daxfs.DeviceHandle: {size} {place}{state}>")
    }
}

/// What Python code gave as the memory: a handle, or a descriptor with the two numbers. The descriptor is duplicated.
fn shared(memory: &Bound<'_, PyAny>, size: Option<u64>, uuid: Option<&str>) -> PyResult<Shared> {
    match (memory.cast::<DeviceHandle>(), size, uuid) {
        (Ok(handle), None, None) => handle.get().shared(),
        (Ok(_), ..) => Err(PyTypeError::new_err("a DeviceHandle has size and uuid already")),
        (Err(_), Some(size), Some(uuid)) => {
            let uuid = parse_uuid(uuid)?;
            Ok(Shared { fd: source::descriptor("memory", memory)?, size, uuid })
        }
        (Err(_), ..) => {
            let message = "a descriptor needs size= and uuid=, which the DeviceHandle has that it comes from";
            Err(PyTypeError::new_err(message))
        }
    }
}

/// Takes memory that another process filled with this image, or with what a plan gives a rank of it.
pub fn attach(
    py: Python<'_>,
    image: &daxfs::Image,
    device: &str,
    memory: &Bound<'_, PyAny>,
    size: Option<u64>,
    uuid: Option<&str>,
    plan: Option<&Ranked>,
) -> PyResult<DeviceImage> {
    let shared = shared(memory, size, uuid)?;
    let device = open(py, device)?;
    let target = Device::Cuda(device.clone());
    let attach = || match plan {
        Some(plan) => target.attach_placed(&plan.place(image)?, &shared),
        None => target.attach(image, &shared),
    };
    let mapped = py.detach(attach).or_raise()?;
    Ok(DeviceImage::new(Held::new(mapped, device)))
}
