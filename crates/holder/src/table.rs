//! The images that are held, by name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use daxfs_protocol::message::{DeviceCopy, ImageInfo, Refusal};

use crate::access::Access;
use crate::limits::Reservation;

/// An image that is ready to be held; name and generation come with its place in the table.
#[derive(Debug)]
pub struct Ready {
    /// What is told to clients; `name` and `generation` are filled in by the table.
    pub info: ImageInfo,
    /// One descriptor for each role.
    pub fds: Vec<OwnedFd>,
    /// Who may attach; everybody who may connect where nothing is said.
    pub access: Option<Access>,
    /// Its share of the budget.
    pub reservation: Reservation,
}

/// A held image. When the last reference goes, so do its descriptors.
#[derive(Debug)]
pub struct Held {
    /// What is told to clients.
    pub info: ImageInfo,
    /// One descriptor for each role, shared with replies that are on their way.
    pub fds: Arc<[OwnedFd]>,
    /// Who may attach.
    pub access: Access,
    /// Descriptors of its copies on devices, in the order of `info.copies`. Holding one needs no driver.
    pub copies: Vec<Arc<[OwnedFd]>>,
    /// Gives its share of the budget back when the image goes.
    _reservation: Reservation,
}

impl Held {
    /// Its copy that `wanted` would take the place of: what is told of it, and its descriptor.
    pub fn copy_like(&self, wanted: &DeviceCopy) -> Option<(DeviceCopy, &Arc<[OwnedFd]>)> {
        self.copies().find(|(copy, _)| copy.is_like(wanted))
    }

    /// All its copies on devices, with their descriptors.
    pub fn copies(&self) -> impl Iterator<Item = (DeviceCopy, &Arc<[OwnedFd]>)> {
        self.info.copies.iter().copied().zip(&self.copies)
    }

    /// Descriptors, its own and those of its copies.
    pub fn descriptors(&self) -> usize {
        self.fds.len() + self.copies.len()
    }

    /// Inode number of its memory; 0 when the system does not say.
    pub fn inode(&self) -> u64 {
        self.fds.first().and_then(|fd| nix::sys::stat::fstat(fd).ok()).map_or(0, |stat| stat.st_ino)
    }

    /// True when one of `fds` is of the same open file as one of this image.
    pub fn shares_open_file(&self, fds: &[OwnedFd]) -> bool {
        // What cannot be looked at is taken for the same.
        let same = |one: &OwnedFd, other: &OwnedFd| {
            dmabuf::same_open_file(one.as_fd(), other.as_fd()).unwrap_or(true)
        };
        self.fds.iter().any(|own| fds.iter().any(|fd| same(own, fd)))
    }
}

/// The images by name, and the generations that were handed out.
#[derive(Debug)]
pub struct Table {
    images: BTreeMap<String, Held>,
    next_generation: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { images: BTreeMap::new(), next_generation: 1 }
    }
}

impl Table {
    /// The image of that name.
    pub fn get(&self, name: &str) -> Option<&Held> {
        self.images.get(name)
    }

    /// Puts a copy beside an image, in the place of one of the same on the same device.
    pub fn keep(&mut self, name: &str, copy: DeviceCopy, fd: Arc<[OwnedFd]>) {
        let Some(held) = self.images.get_mut(name) else { return };
        match held.info.copies.iter().position(|other| other.is_like(&copy)) {
            Some(at) => (held.info.copies[at], held.copies[at]) = (copy, fd),
            None => {
                held.info.copies.push(copy);
                held.copies.push(fd);
            }
        }
    }

    /// Takes the copy like `copy` from an image.
    pub fn drop_copy(&mut self, name: &str, copy: &DeviceCopy) {
        let Some(held) = self.images.get_mut(name) else { return };
        if let Some(at) = held.info.copies.iter().position(|other| other.is_like(copy)) {
            held.info.copies.remove(at);
            held.copies.remove(at);
        }
    }

    /// Counts an attach to an image, unless it was replaced meanwhile.
    pub fn count_attach(&mut self, name: &str, generation: u64) {
        if let Some(held) = self.images.get_mut(name).filter(|held| held.info.generation == generation) {
            held.info.attaches += 1;
        }
    }

