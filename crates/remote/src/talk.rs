//! What the program `daxfs-remote` and the process that started it say to each other: over a socket of messages
//! (`SOCK_SEQPACKET`) that is the program's standard input, one text a message.
//!
//! | message | from | meaning |
//! |---|---|---|
//! | `daxfs-remote 1` | the program | it is there, and speaks this version |
//! | `fetch image HASH ADDRESS` | the other process | all of an image; the content hash that it must have, or `-` |
//! | `fetch metadata HASH ADDRESS` | the other process | what listings need of it |
//! | `push OFFSET LENGTH ADDRESS` and a descriptor | the other process | into a registry; a part of the descriptor's memory |
//! | `layout PLATFORM ADDRESS` and a descriptor | the other process | a container image into an image layout; of an empty directory |
//! | `list ADDRESS` and a descriptor | the other process | a tree of files, into the file `listing` of a directory |
//! | `tree ADDRESS` and a descriptor | the other process | files of a tree, those in `wanted` of a directory, into its `files` |
//! | `progress DONE TOTAL` | the program | bytes so far, of how many |
//! | `image LENGTH HASH` and a descriptor | the program | the end: sealed memory; the content hash, or `-` |
//! | `metadata LENGTH HASH` and a descriptor | the program | the end: memory with the metadata alone, sealed |
//! | `pushed DIGEST` | the program | the end: the manifest's digest |
//! | `layout DIGEST` | the program | the end: the digest that the address names |
//! | `listed ADDRESS` | the program | the end: the address that has this content |
//! | `tree COUNT` | the program | the end: how many files are there |
//! | `error KIND TEXT` | the program | the end: `KIND` is one word of [`kind`] |
//!
//! The address goes by the socket since it may hold a signature, and arguments are seen by everybody. When the other process
//! closes the socket, nobody wants the image any more.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daxfs::{ContentHash, Image, Part, Region};

use crate::{Error, Loaded, Location, Options, Progress, Remote, Result};

/// Time between two messages of progress.
const EVERY: Duration = Duration::from_millis(50);

/// The longest text of an error, so that it fits into one message.
const LONGEST: usize = 4000;

/// The first message, with the version of all.
const HELLO: &str = "daxfs-remote 1";

/// Bytes of a request.
const LONGEST_REQUEST: usize = 16 << 10;

/// What is wanted of an image.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// All of it.
    Image,
    /// What listings need.
    Metadata,
}

/// What the other process asks for.
#[derive(Debug)]
enum Request {
    Fetch { location: Location, wanted: Wanted, expect: Option<ContentHash> },
    Push { location: Location, offset: u64, len: u64 },
    Layout { location: Location, platform: String },
    List { location: Location },
    Tree { location: Location },
}

impl Request {
    fn parse(message: &[u8]) -> Result<Self> {
        let wrong = |why: &str| Error::Location { text: "the request".into(), why: why.into() };
        let text = std::str::from_utf8(message).map_err(|_| wrong("is not UTF-8"))?;
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().ok_or_else(|| wrong("has fewer than four words"));
        match word()? {
            "fetch" => {}
            "push" => {
                let mut number = || word()?.parse().map_err(|_| wrong("has no number of bytes"));
                let (offset, len) = (number()?, number()?);
                return Ok(Self::Push { location: word()?.parse()?, offset, len });
            }
            "layout" => {
                let platform = word()?.to_owned();
                return Ok(Self::Layout { location: word()?.parse()?, platform });
            }
            verb @ ("list" | "tree") => {
                let (_, address) = text.split_once(' ').unwrap_or_default();
                let location = Location::tree(address)?;
                return Ok(if verb == "list" { Self::List { location } } else { Self::Tree { location } });
            }
            _ => return Err(wrong("is none that this version knows")),
        }
        let wanted = match word()? {
            "image" => Wanted::Image,
            "metadata" => Wanted::Metadata,
            _ => return Err(wrong("is for neither image nor metadata")),
        };
        let expect = match word()? {
            "-" => None,
            hash => Some(hash.parse().map_err(|_| wrong("has no content hash"))?),
        };
        Ok(Self::Fetch { location: word()?.parse()?, wanted, expect })
    }
}

