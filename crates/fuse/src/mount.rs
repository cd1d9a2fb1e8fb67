//! A mount: made, served by threads of this process, and taken away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use daxfs::Image;
use fuser::Session;

use crate::error::{Error, Result};
use crate::files::{Files, State};
use crate::options::Options;
use crate::point;
use crate::shown::{Caching, Shown};
use crate::signals::Signals;
use crate::watch::watch;

/// What the kernel reads ahead of a program that reads in order, where this process may say that: as much as one request
/// can ask for.
const READ_AHEAD_KIB: u32 = 1024;

/// Why a mount ends.
enum Event {
    /// Somebody has taken it away, or its threads could not go on.
    Ended(io::Result<()>),
    /// This process was told to end.
    Told,
}

/// An image that is mounted, and answered for by threads of this process.
///
/// Dropping it takes the mount away, as [`Mount::unmount`] does.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    /// The device number of the mount.
    device: u64,
    caching: Caching,
    events: Receiver<Event>,
    tell: Sender<Event>,
    ended: Arc<AtomicBool>,
}

impl Mount {
    /// Mounts an image at a directory. The mount answers when this returns; it is one of the mount namespace that this
    /// process is in, and of no other.
    ///
    /// Root, also that of a user namespace which has a mount namespace, mounts by itself; others by fusermount3. A mount
    /// of this kind whose process was killed is taken away first, if it is in the way.
    ///
    /// # Errors
    /// [`Error::Directory`], [`Error::NotADirectory`] and [`Error::Abandoned`] for what cannot be mounted at;
    /// [`Error::Refused`] with what the kernel or fusermount3 say; [`Error::Silent`]; [`Error::Image`].
    pub fn new(image: Image, at: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let at = point::prepare(at.as_ref())?;
        let shown = Shown::new(image, 0, options.owners())?;
        let caching = shown.caching();
        let state = Arc::new(State::new(shown));
        let files = Files::new(Arc::clone(&state), options);
        let session = attach(files, &at, options).map_err(|source| refused(&at, source))?;
        // It keeps the kernel's requests waiting, so it goes when nobody is left to answer them.
        let notifier = Arc::new(Mutex::new(Some(session.notifier())));
        let (tell, events) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let (told, over, kept) = (tell.clone(), Arc::clone(&ended), Arc::clone(&notifier));
        let answering = move || {
            let result = session.run();
            over.store(true, Ordering::Relaxed);
            // Nobody waits for it any more: the mount was dropped.
            let _ = told.send(Event::Ended(result));
            drop(kept.lock().unwrap_or_else(PoisonError::into_inner).take());
        };
        let started = |source| Error::System { what: "start a thread", source };
        thread::Builder::new().name("daxfs-mount".into()).spawn(answering).map_err(started)?;
        let device = point::ask(&at).map_err(|source| {
            // What does not answer is no use to anybody.
            let _ = point::take_away(&at);
            match events.try_recv() {
                Ok(Event::Ended(Err(source))) => Error::System { what: "answer the kernel", source },
                _ => Error::Silent { at: at.clone(), source },
            }
        })?;
        read_ahead(device);
        let notifier = notifier.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(notifier) = notifier.filter(|_| caching != Caching::Forever || options.follow) {
            let (state, ended, options) = (Arc::downgrade(&state), Arc::clone(&ended), options.clone());
            let watching = move || watch(&state, &notifier, options.follow, options.report, &ended);
            thread::Builder::new().name("daxfs-watch".into()).spawn(watching).map_err(started)?;
        }
        Ok(Self { at, device, caching, events, tell, ended })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// How long the kernel may believe what it was told.
    #[must_use]
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Has signals end it, from now on: [`Mount::wait`] takes the mount away then.
    pub fn end_on(&self, signals: &Signals) {
        let tell = self.tell.clone();
        // The mount is gone when nobody listens.
        signals.call(move || _ = tell.send(Event::Told));
    }

    /// Waits until somebody unmounts it. When a signal ends it, it is taken away: no path leads there any more, and
    /// programs that have files of it open get errors when this process ends.
    ///
    /// # Errors
    /// [`Error::System`] when the threads could not go on; [`Error::Directory`] when it cannot be taken away.
    pub fn wait(self) -> Result<()> {
        match self.events.recv() {
            Ok(Event::Ended(result)) => {
                result.map_err(|source| Error::System { what: "answer the kernel", source })
            }
            Ok(Event::Told) | Err(_) => self.unmount(),
        }
    }

    /// Takes it away at once. Programs that have files of it open keep them as long as this process runs.
    ///
    /// # Errors
    /// [`Error::Directory`] with what the kernel or fusermount3 say.
    pub fn unmount(self) -> Result<()> {
        self.take_away().map_err(|source| Error::Directory { at: self.at.clone(), source })
    }

    fn take_away(&self) -> io::Result<()> {
        // It can be gone already, and something else be mounted there.
        let is_there =
            !self.ended.swap(true, Ordering::Relaxed) && point::ask(&self.at).ok() == Some(self.device);
        if is_there { point::take_away(&self.at) } else { Ok(()) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A mount that cannot be taken away ends with this process.
        let _ = self.take_away();
    }
}

/// Mounts the file system and agrees with the kernel on how they talk.
fn attach(files: Files, at: &Path, options: &Options) -> io::Result<Session<Files>> {
    if options.auto_unmount && !options.for_others() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "auto_unmount takes allow_other or allow_root",
        ));
    }
    let config = options.config();
    // Only fusermount3 takes a mount away when this process does not. It is also asked where the kernel refuses.
    let by_call = if options.auto_unmount { None } else { point::mount(at, options)? };
    let Some(device) = by_call else { return Session::new(files, at, &config) };
    Session::from_fd(files, device, config.acl, config).inspect_err(|_| _ = point::take_away(at))
}

/// Has the kernel read further ahead, where this process may say so: root may, of the first user namespace.
fn read_ahead(device: u64) {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let _ =
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB.to_string());
}

/// An error of mounting, with what helps against it.
fn refused(at: &Path, source: io::Error) -> Error {
    let text = source.to_string();
    if text.ends_with('\n') {
        // The words of fusermount3.
        return refused(at, io::Error::new(source.kind(), text.trim_end().to_owned()));
    }
    let advice = if source.kind() == io::ErrorKind::NotFound && Path::new("/dev/fuse").exists() {
        "; who is not root mounts by fusermount3, of the package fuse3"
    } else if source.kind() == io::ErrorKind::NotFound {
        "; there is no /dev/fuse: the kernel's module fuse is not loaded, or this container was not given the device"
    } else if source.raw_os_error() == Some(libc::EACCES) {
        "; /dev/fuse is not open to this user: udev makes it so (mode 0666)"
    } else {
        ""
    };
    Error::Refused { at: at.to_owned(), source, advice }
}
