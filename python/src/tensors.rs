//! `daxfs.Tensors`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString, PyTuple};

use crate::error::OrRaise;
use crate::{file, mapping, metadata, reduce, tensor, text};

/// Tensors by name, sorted: a read-only mapping over one file or all shards of a checkpoint.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct Tensors {
    pub tensors: daxfs::Tensors,
    /// By what path they were asked for; `None` for those of the whole image.
    pub path: Option<Vec<u8>>,
    /// Which variant was asked for.
    pub variant: Option<String>,
}

/// A table for notebooks.
pub fn html<'py>(py: Python<'py>, title: &str, tensors: &daxfs::Tensors) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import("daxfs._html")?;
    let most: usize = module.getattr("ROWS")?.extract()?;
    let rows: Vec<_> = tensors
        .iter()
        .take(most)
        .flatten()
        .map(|tensor| {
            let shape = PyTuple::new(py, tensor.shape())?;
            Ok((tensor.name().to_owned(), tensor.dtype().name(), shape, tensor.nbytes()))
        })
        .collect::<PyResult<_>>()?;
    module.call_method1("table", (title, ("name", "dtype", "shape", "bytes"), rows, tensors.len()))
}

#[pymethods]
impl Tensors {
    pub fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        tensor::create(py, self.tensors.get(name).or_raise()?)
    }

    /// The tensor of that name, or default when there is none.
    #[pyo3(signature = (name, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        mapping::or_default(py, self.__getitem__(py, name), default)
    }

    pub fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(name) = mapping::name(key)? else { return Ok(false) };
        Ok(self.get(py, &name, None)?.is_some())
    }

    /// A dict of both, where the other mapping's values count: tensors | {"lm_head.weight": array}.
    fn __or__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        mapping::union(slf, other)
    }

    fn __ror__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        mapping::union(other, slf)
    }

    pub fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let mut names = Vec::with_capacity(self.tensors.len());
        let mut all = self.tensors.names();
        while let Some(name) = all.next().or_raise()? {
            names.push(PyString::new(py, name));
        }
        mapping::iter(py, names)
    }

    fn __len__(&self) -> usize {
        self.tensors.len()
    }

    /// The names of the tensors.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(slf)
    }

    /// The tensors.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(slf)
    }

    /// All pairs of name and tensor.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(slf)
    }

    /// What the file says beside its tensors: the __metadata__ of safetensors, the keys and values of GGUF; of a
    /// checkpoint that of all shards.
    #[getter]
    pub fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        metadata::dict(py, &self.tensors.metadata().or_raise()?)
    }

    /// The files that hold the tensors.
    #[getter]
    fn shards<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.tensors.shards().or_raise()?.into_iter().map(|shard| file::create(py, shard)).collect()
    }

    /// True when the packer's index was read; False when the headers were parsed.
    #[getter]
    fn indexed(&self) -> bool {
        self.tensors.indexed()
    }

    /// (function, arguments): see Image.__reduce__.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let path = self.path.as_ref().map(|path| PyBytes::new(py, path));
        let image = reduce::handle(py, self.tensors.image())?;
        reduce::reduced(py, "tensors", (image, path, self.variant.as_deref()))
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// The set itself, which never changes.
    #[pyo3(signature = (_memo, /))]
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    fn _ipython_key_completions_(&self) -> Vec<String> {
        self.tensors.names().into_iter().flatten().collect()
    }

    /// A table of name, dtype, shape and bytes.
    fn _repr_html_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        html(py, &self.__repr__(py)?, &self.tensors)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shards = self.tensors.shards().or_raise()?;
        let place = match shards.as_slice() {
            [file] => text::relative(py, &file.path())?.repr()?.to_string(),
            _ => format!("{} files", shards.len()),
        };
        let size = text::size(shards.iter().map(daxfs::File::len).sum());
        Ok(format!("<daxfs.Tensors: {} tensors in {place}, {size}>", self.tensors.len()))
    }
}
