//! Which way of mounting the command takes: the kernel's EROFS where an image has its view, FUSE otherwise.

use super::support::{Place, can_mount, daxfs, everything, mount_command, text};
use daxfs_tests::tree::{self, assert_same};
use mkimage::Packer;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

/// Mounts the image with more arguments: what was said, and the type of the file system that is there then, which is that
/// of the way that `--compat-check` names.
fn mounted(place: &Place, args: &[&str]) -> (Option<i32>, String, Option<String>) {
    let (status, said, kind) = mounted_unchecked(place, args);
    if let Some(kind) = &kind {
        let mut check = Command::new(daxfs());
        check.args(["mount", "--compat-check", "--json"]).arg(place.image()).args(args);
        let output = check.output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = if kind == "erofs" { "the kernel's EROFS" } else { "FUSE" };
        assert_eq!(report["here"]["chosen"], expected, "{report}");
    }
    (status, said, kind)
}

fn mounted_unchecked(place: &Place, args: &[&str]) -> (Option<i32>, String, Option<String>) {
    let (image, at) = (place.image(), place.at());
    let args: Vec<&OsStr> =
        [image.as_os_str(), at.as_os_str()].into_iter().chain(args.iter().map(OsStr::new)).collect();
    let output = mount_command(&args);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == place.at().to_str());
    let kind = line.and_then(|line| line.split(' ').nth(2)).map(str::to_owned);
    (output.status.code(), text(&output), kind)
}

fn with_view() -> Place {
    let place = Place::new(&everything());
    Packer::new().input(place.tree()).exact(true).plan().unwrap().write_file(place.image()).unwrap();
    fs::set_permissions(place.image(), Permissions::from_mode(0o644)).unwrap();
    place
}

#[test]
fn an_image_with_a_view_is_mounted_by_erofs() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let place = with_view();
    let (status, said, kind) = mounted(&place, &["-o", "allow_other,ro,nofail"]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("erofs")), "{said}");
    assert_same(&tree::on_disk(&place.at()), &tree::on_disk(&place.tree()));
    dmabuf::unmount(&place.at()).unwrap();

    // Memory has no path: a loop device reads it.
    let (status, said, kind) = mounted(&place, &["--sealed-copy"]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("erofs")), "{said}");
    assert_same(&tree::on_disk(&place.at()), &tree::on_disk(&place.tree()));
    dmabuf::unmount(&place.at()).unwrap();
}

/// Pages that one mount has read are there for all: one file system, by one device.
#[test]
fn mounts_of_one_image_have_one_copy_and_others_have_their_own() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let (place, other) = (with_view(), with_view());
    let at: Vec<_> = ["a", "b", "c", "d"].map(|name| place.at().join(name)).into();
    // The mount points lie in a tmpfs that goes with the place.
    let tmpfs = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &place.at(), Some("tmpfs"), tmpfs, None::<&str>).unwrap();
    at.iter().for_each(|at| fs::create_dir(at).unwrap());
    let mount = |image: &std::path::Path, at: &std::path::Path| {
        let output = mount_command(&[image, at, "--as".as_ref(), "erofs".as_ref()].map(AsRef::as_ref));
        assert!(output.status.success(), "{}", text(&output));
        fs::metadata(at).unwrap().dev()
    };
    let first = mount(&place.image(), &at[0]);
    assert_eq!(mount(&place.image(), &at[1]), first);
    assert_ne!(mount(&other.image(), &at[2]), first);
    // It lives as long as one of its mounts.
    dmabuf::unmount(&at[0]).unwrap();
    assert_same(&tree::on_disk(&at[1]), &tree::on_disk(&place.tree()));
    assert_eq!(mount(&place.image(), &at[0]), first);
    // What was written into the file since is not mixed with pages of before.
    fs::write(place.tree().join("config.json"), "{\"changed\": true}\n").unwrap();
    let next = place.tree().with_file_name("next");
    Packer::new().input(place.tree()).exact(true).plan().unwrap().write_file(&next).unwrap();
    let file = fs::File::options().write(true).open(place.image()).unwrap();
    std::io::copy(&mut fs::File::open(&next).unwrap(), &mut &file).unwrap();
    assert_ne!(mount(&place.image(), &at[3]), first);
    assert_same(&tree::on_disk(&at[3]), &tree::on_disk(&place.tree()));
    at.iter().for_each(|at| dmabuf::unmount(at).unwrap());
}