    /// All images in order of names.
    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.images.values()
    }

    /// Images whose names come after `name`.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Held> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.images.range::<str, _>((Excluded(name), Unbounded)).map(|(_, held)| held)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Descriptors of all images.
    pub fn descriptors(&self) -> usize {
        self.images.values().map(Held::descriptors).sum()
    }

    /// First generation that was not handed out: the one that the next image gets.
    pub fn next_generation(&self) -> u64 {
        self.next_generation
    }

    /// Goes on counting where another holder stopped.
    pub fn continue_at(&mut self, generation: u64) {
        self.next_generation = self.next_generation.max(generation);
    }

    /// Whether a load under this name may begin or end.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`].
    pub fn check_free(&self, name: &str, replace: bool) -> Result<(), Refusal> {
        if !replace && self.images.contains_key(name) { Err(Refusal::NameTaken) } else { Ok(()) }
    }

    /// Puts an image under a name, in one step, and returns the one that it replaces.
    pub fn put(&mut self, name: &str, mut ready: Ready) -> Option<Held> {
        name.clone_into(&mut ready.info.name);
        ready.info.generation = self.next_generation;
        self.adopt(ready)
    }

    /// Puts an image back under the name and generation that it had with another holder. Its copies follow one by one.
    pub fn adopt(&mut self, ready: Ready) -> Option<Held> {
        self.continue_at(ready.info.generation.saturating_add(1));
        let mut info = ready.info;
        info.copies = Vec::new();
        let held = Held {
            fds: ready.fds.into(),
            access: ready.access.unwrap_or_default(),
            copies: Vec::new(),
            _reservation: ready.reservation,
            info,
        };
        self.images.insert(held.info.name.clone(), held)
    }

    /// Says anew who may attach, and returns who might before.
    pub fn set_access(&mut self, name: &str, access: Access) -> Option<Access> {
        self.images.get_mut(name).map(|held| std::mem::replace(&mut held.access, access))
    }

    /// Takes an image out.
    pub fn remove(&mut self, name: &str) -> Option<Held> {
        self.images.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Budget;
    use daxfs_protocol::message::MemoryKind;

    fn ready(budget: &Budget) -> Ready {
        let info = ImageInfo::new("", MemoryKind::SealedMemfd, 10);
        Ready { info, fds: Vec::new(), access: None, reservation: budget.adopt(10) }
    }

    #[test]
    fn an_open_file_is_known_by_its_duplicate_and_memory_is_not() {
        let mut table = Table::default();
        let memfd = dmabuf::Memfd::create("held", 4096, dmabuf::HugePages::No).unwrap();
        let fds = vec![memfd.as_fd().try_clone_to_owned().unwrap()];
        table.put("a", Ready { fds, ..ready(&Budget::default()) });
        let held = table.get("a").unwrap();
        let duplicate = memfd.as_fd().try_clone_to_owned().unwrap();
        assert!(held.shares_open_file(&[duplicate]));
        let reopened = dmabuf::reopen(memfd.as_fd()).unwrap();
        let other = dmabuf::Memfd::create("held", 4096, dmabuf::HugePages::No).unwrap();
        assert!(!held.shares_open_file(&[reopened, other.into()]));
    }

    #[test]
    fn generations_are_never_reused() {
        let budget = Budget::default();
        let mut table = Table::default();
        assert!(table.put("b", ready(&budget)).is_none());
        assert!(table.put("a", ready(&budget)).is_none());
        assert_eq!(table.get("b").unwrap().info.generation, 1);
        assert_eq!(table.check_free("b", false), Err(Refusal::NameTaken));
        assert_eq!(table.check_free("b", true), Ok(()));
        let old = table.put("b", ready(&budget)).unwrap();
        assert_eq!((old.info.generation, table.get("b").unwrap().info.generation), (1, 3));
        assert_eq!(budget.taken(), 30);
        drop(old);
        table.remove("a");
        assert_eq!(budget.taken(), 10);
        let mut adopted = ready(&budget);
        adopted.info.name = "c".into();
        adopted.info.generation = 40;
        table.adopt(adopted);
        assert_eq!(table.next_generation(), 41);
        let names: Vec<_> = table.after("b").map(|held| held.info.name.as_str()).collect();
        assert_eq!(names, ["c"]);
    }
}
