//! Waiting for a name to mean another image, and the bounds of all waiting.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use daxfs::OpenOptions;
use daxfs_holder::client::{Given, Load, LoadError};
use daxfs_protocol::{Allowed, Connection, HolderError};
use nix::sys::signal::{Signal, kill};
use support::{PATIENCE, Place, Start, be_process, wait_for};

#[test]
fn process() {
    be_process();
}

#[test]
fn a_watch_is_told_of_a_swap_and_of_a_drop() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let weights = place.weights("w", 1, 5000);
    place.load_path("m", false, &weights).unwrap();
    place.load_path("other", false, &weights).unwrap();
    let image = place.open("m");
    let mut watch = image.watch().unwrap().unwrap();
    place.load_path("other", true, &weights).unwrap();
    place.connect().access("m", Some(Allowed { uids: vec![4711], gids: vec![] })).unwrap();
    assert!(
        !watch.wait(Some(Duration::ZERO)).unwrap(),
        "another name, and who may attach, are not its image"
    );
    place.load_path("m", true, &place.weights("v", 2, 5000)).unwrap();
    assert!(watch.wait(Some(PATIENCE)).unwrap());
    assert!(watch.wait(None).unwrap(), "it stays so");
    assert!(
        image.watch().unwrap().unwrap().wait(Some(PATIENCE)).unwrap(),
        "told at once, where it is so already"
    );
    let image = image.refresh().unwrap().unwrap();
    let mut watch = image.watch().unwrap().unwrap();
    assert!(!watch.wait(Some(Duration::from_millis(1))).unwrap());
    place.connect().drop_image("m").unwrap();
    assert!(watch.wait(Some(PATIENCE)).unwrap());
    assert!(!image.is_current().unwrap());
    let on_disk = place.dir.path().join("i.daxfs");
    std::fs::write(&on_disk, image.region().view().to_vec()).unwrap();
    assert!(daxfs::Image::open(&on_disk).unwrap().watch().unwrap().is_none());
}

#[test]
fn a_watch_ends_with_its_holder_and_goes_on_at_the_next() {
    let place = Place::new();
    let _old = place.serve(&Start::default());
    let weights = place.weights("w", 1, 5000);
    place.load_path("m", false, &weights).unwrap();
    let image = place.open("m");
    let mut watch = image.watch().unwrap().unwrap();
    let _new = place.serve(&Start { takeover: true, ..Start::default() });
    let error = watch.wait(Some(PATIENCE)).unwrap_err();
    assert!(error.is_disconnect(), "{error}");
    assert!(watch.fd().is_none());
    assert!(image.is_current().unwrap(), "the images went to the new holder");
    let mut watch = image.watch().unwrap().unwrap();
    place.load_path("m", true, &weights).unwrap();
    assert!(watch.wait(Some(PATIENCE)).unwrap());
    let mut watch = image.refresh().unwrap().unwrap().watch().unwrap().unwrap();
    place.connect().stop().unwrap();
    assert!(watch.wait(Some(PATIENCE)).unwrap_err().is_disconnect());
}

#[test]
fn a_holder_that_is_stopped_keeps_nobody_longer_than_asked() {
    let place = Place::new();
    let holder = place.serve(&Start::default());
    let weights = place.weights("w", 1, 5000);
    place.load_path("m", false, &weights).unwrap();
    let short = Duration::from_millis(20);
    // A busy machine may need several tries.
    let mut opened = None;
    wait_for("an answer within the time", || {
        opened = OpenOptions::new().holder_timeout(short).open(place.address("m")).ok();
        opened.is_some()
    });
    let image = opened.unwrap();
    let pid = holder.pause();
    let error = image.is_current().unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("0.02 s"), "{error}");
    let error = OpenOptions::new().holder_timeout(short).open(place.address("m")).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let connect = || Connection::open_within(&place.socket, short);
    let given = Given::Named(weights.into());
    let error = Load::new("n").run(connect, &given, &mut |_| true).unwrap_err();
    assert!(matches!(&error, LoadError::Holder(error) if error.is_timeout()), "{error}");
    let error = Load::new("n").run(|| Connection::open(&place.socket), &given, &mut |_| false).unwrap_err();
    assert!(matches!(error, LoadError::Holder(HolderError::GivenUp { .. })), "{error}");
    kill(pid, Signal::SIGCONT).unwrap();
    wait_for("an answer of the holder that goes on", || image.is_current().is_ok_and(|current| current));
}
