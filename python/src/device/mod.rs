//! Images in the memory of an NVIDIA GPU: `daxfs.DeviceImage` and what it leads to, one file per class.
//!
//! The paths, names, types and shapes are those of the image on the host, which all of them hold; only bytes are
//! asked of the device. Each object holds the device's memory, and whoever drops the last one waits for the device,
//! without the interpreter lock.

mod file;
mod handle;
mod image;
mod lookup;
mod part;
mod plan;
mod tensor;
mod tensors;
mod upload;

use std::ops::Deref;
use std::sync::Arc;

use daxfs::DeviceUuid;
use daxfs::dlpack::DLDevice;
use daxfs_device::placement::Assigned;
use daxfs_device::{Buffer, Device, DeviceName, ImageExt, MapOptions, MappedImage, Place, Places, cuda};
use pyo3::exceptions::{PyAttributeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::dlpack::Devices;
use crate::dtype::{Element, element};
use crate::error::{self, OrRaise};
use crate::unlocked;

pub use file::DeviceFile;
pub use handle::{DeviceHandle, attach};
pub use image::DeviceImage;
pub use lookup::DeviceLookup;
pub use part::DeviceTensorPart;
pub use plan::Ranked;
pub use tensor::DeviceTensor;
pub use tensors::DeviceTensors;
pub use upload::{Upload, to};

/// Names of the CUDA devices that this process may see: devices()[0] is the name of "cuda:0".
///
/// DeviceError when there is no driver, which says what is missing.
#[pyfunction]
pub fn devices(py: Python<'_>) -> PyResult<Vec<String>> {
    py.detach(cuda::devices).or_raise()
}

/// The device that Python code named: "cuda" is "cuda:0".
pub fn open(py: Python<'_>, text: &str) -> PyResult<cuda::Device> {
    let name = named(text).filter(|name| !name.is_host()).ok_or_else(|| {
        PyValueError::new_err(format!("a device is \"cuda\" or \"cuda:N\", N counted from 0, not {text:?}"))
    })?;
    py.detach(|| cuda::Device::open(name.number())).or_raise()
}

/// The device that Python code named to copy to, and whether the copy is to be in host memory for it.
fn open_target(py: Python<'_>, text: &str) -> PyResult<(cuda::Device, bool)> {
    let name = named(text).ok_or_else(|| {
        PyValueError::new_err(format!(
            "a device is \"cuda\" or \"cuda:N\", or \"cuda-host:N\" for the host memory beside one, N counted from \
             0, not {text:?}"
        ))
    })?;
    Ok((py.detach(|| cuda::Device::open(name.number())).or_raise()?, name.is_host()))
}

/// The name of a GPU, or of host memory beside one.
fn named(text: &str) -> Option<DeviceName> {
    text.parse().ok().filter(|name: &DeviceName| name.family() == "cuda")
}

/// Gives an image's memory to a device, without a copy.
pub fn map(py: Python<'_>, image: &daxfs::Image, device: &str, piece: Option<u64>) -> PyResult<DeviceImage> {
    let device = open(py, device)?;
    let mut options = MapOptions::new();
    if let Some(bytes) = piece {
        options = options.max_piece(bytes);
    }
    let mapped = py.detach(|| image.map_with(&Device::Cuda(device.clone()), &options)).or_raise()?;
    Ok(DeviceImage::new(Held::new(mapped, device)))
}

/// An image where a device reads it.
#[derive(Debug)]
pub struct Placed {
    mapped: MappedImage,
    device: cuda::Device,
}

impl Placed {
    /// As `open` takes it.
    fn device_text(&self) -> String {
        format!("cuda:{}", self.device.ordinal())
    }

    /// Gives the copy to the image's holder, unless it came from there; whether it was given.
    pub fn keep(&self) -> daxfs_device::Result<bool> {
        self.mapped.keep_if_new()
    }

    /// Whether the bytes are in the device's own memory.
    fn is_resident(&self) -> bool {
        self.buffer().is_some_and(Buffer::is_resident)
    }

    /// Whether kernels of this process may write.
    fn is_writable(&self) -> bool {
        self.buffer().is_some_and(Buffer::is_writable)
    }

    /// Whether something of a tensor is there: all of them are, without a plan.
    fn holds(&self, tensor: &daxfs::Tensor) -> PyResult<bool> {
        let Some(placement) = self.mapped.placement() else { return Ok(true) };
        Ok(placement.assigned(tensor).or_raise()? != Assigned::Nothing)
    }

    /// The tensor, if something of it is there.
    fn placed(&self, tensor: daxfs::Tensor) -> PyResult<daxfs::Tensor> {
        if !self.holds(&tensor)? {
            // Says which rank has nothing of it.
            self.mapped.part(&tensor).or_raise()?;
        }
        Ok(tensor)
    }

    /// Names of the tensors of which something is there.
    fn names(&self, tensors: &daxfs::Tensors) -> PyResult<Vec<String>> {
        if self.mapped.placement().is_none() {
            return tensors.names().into_iter().map(OrRaise::or_raise).collect();
        }
        let mut names = Vec::new();
        for tensor in tensors.iter() {
            let tensor = tensor.or_raise()?;
            if self.holds(&tensor)? {
                names.push(tensor.name().to_owned());
            }
        }
        Ok(names)
    }

    /// The first buffer, which is the only one of an image in the device's own memory.
    fn buffer(&self) -> Option<&Buffer> {
        self.mapped.buffers().first()
    }

    /// The device's address of a place.
    fn address(place: &Place) -> PyResult<u64> {
        place.address().ok_or_else(|| error::device("the device has no addresses"))
    }

    /// The device in the terms of DLPack, and the GPU.
    fn dl_devices(&self) -> Devices {
        let host = Devices { own: DLDevice::CUDA_HOST, gpu: None };
        self.buffer().map_or(host, |buffer| Devices {
            own: buffer.dl_device().unwrap_or(DLDevice::CUDA_HOST),
            gpu: buffer.dl_gpu(),
        })
    }

    /// Copies `len` bytes, which lie at these places, back to the host.
    fn read<'py>(&self, py: Python<'py>, places: &Places, len: u64) -> PyResult<Bound<'py, PyBytes>> {
        let size = usize::try_from(len)
            .map_err(|_| PyValueError::new_err("the size does not fit the address space"))?;
        PyBytes::new_with(py, size, |target| {
            py.detach(|| {
                let mut left = target;
                for place in places {
                    // The places are in order and as long as all of the target together.
                    let len = usize::try_from(place.len()).unwrap_or(usize::MAX).min(left.len());
                    let (part, rest) = left.split_at_mut(len);
                    if !part.is_empty() {
                        place.buffer().read(place.offset(), part)?;
                    }
                    left = rest;
                }
                Ok::<_, daxfs_device::Error>(())
            })
            .or_raise()
        })
    }
}

