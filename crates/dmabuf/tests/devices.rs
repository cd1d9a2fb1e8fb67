//! What needs a kernel with `/dev/udmabuf` and `/dev/dma_heap/system`, and passing memory to another process.
//!
//! Without a device its tests print what they lack and end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; clippy knows only #[test] functions"
)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use dmabuf::{
    Access, CpuAccess, Error, FdInfo, FdKind, HugePages, Mapping, Memfd, Seals, SharedBytesMut, describe,
    heap_allocate, heaps, page_size, recv_fds, seals, send_fds, udmabuf_from, udmabuf_limit,
};

const MIB: u64 = 1 << 20;
const UDMABUF: &str = "/dev/udmabuf";
const HEAP: &str = "/dev/dma_heap/system";
/// Set for the child process of `in_a_child`.
const CHILD: &str = "DMABUF_TEST_CHILD";

/// Whether `device` is here; says so if it is not.
fn present(device: &str) -> bool {
    let present = Path::new(device).exists();
    if !present {
        println!("not run: no {device}");
    }
    present
}

fn memfd(name: &str, len: u64) -> Memfd {
    Memfd::create(name, len, HugePages::No).unwrap()
}

fn map_all(fd: BorrowedFd<'_>) -> Mapping {
    Mapping::read_write(fd, 0, usize::try_from(describe(fd).unwrap().len).unwrap()).unwrap()
}

fn exporter(info: &FdInfo) -> &str {
    match &info.kind {
        FdKind::DmaBuf { exporter, .. } => exporter,
        other => panic!("{other:?} is not a dma-buf"),
    }
}

/// Writes `bytes` to `offset` with the CPU, as the dma-buf rules want it.
fn write_in_bracket(fd: BorrowedFd<'_>, map: &mut Mapping, offset: u64, bytes: &[u8]) {
    let access = CpuAccess::begin(fd, Access::Write).unwrap();
    map.view_mut().unwrap().copy_from(offset, bytes).unwrap();
    access.finish().unwrap();
}

