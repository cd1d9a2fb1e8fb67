//! A holder as people start it, for the tests of its verbs.

use super::{DAXFS, Fixture, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// More than any step takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tree with its image, and a place for the socket.
pub struct Place(pub Fixture);

/// A process that is killed when the test ends, however it ends.
pub struct Process(pub Child);

/// Tells threads that go on until it is true to end, however the test ends: a scope waits for them.
pub struct Done<'a>(pub &'a AtomicBool);

/// A running holder whose log is read; killed when it is dropped.
pub struct Holder {
    pub child: Process,
    /// Lines of its log: a thread reads them, so that it never waits for us with a full pipe.
    log: Receiver<String>,
    /// Log lines that were read already.
    lines: Vec<serde_json::Value>,
}

impl Place {
    pub fn new() -> Self {
        Self(Fixture::new())
    }

    pub fn socket(&self) -> PathBuf {
        self.0.path("s.sock")
    }

    pub fn address(&self, name: &str) -> String {
        format!("daxfs+unix://{}/{name}", self.socket().display())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DAXFS);
        command.args(args.iter().map(|arg| self.expand(arg)));
        command.env("DAXFS_SOCKET", self.socket()).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// As [`Fixture::expand`], for the source in `NAME=SOURCE`, too.
    fn expand(&self, arg: &str) -> OsString {
        match arg.split_once('=') {
            Some((name, source)) => {
                let mut arg = OsString::from(format!("{name}="));
                arg.push(self.0.expand(source.as_ref()));
                arg
            }
            None => self.0.expand(arg.as_ref()),
        }
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(args))
    }

    pub fn serve(&self, args: &[&str]) -> Holder {
        let mut command = self.command(&["serve", "--log", "json"]);
        command.args(self.command(args).get_args());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut holder = Holder { child: Process(child), log, lines: Vec::new() };
        holder.wait_for("serving");
        holder
    }

    pub fn generation(&self, name: &str) -> Option<u64> {
        let listing = self.run(&["ps", "--json"]).json();
        let images = listing["images"].as_array().unwrap();
        images.iter().find(|image| image["name"] == name).and_then(|image| image["generation"].as_u64())
    }

    /// An image of other contents than the tree.
    pub fn other_image(&self) -> String {
        let (dir, image) = (self.0.path("other"), self.0.path("other.daxfs"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}\n").unwrap();
        mkimage::Packer::new().input(&dir).plan().unwrap().write_file(&image).unwrap();
        image.to_str().unwrap().to_owned()
    }
}

impl Holder {
    /// Reads log lines up to the next one with this message.
    pub fn wait_for(&mut self, message: &str) -> serde_json::Value {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{error} before {message:?}: {:?}", self.lines));
            let value: serde_json::Value =
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            self.lines.push(value.clone());
            if value["message"] == message {
                return value;
            }
        }
    }

    /// The first log line with this message, whether it was read already or not.
    pub fn seen(&mut self, message: &str) -> serde_json::Value {
        match self.lines.iter().find(|line| line["message"] == message) {
            Some(line) => line.clone(),
            None => self.wait_for(message),
        }
    }

    /// The rest of the log and the exit status, once it ended.
    pub fn end(mut self) -> (String, i32) {
        let status = self.child.end().unwrap_or(-1);
        (self.log.iter().map(|line| line + "\n").collect(), status)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Process {
    /// The exit status, once it ended; none when a signal ended it.
    pub fn end(&mut self) -> Option<i32> {
        until("a process ends", || self.try_wait().unwrap().is_some());
        self.wait().unwrap().code()
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = self.wait();
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for something, but not for ever.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asks an HTTP server and returns the whole answer.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
