//! Opening below a directory, through no symbolic link.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::again::uninterrupted;
use crate::error::{Error, Result};

/// Opens `path`, which begins at `directory`, for reading as [`open_read_only`](crate::open_read_only) does. None of
/// its components may be a symbolic link: each is opened from the one before it.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer: `ELOOP` or `ENOTDIR` for a link; [`Error::Invalid`] for a path that is
/// empty, absolute, or has `.` or `..` in it.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let subject = || path.display().to_string();
    let name = |component| match component {
        Component::Normal(name) => Ok(name),
        _ => Err(Error::invalid(subject(), "expected names alone, which lead down")),
    };
    let names = path.components().map(name).collect::<Result<Vec<&OsStr>>>()?;
    let Some((last, between)) = names.split_last() else {
        return Err(Error::invalid(subject(), "is empty"));
    };
    let open = |at: BorrowedFd<'_>, name: &OsStr, flags: OFlag| {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        uninterrupted(|| openat(at, name, flags, Mode::empty())).map_err(|e| Error::os("open", subject(), e))
    };
    let mut below: Option<OwnedFd> = None;
    for name in between {
        let at = below.as_ref().map_or(directory, AsFd::as_fd);
        below = Some(open(at, name, OFlag::O_PATH | OFlag::O_DIRECTORY)?);
    }
    let at = below.as_ref().map_or(directory, AsFd::as_fd);
    open(at, last, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{ErrorKind, Read};
    use std::os::unix::fs::symlink;

    #[test]
    fn no_component_is_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("root/a/b")).unwrap();
        fs::create_dir_all(at("elsewhere/b")).unwrap();
        for (path, text) in [("root/a/b/file", "inside"), ("elsewhere/b/file", "outside")] {
            fs::write(at(path), text).unwrap();
        }
        symlink("../elsewhere", at("root/link")).unwrap();
        symlink("a/b/file", at("root/last")).unwrap();
        let root = fs::File::open(at("root")).unwrap();
        let open = |path: &str| open_beneath(root.as_fd(), Path::new(path));
        let mut text = String::new();
        fs::File::from(open("a/b/file").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        for path in ["link/b/file", "last", "a/b/file/more"] {
            assert!(matches!(open(path), Err(Error::Os { .. })), "{path}");
        }
        for path in ["", "/", "../elsewhere/b/file", "a/../../elsewhere/b/file"] {
            assert_eq!(open(path).unwrap_err().io_kind(), ErrorKind::InvalidInput, "{path}");
        }
        assert_eq!(open("a/none").unwrap_err().io_kind(), ErrorKind::NotFound);
    }
}
