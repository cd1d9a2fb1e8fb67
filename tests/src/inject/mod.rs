//! Runs a program and makes one of its system calls fail, or do less than it was asked for.
//!
//! Programs of this project call the kernel without libc in places, so a preloaded library would not see all calls: a
//! filter of seccomp stops the program at the chosen ones, and its parent, this process, says by ptrace what becomes of
//! them. Calls are counted over all threads and all processes that the program starts of itself (another program that
//! it starts, or becomes, is left alone), and from where Rust's runtime is ready: what the dynamic linker does is nobody's
//! here. Nothing is left out of the kernel's own work: a call that fails was never made.
//!
//! Only for x86-64, whose registers it writes.

mod calls;
mod tracer;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub use calls::{Call, Effect, SORTS, Sort, note};

/// More than any run takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// To the call of which sort.
    pub sort: Sort,
    /// To which of them: the first is number 0.
    pub at: usize,
    /// What becomes of it.
    pub effect: Effect,
}

/// A program that runs under the tracer.
#[derive(Debug)]
pub struct Traced {
    thread: Option<JoinHandle<tracer::Trace>>,
    ended: Receiver<()>,
    pid: i32,
    output: tempfile::TempDir,
}

/// What became of a program.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended; `None` when it was killed because it did not end.
    pub status: Option<ExitStatus>,
    /// Its calls of the sorts that were asked for, in their order.
    pub calls: Vec<Call>,
    /// The call that the fault met.
    pub hit: Option<Call>,
    /// What it wrote.
    pub stdout: String,
    /// As above.
    pub stderr: String,
}

/// Starts `command`, and has all calls of `sorts` noted, and `fault` done to one of them.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn start(mut command: Command, sorts: &'static [Sort], fault: Option<Fault>) -> Traced {
    let output = tempfile::tempdir().unwrap();
    let file = |name| File::create(output.path().join(name)).unwrap();
    command.stdin(std::process::Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
    let ((pid_sender, pid), (done, ended)) = (channel(), channel());
    // Who starts a process is who traces it.
    let thread = std::thread::spawn(move || {
        let trace = tracer::trace(&mut command, sorts, fault, |pid| pid_sender.send(pid).unwrap());
        let _ = done.send(());
        trace
    });
    let pid = pid.recv().expect("it starts");
    Traced { thread: Some(thread), ended, pid, output }
}

/// [`start`], and waits for the end.
#[must_use]
pub fn run(command: Command, sorts: &'static [Sort], fault: Option<Fault>) -> Outcome {
    start(command, sorts, fault).wait()
}

impl Traced {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end, kills what does not end.
    ///
    /// # Panics
    /// When the tracer fails.
    pub fn wait(mut self) -> Outcome {
        let hangs = self.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
        if hangs {
            self.kill();
        }
        let trace = self.thread.take().unwrap().join().unwrap();
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Outcome {
            status: trace.status.filter(|_| !hangs),
            calls: trace.calls,
            hit: trace.hit,
            stdout: text(&self.output.path().join("stdout")),
            stderr: text(&self.output.path().join("stderr")),
        }
    }

    fn kill(&self) {
        // It is not reaped while the tracer runs, so its number is its own.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::SIGKILL);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.kill();
            let _ = thread.join();
        }
    }
}

impl Outcome {
    /// Exit code; `None` for a signal, or when it did not end.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }
}
