//! Another image in the place of the one that is mounted.

use super::support::{Place, can_mount, daxfs, mount_command, text};
use daxfs::{Image, OpenOptions};
use daxfs_fuse::{Mount, Options};
use daxfs_tests::tree::Item;
use mkimage::{Memory, Packer};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Waits until a file says something.
#[track_caller]
fn until_it_says(path: &Path, text: &str) {
    let start = Instant::now();
    while fs::read_to_string(path).ok().as_deref() != Some(text) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", fs::read_to_string(path));
        sleep(Duration::from_millis(20));
    }
}

fn tree(text: &str) -> Vec<(Vec<u8>, Item)> {
    vec![
        (b"d".to_vec(), Item::Dir(0o755)),
        (b"d/file".to_vec(), Item::File(0o644, text.into())),
        (text.as_bytes().to_vec(), Item::File(0o644, vec![7; 300_000])),
    ]
}

/// Memory that can be written again, with an image of a tree and room for more.
fn memory(place: &Place) -> OwnedFd {
    let size = 16 << 20;
    let memfd = dmabuf::Memfd::create("changing", size, dmabuf::HugePages::No).unwrap();
    let fd = OwnedFd::from(memfd);
    write(place, &fd, false);
    fd
}

fn write(place: &Place, fd: &OwnedFd, replace: bool) {
    use std::os::fd::AsRawFd;
    let source = daxfs::Source::parse(format!("fd:{}", fd.as_raw_fd()).as_ref()).unwrap();
    let packer = Packer::new().input(place.tree()).plain(true).replace(replace);
    packer.plan().unwrap().write_memory(&Memory::Device(source)).unwrap();
}

#[test]
fn an_image_that_is_replaced_in_place_is_shown_and_the_old_one_is_stale() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&tree("first"));
    let fd = memory(&place);
    let mount = place.mount_as(Image::from_fd(fd.as_fd().try_clone_to_owned().unwrap()).unwrap());
    let at = mount.path().to_owned();
    assert_eq!(fs::read_to_string(at.join("d/file")).unwrap(), "first");
    assert_eq!(fs::read(at.join("first")).unwrap(), vec![7; 300_000]);
    let mut open = File::open(at.join("first")).unwrap();
    fs::remove_dir_all(place.tree()).unwrap();
    fs::create_dir(place.tree()).unwrap();
    daxfs_tests::tree::write(&tree("second"), &place.tree());
    write(&place, &fd, true);
    until_it_says(&at.join("d/file"), "second");
    assert!(fs::metadata(at.join("first")).is_err());
    assert_eq!(fs::read(at.join("second")).unwrap(), vec![7; 300_000]);
    let names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    // What was opened is of an image that is not there any more.
    let error = open.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
}

#[test]
fn a_path_that_means_another_file_is_followed_on_demand() {
    if !can_mount() {
        return;
    }
    for (follow, expected) in [(false, "first"), (true, "second")] {
        let place = Place::new(&tree("first"));
        let image = OpenOptions::new().open(place.image()).unwrap();
        let options = Options { follow, ..Options::new("test") };
        let mount = Mount::new(image, place.at(), &options).unwrap();
        let file = mount.path().join("d/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
        fs::write(place.tree().join("d/file"), "second").unwrap();
        place.pack();
        if follow {
            until_it_says(&file, expected);
        } else {
            // As long as a watch takes, and what it would drop.
            sleep(Duration::from_millis(2500));
            assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        }
    }
}

/// A running holder; ended when it is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_of_a_holders_image_outlives_the_holder_and_follows_a_swap_on_demand() {
    if !can_mount() {
        return;
    }
    for (options, expected) in [("allow_other", "first"), ("follow", "second")] {
        let place = Place::new(&tree("first"));
        let socket = place.tree().with_file_name("socket");
        let holder = || {
            let mut command = Command::new(daxfs());
            command.arg("serve").arg("--socket").arg(&socket).stderr(Stdio::null());
            command
        };
        let control = |args: &[&str]| {
            let (verb, rest) = args.split_first().unwrap();
            let output =
                Command::new(daxfs()).arg(verb).arg("--socket").arg(&socket).args(rest).output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", text(&output));
        };
        let holding = Holder(holder().arg(format!("m={}", place.tree().display())).spawn().unwrap());
        control(&["health", "--wait", "60"]);
        let source = format!("daxfs+unix://{}/m", socket.display());
        let at = place.at();
        let output = mount_command(&[source.as_ref(), at.as_os_str(), "-o".as_ref(), options.as_ref()]);
        assert!(output.status.success(), "{}", text(&output));
        let file = at.join("d/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
        fs::write(place.tree().join("d/file"), "second").unwrap();
        control(&["swap", "m", place.tree().to_str().unwrap()]);
        if expected == "second" {
            until_it_says(&file, expected);
        } else {
            sleep(Duration::from_millis(2500));
        }
        drop(holding);
        // The memory is the mount's as well.
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        assert_eq!(fs::read(at.join("first")).unwrap(), vec![7; 300_000]);
        nix::mount::umount(&at).unwrap();
    }
}
