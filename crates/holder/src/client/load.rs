//! A load: the source is opened and sent, and packed here where the holder does not read it for this user.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use daxfs::signature::{self, SignatureError};
use daxfs::{ContentHash, Escaped, Part, RemoteAddress, Source, Wanted};
use daxfs_protocol::message::{ImageInfo, Refusal};
use daxfs_protocol::{Allowed, Connection, HolderError, Step};
use dmabuf::HugePages;
use mkimage::{Memory, Packer};

use super::signature::found;
use crate::config::Target;
use crate::is_kept;
use crate::packing::Packing;

/// Options of one request: their number is one byte, and one more may say who has packed.
const MOST_OPTIONS: usize = 254;

/// Time between two looks at whether the packing here is still wanted.
const PAUSE: Duration = Duration::from_millis(100);

/// What is loaded.
#[derive(Debug)]
pub enum Given {
    /// A source by its text, see [`Source`].
    Named(OsString),
    /// A descriptor of a directory, a file or memory.
    Descriptor(OwnedFd),
}

/// What to load, under which name, and how.
#[derive(Debug)]
pub struct Load {
    /// Name of the image.
    pub name: String,
    /// Replace the image of that name in one step (a swap); otherwise the name must be free.
    pub replace: bool,
    /// Host memory for the image; `None` for what the holder was started with.
    pub into: Option<Target>,
    /// Leave the memfd open to writing, so that devices can pin it.
    pub shared: bool,
    /// Refuse a source that would have to be copied.
    pub no_copy: bool,
    /// The file or OCI image layout with the signature of the content; `None` for what lies beside the source.
    pub signature: Option<PathBuf>,
    /// How a directory is packed.
    pub packing: Packing,
    /// The content hash that the image must have.
    pub expect: Option<ContentHash>,
    /// Who may attach.
    pub allowed: Allowed,
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] daxfs::Error),
    /// The source is a part of what its descriptor stands for.
    #[error(
        "{place}: a holder passes whole descriptors on, not parts of them; open the part where it is used"
    )]
    Part {
        /// The source.
        place: String,
    },
    /// An option that would have no effect on this source.
    #[error("{place}{}{option} {why}", if place.is_empty() { "" } else { ": " })]
    NoEffect {
        /// The source; empty where it does not matter.
        place: String,
        /// The option, by its key in [`crate::LoadOptions`].
        option: &'static str,
        /// What it is for.
        why: &'static str,
    },
    /// There are more globs and other options than a request takes.
    #[error("{count} globs and other options, a request to a holder has at most {MOST_OPTIONS}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The signature that was named cannot be read.
    #[error(transparent)]
    Signature(SignatureError),
    /// The directory cannot be packed here.
    #[error(transparent)]
    Pack(#[from] mkimage::Error),
    /// The holder refuses this source.
    #[error("{place}: {source}")]
    Refused {
        /// The source.
        place: String,
        /// What the holder said.
        source: Box<HolderError>,
    },
    /// The holder cannot be reached, or refuses any source.
    #[error(transparent)]
    Holder(#[from] HolderError),
}

impl Given {
    /// As errors show it.
    pub fn name(&self) -> String {
        match self {
            Self::Named(text) if text == "-" => "standard input".to_owned(),
            // An address may hold what is secret.
            Self::Named(text) => match RemoteAddress::parse(text) {
                Some(Ok(address)) => Escaped(address.to_string().as_bytes()).to_string(),
                _ => Escaped(text.as_bytes()).to_string(),
            },
            Self::Descriptor(fd) => format!("descriptor {}", fd.as_raw_fd()),
        }
    }

    /// Opens it read-only.
    ///
    /// # Errors
    /// [`LoadError::Source`] when it is not there or may not be read, [`LoadError::Part`].
    pub fn open(&self) -> Result<OwnedFd, LoadError> {
        self.open_as(None, &mut |_| true)
    }

    /// The address of a tree of files that lies elsewhere, if it is one.
    fn tree(&self) -> daxfs::Result<Option<PathBuf>> {
        let Self::Named(text) = self else { return Ok(None) };
        let address = RemoteAddress::parse(text).transpose()?;
        Ok(address.filter(RemoteAddress::is_tree).map(|_| PathBuf::from(text)))
    }

    /// Opens it. What lies elsewhere is fetched with the rights and credentials of who asks, never the holder's, and only
    /// if its content is the expected one.
    fn open_as(
        &self,
        expect: Option<ContentHash>,
        tell: &mut dyn FnMut(Step) -> bool,
    ) -> Result<OwnedFd, LoadError> {
        match self {
            Self::Named(text) => {
                if let Some(address) = RemoteAddress::parse(text) {
                    let mut progress = |done, total| tell(Step::Progress { done, total });
                    return Ok(address?.fetch(Wanted::Image, expect, &mut progress)?);
                }
                let opened = Source::parse(text)?.open(false, None)?;
                if opened.part != Part::WHOLE {
                    return Err(LoadError::Part { place: self.name() });
                }
                Ok(opened.fd)
            }
            Self::Descriptor(fd) => {
                Ok(fd.try_clone().map_err(|source| system("dup", self.name(), source))?)
            }
        }
    }

    /// Where it is found by a path: its own, so that errors name what the user named, where it has one.
    fn path(&self, opened: &OwnedFd) -> daxfs::Result<PathBuf> {
        if let Self::Named(text) = self
            && let Source::Path { path, .. } = Source::parse(text)?
        {
            return Ok(path);
        }
        Ok(PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())))
    }

    fn text(&self) -> Option<&OsStr> {
        match self {
            Self::Named(text) => Some(text),
            Self::Descriptor(_) => None,
        }
    }
}

