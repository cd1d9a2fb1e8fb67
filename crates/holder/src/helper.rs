//! The helper: a process with the rights of who asked for a load, which opens and packs the directory.
//!
//! A holder of root could read every file for whoever may load. So the directory of another user is packed by a process
//! of its own, which begins as this program, takes on the user, group and supplementary groups of the peer for good, and
//! only then looks at the descriptor. What it sends back is one memfd, sealed, of which the holder makes other memory where
//! the load wants that; the holder takes it for hostile, as any
//! other memory that comes from outside. The helper is a child of the holder, so its control group pays for the memory.
//!
//! ```text
//! holder                          helper, on descriptor 0
//!   PACK user, groups, options -->   becomes that user; plans
//!   <-- PLANNED bytes                (the holder takes them from its budget)
//!   GO -->                           packs
//!   <-- PROGRESS done, total | WARNING text
//!   <-- PACKED with the memfd | FAILED errno, text
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daxfs_protocol::wire::{Builder, Fields, Frame, MESSAGE_MAX, WireError};
use dmabuf::{FdKind, HugePages, Seals};
use mkimage::{Memory, Packer};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::access::Rights;
use crate::config::Target;
use crate::error::{Error, Result};
use crate::limits::{Budget, Reservation};
use crate::load::{LoadOptions, Watch};
use crate::source;

const PACK: u16 = 0x201;
const GO: u16 = 0x202;
const PLANNED: u16 = 0x281;
const PROGRESS: u16 = 0x282;
const PACKED: u16 = 0x283;
const FAILED: u16 = 0x284;
const WARNING: u16 = 0x285;

/// How often the holder looks whether anybody still waits for the load.
const LOOK: Duration = Duration::from_millis(100);

/// How this program is started once more, to become a helper: the new process calls [`main`].
#[derive(Clone)]
pub struct Helper(Arc<dyn Fn() -> io::Result<Command> + Send + Sync>);

impl Helper {
    /// Made by `command` each time; standard input is the helper's, all else is the caller's to choose.
    pub fn new(command: impl Fn() -> io::Result<Command> + Send + Sync + 'static) -> Self {
        Self(Arc::new(command))
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper").finish_non_exhaustive()
    }
}

/// Ends the helper with the load, however that ends.
struct Running(Option<Child>);

/// How long a load waits for its helper to be gone. One that the kernel keeps, in a file system that does not answer, is
/// left to a thread of its own.
const GONE: Duration = Duration::from_secs(1);

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // It may have ended by itself.
        let _ = child.kill();
        let since = Instant::now();
        while since.elapsed() < GONE {
            // An error says that there is nothing to wait for.
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        tracing::warn!(pid = child.id(), "a helper that was killed does not end");
        let reap = move || child.wait();
        // Without a thread it stays a zombie until the holder ends.
        let _ = std::thread::Builder::new().name("reap".into()).spawn(reap);
    }
}

