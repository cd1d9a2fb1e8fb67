//! The calls that are made to fail, and what is said of one.

use std::fmt;
use std::io::{IoSliceMut, Write};

use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// A system call, as [`Fault`](super::Fault)s know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// Its name, for people.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// What its first argument is, for people.
    pub first: First,
    /// Which argument says how much is to be done, if less can be done.
    pub amount: Option<Argument>,
    /// Answers that the kernel gives.
    pub errors: &'static [Errno],
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Its first argument is a descriptor.
    Descriptor,
    /// Its first argument is a path.
    Path,
    /// Its first argument is a directory, its second a path.
    PathAt,
    /// Its fifth argument is a descriptor: mmap. Without one, it is memory of an allocator, which is left alone.
    Fifth,
    /// Nothing that could be said.
    Nothing,
}

/// Place of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// The second one.
    Second,
    /// The third one.
    Third,
    /// The fourth one.
    Fourth,
    /// The fifth one.
    Fifth,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is not made, and answers this.
    Error(Errno),
    /// It is made for half of what was asked for.
    Short,
}

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub sort: Sort,
    /// What about: a path, or what is behind a descriptor.
    pub about: String,
    /// How much was asked for; 0 where it says nothing.
    pub amount: u64,
}

impl Sort {
    const fn new(
        name: &'static str,
        number: c_long,
        first: First,
        amount: Option<Argument>,
        errors: &'static [Errno],
    ) -> Self {
        Self { name, number, first, amount, errors }
    }

    /// All that may become of one of its calls that was asked for `amount`.
    pub fn effects(self, amount: u64) -> impl Iterator<Item = Effect> + use<> {
        let short = (self.amount.is_some() && amount > 1).then_some(Effect::Short);
        self.errors.iter().map(|&errno| Effect::Error(errno)).chain(short)
    }

    /// Whether this call counts.
    pub(super) fn counts(self, regs: &user_regs_struct) -> bool {
        // A descriptor is an int, whatever is in the upper half.
        self.first != First::Fifth || regs.r8.to_le_bytes()[..4] != (-1i32).to_le_bytes()
    }

    pub(super) fn amount_of(self, regs: &mut user_regs_struct) -> Option<&mut u64> {
        self.amount.map(|argument| match argument {
            Argument::Second => &mut regs.rsi,
            Argument::Third => &mut regs.rdx,
            Argument::Fourth => &mut regs.r10,
            Argument::Fifth => &mut regs.r8,
        })
    }

    /// What is said of a call of process `pid`.
    pub(super) fn describe(self, pid: Pid, regs: &mut user_regs_struct) -> Call {
        let amount = self.amount_of(regs).map_or(0, |amount| *amount);
        let behind = |fd: u64| {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{}", fd & 0xffff_ffff));
            link.map_or_else(|_| format!("descriptor {fd}"), |path| path.display().to_string())
        };
        let about = match self.first {
            First::Descriptor => behind(regs.rdi),
            First::Fifth => behind(regs.r8),
            First::Path => text(pid, regs.rdi),
            First::PathAt => match text(pid, regs.rsi) {
                empty if empty.is_empty() => behind(regs.rdi),
                path => path,
            },
            First::Nothing => String::new(),
        };
        Call { sort: self, about, amount }
    }
}

/// The text at an address of another process, or its beginning.
fn text(pid: Pid, address: u64) -> String {
    let mut bytes = [0; 256];
    let Ok(base) = usize::try_from(address) else { return String::new() };
    // Not beyond a page that may be the last one.
    let len = bytes.len().min(4096 - base % 4096);
    let remote = [RemoteIoVec { base, len }];
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).unwrap_or(0);
    let text = bytes[..read].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.sort.name, self.about)
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Error(errno) => write!(f, "{errno:?}"),
            Effect::Short => write!(f, "half"),
        }
    }
}

use Argument::{Fifth, Fourth, Second, Third};
use Errno::{EAGAIN, ECONNABORTED, EINTR, EIO, EMFILE, ENOBUFS, ENOMEM, ENOSPC, EOPNOTSUPP};
use First::{Descriptor, Nothing, Path, PathAt};