/// Version 3 of CUDA's array interface: `strides` in elements, where there are gaps.
fn cuda_array_interface<'py>(
    py: Python<'py>,
    placed: &Placed,
    tensor: &daxfs::Tensor,
    place: &Place,
    shape: &[u64],
    strides: Option<&[u64]>,
) -> PyResult<Bound<'py, PyDict>> {
    let Element::Native { numpy, .. } = element(tensor.dtype()) else {
        let dtype = tensor.dtype().name();
        let message = format!("__cuda_array_interface__ has no name for {dtype}; use DLPack");
        return Err(PyAttributeError::new_err(message));
    };
    // Here every type has its byte order, which single bytes do not have.
    let typestr = match numpy {
        "?" => "|b1".to_owned(),
        name if name.starts_with('<') => name.to_owned(),
        name => format!("|{name}"),
    };
    // The interface wants 0 where there is nothing.
    let pointer = if place.is_empty() { 0 } else { Placed::address(place)? };
    let size = u64::from(tensor.dtype().block().bytes);
    let bytes = |strides: &[u64]| PyTuple::new(py, strides.iter().map(|stride| stride * size));
    let interface = PyDict::new(py);
    interface.set_item("shape", PyTuple::new(py, shape)?)?;
    interface.set_item("typestr", typestr)?;
    interface.set_item("data", (pointer, !placed.is_writable()))?;
    interface.set_item("strides", strides.map(bytes).transpose()?)?;
    interface.set_item("stream", py.None())?;
    interface.set_item("version", 3)?;
    Ok(interface)
}

/// A share in a placed image. The last one gives the memory back.
#[derive(Debug, Clone)]
pub struct Held(Option<Arc<Placed>>);

impl Held {
    pub fn new(mapped: MappedImage, device: cuda::Device) -> Self {
        Self(Some(Arc::new(Placed { mapped, device })))
    }
}

impl Deref for Held {
    type Target = Placed;

    fn deref(&self) -> &Placed {
        // Only `drop` takes it out.
        self.0.as_deref().expect("a share that was not dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(last) = self.0.take().and_then(Arc::into_inner) {
            unlocked::drop_unlocked(last);
        }
    }
}

/// As the driver's tools write that of a whole GPU. Nothing tells here whether it is one, or a part (MIG).
fn uuid_text(uuid: DeviceUuid) -> String {
    format!("GPU-{uuid}")
}

/// The other way. Capitals do as well, and so does the prefix of a part of a GPU, or none.
fn parse_uuid(text: &str) -> PyResult<DeviceUuid> {
    text.parse().map_err(|_| {
        PyValueError::new_err(format!("a uuid is GPU- and 32 hexadecimal digits with dashes, not {text:?}"))
    })
}

/// What numpy is told, which takes whatever has a length and indices.
fn no_host_array(held: &Held) -> PyErr {
    PyTypeError::new_err(format!(
        "the tensor is in the memory of {}: numpy takes it from the image on the host; read() fetches the bytes back",
        held.device_text()
    ))
}
