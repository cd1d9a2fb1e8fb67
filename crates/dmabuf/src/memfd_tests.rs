use super::*;
use crate::page::huge_page_size;
use crate::seals::seals;
use std::io::Write as _;

const MIB: u64 = 1 << 20;

/// A length of memory as an address space has it.
fn bytes(len: u64) -> usize {
    usize::try_from(len).unwrap()
}

/// Whether the kernel has MADV_COLLAPSE for shared memory: Linux 6.1 with transparent huge pages that the page cache can
/// hold, which are at most 2^11 ordinary ones (with pages of 64 KiB they are not).
pub(crate) fn collapse_is_known() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let thp = std::path::Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists();
    if version < (6, 1) || !thp {
        println!("no MADV_COLLAPSE of shared memory: Linux {release}, transparent huge pages for it: {thp}");
    }
    version >= (6, 1) && thp && huge_page_size() / crate::page_size() <= 1 << 11
}

#[test]
fn a_new_memfd_is_zero_sealable_and_close_on_exec() {
    let memfd = Memfd::create("new", 10_000, HugePages::No).unwrap();
    assert_eq!((memfd.len(), memfd.is_empty(), memfd.pages()), (10_000, false, HugePages::No));
    let present = seals(memfd.as_fd()).unwrap().unwrap();
    assert!(!present.intersects(Seals::IMMUTABLE | Seals::SEAL), "{present:?}");
    let flags = fcntl(&memfd, FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    let map = Mapping::read_only(memfd.as_fd(), 0, 10_000).unwrap();
    assert!(map.view().to_vec().iter().all(|b| *b == 0));
}

#[test]
fn seals_hold() {
    let memfd = Memfd::create("seals", 4096, HugePages::No).unwrap();
    memfd.seal(Seals::SHRINK).unwrap();
    let fd: OwnedFd = memfd.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(nix::unistd::ftruncate(&fd, 0), Err(Errno::EPERM));
    nix::unistd::ftruncate(&fd, 8192).unwrap();
    memfd.seal(Seals::IMMUTABLE).unwrap();
    let mut file = fs::File::from(fd);
    assert_eq!(file.write_all(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(file.set_len(16384).unwrap_err().raw_os_error(), Some(libc::EPERM));
    memfd.seal(Seals::SEAL).unwrap();
    let error = memfd.seal(Seals::FUTURE_WRITE).unwrap_err();
    assert_eq!(error.to_string(), "seal memfd:seals: Operation not permitted (os error 1)");
    let present = seals(memfd.as_fd()).unwrap().unwrap();
    assert!(present.contains(Seals::IMMUTABLE | Seals::SEAL) && !present.contains(Seals::FUTURE_WRITE));
}

#[test]
fn other_descriptors_have_no_seals() {
    let (pipe, _keep) = nix::unistd::pipe().unwrap();
    assert_eq!(seals(pipe.as_fd()).unwrap(), None);
}

#[test]
fn bad_arguments_are_refused() {
    let long = "n".repeat(250);
    for (name, len) in [("a\0b", 1), (&long[..], 1), ("long", u64::MAX), ("long", 1 << 63)] {
        let error = Memfd::create(name, len, HugePages::No).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    let error = Memfd::create("round", u64::MAX - 5, HugePages::Hugetlb2M).unwrap_err();
    assert_eq!(error.to_string(), "memfd:round: 18446744073709551610 bytes exceed the largest file length");
    assert!(Memfd::create(&"n".repeat(249), 1, HugePages::No).is_ok());
}

#[test]
fn more_than_the_memory_is_refused_with_both_numbers() {
    let available = available_memory().unwrap();
    let error = Memfd::create("big", 1 << 50, HugePages::Thp).unwrap_err().to_string();
    assert!(error.starts_with("memfd:big: 1125899906842624 bytes asked for, but only "), "{error}");
    let named: u64 = error.split(' ').nth(7).unwrap().parse().unwrap();
    assert!(named > available / 4 && named < 1 << 50, "{named} against {available}");
    // Ordinary pages come when written, maybe with swap behind them: a sparse memfd may be larger than memory.
    let sparse = Memfd::create("sparse", 1 << 42, HugePages::Auto).unwrap();
    let map = Mapping::read_write(sparse.as_fd(), 0, 1 << 42).unwrap();
    assert!(matches!(allocate_huge(&map, 0..1 << 42), Err(Error::Invalid { .. })));
}

#[test]
fn huge_pages_of_an_empty_memfd() {
    let page = huge_page_size();
    let len = 2 * page + page / 2;
    let memfd = Memfd::create("huge", len, HugePages::Thp).unwrap();
    let map = Mapping::read_write(memfd.as_fd(), 0, bytes(len)).unwrap();
    let huge = allocate_huge(&map, 0..len).unwrap();
    assert_eq!(map.pages().unwrap().huge, huge);
    assert_eq!(huge, if collapse_is_known() { 2 * page } else { 0 });
    for offset in (0..len).step_by(bytes(MIB)) {
        assert!(map.view().get(offset, MIB).unwrap().to_vec().iter().all(|b| *b == 0), "at {offset}");
    }
}

#[test]
fn huge_pages_of_a_part_keep_contents() {
    let half = huge_page_size() / 2;
    let memfd = Memfd::create("part", 8 * half, HugePages::Auto).unwrap();
    let mut map = Mapping::read_write(memfd.as_fd(), 0, bytes(8 * half)).unwrap();
    let offsets = [0, half, 2 * half, 5 * half + 12345, 8 * half - 4];
    for offset in offsets {
        map.view_mut().unwrap().copy_from(offset, b"kept").unwrap();
    }
    // Only the second and third are whole blocks of this range.
    let huge = allocate_huge(&map, half..7 * half).unwrap();
    assert_eq!(huge, if collapse_is_known() { 4 * half } else { 0 });
    assert_eq!(map.pages().unwrap().huge, huge);
    for offset in offsets {
        assert_eq!(map.view().get(offset, 4).unwrap().to_vec(), b"kept", "at {offset}");
    }
}

#[test]
fn huge_pages_work_for_tmpfs_files_and_a_second_mapping_sees_them() {
    let Ok(file) = tempfile::tempfile_in("/dev/shm") else {
        return println!("not run: no writable /dev/shm");
    };
    let len = 2 * huge_page_size();
    file.set_len(len).unwrap();
    let map = Mapping::read_write(file.as_fd(), 0, bytes(len)).unwrap();
    assert_eq!(allocate_huge(&map, 0..len).unwrap(), if collapse_is_known() { len } else { 0 });
    if collapse_is_known() {
        let reader = Mapping::read_only(file.as_fd(), 0, bytes(len)).unwrap();
        reader.populate().unwrap();
        assert_eq!(reader.pages().unwrap().huge, len, "mapped by huge entries here too");
    }
}

#[test]
fn huge_pages_of_the_wrong_mapping() {
    let memfd = Memfd::create("wrong", 4 * MIB, HugePages::No).unwrap();
    for make in [Mapping::read_only, Mapping::private] {
        let map = make(memfd.as_fd(), 0, 4 << 20).unwrap();
        assert!(matches!(allocate_huge(&map, 0..4 * MIB), Err(Error::Invalid { .. })));
    }
    let map = Mapping::read_write(memfd.as_fd(), 0, 4 << 20).unwrap();
    assert!(matches!(allocate_huge(&map, 0..4 * MIB + 1), Err(Error::OutOfBounds { .. })));
    assert_eq!(allocate_huge(&map, MIB..MIB).unwrap(), 0);
}

#[test]
fn hugetlb_memory_or_the_name_of_the_pool() {
    for (pages, size) in [(HugePages::Hugetlb2M, 2 * MIB), (HugePages::Hugetlb1G, 1024 * MIB)] {
        match Memfd::create("hugetlb", size + 1, pages) {
            Ok(memfd) => {
                assert_eq!(memfd.len(), 2 * size);
                let kind = describe(memfd.as_fd()).unwrap().kind;
                assert!(matches!(kind, FdKind::Memfd { hugetlb: Some(s), .. } if s == size), "{kind:?}");
                // Neither offset nor length are whole pages, and the drop must still unmap (it asserts).
                let mut map = Mapping::read_write(memfd.as_fd(), size - 3, 7).unwrap();
                map.view_mut().unwrap().copy_from(0, b"7 bytes").unwrap();
                let stats = map.pages().unwrap();
                assert_eq!(stats.page_size, size);
                assert_eq!(map.view().to_vec(), b"7 bytes");
                assert!(Mapping::private(memfd.as_fd(), 0, 1).is_ok());
            }
            Err(error @ Error::Unavailable { .. }) => {
                let text = error.to_string();
                assert!(
                    text.contains(&format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size >> 10)),
                    "{text}"
                );
                println!("refused as it should be: {text}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_memfd_of_somebody_else() {
    let made = Memfd::create("made", 5000, HugePages::Auto).unwrap();
    made.seal(Seals::SHRINK).unwrap();
    let taken = Memfd::from_fd(made.into()).unwrap();
    assert_eq!((taken.len(), taken.pages()), (5000, HugePages::No));
    taken.seal(Seals::GROW).unwrap();
    assert_eq!(seals(taken.as_fd()).unwrap().unwrap() & Seals::IMMUTABLE, Seals::SHRINK | Seals::GROW);
    let other = tempfile::tempfile().unwrap();
    assert!(Memfd::from_fd(other.into()).unwrap_err().to_string().contains("is no memfd"));
}
