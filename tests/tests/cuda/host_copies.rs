//! Copies in host memory that a holder keeps, beside those on GPUs and never in their place.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use daxfs::DeviceUuid;
use daxfs::holder::message::DeviceCopy;
use daxfs::{Image, OpenOptions};
use daxfs_device::{ImageExt, Shared, UploadOptions};
use daxfs_device::{Plan, Route};
use serde_json::Value;

use crate::holder::{Holder, PATIENCE};
use crate::host_memory::{buffer, by_cpu, check_all, in_host};
use crate::support::{check, device, folder, on_a_gpu};

/// How the image gets to the device, or into host memory for it; what is there is the image's.
fn route(image: &Image, options: &UploadOptions) -> Route {
    let copy = image.to_with(&device(), options).unwrap();
    check(image, &copy);
    copy.memory().route()
}

#[test]
fn a_holder_keeps_it_beside_those_on_gpus() {
    on_a_gpu("host_copies::a_holder_keeps_it_beside_those_on_gpus", || {
        let mut holder = Holder::start(&[]);
        let (image, plain) = (holder.image(), UploadOptions::new());
        let copy = image.to_with(&device(), &in_host()).unwrap();
        copy.keep().unwrap();
        assert_eq!(route(&image, &plain), Route::Copy, "one in host memory is none on the GPU");
        assert_eq!(route(&image, &in_host()), Route::Descriptor);
        assert_eq!(route(&image, &in_host().verify(true)), Route::Descriptor);
        assert_eq!(route(&image, &in_host().writable(true)), Route::Copy);
        let table = |holder: &Holder| String::from_utf8(holder.run(&["ps"]).stdout).unwrap();
        assert!(table(&holder).trim_end().ends_with(" 0 + 1 in host memory"), "{}", table(&holder));

        image.to(&device()).unwrap().keep().unwrap();
        drop(copy);
        holder.take_over();
        for options in [plain, in_host()] {
            assert_eq!(route(&holder.image(), &options), Route::Descriptor);
        }
        check_all(&image, &image.to_with(&device(), &in_host()).unwrap());
        assert!(table(&holder).trim_end().ends_with(" 1 + 1 in host memory"), "{}", table(&holder));
        let copies = holder.json(&["ps", "--json"])["images"][0]["copies"].clone();
        let on_host = copies.as_array().unwrap().iter().filter(|copy| copy["device"].is_null());
        assert_eq!(on_host.count(), 1, "{copies}");

        // Who opens it for one content has it compared.
        let hash = image.content_hash().unwrap();
        let expected = OpenOptions::new().expect(hash).open(holder.name()).unwrap();
        assert_eq!(route(&expected, &in_host()), Route::Descriptor);
        // Memory of a GPU that somebody has left as the host's is not taken for that, nor the other way round.
        let leave = |options: &UploadOptions, device| {
            let copy = image.to_with(&super::support::device(), options).unwrap();
            let Shared { fd, size, .. } = buffer(&copy).share().unwrap();
            let copy = DeviceCopy { device, size, placement: DeviceCopy::WHOLE };
            image.region().attachment().unwrap().keep(fd.as_fd(), copy).unwrap();
        };
        let (on_device, on_host) = (UploadOptions::new(), in_host());
        leave(&on_device, DeviceUuid::HOST);
        assert_eq!(route(&image, &on_host), Route::Copy);
        leave(&on_host, device().as_cuda().unwrap().uuid());
        assert_eq!(route(&image, &on_device), Route::Copy);
    });
}

#[test]
fn what_a_rank_has_lies_there_too() {
    on_a_gpu("host_copies::what_a_rank_has_lies_there_too", || {
        let holder = Holder::start(&[]);
        let image = holder.image();
        let plan = r#"{"ranks": 2, "rules": [{"tensors": "w", "split": 1, "gather": true}]}"#;
        let placement = Plan::parse(plan).unwrap().place(&image, 1).unwrap();
        let copy = placement.to_with(&device(), &in_host().piece(4096).verify(true)).unwrap();
        let tensor = image.tensors().unwrap().get("w").unwrap();
        let whole = tensor.bytes().unwrap().to_vec();
        let half: Vec<u8> = whole.chunks(16).flat_map(|row| row[8..].to_vec()).collect();
        assert!(by_cpu(copy.part(&tensor).unwrap().place()) == half);
        copy.keep().unwrap();
        let kept = placement.to_with(&device(), &in_host()).unwrap();
        assert_eq!(kept.memory().route(), Route::Descriptor);
        assert!(by_cpu(kept.part(&tensor).unwrap().place()) == half);
        assert_eq!(placement.to(&device()).unwrap().memory().route(), Route::Copy);
        assert_eq!(route(&image, &in_host()), Route::Copy, "that of a rank is not all of it");
    });
}

#[test]
fn the_commands_make_copies_there() {
    on_a_gpu("host_copies::the_commands_make_copies_there", || {
        let holder = Holder::start(&["--into", "cuda-host:0"]);
        let start = Instant::now();
        while route(&holder.image(), &in_host()) != Route::Descriptor {
            assert!(start.elapsed() < PATIENCE, "no copy");
            thread::sleep(Duration::from_millis(20));
        }
        let upload = |more: &[&str]| {
            let answer = holder.json(&[&["upload", "m", "--json"], more].concat());
            let copy = answer["copies"][0].clone();
            (copy["device"].clone(), copy["uuid"].is_null(), copy["copied"].clone())
        };
        assert_eq!(upload(&["cuda-host:0"]), (Value::from("cuda-host:0"), true, Value::from(false)));
        assert_eq!(upload(&["cuda-host", "--verify"]).2, Value::from(false));
        assert_eq!(upload(&["cuda:0"]), (Value::from("cuda:0"), false, Value::from(true)));
        let text = String::from_utf8(holder.run(&["upload", "m", "cuda-host:0"]).stdout).unwrap();
        assert!(text.contains("is already in host memory, cuda-host:0, "), "{text}");

        let other = folder();
        let path = other.path().to_str().unwrap();
        assert!(holder.run(&["load", "other", path]).status.success());
        let text = String::from_utf8(holder.run(&["upload", "other", "cuda-host:0"]).stdout).unwrap();
        assert!(text.contains("copied to host memory, cuda-host:0, "), "{text}");
        let refused = |args: &[&str], why: &str| {
            let output = holder.run(args);
            assert!(!output.status.success());
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains(why), "{text}");
        };
        refused(&["upload", "m", "cuda-host:all"], "one copy in host memory serves all GPUs");
        refused(&["serve", "--into", "cuda-host:all"], "one copy in host memory serves all GPUs");
        refused(&["upload", "m", "cuda-host:99"], "there is no device 99");
        refused(&["upload", "m", "cuda-hosts"], "cuda-host:N");
        refused(&["upload", "m", "--place", "x", "--ranks", "cuda-host:0"], "a GPU's own memory");
    });
}
