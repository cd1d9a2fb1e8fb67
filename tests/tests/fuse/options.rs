//! Options, mount(8) and its helper, other users, and user namespaces.

use super::support::{NOBODY, Place, can_mount, daxfs, everything, mount_command, others_can_mount, text};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn mounted(place: &Place, options: &str) -> Output {
    let (image, at) = (place.image(), place.at());
    mount_command(&[image.as_os_str(), at.as_os_str(), OsStr::new("-o"), OsStr::new(options)])
}

/// The line of a mount in `/proc/self/mounts`: source, point, type, options.
fn line(place: &Place) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == place.at().to_str());
    line.unwrap().split(' ').map(str::to_owned).collect()
}

fn read_as_nobody(place: &Place) -> Output {
    let file = place.at().join("config.json");
    Command::new("cat").arg(file).uid(NOBODY).gid(NOBODY).output().unwrap()
}

#[test]
fn options_reach_the_kernel_and_the_files() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let has = |options: &[String], name: &str| options[3].split(',').any(|option| option == name);
    let output = mounted(&place, "rw,noatime,x-systemd.automount,nofail");
    assert!(output.status.success(), "{}", text(&output));
    let given = line(&place);
    assert_eq!(given[0], place.image().to_str().unwrap());
    assert_eq!(given[2], "fuse.daxfs");
    for name in ["ro", "nosuid", "nodev", "default_permissions"] {
        assert!(has(&given, name), "{given:?}");
    }
    assert!(!has(&given, "allow_other") && !has(&given, "noexec"), "{given:?}");
    assert!(!read_as_nobody(&place).status.success(), "the mount is its owner's alone");
    nix::mount::umount(&place.at()).unwrap();

    let output = mounted(&place, "allow_other,suid,dev,noexec,uid=7,gid=8,fsname=weights");
    assert!(output.status.success(), "{}", text(&output));
    let given = line(&place);
    assert_eq!(given[0], "weights");
    assert!(has(&given, "allow_other") && has(&given, "noexec") && !has(&given, "nosuid"), "{given:?}");
    let meta = fs::metadata(place.at().join("secret")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (7, 8));
    assert_eq!(read_as_nobody(&place).stdout, b"{}\n");
    assert!(Command::new(place.at().join("program")).output().is_err());
    nix::mount::umount(&place.at()).unwrap();
}

#[test]
fn what_is_read_around_the_page_cache_is_the_same_and_can_be_mapped() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let output = mounted(&place, "direct_io,sealed_copy");
    assert!(output.status.success(), "{}", text(&output));
    let found = daxfs_tests::tree::on_disk(&place.at());
    daxfs_tests::tree::assert_same(&found, &daxfs_tests::tree::on_disk(&place.tree()));
    let file = fs::File::open(place.at().join("bytes-4097")).unwrap();
    let mapping = dmabuf::Mapping::read_only(std::os::fd::AsFd::as_fd(&file), 0, 4097).unwrap();
    assert_eq!(mapping.view().to_vec(), fs::read(place.tree().join("bytes-4097")).unwrap());
    drop((file, mapping));
    nix::mount::umount(&place.at()).unwrap();
}

#[test]
fn how_an_image_is_opened_can_be_said_in_the_list() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    mkimage::Packer::new().input(place.tree()).plan().unwrap().write_file(place.image()).unwrap();
    let hash = daxfs::Image::open(place.image()).unwrap().content_hash().unwrap();
    let output = mounted(&place, &format!("ro,expect={hash},strict,as=fuse"));
    assert!(output.status.success(), "{}", text(&output));
    nix::mount::umount(&place.at()).unwrap();
    let output = mounted(&place, &format!("expect=blake3:{}", "0".repeat(64)));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(!place.is_mounted());
}

/// With the helper in a folder of its own, which is laid over `/sbin` in a mount namespace.
#[test]
fn mount_finds_the_helper() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let folder = place.tree().with_file_name("sbin");
    fs::create_dir(&folder).unwrap();
    symlink(daxfs(), folder.join("mount.fuse.daxfs")).unwrap();
    let fstab = place.tree().with_file_name("fstab");
    let line = format!(
        "{} {} fuse.daxfs ro,allow_other,nofail,x-systemd.requires=daxfs.service,threads=2 0 0\n",
        place.image().display(),
        place.at().display()
    );
    fs::write(&fstab, line).unwrap();
    let script = "set -e; at=$1 image=$2\n\
        mount --bind \"$4\" /sbin 2>/dev/null || mount --bind \"$4\" /usr/sbin\n\
        PATH=/bin:/usr/bin:$5\n\
        mount -t fuse.daxfs \"$image\" \"$at\" -o allow_other,uid=9\n\
        cat \"$at/config.json\"; stat -c %u \"$at/config.json\"; umount \"$at\"\n\
        mount -T \"$3\" \"$at\"; cat \"$at/config.json\"; umount \"$at\"\n\
        mount -f -t fuse.daxfs \"$image\" \"$at\" \n\
        grep -c \"$at\" /proc/self/mounts || true\n";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([place.at(), place.image(), fstab, folder])
        .arg(daxfs().parent().unwrap())
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("daxfs: ")).collect();
    assert_eq!(lines[..4], ["{}", "9", "{}", "0"], "{said}");
}

/// Everybody may have a user namespace and mount there.
#[test]
fn a_user_namespace_needs_no_root() {
    if !can_mount() || !others_can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let command = place.tree().with_file_name("daxfs");
    fs::set_permissions(place.image(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::copy(daxfs(), &command).unwrap();
    let script = "set -e; at=$1 image=$2 command=$3\n\
        mount -t tmpfs own /mnt; mkdir /mnt/at\n\
        \"$command\" mount -o allow_other \"$image\" /mnt/at\n\
        cat /mnt/at/config.json; find /mnt/at | wc -l; umount /mnt/at; test ! -e /mnt/at/config.json; echo gone\n";
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    shell.args([place.at(), place.image(), command]).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = shell.output().unwrap();
    let said = text(&output);
    if !output.status.success() && said.starts_with("unshare:") {
        assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{said}");
        eprintln!("not run: no user namespaces for others than root: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("daxfs: ")).collect();
    // And the root, and the second line of a name.
    let names = everything().len() + 2;
    assert_eq!(lines, ["{}", names.to_string().as_str(), "gone"], "{said}");
}

/// By fusermount3, which is set-user-ID, at a directory of the user's own.
#[test]
fn a_user_mounts_by_fusermount() {
    if !can_mount() || !others_can_mount() {
        return;
    }
    if !Command::new("fusermount3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("not run: there is no fusermount3 (the package fuse3)");
        return;
    }
    let place = Place::new(&everything());
    let command = place.tree().with_file_name("daxfs");
    fs::copy(daxfs(), &command).unwrap();
    fs::set_permissions(place.image(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(place.at(), Some(NOBODY), Some(NOBODY)).unwrap();
    let run = |program: &OsStr, args: &[&OsStr]| {
        Command::new(program).args(args).uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap()
    };
    let (image, at) = (place.image(), place.at());
    let output = run(command.as_ref(), &["mount".as_ref(), image.as_ref(), at.as_ref()]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(line(&place)[2], "fuse.daxfs");
    assert_eq!(read_as_nobody(&place).stdout, b"{}\n");
    // Not even root's, unless the user says so.
    assert_eq!(fs::read_dir(&at).unwrap_err().raw_os_error(), Some(libc::EACCES));
    let output = run("fusermount3".as_ref(), &["-u".as_ref(), at.as_ref()]);
    assert!(output.status.success() && !place.is_mounted(), "{}", text(&output));
}
