//! Real holders and clients for the tests: the test binary starts itself again, so that there is a process to kill.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod supervisor;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daxfs::Image;
use daxfs::signature::PublicKeys;
use daxfs_holder::helper::Helper;
use daxfs_holder::{Config, Server};
use daxfs_protocol::message::{DeviceCopy, ImageInfo, Reply, Request};
use daxfs_protocol::{Address, Connection, HolderError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set in processes that are to be a holder: `socket`, `mode` in octal, `control` uid or nothing, `takeover` or
/// nothing, most connections or nothing, separated by new lines.
const HOLDER: &str = "DAXFS_TEST_HOLDER";
/// Set in processes that are to pack for a holder.
const HELPER: &str = "DAXFS_TEST_HELPER";
/// Set in processes that are to be a client: the address, and where to say what happened.
pub const CLIENT: &str = "DAXFS_TEST_CLIENT";
/// More than any step takes on a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The body of the test `process` in every binary that starts holders or clients: returns at once in the test itself.
pub fn be_process() {
    if std::env::var_os(HELPER).is_some() {
        std::process::exit(daxfs_holder::helper::main().into());
    }
    if let Ok(text) = std::env::var(HOLDER) {
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let mut config = Config::new(next());
        config.mode = u32::from_str_radix(&next(), 8).unwrap();
        config.control.extend(next().parse::<u32>().ok());
        let takeover = next() == "takeover";
        config.max_connections = next().parse().unwrap_or(config.max_connections);
        if next() == "signed" {
            config.require_signed = Some(PublicKeys::read(&key("minisign.pub")).unwrap());
        }
        config.helper = Some(Helper::new(|| {
            let mut command = this_program();
            command.env(HELPER, "1").env_remove(HOLDER);
            Ok(command)
        }));
        let end = Server::start(config, takeover).and_then(Server::run);
        if let Err(error) = end {
            eprintln!("holder: {error}");
            std::process::exit(2);
        }
        std::process::exit(0);
    }
    if let Ok(address) = std::env::var(CLIENT) {
        let report = PathBuf::from(std::env::var("DAXFS_TEST_REPORT").unwrap());
        let result = Image::open(&address).map_err(|error| error.to_string());
        let text = match &result {
            Ok(image) => hash_of(image),
            Err(error) => format!("error: {error}"),
        };
        write_whole(&report, &text);
        if std::env::var_os("DAXFS_TEST_STAY").is_some() {
            // Answers once more when it is told to, from the memory that it has.
            let go = report.with_extension("go");
            wait_for("the go of a client", || go.exists());
            write_whole(&report.with_extension("again"), &result.map_or_else(|e| e, |image| hash_of(&image)));
            wait_for("an end", || false);
        }
        std::process::exit(0);
    }
}

/// Renames into place, so that a reader sees nothing or all.
pub fn write_whole(path: &Path, text: &str) {
    let part = path.with_extension("part");
    fs::write(&part, text).unwrap();
    fs::rename(part, path).unwrap();
}

/// BLAKE3 of what the image really holds, not what its index says.
pub fn hash_of(image: &Image) -> String {
    let hash = daxfs::content_hash(image, |_, _| Ok::<(), daxfs::Error>(())).unwrap();
    hash.digits().to_string()
}

/// Starts this test binary again, to run its test `process` only.
pub fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process", "--nocapture", "--test-threads=1"]);
    command.stdout(Stdio::null()).env_remove("DAXFS_CRASH_AT").env_remove("DAXFS_PAUSE_AT");
    command.env_remove("NOTIFY_SOCKET");
    command
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that is killed when the test ends, however it ends.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Stops it until it gets SIGCONT. The signal alone leaves it time to answer once more.
    pub fn pause(&self) -> Pid {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        let stat = format!("/proc/{pid}/stat");
        wait_for("the process to stop", || fs::read_to_string(&stat).unwrap().contains(") T "));
        pid
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of a process", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tells threads that go on until it is true to end, however the test ends: a scope waits for them.
#[derive(Debug)]
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A key of minisign without a password, `minisign.key` and `minisign.pub`.
pub fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/minisign").join(name)
}

/// How a holder is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    pub open_to_all: bool,
    pub takeover: bool,
    pub crash_at: Option<&'static str>,
    /// Waits there until [`Place::go_on`].
    pub pause_at: Option<&'static str>,
    pub control: Option<u32>,
    pub max_connections: Option<usize>,
    /// Holds what [`key`] has signed, and nothing else.
    pub require_signed: bool,
    /// Runs as this user, who has no more rights than others.
    pub user: Option<u32>,
    /// Most descriptors, hard limit.
    pub limit: Option<usize>,
    /// Most descriptors, for those that a supervisor starts.
    pub max_descriptors: Option<usize>,
}

