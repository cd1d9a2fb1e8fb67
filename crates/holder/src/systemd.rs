//! systemd's protocols, without its library: socket activation, the descriptor store, and notifications.
//!
//! Started by systemd, the holder finds in `LISTEN_FDS` its listening socket and the images that an earlier life put
//! into the descriptor store (sd_listen_fds(3)). It stores an image (`FDSTORE=1`, sd_notify(3)) before it tells anybody
//! that the image is loaded, so what was acknowledged survives its death. An image is stored under the name
//! `img.GENERATION.NAME` (see [`Stored`] for those with a list of users, and [`StoredCopy`] for copies on devices); of
//! two generations of a name the higher counts, so a crash between storing a new one and removing the old one loses
//! nothing. systemd drops, without a word, a descriptor of an open file that it has already, under whatever name: each
//! image has an open file of its own (see [`dmabuf::reopen`]), or is refused; each descriptor of a copy that a driver
//! gives is one, too.

#![allow(unsafe_code, reason = "takes ownership of the descriptors that systemd passed")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs_protocol::message::{DeviceCopy, Role};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::access::Access;
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::stored::{Stored, StoredCopy, StoredKind};

/// First descriptor that systemd passes.
const FIRST: RawFd = 3;

/// A descriptor from systemd.
#[derive(Debug)]
pub struct Passed {
    /// `FileDescriptorName=` of the socket, or the name that it was stored under.
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// Takes the descriptors that systemd passed to this process; none when it did not start it, and none a second time.
///
/// # Errors
/// [`Error::System`] when a number is not an open descriptor.
pub fn take_passed() -> Result<Vec<Passed>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let variable = |name: &str| std::env::var(name).ok();
    let own = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<RawFd>().ok()).filter(|_| own);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut passed = Vec::new();
    for index in 0..count.unwrap_or(0) {
        let number = FIRST + index;
        // SAFETY: this fcntl takes integers only and touches no memory; a number that is no open descriptor is EBADF.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            let error = std::io::Error::last_os_error();
            return Err(Error::system(format!("descriptor {number} of LISTEN_FDS"), error));
        }
        // SAFETY: the descriptor is open (the call above succeeded) and was passed for this process to own
        // (LISTEN_PID is ours). It was open when this program began, so no other owner here was ever given its number,
        // and `TAKEN` lets only one caller come this far.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let name = usize::try_from(index).ok().and_then(|index| names.get(index));
        passed.push(Passed { name: name.map_or_else(String::new, |name| (*name).to_owned()), fd });
    }
    Ok(passed)
}

/// Where notifications go; absent when systemd did not ask for any.
#[derive(Debug)]
pub struct Notify {
    socket: Option<(UnixDatagram, OsString)>,
    /// Most descriptors that the supervisor keeps, if it says so (`$FDSTORE`, systemd 254). It drops what is beyond
    /// without a word.
    max: Option<usize>,
    /// Images that it keeps although this holder does not hold them.
    aside: Vec<SetAside>,
}

/// An image that stays with the supervisor because it could not be looked at for now.
#[derive(Debug)]
pub struct SetAside {
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// Who may attach.
    pub access: Access,
    /// Device and inode number of its memory.
    pub memory: Option<(u64, u64)>,
    /// How many descriptors of it are stored, its signature among them, but for those of its list of users.
    pub stored: usize,
    /// Its copies on devices, which also stay with the supervisor.
    pub copies: Vec<DeviceCopy>,
}

