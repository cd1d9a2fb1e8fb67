//! The filter in the program, and the loop of its tracer.

#![allow(unsafe_code, reason = "a closure between fork and exec, and the filter that it installs")]

use std::collections::HashSet;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, sock_filter, sock_fprog};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Call, Effect, Fault, Sort};

/// `AUDIT_ARCH_X86_64` of the kernel's headers.
const ARCHITECTURE: u32 = 0xc000_003e;
/// What the thread of a Rust program does last before `main`.
const MARK: c_long = libc::SYS_sigaltstack;

/// What was seen of a program.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub status: Option<ExitStatus>,
    pub calls: Vec<Call>,
    pub hit: Option<Call>,
}

/// Threads by what is known of them.
#[derive(Debug, Default)]
struct Threads {
    /// Known, and their calls count.
    counted: HashSet<Pid>,
    /// Known, and their calls do not count (yet).
    ignored: HashSet<Pid>,
    /// Stopped at their beginning until the stop of who made them says which of the two they are.
    waiting: HashSet<Pid>,
    /// Known, and not stopped at their beginning yet.
    fresh: HashSet<Pid>,
}

impl Threads {
    fn is_known(&self, thread: Pid) -> bool {
        self.counted.contains(&thread) || self.ignored.contains(&thread)
    }

    /// `parent` has made `thread`, which counts as that does.
    fn begin(&mut self, thread: Pid, parent: Pid) {
        let set = if self.counted.contains(&parent) { &mut self.counted } else { &mut self.ignored };
        set.insert(thread);
        if self.waiting.remove(&thread) {
            let _ = ptrace::cont(thread, None);
        } else {
            self.fresh.insert(thread);
        }
    }

    /// A thread begins to count when its program is the one that is traced, and its runtime is ready.
    fn mark(&mut self, thread: Pid, own_program: Option<&Path>) {
        if self.ignored.contains(&thread)
            && std::fs::read_link(format!("/proc/{thread}/exe")).ok().as_deref() == own_program
        {
            self.ignored.remove(&thread);
            self.counted.insert(thread);
        }
    }
}

impl Trace {
    /// Notes a call, and does to it what is to be done to it.
    fn meet(&mut self, thread: Pid, sort: Sort, fault: Option<Fault>, left: &mut Option<usize>) {
        let Ok(mut regs) = ptrace::getregs(thread) else { return };
        if !sort.counts(&regs) {
            return;
        }
        let Some(fault) = fault else {
            self.calls.push(sort.describe(thread, &mut regs));
            return;
        };
        if fault.sort != sort || left.is_none() {
            return;
        }
        *left = left.and_then(|left| left.checked_sub(1));
        if left.is_some() {
            return;
        }
        self.hit = Some(sort.describe(thread, &mut regs));
        match fault.effect {
            Effect::Error(errno) => {
                // No call has this number, and then the result is what the register says.
                regs.orig_rax = u64::MAX;
                regs.rax = i64::from(errno as i32).wrapping_neg().cast_unsigned();
            }
            Effect::Short => {
                if let Some(amount) = sort.amount_of(&mut regs) {
                    *amount = amount.div_ceil(2);
                }
            }
        }
        ptrace::setregs(thread, regs).expect("a stopped thread");
    }
}