/// Containers that start at once have one copy too.
#[test]
fn mounts_that_begin_together_have_one_copy() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let place = with_view();
    let tmpfs = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &place.at(), Some("tmpfs"), tmpfs, None::<&str>).unwrap();
    let image = daxfs::OpenOptions::new().sealed_copy(true).open(place.image()).unwrap();
    let points: Vec<_> = (0..8).map(|i| place.at().join(i.to_string())).collect();
    let barrier = std::sync::Barrier::new(points.len());
    let devices: Vec<u64> = std::thread::scope(|scope| {
        let (image, barrier) = (&image, &barrier);
        let mounts = points.iter().map(|at| {
            scope.spawn(move || {
                fs::create_dir(at).unwrap();
                barrier.wait();
                image.mount_erofs(at).unwrap();
                fs::metadata(at).unwrap().dev()
            })
        });
        mounts.collect::<Vec<_>>().into_iter().map(|mount| mount.join().unwrap()).collect()
    });
    points.iter().for_each(|at| dmabuf::unmount(at).unwrap());
    assert!(devices.iter().all(|device| *device == devices[0]), "{devices:?}");
}

/// EROFS has no blocks that are larger than a page.
#[test]
fn an_image_for_larger_pages_is_mounted_by_fuse() {
    if !can_mount() || dmabuf::page_size() >= 65536 {
        return;
    }
    let place = Place::new(&everything());
    let packer = Packer::new().input(place.tree()).exact(true).block_size(65536);
    packer.plan().unwrap().write_file(place.image()).unwrap();
    fs::set_permissions(place.image(), Permissions::from_mode(0o644)).unwrap();
    let (status, said, kind) = mounted(&place, &[]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("fuse.daxfs")), "{said}");
    assert!(said.contains("its blocks have 65536 bytes"), "{said}");
    nix::mount::umount(&place.at()).unwrap();
    let (status, said, kind) = mounted(&place, &["--as", "erofs"]);
    assert_eq!((status, kind), (Some(2), None), "{said}");
}

#[test]
fn what_others_may_write_is_mounted_by_erofs_only_when_that_is_asked_for() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let place = with_view();
    fs::set_permissions(place.image(), Permissions::from_mode(0o666)).unwrap();
    let (status, said, kind) = mounted(&place, &[]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("fuse.daxfs")), "{said}");
    assert!(said.contains("others than root can write its memory"), "{said}");
    nix::mount::umount(&place.at()).unwrap();
    let (status, said, kind) = mounted(&place, &["--as", "erofs"]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("erofs")), "{said}");
    dmabuf::unmount(&place.at()).unwrap();
}

#[test]
fn options_of_fuse_are_not_lost() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let place = with_view();
    for way in ["erofs", "kernel"] {
        let (status, said, kind) = mounted(&place, &["--as", way, "-o", "uid=3"]);
        assert_eq!((status, kind), (Some(2), None), "{said}");
        assert!(said.contains("the option uid takes a process"), "{said}");
    }
    let (status, said, kind) = mounted(&place, &["-o", "uid=3"]);
    assert_eq!((status, kind.as_deref()), (Some(0), Some("fuse.daxfs")), "{said}");
    assert_eq!(fs::metadata(place.at().join("config.json")).unwrap().uid(), 3);
    nix::mount::umount(&place.at()).unwrap();
}

/// Root of another user namespace mounts by FUSE alone, and is not held up by what it may not do.
#[test]
fn a_user_namespace_passes_erofs_over() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let place = with_view();
    let script = "set -e; \"$1\" mount \"$2\" \"$3\"; cut -d' ' -f2,3 /proc/self/mounts; umount \"$3\"";
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    let output = shell.args([daxfs(), place.image(), place.at()]).output().unwrap();
    let said = text(&output);
    if !output.status.success() && said.starts_with("unshare:") {
        assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{said}");
        eprintln!("not run: no user namespaces: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("{} fuse.daxfs", place.at().display())), "{said}");
}

/// A process of some user that serves a file system says of each file what it likes.
#[test]
fn a_file_that_a_process_serves_is_not_roots() {
    if !can_mount() || !has_erofs() {
        return;
    }
    let (inner, outer) = (with_view(), Place::empty());
    fs::copy(inner.image(), outer.tree().join("image")).unwrap();
    fs::set_permissions(outer.tree().join("image"), Permissions::from_mode(0o644)).unwrap();
    outer.pack();
    let _outer = outer.mount();
    let file = outer.at().join("image");
    let stat = fs::metadata(&file).unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o777), (0, 0o644));
    let output = mount_command(&[file.as_os_str(), inner.at().as_os_str()]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("others than root can write"), "{said}");
    nix::mount::umount(&inner.at()).unwrap();
}

#[test]
fn an_image_without_a_view_is_refused_by_erofs() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let (status, said, kind) = mounted(&place, &["--as", "erofs"]);
    assert_eq!((status, kind), (Some(2), None), "{said}");
    assert!(said.contains("pack it with --erofs"), "{said}");
}

fn has_erofs() -> bool {
    let missing = dmabuf::has_file_system("erofs").err();
    if let Some(why) = &missing {
        assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("not run: {why}");
    }
    missing.is_none()
}