#[test]
fn a_udmabuf_is_described() {
    if !present(UDMABUF) {
        return;
    }
    let len = 3 * page_size();
    let memfd = memfd("described", len);
    let dma_buf = udmabuf_from(&memfd).unwrap();
    let info = describe(dma_buf.as_fd()).unwrap();
    assert_eq!((exporter(&info), info.len, info.writable), ("udmabuf", len, true));
    assert!(dmabuf::fd_link(dma_buf.as_fd()).unwrap().to_str().unwrap().starts_with("/dmabuf:"));
    let flags = nix::fcntl::fcntl(&dma_buf, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    assert!(seals(memfd.as_fd()).unwrap().unwrap().contains(Seals::SHRINK), "the kernel requires it");
    assert_eq!(seals(dma_buf.as_fd()).unwrap(), None);
    // Two descriptors of one buffer tell so, another buffer differs.
    let copy = dma_buf.try_clone().unwrap();
    assert_eq!(describe(copy.as_fd()).unwrap().ino, info.ino);
    let other = udmabuf_from(&memfd).unwrap();
    assert_ne!(describe(other.as_fd()).unwrap().ino, info.ino);
}

#[test]
fn a_udmabuf_shows_the_memfds_bytes_both_ways() {
    if !present(UDMABUF) {
        return;
    }
    let memfd = memfd("coherent", 4 * MIB);
    let dma_buf = udmabuf_from(&memfd).unwrap();
    let mut of_memfd = map_all(memfd.as_fd());
    let mut of_dma_buf = map_all(dma_buf.as_fd());
    of_memfd.view_mut().unwrap().copy_from(12345, b"by the memfd").unwrap();
    assert_eq!(of_dma_buf.view().get(12345, 12).unwrap().to_vec(), b"by the memfd");
    write_in_bracket(dma_buf.as_fd(), &mut of_dma_buf, 3 * MIB - 5, b"by the dma-buf");
    assert_eq!(of_memfd.view().get(3 * MIB - 5, 14).unwrap().to_vec(), b"by the dma-buf");
}

#[test]
fn cpu_access_begins_and_ends() {
    if !present(UDMABUF) {
        return;
    }
    let dma_buf = udmabuf_from(&memfd("brackets", page_size())).unwrap();
    for access in [Access::Read, Access::Write, Access::ReadWrite] {
        CpuAccess::begin(dma_buf.as_fd(), access).unwrap().finish().unwrap();
        drop(CpuAccess::begin(dma_buf.as_fd(), access).unwrap());
    }
    let nested = CpuAccess::begin(dma_buf.as_fd(), Access::Read).unwrap();
    CpuAccess::begin(dma_buf.as_fd(), Access::ReadWrite).unwrap().finish().unwrap();
    nested.finish().unwrap();
}

#[test]
fn a_dma_buf_mapping_keeps_its_rules() {
    if !present(UDMABUF) {
        return;
    }
    let dma_buf = udmabuf_from(&memfd("rules", 4 * MIB)).unwrap();
    assert!(matches!(Mapping::read_only(dma_buf.as_fd(), 4096, 4 << 20), Err(Error::OutOfBounds { .. })));
    let error = Mapping::private(dma_buf.as_fd(), 0, 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    // Unaligned offset and length, and the kernel's "cannot" where a memfd could.
    let map = Mapping::read_write(dma_buf.as_fd(), 4097, 3 << 20).unwrap();
    assert_eq!(map.view().to_vec(), vec![0; 3 << 20]);
    assert!(!map.populate().unwrap());
    assert!(!map.collapse().unwrap());
    assert_eq!(dmabuf::allocate_huge(&map, 0..3 * MIB).unwrap(), 0);
    assert_eq!(map.pages().unwrap().huge, 0);
}

#[test]
fn files_are_read_into_a_dma_buf() {
    if !present(UDMABUF) {
        return;
    }
    let contents: Vec<u8> = (0..200_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&contents).unwrap();
    let dma_buf = udmabuf_from(&memfd("pread", 200_000_u64.next_multiple_of(page_size()))).unwrap();
    let mut map = map_all(dma_buf.as_fd());
    let fill = |view: &mut SharedBytesMut<'_>, fd: BorrowedFd<'_>| {
        let mut done = 0;
        while done < contents.len() as u64 {
            let len = view.len() as u64 - done;
            let n = view.get_mut(done, len).unwrap().pread_from(fd, done).unwrap();
            assert!(n > 0);
            done += n as u64;
        }
    };
    fill(&mut map.view_mut().unwrap(), file.as_fd());
    assert!(map.view().get(0, 200_000).unwrap().to_vec() == contents);
    map.view_mut().unwrap().fill_zero(0, 200_000).unwrap();

    // Direct reads pin the target, which a dma-buf does not allow: EFAULT on disks, so this takes the buffer.
    use std::os::unix::fs::OpenOptionsExt as _;
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path());
    match direct {
        Ok(direct) => {
            fill(&mut map.view_mut().unwrap(), direct.as_fd());
            assert!(map.view().get(0, 200_000).unwrap().to_vec() == contents);
        }
        Err(e) => println!("O_DIRECT not run in {}: {e}", std::env::temp_dir().display()),
    }
}

#[test]
fn a_dma_buf_is_sent_by_the_kernel_or_through_a_buffer() {
    if !present(UDMABUF) {
        return;
    }
    let contents: Vec<u8> =
        (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let dma_buf = udmabuf_from(&memfd("sent", MIB)).unwrap();
    let mut map = map_all(dma_buf.as_fd());
    map.view_mut().unwrap().copy_from(0, &contents).unwrap();
    assert_eq!(map.class(), dmabuf::MemoryClass::PfnMap);
    assert!(map.view().to_vec() == contents, "by wide loads");

    let file = tempfile::NamedTempFile::new().unwrap();
    let mut transfer = dmabuf::Transfer::new(map.view(), None);
    transfer.finish(file.as_file().as_fd(), None).unwrap();
    assert_eq!(transfer.way(), Some(dmabuf::Way::Write));
    assert!(std::fs::read(file.path()).unwrap() == contents);
    use std::os::unix::fs::OpenOptionsExt as _;
    let direct = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(file.path());
    match direct {
        Ok(direct) => {
            let mut transfer = dmabuf::Transfer::new(map.view(), None);
            transfer.finish(direct.as_fd(), None).unwrap();
            // File systems in memory take O_DIRECT and copy all the same.
            println!("O_DIRECT in {}: {:?}", std::env::temp_dir().display(), transfer.way());
            assert!(std::fs::read(file.path()).unwrap() == contents);
        }
        Err(e) => println!("O_DIRECT not run in {}: {e}", std::env::temp_dir().display()),
    }
}

#[test]
fn unfit_memfds_are_refused_with_the_reason() {
    if !present(UDMABUF) {
        return;
    }
    let why = |memfd: &Memfd| match udmabuf_from(memfd) {
        Err(Error::Invalid { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(&memfd("empty", 0)).contains("not 0 bytes"));
    assert!(why(&memfd("odd", 4097)).contains("not 4097 bytes"));
    for seal in [Seals::WRITE, Seals::FUTURE_WRITE] {
        let sealed = memfd("sealed", page_size());
        sealed.seal(seal).unwrap();
        assert!(why(&sealed).contains("sealed against writing"), "{seal:?}");
    }
    let sealed = memfd("no-more-seals", page_size());
    sealed.seal(Seals::SEAL).unwrap();
    assert_eq!(
        udmabuf_from(&sealed).unwrap_err().raw_os_error(),
        Some(libc::EPERM),
        "SHRINK cannot be added"
    );
}

#[test]
fn the_size_limit_is_named() {
    if !present(UDMABUF) {
        return;
    }
    let limit = udmabuf_limit().unwrap();
    assert!(limit >= MIB);
    if limit >= 1 << 32 {
        return println!("not run: the limit of {limit} bytes is too high to exceed");
    }
    let error = udmabuf_from(&memfd("too-big", limit + page_size())).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Invalid { .. }), "{text}");
    let named = format!("/sys/module/udmabuf/parameters/size_limit_mb is {} MiB", limit >> 20);
    assert!(text.contains(&named) && text.contains(&format!("{} bytes", limit + page_size())), "{text}");
}

#[test]
fn several_memfds_become_one_udmabuf() {
    if !present(UDMABUF) {
        return;
    }
    let (first, second) = (memfd("first", 3 * MIB), memfd("second", 2 * MIB));
    let page = page_size();
    let parts = [(&second, page, MIB), (&first, 0, 2 * MIB), (&second, 0, page)];
    let dma_buf = dmabuf::udmabuf_join(&parts).unwrap();
    assert_eq!(describe(dma_buf.as_fd()).unwrap().len, 3 * MIB + page);
    map_all(second.as_fd()).view_mut().unwrap().copy_from(page, b"front").unwrap();
    map_all(first.as_fd()).view_mut().unwrap().copy_from(2 * MIB - 6, b"middle").unwrap();
    let mut map = map_all(dma_buf.as_fd());
    assert_eq!(map.view().get(0, 5).unwrap().to_vec(), b"front", "in the order of the list");
    assert_eq!(map.view().get(3 * MIB - 6, 6).unwrap().to_vec(), b"middle");
    map.view_mut().unwrap().copy_from(3 * MIB, b"end").unwrap();
    assert_eq!(map_all(second.as_fd()).view().get(0, 3).unwrap().to_vec(), b"end");

    let why = |parts: &[(&Memfd, u64, u64)]| dmabuf::udmabuf_join(parts).unwrap_err().to_string();
    assert!(why(&[]).contains("nothing to join"));
    assert!(why(&[(&first, 0, 100)]).contains("not 100 bytes"));
    assert!(why(&[(&first, 100, page)]).contains("not at byte 100"));
    assert!(why(&[(&first, 2 * MIB, 2 * MIB)]).contains("outside"));
    let limit = usize::try_from(dmabuf::udmabuf_list_limit().unwrap()).unwrap();
    let text = why(&vec![(&first, 0, page); limit + 1]);
    assert!(text.contains("udmabuf/parameters/list_limit"), "{text}");
    // Joining does not get around the limit of the size.
    let limit = udmabuf_limit().unwrap();
    let count = usize::try_from(limit / (2 * MIB)).unwrap() + 1;
    if count <= 1024 {
        let text = why(&vec![(&first, 0, 2 * MIB); count]);
        assert!(text.contains("udmabuf/parameters/size_limit_mb"), "{text}");
    }
}

#[test]
fn without_the_device_the_need_is_named() {
    if Path::new(UDMABUF).exists() {
        return println!("not run: {UDMABUF} is here");
    }
    let error = udmabuf_from(&memfd("none", page_size())).unwrap_err();
    assert!(error.to_string().contains("CONFIG_UDMABUF"), "{error}");
    assert!(matches!(error, Error::Unavailable { .. }));
}

#[test]
fn the_last_user_frees_a_udmabuf() {
    if !present(UDMABUF) {
        return;
    }
    // The kernel refuses the write seal for as long as a udmabuf holds the pages: that shows when it lets go.
    let memfd = memfd("freed", 4 * MIB);
    let busy = || memfd.seal(Seals::WRITE).map_err(|e| e.raw_os_error());
    let dma_buf = udmabuf_from(&memfd).unwrap();
    let map = map_all(dma_buf.as_fd());
    assert_eq!(busy(), Err(Some(libc::EBUSY)));
    drop(dma_buf);
    assert_eq!(busy(), Err(Some(libc::EBUSY)), "the mapping is still there");
    assert_eq!(map.view().get(0, 4).unwrap().to_vec(), [0; 4]);
    drop(map);
    assert_eq!(busy(), Ok(()));
}

#[test]
fn a_heap_buffer_is_described_and_zero() {
    if !present(HEAP) {
        return;
    }
    assert!(heaps().contains(&"system".to_owned()), "{:?}", heaps());
    let dma_buf = heap_allocate("system", 2 * MIB + 1).unwrap();
    let info = describe(dma_buf.as_fd()).unwrap();
    assert_eq!((exporter(&info), info.len, info.writable), ("system", 2 * MIB + page_size(), true));
    let mut map = map_all(dma_buf.as_fd());
    assert!(map.view().to_vec().iter().all(|b| *b == 0));
    write_in_bracket(dma_buf.as_fd(), &mut map, 4095, b"heap");
    let other = Mapping::read_only(dma_buf.as_fd(), 4095, 4).unwrap();
    assert_eq!(other.view().to_vec(), b"heap");
}

#[test]
fn heaps_are_listed_in_errors() {
    if !present(HEAP) {
        return;
    }
    let error = heap_allocate("no-such-heap", 4096).unwrap_err().to_string();
    assert!(error.contains("there are: ") && error.contains("system"), "{error}");
    let error = heap_allocate("system", 1 << 45).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "the kernel would end processes: {error}");
}

#[test]
fn the_last_user_frees_a_heap_buffer() {
    if !present(HEAP) {
        return;
    }
    // Heap memory shows in no process; the descriptors' table of all dma-bufs does where debugfs is readable.
    let bufinfo = "/sys/kernel/debug/dma_buf/bufinfo";
    if std::fs::read_to_string(bufinfo).is_err() {
        return println!("not run: cannot read {bufinfo}");
    }
    let dma_buf = heap_allocate("system", MIB).unwrap();
    let inode = describe(dma_buf.as_fd()).unwrap().ino.to_string();
    let listed = || {
        let text = std::fs::read_to_string(bufinfo).unwrap();
        text.lines().any(|l| l.split_whitespace().any(|word| word.trim_start_matches('0') == inode))
    };
    let map = map_all(dma_buf.as_fd());
    assert!(listed());
    drop(dma_buf);
    assert!(listed(), "the mapping is still there");
    drop(map);
    assert!(!listed());
}

/// Starts this test program again as a process that owns nothing but its end of a socket, and sends it `fd`.
/// Returns what it says of the memory.
fn in_a_child(fd: OwnedFd) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child_process", "--ignored", "--quiet"])
        .env(CHILD, "1")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    send_fds(ours.as_fd(), b"memory", &[fd.as_fd()]).unwrap();
    drop(fd);
    let mut said = String::new();
    (&ours).read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "the child said {said:?}");
    said
}

