//! Killed at every step: what was acknowledged is there after a restart, memory is not left behind, and the socket of
//! the dead holder is in nobody's way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

use daxfs_protocol::message::{Reply, Request};
use support::supervisor::Supervisor;
use support::{Place, Process, Start, be_process, identity, is_used, memfds, tensor, wait_for};

/// Points of a takeover, and whether it is the old holder that comes there.
const TAKEOVER: [(&str, bool); 6] = [
    ("takeover-image", true),
    ("takeover-socket", true),
    ("takeover-done", true),
    ("takeover-received", false),
    ("takeover-before-done", false),
    ("takeover-after-done", false),
];

#[test]
fn process() {
    be_process();
}

/// See `systemd.rs`.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const LOAD_POINTS: [&str; 5] = ["load-begin", "load-written", "hold-begin", "hold-stored", "hold-swapped"];

fn crashing(point: &'static str) -> Start {
    Start { crash_at: Some(point), ..Start::default() }
}

/// What the holder keeps open of memory is one descriptor an image.
fn assert_no_orphans(place: &Place, holder: &Process) {
    let images = place.list().len();
    let pid = holder.0.id();
    wait_for("memory that no image needs to go", || memfds(pid).len() == images);
}

#[test]
fn a_killed_change_of_who_may_attach_opens_nothing() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let change = |place: &Place, change| {
        let request = Request::Access { name: "a".into(), change };
        place.connect().request(&request, &[]).map(|(reply, _)| match reply {
            Reply::Access { after, .. } => after,
            reply => panic!("{reply:?}"),
        })
    };
    let list = (vec![4321], vec![]);
    let weights = place.weights("a", 1, 1000);
    for point in ["access-marked", "access-removed"] {
        // Whether the image had a list before or not.
        for listed in [false, true] {
            place.load_path("a", false, &weights).unwrap();
            if listed {
                assert_eq!(change(&place, Some((vec![1], vec![]))).unwrap(), (vec![1], vec![]));
            }
            holder.kill();
            holder = supervisor.serve(&place, &crashing(point));
            change(&place, Some(list.clone())).unwrap_err();
            assert!(!holder.wait().success());
            holder = supervisor.serve(&place, &Start::default());
            let after = change(&place, None).unwrap();
            let expected = if listed && point == "access-marked" { 1 } else { u32::MAX };
            assert_eq!(after, (vec![expected], vec![]), "{point} {listed}");
            // It can be given a list again.
            assert_eq!(change(&place, Some(list.clone())).unwrap(), list);
            supervisor.catch_up();
            holder.kill();
            holder = supervisor.serve(&place, &Start::default());
            assert_eq!(change(&place, None).unwrap(), list);
            place.connect().request(&Request::Drop { name: "a".into() }, &[]).unwrap();
            supervisor.wait_for_store(&[]);
        }
    }
}

#[test]
fn a_killed_load_or_swap_loses_nothing_that_was_acknowledged() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let (one, two) = (place.weights("one", 1, 1000), place.weights("two", 2, 1000));
    place.load_path("kept", false, &one).unwrap();
    for point in LOAD_POINTS {
        for name in ["fresh", "kept"] {
            let before = place.open("kept");
            let memory = identity(before.region().fd().unwrap());
            let old = tensor(&before)[0];
            drop(before);
            holder.kill();
            holder = supervisor.serve(&place, &crashing(point));
            let (source, byte) = if old == 1 { (&two, 2) } else { (&one, 1) };
            let result = place.load_path(name, true, source);
            assert!(result.is_err(), "{point}: nothing was acknowledged");
            assert!(!holder.wait().success());

            holder = supervisor.serve(&place, &Start::default());
            let after = place.open("kept");
            let now = tensor(&after)[0];
            // Stored but not acknowledged may be either; before the store it must be the old one.
            let stored = name == "kept" && ["hold-stored", "hold-swapped"].contains(&point);
            assert_eq!(now, if stored { byte } else { old }, "{point} {name}");
            assert_eq!(tensor(&after), vec![now; 1000], "{point}");
            if stored {
                drop(after);
                wait_for("the replaced memory to go", || !is_used(memory));
            }
            assert_no_orphans(&place, &holder);
            if place.list().len() == 2 {
                let drop = daxfs_protocol::message::Request::Drop { name: "fresh".into() };
                place.connect().request(&drop, &[]).unwrap();
            }
            assert_no_orphans(&place, &holder);
            wait_for("the store to hold one image", || {
                let stored = supervisor.stored();
                stored.len() == 1 && stored[0].ends_with(".kept")
            });
        }
    }
}

