//! The memory that an image is fetched into, and what of it is there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daxfs::Region;
use dmabuf::{HugePages, Mapping, Memfd, Seals};

use crate::sink::Sink;
use crate::{Error, Result};

/// A memfd of an image's length. What was not written is zero, and takes no memory.
#[derive(Debug)]
pub(crate) struct Target {
    memfd: Memfd,
    sink: Arc<Sink>,
    /// What is there, in ascending order; neighbours are joined.
    there: Mutex<Vec<Range<u64>>>,
}

impl Target {
    /// Memory for `len` bytes.
    pub(crate) fn new(len: u64, pages: HugePages) -> Result<Self> {
        let memfd = Memfd::create("daxfs-remote", len, pages)?;
        let fd =
            memfd.as_fd().try_clone_to_owned().map_err(|error| Error::system("duplicate a memfd", error))?;
        Ok(Self { memfd, sink: Arc::new(Sink::new(File::from(fd), len)), there: Mutex::default() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.sink.len()
    }

    /// What it is written through.
    pub(crate) fn sink(&self) -> &Arc<Sink> {
        &self.sink
    }

    /// Notes that ranges are there.
    pub(crate) fn note(&self, ranges: impl IntoIterator<Item = Range<u64>>) {
        let mut there = self.there();
        there.extend(ranges);
        there.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(there.len());
        for range in there.drain(..).filter(|range| !range.is_empty()) {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        *there = joined;
    }

    fn there(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are there.
    pub(crate) fn held(&self) -> u64 {
        self.there().iter().map(|range| range.end - range.start).sum()
    }

    /// What is missing of a range, in ascending order.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        for there in self.there().iter() {
            if there.end <= at || there.start >= range.end {
                continue;
            }
            if there.start > at {
                missing.push(at..there.start);
            }
            at = at.max(there.end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Makes the pages of all of it, large ones where the memory has them. It is quicker than page by page.
    pub(crate) fn populate(&self) -> Result<()> {
        let len = usize::try_from(self.len()).map_err(|_| {
            Error::system("map the image", io::Error::other("it does not fit the address space"))
        })?;
        let mapping = Mapping::read_write(self.memfd.as_fd(), 0, len)?;
        dmabuf::allocate_huge(&mapping, 0..self.len())?;
        Ok(())
    }

    /// The memory as it is now, for the reader. Only this process has it, and writes nothing that was noted.
    pub(crate) fn region(&self) -> Result<Region> {
        let fd = self.memfd.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Error::system("duplicate a memfd", error))?;
        Region::from_fd(fd)
            .map_err(|error| Error::Image { place: "the memory".into(), source: Box::new(error) })
    }

    /// Seals the memory against any change.
    pub(crate) fn seal(self) -> Result<OwnedFd> {
        self.memfd.seal(Seals::IMMUTABLE | Seals::SEAL)?;
        drop(self.sink);
        Ok(self.memfd.into())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges of bytes")]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_what_is_missing_is_found() {
        let target = Target::new(100, HugePages::No).unwrap();
        assert_eq!(target.missing(0..100), [0..100]);
        target.note([40..50, 0..10]);
        target.note([10..20, 45..60, 70..70]);
        assert_eq!(*target.there(), [0..20, 40..60]);
        assert_eq!(target.held(), 40);
        assert_eq!(target.missing(0..100), [20..40, 60..100]);
        assert_eq!(target.missing(5..45), [20..40]);
        assert_eq!(target.missing(41..59), []);
        assert_eq!(target.missing(60..61), [60..61]);
    }

    #[test]
    fn nothing_is_written_behind_the_end() {
        let target = Target::new(4096, HugePages::No).unwrap();
        target.sink().write(4000, &[1; 96]).unwrap();
        assert!(matches!(target.sink().write(4001, &[1; 96]), Err(Error::System { .. })));
        assert!(target.sink().write(u64::MAX, &[1]).is_err());
        assert_eq!(target.seal().map(|fd| dmabuf::describe(fd.as_fd()).unwrap().len).unwrap(), 4096);
    }
}
