//! What the first process of a container does with its mounts: the root file system becomes its root, and gets what the
//! kernel shows: `/proc`, `/sys`, and the devices that every program may use.

use super::namespaces::Users;
use super::trees::{Limits, Tree};
use crate::args::{Bind, Network};
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::pivot_root;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Devices that are shown.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// What of the kernel's files can be read and not written, since root can change the machine by them.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// What of them is not to be read either.
const HIDDEN: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Files of the machine without which its network is of little use.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// What a container has beside its root file system.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub binds: &'a [Bind],
    /// The same, as they were taken.
    pub trees: &'a [Tree],
    pub network: Network,
    pub hostname: Option<&'a str>,
    pub read_only: bool,
    pub users: Users,
}

/// Makes what is mounted at `root` the root of this process, the first one of a PID namespace.
///
/// # Errors
/// What the kernel says, and what helps.
pub fn enter(root: &Path, around: &Surroundings<'_>) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .context("/")?;
    if let Some(name) = around.hostname {
        nix::unistd::sethostname(name).context("--hostname")?;
    }
    let devices = DEVICES.map(|name| (name, Tree::of(&Path::new("/dev").join(name), Limits::default())));
    let data = Limits { read_only: true, data_alone: true };
    // Only who owns the network may see its part of /sys anew.
    let sys = Tree::of(Path::new("/sys"), data).ok();
    let files = NETWORK_FILES.map(|path| {
        let wanted = around.network == Network::Host && Path::new(path).is_file();
        (path, wanted.then(|| Tree::of(Path::new(path), data)))
    });
    std::env::set_current_dir(root).context("the root file system")?;
    // What was the root lies above the new one then, and is left by no path from there.
    pivot_root(".", ".").context("pivot_root")?;
    std::env::set_current_dir("/").context("/")?;

    show_system(sys)?;
    show_devices(devices, around.users)?;
    temporary(around.read_only)?;
    for (path, tree) in files {
        if let Some(tree) = tree {
            // An image may have something else in mind there, such as a link to what will be made.
            let _ = tree?.put_new(Path::new(path));
        }
    }
    // Paths of the image are followed before there is a /proc, in which this process' descriptors lead to the machine.
    let binds = || around.binds.iter().zip(around.trees);
    for (bind, tree) in binds().filter(|(bind, _)| !bind.target.starts_with("/proc")) {
        put_bind(bind, tree)?;
    }
    // The kernel shows processes anew only where they are seen already, so the machine's root goes after that.
    show_processes()?;
    hide()?;
    for (bind, tree) in binds().filter(|(bind, _)| bind.target.starts_with("/proc")) {
        put_bind(bind, tree)?;
    }
    umount2(".", MntFlags::MNT_DETACH).context("leaving the machine's root")
}

fn put_bind(bind: &Bind, tree: &Tree) -> anyhow::Result<()> {
    let kind = fs::metadata(&bind.target).map(|found| found.is_dir());
    if kind.is_ok_and(|is_directory| is_directory != tree.is_directory) {
        bail!(
            "--bind: {} is a directory, and {} is none, or the other way round",
            bind.target.display(),
            bind.source.display()
        );
    }
    tree.put_new(&bind.target)
}

/// Makes the root read-only, once everything that has to be made in it is there.
///
/// # Errors
/// What the kernel says.
pub fn close() -> anyhow::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("--read-only")
}

/// Makes a directory to mount at. A link there would lead elsewhere than all others of this module expect.
fn directory(path: &str) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => bail!("{path} is no directory in the image"),
        Err(_) => fs::create_dir(path).with_context(|| path.to_owned()),
    }
}

fn show(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> nix::Result<()> {
    mount(Some(kind), at, Some(kind), flags, options)
}

const DATA: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

fn show_processes() -> anyhow::Result<()> {
    directory("/proc")?;
    show("proc", "/proc", DATA, None)
        .context("/proc: an outer container that hides parts of it does not allow another one; it takes an unmasked /proc")?;
    for path in READ_ONLY.into_iter().map(Path::new).filter(|path| path.exists()) {
        let tree = Tree::of(path, Limits { read_only: true, data_alone: true })?;
        tree.put(path)?;
    }
    Ok(())
}

fn show_system(machine: Option<Tree>) -> anyhow::Result<()> {
    directory("/sys")?;
    match (show("sysfs", "/sys", DATA | MsFlags::MS_RDONLY, None), machine) {
        (Ok(()), _) => {}
        (Err(_), Some(tree)) => tree.put(Path::new("/sys"))?,
        // The machine has none.
        (Err(Errno::EPERM), None) => {}
        (Err(errno), None) => return Err(errno).context("/sys"),
    }
    Ok(())
}

/// Covers what is not to be read: directories by empty ones, files by what is empty, too.
fn hide() -> anyhow::Result<()> {
    for path in HIDDEN.into_iter().map(Path::new) {
        let subject = || path.display().to_string();
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                let options = Some("size=0k,mode=555");
                mount(Some("tmpfs"), path, Some("tmpfs"), DATA | MsFlags::MS_RDONLY, options)
                    .with_context(subject)?;
            }
            Ok(_) => mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(subject)?,
            Err(_) => {}
        }
    }
    Ok(())
}

fn show_devices(devices: [(&str, anyhow::Result<Tree>); DEVICES.len()], users: Users) -> anyhow::Result<()> {
    directory("/dev")?;
    show("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=755,size=64k"))
        .context("/dev")?;
    for (name, tree) in devices {
        tree?.put_new(&Path::new("/dev").join(name))?;
    }
    for (name, target) in LINKS {
        symlink(target, Path::new("/dev").join(name)).with_context(|| format!("/dev/{name}"))?;
    }
    for name in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir(name).context(name)?;
    }
    // The group of terminals, where there is another one than root's.
    let group = if users == Users::One { "" } else { ",gid=5" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    show("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(&options))
        .context("/dev/pts")?;
    show("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))
        .context("/dev/shm")?;
    // Not every kernel has it.
    let _ = show("mqueue", "/dev/mqueue", DATA, None);
    Ok(())
}

/// A place for everybody's temporary files.
fn temporary(read_only: bool) -> anyhow::Result<()> {
    const PLACE: &str = "/tmp";
    if fs::symlink_metadata(PLACE).is_err() {
        fs::create_dir(PLACE).context(PLACE)?;
        fs::set_permissions(PLACE, Permissions::from_mode(0o1777)).context(PLACE)?;
    }
    if read_only {
        show("tmpfs", PLACE, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777")).context(PLACE)?;
    }
    Ok(())
}
