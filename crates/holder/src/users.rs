//! Which processes hold an image: those with a descriptor of it or a mapping, as far as `/proc` tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that holds an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its name (`/proc/PID/comm`).
    pub command: String,
    /// Descriptors of the image that it has open.
    pub descriptors: u32,
    /// Whether it has the image mapped.
    pub mapped: bool,
}

/// Processes that hold the memory with this device and inode number. Processes that the caller may not look into are
/// counted, not listed.
pub fn of(dev: u64, ino: u64) -> (Vec<User>, usize) {
    let mut users = Vec::new();
    let mut hidden = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let process = entry.path();
        match (descriptors(&process, dev, ino), mapped(&process, dev, ino)) {
            (Some(descriptors), Some(mapped)) if descriptors > 0 || mapped => {
                let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
                users.push(User { pid, command: command.trim_end().to_owned(), descriptors, mapped });
            }
            (Some(_), Some(_)) => {}
            // It ended meanwhile, or is not ours to look into.
            _ if process.exists() => hidden += 1,
            _ => {}
        }
    }
    users.sort_by_key(|user| user.pid);
    (users, hidden)
}

fn descriptors(process: &Path, dev: u64, ino: u64) -> Option<u32> {
    let mut count = 0;
    for entry in fs::read_dir(process.join("fd")).ok()?.flatten() {
        if fs::metadata(entry.path()).is_ok_and(|file| (file.dev(), file.ino()) == (dev, ino)) {
            count += 1;
        }
    }
    Some(count)
}

/// Lines of `maps` are `range perms offset major:minor inode path`.
fn mapped(process: &Path, dev: u64, ino: u64) -> Option<bool> {
    let maps = fs::read(process.join("maps")).ok()?;
    let device = format!("{:02x}:{:02x}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let inode = ino.to_string();
    Some(String::from_utf8_lossy(&maps).lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        fields.next() == Some(&device) && fields.next() == Some(&inode)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn finds_this_process() {
        let memfd = dmabuf::Memfd::create("users", 4096, dmabuf::HugePages::No).unwrap();
        let info = dmabuf::describe(memfd.as_fd()).unwrap();
        let own = std::process::id();
        let find = |users: Vec<User>| users.into_iter().find(|user| user.pid == own);
        let user = find(of(info.dev, info.ino).0).unwrap();
        assert_eq!((user.descriptors, user.mapped), (1, false));
        let mapping = dmabuf::Mapping::read_only(memfd.as_fd(), 0, 4096).unwrap();
        drop(memfd);
        let user = find(of(info.dev, info.ino).0).unwrap();
        assert_eq!((user.descriptors, user.mapped), (0, true));
        drop(mapping);
        assert_eq!(find(of(info.dev, info.ino).0), None);
    }
}