impl Notify {
    /// From `$NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn from_environment() -> Result<Self> {
        let socket = match std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) {
            None => None,
            Some(path) => {
                let socket = UnixDatagram::unbound().map_err(|e| Error::system("notify socket", e))?;
                let failed = |e| Error::system(format!("connect to NOTIFY_SOCKET {}", path.display()), e);
                if let Some(name) = path.as_bytes().strip_prefix(b"@") {
                    use std::os::linux::net::SocketAddrExt;
                    let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
                    socket.connect_addr(&address).map_err(failed)?;
                } else {
                    socket.connect(&path).map_err(failed)?;
                }
                Some((socket, path))
            }
        };
        let max = std::env::var("FDSTORE").ok().and_then(|max| max.parse().ok());
        Ok(Self { socket, max, aside: Vec::new() })
    }

    /// Whether the supervisor will keep an image with that many descriptors beside those that it has: `kept` are all
    /// images that are held, and those that were set aside count as well. A swap has both for a moment.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn check_room<'a>(
        &self,
        kept: impl Iterator<Item = (&'a Access, usize)>,
        fresh: (&'a Access, usize),
    ) -> Result<()> {
        let Some(max) = self.max.filter(|_| self.is_active()) else { return Ok(()) };
        // More for the list of users.
        let descriptors = |(access, fds): (&Access, usize)| fds + access.descriptors();
        let aside = self.aside.iter().map(|image| (&image.access, image.stored + image.copies.len()));
        let kept = kept.map(descriptors).sum::<usize>() + aside.map(descriptors).sum::<usize>();
        let need = kept + descriptors(fresh);
        if need > max { Err(Error::Store { need, max }) } else { Ok(()) }
    }

    /// Remembers an image that the supervisor keeps although this holder does not hold it.
    pub fn set_aside(&mut self, image: SetAside) {
        self.aside.push(image);
    }

    /// The image of that name and generation, if it was set aside.
    pub fn aside_mut(&mut self, name: &str, generation: u64) -> Option<&mut SetAside> {
        self.aside.iter_mut().find(|image| image.name == name && image.generation == generation)
    }

    /// Name of an image that was set aside and has the memory of one of `fds`. Its own descriptor is gone, so nothing
    /// tells whether the open file is the same.
    pub fn set_aside_with(&self, fds: &[OwnedFd]) -> Option<&str> {
        let of = |fd: &OwnedFd| nix::sys::stat::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let same = |image: &&SetAside| image.memory.is_some() && fds.iter().any(|fd| of(fd) == image.memory);
        self.aside.iter().find(same).map(|image| image.name.as_str())
    }

    /// Removes from the store what was set aside, all of it or that of one name; returns how many images that were.
    pub fn forget_set_aside(&mut self, name: Option<&str>) -> usize {
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.aside)
            .into_iter()
            .partition(|image| name.is_none_or(|name| image.name == name));
        self.aside = left;
        for image in &gone {
            self.forget(&image.name, image.generation, &image.copies);
        }
        gone.len()
    }

    /// True when there is a supervisor that keeps descriptors.
    pub fn is_active(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends assignments, one a line, with descriptors.
    ///
    /// # Errors
    /// [`Error::Memory`] from sendmsg.
    fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) -> Result<()> {
        match &self.socket {
            Some((socket, _)) => Ok(dmabuf::send_fds(socket.as_fd(), text.as_bytes(), fds)?),
            None => Ok(()),
        }
    }

    /// Says that the holder serves, and what it holds.
    ///
    /// # Errors
    /// [`Error::Memory`], as for all that follow.
    pub fn ready(&self, status: &str) -> Result<()> {
        self.send(&format!("READY=1\nSTATUS={status}"), &[])
    }

    /// Says what the holder holds.
    ///
    /// # Errors
    /// See [`Notify::ready`].
    pub fn status(&self, status: &str) -> Result<()> {
        self.send(&format!("STATUS={status}"), &[])
    }

    /// Says that the holder ends.
    ///
    /// # Errors
    /// See [`Notify::ready`].
    pub fn stopping(&self) -> Result<()> {
        self.send("STOPPING=1", &[])
    }

    /// Stores an image's descriptors, the one of its signature first, and before them, in a file of its own, who may
    /// attach.
    ///
    /// # Errors
    /// See [`Notify::ready`].
    pub fn store_all(
        &self,
        name: &str,
        generation: u64,
        access: &Access,
        roles: &[Role],
        fds: &[OwnedFd],
    ) -> Result<()> {
        for (role, fd) in roles.iter().zip(fds).rev() {
            match role {
                Role::Signature => {
                    let stored = assignment("FDSTORE", StoredKind::Signature, name, generation);
                    self.send(&stored, &[fd.as_fd()])?;
                }
                _ => self.store(name, generation, access, fd.as_fd())?,
            }
        }
        Ok(())
    }

    fn store(&self, name: &str, generation: u64, access: &Access, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.is_active() {
            return Ok(());
        }
        let mut kind = StoredKind::Open;
        if access.is_stored() {
            kind = StoredKind::Restricted;
            self.store_access(name, generation, access)?;
        }
        self.send(&assignment("FDSTORE", kind, name, generation), &[fd])
    }

    fn store_access(&self, name: &str, generation: u64, access: &Access) -> Result<()> {
        self.store_text(name, generation, StoredKind::Access, &access.to_text())
    }

    fn store_text(&self, name: &str, generation: u64, kind: StoredKind, text: &str) -> Result<()> {
        let list = memfd_create("daxfs-access", MFdFlags::MFD_CLOEXEC);
        let mut list = File::from(list.map_err(|e| Error::system("memfd_create", e))?);
        let written = list.write_all(text.as_bytes());
        written.map_err(|e| Error::system("write the list of users", e))?;
        self.send(&assignment("FDSTORE", kind, name, generation), &[list.as_fd()])
    }

    /// Stores who may attach anew. If the holder dies in between, or the list cannot be stored, the next holder has the
    /// image for nobody but its own user. One that was stored for everybody is marked before: from then on that its
    /// list is missing does not mean everybody.
    ///
    /// # Errors
    /// See [`Notify::ready`].
    pub fn change_access(&self, name: &str, generation: u64, old: &Access, new: &Access) -> Result<()> {
        if !self.is_active() || !(old.is_stored() || new.is_stored()) {
            return Ok(());
        }
        if !old.is_stored() {
            self.store_text(name, generation, StoredKind::Listed, "")?;
        }
        crash_point("access-marked");
        self.send(&assignment("FDSTOREREMOVE", StoredKind::Access, name, generation), &[])?;
        crash_point("access-removed");
        self.store_access(name, generation, new)
    }

    /// Who may attach to an image that was set aside.
    pub fn access_aside(&self, name: &str) -> Option<&Access> {
        let of_name = self.aside.iter().filter(|image| image.name == name);
        of_name.max_by_key(|image| image.generation).map(|image| &image.access)
    }

    /// Stores the descriptor of a copy on a device, whose image is stored already. One of the same name is to be
    /// removed before ([`Notify::forget_copy`]).
    ///
    /// # Errors
    /// See [`Notify::ready`].
    pub fn store_copy(
        &self,
        name: &str,
        generation: u64,
        copy: &DeviceCopy,
        fd: BorrowedFd<'_>,
    ) -> Result<()> {
        let stored = StoredCopy { copy: *copy, generation, name };
        // systemd drops a descriptor that polls as hung up, and what a driver's descriptors answer is the driver's.
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={stored}"), &[fd])
    }

    /// Removes a copy from the store; that the supervisor cannot be told is only logged.
    pub fn forget_copy(&self, name: &str, generation: u64, copy: &DeviceCopy) {
        self.forget_stored(&StoredCopy { copy: *copy, generation, name }.to_string());
    }

    /// Removes what is stored under a name; that the supervisor cannot be told is only logged.
    pub fn forget_stored(&self, stored: &str) {
        if let Err(error) = self.send(&format!("FDSTOREREMOVE=1\nFDNAME={stored}"), &[]) {
            tracing::warn!(stored, %error, "the supervisor keeps a descriptor");
        }
    }

    /// Removes an image, and what belongs to it, from the store; that the supervisor cannot be told is only logged.
    pub fn forget(&self, name: &str, generation: u64, copies: &[DeviceCopy]) {
        copies.iter().for_each(|copy| self.forget_copy(name, generation, copy));
        if let Err(error) = self.remove(name, generation) {
            tracing::warn!(name, generation, %error, "the supervisor keeps the descriptor");
        }
    }

    fn remove(&self, name: &str, generation: u64) -> Result<()> {
        // The list of users last: an image that is still there must not be without it.
        let first = [StoredKind::Open, StoredKind::Restricted, StoredKind::Signature];
        for kind in first.into_iter().chain([StoredKind::Access, StoredKind::Listed]) {
            self.send(&assignment("FDSTOREREMOVE", kind, name, generation), &[])?;
        }
        Ok(())
    }
}

