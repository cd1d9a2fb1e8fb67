//! `daxfs.DeviceImage`.

use std::os::fd::{IntoRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use daxfs::{Entry, FileType};
use daxfs_device::{Placement, Route};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};

use super::{DeviceFile, DeviceHandle, DeviceLookup, DeviceTensors, Held, uuid_text};
use crate::error::{self, OrRaise};
use crate::text::{self, ImagePath};
use crate::{image, mapping};

/// An image in the memory of a GPU, or in the host's where the GPU reads it: a read-only mapping from paths to
/// DeviceFile. Image.to(), Image.map() and Image.attach() make one.
///
/// Paths and names are those of the image, which is held too. Close it, or use it in a `with` statement; files,
/// tensors and arrays taken from it stay valid after that. The memory is given back with the last of them, after
/// waiting for the work that the GPU was given.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceImage(Mutex<Option<Held>>);

impl DeviceImage {
    pub fn new(held: Held) -> Self {
        Self(Mutex::new(Some(held)))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Held>> {
        // The slot holds a whole value at any time, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory, or a `ValueError` when the image was closed.
    fn opened(&self) -> PyResult<Held> {
        self.slot().clone().ok_or_else(|| PyValueError::new_err("the image is closed"))
    }

    /// A share in the memory.
    pub fn held(&self) -> PyResult<Held> {
        self.opened()
    }

    /// The one buffer of an image in the device's own memory, for others to have.
    fn exportable(&self) -> PyResult<Held> {
        let held = self.opened()?;
        if held.mapped.backing().is_some() {
            let why = "a split image lies in two memories of the device: pack it as one image to pass it on";
            return Err(error::device(why));
        }
        Ok(held)
    }
}

#[pymethods]
impl DeviceImage {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().opened()?;
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

    /// Lets go of the memory. It stays as long as files, tensors or arrays of it are alive.
    fn close(&self) {
        let held = self.slot().take();
        // Not under the slot's lock: this may wait for the device.
        drop(held);
    }

    /// True after close().
    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, path: ImagePath) -> PyResult<Bound<'py, PyAny>> {
        let held = self.opened()?;
        let file = image::file_at(py, held.mapped.image(), &path)?;
        Ok(Bound::new(py, DeviceFile::new(file, held))?.into_any())
    }