/// Every call of the packer and the holder that can fail, but for memory of the allocator (where Rust ends a program by
/// SIGABRT), execve (which the filter itself comes through), and calls that fail by wrong arguments alone.
pub const SORTS: &[Sort] = &[
    Sort::new("read", libc::SYS_read, Descriptor, Some(Third), &[EIO, EINTR]),
    Sort::new("pread64", libc::SYS_pread64, Descriptor, Some(Third), &[EIO, EINTR]),
    Sort::new("readv", libc::SYS_readv, Descriptor, Some(Third), &[EIO, EINTR]),
    Sort::new("preadv", libc::SYS_preadv, Descriptor, Some(Third), &[EIO, EINTR]),
    Sort::new("preadv2", libc::SYS_preadv2, Descriptor, Some(Third), &[EIO, EINTR]),
    Sort::new("write", libc::SYS_write, Descriptor, Some(Third), &[ENOSPC, EIO, EINTR]),
    Sort::new("pwrite64", libc::SYS_pwrite64, Descriptor, Some(Third), &[ENOSPC, EIO, EINTR]),
    Sort::new("writev", libc::SYS_writev, Descriptor, Some(Third), &[ENOSPC, EIO, EINTR]),
    Sort::new("pwritev", libc::SYS_pwritev, Descriptor, Some(Third), &[ENOSPC, EIO, EINTR]),
    Sort::new("copy_file_range", libc::SYS_copy_file_range, Descriptor, Some(Fifth), &[ENOSPC, EIO, EINTR]),
    Sort::new("sendfile", libc::SYS_sendfile, Descriptor, Some(Fourth), &[EIO, ENOMEM, EINTR]),
    Sort::new("process_vm_readv", libc::SYS_process_vm_readv, Nothing, None, &[ENOMEM]),
    Sort::new("getrandom", libc::SYS_getrandom, Nothing, Some(Second), &[EINTR]),
    Sort::new("open", libc::SYS_open, Path, None, &[EMFILE, EIO, ENOMEM, EINTR]),
    Sort::new("openat", libc::SYS_openat, PathAt, None, &[EMFILE, EIO, ENOMEM, EINTR]),
    Sort::new("openat2", libc::SYS_openat2, PathAt, None, &[EMFILE, EIO, ENOMEM, EINTR]),
    Sort::new("statx", libc::SYS_statx, PathAt, None, &[EIO, ENOMEM]),
    Sort::new("newfstatat", libc::SYS_newfstatat, PathAt, None, &[EIO, ENOMEM]),
    Sort::new("stat", libc::SYS_stat, Path, None, &[EIO, ENOMEM]),
    Sort::new("lstat", libc::SYS_lstat, Path, None, &[EIO, ENOMEM]),
    Sort::new("fstat", libc::SYS_fstat, Descriptor, None, &[EIO, ENOMEM]),
    Sort::new("fstatfs", libc::SYS_fstatfs, Descriptor, None, &[EIO, EINTR]),
    Sort::new("statfs", libc::SYS_statfs, Path, None, &[EIO, EINTR]),
    Sort::new("getdents64", libc::SYS_getdents64, Descriptor, None, &[EIO]),
    Sort::new("readlink", libc::SYS_readlink, Path, None, &[EIO, ENOMEM]),
    Sort::new("readlinkat", libc::SYS_readlinkat, PathAt, None, &[EIO, ENOMEM]),
    Sort::new("getcwd", libc::SYS_getcwd, Nothing, None, &[ENOMEM]),
    Sort::new("lseek", libc::SYS_lseek, Descriptor, None, &[EIO]),
    Sort::new("fcntl", libc::SYS_fcntl, Descriptor, None, &[EMFILE]),
    Sort::new("ioctl", libc::SYS_ioctl, Descriptor, None, &[EIO, EINTR]),
    Sort::new("dup", libc::SYS_dup, Descriptor, None, &[EMFILE]),
    Sort::new("dup3", libc::SYS_dup3, Descriptor, None, &[EMFILE]),
    Sort::new("flock", libc::SYS_flock, Descriptor, None, &[EINTR, ENOMEM]),
    Sort::new("ftruncate", libc::SYS_ftruncate, Descriptor, None, &[ENOSPC, EIO, EINTR]),
    Sort::new("fallocate", libc::SYS_fallocate, Descriptor, None, &[ENOSPC, EIO, EINTR, EOPNOTSUPP]),
    Sort::new("fsync", libc::SYS_fsync, Descriptor, None, &[ENOSPC, EIO, EINTR]),
    Sort::new("fdatasync", libc::SYS_fdatasync, Descriptor, None, &[ENOSPC, EIO, EINTR]),
    Sort::new("sync_file_range", libc::SYS_sync_file_range, Descriptor, None, &[ENOSPC, EIO]),
    Sort::new("fchmod", libc::SYS_fchmod, Descriptor, None, &[EIO]),
    Sort::new("chmod", libc::SYS_chmod, Path, None, &[EIO]),
    Sort::new("fchown", libc::SYS_fchown, Descriptor, None, &[EIO]),
    Sort::new("linkat", libc::SYS_linkat, PathAt, None, &[ENOSPC, EIO, ENOMEM]),
    Sort::new("renameat", libc::SYS_renameat, PathAt, None, &[ENOSPC, EIO]),
    Sort::new("renameat2", libc::SYS_renameat2, PathAt, None, &[ENOSPC, EIO]),
    Sort::new("rename", libc::SYS_rename, Path, None, &[ENOSPC, EIO]),
    Sort::new("unlink", libc::SYS_unlink, Path, None, &[EIO]),
    Sort::new("unlinkat", libc::SYS_unlinkat, PathAt, None, &[EIO]),
    Sort::new("mkdir", libc::SYS_mkdir, Path, None, &[ENOSPC, EIO]),
    Sort::new("memfd_create", libc::SYS_memfd_create, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("mmap", libc::SYS_mmap, First::Fifth, None, &[ENOMEM]),
    Sort::new("msync", libc::SYS_msync, Nothing, None, &[EIO]),
    Sort::new("madvise", libc::SYS_madvise, Nothing, None, &[ENOMEM, EAGAIN]),
    Sort::new("move_pages", libc::SYS_move_pages, Nothing, None, &[ENOMEM]),
    Sort::new("mincore", libc::SYS_mincore, Nothing, None, &[ENOMEM, EAGAIN]),
    Sort::new("clone3", libc::SYS_clone3, Nothing, None, &[EAGAIN, ENOMEM]),
    Sort::new("clone", libc::SYS_clone, Nothing, None, &[EAGAIN, ENOMEM]),
    Sort::new("vfork", libc::SYS_vfork, Nothing, None, &[EAGAIN, ENOMEM]),
    Sort::new("wait4", libc::SYS_wait4, Nothing, None, &[EINTR]),
    Sort::new("waitid", libc::SYS_waitid, Nothing, None, &[EINTR]),
    Sort::new("pipe2", libc::SYS_pipe2, Nothing, None, &[EMFILE]),
    Sort::new("pidfd_open", libc::SYS_pidfd_open, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("getgroups", libc::SYS_getgroups, Nothing, None, &[]),
    Sort::new("setgroups", libc::SYS_setgroups, Nothing, None, &[ENOMEM]),
    Sort::new("setresuid", libc::SYS_setresuid, Nothing, None, &[EAGAIN]),
    Sort::new("setresgid", libc::SYS_setresgid, Nothing, None, &[EAGAIN]),
    Sort::new("signalfd4", libc::SYS_signalfd4, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("eventfd2", libc::SYS_eventfd2, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("epoll_create1", libc::SYS_epoll_create1, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("epoll_ctl", libc::SYS_epoll_ctl, Descriptor, None, &[ENOMEM, ENOSPC]),
    Sort::new("epoll_wait", libc::SYS_epoll_wait, Descriptor, None, &[EINTR]),
    Sort::new("epoll_pwait", libc::SYS_epoll_pwait, Descriptor, None, &[EINTR]),
    Sort::new("poll", libc::SYS_poll, Nothing, None, &[EINTR, ENOMEM]),
    Sort::new("ppoll", libc::SYS_ppoll, Nothing, None, &[EINTR, ENOMEM]),
    Sort::new("socket", libc::SYS_socket, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("socketpair", libc::SYS_socketpair, Nothing, None, &[EMFILE, ENOMEM]),
    Sort::new("bind", libc::SYS_bind, Descriptor, None, &[ENOMEM, EIO]),
    Sort::new("listen", libc::SYS_listen, Descriptor, None, &[ENOMEM]),
    Sort::new("connect", libc::SYS_connect, Descriptor, None, &[EAGAIN, ENOMEM, EINTR]),
    Sort::new("accept4", libc::SYS_accept4, Descriptor, None, &[EMFILE, ENOBUFS, ECONNABORTED, EINTR]),
    Sort::new("getsockopt", libc::SYS_getsockopt, Descriptor, None, &[ENOMEM]),
    Sort::new("setsockopt", libc::SYS_setsockopt, Descriptor, None, &[ENOMEM]),
    Sort::new("getpeername", libc::SYS_getpeername, Descriptor, None, &[ENOBUFS]),
    Sort::new("sendto", libc::SYS_sendto, Descriptor, None, &[ENOBUFS, ENOMEM, EINTR]),
    Sort::new("recvfrom", libc::SYS_recvfrom, Descriptor, None, &[ENOMEM, EINTR]),
    Sort::new("sendmsg", libc::SYS_sendmsg, Descriptor, None, &[ENOBUFS, ENOMEM, EINTR]),
    Sort::new("recvmsg", libc::SYS_recvmsg, Descriptor, None, &[ENOMEM, EINTR]),
];

/// Writes what was done and what came of it, when `DAXFS_FAULTS_VERBOSE` is set: for whoever looks at all of it.
pub fn note(what: &dyn fmt::Display) {
    if std::env::var_os("DAXFS_FAULTS_VERBOSE").is_some() {
        let _ = writeln!(std::io::stderr(), "{what}");
    }
}
