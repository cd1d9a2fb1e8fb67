//! A mount beside a tmpfs with the same tree: each system call answers the same.

use super::probe::probe;
use super::support::{NOBODY, Place, can_mount, everything, text};
use daxfs::{Image, OpenOptions};
use daxfs_fuse::Caching;
use daxfs_tests::tree;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[track_caller]
fn assert_same_lines(found: &[String], expected: &[String]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "the mount left, the tmpfs right");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn each_call_answers_as_on_a_tmpfs_whatever_the_memory() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    place.mount_reference();
    let expected = probe(&place.reference());
    assert!(expected.len() > 10_000, "{}", expected.len());
    let memfd = || {
        let (fd, _) = mkimage::Packer::new()
            .input(place.tree())
            .plain(true)
            .plan()
            .unwrap()
            .write_memory(&mkimage::Memory::SharedMemfd(dmabuf::HugePages::No))
            .unwrap();
        Image::from_fd(fd).unwrap()
    };
    let images = [
        (OpenOptions::new().sealed_copy(true).open(place.image()).unwrap(), Caching::Forever),
        (Image::open(place.image()).unwrap(), Caching::Watched),
        (memfd(), Caching::Brief),
    ];
    for (image, caching) in images {
        let mount = place.mount_as(image);
        assert_eq!(mount.caching(), caching);
        assert_same_lines(&probe(mount.path()), &expected);
        // Once more, of what the kernel has cached.
        assert_same_lines(&probe(mount.path()), &expected);
        let (found, packed) = (tree::on_disk(mount.path()), tree::on_disk(&place.tree()));
        tree::assert_same(&found, &packed);
        mount.unmount().unwrap();
        assert!(!place.is_mounted());
    }
}

/// What a shell of another user gets to see and to read, by the modes.
fn as_nobody(root: &Path) -> String {
    let script = "find . -printf '%P %y %m %U %G %n %l\\n' 2>&1 | sort; \
                  find . -type f -exec sh -c 'head -c 8 \"$1\" | od -c' sh {} \\; 2>&1 | sort; \
                  for way in -r -w -x; do for f in * d/* closed/in; do test $way \"$f\"; echo $?; done; done; ./program";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(root)
        .uid(NOBODY)
        .gid(NOBODY)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    text(&output)
}

#[test]
fn modes_and_owners_hold_for_other_users() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    place.mount_reference();
    let mount = place.mount();
    let (found, expected) = (as_nobody(mount.path()), as_nobody(&place.reference()));
    assert!(expected.contains("ran\n") && expected.contains("Permission denied"), "{expected}");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_same_lines(&lines(&found), &lines(&expected));
}

#[test]
fn numbers_of_inodes_are_those_of_the_image() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let mount = place.mount();
    let image = Image::open(place.image()).unwrap();
    for path in ["", "config.json", "d", "d/again", "d/up", "many/7"] {
        let meta = fs::symlink_metadata(mount.path().join(path)).unwrap();
        let entry = image.entry_no_follow(path).unwrap();
        assert_eq!(
            (meta.ino(), meta.nlink()),
            (entry.metadata().ino, entry.metadata().nlink.into()),
            "{path}"
        );
        assert_eq!((meta.mtime(), meta.ctime(), meta.atime()), (0, 0, 0), "{path}");
        assert_eq!(meta.blocks(), meta.len().div_ceil(512), "{path}");
    }
}

#[test]
fn the_file_system_is_full_and_says_how_large_it_is() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let mount = place.mount();
    let stats = nix::sys::statvfs::statvfs(mount.path()).unwrap();
    let image = Image::open(place.image()).unwrap();
    assert_eq!(stats.blocks() * stats.fragment_size(), image.region().len().next_multiple_of(4096));
    assert_eq!((stats.blocks_free(), stats.files_free(), stats.name_max()), (0, 0, 255));
    // A file with two names is one.
    assert_eq!(stats.files(), image.len() as u64 - 1);
    assert!(stats.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(mount.path().to_str().unwrap())).unwrap();
    assert!(line.contains(" - fuse.daxfs test "), "{line}");
}

#[test]
fn handles_of_files_outlive_what_the_kernel_has_cached() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let mount = place.mount();
    let script = "import ctypes, os, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        class Handle(ctypes.Structure):\n    \
            _fields_ = [('size', ctypes.c_uint), ('kind', ctypes.c_int), ('bytes', ctypes.c_char * 128)]\n\
        handle, number = Handle(128), ctypes.c_int()\n\
        path = sys.argv[1].encode()\n\
        assert libc.name_to_handle_at(-100, path + b'/many/7', ctypes.byref(handle), ctypes.byref(number), 0) == 0\n\
        open('/proc/sys/vm/drop_caches', 'w').write('2')\n\
        root = os.open(path, os.O_RDONLY)\n\
        fd = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)\n\
        assert fd >= 0, os.strerror(ctypes.get_errno())\n\
        sys.stdout.buffer.write(os.read(fd, 100))\n";
    let output = Command::new("python3").args(["-c", script]).arg(mount.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(output.stdout, fs::read(place.tree().join("many/7")).unwrap());
}