/// Has a directory packed with the rights of `peer`. The memory is what the options say, and is not validated yet.
///
/// # Errors
/// [`Error::Denied`] with the errno of the helper for what the peer may not read, [`Error::Pack`] and the others of a
/// load; [`Error::ClientPacks`] when there is no helper, or it may not become that user.
pub(crate) fn pack(
    directory: BorrowedFd<'_>,
    helper: Option<&Helper>,
    peer: &Rights,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<(OwnedFd, Reservation)> {
    let (Some(helper), true) = (helper, geteuid().is_root()) else { return Err(Error::ClientPacks) };
    let failed = |what: &'static str| move |e: nix::Error| Error::system(what, e);
    let (own, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("socketpair"))?;
    dmabuf::set_timeout(&own, LOOK)?;
    let mut command = (helper.0)().map_err(|e| Error::system("find the helper", e))?;
    // What a supervisor passed is the holder's.
    for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(Some(command.spawn().map_err(|e| Error::system("start the helper", e))?));
    // Else the descriptor of the helper's end in `command` would keep the connection open after its death.
    drop(command);
    dmabuf::send_fds(own.as_fd(), &request(peer, options), &[directory])?;

    let mut reservation = None;
    let (fd, reservation) = loop {
        let (message, mut fds) = receive(own.as_fd(), Some(watch))?;
        let frame = Frame::parse(&message, fds.len()).map_err(broken)?;
        let mut fields = Fields::new(frame.body);
        match frame.verb {
            PLANNED if reservation.is_none() => {
                let bytes = fields.u64("bytes").map_err(broken)?;
                reservation = Some((bytes, budget.reserve(bytes, options.fresh(bytes))?));
                dmabuf::send_fds(own.as_fd(), &Builder::new(GO, 0).finish(), &[])?;
            }
            PROGRESS => {
                watch.done.store(fields.u64("done").map_err(broken)?, Ordering::Relaxed);
                watch.total.store(fields.u64("total").map_err(broken)?, Ordering::Relaxed);
            }
            WARNING => watch.warn(lossy(fields.bytes("text").map_err(broken)?)),
            PACKED => match (fds.pop(), reservation.take()) {
                (Some(fd), Some((bytes, reservation))) if fds.is_empty() => {
                    check(fd.as_fd(), bytes, options)?;
                    break (fd, reservation);
                }
                _ => return Err(unexpected()),
            },
            FAILED => {
                let errno = fields.u32("errno").map_err(broken)?.cast_signed();
                let text = lossy(fields.bytes("text").map_err(broken)?);
                return Err(if [BECOME, CONFINED].contains(&errno) {
                    Error::ClientPacks
                } else {
                    Error::Helper { errno, text }
                });
            }
            _ => return Err(unexpected()),
        }
    };
    // Nobody else writes to the memory from here on.
    drop(running);
    Ok((source::settle(fd, options, watch)?, reservation))
}

/// Instead of an errno: the helper may not become that user.
const BECOME: i32 = -1;
/// Instead of an errno: a link leads out of the directory, to what the client may see otherwise.
const CONFINED: i32 = -2;

/// The memory that the packer writes to: what the load wants, or what the holder can make that of.
fn memory(options: &LoadOptions) -> Memory {
    match options.into {
        Target::Memfd(_) => options.memory(),
        Target::Udmabuf => Memory::SharedMemfd(HugePages::No),
        Target::Heap(_) => Memory::SharedMemfd(HugePages::Auto),
    }
}

fn request(peer: &Rights, options: &LoadOptions) -> Vec<u8> {
    let mut builder = Builder::new(PACK, 1);
    builder.u32(peer.uid).u32(peer.gid).u32(u32::try_from(peer.groups.len()).unwrap_or(0));
    for group in &peer.groups {
        builder.u32(*group);
    }
    builder.bytes(options.into.to_string().as_bytes()).u8(u8::from(options.shared));
    let packing = options.packing.options();
    builder.u32(u32::try_from(packing.len()).unwrap_or(u32::MAX));
    for (key, value) in packing {
        builder.bytes(key.as_bytes()).bytes(value.as_bytes());
    }
    builder.finish()
}

/// Refuses memory that is not what was asked for: it could shrink, grow, or be written where that is not wanted.
fn check(fd: BorrowedFd<'_>, bytes: u64, options: &LoadOptions) -> Result<()> {
    let info = dmabuf::describe(fd)?;
    let wanted = match options.into {
        Target::Memfd(_) => options.seals(),
        Target::Udmabuf | Target::Heap(_) => Seals::SHRINK | Seals::GROW,
    };
    let FdKind::Memfd { seals, hugetlb } = &info.kind else { return Err(unexpected()) };
    // As the packer makes it: whole pages, of the memory's own size. A longer one would take what nobody has reserved.
    let is_asked_for = match options.into {
        Target::Memfd(_) => options.is_wanted(&info.kind),
        Target::Udmabuf | Target::Heap(_) => hugetlb.is_none(),
    };
    let len = bytes.checked_next_multiple_of(hugetlb.unwrap_or_else(dmabuf::page_size));
    if seals.contains(wanted) && is_asked_for && Some(info.len) == len { Ok(()) } else { Err(unexpected()) }
}

/// Text that may have been cut inside a character.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn broken(error: WireError) -> Error {
    Error::system("read what the helper says", io::Error::other(error.to_string()))
}

