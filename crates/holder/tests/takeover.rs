//! Replacing a running holder while clients attach, and new holders that die before they have everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxfs::Image;
use daxfs_protocol::HolderError;
use daxfs_protocol::message::{Refusal, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{
    Done, PATIENCE, Place, Process, Start, be_process, identity, is_used, keep_copies, kept_copies, key,
    tensor, wait_for,
};

#[test]
fn process() {
    be_process();
}

const TAKE_OVER: Start = Start {
    open_to_all: false,
    takeover: true,
    crash_at: None,
    pause_at: None,
    control: None,
    max_connections: None,
    require_signed: false,
    user: None,
    limit: None,
    max_descriptors: None,
};

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
        let _done = Done(&done);
        for _ in 0..3 {
            let count = attached.load(Ordering::Relaxed);
            wait_for("attaches", || attached.load(Ordering::Relaxed) > count + 20);
            let next = place.spawn(&TAKE_OVER);
            assert!(holder.wait().success(), "the old holder ends well");
            place.wait_until_served_by(next.0.id());
            holder = next;
        }
    });
    let after = place.list();
    assert_eq!(after.len(), before.len());
    for (before, after) in before.iter().zip(&after) {
        assert!(after.attaches > before.attaches);
        let mut same = after.clone();
        same.attaches = before.attaches;
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
fn copies_on_devices_are_handed_over() {
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        place.load_path(name, false, &place.weights(name, byte, 100)).unwrap();
    }
    let (of_a, of_c) = (keep_copies(&place, "a"), keep_copies(&place, "c"));
    let client = place.open("a");
    for _ in 0..2 {
        let next = place.spawn(&TAKE_OVER);
        assert!(holder.wait().success());
        place.wait_until_served_by(next.0.id());
        holder = next;
        assert_eq!((kept_copies(&place, "a"), kept_copies(&place, "c")), (of_a.clone(), of_c.clone()));
        assert!(kept_copies(&place, "b").is_empty());
    }
    // Who had the image before gets them, too.
    let attachment = client.region().attachment().unwrap();
    assert!(attachment.copy_on([1; 16].into(), [9; 32]).unwrap().is_some());
    place.load_path("a", true, &place.weights("d", 4, 100)).unwrap();
    assert!(kept_copies(&place, "a").is_empty(), "they go with their image");
    assert!(of_a.iter().all(|(_, file)| !is_used(*file)));
    // A new holder that dies on the way takes nothing away.
    let mut new = place.spawn(&Start { crash_at: Some("takeover-before-done"), ..TAKE_OVER });
    assert!(!new.wait().success() && holder.is_running());
    place.wait_until_served_by(holder.0.id());
    assert_eq!(kept_copies(&place, "c"), of_c);
}

/// A holder that requires signatures takes the images, and no copy on a device: nobody has signed that.
#[test]
fn copies_on_devices_are_left_out_where_images_are_signed() {
    let place = Place::new();
    let mut old = place.serve(&Start::default());
    let weights = place.weights("a", 1, 100);
    let content = place.load_path("a", false, &weights).unwrap().content_hash.unwrap();
    let signer = mkimage::Signer::open(&key("minisign.key"), None).unwrap();
    let option = format!("signature={}", signer.sign(&content, &weights).unwrap());
    place.load("a", true, &[&option], File::open(&weights).unwrap().as_fd()).unwrap();
    let copies = keep_copies(&place, "a");
    let new = place.spawn(&Start { require_signed: true, ..TAKE_OVER });
    assert!(old.wait().success());
    place.wait_until_served_by(new.0.id());
    assert!(kept_copies(&place, "a").is_empty());
    assert!(copies.iter().all(|(_, file)| !is_used(*file)));
    assert_eq!(tensor(&place.open("a")), vec![1; 100]);
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

/// A holder whose load of `a` waits for [`Place::go_on`], and the thread that waits for the load.
fn while_loading(then: impl FnOnce(&Place, &mut Process)) -> Place {
    let place = Place::new();
    let mut old = place.serve(&Start { pause_at: Some("load-written"), ..Start::default() });
    let weights = place.weights("a", 1, 1000);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| place.load_path("a", false, &weights));
        wait_for("the load to run", || !support::memfds(old.0.id()).is_empty());
        then(&place, &mut old);
        assert_eq!(load.join().unwrap().unwrap().name, "a", "who waited for the load gets its answer");
    });
    place
}

#[test]
fn a_load_that_goes_on_is_waited_for() {
    let mut new = None;
    let place = while_loading(|place, old| {
        let next = place.spawn(&TAKE_OVER);
        // Most likely it asks before the load has ended; whenever it does, nothing may be lost.
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(place.pid(), Some(old.0.id()), "the old one goes on meanwhile");
        place.go_on();
        assert!(old.wait().success());
        place.wait_until_served_by(next.0.id());
        new = Some(next);
    });
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
    assert_eq!(place.list().len(), 1);
}

