//! Pickling and copying: what Python needs to open an image again, see `daxfs._reduce`.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;

use daxfs::{Part, Provenance, Region, Source, Verify};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::error::OrRaise;
use crate::image::Image;

const MODULE: &str = "daxfs._reduce";

/// The object that an image is pickled as with what belongs to it: the same one as long as a pickle has it.
pub fn handle<'py>(py: Python<'py>, image: &daxfs::Image) -> PyResult<Bound<'py, PyAny>> {
    let kept = py.import(MODULE)?.getattr("images")?;
    // Two opened images are never mapped at one address, and one that is kept is mapped.
    let key = image.region().view().as_ptr().addr();
    let found = kept.call_method1("get", (key,))?;
    if !found.is_none() {
        return Ok(found);
    }
    let made = Image::new(image.clone()).into_bound_py_any(py)?;
    kept.set_item(key, &made)?;
    Ok(made)
}

/// `(function, arguments)`, for `__reduce__`.
pub fn reduced<'py>(
    py: Python<'py>,
    function: &str,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Bound<'py, PyTuple>> {
    let function = py.import(MODULE)?.getattr(function)?;
    (function, arguments.into_pyobject(py)?).into_pyobject(py)
}

/// What `__reduce__` of an image returns.
pub fn image<'py>(py: Python<'py>, image: &daxfs::Image) -> PyResult<Bound<'py, PyAny>> {
    let options = image.options();
    let recipe = PyDict::new(py);
    let is_sealed_copy = options.is_sealed_copy();
    recipe.set_item("memory", region(py, image.region(), is_sealed_copy)?)?;
    recipe.set_item("backing", image.backing().map(|backing| region(py, backing, false)).transpose()?)?;
    recipe.set_item("private", image.region().is_writable())?;
    recipe.set_item("strict", options.is_strict())?;
    // Of what was signed the content is known by now, and where it is opened again there may be no signature.
    let expected = options.expected().or_else(|| image.content_hash().filter(|_| options.is_signed()));
    let verity = options.expected_verity().map(|digest| format!("fsverity:{digest}"));
    recipe.set_item("expect", expected.map(|hash| hash.digits().to_string()).or(verity))?;
    recipe.set_item("verify", options.verification().map(|verify| verify.to_string()))?;
    // Every file was compared before this process got it, and nobody has been able to write since.
    let compared = match options.verification() {
        None => expected.is_some(),
        verify => verify == Some(Verify::Full),
    };
    let stays = image.region().provenance() == Provenance::Sealed && image.backing().is_none();
    recipe.set_item("proven", compared && stays)?;
    recipe.set_item("max_metadata", options.metadata_bound())?;
    recipe.set_item("content_hash", image.content_hash().map(|hash| hash.digits().to_string()))?;
    recipe.set_item("size", image.superblock().total_size)?;
    recipe.set_item("generation", image.generation())?;
    py.import(MODULE)?.call_method1("reduce_image", (recipe,))
}

/// How a region is found again: its "name", as `daxfs.open` takes it, or "why" there is none; its descriptor "fd", and
/// the "part" of it, where it is not all.
fn region<'py>(py: Python<'py>, region: &Region, is_sealed_copy: bool) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    let why = match region.source() {
        _ if is_sealed_copy => "a sealed copy is memory of this process alone",
        Some(Source::Path { path, part }) => {
            // The process that opens it may have another directory.
            let path = std::path::absolute(path)?;
            let name = match *part {
                Part::WHOLE => PyBytes::new(py, &OsString::from(path).into_vec()).into_any(),
                part => format!("{}{part}", path.display()).into_bound_py_any(py)?,
            };
            found.set_item("name", name)?;
            ""
        }
        Some(source @ (Source::Physical { .. } | Source::Holder(_))) => {
            found.set_item("name", source.to_string())?;
            ""
        }
        Some(Source::Remote(_)) => {
            "it was fetched from elsewhere, and its address may hold credentials; multiprocessing passes its memory to \
             other processes (daxfs load gives images names)"
        }
        _ => {
            "it was opened from a descriptor, which has no name; multiprocessing passes it to other processes \
             (daxfs serve gives images names)"
        }
    };
    if !why.is_empty() {
        found.set_item("name", py.None())?;
        found.set_item("why", why)?;
    }
    found.set_item("fd", region.fd().map(|fd| fd.as_raw_fd()))?;
    let is_whole = region.info().is_some_and(|info| region.offset() == 0 && region.len() == info.len);
    let part = (!is_whole).then_some((region.offset(), region.len()));
    found.set_item("part", part)?;
    Ok(found)
}

/// Has faults in the memory of images explained before the process dies of them.
///
/// A write to an array of a read-only image, which torch does not prevent, is SIGSEGV, and a touch of a file that was cut
/// short SIGBUS. From this call on the process writes to standard error which tensor of which image it was, and what to
/// do about it, and then goes on to die, or to do what the handler before does: faulthandler's traceback is written,
/// whether it is enabled before or after this. It holds for all images, those opened later too; opening one takes longer
/// by reading the names of its tensors.
#[pyfunction]
pub fn explain_faults(py: Python<'_>) -> PyResult<()> {
    let advice = dmabuf::faults::Advice {
        read_only: "images are mapped read-only: daxfs.open(..., private=True) gives writable memory of this process, \
                    tensor.clone() and numpy.array(tensor) give copies",
        gone: "the file was cut short, or its device has gone: daxfs.open(..., sealed_copy=True) opens a copy that stays",
    };
    py.detach(|| daxfs::explain_faults(advice)).or_raise()
}
