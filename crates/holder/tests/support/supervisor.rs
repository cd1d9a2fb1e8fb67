//! A small supervisor that speaks systemd's protocols: it makes the socket, keeps descriptors, and starts the holder
//! with both.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Place, Process, Start, wait_for};

/// Tells the thread that reads notifications to end.
const LEAVE: &[u8] = b"LEAVE=1";
/// Tells it to say that it has come so far.
const SYNC: &[u8] = b"SYNC=1";

/// What the supervisor was told and keeps.
#[derive(Debug, Default)]
pub struct Kept {
    /// Descriptors by the name that they were stored under, in that order.
    pub store: Vec<(String, OwnedFd)>,
    /// How often `READY=1` came.
    pub ready: usize,
    /// The last `STATUS=`.
    pub status: String,
    /// How often [`SYNC`] came.
    synced: usize,
}

#[derive(Debug)]
pub struct Supervisor {
    listener: Option<OwnedFd>,
    notify: std::path::PathBuf,
    max: usize,
    kept: Arc<Mutex<Kept>>,
}

impl Supervisor {
    /// Makes the sockets; a thread reads notifications until the test ends.
    pub fn new(place: &Place) -> Self {
        Self::keeping(place, 64)
    }

    /// One that keeps at most `max` descriptors, and drops the others without a word, as systemd does.
    pub fn keeping(place: &Place, max: usize) -> Self {
        let listener = dmabuf::listen_seqpacket(&place.socket, 0o666, None).unwrap();
        // As systemd passes it, unless the unit has NonBlocking=.
        let flags = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        fcntl(&listener, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).unwrap();
        Self { listener: Some(listener), ..Self::without_socket(place, max) }
    }

    /// One whose holders make the socket themselves: a service without a socket unit.
    pub fn without_socket(place: &Place, max: usize) -> Self {
        let notify = place.dir.path().join("notify");
        let socket = UnixDatagram::bind(&notify).unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = Arc::clone(&kept);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, fds)) = dmabuf::recv_fds(socket.as_fd(), &mut buffer, 16) {
                if &buffer[..len] == LEAVE {
                    return;
                }
                if &buffer[..len] == SYNC {
                    shared.lock().unwrap().synced += 1;
                    continue;
                }
                take(max, &mut shared.lock().unwrap(), &String::from_utf8_lossy(&buffer[..len]), fds);
            }
        });
        Self { listener: None, notify, max, kept }
    }

    /// Waits until all is read that holders have sent so far, as systemd does before it looks at their ends.
    pub fn catch_up(&self) {
        let before = self.kept.lock().unwrap().synced;
        UnixDatagram::unbound().unwrap().send_to(SYNC, &self.notify).unwrap();
        wait_for("notifications to be read", || self.kept.lock().unwrap().synced > before);
    }

    /// Starts a holder, as systemd does.
    pub fn spawn(&self, place: &Place, start: &Start) -> Process {
        let (mut command, _passed) = self.command(place, start);
        Process(command.spawn().unwrap())
    }

    /// How it starts one, with the descriptors that must stay open until it has: it has the socket and what is stored
    /// from descriptor 3 on.
    pub fn command(&self, place: &Place, start: &Start) -> (Command, Vec<File>) {
        self.catch_up();
        let holder = place.command(start);
        let kept = self.kept.lock().unwrap();
        let mut passed: Vec<(&str, File)> = Vec::new();
        passed.extend(self.listener.iter().map(|listener| ("daxfs.sock", high(listener))));
        passed.extend(kept.store.iter().map(|(name, fd)| (name.as_str(), high(fd))));
        let mut redirections = String::new();
        for (index, (_, fd)) in passed.iter().enumerate() {
            redirections += &format!(" {}<&{} {1}<&-", index + 3, fd.as_raw_fd());
        }
        // The process number is known in the process only, and bash alone takes numbers of two digits.
        let limit =
            start.max_descriptors.map_or_else(String::new, |most| format!("prlimit --nofile={most} "));
        let script = format!("export LISTEN_PID=$$; exec {limit}\"$0\" \"$@\"{redirections}");
        let names: Vec<&str> = passed.iter().map(|(name, _)| *name).collect();
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(holder.get_program()).args(holder.get_args());
        for (key, value) in holder.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.env("FDSTORE", self.max.to_string());
        command.env("NOTIFY_SOCKET", &self.notify).stdout(std::process::Stdio::null());
        let passed = passed.into_iter().map(|(_, fd)| fd).collect();
        (command, passed)
    }

    /// Starts a holder and waits until it has said that it is ready.
    pub fn serve(&self, place: &Place, start: &Start) -> Process {
        let before = self.kept.lock().unwrap().ready;
        let process = self.spawn(place, start);
        wait_for("READY=1", || self.kept.lock().unwrap().ready > before);
        process
    }

    /// Takes no notifications any more, and closes their socket.
    pub fn leave(&self) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(LEAVE, &self.notify).unwrap();
        wait_for("the notify socket to close", || socket.send_to(b"", &self.notify).is_err());
    }

    /// Forgets a descriptor, as nobody asked for.
    pub fn lose(&self, name: &str) {
        self.catch_up();
        self.kept.lock().unwrap().store.retain(|(stored, _)| stored != name);
    }

    /// Keeps one more descriptor, before all others.
    pub fn keep_first(&self, name: &str, fd: OwnedFd) {
        self.catch_up();
        self.kept.lock().unwrap().store.insert(0, (name.to_owned(), fd));
    }

    /// Has a descriptor under another name.
    pub fn rename(&self, name: &str, to: &str) {
        self.catch_up();
        let mut kept = self.kept.lock().unwrap();
        for (stored, _) in kept.store.iter_mut().filter(|(stored, _)| stored == name) {
            *stored = to.to_owned();
        }
    }

    /// Names in the store, sorted.
    pub fn stored(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.kept.lock().unwrap().store.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    pub fn status(&self) -> String {
        self.kept.lock().unwrap().status.clone()
    }

    /// Waits until exactly this is stored: notifications are not answered.
    pub fn wait_for_store(&self, names: &[&str]) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while self.stored() != names {
            assert!(std::time::Instant::now() < deadline, "{:?} instead of {names:?}", self.stored());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn take(max: usize, kept: &mut Kept, text: &str, fds: Vec<OwnedFd>) {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("FDNAME").unwrap_or("stored").to_owned();
    if value("FDSTORE") == Some("1") {
        for fd in fds {
            // One open file is kept once, whatever its name.
            let same =
                |(_, stored): &(String, OwnedFd)| dmabuf::same_open_file(stored.as_fd(), fd.as_fd()).unwrap();
            if kept.store.len() < max && !kept.store.iter().any(same) {
                kept.store.push((name.clone(), fd));
            }
        }
    } else if value("FDSTOREREMOVE") == Some("1") {
        kept.store.retain(|(stored, _)| *stored != name);
    }
    kept.ready += usize::from(value("READY") == Some("1"));
    if let Some(status) = value("STATUS") {
        status.clone_into(&mut kept.status);
    }
}

/// A duplicate that is passed on and is out of the way of the numbers from 3 on.
fn high(fd: &OwnedFd) -> File {
    use std::os::fd::FromRawFd;
    let number = fcntl(fd, FcntlArg::F_DUPFD(100)).unwrap();
    #[allow(unsafe_code, reason = "the number comes from fcntl")]
    // SAFETY: F_DUPFD just made this descriptor for us, and nothing else owns it.
    unsafe {
        File::from_raw_fd(number)
    }
}
