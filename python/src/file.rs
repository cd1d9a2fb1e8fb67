//! `daxfs.File`: a file of an image, lent out as a buffer.

#![allow(unsafe_code, reason = "promises of the buffer protocol")]

use std::ffi::CStr;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use daxfs::{SharedBytes, Transfer, Verify};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyAttributeError, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyIterator, PySlice, PyString, PyTuple, PyType};

use crate::buffer::{self, Borrowed, Dimensions, Export, Exporter};
use crate::error::OrRaise;
use crate::original::Original;
use crate::tensors::Tensors;
use crate::{mapping, reduce, source, text};

/// The PyO3 half of `daxfs.File`; see [`crate::buffer`].
#[pyclass(frozen, subclass, weakref, module = "daxfs", name = "_FileBase")]
#[derive(Debug)]
pub struct FileBase {
    file: daxfs::File,
    /// Parsed at first use; the files of one image share it below, this saves the way there.
    tensors: OnceLock<daxfs::Tensors>,
    dimensions: Dimensions,
}

// SAFETY: the memory is a view into the file's region, which the `daxfs::File` in the object keeps mapped. It is
// declared writable only for a region that is mapped so. The dimensions are a field of the frozen object.
unsafe impl Exporter for FileBase {
    const CLASS_NAME: &'static CStr = c"daxfs.File";
    const CLASS_DOC: &'static CStr = c"A file of an image.

It is a buffer: memoryview(file), numpy.frombuffer(file, ...), hashlib.sha256(file) read the image's memory in place.
file.open() is a stream of its bytes, file[a:b] and file.read_at(offset, length) are copies of some, len(file) counts them.
A safetensors file gives its tensors by name: file[\"lm_head.weight\"].";

    fn class() -> &'static PyOnceLock<Py<PyType>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &CLASS
    }

    fn export(&self) -> PyResult<Export<'_>> {
        check(&self.file)?;
        let bytes = self.file.bytes().or_raise()?;
        Ok(Export {
            data: bytes.as_ptr(),
            len: bytes.len(),
            readonly: !self.file.region().is_writable(),
            format: Ok(c"B"),
            dimensions: &self.dimensions,
        })
    }
}

/// Makes a `daxfs.File`.
pub fn create(py: Python<'_>, file: daxfs::File) -> PyResult<Bound<'_, PyAny>> {
    let dimensions = Dimensions::new(&[file.len()], 1)?;
    buffer::create(py, FileBase { file, tensors: OnceLock::new(), dimensions })
}

/// Compares a file with its hash at its first use, if the image was opened so, without the lock: it may take long.
pub fn check(file: &daxfs::File) -> PyResult<()> {
    match file.image().options().verification() {
        Some(Verify::Lazy) => Python::attach(|py| py.detach(|| file.check())).or_raise(),
        _ => Ok(()),
    }
}

impl FileBase {
    /// Sends everything step by step, so that Ctrl-C is heard.
    fn send_to(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        patience: Option<Duration>,
    ) -> PyResult<u64> {
        let to = source::descriptor("a target", target)?;
        check(&self.file)?;
        let _access = self.file.region().cpu_access().or_raise()?;
        let step = |transfer: &mut Transfer<'_>| -> PyResult<()> {
            while !transfer.is_done() {
                let sent = py.detach(|| match transfer.step(to.as_fd()) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        dmabuf::wait_writable(to.as_fd(), patience)
                    }
                    sent => sent.map(drop),
                });
                match sent {
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        return Err(PyTimeoutError::new_err("timed out"));
                    }
                    Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                    _ => py.check_signals()?,
                }
            }
            Ok(())
        };
        match self.file.transfer().or_raise()? {
            Some(mut transfer) => {
                step(&mut transfer)?;
                // A device that has gone meanwhile has sent what is not the file's.
                drop(self.file.region().cpu_access().or_raise()?);
            }
            None => {
                let mut buffer = vec![0; 256 << 10];
                let mut offset = 0;
                while offset < self.file.len() {
                    let read = self.file.read_at(offset, &mut buffer).or_raise()?;
                    step(&mut Transfer::new(SharedBytes::from_slice(&buffer[..read]), None))?;
                    offset += read as u64;
                }
            }
        }
        Ok(self.file.len())
    }

    fn parsed(&self, py: Python<'_>) -> PyResult<&daxfs::Tensors> {
        if let Some(tensors) = self.tensors.get() {
            return Ok(tensors);
        }
        let tensors = py.detach(|| self.file.tensors()).or_raise()?;
        Ok(self.tensors.get_or_init(|| tensors))
    }
}

