//! The directory that is mounted at: what lies there before, and taking a mount away.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statfs::statfs;

use crate::error::{Error, Result};
use crate::options::Options;

/// What lists of mounts show as our type.
const TYPE: &str = "fuse.daxfs";

/// Sees to it that something can be mounted at a directory, and returns its whole path. A mount of ours whose process
/// has ended without taking it away answers nothing any more: it is taken away now.
///
/// # Errors
/// [`Error::Directory`], [`Error::NotADirectory`]; [`Error::Abandoned`] for a dead mount of another type.
pub fn prepare(at: &Path) -> Result<PathBuf> {
    let failed = |source| Error::Directory { at: at.to_owned(), source };
    // Asked is for what no kernel remembers: attributes of a root can be there longer than who gave them.
    if let Err(Errno::ENOTCONN | Errno::ECONNABORTED) = statfs(at) {
        let path = std::path::absolute(at).map_err(failed)?;
        let table = std::fs::read("/proc/self/mountinfo").map_err(failed)?;
        let kind = type_at(&table, &path).unwrap_or_default();
        if kind != TYPE.as_bytes() {
            let kind = String::from_utf8_lossy(&kind).into_owned();
            return Err(Error::Abandoned { at: at.to_owned(), kind });
        }
        take_away(&path).map_err(failed)?;
    }
    if !std::fs::metadata(at).map_err(failed)?.is_dir() {
        return Err(Error::NotADirectory { at: at.to_owned() });
    }
    at.canonicalize().map_err(failed)
}

/// Mounts a new connection at a directory, by the system call; `None` where that takes rights which this process has
/// not.
///
/// # Errors
/// What the kernel says.
pub fn mount(at: &Path, options: &Options) -> io::Result<Option<OwnedFd>> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let mut flags = MsFlags::MS_RDONLY;
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    flags.set(MsFlags::MS_NOEXEC, options.noexec);
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        libc::S_IFDIR,
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if options.for_others() {
        data.push_str(",allow_other");
    }
    for context in &options.contexts {
        data.push(',');
        data.push_str(context);
    }
    match nix::mount::mount(Some(options.source.as_str()), at, Some(TYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The type of what is mounted at a path, topmost, in the text of `/proc/self/mountinfo` (proc(5)).
fn type_at(mountinfo: &[u8], at: &Path) -> Option<Vec<u8>> {
    let lines = mountinfo.split(|&byte| byte == b'\n').rev();
    let mut found = lines.filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (unescape(point) == at.as_os_str().as_bytes()).then(|| kind.to_vec())
    });
    found.next()
}

/// A path of `/proc/self/mountinfo`, where blanks and the like are octal numbers.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Takes the topmost mount at a path away: no path leads there any more at once, and it ends when nothing of it is open.
///
/// # Errors
/// What the kernel says, or fusermount3 for who may not unmount.
pub fn take_away(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => by_fusermount(path),
        Err(errno) => Err(errno.into()),
    }
}

/// Has fusermount3, which is set-user-ID, take a mount of this user away.
fn by_fusermount(path: &Path) -> io::Result<()> {
    let program = std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| OsString::from("fusermount3"));
    let output = Command::new(program)
        .args(["-u", "-q", "-z", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let words = OsString::from_vec(output.stderr).to_string_lossy().trim().to_owned();
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("fusermount3: {words}")))
        }
    }
}

/// The device number of the mount at a path, which is ours: asks the mount, and so waits until it answers.
///
/// # Errors
/// What the mount answers.
pub fn ask(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts_and_names_are_unescaped() {
        let table = b"22 1 0:20 / /mnt rw shared:1 - tmpfs none rw\n\
                      23 22 0:21 / /mnt/a\\040b ro - fuse.sshfs host: ro\n\
                      24 23 0:22 / /mnt/a\\040b ro,nosuid shared:5 master:2 - fuse.daxfs model ro\n";
        assert_eq!(type_at(table, Path::new("/mnt/a b")).as_deref(), Some(TYPE.as_bytes()));
        assert_eq!(type_at(table, Path::new("/mnt")).as_deref(), Some(&b"tmpfs"[..]));
        assert_eq!(type_at(table, Path::new("/mnt/a")), None);
        assert_eq!(unescape(b"\\134\\04x\\"), b"\\\\04x\\");
    }

    #[test]
    fn what_is_no_directory_is_said() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(Error::NotADirectory { .. })));
        assert!(matches!(prepare(&place.path().join("none")), Err(Error::Directory { .. })));
        assert_eq!(prepare(place.path()).unwrap(), place.path().canonicalize().unwrap());
    }
}
