//! A holder that lies: the client ends in typed errors, whatever comes.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use daxfs::holder::message::{DeviceCopy, ImageInfo, MemoryKind, Refusal, Reply, Request, Role};
use daxfs::holder::wire::MESSAGE_MAX;
use daxfs::holder::{Address, Connection, HolderError};
use daxfs::signature::PublicKeys;
use daxfs::{Error, Image, OpenOptions};
use dmabuf::{HugePages, Memfd, Seals};

/// A reply, as bytes, and the descriptors that go with it.
type Answer = (Vec<u8>, Vec<OwnedFd>);

/// A server that answers each request as it is told.
struct Liar {
    dir: tempfile::TempDir,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// `answers` gives what is sent for a request; without any the connection is ended.
    fn new(mut answers: impl FnMut(Request) -> Vec<Answer> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = dmabuf::listen_seqpacket(&dir.path().join("s"), 0o600, None).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut open: Vec<OwnedFd> = Vec::new();
            let mut buffer = vec![0; MESSAGE_MAX];
            while !ended.load(Ordering::Relaxed) {
                open.extend(dmabuf::accept_seqpacket(listener.as_fd()).unwrap());
                open.retain(|socket| match dmabuf::recv_fds(socket.as_fd(), &mut buffer, 4) {
                    Ok((0, _)) => false,
                    Ok((len, fds)) => {
                        let answers = answers(Request::decode(&buffer[..len], fds.len()).unwrap());
                        for (message, fds) in &answers {
                            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                            let _ = dmabuf::send_fds(socket.as_fd(), message, &fds);
                        }
                        !answers.is_empty()
                    }
                    Err(error) => error.io_kind() == std::io::ErrorKind::WouldBlock,
                });
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { dir, end, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn open(&self) -> daxfs::Result<Image> {
        Image::open(Address { socket: self.socket(), name: "llama".into() }.to_string())
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.socket()).unwrap()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn plain(reply: &Reply) -> Vec<Answer> {
    vec![(reply.encode(), Vec::new())]
}

/// An image in a sealed memfd.
fn image() -> OwnedFd {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("table"), [7; 10_000]).unwrap();
    let plan = mkimage::Packer::new().input(dir.path()).plan().unwrap();
    plan.write_memory(&mkimage::Memory::Memfd(HugePages::No)).unwrap().0
}

fn len(fd: &OwnedFd) -> u64 {
    dmabuf::describe(fd.as_fd()).unwrap().len
}

/// The truth about [`image`].
fn info(size: u64) -> ImageInfo {
    let mut info = ImageInfo::new("llama", MemoryKind::SealedMemfd, size);
    (info.generation, info.page_size, info.loaded) = (3, 4096, 1);
    info
}

/// [`info`] with something else about it.
fn other(size: u64, change: impl FnOnce(&mut ImageInfo)) -> ImageInfo {
    let mut info = info(size);
    change(&mut info);
    info
}

/// An image of a listing.
fn named(name: impl Into<String>) -> ImageInfo {
    other(1, |info| info.name = name.into())
}

/// What opening an image ends in, when an attach is answered so.
fn opened(info: ImageInfo, fds: Vec<OwnedFd>) -> daxfs::Result<Image> {
    let liar = Liar::new(move |_| {
        let fds = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        vec![(Reply::Attached(info.clone()).encode(), fds)]
    });
    liar.open()
}

#[test]
fn the_truth_is_believed() {
    let fd = image();
    let image = opened(info(len(&fd)), vec![fd]).unwrap();
    assert_eq!(image.file("table").unwrap().to_vec().unwrap(), [7; 10_000]);
}

/// A signature of the true content goes with a forged file that has its hashes: who has the key looks himself.
#[test]
fn a_true_signature_of_other_bytes_is_no_proof() {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/minisign");
    let keys = PublicKeys::read(&tests.join("minisign.pub")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("table"), [7; 10_000]).unwrap();
    let path = dir.path().join("image");
    mkimage::Packer::new().input(dir.path().join("table")).plan().unwrap().write_file(&path).unwrap();
    let content = Image::open(&path).unwrap().content_hash().unwrap();
    let signer = mkimage::Signer::open(&tests.join("minisign.key"), None).unwrap();
    let signature = std::fs::read_to_string(signer.write(&content, &path, false).unwrap()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut forged = bytes.clone();
    let at = bytes.windows(8).position(|window| window == [7; 8]).unwrap();
    forged[at] ^= 1;
    for (bytes, is_true) in [(bytes, true), (forged, false)] {
        let (image, text) = (sealed(&bytes), sealed(signature.as_bytes()));
        let info = other(len(&image), |info| {
            info.content_hash = Some(content);
            info.roles = vec![Role::Image, Role::Signature];
        });
        let liar = Liar::new(move |_| {
            let fds = vec![image.try_clone().unwrap(), text.try_clone().unwrap()];
            vec![(Reply::Attached(info.clone()).encode(), fds)]
        });
        let address = Address { socket: liar.socket(), name: "llama".into() }.to_string();
        let opened = OpenOptions::new().signed(keys.clone(), None).open(address);
        match opened {
            Ok(_) => assert!(is_true),
            Err(error) => assert!(!is_true && matches!(error, Error::WrongHash { .. }), "{error}"),
        }
    }
}

/// Bytes in memory that nobody can change.
fn sealed(bytes: &[u8]) -> OwnedFd {
    use std::os::unix::fs::FileExt;
    let memfd = Memfd::create("forged", bytes.len() as u64, HugePages::No).unwrap();
    let file = File::from(memfd.as_fd().try_clone_to_owned().unwrap());
    file.write_all_at(bytes, 0).unwrap();
    memfd.seal(Seals::IMMUTABLE | Seals::SEAL).unwrap();
    memfd.into()
}

#[test]
fn sizes_and_kinds_are_compared_with_the_descriptor() {
    let fd = image();
    let size = len(&fd);
    let wrong = |info: ImageInfo, fd: &OwnedFd| {
        let error = opened(info, vec![fd.try_clone().unwrap()]).unwrap_err();
        assert!(matches!(error, Error::Holder(HolderError::NotAsSaid { .. })), "{error}");
        error.to_string()
    };
    for other in [0, 1, size - 1, size + 1, size * 2, u64::MAX] {
        let text = wrong(info(other), &fd);
        assert!(text.contains(&format!("says {other} bytes")) && text.contains(&size.to_string()), "{text}");
    }
    for kind in [MemoryKind::DmaBuf, MemoryKind::CudaVmm, MemoryKind::DeviceDmaBuf, MemoryKind::File] {
        wrong(other(size, |info| info.kind = kind), &fd);
    }
    // Sealed by its word only.
    let open = Memfd::create("open", size, HugePages::No).unwrap();
    open.seal(Seals::SHRINK | Seals::GROW).unwrap();
    let text = wrong(info(size), &open.as_fd().try_clone_to_owned().unwrap());
    assert!(text.contains("says sealed memfd"), "{text}");
}

#[test]
fn descriptors_of_other_kinds_are_errors() {
    let path = |path: &str| OwnedFd::from(File::open(path).unwrap());
    let (pipe, _writer) = std::io::pipe().unwrap();
    let write_only = OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
    let socket = OwnedFd::from(std::os::unix::net::UnixDatagram::unbound().unwrap());
    for fd in [pipe.into(), path("/"), path("/dev/null"), path("/proc/self/status"), write_only, socket] {
        let error = opened(info(4096), vec![fd]).unwrap_err();
        assert!(matches!(error, Error::Memory(_) | Error::Holder(_)), "{error:?}");
    }
    // Memory, but no image in it.
    let zeros = Memfd::create("zeros", 8192, HugePages::No).unwrap();
    zeros.seal(Seals::IMMUTABLE).unwrap();
    let error = opened(info(8192), vec![zeros.into()]).unwrap_err();
    assert!(matches!(error, Error::NotAnImage { .. }), "{error:?}");
}

#[test]
fn what_does_not_fit_the_question_is_an_error() {
    let fd = image();
    let size = len(&fd);
    let copy = || fd.try_clone().unwrap();
    let renamed = other(size, |info| info.name = "other".into());
    let none = other(size, |info| info.roles = vec![Role::Metadata]);
    let two = other(size, |info| info.roles = vec![Role::Image, Role::Device]);
    type Right = fn(&HolderError) -> bool;
    let protocol: Right = |error| matches!(error, HolderError::Protocol { .. });
    let cases: [(&str, ImageInfo, usize, Right); 5] = [
        ("another image", renamed, 1, protocol),
        ("no image at all", none, 1, |error| matches!(error, HolderError::Memory { .. })),
        ("a descriptor too few", two, 1, protocol),
        ("a descriptor too many", info(size), 2, protocol),
        ("no descriptor", info(size), 0, protocol),
    ];
    for (what, info, count, right) in cases {
        let error = opened(info, (0..count).map(|_| copy()).collect()).unwrap_err();
        assert!(matches!(&error, Error::Holder(error) if right(error)), "{what}: {error:?}");
    }
    let replies = [
        Reply::Ok,
        Reply::Progress { done: 1, total: 2 },
        Reply::Warning { text: "late".into() },
        Reply::Health { pid: 1, images: 1, bytes: 1, uptime: 1 },
        Reply::Current { generation: 3, inode: 1 },
        Reply::Loaded(info(size)),
        Reply::Page { images: vec![info(size)], more: false },
    ];
    for reply in replies {
        let text = format!("{reply:?}");
        let liar = Liar::new(move |_| plain(&reply));
        let error = liar.open().unwrap_err();
        assert!(matches!(error, Error::Holder(HolderError::Protocol { .. })), "{text}: {error:?}");
    }
}

#[test]
fn cut_and_damaged_replies_are_errors() {
    let fd = image();
    let message = Reply::Attached(info(len(&fd))).encode();
    let mut damaged: Vec<Vec<u8>> = (1..message.len()).map(|len| message[..len].to_vec()).collect();
    damaged.push([&message[..], &[0]].concat());
    damaged.push(vec![0xff; message.len()]);
    for message in damaged {
        let (text, fd) = (format!("{} bytes", message.len()), fd.try_clone().unwrap());
        let liar = Liar::new(move |_| vec![(message.clone(), vec![fd.try_clone().unwrap()])]);
        let error = liar.open().unwrap_err();
        assert!(matches!(error, Error::Holder(HolderError::Protocol { .. })), "{text}: {error:?}");
    }
    let liar = Liar::new(|_| Vec::new());
    let error = liar.open().unwrap_err();
    assert!(matches!(error, Error::Holder(HolderError::Closed { .. })), "{error:?}");
    // Longer than any message.
    let liar = Liar::new(|_| vec![(vec![0; MESSAGE_MAX + 1], Vec::new())]);
    let error = liar.open().unwrap_err();
    assert!(matches!(error, Error::Holder(HolderError::System { .. })), "{error:?}");
}

#[test]
fn a_late_reply_is_taken_for_nothing_else() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let mut first = true;
    let liar = Liar::new(move |_| {
        if std::mem::take(&mut first) {
            let _ = wait.recv();
        }
        plain(&Reply::Page { images: Vec::new(), more: false })
    });
    let mut connection = liar.connect();
    connection.set_timeout(Duration::from_millis(30)).unwrap();
    let error = connection.list().unwrap_err();
    assert!(matches!(error, HolderError::Timeout { .. }), "{error:?}");
    go.send(()).unwrap();
    // The reply to the first question is on its way; the second one must not get it.
    std::thread::sleep(Duration::from_millis(30));
    let error = connection.list().unwrap_err();
    assert!(matches!(error, HolderError::Closed { .. }), "{error:?}");
    assert!(liar.connect().list().unwrap().is_empty());
}

/// What a listing ends in, whose pages have these names.
fn listed(pages: Vec<Vec<&'static str>>) -> Result<Vec<String>, HolderError> {
    let mut pages = pages.into_iter();
    let liar = Liar::new(move |_| {
        let names = pages.next().unwrap_or_default();
        let images = names.into_iter().map(named).collect();
        plain(&Reply::Page { images, more: pages.len() > 0 })
    });
    Ok(liar.connect().list()?.into_iter().map(|info| info.name).collect())
}

#[test]
fn a_listing_must_advance_and_end() {
    assert_eq!(listed(vec![vec!["a", "b"], vec!["c"]]).unwrap(), ["a", "b", "c"]);
    for wrong in [
        vec![vec!["b", "a"]],
        vec![vec!["a", "a"]],
        vec![vec!["a", "b"], vec!["b", "c"]],
        vec![vec!["a", "b"], vec!["a"], vec!["c"]],
        vec![vec!["b"], vec!["a", "c"]],
    ] {
        let text = format!("{wrong:?}");
        let error = listed(wrong).unwrap_err();
        assert!(matches!(error, HolderError::Protocol { .. }), "{text}: {error:?}");
    }
    // Nothing more, whatever it says.
    let liar = Liar::new(|_| plain(&Reply::Page { images: Vec::new(), more: true }));
    assert!(liar.connect().list().unwrap().is_empty());
    // Names that advance for ever.
    let mut count = 0;
    let liar = Liar::new(move |_| {
        let name = |at| format!("n{:020}", count + at);
        let images = (0..24).map(|at| named(name(at))).collect();
        count += 24;
        plain(&Reply::Page { images, more: true })
    });
    let error = liar.connect().list().unwrap_err();
    assert!(matches!(error, HolderError::Protocol { .. }), "{error:?}");
}

#[test]
fn generations_that_go_backwards_are_another_image() {
    let fd = image();
    let attach = Reply::Attached(info(len(&fd))).encode();
    let inode = dmabuf::describe(fd.as_fd()).unwrap().ino;
    for (reply, current) in [
        (Reply::Current { generation: 3, inode }, Some(true)),
        (Reply::Current { generation: 2, inode }, Some(false)),
        (Reply::Current { generation: 0, inode }, Some(false)),
        (Reply::Current { generation: u64::MAX, inode }, Some(false)),
        (Reply::Current { generation: 3, inode: inode + 1 }, Some(false)),
        (Reply::Error { refusal: Refusal::NoSuchName, text: String::new() }, Some(false)),
        (Reply::Error { refusal: Refusal::Busy, text: String::new() }, None),
        (Reply::Ok, None),
    ] {
        let (text, fd, attach) = (format!("{reply:?}"), fd.try_clone().unwrap(), attach.clone());
        let liar = Liar::new(move |request| match request {
            Request::Attach { .. } => vec![(attach.clone(), vec![fd.try_clone().unwrap()])],
            _ => plain(&reply),
        });
        let image = liar.open().unwrap();
        assert_eq!(image.is_current().ok(), current, "{text}");
    }
}

#[test]
fn copies_on_devices_are_what_was_asked_for() {
    let fd = image();
    let attach = Reply::Attached(info(len(&fd))).encode();
    for (reply, right) in [
        (Reply::Ok, true),
        (Reply::Attached(info(1)), false),
        (Reply::HandoverCopy(DeviceCopy { device: [1; 16].into(), placement: [0; 32], size: 1 }), false),
        (Reply::Current { generation: 1, inode: 1 }, false),
    ] {
        let (fd, attach) = (fd.try_clone().unwrap(), attach.clone());
        let text = format!("{reply:?}");
        let liar = Liar::new(move |request| match request {
            Request::Attach { .. } => vec![(attach.clone(), vec![fd.try_clone().unwrap()])],
            _ => {
                let fds = (0..reply.descriptors()).map(|_| fd.try_clone().unwrap()).collect();
                vec![(reply.encode(), fds)]
            }
        });
        let image = liar.open().unwrap();
        let copy = image.region().attachment().unwrap().copy_on([1; 16].into(), [0; 32]);
        assert_eq!(copy.is_ok_and(|copy| copy.is_none()), right, "{text}");
    }
}