#[pymethods]
impl FileBase {
    #[new]
    #[pyo3(signature = (token=None), text_signature = None)]
    fn new(token: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        buffer::take(token)
    }

    /// Name of the file, without directories.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::decode(py, self.file.entry().name())
    }

    /// Path in the image.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::relative(py, &self.file.path())
    }

    /// Size in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.file.len()
    }

    /// Inode number in the image; names with the same number are hard links of one file.
    #[getter]
    fn ino(&self) -> u64 {
        self.file.ino()
    }

    /// Type and permission bits, as in os.stat_result.st_mode.
    #[getter]
    fn mode(&self) -> u32 {
        self.file.entry().metadata().mode
    }

    /// Where the contents lie: (offset in the image's memory, bytes). None when they lie in several places.
    #[getter]
    fn extent(&self) -> Option<(u64, u64)> {
        self.file.extent().map(|extent| (extent.offset, extent.len))
    }

    /// Opens the contents as a stream: an io.BufferedReader, as open(path, "rb") gives one, that reads, seeks and has
    /// readinto. numpy.load, zipfile, pickle.load, PIL and pandas take it. It is at the start, has a position of its own
    /// and keeps the image's memory.
    ///
    /// mode: "rb", or "r" for text: then encoding (default "utf-8"), errors and newline are those of open().
    /// buffering: bytes of the buffer; 0 for an unbuffered io.RawIOBase.
    /// descriptor: copy the contents into memory of this process that has a descriptor, for libraries that call fileno()
    ///     or map files, as gguf.GGUFReader does. Without it fileno() raises io.UnsupportedOperation.
    #[pyo3(signature = (
        mode="rb", buffering=-1, encoding=None, errors=None, newline=None, *, descriptor=false,
    ))]
    #[allow(clippy::too_many_arguments, reason = "those of Python's open()")]
    fn open<'py>(
        slf: &Bound<'py, Self>,
        mode: &str,
        buffering: isize,
        encoding: Option<&str>,
        errors: Option<&str>,
        newline: Option<&str>,
        descriptor: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let arguments = (slf, mode, buffering, encoding, errors, newline, descriptor);
        slf.py().import("daxfs._stream")?.call_method1("open_file", arguments)
    }

    /// A copy of all contents.
    fn read_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.read_at(py, 0, None)
    }

    /// All contents as text, with newlines as open() translates them.
    #[pyo3(signature = (encoding="utf-8", errors=None))]
    fn read_text<'py>(
        slf: &Bound<'py, Self>,
        encoding: &str,
        errors: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::open(slf, "r", -1, Some(encoding), errors, None, false)?.call_method0("read")
    }

    /// A copy of length bytes from offset on, or of all from there; fewer where the file ends.
    #[pyo3(signature = (offset, length=None))]
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let left = self.file.len().saturating_sub(offset);
        let size = usize::try_from(length.unwrap_or(left).min(left))
            .map_err(|_| PyValueError::new_err("the length does not fit the address space"))?;
        PyBytes::new_with(py, size, |target| {
            py.detach(|| {
                let mut done = 0;
                while done < target.len() {
                    match self.file.read_at(offset + done as u64, &mut target[done..])? {
                        0 => break,
                        n => done += n,
                    }
                }
                Ok::<_, daxfs::Error>(())
            })
            .or_raise()
        })
    }

    /// Copies bytes from offset on into a writable buffer (bytearray, numpy array, memoryview) and returns how many:
    /// fewer than it holds only where the file ends.
    #[pyo3(signature = (offset, buffer, /))]
    fn readinto_at(&self, py: Python<'_>, offset: u64, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut target = Borrowed::writable(buffer)?;
        let mut target = target.bytes();
        py.detach(|| self.file.read_into(offset, &mut target)).or_raise()
    }

    /// Writes all contents to a file, pipe or socket, given by its descriptor or an object with fileno(), at its
    /// position, and returns their length. The kernel moves the bytes where it can. Flush what the object buffers
    /// first.
    fn write_to(&self, py: Python<'_>, target: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.send_to(py, target, None)
    }

    /// Sends all contents through a connected socket and returns their length; the socket's time-out holds for each
    /// wait. The kernel moves the bytes where it can: what others write to shared memory before the other side has
    /// taken it may arrive.
    fn send(&self, py: Python<'_>, socket: &Bound<'_, PyAny>) -> PyResult<u64> {
        let timeout: Option<f64> = socket.call_method0("gettimeout")?.extract()?;
        let patience = match timeout {
            Some(seconds) => Some(
                Duration::try_from_secs_f64(seconds)
                    .map_err(|error| PyValueError::new_err(error.to_string()))?,
            ),
            None => None,
        };
        self.send_to(py, socket, patience)
    }

    /// BLAKE3 of the contents, in hexadecimal, computed now.
    fn hash(&self, py: Python<'_>) -> PyResult<String> {
        Ok(text::hex(&py.detach(|| self.file.hash()).or_raise()?))
    }

    /// The bytes that the file had in the source that the image was packed from: those from before its tensors were
    /// aligned. For files that were not changed they are the file's own.
    fn original(&self, py: Python<'_>) -> PyResult<Original> {
        Ok(py.detach(|| self.file.original()).or_raise()?.into())
    }

    /// The tensors of a safetensors file.
    fn tensors(&self, py: Python<'_>) -> PyResult<Tensors> {
        Ok(Tensors { tensors: self.parsed(py)?.clone(), path: Some(self.file.path()), variant: None })
    }

    /// What a file with tensors says beside them: the __metadata__ of safetensors, the keys and values of GGUF.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.tensors(py)?.metadata(py)
    }

    /// The tensor of that name; for a slice, a copy of those bytes.
    fn __getitem__<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(name) = key.cast::<PyString>() {
            return crate::tensor::create(py, self.parsed(py)?.get(name.to_cow()?.as_ref()).or_raise()?);
        }
        let Ok(range) = key.cast::<PySlice>() else {
            let kind = key.get_type().name()?;
            let message =
                format!("a file is indexed by the name of a tensor or a slice of bytes, not {kind}");
            return Err(PyTypeError::new_err(message));
        };
        let length = isize::try_from(self.file.len())
            .map_err(|_| PyValueError::new_err("the file does not fit the address space"))?;
        let indices = range.indices(length)?;
        if indices.step != 1 {
            return Err(PyValueError::new_err("bytes are read without steps; memoryview(file) takes steps"));
        }
        let start = u64::try_from(indices.start).unwrap_or(0);
        Ok(self.read_at(py, start, Some(indices.slicelength as u64))?.into_any())
    }

    /// Size in bytes.
    fn __len__(&self) -> PyResult<usize> {
        usize::try_from(self.file.len())
            .map_err(|_| PyValueError::new_err("the size does not fit the address space"))
    }

    fn __bool__(&self) -> bool {
        true
    }

    /// True for the name of a tensor.
    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.tensors(py)?.__contains__(py, key)
    }

    /// TypeError: the length is that of the bytes, and what is found by name is tensors.
    fn __iter__(&self) -> PyResult<Bound<'_, PyIterator>> {
        Err(PyTypeError::new_err(
            "a daxfs.File is not iterable: file.keys() has the names of its tensors, file.open() its lines, and \
             memoryview(file) its bytes",
        ))
    }

    /// For those who take it for a stream.
    fn __getattr__(slf: &Bound<'_, Self>, name: &str) -> PyResult<Py<PyAny>> {
        let hint = match name {
            "read" | "readinto" | "readline" | "readlines" | "seek" | "tell" => {
                ": file.open() is a stream, file.read_bytes() reads all, file.read_at(offset, length) a part"
            }
            _ => "",
        };
        let kind = slf.get_type().name()?;
        Err(PyAttributeError::new_err(format!("'daxfs.{kind}' object has no attribute '{name}'{hint}")))
    }

    /// The tensor of that name, or default when there is none.
    #[pyo3(signature = (name, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found =
            self.parsed(py)?.get(name).or_raise().and_then(|tensor| crate::tensor::create(py, tensor));
        mapping::or_default(py, found, default)
    }

    /// The names of the tensors.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    /// The tensors.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    /// All pairs of name and tensor.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    /// (function, arguments): see Image.__reduce__.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let path = PyBytes::new(py, &self.file.path());
        reduce::reduced(py, "file", (reduce::handle(py, self.file.image())?, path, self.file.len()))
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// The file itself, which never changes.
    #[pyo3(signature = (_memo, /))]
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    fn _ipython_key_completions_(&self, py: Python<'_>) -> Vec<String> {
        let tensors = self.parsed(py).ok();
        tensors.map(|tensors| tensors.names().into_iter().flatten().collect()).unwrap_or_default()
    }

    /// The tensors as a table; None for a file without any.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (this, py) = (slf.get(), slf.py());
        let Ok(tensors) = this.parsed(py) else { return Ok(None) };
        crate::tensors::html(py, &this.__repr__(py)?, tensors).map(Some)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = text::relative(py, &self.file.path())?.repr()?;
        Ok(format!("<daxfs.File {path}: {}>", text::size(self.file.len())))
    }
}
