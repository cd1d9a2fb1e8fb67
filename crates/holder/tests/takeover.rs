//! Replacing a running holder while clients attach, and new holders that die before they have everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxfs::Image;
use daxfs::holder::message::Request;
use support::{Place, Start, be_process, identity, tensor, wait_for};

#[test]
fn process() {
    be_process();
}

const TAKE_OVER: Start = Start { open_to_all: false, takeover: true, crash_at: None, control: None };

#[test]
fn clients_attach_throughout() {
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    place.load_path("b", false, &place.weights("b", 2, 1000)).unwrap();
    place.load_path("b", true, &place.weights("c", 3, 1000)).unwrap();
    let held = place.open("b");
    let before = place.list();
    let (done, attached) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (name, byte) in [("a", 1), ("b", 3), ("a", 1), ("b", 3)] {
            let (place, done, attached) = (&place, &done, &attached);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let image = Image::open(place.address(name)).unwrap();
                    assert_eq!(tensor(&image), vec![byte; 1000]);
                    attached.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let count = attached.load(Ordering::Relaxed);
            wait_for("attaches", || attached.load(Ordering::Relaxed) > count + 20);
            let next = place.spawn(&TAKE_OVER);
            assert!(holder.wait().success(), "the old holder ends well");
            place.wait_until_served_by(next.0.id());
            holder = next;
        }
        done.store(true, Ordering::Relaxed);
    });
    let after = place.list();
    assert_eq!(after.len(), before.len());
    for (before, after) in before.iter().zip(&after) {
        assert!(after.attaches > before.attaches);
        let same = daxfs::holder::message::ImageInfo { attaches: before.attaches, ..after.clone() };
        assert_eq!(&same, before);
    }
    assert!(held.is_current().unwrap());
    assert_eq!(identity(held.region().fd().unwrap()), identity(place.open("b").region().fd().unwrap()));
    let next = place.load_path("d", false, &place.weights("d", 4, 10)).unwrap();
    assert_eq!(next.generation, 4, "generations go on");
    place.connect().request(&Request::Stop, &[]).unwrap();
    assert!(holder.wait().success());
    assert!(!place.socket.exists(), "the socket belongs to the last one");
}

#[test]
fn the_old_holder_goes_on_when_the_new_one_dies_early() {
    let place = Place::new();
    let mut old = place.serve(&Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    for point in ["takeover-received", "takeover-before-done"] {
        let mut new = place.spawn(&Start { crash_at: Some(point), ..TAKE_OVER });
        assert!(!new.wait().success(), "{point}");
        assert!(old.is_running(), "{point}");
        place.wait_until_served_by(old.0.id());
        assert_eq!(tensor(&place.open("a")), vec![1; 1000], "{point}");
    }
    place.load_path("b", false, &place.weights("b", 2, 10)).unwrap();
    let new = place.spawn(&TAKE_OVER);
    assert!(old.wait().success());
    place.wait_until_served_by(new.0.id());
    assert_eq!(place.list().len(), 2);
}

#[test]
fn the_new_holder_goes_on_when_the_old_one_dies_at_the_end() {
    let place = Place::new();
    let mut old = place.serve(&Start { crash_at: Some("takeover-done"), ..Start::default() });
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    let new = place.spawn(&TAKE_OVER);
    assert!(!old.wait().success());
    place.wait_until_served_by(new.0.id());
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
}

#[test]
fn nobody_to_take_over_is_an_error() {
    let place = Place::new();
    assert_eq!(place.spawn(&TAKE_OVER).wait().code(), Some(2));
    let _holder = place.serve(&Start::default());
    assert_eq!(place.spawn(&Start::default()).wait().code(), Some(2), "without a takeover it is in the way");
}
