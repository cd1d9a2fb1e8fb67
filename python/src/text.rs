//! Paths and names between Python and the image: `str` with surrogate escapes for bytes that are not UTF-8, as
//! `os.fsencode` and `os.fsdecode` do it, but independent of the locale, since an image has no locale.

use daxfs::holder::Hex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

/// A path inside an image, from `str`, `bytes` or `os.PathLike`.
pub struct ImagePath(pub Vec<u8>);

impl<'a, 'py> FromPyObject<'a, 'py> for ImagePath {
    type Error = PyErr;

    fn extract(path: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = path.cast::<PyString>() {
            return encode(&text).map(Self);
        }
        if let Ok(bytes) = path.cast::<PyBytes>() {
            return Ok(Self(bytes.as_bytes().to_vec()));
        }
        let Ok(fspath) = path.getattr("__fspath__") else {
            let kind = path.get_type().name()?;
            return Err(PyTypeError::new_err(format!("a path is str, bytes or os.PathLike, not {kind}")));
        };
        let path = fspath.call0()?;
        match path.cast::<PyBytes>() {
            Ok(bytes) => Ok(Self(bytes.as_bytes().to_vec())),
            Err(_) => encode(path.cast::<PyString>()?).map(Self),
        }
    }
}

/// The bytes of a `str`.
fn encode(text: &Bound<'_, PyString>) -> PyResult<Vec<u8>> {
    // Plain text, which is nearly all there is, needs no codec machinery.
    if let Ok(text) = text.to_cow() {
        return Ok(text.into_owned().into_bytes());
    }
    let bytes = text.call_method1("encode", ("utf-8", "surrogateescape"))?;
    Ok(bytes.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// The `str` of bytes from the image.
pub fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(PyString::new(py, text)),
        Err(_) => {
            PyString::from_encoded_object(&PyBytes::new(py, bytes), Some(c"utf-8"), Some(c"surrogateescape"))
        }
    }
}

/// The path as Python shows it: relative to the root of the image, without a leading slash.
pub fn relative<'py>(py: Python<'py>, path: &[u8]) -> PyResult<Bound<'py, PyString>> {
    decode(py, path.strip_prefix(b"/").unwrap_or(path))
}

/// `repr` of bytes from the image.
pub fn quoted(py: Python<'_>, bytes: &[u8]) -> PyResult<String> {
    Ok(decode(py, bytes)?.repr()?.to_cow()?.into_owned())
}

/// A size for people: `90.9 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    #[allow(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Lower-case hexadecimal.
pub fn hex(hash: &[u8]) -> String {
    Hex(hash).to_string()
}

/// A content hash, with or without "blake3:".
pub fn parse_hash(text: &str) -> PyResult<daxfs::ContentHash> {
    text.parse().map_err(|_| {
        let what = format!("a hash has 64 hexadecimal digits, with or without \"blake3:\", not {text:?}");
        PyValueError::new_err(what)
    })
}
