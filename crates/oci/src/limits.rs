//! What an image may cost, however it was made: bounds on what comes out of it, and the count of it while it is read.
//!
//! What comes out is bounded by what goes in: a file of a few bytes that stands for terabytes is refused, be it by
//! compression or by holes. Memory is bounded by the number of names and their bytes, and so by the members of the
//! archives, of which each costs a header.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bounds on what an image or archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members of all archives together; each takes at most about 400 bytes of memory, besides its name.
    pub members: u64,
    /// Bytes of the archives, decompressed, and of the files in them.
    pub bytes: u64,
    /// How many times as large as what is read the archives and the files in them may be. What stays below
    /// [`Limits::FREE`] is not counted.
    pub ratio: u64,
}

impl Limits {
    /// Bytes that come out of any input, whatever its size.
    pub const FREE: u64 = 64 << 20;
    /// Most layers of an image. Container engines have 127.
    pub const LAYERS: usize = 512;
    /// Bytes of an index, a manifest, or the configuration of an image. Registries take 4 MiB.
    pub const DOCUMENT: u64 = 4 << 20;
    /// Bytes of a path in the tree, as the kernel resolves them, without the NUL.
    pub const PATH: usize = 4095;
    /// Bytes of a name.
    pub const NAME: usize = 255;
    /// Symbolic links that are followed on the way to one member, as the kernel does.
    pub const LINKS: u32 = 40;
    /// Bytes of the extension headers of one member: names, records and attributes.
    pub const EXTENSION: u64 = 1 << 20;
    /// Bytes of the paths of all names together.
    pub const PATHS: u64 = 1 << 30;
    /// Names that are looked up on ways through symbolic links, together.
    pub const LINK_STEPS: u64 = 1 << 26;
    /// Bytes of extended attributes of all members together.
    pub const ATTRIBUTES: u64 = 256 << 20;
    /// Stretches of sparse files, together.
    pub const STRETCHES: u64 = 16 << 20;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { members: 8 << 20, bytes: 1 << 40, ratio: 200 }
    }
}

/// How to allow more, for messages.
pub(crate) const MORE: &str = " (--limit allows more)";
/// There is no such way.
pub(crate) const FIXED: &str = "";

/// What was taken so far of [`Limits`], by all threads.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    members: AtomicU64,
    /// Bytes that were read, as they lie in files.
    read: AtomicU64,
    /// Bytes of archives.
    unpacked: AtomicU64,
    /// Bytes of files in them.
    contents: AtomicU64,
    attributes: AtomicU64,
    stretches: AtomicU64,
}

impl Budget {
    /// Nothing was taken yet.
    pub(crate) fn new(limits: Limits) -> Budget {
        let zero = || AtomicU64::new(0);
        Budget {
            limits,
            members: zero(),
            read: zero(),
            unpacked: zero(),
            contents: zero(),
            attributes: zero(),
            stretches: zero(),
        }
    }

    /// One more member of an archive.
    pub(crate) fn member(&self, place: &str) -> Result<()> {
        charge(&self.members, 1, self.limits.members, place, "members", MORE)
    }

    /// Bytes that were read from a file, before decompression.
    pub(crate) fn read(&self, bytes: u64) {
        add(&self.read, bytes);
    }

    /// Bytes of an archive, decompressed.
    pub(crate) fn unpacked(&self, bytes: u64, place: &str) -> Result<()> {
        let total = add(&self.unpacked, bytes);
        self.check(total, place, "bytes of archives")
    }

    /// Bytes of a file that a member stands for, holes included.
    pub(crate) fn contents(&self, bytes: u64, place: &str) -> Result<()> {
        let total = add(&self.contents, bytes);
        self.check(total, place, "bytes of files")
    }

    fn check(&self, total: u64, place: &str, what: &'static str) -> Result<()> {
        let by_ratio = self.read.load(Ordering::Relaxed).saturating_mul(self.limits.ratio);
        let bound = self.limits.bytes.min(by_ratio.max(Limits::FREE));
        within(total, bound, place, what, MORE)
    }

    /// Bytes of extended attributes.
    pub(crate) fn attributes(&self, bytes: u64, place: &str) -> Result<()> {
        let what = "bytes of extended attributes";
        charge(&self.attributes, bytes, Limits::ATTRIBUTES, place, what, FIXED)
    }

    /// Stretches of a sparse file.
    pub(crate) fn stretches(&self, count: u64, place: &str) -> Result<()> {
        charge(&self.stretches, count, Limits::STRETCHES, place, "stretches of sparse files", FIXED)
    }
}

fn add(counter: &AtomicU64, count: u64) -> u64 {
    let old =
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(old.saturating_add(count)));
    old.unwrap_or(u64::MAX).saturating_add(count)
}

fn charge(
    counter: &AtomicU64,
    count: u64,
    bound: u64,
    place: &str,
    what: &'static str,
    advice: &'static str,
) -> Result<()> {
    within(add(counter, count), bound, place, what, advice)
}

/// `got` must not be more than `bound`.
pub(crate) fn within(
    got: u64,
    bound: u64,
    place: &str,
    what: &'static str,
    advice: &'static str,
) -> Result<()> {
    if got <= bound {
        return Ok(());
    }
    Err(Error::Limit { place: place.to_owned(), what, got, bound, advice })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_bounded_by_what_goes_in() {
        let budget = Budget::new(Limits { members: 2, bytes: 1 << 30, ratio: 10 });
        budget.unpacked(Limits::FREE, "l").unwrap();
        assert!(matches!(budget.unpacked(1, "l"), Err(Error::Limit { bound: Limits::FREE, .. })));
        budget.read(Limits::FREE);
        budget.unpacked(9 * Limits::FREE - 1, "l").unwrap();
        assert!(matches!(budget.unpacked(1, "l"), Err(Error::Limit { .. })));
        budget.read(1 << 60);
        assert!(matches!(budget.contents(u64::MAX, "l"), Err(Error::Limit { bound: 0x4000_0000, .. })));
        assert!(matches!(budget.contents(1, "l"), Err(Error::Limit { got: u64::MAX, .. })));
        budget.member("l").unwrap();
        budget.member("l").unwrap();
        assert!(matches!(budget.member("l"), Err(Error::Limit { got: 3, bound: 2, .. })));
    }
}