/// A directory with a socket, and what is done with the holder behind it.
#[derive(Debug)]
pub struct Place {
    pub dir: tempfile::TempDir,
    pub socket: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        // Other users reach the socket; its own mode decides.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let socket = dir.path().join("daxfs.sock");
        Self { dir, socket }
    }

    pub fn command(&self, start: &Start) -> Command {
        // A holder blocks SIGTERM before it starts threads, but a test program has some already.
        let program = this_program();
        let mut command = Command::new("env");
        command.arg("--block-signal=TERM");
        if let Some(uid) = start.user {
            // It makes its socket here.
            std::os::unix::fs::chown(self.dir.path(), Some(uid), None).unwrap();
            let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
            command.args(["setpriv", &uid, &gid, "--clear-groups"]);
        }
        if let Some(most) = start.limit {
            command.args(["prlimit", &format!("--nofile={most}:{most}")]);
        }
        match start.user {
            Some(_) => command.arg(self.program()),
            None => command.arg(program.get_program()),
        };
        command.args(program.get_args());
        for (key, _) in program.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(key);
        }
        command.stdout(Stdio::null());
        let mode = if start.open_to_all { "666" } else { "600" };
        let control = start.control.map_or_else(String::new, |uid| uid.to_string());
        let takeover = if start.takeover { "takeover" } else { "" };
        let most = start.max_connections.map_or_else(String::new, |most| most.to_string());
        let signed = if start.require_signed { "signed" } else { "" };
        let lines = [mode, &control, takeover, &most, signed].join("\n");
        command.env(HOLDER, format!("{}\n{lines}", self.socket.display()));
        if let Some(point) = start.pause_at {
            command.env("DAXFS_PAUSE_AT", point).env("DAXFS_PAUSE_UNTIL", self.dir.path().join("go"));
        }
        if let Some(point) = start.crash_at {
            command.env("DAXFS_CRASH_AT", point);
        }
        command
    }

    /// Lets holders go on that wait at [`Start::pause_at`].
    pub fn go_on(&self) {
        fs::write(self.dir.path().join("go"), "").unwrap();
    }

    /// Starts a holder without waiting for it.
    pub fn spawn(&self, start: &Start) -> Process {
        Process(self.command(start).spawn().unwrap())
    }

    /// Starts one that refuses to start, and returns what it says.
    pub fn refused(&self, mut command: Command) -> String {
        let said = self.dir.path().join("said");
        let mut process = Process(command.stderr(File::create(&said).unwrap()).spawn().unwrap());
        let code = process.wait().code();
        let said = fs::read_to_string(said).unwrap();
        assert_eq!(code, Some(2), "{said}");
        said
    }

    /// Starts a holder and waits until it answers.
    pub fn serve(&self, start: &Start) -> Process {
        let process = self.spawn(start);
        self.wait_until_served_by(process.0.id());
        process
    }

    pub fn wait_until_served_by(&self, pid: u32) {
        wait_for("a holder that answers", || self.pid() == Some(pid));
    }

    pub fn pid(&self) -> Option<u32> {
        match Connection::open(&self.socket).ok()?.request(&Request::Health, &[]).ok()?.0 {
            Reply::Health { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket).unwrap()
    }

    pub fn address(&self, name: &str) -> String {
        Address { socket: self.socket.clone(), name: name.to_owned() }.to_string()
    }

    pub fn open(&self, name: &str) -> Image {
        Image::open(self.address(name)).unwrap()
    }

    pub fn list(&self) -> Vec<ImageInfo> {
        self.connect().list().unwrap()
    }

    /// Loads and waits for the end.
    pub fn load(
        &self,
        name: &str,
        replace: bool,
        options: &[&str],
        source: BorrowedFd<'_>,
    ) -> Result<ImageInfo, HolderError> {
        let options = options.iter().map(|text| (*text).to_owned()).collect();
        let request = Request::Load { name: name.to_owned(), replace, options };
        let mut connection = Connection::open(&self.socket)?;
        let mut reply = connection.request(&request, &[source])?.0;
        loop {
            match reply {
                Reply::Progress { .. } | Reply::Warning { .. } => reply = connection.receive()?.0,
                Reply::Loaded(info) => return Ok(info),
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn load_path(&self, name: &str, replace: bool, path: &Path) -> Result<ImageInfo, HolderError> {
        self.load(name, replace, &[], File::open(path).unwrap().as_fd())
    }

    /// A directory with weights, filled with `byte`, and some other files.
    pub fn weights(&self, name: &str, byte: u8, len: usize) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), b"{}").unwrap();
        let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
        let width = header.len().next_multiple_of(8);
        let header = format!("{header:<width$}");
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + len, byte);
        fs::write(path.join("model.safetensors"), file).unwrap();
        path
    }

    /// Starts a client of its own process, which attaches and says what it got; `stay` keeps it until it is killed.
    pub fn client(&self, name: &str, report: &str, stay: bool, uid: Option<u32>) -> Process {
        let mut command = match uid {
            Some(uid) => self.program_as(uid, "process"),
            None => this_program(),
        };
        self.reports();
        command.env(CLIENT, self.address(name)).env("DAXFS_TEST_REPORT", self.report_path(report));
        if stay {
            command.env("DAXFS_TEST_STAY", "1");
        }
        Process(command.spawn().unwrap())
    }

    /// Starts one test of this binary as another user.
    pub fn program_as(&self, uid: u32, test: &str) -> Command {
        use std::os::unix::process::CommandExt;
        self.reports();
        let mut command = Command::new(self.program());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.uid(uid).gid(uid).stdout(Stdio::null());
        command
    }

    /// A copy of this binary that other users can run: the build directory may lie where they cannot go.
    pub fn program(&self) -> PathBuf {
        let program = self.dir.path().join("program");
        if !program.exists() {
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        }
        program
    }

    /// The directory for reports, which every user may write to.
    pub fn reports(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let reports = self.dir.path().join("reports");
        fs::create_dir_all(&reports).unwrap();
        fs::set_permissions(&reports, fs::Permissions::from_mode(0o777)).unwrap();
        reports
    }

    pub fn report_path(&self, report: &str) -> PathBuf {
        self.dir.path().join("reports").join(report)
    }

    pub fn report(&self, report: &str) -> String {
        let path = self.report_path(report);
        wait_for("a client's report", || path.exists());
        fs::read_to_string(path).unwrap()
    }
}