fn unexpected() -> Error {
    Error::system("pack", io::Error::other("the helper answers something else than was asked for"))
}

/// Waits for a message; with a watch only as long as somebody waits for the load.
fn receive(socket: BorrowedFd<'_>, watch: Option<&Watch>) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        // Also for one that always has something to say.
        if let Some(watch) = watch {
            watch.check()?;
        }
        match dmabuf::recv_fds(socket, &mut buffer, 1) {
            Ok((0, _)) => {
                let why = "it ended before its work was done; the machine may be short of memory";
                return Err(Error::system("the helper", io::Error::other(why)));
            }
            Ok((len, fds)) => {
                buffer.truncate(len);
                return Ok((buffer, fds));
            }
            Err(error) if error.io_kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a helper process does, with its end of the connection as standard input: the whole of it. Returns the exit
/// status.
pub fn main() -> u8 {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    match serve(socket) {
        Ok(fd) => match dmabuf::send_fds(socket, &Builder::new(PACKED, 1).finish(), &[fd.as_fd()]) {
            Ok(()) => 0,
            Err(_) => 2,
        },
        Err((errno, text)) => {
            let mut builder = Builder::new(FAILED, 0);
            builder.u32(errno.cast_unsigned()).bytes(text.as_bytes());
            // A holder that has gone does not want to know.
            let _ = dmabuf::send_fds(socket, &builder.finish(), &[]);
            2
        }
    }
}

type Failed = (i32, String);

fn serve(socket: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Failed> {
    let other = |error: &dyn fmt::Display| (0, error.to_string());
    let (message, mut fds) = receive(socket, None).map_err(|e| other(&e))?;
    let frame = Frame::parse(&message, fds.len()).map_err(|e| other(&e))?;
    let Some(directory) = fds.pop().filter(|_| frame.verb == PACK) else {
        return Err((0, "the helper was not asked to pack".to_owned()));
    };
    let mut fields = Fields::new(frame.body);
    let mut read = || -> std::result::Result<_, WireError> {
        let (uid, gid) = (fields.u32("uid")?, fields.u32("gid")?);
        let groups = (0..fields.u32("groups")?).map(|_| fields.u32("group")).collect::<Result<_, _>>()?;
        let rights = Rights { uid, gid, groups };
        let (into, shared) = (fields.text("into")?, fields.u8("shared")? == 1);
        let pairs = 0..fields.u32("options")?;
        let pairs = pairs.map(|_| Ok((fields.text("key")?, fields.text("value")?)));
        let pairs = pairs.collect::<std::result::Result<Vec<_>, WireError>>()?;
        Ok((rights, into, shared, pairs))
    };
    let (rights, into, shared, pairs) = read().map_err(|e| other(&e))?;
    become_user(&rights).map_err(|e| (BECOME, e.to_string()))?;
    let into = into.parse().map_err(|e: String| other(&e))?;
    let mut options = LoadOptions::to_pack(into, shared);
    for (key, value) in pairs {
        options.packing.take(&key, &value).unwrap_or(Ok(())).map_err(|e| other(&e))?;
    }

    // From here on everything is opened with the rights of the peer.
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let (watch, connection) = (Arc::new(Watch::default()), socket.try_clone_to_owned());
    let connection = connection.map_err(|e| other(&e))?;
    let errno = |error: &mkimage::Error| match error {
        mkimage::Error::Io { source, .. } => source.raw_os_error().unwrap_or(0),
        mkimage::Error::Confined { .. } => CONFINED,
        _ => 0,
    };
    let packing = |error: mkimage::Error| (errno(&error), source::name_within(&error.to_string(), &path));
    let packer = Packer::new().input(&path).progress(Sent { watch, connection });
    let plan = options.packing.apply(packer).plan().map_err(packing)?;
    for warning in plan.warnings() {
        let mut builder = Builder::new(WARNING, 0);
        builder.bytes(source::name_within(&warning, &path).as_bytes());
        dmabuf::send_fds(socket, &builder.finish(), &[]).map_err(|e| other(&e))?;
    }
    let mut planned = Builder::new(PLANNED, 0);
    planned.u64(plan.total_size());
    dmabuf::send_fds(socket, &planned.finish(), &[]).map_err(|e| other(&e))?;
    let (message, fds) = receive(socket, None).map_err(|e| other(&e))?;
    match Frame::parse(&message, fds.len()) {
        Ok(Frame { verb: GO, .. }) => {}
        _ => return Err((0, "the helper was not told to go on".to_owned())),
    }
    Ok(plan.write_memory(&memory(&options)).map_err(packing)?.0)
}

/// Takes on another user, for good.
fn become_user(rights: &Rights) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(rights.uid), Gid::from_raw(rights.gid));
    let groups: Vec<Gid> = rights.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The kernel has taken all capabilities with that; nobody would notice if it had not.
    let root = Uid::from_raw(0);
    if geteuid() != uid || (!uid.is_root() && setresuid(root, root, root).is_ok()) {
        return Err(io::Error::other("the rights of root could not be given up"));
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// The packer's progress goes to the holder, now and then.
#[derive(Debug)]
struct Sent {
    watch: Arc<Watch>,
    connection: OwnedFd,
}

/// Bytes between two messages of progress.
const STEP: u64 = 16 << 20;

impl mkimage::Progress for Sent {
    fn start(&self, total: u64) {
        self.watch.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let before = self.watch.done.fetch_add(bytes, Ordering::Relaxed);
        let done = before.saturating_add(bytes);
        if before / STEP == done / STEP {
            return;
        }
        let mut builder = Builder::new(PROGRESS, 0);
        builder.u64(done).u64(self.watch.total.load(Ordering::Relaxed));
        if dmabuf::send_fds(self.connection.as_fd(), &builder.finish(), &[]).is_err() {
            self.watch.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn finish(&self) {}

    fn cancelled(&self) -> bool {
        self.watch.cancel.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmabuf::Memfd;

    #[test]
    fn a_helper_that_always_says_something_is_given_up() {
        let (own, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let watch = Watch::default();
        let say = || dmabuf::send_fds(theirs.as_fd(), b"progress", &[]).unwrap();
        say();
        assert_eq!(receive(own.as_fd(), Some(&watch)).unwrap().0, b"progress");
        say();
        watch.cancel.store(true, Ordering::Relaxed);
        let given_up = receive(own.as_fd(), Some(&watch)).unwrap_err();
        assert!(matches!(given_up, Error::Cancelled), "{given_up}");
    }

    #[test]
    fn a_helper_brings_no_more_than_was_reserved() {
        let page = dmabuf::page_size();
        let heap = LoadOptions::to_pack(Target::Heap("system".to_owned()), false);
        let sealed = LoadOptions::to_pack(Target::Memfd(HugePages::No), false);
        let shared = LoadOptions::to_pack(Target::Memfd(HugePages::No), true);
        let bytes = 3 * page - 7;
        for (len, fits) in [(3 * page, true), (4 * page, false), (2 * page, false), (bytes, false)] {
            for options in [&heap, &sealed, &shared] {
                let memfd = Memfd::create("daxfs", len, HugePages::No).unwrap();
                assert!(check(memfd.as_fd(), bytes, options).is_err(), "not sealed");
                memfd
                    .seal(if options.is_shared() { Seals::SHRINK | Seals::GROW } else { options.seals() })
                    .unwrap();
                assert_eq!(check(memfd.as_fd(), bytes, options).is_ok(), fits, "{len} {:?}", options.into);
            }
        }
    }

    #[test]
    fn a_helper_ends_with_its_load() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(Running(Some(child)));
        assert!(!process.exists(), "killed and reaped");
    }
}
