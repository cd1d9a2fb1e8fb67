//! A way down a tree of directories, by descriptors: no path is ever built, so neither depth nor the length of paths
//! costs anything, and PATH_MAX does not matter.
//!
//! A directory is opened below its parent, without following links. Of a deep way the upper descriptors are closed and
//! opened again by `..` on the way back; what is found there must be the directory that was left, so nobody can lead
//! the way elsewhere by moving directories.

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Directories of the way that are kept open.
const OPEN: usize = 64;

/// How directories are opened.
pub const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The directories from the top to the current one, each with what the caller wants to know of it.
#[derive(Debug)]
pub struct Descent<T> {
    above: Vec<Level<T>>,
    current: OwnedFd,
    /// Of the current directory.
    pub data: T,
}

#[derive(Debug)]
struct Level<T> {
    /// `None` when it was closed to spare descriptors.
    fd: Option<OwnedFd>,
    /// Device and inode.
    id: (u64, u64),
    /// Whether the way leads on through a link in it.
    by_link: bool,
    data: T,
}

impl<T> Descent<T> {
    /// Begins at an open directory.
    pub fn new(top: OwnedFd, data: T) -> Self {
        Self { above: Vec::new(), current: top, data }
    }

    /// The current directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }

    /// Goes to the directory `name` in the current one.
    ///
    /// # Errors
    /// What the operating system says: also when a symbolic link has that name. The way stays where it was.
    pub fn enter(&mut self, name: &[u8], data: T) -> io::Result<()> {
        self.go(name, DIRECTORY, data)
    }

    /// As [`Descent::enter`], and follows a symbolic link of that name. The directory that the link lies in stays open:
    /// there is no way back by `..`.
    ///
    /// # Errors
    /// What the operating system says. The way stays where it was.
    pub fn enter_link(&mut self, name: &[u8], data: T) -> io::Result<()> {
        self.go(name, DIRECTORY.difference(OFlag::O_NOFOLLOW), data)?;
        if let Some(level) = self.above.last_mut() {
            level.by_link = true;
        }
        Ok(())
    }

    fn go(&mut self, name: &[u8], flags: OFlag, data: T) -> io::Result<()> {
        let below = openat(&self.current, OsStr::from_bytes(name), flags, Mode::empty())?;
        let id = identity(&self.current)?;
        let fd = std::mem::replace(&mut self.current, below);
        let data = std::mem::replace(&mut self.data, data);
        self.above.push(Level { fd: Some(fd), id, by_link: false, data });
        // One is closed for each that is opened.
        let closed = self.above.len().checked_sub(OPEN).and_then(|far| self.above.get_mut(far));
        if let Some(far) = closed.filter(|far| !far.by_link) {
            far.fd = None;
        }
        Ok(())
    }

    /// Goes back to the directory above, and returns the one that was left; `None` at the top, which stays.
    ///
    /// # Errors
    /// What the operating system says, and when the directory above is not the one that it was. Then the way has ended.
    pub fn leave(&mut self) -> io::Result<Option<(OwnedFd, T)>> {
        let Some(Level { fd, id, data, .. }) = self.above.pop() else { return Ok(None) };
        let fd = match fd {
            Some(fd) => fd,
            None => {
                let above = openat(&self.current, "..", DIRECTORY, Mode::empty())?;
                if identity(&above)? != id {
                    return Err(io::Error::other("the directory was moved while it was worked on"));
                }
                above
            }
        };
        let left = std::mem::replace(&mut self.current, fd);
        Ok(Some((left, std::mem::replace(&mut self.data, data))))
    }
}

fn identity(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::open;
    use nix::sys::stat::mkdirat;

    #[test]
    fn a_way_that_is_deeper_than_descriptors_and_paths() {
        let dir = tempfile::tempdir().unwrap();
        let top = open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let name = [b'n'; 200];
        let mut way = Descent::new(top, 0);
        for depth in 1..=300 {
            mkdirat(way.fd(), OsStr::from_bytes(&name), Mode::S_IRWXU).unwrap();
            way.enter(&name, depth).unwrap();
        }
        assert_eq!(way.above.iter().filter(|level| level.fd.is_some()).count(), OPEN - 1);
        for depth in (1..=300).rev() {
            let (left, data) = way.leave().unwrap().unwrap();
            assert_eq!((data, way.data), (depth, depth - 1));
            drop(left);
            // From the deepest up, so that nothing is left for the recursion of others.
            let name = OsStr::from_bytes(&name);
            nix::unistd::unlinkat(way.fd(), name, nix::unistd::UnlinkatFlags::RemoveDir).unwrap();
        }
        assert!(way.leave().unwrap().is_none());
    }

    #[test]
    fn a_way_through_a_link_leads_back() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("outside/".to_owned() + &"d/".repeat(OPEN + 3));
        std::fs::create_dir_all(deep).unwrap();
        std::fs::create_dir(dir.path().join("top")).unwrap();
        std::os::unix::fs::symlink("../outside", dir.path().join("top/link")).unwrap();
        let top = open(&dir.path().join("top"), DIRECTORY, Mode::empty()).unwrap();
        let mut way = Descent::new(top, 0);
        assert!(way.enter(b"link", 1).is_err());
        way.enter_link(b"link", 1).unwrap();
        for depth in 2..OPEN + 5 {
            way.enter(b"d", depth).unwrap();
        }
        while let Some((_, data)) = way.leave().unwrap() {
            assert_eq!(data, way.data + 1);
        }
        assert_eq!(way.data, 0);
        assert!(openat(way.fd(), "link", OFlag::O_PATH, Mode::empty()).is_ok());
    }

    #[test]
    fn a_directory_that_was_moved_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let top = open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut way = Descent::new(top, ());
        for _ in 0..=OPEN {
            mkdirat(way.fd(), "d", Mode::S_IRWXU).unwrap();
            way.enter(b"d", ()).unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        std::fs::rename(dir.path().join("d/d"), outside.path().join("d")).unwrap();
        let error = std::iter::repeat_with(|| way.leave()).find_map(Result::err).unwrap();
        assert!(error.to_string().contains("was moved"), "{error}");
        assert!(way.enter(b"absent", ()).is_err());
    }
}
