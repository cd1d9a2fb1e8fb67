//! Namespaces of a container: mounts, processes, System V objects, host name; the network on demand; and for who is not
//! root a user namespace around them.

#![allow(unsafe_code, reason = "fork(2), and an ioctl of a socket")]

use crate::args::Network;
use crate::output::note;
use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, User, fork, getegid, geteuid, getpid, pipe};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// What helps where a machine has no user namespaces for this user.
pub const NEEDS: &str = "a container takes root, or a user namespace: user.max_user_namespaces above 0, \
    kernel.unprivileged_userns_clone=1 where there is such a setting, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu, \
    and an outer container that allows it";

/// Which users there are in the user namespace that this process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// All of the machine.
    All,
    /// Root and others, in a user namespace.
    Some,
    /// Root alone, in a user namespace.
    One,
}

impl Users {
    /// As `/proc/self/uid_map` says.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn now() -> anyhow::Result<Self> {
        let map = std::fs::read_to_string("/proc/self/uid_map").context("/proc/self/uid_map")?;
        Ok(Self::of(&map))
    }

    fn of(map: &str) -> Self {
        let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        let fields: Vec<&str> = map.split_whitespace().collect();
        match counts.fold(0, u64::saturating_add) {
            _ if fields == ["0", "0", "4294967295"] => Self::All,
            0 | 1 => Self::One,
            _ => Self::Some,
        }
    }
}

/// Puts this process into new namespaces, but for that of processes, which its child makes. Mounts of the machine go on being
/// seen, and no mount made here is seen there.
///
/// # Errors
/// Where the machine allows no such namespaces, with what it takes.
pub fn enter(network: Network) -> anyhow::Result<Users> {
    let mut wanted = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    wanted.set(CloneFlags::CLONE_NEWNET, network == Network::None);
    match unshare(wanted) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            enter_user_namespace()?;
            unshare(wanted).context(NEEDS)?;
        }
        Err(errno) => return Err(errno).context("namespaces of a container"),
    }
    // Mounts of the machine that come and go still do; none goes there from here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context(NEEDS)?;
    if network == Network::None {
        start_loopback().context("the loopback device")?;
    }
    Users::now()
}

/// Makes a user namespace, where this user is root. With subordinate ids (subuid(5)) and `newuidmap` there are other users
/// beside; without, root is the only one.
fn enter_user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let range = |path| {
        let text = std::fs::read_to_string(path).ok()?;
        subordinate(&text, name.as_deref(), uid.as_raw())
    };
    // The programs that are allowed to map more work from outside, and so by a process that stays there.
    let mut helper = match (range("/etc/subuid"), range("/etc/subgid")) {
        (Some(uids), Some(gids)) if is_there("newuidmap") && is_there("newgidmap") => {
            Some(Helper::start(&[("newuidmap", uid.as_raw(), uids), ("newgidmap", gid.as_raw(), gids)])?)
        }
        _ => None,
    };
    unshare(CloneFlags::CLONE_NEWUSER).context(NEEDS)?;
    if let Some(helper) = helper.take() {
        if helper.map()? {
            return Ok(());
        }
        note("newuidmap or newgidmap failed: the container has one user, root");
    }
    let write = |path: &str, text: String| std::fs::write(path, text).context(NEEDS);
    // What the kernel wants to see first of who may not change groups.
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// The first range of ids in the text of `/etc/subuid` or `/etc/subgid` that a user has: start and count.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let number = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let user = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok().filter(|count| *count > 0)?);
        (Some(user) == name || user == number).then_some(range)
    })
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A process outside of the user namespace, which maps its ids.
struct Helper {
    child: Pid,
    /// Written to when the namespace is there.
    go: File,
}

impl Helper {
    /// `maps` has a program, the id of root, and the range of the others.
    fn start(maps: &[(&str, u32, (u32, u32))]) -> anyhow::Result<Self> {
        let process = getpid();
        let (listen, go) = pipe().context("pipe")?;
        // SAFETY: this process has one thread, as unshare(2) demands for a user namespace anyway; so the child may do
        // what any process may.
        match unsafe { fork() }.context("a process that maps ids")? {
            ForkResult::Parent { child } => Ok(Self { child, go: go.into() }),
            ForkResult::Child => {
                drop(go);
                let told = matches!(File::from(listen).read(&mut [0]), Ok(1));
                let mapped = told && maps.iter().all(|map| run_map(process, map));
                // SAFETY: it ends the process, without what the parent would do at its end; nothing is buffered here.
                unsafe { libc::_exit(i32::from(!mapped)) }
            }
        }
    }

    /// Whether the ids are mapped now.
    fn map(mut self) -> anyhow::Result<bool> {
        self.go.write_all(&[0]).context("the process that maps ids")?;
        Ok(waitpid(self.child, None).context("the process that maps ids")?
            == WaitStatus::Exited(self.child, 0))
    }
}

fn run_map(process: Pid, (program, root, (start, count)): &(&str, u32, (u32, u32))) -> bool {
    let numbers = [0, *root, 1, 1, *start, *count].map(|number| number.to_string());
    let mut command = Command::new(program);
    command.arg(process.to_string()).args(numbers).stdin(Stdio::null()).stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Turns the loopback device of a new network namespace on.
fn start_loopback() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros are a valid `struct ifreq`, which has numbers and arrays only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        // Signed or not, as the processor has it.
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the socket is open, and SIOCSIFFLAGS reads a `struct ifreq`, which `request` is.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_ranges_are_read() {
        assert_eq!(Users::of("         0          0 4294967295\n"), Users::All);
        assert_eq!(Users::of("         0       1000          1\n"), Users::One);
        assert_eq!(Users::of("0 1000 1\n1 100000 65536\n"), Users::Some);
        assert_eq!(Users::of(""), Users::One);
        let text = "other:1:2\nme:100000:0\nbroken\nme:100000:65536\n1000:5:6\n";
        assert_eq!(subordinate(text, Some("me"), 7), Some((100_000, 65_536)));
        assert_eq!(subordinate(text, None, 1000), Some((5, 6)));
        assert_eq!(subordinate(text, Some("nobody"), 7), None);
    }
}
