//! Reading a file around the page cache, where it is not in there anyway: the disk writes into the caller's memory, no
//! processor copies, and what others have in the cache stays there.

#![allow(unsafe_code, reason = "mincore(2) and preadv2(2), which tell what is in the page cache")]

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, AtFlags, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{AccessFlags, faccessat};

use crate::page::page_size;
use crate::view::SharedBytes;

/// What offsets, lengths and addresses have to be multiples of: enough for every disk in use.
const BLOCK: usize = 4096;
/// Places of a range that are asked for in the cache: to ask for every page takes the kernel a seventh of the time of
/// copying it. Where the disk may bring a page before the answer is given, more than one has to be.
const PROBES: u64 = 4;

/// A regular file, opened once more with `O_DIRECT`.
#[derive(Debug)]
pub struct DirectFile {
    /// For the page cache, without reading ahead.
    cached: File,
    direct: File,
    /// Where the cache is asked: elsewhere each time, since asking may leave a page there.
    random: RandomState,
    /// Whether mincore(2) tells this process what is in the cache: to others everything seems to be.
    is_told: bool,
    /// Set when the file system refused a read.
    is_refused: AtomicBool,
}

impl DirectFile {
    /// `None` where the file cannot be opened so: the file system has no direct reads, the file may not be opened again
    /// by its path in `/proc/self/fd`, or there is no `/proc`.
    #[must_use]
    pub fn open(fd: BorrowedFd<'_>) -> Option<DirectFile> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&path).ok();
        let (cached, direct) = (open(0)?, open(libc::O_DIRECT)?);
        posix_fadvise(&cached, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).ok()?;
        let is_ours = cached.metadata().is_ok_and(|file| file.uid() == nix::unistd::geteuid().as_raw());
        let may_write = faccessat(AT_FDCWD, path.as_str(), AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok();
        let is_told = is_ours || may_write;
        let is_refused = AtomicBool::new(false);
        Some(DirectFile { cached, direct, random: RandomState::new(), is_told, is_refused })
    }

    /// Fills the beginning of `target` with the bytes of the file from `offset` on that `mapped` maps, if most of them
    /// are not in the page cache. False when it was not done, and `target` holds anything: read the file otherwise,
    /// which also says what is wrong with it. That is so where the kernel does not tell what is in the cache (tmpfs is
    /// nothing but cache), for an offset or address that is no multiple of 4096, and where the read fails.
    ///
    /// `target` needs room for the bytes rounded up to 4096: what is read behind them is of no meaning.
    pub fn read(&self, mapped: SharedBytes<'_>, offset: u64, target: &mut [u8]) -> bool {
        let len = mapped.len();
        let is_aligned = offset.is_multiple_of(BLOCK as u64) && target.as_ptr().addr().is_multiple_of(BLOCK);
        if len == 0 || !is_aligned || self.is_refused.load(Ordering::Relaxed) {
            return false;
        }
        match target.get_mut(..len.next_multiple_of(BLOCK)) {
            Some(target) => !self.is_cached(mapped, offset) && self.fill(offset, len, target),
            None => false,
        }
    }

    fn fill(&self, offset: u64, len: usize, target: &mut [u8]) -> bool {
        let mut done = 0;
        while done < len {
            match self.direct.read_at(&mut target[done..], offset + done as u64) {
                Ok(0) => return false,
                // The end of the file: what is behind it is missing, or nothing is.
                Ok(count) if !count.is_multiple_of(BLOCK) => return done + count >= len,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What was refused once is refused again; any other error is the file's.
                    if error.raw_os_error() == Some(libc::EINVAL) {
                        self.is_refused.store(true, Ordering::Relaxed);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Whether most of the bytes are in the page cache, or nobody tells. mincore(2) says it of each page, but calls
    /// everything cached to who neither owns the file nor may write it; reading what is there without waiting tells
    /// everybody, and makes the kernel read what is not.
    fn is_cached(&self, mapped: SharedBytes<'_>, offset: u64) -> bool {
        // One in each part of equal length: what is in the cache lies together as a rule.
        let len = mapped.len() as u64;
        let part = |number| (number * len / PROBES, (number + 1) * len / PROBES);
        let places = (0..PROBES)
            .map(part)
            .map(|(start, end)| start + self.random.hash_one((offset, start)) % (end - start).max(1));
        let mut there = 0;
        for place in places.clone() {
            match mapped.get(place, 1).ok().and_then(pages) {
                Some((pages, _)) => there += pages as u64,
                None => return true,
            }
        }
        match there {
            PROBES if !self.is_told => places.map(|place| offset + place).all(|place| self.is_there(place)),
            there => there * 2 >= PROBES,
        }
    }

    /// Whether a byte can be read without waiting; true as well where the kernel does not tell.
    fn is_there(&self, offset: u64) -> bool {
        let Ok(offset) = libc::off_t::try_from(offset) else { return true };
        let mut byte = 0_u8;
        let part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let (fd, part) = (self.cached.as_raw_fd(), &raw const part);
        // SAFETY: `part` is one iovec, of one byte that lives until the call returns and that nothing else refers to;
        // the descriptor is open while the file lives.
        let count = unsafe { libc::preadv2(fd, part, 1, offset, libc::RWF_NOWAIT) };
        count >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock
    }
}

/// How many pages are in memory, as mincore(2) has it, and how many there are; `None` where it does not say.
fn pages(mapped: SharedBytes<'_>) -> Option<(usize, usize)> {
    let page = usize::try_from(page_size()).unwrap_or(BLOCK);
    let before = mapped.as_ptr().addr() % page;
    let start = mapped.as_ptr().wrapping_sub(before).cast_mut().cast();
    let mut pages = vec![0_u8; (before + mapped.len()).div_ceil(page)];
    // SAFETY: the range begins with the page of the view's first byte and ends with its last one, all of them mapped,
    // and has a byte for each page. Nothing is read or written there.
    let code = unsafe { libc::mincore(start, before + mapped.len(), pages.as_mut_ptr()) };
    (code == 0).then(|| (pages.iter().filter(|&page| page & 1 == 1).count(), pages.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mapping;
    use std::io::Write;
    use std::os::fd::AsFd;

    const LEN: usize = (1 << 20) + 100;

    /// A file that is on its disk and not in memory, and its bytes.
    fn cold_file() -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> = (0..LEN).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file.as_file().sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        (file, bytes)
    }

    /// The file, and its mapping.
    fn open(file: &impl AsFd) -> Option<(DirectFile, Mapping)> {
        let mapping = Mapping::read_only(file.as_fd(), 0, LEN).unwrap();
        DirectFile::open(file.as_fd()).map(|file| (file, mapping))
    }

    /// Whether at least half of the pages are in memory.
    fn are_cached(mapped: SharedBytes<'_>) -> bool {
        pages(mapped).is_none_or(|(there, all)| there * 2 >= all)
    }

    /// Room for `len` bytes at a multiple of 4096, and where it begins.
    fn room(len: usize) -> (Vec<u8>, usize) {
        let memory = vec![0; len + 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        (memory, start)
    }

    #[test]
    fn what_is_not_in_the_cache_is_read_around_it() {
        let (file, bytes) = cold_file();
        let Some((direct, mapping)) = open(file.as_file()).filter(|(_, mapping)| !are_cached(mapping.view()))
        else {
            return eprintln!("not run: no direct reads, or nothing but cache, in {}", file.path().display());
        };
        let (mut memory, start) = room(LEN);
        for (offset, len) in
            [(0, 4096), (8192, 70_000), (512 << 10, LEN as u64 - (512 << 10)), (0, LEN as u64)]
        {
            let (view, target) = (mapping.view().get(offset, len).unwrap(), &mut memory[start..]);
            assert!(direct.read(view, offset, target), "{offset} {len}");
            let (from, len) = (usize::try_from(offset).unwrap(), view.len());
            assert!(target[..len] == bytes[from..from + len]);
            assert!(!are_cached(view), "it was read through the cache");
        }
    }

    /// Who does not own a file hears from mincore that all of it is in memory.
    #[test]
    fn what_is_not_in_the_cache_is_seen_by_reading_too() {
        let (file, _) = cold_file();
        let Some((direct, mapping)) = open(file.as_file()).filter(|(_, mapping)| !are_cached(mapping.view()))
        else {
            return eprintln!("not run: no direct reads, or nothing but cache, in {}", file.path().display());
        };
        let missing = (0..LEN as u64).step_by(BLOCK).filter(|&offset| !direct.is_there(offset)).count();
        assert!(missing > 0);
        assert_eq!(std::fs::read(file.path()).unwrap().len(), LEN);
        assert!((0..LEN as u64).step_by(BLOCK).all(|offset| direct.is_there(offset)));
        assert!(are_cached(mapping.view()));
    }

    #[test]
    fn what_is_in_the_cache_is_left_to_it() {
        let (file, bytes) = cold_file();
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
        if let Some((direct, mapping)) = open(file.as_file()) {
            let (mut memory, start) = room(LEN);
            assert!(!direct.read(mapping.view(), 0, &mut memory[start..]));
        }
    }

    #[test]
    fn what_is_mostly_in_the_cache_is_left_to_it() {
        let (file, _) = cold_file();
        let Some((direct, mapping)) = open(file.as_file()) else { return };
        // Only what is read comes in.
        direct.cached.read_exact_at(&mut vec![0; LEN / 4 * 3], 0).unwrap();
        let (mut memory, start) = room(LEN);
        for _ in 0..20 {
            assert!(!direct.read(mapping.view(), 0, &mut memory[start..]), "{:?}", pages(mapping.view()));
        }
    }

    #[test]
    fn what_does_not_fit_is_not_read() {
        let (file, _) = cold_file();
        if let Some((direct, mapping)) = open(file.as_file()) {
            let (mut memory, start) = room(LEN);
            let past = LEN.next_multiple_of(BLOCK) as u64;
            for (offset, len, from) in [
                (512, 4096, start),
                (0, 4096, start + 8),
                (past, 4096, start),
                (1 << 20, 4096, start),
                (0, 0, start),
            ] {
                // The view says how many bytes; those behind the end of the file are not there.
                let view = mapping.view().get(0, len).unwrap();
                assert!(!direct.read(view, offset, &mut memory[from..]), "{offset} {len} {from}");
            }
            let view = mapping.view().get(0, 5000).unwrap();
            assert!(!direct.read(view, 0, &mut memory[start..start + 5000]), "no room for the last block");
        }
    }

    #[test]
    fn files_in_memory_are_nothing_but_cache() {
        let file = nix::sys::memfd::memfd_create("direct", nix::sys::memfd::MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&file, i64::try_from(LEN).unwrap()).unwrap();
        let mut written = File::from(file);
        written.write_all(&[1; LEN]).unwrap();
        if let Some((direct, mapping)) = open(&written) {
            let (mut memory, start) = room(LEN);
            assert!(!direct.read(mapping.view(), 0, &mut memory[start..]));
        }
    }
}
