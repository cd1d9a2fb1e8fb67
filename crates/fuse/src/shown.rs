//! An image as a mount shows it: its entries by number, and how long the kernel may believe what it was told.
//!
//! The numbers that the kernel knows inodes by are those of the image, and programs see them as such. When another image
//! takes the place of the first one, its numbers get a serial in front: what the kernel still knows of the one before it
//! is then recognised, and answered with ESTALE, never with a file of another image.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use daxfs::{Entry, FdKind, Image, Provenance, Region};
use fuser::FileAttr;

use crate::attributes::{self, Owners};
use crate::error::Result;

/// Number of the root, for FUSE as for DAXFS.
pub const ROOT: u64 = 1;
/// Where the serial begins in a number. Numbers of an image are smaller: keys of an overlay have 43 bits of them.
const SERIAL: u32 = 48;
/// What an inode costs in the table, a part of which is empty.
const ENTRY_COST: u64 = 48;

/// What the kernel may keep of what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Names, attributes and pages for good: nobody can write the memory.
    Forever,
    /// All of that until the file changes, which is looked for each second: a regular file, of which the system says when
    /// it was written.
    Watched,
    /// Names and attributes for a second, and pages until a file is opened again: memory that others write without a
    /// trace.
    Brief,
}

impl Caching {
    /// What is right for an image.
    pub fn of(image: &Image) -> Self {
        [Some(image.region()), image.backing()].into_iter().flatten().map(Self::of_region).fold(
            Self::Forever,
            |all, one| match (all, one) {
                (Self::Brief, _) | (_, Self::Brief) => Self::Brief,
                (Self::Watched, _) | (_, Self::Watched) => Self::Watched,
                _ => Self::Forever,
            },
        )
    }

    fn of_region(region: &Region) -> Self {
        match (region.provenance(), region.info().map(|info| &info.kind)) {
            (Provenance::Sealed | Provenance::Trusted, _) => Self::Forever,
            (_, Some(FdKind::File)) => Self::Watched,
            _ => Self::Brief,
        }
    }

    /// How long names and attributes hold.
    pub(crate) fn time(self) -> Duration {
        match self {
            // What is watched is dropped when it changes.
            Self::Forever | Self::Watched => Duration::from_secs(u32::MAX.into()),
            Self::Brief => Duration::from_secs(1),
        }
    }
}

/// When a file was written, as far as the system tells.
type Written = Vec<Option<(u64, SystemTime)>>;

/// An image that is shown.
pub struct Shown {
    image: Image,
    entries: HashMap<u64, Entry>,
    serial: u64,
    caching: Caching,
    owners: Owners,
    written: Written,
}

impl Shown {
    /// The image as the `serial`th that the mount shows.
    ///
    /// # Errors
    /// [`daxfs::Error::MetadataLimit`] when the table does not fit the limit that the image was opened with.
    pub fn new(image: Image, serial: u64, owners: Owners) -> Result<Self> {
        image.charge("inodes of the mount", ENTRY_COST.saturating_mul(image.len() as u64))?;
        let written = written(&image);
        let mut entries = HashMap::with_capacity(image.len());
        for entry in image.walk() {
            let ino = entry.metadata().ino;
            // Another name of the same file.
            entries.entry(ino).or_insert(entry);
        }
        let caching = Caching::of(&image);
        // Sixteen bits of a number are left for it.
        Ok(Self { image, entries, serial: serial & 0xffff, caching, owners, written })
    }

    pub fn image(&self) -> &Image {
        &self.image
    }

    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Inodes that it has.
    pub fn inodes(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Numbers of all its inodes.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.entries.keys().filter_map(|ino| self.id(*ino))
    }

    /// The number under which the kernel knows an inode; `None` for one that it cannot be told of.
    pub fn id(&self, ino: u64) -> Option<u64> {
        match ino {
            ROOT => Some(ROOT),
            0 => None,
            _ if ino >> SERIAL != 0 => None,
            _ => Some(ino | self.serial << SERIAL),
        }
    }

    /// The entry of a number; `None` for one of an image that is not shown any more.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        let ino = if id == ROOT {
            ROOT
        } else {
            if id >> SERIAL != self.serial {
                return None;
            }
            id & ((1 << SERIAL) - 1)
        };
        self.entries.get(&ino)
    }

    /// What the kernel is told of an entry; `None` for what it cannot be told of.
    pub fn attributes(&self, entry: &Entry) -> Option<FileAttr> {
        let metadata = entry.metadata();
        let holes = entry.file().map_or(0, |file| attributes::holes(&file));
        attributes::attributes(self.id(metadata.ino)?, metadata, holes, self.owners)
    }

    /// Whether the memory has another image by now, or, with `follow`, the name has.
    pub fn has_changed(&self, follow: bool) -> bool {
        // What cannot be asked any more is not there any more.
        let is_moved = || !self.image.is_in_place().unwrap_or(false) || written(&self.image) != self.written;
        // A holder that cannot be asked has not said that there is another one.
        let is_left = || follow && !self.image.is_current().unwrap_or(true);
        (self.caching != Caching::Forever && is_moved()) || is_left()
    }

    /// What is there now, as the next one that is shown.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn next(&self, follow: bool) -> Result<Self> {
        let same_memory = self.image.region().is_current().unwrap_or(false);
        // A refresh maps the memory again, which may have grown.
        let next = if follow || same_memory { self.image.refresh()? } else { None };
        let next = match next {
            Some(next) => next,
            None => self.image.options().clone().open_region(self.image.region().clone())?,
        };
        Self::new(next, self.serial.wrapping_add(1), self.owners)
    }
}

/// When the files were written that the image lies in; nothing for memory that is none.
fn written(image: &Image) -> Written {
    let regions = [Some(image.region()), image.backing()].into_iter().flatten();
    let files = regions.filter(|region| Caching::of_region(region) == Caching::Watched);
    let stated = files.map(|region| {
        let file = std::fs::File::from(region.fd()?.try_clone_to_owned().ok()?);
        let metadata = file.metadata().ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    });
    stated.collect()
}

#[cfg(test)]
#[path = "shown_tests.rs"]
mod tests;
