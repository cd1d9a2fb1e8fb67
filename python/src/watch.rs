//! `daxfs.Watch`, and times as Python code gives them.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daxfs::holder;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::OrRaise;

/// How often it is looked whether Ctrl-C was pressed.
const POLL: Duration = Duration::from_millis(100);

/// Seconds, as a time that may be waited.
pub fn seconds(given: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(given)
        .map_err(|_| PyValueError::new_err(format!("a time is a number of seconds from 0 on, not {given}")))
}

/// Waits for the name of an image to mean another image at its holder, or none. Image.watch() makes one.
///
/// fileno() becomes readable then, and also when the holder ends or is replaced.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct Watch(Mutex<Option<holder::Watch>>);

impl Watch {
    pub fn new(watch: holder::Watch) -> Self {
        Self(Mutex::new(Some(watch)))
    }

    fn slot(&self) -> MutexGuard<'_, Option<holder::Watch>> {
        // The slot holds a whole value at any time, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Watch {
    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
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

    /// Ends the connection to the holder.
    fn close(&self) {
        drop(self.slot().take());
    }

    /// True once the name means another image, or none; False when the time has passed before that.
    ///
    /// timeout: seconds; None waits for as long as it takes.
    ///
    /// ConnectionError when the holder has ended or was replaced: is_current() says whether the image is still meant, and
    /// another watch() goes on.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let patience = timeout.map(seconds).transpose()?;
        let end = patience.and_then(|patience| Instant::now().checked_add(patience));
        // Of our own, so that nobody waits for the slot while this waits, not even who closes the watch.
        let fd = self
            .slot()
            .as_ref()
            .and_then(|watch| watch.fd())
            .map(|fd| fd.try_clone_to_owned())
            .transpose()?;
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let step = left.map_or(POLL, |left| left.min(POLL));
            // An error of waiting is one of the connection as well, which says it in its words.
            let changed = py.detach(|| {
                let _ = fd.as_ref().map(|fd| dmabuf::wait_readable(fd.as_fd(), Some(step)));
                self.slot().as_mut().map(|watch| watch.wait(Some(Duration::ZERO)))
            });
            // Exceptions are made when the slot is free: that takes the interpreter's lock.
            let changed = changed.ok_or_else(|| PyValueError::new_err("the watch is closed"))?.or_raise()?;
            if changed || left.is_some_and(|left| left.is_zero()) {
                return Ok(changed);
            }
            py.check_signals()?;
        }
    }

    /// The descriptor that becomes readable when wait() has something to say. It belongs to this object.
    fn fileno(&self) -> PyResult<RawFd> {
        let slot = self.slot();
        let fd = slot.as_ref().and_then(|watch| watch.fd()).map(|fd| fd.as_raw_fd());
        fd.ok_or_else(|| PyValueError::new_err("the watch is closed, or its holder has ended"))
    }
}
