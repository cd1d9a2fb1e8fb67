//! What of the memory of this machine can be opened: helpers for the kinds of memory, which say what there is
//! ([`offers`](crate::offers)), and for who lists devices.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

/// Whether this process can open a device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading and writing.
    ReadWrite,
    /// For reading.
    Read,
    /// Not at all, and why.
    No(String),
}

/// Memory that this machine has, or why it has none of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offer {
    /// The kind of memory, by its name ([`KindFacts::name`](crate::KindFacts)).
    pub kind: &'static str,
    /// What to call it, as a source or a target; `None` where the machine has nothing of the kind.
    pub name: Option<PathBuf>,
    /// Whether this process can use it now.
    pub access: Access,
    /// Bytes, where they are fixed or limited.
    pub size: Option<u64>,
    /// What mappings are aligned to, in bytes, where that is more than a page.
    pub align: Option<u64>,
    /// More of it; empty where there is no more to say.
    pub note: String,
}

impl Offer {
    pub(crate) fn new(kind: &'static str, name: impl Into<PathBuf>, access: Access) -> Self {
        let (name, note) = (Some(name.into()), String::new());
        Self { kind, name, access, size: None, align: None, note }
    }

    /// The machine has nothing of the kind.
    pub(crate) fn missing(kind: &'static str, why: impl Into<String>) -> Self {
        let access = Access::No(why.into());
        Self { kind, name: None, access, size: None, align: None, note: String::new() }
    }
}

/// Whether a node can be opened, by opening it: for nodes of memory, whose drivers have the last word and do nothing
/// else then.
#[must_use]
pub fn access(path: &Path) -> Access {
    let open = |write| fs::OpenOptions::new().read(true).write(write).open(path).map(drop);
    match open(true) {
        Ok(()) => Access::ReadWrite,
        Err(_) => open(false).map_or_else(|error| Access::No(why(&error)), |()| Access::Read),
    }
}

/// Whether a node's permissions allow to open it, without opening it: for GPUs, whose drivers wake the device or set up
/// a context then. A container's list of devices and the driver can still refuse.
#[must_use]
pub fn permission(path: &Path) -> Access {
    let allowed = |mode| nix::unistd::eaccess(path, mode);
    match allowed(AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Access::ReadWrite,
        Err(_) => match allowed(AccessFlags::R_OK) {
            Ok(()) => Access::Read,
            Err(error) => Access::No(why(&error.into())),
        },
    }
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "it is not there".into(),
        Some(libc::EACCES) => "no permission on the node".into(),
        Some(libc::EPERM) => {
            "not permitted: CAP_SYS_RAWIO is needed, and a kernel that is not locked down".into()
        }
        Some(libc::ENXIO) => "no driver is bound to it".into(),
        _ => error.to_string(),
    }
}

/// Nodes of a directory of `/dev` whose names begin so, sorted; character devices only.
#[must_use]
pub fn nodes(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let is_node = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            && fs::metadata(path).is_ok_and(|meta| meta.mode() & libc::S_IFMT == libc::S_IFCHR)
    };
    let mut found: Vec<_> = entries(dir).into_iter().filter(is_node).collect();
    found.sort();
    found
}

/// What a directory has; nothing where it cannot be read.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// The last part of where a link leads.
pub(crate) fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_their_access() {
        assert_eq!(nodes(Path::new("/dev"), "nul"), [PathBuf::from("/dev/null")]);
        assert_eq!(access(Path::new("/dev/null")), Access::ReadWrite);
        assert_eq!(access(Path::new("/dev/nonexistent")), Access::No("it is not there".into()));
        assert_eq!(permission(Path::new("/dev/null")), Access::ReadWrite);
        assert_eq!(permission(Path::new("/dev/nonexistent")), Access::No("it is not there".into()));
        // A pipe without a reader: to open it would wait, and to ask does not.
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        assert_eq!(permission(&pipe), Access::ReadWrite);
        assert!(why(&io::Error::from_raw_os_error(libc::ENXIO)).contains("driver"));
    }
}