    /// The file at path, or default when there is none.
    #[pyo3(signature = (path, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        path: ImagePath,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        mapping::or_default(py, self.__getitem__(py, path), default)
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let held = self.opened()?;
        let Ok(path) = key.extract::<ImagePath>() else { return Ok(false) };
        let entry = held.mapped.image().entry(&path.0);
        Ok(entry.is_ok_and(|entry| entry.file_type() == FileType::File))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let held = self.opened()?;
        let name = |entry: Entry| -> PyResult<Bound<'py, PyString>> { text::relative(py, &entry.path()) };
        mapping::iter(py, image::files(held.mapped.image()).map(name).collect::<PyResult<_>>()?)
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(image::files(self.opened()?.mapped.image()).count())
    }

    fn _ipython_key_completions_<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyString>>> {
        image::files(self.opened()?.mapped.image()).map(|entry| text::relative(py, &entry.path())).collect()
    }

    /// The paths of all files; symbolic links that lead to a file are among them.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(slf)
    }

    /// All files.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(slf)
    }

    /// All pairs of path and file.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(slf)
    }

    /// The tensors of a safetensors file, of a checkpoint (its index.json) or of a directory that holds one of them.
    ///
    /// Without a path: of the one checkpoint or safetensors file that the image holds. variant chooses in a directory,
    /// or in the whole image: "fp16" for model.fp16.safetensors or model.safetensors.index.fp16.json.
    #[pyo3(signature = (path=None, *, variant=None))]
    fn tensors(
        &self,
        py: Python<'_>,
        path: Option<ImagePath>,
        variant: Option<String>,
    ) -> PyResult<DeviceTensors> {
        let held = self.opened()?;
        let image = held.mapped.image();
        let tensors = py.detach(|| match (path, variant) {
            (path, Some(variant)) => {
                image.tensors_of_variant(path.unwrap_or(ImagePath(Vec::new())).0, &variant)
            }
            (Some(path), None) => image.tensors_at(path.0),
            (None, None) => image.tensors(),
        });
        Ok(DeviceTensors::new(tensors.or_raise()?, held.clone()))
    }

    /// The tables by which kernels find files themselves, in the GPU's memory.
    ///
    /// DeviceError for an image in several pieces of memory, and for what one rank of a plan has.
    fn lookup(&self, py: Python<'_>) -> PyResult<DeviceLookup> {
        DeviceLookup::new(py, self.opened()?)
    }

    /// The memory for other processes, which take it by Image.attach(): a descriptor, with its size and the GPU's
    /// uuid, which says nothing for host memory: any GPU of the machine takes that.
    ///
    /// A process with the descriptor keeps the memory, also when this process is gone. DeviceError for a mapped image,
    /// whose own descriptor can be passed, and for a split one.
    fn share(&self, py: Python<'_>) -> PyResult<DeviceHandle> {
        let held = self.exportable()?;
        let shared = py.detach(|| held.buffer().and_then(daxfs_device::Buffer::share).transpose());
        shared.or_raise()?.map(DeviceHandle::new).ok_or_else(|| error::device("there is no memory to share"))
    }

    /// Compares this copy with the image: each file's BLAKE3, which the GPU computes, with that of the image's index,
    /// or of the image's own bytes where the index has none. DeviceError names a file that differs; DaxfsError when
    /// the hashes of the index do not add up to the image's content_hash.
    ///
    /// Where the driver cannot load the kernels for that, all bytes are copied back instead. Ctrl-C ends it.
    /// DeviceError for a mapped image, whose bytes are the host's.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        super::upload::verify(py, &self.opened()?.mapped)
    }

    /// Gives this copy to the holder that the image came from: from then on image.to() maps it in every process that
    /// opens the image from the holder, in milliseconds and also when this one has ended, until the holder drops or
    /// swaps the image, or ends.
    ///
    /// DeviceError for an image from elsewhere or in memory that could change, and for one that is only mapped or
    /// writable; PermissionError for who may not load images; NotFoundError when the name means another image by now.
    fn keep(&self, py: Python<'_>) -> PyResult<()> {
        let held = self.opened()?;
        py.detach(|| held.mapped.keep()).or_raise()
    }

    /// The memory for network cards, drives, FPGAs and other drivers, as a descriptor that the caller owns and closes;
    /// `kind` is "dma-buf". The CPU cannot map it and CUDA does not import it on discrete GPUs; for another CUDA
    /// process there is share(). DeviceError where the driver or the kind of memory has none, as host memory.
    fn export(&self, py: Python<'_>, kind: &str) -> PyResult<RawFd> {
        if kind != "dma-buf" {
            return Err(PyValueError::new_err(format!("expected \"dma-buf\", got {kind:?}")));
        }
        let held = self.exportable()?;
        let buffer = held.buffer().and_then(daxfs_device::Buffer::as_cuda);
        let fd = py.detach(|| buffer.map(daxfs_device::cuda::Buffer::export_dma_buf).transpose());
        let fd = fd.or_raise()?.ok_or_else(|| error::device("there is no memory to export"))?;
        Ok(fd.into_raw_fd())
    }

    /// The GPU's address of the first byte (CUdeviceptr): of the image, or of what a rank of a plan has of it.
    ///
    /// DeviceError for an image in several pieces of memory.
    #[getter]
    fn device_ptr(&self) -> PyResult<u64> {
        let held = self.opened()?;
        match held.mapped.buffers() {
            [buffer] => buffer.address().ok_or_else(|| error::device("the device has no addresses")),
            _ => Err(error::device("the image lies in several pieces of memory")),
        }
    }

    /// The rank whose part of the image this is; None for all of it.
    #[getter]
    fn rank(&self) -> PyResult<Option<usize>> {
        Ok(self.opened()?.mapped.placement().map(Placement::rank))
    }

    /// The GPU, as Image.to() takes it: "cuda:0", also for host memory that it reads.
    #[getter]
    fn device(&self) -> PyResult<String> {
        Ok(self.opened()?.device_text())
    }

    /// What tells the GPU from all others, as the driver's tools write it:
    /// "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx".
    #[getter]
    fn uuid(&self) -> PyResult<String> {
        Ok(uuid_text(self.opened()?.device.uuid()))
    }

    /// True when the bytes are in the GPU's own memory; False when it reads the host's, over the link.
    #[getter]
    fn resident(&self) -> PyResult<bool> {
        Ok(self.opened()?.is_resident())
    }

    /// True when image.to() made a copy; False when the memory is one that another process filled, or the host's.
    #[getter]
    fn copied(&self) -> PyResult<bool> {
        Ok(self.opened()?.mapped.memory().route() == Route::Copy)
    }

    /// Bytes of the image, or of what a rank of a plan has of it; a split image's backing file is not counted.
    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.opened()?.mapped.memory().len())
    }

    fn __repr__(&self) -> String {
        let Ok(held) = self.opened() else {
            return "<daxfs.DeviceImage, closed>".into();
        };
        let (device, name) = (held.device_text(), held.device.name());
        let place = if held.is_resident() { "on" } else { "in host memory for" };
        let (size, entries) = (text::size(held.mapped.memory().len()), held.mapped.image().len());
        format!("<daxfs.DeviceImage {place} {device} ({name}): {entries} entries, {size}>")
    }
}
