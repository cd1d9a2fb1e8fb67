//! The processes of a container: the first one, which is ours and collects what others leave, and the command. What ends
//! this process takes all of them along.

#![allow(unsafe_code, reason = "fork(2) and close_range(2)")]

use super::config::Program;
use super::namespaces::Users;
use super::privileges::become_user;
use super::users;
use crate::output::report;
use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execve, fork};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals that are handed on to the command.
const HANDED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
/// Exit status of a command that cannot be run, and of one that is not there, as shells have them.
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Exit status on errors of ours.
const FAILED: u8 = 2;

/// Signals that wait to be handed on, and those that were blocked before.
#[derive(Debug)]
pub struct Signals {
    before: SigSet,
    started: Arc<AtomicBool>,
}

impl Signals {
    /// Has them wait from now on, in this process and all that it starts.
    ///
    /// # Errors
    /// What the system says.
    pub fn hold() -> nix::Result<Self> {
        let before = SigSet::thread_get_mask()?;
        HANDED_ON.into_iter().collect::<SigSet>().thread_block()?;
        Ok(Self { before, started: Arc::default() })
    }

    /// Hands them on to a process from now on, once the command has [`started`](Self::started). Until then they end this
    /// process as ever.
    ///
    /// # Errors
    /// What the system says.
    pub fn hand_on(&self, to: &OwnedFd) -> anyhow::Result<()> {
        let set = HANDED_ON.into_iter().collect::<SigSet>();
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        let (to, started) = (to.try_clone().context("pidfd")?, Arc::clone(&self.started));
        let waiting = move || {
            while let Ok(Some(info)) = signals.read_signal() {
                let Some(signal) = named(&info) else { continue };
                if !started.load(Ordering::Relaxed) {
                    // Here it is not blocked any more, and does what it does to programs.
                    let _ = SigSet::from(signal).thread_unblock();
                    let _ = raise(signal);
                } else if !is_of_the_terminal(&info) {
                    let number = rustix::process::Signal::from_named_raw(signal as i32);
                    // It may have ended.
                    let _ = number.map(|number| pidfd_send_signal(&to, number));
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(waiting).context("a thread")?;
        Ok(())
    }

    /// The command is about to start.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }
}

fn named(info: &siginfo) -> Option<Signal> {
    i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
}

/// Whether the kernel sends a signal to all processes of a terminal, the command among them.
fn is_of_the_terminal(info: &siginfo) -> bool {
    info.ssi_code > 0
}

/// The first process of a container, as its parent sees it.
#[derive(Debug)]
pub struct First {
    pid: Pid,
    pub fd: OwnedFd,
}

impl First {
    /// Starts it: it runs `body` and ends with its status, at the latest when this process does. To be called while there
    /// is one thread.
    ///
    /// # Errors
    /// When there can be no process.
    pub fn start(body: impl FnOnce() -> u8) -> anyhow::Result<Self> {
        match fork_into_namespace().context("the first process of a container")? {
            ForkResult::Child => {
                // Before anything else. If the parent has gone already, nobody tells it what to run.
                let status = match set_pdeathsig(Signal::SIGKILL) {
                    Ok(()) => body(),
                    Err(_) => FAILED,
                };
                // SAFETY: it ends the process, without what the parent would do at its end; nothing is buffered here.
                unsafe { libc::_exit(status.into()) }
            }
            ForkResult::Parent { child } => {
                let pid =
                    rustix::process::Pid::from_raw(child.as_raw()).context("a process without a number")?;
                Ok(Self { pid: child, fd: pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")? })
            }
        }
    }

    /// Waits for its end, and returns its exit status.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self) -> anyhow::Result<u8> {
        loop {
            match waitpid(self.pid, None) {
                Ok(status) => {
                    if let Some(status) = ended(status) {
                        return Ok(status);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("waiting for the container"),
            }
        }
    }
}

/// As fork(2), with the child as the first process of a new PID namespace. By unshare(2) this process could start no more
/// threads.
fn fork_into_namespace() -> nix::Result<ForkResult> {
    // SAFETY: all zeros are a valid `struct clone_args`: numbers, and addresses of which none is given.
    let mut wanted: libc::clone_args = unsafe { std::mem::zeroed() };
    wanted.flags = libc::CLONE_NEWPID.unsigned_abs().into();
    wanted.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    // SAFETY: without CLONE_VM the child has a copy of all memory, as after fork(2). This process has one thread, as callers
    // see to, so that no lock is held by another one in the copy; the library's notion of the thread's number alone is the
    // parent's, which raise(3) would use, and the child does not.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const wanted, size_of::<libc::clone_args>()) };
    Ok(match Errno::result(result)? {
        0 => ForkResult::Child,
        pid => ForkResult::Parent { child: Pid::from_raw(i32::try_from(pid).unwrap_or(0)) },
    })
}

/// The exit status as shells have it; `None` for a process that goes on.
fn ended(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, status) => Some(u8::try_from(status).unwrap_or(u8::MAX)),
        WaitStatus::Signaled(_, signal, _) => {
            Some(u8::try_from((signal as i32).saturating_add(128)).unwrap_or(u8::MAX))
        }
        _ => None,
    }
}

/// Reads what the parent has to say: nothing, when it could not go on.
///
/// # Errors
/// What the system says.
pub fn listen<T: serde::de::DeserializeOwned>(pipe: OwnedFd) -> anyhow::Result<Option<T>> {
    let mut bytes = Vec::new();
    File::from(pipe).read_to_end(&mut bytes).context("what is to be run")?;
    if bytes.is_empty() {
        Ok(None)
    } else {
        serde_json::from_slice(&bytes).context("what is to be run").map(Some)
    }
}

/// Runs the command as a child of this process, the first one of a container; hands signals on to it and collects all
/// processes that end. Returns its exit status.
///
/// # Errors
/// When it cannot be started for want of anything but itself.
pub fn run(program: &Program, users: Users, signals: &Signals) -> anyhow::Result<u8> {
    // Before there is anybody whose end could be missed.
    let mut set = HANDED_ON.into_iter().collect::<SigSet>();
    set.add(Signal::SIGCHLD);
    set.thread_block().context("signals")?;
    let waiting = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    // SAFETY: this process has one thread: it was forked by one that had one, and starts none.
    let command = match unsafe { fork() }.context("a process for the command")? {
        ForkResult::Child => {
            let status = match become_program(program, users, signals) {
                Ok(status) => status,
                Err(error) => {
                    report(&error);
                    FAILED
                }
            };
            // SAFETY: as in `First::start`.
            unsafe { libc::_exit(status.into()) }
        }
        ForkResult::Parent { child } => child,
    };
    loop {
        let info = match waiting.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("signalfd"),
        };
        match named(&info) {
            Some(Signal::SIGCHLD) => {
                // One signal can stand for several.
                while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    match (status.pid(), ended(status)) {
                        (Some(pid), Some(status)) if pid == command => return Ok(status),
                        (None, _) => break,
                        _ => {}
                    }
                }
            }
            // It may just have ended.
            Some(signal) if !is_of_the_terminal(&info) => _ = kill(command, signal),
            _ => {}
        }
    }
}

/// Becomes the command. Returns its exit status where it cannot be run.
fn become_program(program: &Program, users: Users, signals: &Signals) -> anyhow::Result<u8> {
    let who = users::find(&program.user, Path::new("/etc"))?;
    let mut env = program.env.clone();
    if program.variable("HOME").is_none() {
        env.push(OsString::from(format!("HOME={}", who.home.as_deref().unwrap_or("/"))));
    }
    become_user(&who, users)?;
    umask(Mode::from_bits_truncate(0o022));
    let workdir = &program.workdir;
    let subject = || format!("working directory {}", workdir.display());
    std::env::set_current_dir(workdir).with_context(subject)?;
    // Standard input can be a directory of the machine, and a path can lead there by /proc. Such a place has no path here.
    std::env::current_dir().with_context(|| format!("{}: it is not in the container", subject()))?;
    // The library ignores it.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed, only the kernel's own way of handling it.
    unsafe { sigaction(Signal::SIGPIPE, &default) }.context("signals")?;
    signals.before.thread_set_mask().context("signals")?;
    let c_string = |word: &OsString| CString::new(word.as_bytes());
    let args: Vec<CString> = program.args.iter().map(c_string).collect::<Result<_, _>>()?;
    let env: Vec<CString> = env.iter().map(c_string).collect::<Result<_, _>>()?;
    let first = program.args.first().context("no command")?;
    let failed =
        execute(first.as_bytes(), program.variable("PATH").unwrap_or_default().as_bytes(), &args, &env);
    let status = match failed {
        Errno::ENOENT | Errno::ENOTDIR => NOT_FOUND,
        _ => NOT_RUN,
    };
    report(&anyhow::Error::new(std::io::Error::from(failed)).context(first.to_string_lossy().into_owned()));
    Ok(status)
}

/// Becomes a program, which is looked for in `path` if its name has no slash. Returns why not.
fn execute(name: &[u8], path: &[u8], args: &[CString], env: &[CString]) -> Errno {
    let attempt = |path: Vec<u8>| match CString::new(path) {
        Ok(path) => execve(&path, args, env).map_or_else(|errno| errno, |never| match never {}),
        Err(_) => Errno::EINVAL,
    };
    if name.contains(&b'/') {
        return attempt(name.to_vec());
    }
    let mut reason = Errno::ENOENT;
    for folder in path.split(|&byte| byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        match attempt([folder, b"/", name].concat()) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // There may be one that can be run.
            errno @ Errno::EACCES => reason = errno,
            errno => return errno,
        }
    }
    reason
}

/// Closes what this process has open beside its standard descriptors: what its caller left open, and what a container was
/// made with. Paths of an image may lead there by `/proc/self/fd`, and by a directory of the machine to all of it.
///
/// # Safety
///
/// Nothing that owns a descriptor may be used or dropped after it.
///
/// # Errors
/// What the system says.
pub unsafe fn close_descriptors() -> nix::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: it closes numbers, whose owners are not used any more, as the caller promises.
    let status = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    Errno::result(status).map(drop)
}

/// Makes the working directory, as container engines do.
pub fn make_workdir(program: &Program) {
    let path = OsString::from_vec(program.workdir.as_bytes().to_vec());
    // Who cannot go there says so.
    if std::fs::metadata(&path).is_err() && std::fs::create_dir_all(&path).is_ok() {
        let _ = std::fs::set_permissions(&path, Permissions::from_mode(0o755));
    }
}