#[test]
fn the_socket_of_a_killed_holder_blocks_nobody() {
    let _alone = alone();
    let place = Place::new();
    let weights = place.weights("w", 1, 1000);
    for point in LOAD_POINTS {
        let mut holder = place.serve(&crashing(point));
        assert!(place.load_path("a", false, &weights).is_err(), "{point}");
        assert!(!holder.wait().success());
        assert!(place.socket.exists());
        let mut next = place.serve(&Start::default());
        place.load_path("a", false, &weights).unwrap();
        assert_no_orphans(&place, &next);
        next.kill();
    }
}

#[test]
fn a_supervisor_keeps_what_was_taken_over_and_nothing_else() {
    let _alone = alone();
    for (point, in_old) in TAKEOVER.into_iter().chain([("nowhere", false)]) {
        let place = Place::new();
        let supervisor = Supervisor::without_socket(&place, 64);
        let mut old = place.serve(&if in_old { crashing(point) } else { Start::default() });
        place.load_path("a", false, &place.weights("w", 1, 1000)).unwrap();
        let crash_at = (!in_old).then_some(point);
        let take_over = Start { takeover: true, crash_at, ..Start::default() };
        let mut new = supervisor.spawn(&place, &take_over);
        let kept: &[&str] = if ["takeover-done", "nowhere"].contains(&point) { &["img.1.a"] } else { &[] };
        if kept.is_empty() {
            assert!(!new.wait().success(), "{point}");
        } else {
            place.wait_until_served_by(new.0.id());
        }
        supervisor.wait_for_store(kept);
        // Whoever lives on dies now, too.
        for holder in [&mut old, &mut new] {
            if holder.is_running() {
                holder.kill();
            }
        }
        let next = supervisor.serve(&place, &Start::default());
        assert_eq!(place.list().len(), kept.len(), "{point}");
        if !kept.is_empty() {
            assert_eq!(tensor(&place.open("a")), vec![1; 1000], "{point}");
        }
        assert_no_orphans(&place, &next);
    }
}

#[test]
fn a_takeover_may_be_killed_on_both_sides() {
    let _alone = alone();
    let place = Place::new();
    let weights = place.weights("w", 1, 1000);
    let take_over = Start { takeover: true, ..Start::default() };
    for (point, in_old) in TAKEOVER {
        let mut old = place.serve(&if in_old { crashing(point) } else { Start::default() });
        place.load_path("a", false, &weights).unwrap();
        let client = place.open("a");
        let memory = identity(client.region().fd().unwrap());
        let crash_at = (!in_old).then_some(point);
        let mut new = place.spawn(&Start { crash_at, ..take_over.clone() });
        if point == "takeover-done" {
            assert!(!old.wait().success());
            place.wait_until_served_by(new.0.id());
            assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
            new.kill();
        } else {
            assert!(!new.wait().success(), "{point}");
            match point {
                "takeover-received" | "takeover-before-done" => old.kill(),
                "takeover-after-done" => assert!(old.wait().success()),
                _ => assert!(!old.wait().success()),
            }
        }
        assert_eq!(tensor(&client), vec![1; 1000], "{point}");
        drop(client);
        wait_for("the memory to go with its users", || !is_used(memory));
        let mut next = place.serve(&Start::default());
        assert!(place.list().is_empty());
        next.kill();
    }
}
