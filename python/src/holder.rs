//! What `daxfs.Holder` is made of: one function for each request to a holder, which take and give plain values. The
//! class, and the types of what it gives, are in `_holder.py`.

use std::ffi::{CString, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use daxfs::OpenOptions;
use daxfs::holder::message::{DeviceCopy, ImageInfo};
use daxfs::holder::{Allowed, Connection, Health, HolderError, Step, default_socket};
use daxfs_holder::client::Load;
use daxfs_holder::{Packing, Target};
use pyo3::exceptions::{PyUserWarning, PyValueError};
use pyo3::prelude::*;

use crate::device::{self, DeviceImage, Ranked, Upload};
use crate::error::{OrRaise, base};
use crate::pack::{AlignTensors, Globs};
use crate::progress::{Listener, Newest};
use crate::source::{self, Place};
use crate::watch::seconds;
use crate::{text, unlocked};

/// UUID of the device, `None` for host memory; identity of the placement, `None` for the whole image; bytes.
type Copy = (Option<String>, Option<String>, u64);
/// In the order of the fields of `HeldImage`.
type Image = (String, u64, u64, &'static str, Option<u64>, Option<String>, u64, u64, Vec<Copy>);
/// Process, images, bytes, seconds.
type Report = (u32, u64, u64, u64);
/// Users and groups.
type Ids = (Vec<u32>, Vec<u32>);

fn image(info: ImageInfo) -> Image {
    let copy = |copy: &DeviceCopy| {
        let device = (!copy.is_on_host()).then(|| format!("GPU-{}", copy.device));
        (device, (!copy.is_whole()).then(|| text::hex(&copy.placement)), copy.size)
    };
    let page_size = Some(info.page_size).filter(|&size| size > 0);
    let hash = info.content_hash.map(|hash| hash.digits().to_string());
    let copies = info.copies.iter().map(copy).collect();
    let kind = info.kind.name();
    (info.name, info.generation, info.size, kind, page_size, hash, info.loaded, info.attaches, copies)
}

fn report(health: Health) -> Report {
    (health.pid, health.images, health.bytes, health.uptime)
}

/// Asks a holder without the interpreter lock.
fn ask<T: Send>(
    py: Python<'_>,
    socket: PathBuf,
    timeout: f64,
    question: impl FnOnce(&mut Connection) -> Result<T, HolderError> + Send,
) -> PyResult<T> {
    let timeout = seconds(timeout)?;
    py.detach(|| question(&mut Connection::open_within(&socket, timeout)?)).or_raise()
}

/// The socket that is meant where none is given.
#[pyfunction]
pub fn holder_socket() -> PathBuf {
    default_socket()
}

/// All images of a holder.
#[pyfunction]
pub fn holder_list(py: Python<'_>, socket: PathBuf, timeout: f64) -> PyResult<Vec<Image>> {
    let images = ask(py, socket, timeout, Connection::list)?;
    Ok(images.into_iter().map(image).collect())
}

/// How a holder is.
#[pyfunction]
pub fn holder_health(py: Python<'_>, socket: PathBuf, timeout: f64) -> PyResult<Report> {
    ask(py, socket, timeout, Connection::health).map(report)
}

/// How a holder is, once it answers. Ctrl-C ends the waiting.
#[pyfunction]
pub fn holder_wait(py: Python<'_>, socket: PathBuf, timeout: f64) -> PyResult<Report> {
    let (stop, timeout) = (AtomicBool::new(false), seconds(timeout)?);
    let wait = |_wake| Health::wait_for(&socket, timeout, &mut || !stop.load(Ordering::Relaxed));
    unlocked::stoppable(py, &stop, wait, |_| Ok(()))?.or_raise().map(report)
}

/// Has a holder forget an image.
#[pyfunction]
pub fn holder_drop(py: Python<'_>, socket: PathBuf, timeout: f64, name: &str) -> PyResult<()> {
    ask(py, socket, timeout, |holder| holder.drop_image(name))
}

/// Ends a holder.
#[pyfunction]
pub fn holder_stop(py: Python<'_>, socket: PathBuf, timeout: f64) -> PyResult<()> {
    ask(py, socket, timeout, Connection::stop)
}

/// Who may attach to an image: before and after the change, if there is one.
#[pyfunction]
pub fn holder_access(
    py: Python<'_>,
    socket: PathBuf,
    timeout: f64,
    name: &str,
    change: Option<Ids>,
) -> PyResult<(Ids, Ids)> {
    let change = change.map(Allowed::from);
    let (before, after) = ask(py, socket, timeout, |holder| holder.access(name, change))?;
    Ok(((before.uids, before.gids), (after.uids, after.gids)))
}

/// Has a holder hold what `source` is. Ctrl-C, and a `progress` that answers False, give the load up.
#[pyfunction]
#[pyo3(signature = (
    socket, timeout, name, source, *, replace, into, shared, no_copy, align_tensors, exact, dedupe, links, exclude,
    include, weights_only, signature, expect, allow_uids, allow_gids, progress,
))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn holder_load(
    py: Python<'_>,
    socket: PathBuf,
    timeout: f64,
    name: &str,
    source: &Bound<'_, PyAny>,
    replace: bool,
    into: Option<&str>,
    shared: bool,
    no_copy: bool,
    align_tensors: Option<AlignTensors>,
    exact: bool,
    dedupe: bool,
    links: &str,
    exclude: Option<Globs>,
    include: Option<Globs>,
    weights_only: bool,
    signature: Option<&Bound<'_, PyAny>>,
    expect: Option<&str>,
    allow_uids: Vec<u32>,
    allow_gids: Vec<u32>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Image> {
    let wrong = |what: &'static str| move |why: String| PyValueError::new_err(format!("{what}: {why}"));
    let (alignment, unaligned) = AlignTensors::read(align_tensors)?;
    let mut packing = Packing::default();
    (packing.align_tensors, packing.exact, packing.dedupe) = (alignment, exact || unaligned, dedupe);
    (packing.links, packing.weights_only) = (links.parse().map_err(wrong("links"))?, weights_only);
    (packing.exclude, packing.include) = (Globs::list(exclude), Globs::list(include));
    let load = Load {
        replace,
        into: into.map(str::parse::<Target>).transpose().map_err(wrong("into"))?,
        shared,
        no_copy,
        signature: signature.map(source::path).transpose()?,
        packing,
        expect: expect.map(text::parse_hash).transpose()?,
        allowed: Allowed { uids: allow_uids, gids: allow_gids },
        ..Load::new(name)
    };
    let (given, timeout) = (Place::of(source)?.given(), seconds(timeout)?);
    let (stop, newest, warnings) = (AtomicBool::new(false), Newest::default(), Mutex::new(Vec::new()));
    let mut listener = Listener::new(progress);
    let is_told = listener.is_there();
    let work = |wake: std::sync::mpsc::Sender<()>| {
        let mut tell = |step| {
            match step {
                Step::Progress { done, total } => {
                    newest.record(done, total);
                    if is_told {
                        // Nobody listens any more only when the load is over.
                        let _ = wake.send(());
                    }
                }
                Step::Warning(text) => warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text),
                _ => {}
            }
            !stop.load(Ordering::Relaxed)
        };
        load.run(|| Connection::open_within(&socket, timeout), &given, &mut tell)
    };
    let heard = |py: Python<'_>| match listener.tell(py, &newest)? {
        true => Ok(()),
        false => Err(base(format!("{name}: the load was given up, as its progress function asked"))),
    };
    let loaded = unlocked::stoppable(py, &stop, work, heard)?.or_raise()?;
    for text in warnings.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let text = CString::new(text.replace('\0', "\\0")).unwrap_or_default();
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 2)?;
    }
    Ok(image(loaded))
}

/// Makes a copy of an image in a GPU's memory, or in host memory for GPUs, and gives it to the image's holder; whether
/// one had to be made. The copy is returned as well.
#[pyfunction]
#[pyo3(signature = (socket, timeout, name, device, *, plan, rank, verify, threads, piece, progress))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn holder_upload(
    py: Python<'_>,
    socket: PathBuf,
    timeout: f64,
    name: &str,
    device: &str,
    plan: Option<&Bound<'_, PyAny>>,
    rank: Option<usize>,
    verify: bool,
    threads: Option<usize>,
    piece: Option<usize>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<(DeviceImage, bool)> {
    let plan = Ranked::read(py, plan, rank)?;
    let options = OpenOptions::new().holder_timeout(seconds(timeout)?);
    let mut address = OsString::from("daxfs+unix://");
    address.push(&socket);
    address.push(format!("/{name}"));
    let image = py.detach(|| options.open(address)).or_raise()?;
    let upload =
        Upload { threads, piece, verify, writable: false, register: false, direct: true, progress, plan };
    let copy = device::to(py, &image, device, &upload)?;
    let held = copy.held()?;
    let copied = py.detach(|| held.keep()).or_raise()?;
    Ok((copy, copied))
}