/// Leaves copies of an image with the holder, on one device and another one: of all of it, and by a placement. The
/// holder has no driver, so any open file will do. Returns what was said of them, with the identities of the files.
pub fn keep_copies(place: &Place, name: &str) -> Vec<(DeviceCopy, (u64, u64))> {
    let attachment = place.open(name).region().attachment().unwrap().clone();
    let copies = [(1, 0), (1, 9), (2, 0)].map(|(device, placement)| {
        let memory = dmabuf::Memfd::create("device memory", 4096, dmabuf::HugePages::No).unwrap();
        let copy = DeviceCopy { device: [device; 16].into(), placement: [placement; 32], size: 4 << 20 };
        attachment.keep(memory.as_fd(), copy).unwrap();
        (copy, identity(memory.as_fd()))
    });
    copies.to_vec()
}

/// The same, as the holder has them now.
pub fn kept_copies(place: &Place, name: &str) -> Vec<(DeviceCopy, (u64, u64))> {
    let attachment = place.open(name).region().attachment().unwrap().clone();
    let copies = attachment.info().copies.clone();
    let with_fd = |copy: DeviceCopy| {
        let (fd, size) = attachment.copy_on(copy.device, copy.placement).unwrap().unwrap();
        assert_eq!(size, copy.size);
        (copy, identity(fd.as_fd()))
    };
    copies.into_iter().map(with_fd).collect()
}

/// The tensor `w` of [`Place::weights`].
pub fn tensor(image: &Image) -> Vec<u8> {
    image.tensors().unwrap().get("w").unwrap().bytes().unwrap().to_vec()
}

/// Device and inode of an open file.
pub fn identity(fd: BorrowedFd<'_>) -> (u64, u64) {
    let info = File::from(fd.try_clone_to_owned().unwrap()).metadata().unwrap();
    (info.dev(), info.ino())
}

/// True when the memory is in use by anybody: a descriptor or a mapping.
pub fn is_used((dev, ino): (u64, u64)) -> bool {
    !daxfs_holder::users::of(dev, ino).0.is_empty()
}

/// Descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Targets of a process' descriptors that are memory of a holder.
pub fn memfds(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("/memfd:")).collect()
}

/// Whether this is root, as `what` needs; see [`not_run`].
pub fn is_root_for(what: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        not_run(&format!("{what} needs root"));
    }
    is_root
}

/// Says that a test does not run on this machine. With `CI=true`, or `DAXFS_REQUIRE_ROOT` in the environment, it fails
/// instead of passing for one that ran.
#[allow(clippy::print_stdout, reason = "this is the output of a test")]
pub fn not_run(why: &str) {
    let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
    assert!(!required && std::env::var_os("CI").is_none_or(|ci| ci != "true"), "not run: {why}");
    println!("not run: {why}");
}

/// A packed image in a sealed memfd.
pub fn packed(directory: &Path) -> OwnedFd {
    let plan = mkimage::Packer::new().input(directory).plan().unwrap();
    plan.write_memory(&mkimage::Memory::Memfd(dmabuf::HugePages::No)).unwrap().0
}
