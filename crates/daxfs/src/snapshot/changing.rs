//! Reading an overlay while a kernel writes to it: which names count, and when a copy is thrown away.
//!
//! Kernels take no lock. To make a name, one takes an inode number and room in the pool, writes the inode's entry and
//! enters it in a bucket (first the key, then the value), does the same with the name's entry, and puts that in front
//! of its directory's list. A rename makes the new name first and marks the old one as deleted then. Metadata and marks
//! change in place.
//!
//! So the tree is read, and then it is looked whether something changed meanwhile. The first time nothing may have.
//! After that a writer is known to be there, and the tree is read as of a [`Moment`]: the pool is filled from the front,
//! so what lies beyond its end at that moment was made later, and names there do not count. All names before it have
//! their inodes. What [`Watch::check`] then refuses is what would show no state that was ever there: an inode that had
//! a name all the time, and has none in the tree.
//!
//! An error is believed when nothing has changed, twice.

use std::time::Duration;

use hashbrown::HashMap;

use super::base::Base;
use super::build::build;
use super::overlay::{Merged, Overlay};
use super::{Inode, Reader, Tree};
use crate::FileType;
use crate::error::{Error, Result};
use crate::format::v8;
use crate::superblock::Superblock;

/// How often an overlay is read that changes each time.
const ATTEMPTS: u32 = 40;
/// Longest pause between two of them.
const PAUSE: Duration = Duration::from_millis(8);
/// Most inodes whose entries may be replaced in one attempt: finding one may take a look at every bucket.
const REPLACED: u32 = 64;
/// So often a state that looks half-made is waited for, before it is taken for what the image holds.
const DOUBTS: u32 = 3;

/// How far kernels had come when the overlay was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// End of the used part of the pool.
    pub pool_alloc: u64,
    /// First inode number that is not taken.
    pub next_ino: u64,
}

/// A directory entry as it was read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    deleted: bool,
    child: u64,
    /// Whether it was met in its directory's list, not only by its key.
    listed: bool,
}

/// By numbers that the image chooses.
type Numbers<T> = HashMap<u64, T, foldhash::quality::RandomState>;

/// What the walk over an overlay has seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Names from then on do not count; none: all do.
    since: Option<Moment>,
    /// By offset in the pool.
    seen: Numbers<Seen>,
    /// First entry of each directory's list, by the directory's number.
    lists: Numbers<u64>,
    /// Inodes of the names that did not count.
    skipped: Vec<u64>,
    /// Deleted names that were met when all had been read, of inodes that the tree does not have.
    gone: Vec<u64>,
}

/// How often deleted names are looked at, and how often when there are more than so many.
const LOOKS: usize = 24;
const LOOKS_AT_MANY: usize = 4;
const MANY: usize = 1000;

/// Bytes of memory that a seen entry takes, about.
const SEEN_SIZE: u64 = 48;

impl Watch {
    fn new(since: Option<Moment>) -> Self {
        Self { since, ..Self::default() }
    }

    /// Whether an entry at this place, or for this inode, was there at the moment that counts.
    fn counts(&self, offset: u64, child: u64, deleted: bool) -> bool {
        self.since.is_none_or(|moment| offset < moment.pool_alloc && (deleted || child < moment.next_ino))
    }

    /// Notes the beginning of a directory's list.
    pub fn list(&mut self, reader: &mut Reader<'_>, directory: u64, first: u64) -> Result<()> {
        if reader.is_live() {
            reader.charge(|| format!("overlay list of directory {directory}"), SEEN_SIZE)?;
            self.lists.insert(directory, first);
        }
        Ok(())
    }

    /// Notes an entry and says whether it counts.
    pub fn entry(
        &mut self,
        reader: &mut Reader<'_>,
        offset: u64,
        entry: &v8::OverlayDirent,
        listed: bool,
    ) -> Result<bool> {
        let deleted = is_deleted(entry.flags.get());
        let child = entry.child_ino.get();
        let counts = self.counts(offset, child, deleted);
        if reader.is_live() {
            reader.charge(|| format!("overlay directory entry at pool {offset:#x}"), SEEN_SIZE)?;
            // A deleted name that is younger may come to life again.
            if counts || deleted {
                self.seen.entry(offset).and_modify(|seen| seen.listed |= listed).or_insert(Seen {
                    deleted,
                    child,
                    listed,
                });
            } else {
                self.skipped.push(child);
            }
        }
        Ok(counts)
    }