/// A program that has the kernel ask the tracer about these calls.
fn filter(sorts: &[Sort]) -> Vec<sock_filter> {
    let statement = |code: u32, k: u32| sock_filter { code: code.try_into().unwrap(), jt: 0, jf: 0, k };
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let answer = |with: u32| statement(libc::BPF_RET | libc::BPF_K, with);
    // One instruction is left out unless the accumulator is `k`.
    let unless =
        |k: u32| sock_filter { jt: 0, jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    // One is left out if it is.
    let only = |k: u32| sock_filter { jt: 1, jf: 0, ..unless(k) };
    // Offsets of `arch` and `nr` in `seccomp_data`.
    let mut filter = vec![load(4), only(ARCHITECTURE), answer(libc::SECCOMP_RET_ALLOW), load(0)];
    for number in sorts.iter().map(|sort| sort.number).chain([MARK]) {
        filter.extend([unless(number.try_into().unwrap()), answer(libc::SECCOMP_RET_TRACE)]);
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    filter
}

/// Runs `command` to its end, and everything that it starts.
pub(super) fn trace(
    command: &mut Command,
    sorts: &[Sort],
    fault: Option<Fault>,
    started: impl FnOnce(i32),
) -> Trace {
    let filter = filter(sorts);
    let install = move || {
        let program = sock_fprog {
            len: filter.len().try_into().map_err(|_| Errno::E2BIG)?,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: takes numbers alone.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        ptrace::traceme()?;
        // SAFETY: the program lives until the call returns, has the length that it says, and the kernel checks it.
        Errno::result(unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        })?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, on memory that was allocated before.
    unsafe { command.pre_exec(install) };
    #[allow(clippy::zombie_processes, reason = "the loop below waits for it, and for all others")]
    let child = command.spawn().unwrap();
    let leader = Pid::from_raw(child.id().try_into().unwrap());
    started(leader.as_raw());
    run(leader, sorts, fault)
}

fn run(leader: Pid, sorts: &[Sort], fault: Option<Fault>) -> Trace {
    let mut trace = Trace::default();
    let mut threads = Threads { ignored: HashSet::from([leader]), ..Threads::default() };
    let mut own_program: Option<PathBuf> = None;
    let mut left = fault.map(|fault| fault.at);
    // Threads of other tests have processes, too.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        let status = match waitpid(None, Some(flags)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return trace,
            Err(errno) => panic!("waitpid: {errno}"),
        };
        let mut signal = None;
        let pid = match status {
            WaitStatus::Exited(pid, code) => {
                if pid == leader {
                    trace.status = Some(ExitStatus::from_raw(code << 8));
                }
                continue;
            }
            WaitStatus::Signaled(pid, signal, dumped) => {
                if pid == leader {
                    trace.status = Some(ExitStatus::from_raw(signal as c_int | (c_int::from(dumped) << 7)));
                }
                continue;
            }
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_SECCOMP) => {
                let number = ptrace::getregs(pid).map_or(-1, |regs| regs.orig_rax.cast_signed());
                if number == MARK {
                    threads.mark(pid, own_program.as_deref());
                } else if let Some(sort) = sorts.iter().find(|sort| sort.number == number)
                    && threads.counted.contains(&pid)
                {
                    trace.meet(pid, *sort, fault, &mut left);
                }
                pid
            }
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                // Another program, or this one anew: it counts when its runtime says that it is there.
                threads.counted.remove(&pid);
                threads.ignored.insert(pid);
                pid
            }
            WaitStatus::PtraceEvent(
                pid,
                _,
                libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK,
            ) => {
                if let Ok(child) = ptrace::getevent(pid) {
                    let child = Pid::from_raw(child.try_into().unwrap());
                    threads.begin(child, pid);
                }
                pid
            }
            WaitStatus::PtraceEvent(pid, ..) => pid,
            WaitStatus::Stopped(pid, Signal::SIGTRAP) if own_program.is_none() => {
                let options = Options::PTRACE_O_TRACESECCOMP
                    | Options::PTRACE_O_TRACECLONE
                    | Options::PTRACE_O_TRACEFORK
                    | Options::PTRACE_O_TRACEVFORK
                    | Options::PTRACE_O_TRACEEXEC
                    | Options::PTRACE_O_EXITKILL;
                ptrace::setoptions(pid, options).unwrap();
                own_program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
                pid
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if !threads.is_known(pid) => {
                threads.waiting.insert(pid);
                continue;
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if threads.fresh.remove(&pid) => pid,
            WaitStatus::Stopped(pid, other) => {
                signal = Some(other);
                pid
            }
            _ => continue,
        };
        // It may have been killed meanwhile.
        let _ = ptrace::cont(pid, signal);
    }
}
