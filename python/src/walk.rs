//! The iterator of `Image.walk`.

use std::sync::{Mutex, PoisonError};

use daxfs::{Entry, FileType};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use crate::image::is_index;
use crate::text;

/// What `os.walk` yields for one directory.
type Step<'py> = (Bound<'py, PyString>, Bound<'py, PyList>, Bound<'py, PyList>);

/// Iterates over directories, each before what lies in it.
#[pyclass(frozen)]
#[derive(Debug)]
pub struct Walk(Mutex<Vec<Entry>>);

impl Walk {
    pub fn new(top: Entry) -> Self {
        Self(Mutex::new(vec![top]))
    }
}

#[pymethods]
impl Walk {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Step<'py>>> {
        // A stack of entries is in order at any time, so a poisoned lock means nothing.
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(top) = pending.pop() else {
            return Ok(None);
        };
        let (directories, others): (Vec<_>, Vec<_>) = top
            .children()
            .filter(|child| !is_index(&child.path()))
            .partition(|child| child.file_type() == FileType::Directory);
        let step = (text::relative(py, &top.path())?, names(py, &directories)?, names(py, &others)?);
        pending.extend(directories.into_iter().rev());
        Ok(Some(step))
    }
}

fn names<'py>(py: Python<'py>, entries: &[Entry]) -> PyResult<Bound<'py, PyList>> {
    let names: Vec<_> =
        entries.iter().map(|entry| text::decode(py, entry.name())).collect::<PyResult<_>>()?;
    PyList::new(py, names)
}
