//! Placement plans as Python code gives them.

use std::path::PathBuf;

use daxfs_device::{Placement, Plan};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::OrRaise;

/// A plan, and the rank that is meant.
pub struct Ranked {
    plan: Plan,
    rank: usize,
}

impl Ranked {
    /// Reads `plan`, a path of a JSON file or a dict of the same form; `None` where none was given.
    pub fn read(
        py: Python<'_>,
        plan: Option<&Bound<'_, PyAny>>,
        rank: Option<usize>,
    ) -> PyResult<Option<Self>> {
        let (plan, rank) = match (plan, rank) {
            (None, None) => return Ok(None),
            (Some(plan), Some(rank)) => (plan, rank),
            (Some(_), None) => return Err(PyTypeError::new_err("a plan needs rank=")),
            (None, Some(_)) => return Err(PyTypeError::new_err("a rank is one of a plan=")),
        };
        let text = match plan.cast::<PyDict>() {
            Ok(dict) => py.import("json")?.call_method1("dumps", (dict,))?.extract()?,
            Err(_) => {
                let path: PathBuf = plan.extract()?;
                let read =
                    py.detach(|| std::fs::read(&path)).map_err(|error| match error.raw_os_error() {
                        Some(number) => crate::error::os_error("open", &path.to_string_lossy(), number),
                        None => error.into(),
                    })?;
                String::from_utf8(read).map_err(|_| PyValueError::new_err("the plan: it is no UTF-8"))?
            }
        };
        Ok(Some(Self { plan: Plan::parse(&text).or_raise()?, rank }))
    }

    /// What the rank holds of an image.
    pub fn place(&self, image: &daxfs::Image) -> daxfs_device::Result<Placement> {
        self.plan.place(image, self.rank)
    }
}
