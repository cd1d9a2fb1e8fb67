use super::*;
use crate::memfd::{HugePages, Memfd};
use crate::seals::Seals;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};

const MIB: usize = 1 << 20;

fn memfd(name: &str, len: usize) -> Memfd {
    Memfd::create(name, len as u64, HugePages::No).unwrap()
}

#[test]
fn nothing_is_mapped_for_length_zero() {
    let fd = memfd("zero", 0);
    let mut map = Mapping::read_write(fd.as_fd(), 0, 0).unwrap();
    assert!(map.is_empty() && map.view().is_empty() && map.view_mut().unwrap().is_empty());
    assert!(map.populate().unwrap());
    assert!(!map.collapse().unwrap());
    assert_eq!(map.pages().unwrap(), PageStats::default());
}

#[test]
fn ranges_behind_the_end_are_refused() {
    let fd = memfd("bounds", 8192);
    for (offset, len) in [(0, 8193), (8192, 1), (8193, 0), (u64::MAX, 1), (u64::MAX - 4095, 4096)] {
        match Mapping::read_only(fd.as_fd(), offset, len) {
            Err(Error::OutOfBounds { bound: 8192, .. }) => {}
            other => panic!("{offset}+{len}: {other:?}"),
        }
    }
    assert!(Mapping::read_only(fd.as_fd(), 8192, 0).is_ok());
}

#[test]
fn offsets_need_no_alignment() {
    let bytes: Vec<u8> = (0..5 * MIB).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    for (offset, len) in
        [(0, 5 * MIB), (1, 10), (4095, 4097), (4096, 3 * MIB), (MIB + 5, 3 * MIB), (5 * MIB - 1, 1)]
    {
        for map in [Mapping::read_only, Mapping::read_write, Mapping::private] {
            let map = map(file.as_fd(), offset as u64, len).unwrap();
            assert_eq!(map.len(), len);
            assert!(map.view().to_vec() == bytes[offset..offset + len], "offset {offset}, {len} bytes");
        }
    }
}

#[test]
fn large_mappings_are_congruent_to_their_offset() {
    let huge = usize::try_from(huge_page_size()).unwrap();
    let fd = memfd("congruent", 8 * huge.max(2 * MIB));
    for unit in [2 * MIB, huge] {
        for offset in [0, 4096, unit, unit + unit / 2 + 4096, 2 * unit + unit / 2 + 17] {
            let maps: Vec<_> =
                (0..4).map(|_| Mapping::read_write(fd.as_fd(), offset as u64, unit).unwrap()).collect();
            for map in maps {
                assert_eq!(map.view().as_ptr().addr() % unit, offset % unit, "offset {offset}");
            }
        }
    }
}

#[test]
fn a_place_that_is_free_again_is_used_by_what_fits() {
    let fd = memfd("again", 16 * MIB);
    // Of other lengths and phases, and while what took the place stays.
    let mut kept = Vec::new();
    for (round, (offset, len)) in
        [(0, 4 * MIB), (0, 4 * MIB), (4096, 8 * MIB), (17, 2 * MIB), (3 * MIB, 13 * MIB)]
            .into_iter()
            .enumerate()
    {
        for _ in 0..3 {
            let map = Mapping::read_only(fd.as_fd(), offset as u64, len).unwrap();
            assert_eq!(map.view().as_ptr().addr() % (2 * MIB), offset % (2 * MIB), "{round}");
            assert!(map.view().to_vec().iter().all(|&byte| byte == 0));
            kept.push(map);
            kept.truncate(round + 1);
        }
    }
}

#[test]
fn what_is_described_is_mapped_in_its_bounds() {
    let fd = memfd("described", 8192);
    let map = |len| Mapping::described(fd.as_fd(), false, |_| Ok::<_, Error>((4096, len)));
    let (info, mapping) = map(4096).unwrap();
    assert_eq!((info.len, mapping.len(), mapping.is_writable()), (8192, 4096, false));
    assert!(matches!(map(4097), Err(Error::OutOfBounds { bound: 8192, .. })));
    let refused = Mapping::described(fd.as_fd(), true, |_| Err(Error::invalid("part", "none")));
    assert!(matches!(refused, Err(Error::Invalid { .. })));
}

#[test]
fn threads_map_at_the_same_time() {
    let fd = memfd("threads", 8 * MIB);
    Mapping::read_write(fd.as_fd(), 0, 8 * MIB)
        .unwrap()
        .view_mut()
        .unwrap()
        .copy_from(4 << 20, &[5; 64])
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let map = Mapping::read_only(fd.as_fd(), 0, 8 * MIB).unwrap();
                    assert_eq!(map.view().get(4 << 20, 64).unwrap().to_vec(), [5; 64]);
                }
            });
        }
    });
}

/// Number of VMAs of this process that show `name`.
fn vmas(name: &str) -> usize {
    let maps = std::fs::read("/proc/self/maps").unwrap();
    String::from_utf8_lossy(&maps).lines().filter(|l| l.contains(name)).count()
}

#[test]
fn drop_unmaps_everything() {
    for (name, offset, len) in [("drop-small", 5, 100), ("drop-large", 4096 + 5, 5 * MIB)] {
        let fd = memfd(name, 6 * MIB);
        let map = Mapping::read_only(fd.as_fd(), offset, len).unwrap();
        assert_eq!(vmas(name), 1);
        drop(map);
        assert_eq!(vmas(name), 0, "{name}");
    }
}

