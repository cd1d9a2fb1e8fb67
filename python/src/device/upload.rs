//! `Image.to`: the copy into a GPU's memory, with progress told to a Python function, stoppable by Ctrl-C, as
//! `DeviceImage.verify` is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs_device::{Device, DeviceError, ImageExt, MappedImage, UploadOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{DeviceImage, Held, Ranked, open_target};
use crate::error::OrRaise;
use crate::progress::{Listener, Newest};
use crate::unlocked;

/// Bounds of what the caller may ask for: more threads or longer pieces only cost memory.
const MAX_THREADS: usize = 256;
const MIN_PIECE: usize = 4096;
const MAX_PIECE: usize = 1 << 30;

/// How an image is copied, as Python code gave it.
pub struct Upload<'a, 'py> {
    pub threads: Option<usize>,
    pub piece: Option<usize>,
    pub verify: bool,
    pub writable: bool,
    pub register: bool,
    pub direct: bool,
    pub progress: Option<&'a Bound<'py, PyAny>>,
    /// What of the image, if not all of it.
    pub plan: Option<Ranked>,
}

impl Upload<'_, '_> {
    fn options(&self) -> PyResult<UploadOptions> {
        let mut options = UploadOptions::new()
            .verify(self.verify)
            .writable(self.writable)
            .register(self.register)
            .direct(self.direct);
        if let Some(count) = self.threads {
            if !(1..=MAX_THREADS).contains(&count) {
                return Err(PyValueError::new_err(format!(
                    "threads is from 1 to {MAX_THREADS}, not {count}"
                )));
            }
            options = options.threads(count);
        }
        if let Some(bytes) = self.piece {
            if !(MIN_PIECE..=MAX_PIECE).contains(&bytes) {
                let message = format!("piece is from {MIN_PIECE} to {MAX_PIECE} bytes, not {bytes}");
                return Err(PyValueError::new_err(message));
            }
            options = options.piece(bytes);
        }
        Ok(options)
    }
}

/// Copies an image to a device, and tells `progress` how far that is.
pub fn to(
    py: Python<'_>,
    image: &daxfs::Image,
    device: &str,
    upload: &Upload<'_, '_>,
) -> PyResult<DeviceImage> {
    let options = upload.options()?;
    let (device, in_host) = open_target(py, device)?;
    let options = options.in_host(in_host);
    let stop = Arc::new(AtomicBool::new(false));
    let newest = Arc::new(Newest::default());
    let mut listener = Listener::new(upload.progress);

    let (stopped, step, is_told) = (stop.clone(), newest.clone(), listener.is_there());
    let target = Device::Cuda(device.clone());
    let plan = upload.plan.as_ref();
    let copy = move |wake: std::sync::mpsc::Sender<()>| {
        let options = options.progress(move |done, total| {
            step.record(done, total);
            if is_told {
                // Nobody listens any more only when the copy is over.
                let _ = wake.send(());
            }
            !stopped.load(Ordering::Relaxed)
        });
        match plan {
            Some(plan) => plan.place(image)?.to_with(&target, &options),
            None => image.to_with(&target, &options),
        }
    };

    let tell = |py: Python<'_>| {
        if !listener.tell(py, &newest)? {
            let cancelled = DeviceError::Cancelled { device: device.name().into() };
            return Err(daxfs_device::Error::from(cancelled)).or_raise();
        }
        Ok(())
    };
    let mapped = unlocked::stoppable(py, &stop, copy, tell)?.or_raise()?;
    Ok(DeviceImage::new(Held::new(mapped, device)))
}

/// Compares a copy with its image.
pub fn verify(py: Python<'_>, mapped: &MappedImage) -> PyResult<()> {
    let stop = AtomicBool::new(false);
    let compare = |_wake| mapped.verify_with(|_, _| !stop.load(Ordering::Relaxed));
    unlocked::stoppable(py, &stop, compare, |_| Ok(()))?.or_raise()?;
    Ok(())
}
