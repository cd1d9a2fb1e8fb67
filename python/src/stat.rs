//! Metadata as Python knows it: `os.stat_result`.

use daxfs::Metadata;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// An `os.stat_result`; device and times, which an image does not have, are 0.
pub fn result<'py>(py: Python<'py>, metadata: &Metadata) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || py.import("os")?.getattr("stat_result").map(Bound::unbind))?;
    let Metadata { mode, ino, nlink, uid, gid, size, .. } = metadata;
    class.bind(py).call1(((mode, ino, 0, nlink, uid, gid, size, 0, 0, 0),))
}
