//! `daxfs.open`.

use daxfs::OpenOptions;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::image::Image;
use crate::source::{self, Place};
use crate::text;

/// Opens an image.
///
/// source: a path (str, bytes, os.PathLike), a file descriptor (duplicated: the caller keeps his), an object with
///     fileno(), or a text: "/dev/daxX.Y@OFFSET", a PCI device's "/sys/bus/pci/devices/D/resourceN",
///     "phys:ADDRESS+LENGTH", the root of a mounted DAXFS, "fd:N", "daxfs://NAME" (an image that a holder keeps); see
///     docs/sources.md. None takes the source from the environment variable DAXFS_IMAGE.
/// strict: refuse what the kernel's own validation refuses.
/// private: map the memory copy-on-write. Arrays are then writable, and what is written stays in this process.
/// sealed_copy: copy the image once into memory that nobody can change or truncate, and open that.
/// backing: the file with the data of a split image; same forms as source.
/// expect: refuse an image with another content_hash; 64 hexadecimal digits, with or without "blake3:" before them.
/// max_metadata: most bytes of metadata to copy while opening (default 512 MiB).
#[pyfunction]
#[pyo3(signature = (
    source=None, *, strict=false, private=false, sealed_copy=false, backing=None, expect=None, max_metadata=None,
))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn open(
    py: Python<'_>,
    source: Option<&Bound<'_, PyAny>>,
    strict: bool,
    private: bool,
    sealed_copy: bool,
    backing: Option<&Bound<'_, PyAny>>,
    expect: Option<&str>,
    max_metadata: Option<u64>,
) -> PyResult<Image> {
    if private && sealed_copy {
        return Err(PyValueError::new_err("private memory is writable, a sealed copy is not: choose one"));
    }
    let place = match source {
        Some(source) => Place::of(source)?,
        None => Place::of(&source::from_environment(py)?)?,
    };
    let backing = backing.map(Place::of).transpose()?;
    let mut options = OpenOptions::new().strict(strict).sealed_copy(sealed_copy);
    if let Some(hash) = expect {
        options = options.expect(text::parse_hash(hash)?);
    }
    if let Some(limit) = max_metadata {
        options = options.max_metadata(limit);
    }
    let open = || {
        let options = match backing {
            Some(backing) => options.backing(backing.map()?),
            None => options,
        };
        place.open(options, private)
    };
    py.detach(open).or_raise().map(Image::new)
}
