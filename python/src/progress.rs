//! How far long work is, told to a Python function. The threads that work never wait for the interpreter: they leave the
//! newest step where the calling thread, which waits for them, takes it.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBool;

/// Bytes that are done, and all bytes.
type Step = (u64, u64);

/// The newest step.
#[derive(Debug, Default)]
pub struct Newest(Mutex<Step>);

impl Newest {
    /// Keeps the newest step. Several threads report, so a smaller number may come after a larger one of the same memory.
    pub fn record(&self, done: u64, total: u64) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.1 != total || newest.0 < done {
            *newest = (done, total);
        }
    }

    fn get(&self) -> Step {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The function that is told, if there is one, and what it was told last.
pub struct Listener {
    callback: Option<Py<PyAny>>,
    told: Step,
}

impl Listener {
    pub fn new(callback: Option<&Bound<'_, PyAny>>) -> Self {
        Self { callback: callback.map(|callback| callback.clone().unbind()), told: (0, 0) }
    }

    /// Whether anybody listens.
    pub fn is_there(&self) -> bool {
        self.callback.is_some()
    }

    /// Tells the newest step if it was not told; false once the function has answered False.
    pub fn tell(&mut self, py: Python<'_>, newest: &Newest) -> PyResult<bool> {
        let step = newest.get();
        let Some(callback) = self.callback.as_ref().filter(|_| step != self.told) else {
            return Ok(true);
        };
        self.told = step;
        Ok(!callback.bind(py).call1(step)?.is(PyBool::new(py, false)))
    }
}