#[test]
fn a_load_that_queues_is_told_that_it_waits() {
    while_loading(|place, _| {
        let load = Request::Load { name: "b".into(), replace: false, options: vec![] };
        let source = File::open(place.dir.path().join("a")).unwrap();
        let mut queues = place.connect();
        let reply = queues.request(&load, &[source.as_fd()]).unwrap().0;
        assert_eq!(reply, Reply::Progress { done: 0, total: 0 });
        place.go_on();
        let loaded = loop {
            match queues.receive().unwrap().0 {
                Reply::Progress { .. } => {}
                reply => break reply,
            }
        };
        assert!(matches!(loaded, Reply::Loaded(_)), "{loaded:?}");
    });
}

#[test]
fn loads_that_were_given_up_take_no_place_in_the_queue() {
    while_loading(|place, _| {
        let load = |name: &str| Request::Load { name: name.into(), replace: false, options: vec![] };
        let source = File::open(place.dir.path().join("a")).unwrap();
        let ask = |name: &str| {
            let mut asks = place.connect();
            asks.request(&load(name), &[source.as_fd()]).map(|(reply, _)| (reply, asks))
        };
        let given_up: Vec<_> = (0..16).map(|number| ask(&format!("b{number}")).unwrap()).collect();
        assert!(ask("c").unwrap_err().to_string().contains("16 loads wait already"));
        drop(given_up);
        // The holder sees that they are gone sooner or later.
        let mut waits = None;
        wait_for("room in the queue", || {
            waits = ask("c").ok();
            waits.is_some()
        });
        place.go_on();
        wait_for("the load", || place.list().iter().any(|info| info.name == "c"));
        assert_eq!(place.list().len(), 2);
    });
}

#[test]
fn a_new_holder_that_waits_can_be_ended() {
    while_loading(|place, old| {
        let mut new = place.spawn(&TAKE_OVER);
        // It blocks the signal from its very beginning, and looks at it when it has to wait.
        let (own, exe) = (std::env::current_exe().unwrap(), format!("/proc/{}/exe", new.0.id()));
        wait_for("the new holder to begin", || std::fs::read_link(&exe).is_ok_and(|program| program == own));
        kill(Pid::from_raw(new.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(new.wait().code(), Some(2));
        assert!(old.is_running());
        place.go_on();
        wait_for("the load to end", || place.list().len() == 1);
        assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
    });
}

#[test]
fn while_a_takeover_waits_no_load_begins_and_it_may_be_given_up() {
    while_loading(|place, old| {
        let ask = || {
            let mut asks = place.connect();
            let reply = asks.request(&Request::Takeover, &[]).unwrap().0;
            assert!(matches!(reply, Reply::Progress { .. }), "{reply:?}");
            asks
        };
        let given_up = ask();
        let load = Request::Load { name: "b".into(), replace: false, options: vec![] };
        let source = File::open(place.dir.path()).unwrap();
        match place.connect().request(&load, &[source.as_fd()]) {
            Err(HolderError::Refused { refusal: Refusal::Busy, .. }) => {}
            other => panic!("{other:?}"),
        }
        let absent = place.connect().request(&Request::Drop { name: "absent".into() }, &[]).unwrap_err();
        assert!(absent.is_not_found(), "all else is answered: {absent}");
        drop(given_up);
        wait_for("the next one to be heard", || {
            // Busy until the old holder has seen that the other is gone.
            let reply = place.connect().request(&Request::Takeover, &[]);
            matches!(reply, Ok((Reply::Progress { .. }, _)))
        });
        let mut asks = loop {
            let mut asks = place.connect();
            if asks.request(&Request::Takeover, &[]).is_ok() {
                break asks;
            }
        };
        place.go_on();
        let handed_over = loop {
            match asks.receive().unwrap() {
                (Reply::Progress { .. }, _) => {}
                (Reply::Handover { info, .. }, fds) => break (info.name, fds.len()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(handed_over, ("a".to_owned(), 1));
        drop(asks);
        let next = place.weights("b", 2, 1000);
        wait_for("the old holder to go on", || place.load_path("b", true, &next).is_ok());
        assert!(old.is_running());
    });
}

#[test]
fn a_stop_in_the_middle_stops_both() {
    let place = Place::new();
    let mut old = place.serve(&Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    let client = place.open("a");
    let memory = identity(client.region().fd().unwrap());
    drop(client);
    let mut new = place.spawn(&Start { pause_at: Some("takeover-before-done"), ..TAKE_OVER });
    wait_for("the new holder to have the image", || support::memfds(new.0.id()).len() == 1);
    kill(Pid::from_raw(old.0.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(old.wait().success());
    assert!(!place.socket.exists(), "it was told to end, so it removes its socket");
    place.go_on();
    assert_eq!(new.wait().code(), Some(2), "nobody is to hold it any more");
    wait_for("the memory to go", || !is_used(memory));
    let _next = place.serve(&Start::default());
}

#[test]
fn after_a_takeover_the_new_process_is_named() {
    let place = Place::new();
    let mut old = place.serve(&Start::default());
    let new = place.serve(&TAKE_OVER);
    assert_eq!(old.wait().code(), Some(0));
    let said = place.refused(place.command(&Start::default()));
    assert!(said.contains(&format!("(process {})", new.0.id())), "{said}");
    // Also to who asks the kernel.
    let socket = dmabuf::connect_seqpacket(&place.socket, PATIENCE).unwrap();
    assert_eq!(dmabuf::peer(socket.as_fd()).unwrap().pid.cast_unsigned(), new.0.id());
}