fn assignment(verb: &str, kind: StoredKind, name: &str, generation: u64) -> String {
    format!("{verb}=1\nFDNAME={}", Stored { kind, generation, name })
}

/// The lists of users among what was passed, by generation and name of their images. A list that is missing or cannot be
/// read, of an image that had one, stands for nobody.
pub fn stored_access(passed: &[Passed]) -> HashMap<(u64, String), Access> {
    let mut lists = HashMap::new();
    let mut marked = Vec::new();
    for passed in passed {
        let Some(Stored { kind, generation, name }) = Stored::parse(&passed.name) else { continue };
        let key = (generation, name.to_owned());
        match kind {
            StoredKind::Access => {}
            StoredKind::Listed => {
                marked.push(key);
                continue;
            }
            StoredKind::Open | StoredKind::Restricted | StoredKind::Signature => continue,
        }
        // The descriptor's own position is at the end, where it was written.
        let list = std::fs::read_to_string(format!("/proc/self/fd/{}", passed.fd.as_raw_fd()));
        let access = list.ok().as_deref().and_then(Access::from_text).unwrap_or_else(|| {
            tracing::error!(name, generation, "the stored list of users is not readable; nobody is on it");
            Access::nobody()
        });
        lists.insert(key, access);
    }
    for key in marked {
        let access = lists.remove(&key).unwrap_or_else(Access::nobody);
        lists.insert(key, access.marked());
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listens_without_a_supervisor() {
        let notify = Notify { socket: None, max: Some(0), aside: Vec::new() };
        assert!(!notify.is_active());
        notify.ready("0 images").unwrap();
        notify.check_room(std::iter::empty(), (&Access::default(), 1)).unwrap();
    }
}
