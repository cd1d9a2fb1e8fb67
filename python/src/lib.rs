//! The extension module `daxfs._daxfs`: images, files and tensors for Python.
//!
//! One file per class. All of them hold clones of the Rust values and nothing of Python's, so no cycle can form;
//! `buffer` is the one place where memory is lent to Python, `dlpack` the one where it is given away in a
//! capsule. Work that takes long runs without the interpreter lock.

mod array;
mod buffer;
mod command;
mod device;
mod directory;
mod dlpack;
mod dtype;
mod error;
mod file;
mod holder;
mod image;
mod jax;
mod mapping;
mod metadata;
mod open;
mod original;
mod pack;
mod progress;
mod reduce;
mod source;
mod stat;
mod tensor;
mod tensors;
mod text;
mod unlocked;
mod walk;
mod watch;

use pyo3::prelude::*;

/// Native half of the package daxfs.
#[pymodule(gil_used = false)]
mod _daxfs {
    use super::*;

    #[pymodule_export]
    use super::command::{daxfs_main, pack_main};
    #[pymodule_export]
    use super::device::{
        DeviceFile, DeviceHandle, DeviceImage, DeviceLookup, DeviceTensor, DeviceTensorPart, DeviceTensors,
        devices,
    };
    #[pymodule_export]
    use super::directory::Directory;
    #[pymodule_export]
    use super::holder::{
        holder_access, holder_drop, holder_health, holder_list, holder_load, holder_socket, holder_stop,
        holder_upload, holder_wait,
    };
    #[pymodule_export]
    use super::image::Image;
    #[pymodule_export]
    use super::open::open;
    #[pymodule_export]
    use super::original::Original;
    #[pymodule_export]
    use super::pack::pack;
    #[pymodule_export]
    use super::reduce::explain_faults;
    #[pymodule_export]
    use super::tensors::Tensors;
    #[pymodule_export]
    use super::watch::Watch;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        // Programs of packages lie beside the environment's interpreter, a link that the system does not show.
        let interpreter: Option<std::path::PathBuf> = py.import("sys")?.getattr("executable")?.extract()?;
        if let Some(folder) = interpreter.as_deref().and_then(std::path::Path::parent) {
            daxfs::RemoteAddress::look_in(folder.to_owned());
        }
        error::register(module)?;
        module.add("File", buffer::class::<file::FileBase>(py)?)?;
        module.add("Tensor", buffer::class::<tensor::TensorBase>(py)?)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        mapping::register::<Image>(py)?;
        mapping::register::<Directory>(py)?;
        mapping::register::<Tensors>(py)?;
        mapping::register::<DeviceImage>(py)?;
        mapping::register::<DeviceTensors>(py)
    }
}
