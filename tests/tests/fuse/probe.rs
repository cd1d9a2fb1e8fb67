//! What system calls answer on a tree: the same questions, for any file system.

#![allow(unsafe_code, reason = "system calls that no library of ours has, on memory of this process")]

use nix::errno::Errno;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What came back: a value, or the name of the error.
fn answer<T: std::fmt::Debug>(result: Result<T, Errno>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(errno) => format!("{errno:?}"),
    }
}

fn io<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn open(path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
    let path = c(path);
    // SAFETY: the path is a string with an end that outlives the call, which keeps nothing.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) })?;
    // SAFETY: the call has just opened it, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn seek(fd: impl AsFd, offset: i64, whence: i32) -> Result<i64, Errno> {
    // SAFETY: takes integers only, and the descriptor is open while it is borrowed.
    Errno::result(unsafe { libc::lseek(fd.as_fd().as_raw_fd(), offset, whence) })
}

/// Names of a directory from where it is read on, each with the place behind it.
fn entries(fd: impl AsFd, most: usize) -> Vec<(Vec<u8>, i64)> {
    let mut found = Vec::new();
    let mut buffer = vec![0_u8; 4096];
    while found.len() < most {
        // SAFETY: the buffer is writable for its length, which is passed.
        let len = unsafe {
            libc::syscall(libc::SYS_getdents64, fd.as_fd().as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        let len = usize::try_from(Errno::result(len).unwrap()).unwrap();
        if len == 0 {
            break;
        }
        let mut at = 0;
        while at < len {
            let next = i64::from_ne_bytes(buffer[at + 8..at + 16].try_into().unwrap());
            let size = usize::from(u16::from_ne_bytes(buffer[at + 16..at + 18].try_into().unwrap()));
            let name = buffer[at + 19..at + size].split(|&byte| byte == 0).next().unwrap();
            found.push((name.to_vec(), next));
            at += size;
        }
    }
    found.truncate(most);
    found
}

/// All that is asked of a tree, in order: one line for each answer.
pub fn probe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let mut say = |what: &str, answer: String| lines.push(format!("{name}: {what}: {answer}"));
        let meta = fs::symlink_metadata(&path).unwrap();
        let size = if meta.is_dir() { 0 } else { meta.len() };
        say("lstat", format!("{:o} {} {} {} {size}", meta.mode(), meta.nlink(), meta.uid(), meta.gid()));
        say("readlink", answer(io(fs::read_link(&path))));
        if meta.is_dir() {
            directory(&path, &mut say);
            let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            paths.extend(below);
        } else if meta.is_file() {
            file(&path, &mut say);
        }
        for (flag, text) in FLAGS {
            for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
                say(&format!("open {access} {text}"), answer(open(&path, access | flag).map(|_| ())));
            }
        }
        // Beside the root there is another file system.
        let new = if path == root { path.join("new") } else { beside(&path) };
        writes(&path, &new, &mut say);
    }
    lines
}

const FLAGS: [(i32, &str); 11] = [
    (0, ""),
    (libc::O_CREAT, "CREAT"),
    (libc::O_CREAT | libc::O_EXCL, "EXCL"),
    (libc::O_TRUNC, "TRUNC"),
    (libc::O_APPEND, "APPEND"),
    (libc::O_DIRECTORY, "DIRECTORY"),
    (libc::O_NOFOLLOW, "NOFOLLOW"),
    (libc::O_PATH, "PATH"),
    (libc::O_NOATIME, "NOATIME"),
    (libc::O_NONBLOCK, "NONBLOCK"),
    (libc::O_TMPFILE, "TMPFILE"),
];