#[test]
fn a_mapping_outlives_its_descriptor() {
    let fd = memfd("outlives", 3 * MIB);
    let mut map = Mapping::read_write(fd.as_fd(), 0, 3 * MIB).unwrap();
    drop(fd);
    map.view_mut().unwrap().copy_from(MIB as u64, b"still here").unwrap();
    assert_eq!(map.view().get(MIB as u64, 10).unwrap().to_vec(), b"still here");
}

#[test]
fn writes_are_shared_or_private() {
    let fd = memfd("shared", 4096);
    let mut shared = Mapping::read_write(fd.as_fd(), 0, 4096).unwrap();
    let mut private = Mapping::private(fd.as_fd(), 0, 4096).unwrap();
    let mut read_only = Mapping::read_only(fd.as_fd(), 0, 4096).unwrap();
    private.view_mut().unwrap().copy_from(0, b"mine").unwrap();
    shared.view_mut().unwrap().copy_from(8, b"ours").unwrap();
    assert_eq!(read_only.view().get(0, 12).unwrap().to_vec(), b"\0\0\0\0\0\0\0\0ours");
    assert_eq!(private.view().get(0, 4).unwrap().to_vec(), b"mine");
    assert_eq!((shared.is_writable(), private.is_writable(), read_only.is_writable()), (true, true, false));
    assert_eq!((shared.is_private(), private.is_private()), (false, true));
    assert_eq!(read_only.view_mut().unwrap_err().to_string(), "view_mut: the mapping is read-only");
}

#[test]
fn the_kernels_refusals_name_the_memory() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), [0; 4096]).unwrap();
    let fd = crate::open_read_only(path.path()).unwrap();
    let error = Mapping::read_write(fd.as_fd(), 0, 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    let expected = format!("mmap {}: Permission denied (os error 13)", path.path().display());
    assert_eq!(error.to_string(), expected);

    let sealed = memfd("sealed", 4096);
    let map = Mapping::read_write(sealed.as_fd(), 0, 4096).unwrap();
    assert_eq!(sealed.seal(Seals::IMMUTABLE).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    drop(map);
    sealed.seal(Seals::IMMUTABLE).unwrap();
    let error = Mapping::read_write(sealed.as_fd(), 0, 4096).unwrap_err();
    assert_eq!(error.to_string(), "mmap memfd:sealed: Operation not permitted (os error 1)");
    assert!(Mapping::read_only(sealed.as_fd(), 0, 4096).is_ok());
}

#[test]
fn what_is_not_memory_is_refused() {
    let (pipe, _keep) = nix::unistd::pipe().unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for fd in [pipe, null] {
        assert!(matches!(Mapping::read_only(fd.as_fd(), 0, 1), Err(Error::NotShareable { .. })));
    }
}

#[test]
fn populate_makes_everything_resident() {
    for writable in [false, true] {
        let fd = memfd("populate", 3 * MIB);
        let make = if writable { Mapping::read_write } else { Mapping::read_only };
        let map = make(fd.as_fd(), 0, 3 * MIB).unwrap();
        let before = map.pages().unwrap();
        assert_eq!((before.mapped, before.resident), (3 << 20, 0));
        assert!(map.populate().unwrap(), "MADV_POPULATE is in every kernel since 5.14");
        let after = map.pages().unwrap();
        assert_eq!((after.mapped, after.resident, after.page_size), (3 << 20, 3 << 20, page_size()));
    }
}

#[test]
fn populate_copies_no_page_of_a_private_mapping() {
    let fd = memfd("lazy", MIB);
    let map = Mapping::private(fd.as_fd(), 0, MIB).unwrap();
    assert!(map.populate().unwrap());
    // Had the pages been copied, this write would not show.
    Mapping::read_write(fd.as_fd(), 0, MIB).unwrap().view_mut().unwrap().copy_from(4096, b"late").unwrap();
    assert_eq!(map.view().get(4096, 4).unwrap().to_vec(), b"late");
}

#[test]
fn full_blocks_collapse_and_keep_their_bytes() {
    let huge = usize::try_from(huge_page_size()).unwrap();
    let len = huge + huge / 2;
    let fd = memfd("collapse", len);
    let mut map = Mapping::read_write(fd.as_fd(), 0, len).unwrap();
    // In pieces, since huge pages may be very large; no page has the bytes of another.
    let bytes: Vec<u8> = (0..MIB - 3).map(|i| u8::try_from(i % 241).unwrap()).collect();
    let pieces = || (0..len).step_by(bytes.len()).map(|at| (at as u64, &bytes[..bytes.len().min(len - at)]));
    for (at, piece) in pieces() {
        map.view_mut().unwrap().copy_from(at, piece).unwrap();
    }
    if crate::memfd::tests::collapse_is_known() {
        assert!(map.collapse().unwrap());
        assert_eq!(map.pages().unwrap().huge, huge as u64);
    } else {
        assert!(!map.collapse().unwrap());
    }
    for (at, piece) in pieces() {
        assert!(map.view().get(at, piece.len() as u64).unwrap().to_vec() == piece, "from {at} on");
    }
}

#[test]
fn empty_memfds_do_not_collapse_and_that_is_no_error() {
    let len = 2 * usize::try_from(huge_page_size()).unwrap();
    let fd = memfd("empty", len);
    let map = Mapping::read_write(fd.as_fd(), 0, len).unwrap();
    assert!(!map.collapse().unwrap());
    assert_eq!(map.pages().unwrap().huge, 0);
}

#[test]
fn huge_pages_have_the_size_that_the_kernel_says() {
    let told = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    if let Ok(told) = told {
        assert_eq!(huge_page_size(), told.trim().parse::<u64>().unwrap());
    }
    // One page of entries of 8 bytes, with every size of a page on x86-64 and on 64-bit Arm.
    assert_eq!(huge_page_size(), page_size() * page_size() / 8);
}
