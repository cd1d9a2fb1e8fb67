//! `daxfs.Original`: a file as it was before its tensors were moved. Its bytes are put together, so they are copies.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::buffer::Borrowed;
use crate::error::OrRaise;
use crate::text;

/// The bytes that a file had in the source that the image was packed from: what `daxfs.File.original()` returns.
///
/// Where the packer moved the tensors of a safetensors file so that they are aligned, these are put together again from
/// the file in the image, as copies; for every other file they are the file's own. It keeps the image's memory.
#[pyclass(frozen, module = "daxfs")]
#[derive(Debug)]
pub struct Original {
    original: daxfs::Original,
}

impl From<daxfs::Original> for Original {
    fn from(original: daxfs::Original) -> Self {
        Self { original }
    }
}

impl Original {
    fn fill(&self, offset: u64, target: &mut [u8]) -> daxfs::Result<usize> {
        self.original.read_at(offset, target)
    }
}

#[pymethods]
impl Original {
    /// Name of the file, without directories.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::decode(py, self.original.file().entry().name())
    }

    /// Path of the file in the image.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::relative(py, &self.original.file().path())
    }

    /// Size of the source in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.original.len()
    }

    /// True where these are not the bytes of the file in the image.
    #[getter]
    fn differs(&self) -> bool {
        self.original.differs()
    }

    /// What the tensors were moved to multiples of, in bytes. None for a file that lies in the image as it was.
    #[getter]
    fn alignment(&self) -> Option<u64> {
        self.original.alignment()
    }

    /// Opens the bytes as a stream, as File.open() does.
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

    /// All bytes.
    fn read_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.read_at(py, 0, None)
    }

    /// length bytes from offset on, or all from there; fewer where the source ended.
    #[pyo3(signature = (offset, length=None))]
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let left = self.original.len().saturating_sub(offset);
        let size = usize::try_from(length.unwrap_or(left).min(left))
            .map_err(|_| PyValueError::new_err("the length does not fit the address space"))?;
        PyBytes::new_with(py, size, |target| {
            // As many as asked for: none lies behind the end.
            py.detach(|| self.fill(offset, target)).map(drop).or_raise()
        })
    }

    /// Copies bytes from offset on into a writable buffer (bytearray, numpy array, memoryview) and returns how many:
    /// fewer than it holds only where the source ended.
    #[pyo3(signature = (offset, buffer, /))]
    fn readinto_at(&self, py: Python<'_>, offset: u64, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut target = Borrowed::writable(buffer)?;
        let mut target = target.bytes();
        py.detach(|| {
            // By way of a buffer: the target may be memory that others write, too.
            let mut piece = vec![0; target.len().min(256 << 10)];
            let mut done = 0;
            while done < target.len() {
                let wanted = piece.len().min(target.len() - done);
                let count = self.fill(offset.saturating_add(done as u64), &mut piece[..wanted])?;
                target.copy_from(done as u64, &piece[..count])?;
                done += count;
                if count < wanted {
                    break;
                }
            }
            Ok::<_, daxfs::Error>(done)
        })
        .or_raise()
    }

    /// BLAKE3 of the bytes, in hexadecimal, computed now.
    fn hash(&self, py: Python<'_>) -> PyResult<String> {
        Ok(text::hex(&py.detach(|| self.original.hash()).or_raise()?))
    }

    /// Writes all bytes to a file, pipe or socket, given by its descriptor or an object with fileno(), at its position,
    /// and returns their number. Flush what the object buffers first.
    fn write_to(&self, py: Python<'_>, target: &Bound<'_, PyAny>) -> PyResult<u64> {
        let to = crate::source::descriptor("a target", target)?;
        let mut to = std::fs::File::from(to);
        py.detach(|| self.original.copy_to(&mut to)).or_raise()
    }

    /// Size in bytes.
    fn __len__(&self) -> PyResult<usize> {
        usize::try_from(self.original.len())
            .map_err(|_| PyValueError::new_err("the size does not fit the address space"))
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = self.path(py)?.repr()?;
        let size = text::size(self.size());
        Ok(match self.alignment() {
            Some(bytes) => format!("<daxfs.Original {path}: {size}, in the image aligned to {bytes}>"),
            None => format!("<daxfs.Original {path}: {size}, as in the image>"),
        })
    }
}
