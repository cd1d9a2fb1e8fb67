//! A holder keeps copies in a GPU's memory, and every process that opens the image there gets the copy.

use std::env;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use daxfs::DeviceUuid;
use daxfs::Image;
use daxfs::holder::message::DeviceCopy;
use daxfs_device::UploadOptions;
use daxfs_device::{Device, DeviceError, Error, ImageExt, Route};
use mkimage::{HugePages, Memory};
use serde_json::Value;

use crate::support::{check, device, folder, image, old_library, on_a_gpu, pack, simulated, with_library};

/// More than any step takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command `daxfs`, which lies one folder above the test programs.
fn daxfs() -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

/// A running holder of one image, "m"; ended when it is dropped.
pub struct Holder {
    process: Child,
    place: tempfile::TempDir,
    _source: tempfile::TempDir,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Holder {
    pub fn start(more: &[&str]) -> Self {
        let (place, source) = (tempfile::tempdir().unwrap(), folder());
        let mut image = std::ffi::OsString::from("m=");
        image.push(source.path());
        let mut command = Command::new(daxfs());
        command.arg("serve").args(more).arg(image).env("DAXFS_SOCKET", place.path().join("s"));
        let process = command.stderr(Stdio::piped()).spawn().unwrap();
        let holder = Self { process, place, _source: source };
        let start = Instant::now();
        while !holder.run(&["health"]).status.success() {
            assert!(start.elapsed() < PATIENCE, "no answer of the holder");
            thread::sleep(Duration::from_millis(20));
        }
        holder
    }

    /// Replaces the holder by another one, which takes over.
    pub fn take_over(&mut self) {
        let mut command = Command::new(daxfs());
        command.args(["serve", "--takeover"]).env("DAXFS_SOCKET", self.place.path().join("s"));
        let mut old = std::mem::replace(&mut self.process, command.stderr(Stdio::null()).spawn().unwrap());
        assert!(old.wait().unwrap().success());
        let start = Instant::now();
        while self.json(&["health", "--json"])["pid"] != self.process.id() {
            assert!(start.elapsed() < PATIENCE, "no answer of the new holder");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let socket = self.place.path().join("s");
        Command::new(daxfs()).args(args).env("DAXFS_SOCKET", socket).output().unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What its image is opened by.
    pub fn name(&self) -> String {
        format!("daxfs+unix://{}/s/m", self.place.path().display())
    }

    pub fn image(&self) -> Image {
        Image::open(self.name()).unwrap()
    }
}

/// A copy of all of an image.
fn whole(device: DeviceUuid, size: u64) -> DeviceCopy {
    DeviceCopy { device, size, placement: DeviceCopy::WHOLE }
}

/// How the image gets to the device; what is there is the image's.
fn route(image: &Image, options: &UploadOptions) -> Route {
    let resident = image.to_with(&device(), options).unwrap();
    check(image, &resident);
    resident.memory().route()
}

#[test]
fn a_copy_that_was_given_to_the_holder_serves_all() {
    on_a_gpu("holder::a_copy_that_was_given_to_the_holder_serves_all", || {
        let holder = Holder::start(&[]);
        let (image, plain) = (holder.image(), UploadOptions::new());
        assert_eq!(route(&image, &plain), Route::Copy, "nobody has made one");
        image.to(&device()).unwrap().keep().unwrap();
        assert_eq!(route(&image, &plain), Route::Descriptor);
        assert_eq!(route(&holder.image(), &plain), Route::Descriptor);
        assert_eq!(route(&image, &UploadOptions::new().verify(true)), Route::Descriptor);
        assert_eq!(route(&image, &UploadOptions::new().writable(true)), Route::Copy);

        // The copy goes with the image; who has it mapped keeps it.
        let kept = image.to(&device()).unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::create_dir(other.path().join("tree")).unwrap();
        fs::write(other.path().join("tree/file"), "other").unwrap();
        let tree = other.path().join("tree");
        assert!(holder.run(&["swap", "m", tree.to_str().unwrap()]).status.success());
        check(&image, &kept);
        assert_eq!(holder.image().to(&device()).unwrap().memory().route(), Route::Copy);
        let error = kept.keep().unwrap_err();
        assert!(
            matches!(&error, Error::Image(daxfs::Error::Holder(error)) if error.is_not_found()),
            "{error}"
        );
        assert!(error.to_string().contains("another one by now"), "{error}");
        // Who has an image can have it on the device, whatever its name means now, and whether a holder is there.
        assert_eq!(route(&image, &plain), Route::Copy);
        drop(holder);
        assert_eq!(route(&image, &plain), Route::Copy);
    });
}

#[test]
fn what_nobody_may_rely_on_is_no_copy_for_all() {
    on_a_gpu("holder::what_nobody_may_rely_on_is_no_copy_for_all", || {
        let holder = Holder::start(&[]);
        let image = holder.image();
        let refused = |error: Error, why: &str| {
            assert!(matches!(error, Error::Device(DeviceError::NotKept { .. })), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        };
        let writable = image.to_with(&device(), &UploadOptions::new().writable(true)).unwrap();
        refused(writable.keep().unwrap_err(), "may have written to it");
        // Memory that others may write is what it is now.
        let shared = pack(&Memory::SharedMemfd(HugePages::No));
        let number = shared.as_raw_fd();
        nix::fcntl::fcntl(&shared, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        assert!(holder.run(&["load", "--shared", "shared", &format!("fd:{number}")]).status.success());
        let image = Image::open(format!("daxfs+unix://{}/s/shared", holder.place.path().display())).unwrap();
        let resident = image.to(&device()).unwrap();
        refused(resident.keep().unwrap_err(), "memory could change");
        refused(image.map(&device()).unwrap().keep().unwrap_err(), "memory could change");
        // Nor is a copy of it taken that somebody has left all the same.
        let copy = resident.buffers()[0].as_cuda().unwrap().share().unwrap();
        image.region().attachment().unwrap().keep(copy.fd.as_fd(), whole(copy.uuid, copy.size)).unwrap();
        assert_eq!(route(&image, &UploadOptions::new()), Route::Copy);
    });
}

/// Processes that a process has started and that have not ended.
fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_holder_that_ends_ends_the_copying() {
    let settings = [("DAXFS_FAKE_CUDA_DELAY_US", "600000000")];
    simulated("holder::a_holder_that_ends_ends_the_copying", &settings, || {
        let mut holder = Holder::start(&["--into", "cuda:0"]);
        let start = Instant::now();
        let process = holder.process.id();
        while children(process).is_empty() {
            assert!(start.elapsed() < PATIENCE, "no process that copies");
            thread::sleep(Duration::from_millis(5));
        }
        let copying = children(process);
        assert!(holder.run(&["stop"]).status.success());
        assert!(holder.process.wait().unwrap().success());
        assert!(copying.iter().all(|child| !fs::exists(format!("/proc/{child}")).unwrap()));
    });
}

#[test]
fn a_copy_that_cannot_be_made_is_logged() {
    with_library("holder::a_copy_that_cannot_be_made_is_logged", old_library, &[], || {
        let mut holder = Holder::start(&["--into", "cuda:0", "--log", "json"]);
        let log = std::io::BufReader::new(holder.process.stderr.take().unwrap());
        let lines =
            std::io::BufRead::lines(log).map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        let line = lines.into_iter().find(|line| line["message"] == "no copy on the GPU").unwrap();
        assert_eq!((&line["name"], &line["into"]), (&Value::from("m"), &Value::from("cuda:0")));
        assert!(line["why"].as_str().unwrap().contains("CUDA with cuMemCreate"), "{line}");
    });
}

#[test]
fn the_command_makes_a_copy_and_ends() {
    on_a_gpu("holder::the_command_makes_a_copy_and_ends", || {
        let holder = Holder::start(&[]);
        let upload = |more: &[&str]| {
            let answer = holder.json(&[&["upload", "m", "--json"], more].concat());
            let copies = answer["copies"].as_array().unwrap().clone();
            copies.iter().map(|copy| (copy["device"].clone(), copy["copied"].clone())).collect::<Vec<_>>()
        };
        let made = |copied: bool| vec![(Value::from("cuda:0"), Value::from(copied))];
        assert_eq!(upload(&["cuda:0"]), made(true));
        assert_eq!(upload(&[]), made(false));
        assert_eq!(upload(&["--verify"]), made(false), "it was compared");
        assert_eq!(upload(&["cuda:all"])[0], made(false)[0]);
        assert_eq!(route(&holder.image(), &UploadOptions::new()), Route::Descriptor);
        let output = holder.run(&["upload", "none", "cuda:0"]);
        assert_eq!(output.status.code(), Some(2));
        let output = holder.run(&["upload", "m", "cuda:99"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("there is no device 99"));
    });
}

#[test]
fn all_devices_get_copies() {
    let settings = [("DAXFS_FAKE_CUDA_DEVICES", "3")];
    simulated("holder::all_devices_get_copies", &settings, || {
        let holder = Holder::start(&[]);
        assert_eq!(
            holder.json(&["upload", "m", "cuda:all", "--json"])["copies"].as_array().unwrap().len(),
            3
        );
        assert_eq!(holder.json(&["ps", "--json"])["images"][0]["copies"].as_array().unwrap().len(), 3);
        for number in 0..3 {
            let resident = holder.image().to(&Device::open("cuda", number).unwrap()).unwrap();
            assert_eq!(resident.memory().route(), Route::Descriptor);
        }
    });
}

#[test]
fn a_holder_has_its_first_images_copied() {
    on_a_gpu("holder::a_holder_has_its_first_images_copied", || {
        let holder = Holder::start(&["--into", "cuda:0"]);
        let start = Instant::now();
        while route(&holder.image(), &UploadOptions::new()) != Route::Descriptor {
            assert!(start.elapsed() < PATIENCE, "no copy");
            thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn what_no_holder_keeps() {
    simulated("holder::what_no_holder_keeps", &[], || {
        let error = image().to(&device()).unwrap().keep().unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NotKept { .. })), "{error}");
        assert!(error.to_string().contains("came from no holder"), "{error}");
    });
}

#[test]
fn copies_outlive_the_holder() {
    on_a_gpu("holder::copies_outlive_the_holder", || {
        let mut holder = Holder::start(&[]);
        let image = holder.image();
        image.to(&device()).unwrap().keep().unwrap();
        holder.take_over();
        assert_eq!(route(&image, &UploadOptions::new()), Route::Descriptor);
        assert_eq!(route(&holder.image(), &UploadOptions::new()), Route::Descriptor);
    });
}

/// A descriptor that is no memory of the device is kept, since the holder has no driver; those who ask get a copy.
#[test]
fn a_copy_that_is_none_is_passed_over() {
    simulated("holder::a_copy_that_is_none_is_passed_over", &[], || {
        let holder = Holder::start(&[]);
        let image = holder.image();
        let uuid = device().as_cuda().unwrap().uuid();
        let none = fs::File::open("/dev/null").unwrap();
        image.region().attachment().unwrap().keep(none.as_fd(), whole(uuid, 8 << 20)).unwrap();
        assert_eq!(route(&image, &UploadOptions::new()), Route::Copy);
    });
}