/// Waits for the request, does it, and says on `socket` how far it is and how it ended. True when it was done.
pub fn serve(socket: OwnedFd) -> bool {
    if !say(socket.as_fd(), HELLO, None) {
        return false;
    }
    let mut message = vec![0; LONGEST_REQUEST];
    let (request, memory) = match dmabuf::recv_fds(socket.as_fd(), &mut message, 1) {
        // It has gone, or sent more than a request.
        Ok((0, _)) | Err(_) => return false,
        Ok((len, fds)) => (Request::parse(message.get(..len).unwrap_or_default()), fds.into_iter().next()),
    };
    let socket = Arc::new(socket);
    let ended = request.and_then(|request| {
        let options = Options { progress: telling(Arc::clone(&socket)), ..Options::from_environment()? };
        let wrong = || Error::Location { text: "the request".into(), why: "has no descriptor".into() };
        match request {
            Request::Fetch { location, wanted, expect } => {
                let (text, fd) = fetch(&location, wanted, Options { expect, ..options })?;
                Ok((text, Some(fd)))
            }
            Request::Layout { location, platform } => {
                let folder = memory.ok_or_else(wrong)?;
                let digest = crate::pull_layout(&location, &path_of(&folder), &platform, &options)?;
                Ok((format!("layout {digest}"), None))
            }
            Request::List { location } => {
                let folder = memory.ok_or_else(wrong)?;
                let location = crate::list_tree(&location, &path_of(&folder), &options)?;
                Ok((format!("listed {location}"), None))
            }
            Request::Tree { location } => {
                let folder = memory.ok_or_else(wrong)?;
                Ok((format!("tree {}", crate::pull_tree(&location, &path_of(&folder), &options)?), None))
            }
            Request::Push { location, offset, len } => {
                let image = |source| Error::Image { place: location.to_string(), source: Box::new(source) };
                let part = Part { offset, len: Some(len) };
                let region = Region::from_fd_part(memory.ok_or_else(wrong)?, part).map_err(image)?;
                Ok((format!("pushed {}", crate::push(&region, &location, &options)?), None))
            }
        }
    });
    let (text, fd) = match &ended {
        Ok((text, fd)) => (text.clone(), fd.as_ref().map(AsFd::as_fd)),
        Err(error) => (failure(error), None),
    };
    say(socket.as_fd(), &text, fd) && ended.is_ok()
}

/// A directory by its descriptor.
fn path_of(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

fn fetch(location: &Location, wanted: Wanted, options: Options) -> Result<(String, OwnedFd)> {
    let remote = Remote::open(location, options)?;
    match wanted {
        Wanted::Image => {
            let Loaded { fd, len, content_hash } = remote.load()?;
            Ok((format!("image {len} {}", hash(content_hash)), fd))
        }
        Wanted::Metadata => {
            let image = remote.metadata()?;
            let text = format!("metadata {} {}", image.region().len(), hash(image.content_hash()));
            let fd = memory(&image)?;
            Ok((text, fd))
        }
    }
}

/// A descriptor of an image's memory.
fn memory(image: &Image) -> Result<OwnedFd> {
    let fd = image.region().fd().map(|fd| fd.try_clone_to_owned());
    fd.unwrap_or_else(|| Err(std::io::Error::other("it is not of a descriptor")))
        .map_err(|error| Error::system("duplicate the memory of an image", error))
}

fn hash(hash: Option<ContentHash>) -> String {
    hash.map_or_else(|| "-".to_owned(), |hash| hash.digits().to_string())
}

/// Progress as messages, now and then.
fn telling(socket: Arc<OwnedFd>) -> Progress {
    let begun = Instant::now();
    let (next, is_gone) = (AtomicU64::new(0), AtomicBool::new(false));
    Progress::new(move |done, total| {
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = next.load(Ordering::Relaxed);
        let every = u64::try_from(EVERY.as_millis()).unwrap_or(u64::MAX);
        // One thread says it.
        if now >= due
            && next.compare_exchange(due, now + every, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && !say(socket.as_fd(), &format!("progress {done} {total}"), None)
        {
            is_gone.store(true, Ordering::Relaxed);
        }
        !is_gone.load(Ordering::Relaxed)
    })
}

/// Sends a message; false when nobody is there.
fn say(socket: BorrowedFd<'_>, text: &str, fd: Option<BorrowedFd<'_>>) -> bool {
    let fds: Vec<_> = fd.into_iter().collect();
    dmabuf::send_fds(socket, text.as_bytes(), &fds).is_ok()
}

/// The message of an error.
fn failure(error: &Error) -> String {
    let mut text = error.to_string();
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push_str("...");
    }
    format!("error {} {text}", kind(error))
}

/// One word for what a program may want to tell apart.
pub fn kind(error: &Error) -> &'static str {
    match error {
        Error::Location { .. } => "address",
        Error::NotFound { .. } => "not-found",
        Error::Denied { .. } => "denied",
        Error::NoMemory { .. } => "no-memory",
        Error::Stalled { .. } => "stalled",
        Error::Cancelled => "cancelled",
        Error::Image { source, .. } if matches!(**source, daxfs::Error::OtherContent { .. }) => {
            "other-content"
        }
        Error::Image { .. }
        | Error::WrongBytes { .. }
        | Error::WrongDigest { .. }
        | Error::NoHashes { .. } => "format",
        _ => "failed",
    }
}