    /// True when a name hides one of the base image and is in no list: a kernel is about to put it there.
    fn is_half_made(&self) -> bool {
        self.seen.values().any(|seen| !seen.listed && !seen.deleted)
    }

    /// Whether all that was seen is there unchanged.
    fn is_same(&self, reader: &Reader<'_>, overlay: &Overlay) -> Result<bool> {
        for (&directory, &first) in &self.lists {
            if overlay.list_now(reader, directory)? != first {
                return Ok(false);
            }
        }
        for (&offset, seen) in &self.seen {
            let (flags, child) = overlay.dirent_now(reader, offset)?;
            if is_deleted(flags) != seen.deleted || child != seen.child {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the tree is one that was there, though names came and went while it was read. `now` is the overlay of
    /// after that, and `has` says which inodes the tree has.
    fn check(
        &mut self,
        reader: &Reader<'_>,
        now: &Overlay,
        inodes: &[Inode],
        has: &dyn Fn(u64) -> bool,
    ) -> Result<bool> {
        let Some(moment) = self.since else { return Ok(false) };
        // An inode of before that lost its old name while the new one did not count.
        let is_lost = |child: u64| child < moment.next_ino && !has(child);
        if self.skipped.iter().any(|&child| is_lost(child)) {
            return Ok(false);
        }
        for (&offset, seen) in &self.seen {
            let (flags, child) = now.dirent_now(reader, offset)?;
            if seen.deleted && !is_deleted(flags) && is_lost(child) {
                return Ok(false);
            }
        }
        // Each entry is in one list.
        let mut steps = now.entries_at_most();
        let directories = inodes.iter().filter(|inode| inode.metadata.file_type() == FileType::Directory);
        for ino in directories.map(|inode| inode.metadata.ino) {
            let before = self.lists.get(&ino).copied().unwrap_or(v8::NONE);
            let mut next = now.list_now(reader, ino)?;
            while next != before && next != v8::NONE {
                let (flags, child) = now.dirent_now(reader, next)?;
                if is_deleted(flags) && is_lost(child) {
                    self.gone.push(next);
                }
                // Before the moment it was not in the list yet: nothing tells what else was under way.
                if !self.seen.contains_key(&next)
                    && !is_deleted(flags)
                    && (next < moment.pool_alloc || is_lost(child))
                {
                    return Ok(false);
                }
                next = now.dir_next_now(reader, next)?;
                let Some(left) = steps.checked_sub(1) else { return Ok(false) };
                steps = left;
            }
        }
        Ok(true)
    }
}

impl Watch {
    /// Whether what has no name in the tree, and had one, stays without. A file that is renamed all the time between
    /// names that exist already has none of them when they are looked at one after the other at the wrong moments;
    /// nothing else changes meanwhile. So they are looked at often: each time one of them is likely to be found alive.
    fn stays_gone(&self, reader: &Reader<'_>, overlay: &Overlay, has: &dyn Fn(u64) -> bool) -> Result<bool> {
        let dead = self.seen.iter().filter(|(_, seen)| seen.deleted && (seen.child == 0 || !has(seen.child)));
        let gone: Vec<u64> = dead.map(|(&offset, _)| offset).chain(self.gone.iter().copied()).collect();
        let looks = if gone.len() > MANY { LOOKS_AT_MANY } else { LOOKS };
        for look in 0..looks {
            let (behind, front) =
                gone.split_at(gone.len().saturating_mul(look).checked_div(looks).unwrap_or(0));
            for &offset in front.iter().chain(behind) {
                if !is_deleted(overlay.dirent_now(reader, offset)?.0) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn is_deleted(flags: u32) -> bool {
    flags & super::overlay::TOMBSTONE != 0
}

/// What one attempt came to.
enum Attempt {
    Done(Tree, u64),
    /// The overlay is empty.
    Nothing,
    /// Something was written meanwhile.
    Changed,
    /// As [`Attempt::Changed`] may look, too, though nothing was seen to change.
    Doubtful(Option<Error>),
}

/// The tree of base image and overlay, and how many buckets are used; `None` when none is.
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    superblock: &Superblock,
    base: &mut Base,
) -> Result<Option<(Tree, u64)>> {
    let charged = reader.charged();
    let (mut writer_seen, mut doubts) = (false, 0);
    for attempt in 1..=ATTEMPTS {
        reader.forget(charged);
        match try_once(reader, superblock, base, writer_seen, doubts < DOUBTS)? {
            Attempt::Done(tree, entries) => return Ok(Some((tree, entries))),
            Attempt::Nothing => return Ok(None),
            Attempt::Changed => writer_seen = true,
            Attempt::Doubtful(Some(error)) if doubts > 0 => return Err(error),
            Attempt::Doubtful(_) => doubts = u32::saturating_add(doubts, 1),
        }
        std::thread::sleep(Duration::from_millis(u64::from(attempt)).min(PAUSE));
    }
    Err(Error::Changing { attempts: ATTEMPTS })
}

fn try_once(
    reader: &mut Reader<'_>,
    superblock: &Superblock,
    base: &mut Base,
    writer_seen: bool,
    may_doubt: bool,
) -> Result<Attempt> {
    let overlay = Overlay::read(reader, superblock)?;
    let entries = overlay.entries();
    if entries == 0 {
        return Ok(Attempt::Nothing);
    }
    let since = writer_seen.then_some(overlay.moment());
    let mut merged = Merged::new(overlay, base, superblock, Watch::new(since));
    let built = build(reader, &mut merged, superblock, false);
    if !reader.is_live() {
        return built.map(|tree| Attempt::Done(tree, entries));
    }
    match built {
        Ok(_) if may_doubt && merged.watch.is_half_made() => {
            let same = merged.is_same(reader)?;
            Ok(if same { Attempt::Doubtful(None) } else { Attempt::Changed })
        }
        Ok(tree) => Ok(Attempt::Done(tree, entries)),
        Err(Error::Changing { .. }) => Ok(Attempt::Changed),
        Err(error @ (Error::MetadataLimit { .. } | Error::Memory(_))) => Err(error),
        Err(error) => Ok(match merged.is_same(reader) {
            Ok(true) => Attempt::Doubtful(Some(error)),
            _ => Attempt::Changed,
        }),
    }
}

impl Merged<'_> {
    /// Whether nothing of the overlay changed since it was read.
    fn is_same(&self, reader: &Reader<'_>) -> Result<bool> {
        Ok(self.overlay.is_same(reader)? && self.watch.is_same(reader, &self.overlay)?)
    }

    /// Called when all names are read: takes the buckets anew if they have changed, so that each file has the pages
    /// that it had when its size was read.
    ///
    /// # Errors
    /// [`Error::Changing`] when the names that were read belong to no one state.
    pub(super) fn catch_up(
        &mut self,
        reader: &mut Reader<'_>,
        inodes: &mut [Inode],
        has: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let changing = Error::Changing { attempts: 1 };
        if self.is_same(reader)? {
            return match self.watch.stays_gone(reader, &self.overlay, has)? {
                true => Ok(()),
                false => Err(changing),
            };
        }
        if self.watch.since.is_none() {
            return Err(changing);
        }
        let now = Overlay::read(reader, self.superblock)?;
        if !self.watch.check(reader, &now, inodes, has)? || !self.watch.stays_gone(reader, &now, has)? {
            return Err(changing);
        }
        let mut replaced = 0_u32;
        for inode in inodes.iter_mut() {
            let before = self.overlay.inode_place(inode.metadata.ino);
            if before.is_none() || before == now.inode_place(inode.metadata.ino) {
                continue;
            }
            replaced = u32::saturating_add(replaced, 1);
            if replaced > REPLACED {
                return Err(changing);
            }
            // Its entry was replaced, and the old one may be another inode's by now.
            match now.inode_now(reader, inode.metadata.ino)? {
                Some(found) if found.file_type() == inode.metadata.file_type() => {
                    // Pages are known for what is in both.
                    let size = found.size.min(inode.metadata.size);
                    inode.metadata = crate::Metadata { size, ..found };
                }
                _ => return Err(changing),
            }
        }
        self.overlay = now;
        Ok(())
    }
}