impl Load {
    /// Under this name, with nothing said but that.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            replace: false,
            into: None,
            shared: false,
            no_copy: false,
            signature: None,
            packing: Packing::default(),
            expect: None,
            allowed: Allowed::default(),
        }
    }

    /// Opens the source, sends it to the holder and waits until that has it. `tell` is called with each step, and several
    /// times a second in between; once it returns false the load is given up. Where the holder does not read a directory
    /// for this user, it is packed here, with this user's rights, into memory that the holder keeps.
    ///
    /// The holder may be silent for as long as `connection` waits.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn run(
        &self,
        connect: impl Fn() -> Result<Connection, HolderError>,
        given: &Given,
        tell: &mut (dyn FnMut(Step) -> bool + Send),
    ) -> Result<ImageInfo, LoadError> {
        self.check_shared()?;
        let tree = given.tree()?;
        let source = match &tree {
            // It is fetched with the rights and credentials of who asks, and what is fetched is a directory.
            Some(_) if self.no_copy => {
                let why = "is for memory; a tree of files is packed";
                return Err(LoadError::NoEffect { place: given.name(), option: "no-copy", why });
            }
            Some(tree) => self.pack(tree, tell)?,
            None => {
                let source = given.open_as(self.expect, tell)?;
                self.check_effect(given, &source)?;
                source
            }
        };
        let mut options = self.options();
        let signature = match &self.signature {
            Some(path) => {
                let text = signature::read(path).and_then(|text| signature::canonical(&text));
                Some(text.map_err(LoadError::Signature)?)
            }
            None => match given.text().filter(|_| tree.is_none()) {
                Some(text) => found(text, |text| {
                    tell(Step::Warning(text));
                })?,
                None => None,
            },
        };
        options.extend(signature.map(|text| format!("signature={text}")));
        if options.len() > MOST_OPTIONS {
            return Err(LoadError::TooMany { count: options.len() });
        }
        let send = |options: &[String], source: BorrowedFd<'_>, tell: &mut dyn FnMut(Step) -> bool| {
            connect()?.load(&self.name, self.replace, options, source, tell)
        };
        if tree.is_some() {
            self.say_packed(&mut options);
        }
        let sent = match send(&options, source.as_fd(), tell) {
            Err(HolderError::Refused { refusal: Refusal::ClientPacks, .. }) => {
                let memory = self.pack(&given.path(&source)?, tell)?;
                self.say_packed(&mut options);
                send(&options, memory.as_fd(), tell)
            }
            sent => sent,
        };
        sent.map_err(|error| of_source(error, given))
    }

    /// What the packer was told is done. A swap keeps the kind of memory, which only the holder knows.
    fn say_packed(&self, options: &mut Vec<String>) {
        let packed = self.packing.texts();
        options.retain(|option| !packed.contains(option));
        options.push("packed=1".to_owned());
    }

    /// As the protocol has them; see [`crate::LoadOptions`].
    fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        options.extend(self.into.as_ref().map(|target| format!("into={target}")));
        options.extend(self.shared.then(|| "shared=1".to_owned()));
        options.extend(self.no_copy.then(|| "no-copy=1".to_owned()));
        options.extend(self.packing.texts());
        options.extend(self.allowed.uids.iter().map(|uid| format!("allow-uid={uid}")));
        options.extend(self.allowed.gids.iter().map(|gid| format!("allow-gid={gid}")));
        options.extend(self.expect.map(|hash| format!("expect={hash}")));
        options
    }

    /// Refuses to share what always is, whatever the source.
    fn check_shared(&self) -> Result<(), LoadError> {
        if self.shared && !matches!(self.into, None | Some(Target::Memfd(_))) {
            let why = "is for memfds; a dma-buf is always shared";
            return Err(LoadError::NoEffect { place: String::new(), option: "shared", why });
        }
        Ok(())
    }

    /// Refuses options that would do nothing with this source.
    fn check_effect(&self, given: &Given, source: &OwnedFd) -> Result<(), LoadError> {
        let refuse = |option, why| Err(LoadError::NoEffect { place: given.name(), option, why });
        let copy = source.try_clone().map_err(|source| system("dup", given.name(), source))?;
        let metadata = File::from(copy).metadata().map_err(|source| system("stat", given.name(), source))?;
        if metadata.is_dir() {
            return match self.no_copy {
                true => refuse("no-copy", "is for memory; a directory is packed"),
                false => Ok(()),
            };
        }
        if let Some(option) = self.packing.given() {
            return refuse(option, "is for directories; this holds an image already");
        }
        let kept = is_kept(&dmabuf::describe(source.as_fd()).map_err(daxfs::Error::from)?.kind, false);
        let moving = [("into", self.into.is_some()), ("shared", self.shared)];
        match moving.iter().find(|(_, given)| *given && kept) {
            Some((option, _)) => {
                refuse(option, "is for what can be moved; memory that nobody can write is kept as it is")
            }
            None => Ok(()),
        }
    }

    /// Packs a directory here, with the rights of this user, for a holder that has others: into memory that it keeps.
    fn pack(
        &self,
        directory: &Path,
        tell: &mut (dyn FnMut(Step) -> bool + Send),
    ) -> Result<OwnedFd, LoadError> {
        let target = self.into.clone().unwrap_or(Target::Memfd(HugePages::Auto));
        let memory = match target {
            Target::Memfd(pages) if self.shared => Memory::SharedMemfd(pages),
            target => target.memory(),
        };
        let (steps, heard) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let progress =
            Packed { steps: steps.clone(), stop: Arc::clone(&stop), done: 0.into(), total: 0.into() };
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let packer = self.packing.apply(Packer::new().input(directory)).progress(progress);
                let plan = packer.plan()?;
                for warning in plan.warnings() {
                    // Nobody listens any more only when all this is over.
                    let _ = steps.send(Step::Warning(warning));
                }
                Ok(plan.write_memory(&memory)?.0)
            });
            loop {
                let step = match heard.recv_timeout(PAUSE) {
                    Ok(step) => step,
                    Err(mpsc::RecvTimeoutError::Timeout) => Step::Waiting,
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                };
                if !tell(step) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The packer's progress, as steps of the load.
#[derive(Debug)]
struct Packed {
    steps: mpsc::Sender<Step>,
    stop: Arc<AtomicBool>,
    done: AtomicU64,
    total: AtomicU64,
}

impl mkimage::Progress for Packed {
    fn fetching(&self, done: u64, total: u64) {
        // As below.
        let _ = self.steps.send(Step::Progress { done, total });
    }

    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        // Nobody listens any more only when all this is over.
        let _ = self.steps.send(Step::Progress { done, total: self.total.load(Ordering::Relaxed) });
    }

    fn finish(&self) {}

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A failure that is the source's names it.
fn of_source(error: HolderError, given: &Given) -> LoadError {
    use Refusal::{Failed, Limit, NotSigned, OtherContent};
    match error {
        HolderError::Refused { refusal: Failed | Limit | NotSigned | OtherContent, .. } => {
            LoadError::Refused { place: given.name(), source: Box::new(error) }
        }
        error => LoadError::Holder(error),
    }
}

fn system(op: &'static str, subject: String, source: std::io::Error) -> daxfs::Error {
    dmabuf::Error::Os { op, subject, source }.into()
}
