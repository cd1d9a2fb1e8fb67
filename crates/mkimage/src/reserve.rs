//! Has the file system set the blocks of a new file aside before it is filled: in one step, side by side, and when
//! there are too few, before all the work.

use crate::block::SMALL_GAP;
use crate::packer::Plan;
use crate::target::Target;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};
use std::ops::Range;

impl Plan {
    /// Sets aside what `target`, a new file, will hold of the image. What stays a hole is left out.
    ///
    /// On ext4 only: setting each block aside when it is written takes a quarter of the time that writing takes there.
    /// XFS and btrfs do that by whole ranges of their own accord, and btrfs would not compress what was set aside.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when there is too little room.
    pub(crate) fn reserve(&self, target: &Target) -> Result<()> {
        if !fstatfs(&target.file).is_ok_and(|fs| fs.filesystem_type() == EXT4_SUPER_MAGIC) {
            return Ok(());
        }
        for range in self.filled() {
            let place = target.place(range.start);
            let offsets = (i64::try_from(place), i64::try_from(range.end - range.start));
            let (Ok(start), Ok(len)) = offsets else { return Err(Error::Overflow { what: "the image" }) };
            loop {
                match fallocate(&target.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, len) {
                    Err(Errno::EINTR) => {}
                    Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => {
                        return Err(Error::io("make room for", &target.path, errno));
                    }
                    // Files without extents, as ext3 has them: then it goes without.
                    Ok(()) | Err(_) => break,
                }
            }
        }
        Ok(())
    }

    /// What of the image is written, in order: files with the gaps between them that are filled with zeros.
    fn filled(&self) -> Vec<Range<u64>> {
        let layout = &self.layout;
        let mut filled: Vec<Range<u64>> = Vec::new();
        // The metadata of a split image lies elsewhere, and is short.
        if layout.backing.is_none() {
            filled.push(0..layout.metadata_end);
        }
        let files = layout.index_file().into_iter().chain(layout.files.iter().copied());
        for extent in files.map(|ino| layout.extent(ino)) {
            match filled.last_mut() {
                Some(last) if extent.offset.saturating_sub(last.end) <= SMALL_GAP => last.end = extent.end(),
                _ => filled.push(extent.offset..extent.end()),
            }
        }
        filled.retain(|range| !range.is_empty());
        filled
    }
}

#[cfg(test)]
mod tests {
    use crate::Packer;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_written_is_set_aside_and_holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 3 << 20), ("b", 2 << 20), ("c", 100)] {
            fs::write(dir.path().join(name), vec![7; len]).unwrap();
        }
        let plan = Packer::new().input(dir.path()).plan().unwrap();
        let filled = plan.filled();
        let layout = &plan.layout;
        // In the image c comes first, then a and b, each on a multiple of 2 MiB.
        let [start, a, b] = &filled[..] else { panic!("{filled:?}") };
        assert_eq!((start.start, a.start % (2 << 20), a.end - a.start), (0, 0, 3 << 20));
        assert_eq!((b.start - a.start, b.end - b.start), (4 << 20, 2 << 20));
        let all = layout.files.iter().copied().chain(layout.index_file()).map(|ino| layout.extent(ino));
        for extent in all {
            assert!(filled.iter().any(|range| range.start <= extent.offset && extent.end() <= range.end));
        }
        let split = Packer::new().input(dir.path()).split(Some(dir.path().join("backing"))).plan().unwrap();
        let backing = split.layout.backing.clone().unwrap();
        assert!(split.filled().iter().all(|range| backing.start <= range.start && range.end <= backing.end));

        let target = tempfile::tempdir().unwrap();
        let path = target.path().join("image");
        plan.write_file(&path).unwrap();
        let image = fs::metadata(&path).unwrap();
        let stored = image.blocks() * 512;
        assert!(stored < image.len(), "{stored} of {} bytes", image.len());
    }
}