fn directory(path: &Path, say: &mut impl FnMut(&str, String)) {
    let fd = open(path, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    let all = entries(&fd, usize::MAX);
    let mut names: Vec<_> = all.iter().map(|(name, _)| name.escape_ascii().to_string()).collect();
    names.sort();
    say("getdents", names.join(" "));
    say("getdents at the end", format!("{:?}", entries(&fd, usize::MAX)));
    // From the place behind each name come those behind it, whatever was read last.
    let places = [0, all.len() / 3, all.len() - 1, 1.min(all.len() - 1)];
    for place in places {
        seek(&fd, all[place].1, libc::SEEK_SET).unwrap();
        assert_eq!(entries(&fd, usize::MAX), all[place + 1..], "{}", path.display());
    }
    seek(&fd, 0, libc::SEEK_SET).unwrap();
    assert_eq!(entries(&fd, usize::MAX), all, "{}", path.display());
    for name in ["none", ".", "..", &"n".repeat(256), "none/below"] {
        let found = io(fs::symlink_metadata(path.join(name))).map(|meta| meta.mode());
        say(&format!("lookup {name}"), if name == ".." { String::new() } else { answer(found) });
    }
    say("read", answer(nix::unistd::read(&fd, &mut [0; 8])));
}

fn file(path: &Path, say: &mut impl FnMut(&str, String)) {
    let Ok(fd) = open(path, libc::O_RDONLY) else { return };
    let file = fs::File::from(fd);
    let len = file.metadata().unwrap().len();
    let bytes = fs::read(path).unwrap();
    say("contents", daxfs_tests::golden::sha256(&bytes));
    for (offset, size) in
        [(0, 16), (len / 2, 4097), (len.saturating_sub(1), 16), (len, 16), (len + 5000, 16), (1 << 62, 1)]
    {
        let mut buffer = vec![0; size];
        let read = io(file.read_at(&mut buffer, offset)).map(|len| buffer[..len].to_vec());
        say(&format!("pread {offset} {size}"), answer(read));
    }
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE, libc::SEEK_SET, libc::SEEK_END] {
        for offset in [0, len / 2, len.saturating_sub(1), len, len + 1] {
            let found = seek(&file, i64::try_from(offset).unwrap(), whence);
            say(&format!("lseek {offset} {whence}"), answer(found));
        }
        say(&format!("lseek -1 {whence}"), answer(seek(&file, -1, whence)));
    }
    if let Ok(len @ 1..) = usize::try_from(len) {
        let shared = dmabuf::Mapping::read_only(file.as_fd(), 0, len).unwrap();
        assert_eq!(shared.view().to_vec(), bytes, "{}", path.display());
        let mut private = dmabuf::Mapping::private(file.as_fd(), 0, len).unwrap();
        private.view_mut().unwrap().copy_from(0, b"w").unwrap();
        assert_eq!(private.view().to_vec()[1..], bytes[1..], "{}", path.display());
        assert_eq!(fs::read(path).unwrap(), bytes, "{}", path.display());
        let written = dmabuf::Mapping::read_write(file.as_fd(), 0, len).unwrap_err();
        say("mmap for writing", format!("{:?}", written.raw_os_error()));
    }
    say("ftruncate", answer(io(file.set_len(0))));
    say("write", answer(io(file.write_at(b"x", 0))));
    say("fsync", answer(io(file.sync_all())));
}

/// A path in the same directory that is not there.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned().into_vec();
    name.truncate(name.len() - 1);
    name.push(b'~');
    PathBuf::from(OsString::from_vec(name))
}

/// What would change the tree. Nothing does.
fn writes(path: &Path, new: &Path, say: &mut impl FnMut(&str, String)) {
    let mode = fs::Permissions::from_mode(0o777);
    say("mkdir", answer(io(fs::create_dir(new))));
    say("mkdir itself", answer(io(fs::create_dir(path))));
    say("unlink", answer(io(fs::remove_file(path))));
    say("rmdir", answer(io(fs::remove_dir(path))));
    say("rename", answer(io(fs::rename(path, new))));
    say("link", answer(io(fs::hard_link(path, new))));
    say("symlink", answer(io(std::os::unix::fs::symlink("x", new))));
    say("chmod", answer(io(fs::set_permissions(path, mode))));
    say("chown", answer(io(std::os::unix::fs::lchown(path, Some(1), Some(1)))));
    say("truncate", answer(nix::unistd::truncate(path, 1)));
    let now = nix::sys::time::TimeSpec::new(1, 1);
    let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    say("utimens", answer(nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, follow)));
    say("mknod", answer(nix::unistd::mkfifo(new, nix::sys::stat::Mode::S_IRWXU)));
    for mode in [libc::F_OK, libc::R_OK, libc::W_OK, libc::X_OK] {
        let flags = nix::unistd::AccessFlags::from_bits(mode).unwrap();
        say(&format!("access {mode}"), answer(nix::unistd::access(path, flags)));
    }
}