#[test]
#[ignore = "the other side of the tests that pass a descriptor: they start it, with a socket as standard input"]
fn the_child_process() {
    if std::env::var_os(CHILD).is_none() {
        return println!("not run: no parent");
    }
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut buf = [0; 16];
    let (n, fds) = recv_fds(socket.as_fd(), &mut buf, 1).unwrap();
    assert_eq!((&buf[..n], fds.len()), (&b"memory"[..], 1));
    let info = describe(fds[0].as_fd()).unwrap();
    let mut map = map_all(fds[0].as_fd());
    let read = map.view().get(5000, 6).unwrap().to_vec();
    match &info.kind {
        FdKind::DmaBuf { .. } => write_in_bracket(fds[0].as_fd(), &mut map, info.len - 5, b"child"),
        _ => map.view_mut().unwrap().copy_from(info.len - 5, b"child").unwrap(),
    }
    let kind = match info.kind {
        FdKind::DmaBuf { exporter, .. } => exporter,
        FdKind::Memfd { .. } => "memfd".to_owned(),
        other => format!("{other:?}"),
    };
    write!(socket, "{kind} {} {}", info.len, String::from_utf8_lossy(&read)).unwrap();
    socket.shutdown(std::net::Shutdown::Both).unwrap();
}

/// Fills `fd`, has a child read and write it, and checks both ways; `name` is the kind that the child must see.
fn pass(fd: &impl AsFd, name: &str) {
    let mut map = map_all(fd.as_fd());
    map.view_mut().unwrap().copy_from(5000, b"parent").unwrap();
    let len = map.len() as u64;
    let said = in_a_child(fd.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(said, format!("{name} {len} parent"));
    assert_eq!(map.view().get(len - 5, 5).unwrap().to_vec(), b"child");
}

#[test]
fn a_child_maps_a_memfd() {
    pass(&memfd("passed", 3 * MIB), "memfd");
}

#[test]
fn a_child_maps_a_udmabuf() {
    if present(UDMABUF) {
        pass(&udmabuf_from(&memfd("passed", 3 * MIB)).unwrap(), "udmabuf");
    }
}

#[test]
fn a_child_maps_a_heap_buffer() {
    if present(HEAP) {
        pass(&heap_allocate("system", 3 * MIB).unwrap(), "system");
    }
}

#[test]
fn devdax_is_described_and_mapped_whole_or_in_part() {
    let devices = std::fs::read_dir("/sys/bus/dax/devices").into_iter().flatten().flatten();
    let mut names = devices.filter_map(|d| d.file_name().into_string().ok());
    let Some((name, file)) =
        names.find_map(|n| Some((n.clone(), File::open(Path::new("/dev").join(&n)).ok()?)))
    else {
        assert!(std::env::var_os("DAXFS_REQUIRE_DEVDAX").is_none(), "no /dev/daxX.Y that may be opened");
        return println!("not run: no /dev/daxX.Y that may be opened");
    };
    let sysfs = |file: &str| -> u64 {
        std::fs::read_to_string(format!("/sys/bus/dax/devices/{name}/{file}"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let info = describe(file.as_fd()).unwrap();
    assert_eq!((info.len, info.writable), (sysfs("size"), false));
    assert_eq!(info.kind, FdKind::DevDax { align: sysfs("align") });
    // Bounded by the size in sysfs: the kernel itself would map more and raise SIGBUS later.
    let bound = usize::try_from(info.len).unwrap();
    let error = Mapping::read_only(file.as_fd(), 0, bound + 1).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { bound, .. } if bound == info.len), "{error}");
    // Neither offset nor length is a multiple of the alignment; the drop asserts that munmap accepts the range.
    let whole = Mapping::read_only(file.as_fd(), 0, bound).unwrap();
    let part = Mapping::read_only(file.as_fd(), info.len - 5001, 5001).unwrap();
    assert_eq!(part.view().to_vec(), whole.view().get(info.len - 5001, 5001).unwrap().to_vec());
    assert_eq!(Mapping::private(file.as_fd(), 0, 4096).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}
