//! Which images are open, so that faults in their memory can be explained: see [`dmabuf::faults`].
//!
//! The list has weak references only. An image is described when [`explain_faults`] is called, or when it is opened after
//! that, and until its memory goes.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use dmabuf::faults::{self, Advice, Described, Description};

use super::Inner;
use crate::tensor::ContainerKind;
use crate::text::Escaped;
use crate::{FileType, Image, Region, Result};

static ENABLED: AtomicBool = AtomicBool::new(false);
/// Held around forks, too: a child must be able to open images, whatever other threads of its parent were doing.
static OPEN: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
/// Whether forks take `OPEN`.
static FORKS: AtomicBool = AtomicBool::new(false);

type List = MutexGuard<'static, Vec<Weak<Inner>>>;

thread_local! {
    /// `OPEN`, while this thread forks.
    static HELD: Cell<Option<List>> = const { Cell::new(None) };
}

/// Has a handler of SIGSEGV and SIGBUS say on standard error which tensor or file of which image was written to or has
/// gone, and what to do about it, before the process dies as it would have. For all images of this process, those that
/// are opened later included. The names are gathered when an image is opened, which then takes as long as reading all
/// headers of its tensors.
///
/// # Errors
/// [`crate::Error::Memory`] when the handler cannot be installed.
pub fn explain_faults(advice: Advice) -> Result<()> {
    faults::install(advice)?;
    ENABLED.store(true, Ordering::SeqCst);
    let open: Vec<_> = list().iter().filter_map(Image::upgrade).collect();
    open.iter().for_each(describe);
    Ok(())
}

/// Notes an image that was opened.
pub(crate) fn opened(image: &Image) {
    {
        let mut open = list();
        if open.len() == open.capacity() {
            // As often as the list would be copied, those that have gone are left out.
            open.retain(|image| image.strong_count() > 0);
        }
        open.push(image.downgrade());
    }
    if ENABLED.load(Ordering::SeqCst) {
        describe(image);
    }
}

fn list() -> List {
    if !FORKS.load(Ordering::Acquire) {
        // Twice does no harm.
        dmabuf::around_forks(before_fork, after_fork);
        FORKS.store(true, Ordering::Release);
    }
    lock()
}

fn lock() -> List {
    // A list of weak references is whole at any time.
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn before_fork() {
    // A thread that is at its end forks without.
    let _ = HELD.try_with(|held| held.set(Some(held.take().unwrap_or_else(lock))));
}

extern "C" fn after_fork() {
    let _ = HELD.try_with(Cell::take);
}

fn describe(image: &Image) {
    image.described().get_or_init(|| {
        let regions = [Some(image.region()), image.backing()];
        regions.into_iter().flatten().map(|region| describe_region(image, region)).collect()
    });
}

fn describe_region(image: &Image, region: &Region) -> Described {
    let view = region.view();
    let start = view.as_ptr().addr();
    let name = match (region.source(), region.fd().and_then(dmabuf::fd_link)) {
        (Some(source), _) => format!("the image {source}"),
        (None, Some(path)) => format!("the image {}", path.display()),
        (None, None) => "an image of this process".to_owned(),
    };
    let mut parts = Vec::new();
    let mut inodes = HashSet::new();
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        let Ok(file) = entry.file() else { continue };
        if !std::ptr::eq(file.region(), region) || !inodes.insert(file.ino()) {
            continue;
        }
        // Where it lies is no use of it.
        let Ok(bytes) = file.bytes_unchecked() else { continue };
        let path = Escaped(&file.path()).to_string();
        parts.push((bytes.as_ptr().addr(), bytes.len(), format!("file {path:?}")));
        if ContainerKind::of_name(path.as_bytes()).is_none() {
            continue;
        }
        let Ok(tensors) = file.tensors() else { continue };
        for tensor in tensors.iter().flatten() {
            if let Ok(bytes) = tensor.bytes_unchecked() {
                let name = Escaped(tensor.name().as_bytes()).to_string();
                let what = format!("tensor {name:?} ({} {:?}) of {path:?}", tensor.dtype(), tensor.shape());
                parts.push((bytes.as_ptr().addr(), bytes.len(), what));
            }
        }
    }
    faults::describe(start, view.len(), Description { what: Escaped(name.as_bytes()).to_string(), parts })
}
