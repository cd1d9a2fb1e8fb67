//! `daxfs.open`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::signature::PublicKeys;
use daxfs::{OpenOptions, Verify, VerityDigest};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::image::Image;
use crate::source::{self, Place};
use crate::{text, unlocked, watch};

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
///     Or "fsverity:sha256:..." for a file with this digest of fs-verity, which the kernel has: nothing is read for that.
/// verify: which bytes are compared with the hashes that the content hash is made of: "full": of every file, now, by all
///     processors; "lazy": of each file when it, or a tensor of it, is used for the first time, and FormatError names one
///     that is another; "stored": of none, what the image says of its files is believed. What was right once stays right
///     where nobody can write; what others can write afterwards they can change: sealed_copy=True compares a copy that
///     nobody can. By default "full" with expect, but for
///     the sealed images of holders, which have hashed them; else "stored".
/// key: a file with public keys of minisign, or on P-256 in PEM, as cosign's: refuse an image whose content none of
///     them has signed. verify is "full" then by default, also for the images of holders.
/// signature: the file with the signature, or the OCI image layout with those of cosign; by default what is beside the
///     image, under its name with ".minisig" and ".cosign" behind it, and for the image of a holder what it was loaded
///     with.
/// max_metadata: most bytes of metadata to copy while opening (default 512 MiB).
/// timeout: seconds that a holder may take for an answer, now and when it is asked later (is_current(), refresh());
///     TimeoutError after that (default 10).
#[pyfunction]
#[pyo3(signature = (
    source=None, *, strict=false, private=false, sealed_copy=false, backing=None, expect=None, verify=None, key=None,
    signature=None, max_metadata=None, timeout=None,
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
    verify: Option<&str>,
    key: Option<&Bound<'_, PyAny>>,
    signature: Option<&Bound<'_, PyAny>>,
    max_metadata: Option<u64>,
    timeout: Option<f64>,
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
    match expect.map(|text| (text, text.strip_prefix("fsverity:"))) {
        Some((_, Some(digest))) => {
            let digest = digest.parse::<VerityDigest>().map_err(PyValueError::new_err)?;
            options = options.expect_verity(digest);
        }
        Some((hash, None)) => options = options.expect(text::parse_hash(hash)?),
        None => {}
    }
    if let Some(verify) = verify {
        options = options.verify(verify.parse::<Verify>().map_err(PyValueError::new_err)?);
    }
    match (key, signature) {
        (Some(key), signature) => {
            let (key, signature) = (source::path(key)?, signature.map(source::path).transpose()?);
            let keys = py.detach(|| PublicKeys::read(&key)).map_err(daxfs::Error::Signature).or_raise()?;
            options = place.signed(options, keys, signature);
        }
        (None, Some(_)) => {
            return Err(PyValueError::new_err("a signature is checked by a key: give key, too"));
        }
        (None, None) => {}
    }
    if let Some(limit) = max_metadata {
        options = options.max_metadata(limit);
    }
    if let Some(seconds) = timeout {
        options = options.holder_timeout(watch::seconds(seconds)?);
    }
    let is_remote = place.is_remote();
    let open = |options: OpenOptions| {
        let options = match backing {
            Some(backing) => options.backing(backing.map()?),
            None => options,
        };
        place.open(options, private)
    };
    let opened = match (options.expected().is_some() || key.is_some(), options.verification()) {
        (false, None) | (_, Some(Verify::Stored)) if !is_remote => py.detach(|| open(options)),
        // Hashing and fetching take long, and Ctrl-C ends them.
        _ => {
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let options = options.progress(move |_, _| !stopped.load(Ordering::Relaxed));
            unlocked::stoppable(py, &stop, |_wake| open(options), |_| Ok(()))?
        }
    };
    opened.or_raise().map(Image::new)
}
