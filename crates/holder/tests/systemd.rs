//! Socket activation and the descriptor store, with a small supervisor of our own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use daxfs::Image;
use daxfs_protocol::HolderError;
use daxfs_protocol::message::{DeviceCopy, Refusal, Reply, Request};
use support::supervisor::Supervisor;
use support::{
    Place, Process, Start, be_process, hash_of, identity, is_root_for, is_used, keep_copies, kept_copies,
    key, memfds, packed, tensor, wait_for,
};

#[test]
fn process() {
    be_process();
}

/// Descriptors that one supervisor passes on would leak into what another test starts at the same moment.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn images_come_back_after_the_holder_was_killed() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    assert_eq!(place.pid(), Some(holder.0.id()));
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    place.load_path("b", false, &place.weights("b", 2, 1000)).unwrap();
    supervisor.wait_for_store(&["img.1.a", "img.2.b"]);
    place.load_path("a", true, &place.weights("c", 3, 1000)).unwrap();
    supervisor.wait_for_store(&["img.2.b", "img.3.a"]);
    let old = place.open("a");
    holder.kill();

    let holder = supervisor.spawn(&place, &Start::default());
    // The socket never went away: this client waits for the new holder in its backlog.
    assert_eq!(tensor(&place.open("a")), vec![3; 1000]);
    assert_eq!(place.pid(), Some(holder.0.id()));
    let generations: Vec<_> = place.list().iter().map(|info| (info.name.clone(), info.generation)).collect();
    assert_eq!(generations, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    assert!(old.is_current().unwrap());
    assert_eq!(tensor(&place.open("b")), vec![2; 1000]);
    assert!(supervisor.status().starts_with("2 images"), "{}", supervisor.status());

    place.connect().request(&Request::Drop { name: "b".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["img.3.a"]);
    let next = place.load_path("d", false, &place.weights("d", 4, 10)).unwrap();
    assert_eq!(next.generation, 4);
}

/// An image without a signature stays stored where one is required, for a holder that does not.
#[test]
fn signatures_come_back_with_their_images() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let weights = place.weights("a", 1, 1000);
    let unsigned = place.load_path("bad", false, &weights).unwrap();
    let signer = mkimage::Signer::open(&key("minisign.key"), None).unwrap();
    let signature = signer.sign(&unsigned.content_hash.unwrap(), &weights).unwrap();
    let option = format!("signature={signature}");
    // What nobody signed is not passed on.
    let signature = daxfs::signature::canonical(&signature).unwrap();
    let load = |name| place.load(name, false, &[&option], File::open(&weights).unwrap().as_fd());
    load("good").unwrap();
    supervisor.wait_for_store(&["img.1.bad", "img.2.good", "sig.2.good"]);
    holder.kill();

    let signed = Start { require_signed: true, ..Start::default() };
    let mut holder = supervisor.serve(&place, &signed);
    let names = || place.list().iter().map(|info| info.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(), ["good"]);
    let attached = |name| place.open(name).region().attachment().unwrap().signature().map(str::to_owned);
    assert_eq!(attached("good"), Some(signature.clone()));
    let refused = place.load_path("other", false, &weights).unwrap_err();
    assert!(matches!(refused, HolderError::Refused { refusal: Refusal::NotSigned, .. }), "{refused}");
    load("other").unwrap();
    let stored = ["img.1.bad", "img.2.good", "img.3.other", "sig.2.good", "sig.3.other"];
    supervisor.wait_for_store(&stored);
    holder.kill();
    // A signature that was lost is missed.
    supervisor.lose("sig.3.other");
    let mut holder = supervisor.serve(&place, &signed);
    assert_eq!(names(), ["good"]);
    holder.kill();
    let mut holder = supervisor.serve(&place, &Start::default());
    assert_eq!(names(), ["bad", "good", "other"]);
    assert_eq!((attached("bad"), attached("good")), (None, Some(signature)));
    // Nobody has signed what lies on devices.
    keep_copies(&place, "good");
    wait_for("copies", || stored_copies(&supervisor).len() == 3);
    holder.kill();
    let mut holder = supervisor.serve(&place, &signed);
    assert_eq!((names(), kept_copies(&place, "good")), (vec!["good".to_owned()], Vec::new()));
    wait_for("the copies to be forgotten", || stored_copies(&supervisor).is_empty());
    holder.kill();
    let _holder = supervisor.serve(&place, &Start::default());
    // It goes with its image.
    place.connect().request(&Request::Drop { name: "good".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["img.1.bad", "img.3.other"]);
}

/// What was stored of an image before that failed would be taken for another image's: the generation is given again.
#[test]
fn what_cannot_be_stored_whole_leaves_nothing() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let holder = supervisor.serve(&place, &Start { pause_at: Some("hold-begin"), ..Start::default() });
    let weights = place.weights("w", 1, 1000);
    let signature = fs::read_to_string(key("statement.minisig")).unwrap();
    let signature = format!("signature={signature}");
    // The signature needs no new descriptor to be stored, the list of users does.
    let load = |options: &[&str]| place.load("a", false, options, File::open(&weights).unwrap().as_fd());
    let limit = |most: &str| {
        let mut command = std::process::Command::new("prlimit");
        command.arg("--pid").arg(holder.0.id().to_string()).arg(format!("--nofile={most}:"));
        assert!(command.status().unwrap().success());
    };
    let threads = || fs::read_dir(format!("/proc/{}/task", holder.0.id())).unwrap().count();
    let before = threads();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| load(&[&signature, "allow-uid=7"]).unwrap_err());
        wait_for("the load", || !memfds(holder.0.id()).is_empty());
        wait_for("its end", || threads() == before);
        limit("3");
        place.go_on();
        let refused = refused.join().unwrap();
        assert!(refused.to_string().contains("memfd_create"), "{refused}");
    });
    limit("1024");
    assert_eq!(load(&[]).unwrap().generation, 1);
    supervisor.wait_for_store(&["img.1.a"]);
}

/// One that is no image, as an end at the wrong moment may leave it, takes nothing from the one that is.
#[test]
fn an_image_that_is_stored_twice_comes_back_with_its_signature() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let weights = place.weights("w", 1, 1000);
    let content = place.load_path("x", false, &weights).unwrap().content_hash.unwrap();
    let signer = mkimage::Signer::open(&key("minisign.key"), None).unwrap();
    let option = format!("signature={}", signer.sign(&content, &weights).unwrap());
    place.load("a", false, &[&option], File::open(&weights).unwrap().as_fd()).unwrap();
    holder.kill();
    let broken = dmabuf::Memfd::create("broken", 8192, dmabuf::HugePages::No).unwrap();
    broken.seal(dmabuf::Seals::IMMUTABLE).unwrap();
    supervisor.keep_first("img.2.a", broken.into());
    let same = supervisor.stored();
    let required = Start { require_signed: true, ..Start::default() };
    let _holder = supervisor.serve(&place, &required);
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
    assert!(place.open("a").region().attachment().unwrap().signature().is_some());
    supervisor.catch_up();
    assert_eq!(supervisor.stored(), same, "a removal by name would take both");
    place.connect().request(&Request::Drop { name: "a".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["img.1.x"]);
}

/// Names of stored copies, without what says where and of what they are.
fn stored_copies(supervisor: &Supervisor) -> Vec<String> {
    let stored = supervisor.stored().into_iter().filter(|name| name.starts_with("gpu."));
    stored
        .map(|name| {
            let mut parts = name.splitn(4, '.').skip(1);
            let (generation, copy, image) =
                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            assert_eq!(copy.len(), 75);
            format!("{generation} {image}")
        })
        .collect()
}

#[test]
fn copies_on_devices_come_back_with_their_images() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    place.load_path("b", false, &place.weights("b", 2, 1000)).unwrap();
    let (of_a, of_b) = (keep_copies(&place, "a"), keep_copies(&place, "b"));
    // A copy takes the place of its like.
    let again = keep_copies(&place, "a");
    assert!(again != of_a && again.len() == of_a.len());
    wait_for("copies", || stored_copies(&supervisor).len() == 6);
    wait_for("the last one to be stored", || {
        supervisor.catch_up();
        stored_copies(&supervisor) == ["1 a", "1 a", "1 a", "2 b", "2 b", "2 b"]
    });
    holder.kill();
    let mut holder = supervisor.serve(&place, &Start::default());
    assert_eq!((kept_copies(&place, "a"), kept_copies(&place, "b")), (again.clone(), of_b.clone()));
    // They go with their image.
    place.load_path("a", true, &place.weights("c", 3, 1000)).unwrap();
    place.connect().request(&Request::Drop { name: "b".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["img.3.a"]);
    assert!(again.iter().chain(&of_b).all(|(_, file)| !is_used(*file)));
    // Without it they are of no use.
    let of_new = keep_copies(&place, "a");
    wait_for("copies", || stored_copies(&supervisor).len() == 3);
    holder.kill();
    supervisor.lose("img.3.a");
    let _holder = supervisor.serve(&place, &Start::default());
    supervisor.wait_for_store(&[]);
    assert!(of_new.iter().all(|(_, file)| !is_used(*file)) && place.list().is_empty());
}

#[test]
fn names_that_are_none_of_this_version_are_forgotten() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let [of_a, of_b] = ["a", "b"].map(|name| place.weights(name, 1, 1000));
    place.load_path("a", false, &of_a).unwrap();
    place.load_path("b", false, &of_b).unwrap();
    supervisor.wait_for_store(&["img.1.a", "img.2.b"]);
    let mut kept = "img.1.a".to_owned();
    for damaged in ["img.x.a", "gpu.1.short.a"] {
        holder.kill();
        supervisor.rename(&kept, damaged);
        holder = supervisor.serve(&place, &Start::default());
        supervisor.wait_for_store(&["img.2.b"]);
        assert_eq!(place.list().len(), 1);
        place.load_path("a", false, &of_a).unwrap();
        wait_for("the image to be stored", || {
            supervisor.catch_up();
            supervisor.stored().len() == 2
        });
        kept = supervisor.stored().into_iter().find(|name| name.ends_with(".a")).unwrap();
    }
}

#[test]
fn a_copy_for_which_there_is_no_room_is_refused() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::keeping(&place, 4);
    let _holder = supervisor.serve(&place, &Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    keep_copies(&place, "a");
    // Those that are there may be replaced; another one may not come.
    keep_copies(&place, "a");
    let attachment = place.open("a").region().attachment().unwrap().clone();
    let copy = DeviceCopy { device: [77; 16].into(), placement: DeviceCopy::WHOLE, size: 1 };
    let error = attachment.keep(File::open("/dev/null").unwrap().as_fd(), copy).unwrap_err();
    assert!(error.to_string().contains("keeps at most 4 descriptors"), "{error}");
    let error = place.load_path("b", false, &place.weights("b", 2, 10)).unwrap_err();
    assert!(error.to_string().contains("this needs 5"), "{error}");
}

#[test]
fn one_memory_under_two_names_is_kept_for_both() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let attached = |name: &str| place.open(name).region().fd().unwrap().try_clone_to_owned().unwrap();
    let weights = File::open(place.weights("a", 1, 1000)).unwrap();
    place.load("a", false, &["shared=1"], weights.as_fd()).unwrap();
    place.load("b", false, &["shared=1"], attached("a").as_fd()).unwrap();
    supervisor.wait_for_store(&["img.1.a", "img.2.b"]);
    // In place of itself, twice from one descriptor; it stays shared.
    let own = attached("b");
    for _ in 0..2 {
        place.load("b", true, &[], own.as_fd()).unwrap();
    }
    supervisor.wait_for_store(&["img.1.a", "img.4.b"]);
    place.connect().request(&Request::Drop { name: "a".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["img.4.b"]);
    holder.kill();
    let _holder = supervisor.serve(&place, &Start::default());
    assert_eq!(tensor(&place.open("b")), vec![1; 1000]);
    let (info, kept) = (dmabuf::describe(attached("b").as_fd()).unwrap(), attached("b"));
    assert!(info.writable, "a device can still pin what is shared");
    assert_eq!(identity(kept.as_fd()), identity(own.as_fd()), "without a copy");
}

#[test]
fn a_holder_that_a_supervisor_would_start_again_is_not_taken_over() {
    let _alone = alone();
    for with in [Supervisor::keeping, Supervisor::without_socket] {
        let place = Place::new();
        let supervisor = with(&place, 64);
        let mut holder = supervisor.serve(&place, &Start::default());
        place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
        supervisor.wait_for_store(&["img.1.a"]);
        let take_over = Start { takeover: true, ..Start::default() };
        let said = place.refused(place.command(&take_over));
        assert!(said.contains("systemd listens at"), "{said}");
        let (command, _passed) = supervisor.command(&place, &take_over);
        let said = place.refused(command);
        assert!(said.contains("systemd passed its own socket or images"), "{said}");
        assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
        assert!(holder.is_running() && place.socket.exists());
        supervisor.wait_for_store(&["img.1.a"]);
    }
}

#[test]
fn what_cannot_be_looked_at_for_now_stays_stored() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    holder.kill();
    // Standard streams, the socket, the image and the notify socket: not one descriptor is left.
    let mut holder = supervisor.spawn(&place, &Start { max_descriptors: Some(6), ..Start::default() });
    assert_eq!(holder.wait().code(), Some(2));
    let _holder = supervisor.serve(&place, &Start::default());
    supervisor.wait_for_store(&["img.1.a"]);
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
}

/// Images with a list of users beside those that are set aside.
const LISTED: usize = 10;

/// Copies on devices of one of those.
const COPIES: usize = 3;

/// A holder that could not look at the images `a`, of which there are copies on devices, and `b`, and a copy of the
/// first one's descriptor; the supervisor has no more room.
fn with_two_set_aside(place: &Place) -> (Supervisor, Process, OwnedFd) {
    let supervisor = Supervisor::keeping(place, 2 + COPIES + 2 * LISTED);
    let mut holder = supervisor.serve(place, &Start::default());
    let (a, b) = (packed(&place.weights("wa", 1, 1000)), packed(&place.weights("wb", 2, 1000)));
    place.load("a", false, &[], a.as_fd()).unwrap();
    place.load("b", false, &[], b.as_fd()).unwrap();
    assert_eq!(keep_copies(place, "a").len(), COPIES);
    for index in 0..LISTED {
        place.load(&format!("listed-{index}"), false, &["allow-uid=7"], a.as_fd()).unwrap();
    }
    holder.kill();
    // Standard streams, the socket, all that is stored, the notify socket: none is left to look at the first image,
    // and one too few, that of the first, to look at the second. The lists of users are closed then, which leaves
    // enough.
    let max_descriptors = Some(3 + 1 + 2 + COPIES + 2 * LISTED + 1);
    let holder = supervisor.serve(place, &Start { max_descriptors, ..Start::default() });
    let names: Vec<_> = place.list().into_iter().map(|info| info.name).collect();
    assert!(names.len() == LISTED && names.iter().all(|name| name.starts_with("listed-")), "{names:?}");
    assert_eq!(stored_for_all(&supervisor), ["img.1.a", "img.2.b"]);
    assert_eq!(stored_copies(&supervisor), ["1 a"; COPIES]);
    (supervisor, holder, a)
}

fn stored_for_all(supervisor: &Supervisor) -> Vec<String> {
    supervisor.stored().into_iter().filter(|name| name.starts_with("img.")).collect()
}

#[test]
fn what_was_set_aside_goes_with_its_name() {
    let _alone = alone();
    let place = Place::new();
    let (supervisor, mut holder, memory) = with_two_set_aside(&place);
    let drop_image = |name: &str| place.connect().request(&Request::Drop { name: name.into() }, &[]);
    let fresh = packed(&place.weights("wc", 3, 1000));
    let load = |name, source: &OwnedFd| place.load(name, false, &[], source.as_fd());
    let full = load("c", &fresh).unwrap_err().to_string();
    assert!(full.contains("at most 25 descriptors, and this needs 26"), "what is set aside counts: {full}");
    drop_image("b").unwrap();
    wait_for("the second to go", || stored_for_all(&supervisor) == ["img.1.a"]);
    assert!(drop_image("b").unwrap_err().is_not_found());
    let same = load("other", &memory).unwrap_err().to_string();
    assert!(same.contains("this memory as the image \"a\" already"), "{same}");
    assert_eq!(load("a", &fresh).unwrap().generation, 13);
    wait_for("the first to be replaced", || stored_for_all(&supervisor) == ["img.13.a"]);
    assert!(stored_copies(&supervisor).is_empty(), "they go before their image");
    drop_image("a").unwrap();
    wait_for("the new one to go", || stored_for_all(&supervisor).is_empty());
    holder.kill();
    let _holder = supervisor.serve(&place, &Start::default());
    assert_eq!(place.list().len(), LISTED, "none of them comes back");
}

#[test]
fn a_stop_removes_what_was_set_aside() {
    let _alone = alone();
    let place = Place::new();
    let (supervisor, mut holder, _memory) = with_two_set_aside(&place);
    place.connect().request(&Request::Stop, &[]).unwrap();
    assert!(holder.wait().success());
    supervisor.wait_for_store(&[]);
}

#[test]
fn a_graceful_end_keeps_the_store_and_stop_empties_it() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    place.load_path("a", false, &place.weights("a", 1, 1000)).unwrap();
    let pid = nix::unistd::Pid::from_raw(holder.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(holder.wait().success());
    assert!(place.socket.exists(), "the socket is the supervisor's");
    let mut holder = supervisor.serve(&place, &Start::default());
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
    place.connect().request(&Request::Stop, &[]).unwrap();
    assert!(holder.wait().success());
    supervisor.wait_for_store(&[]);
}

#[test]
fn who_may_attach_is_kept_too() {
    let _alone = alone();
    if !is_root_for("trying other users") {
        return;
    }
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let mut holder = supervisor.serve(&place, &Start::default());
    let weights = File::open(place.weights("a", 1, 1000)).unwrap();
    place.load("a", false, &["allow-uid=4321"], weights.as_fd()).unwrap();
    supervisor.wait_for_store(&["acl.1.a", "own.1.a"]);
    holder.kill();
    let mut holder = supervisor.serve(&place, &Start::default());
    let hash = hash_of(&Image::open(place.address("a")).unwrap());
    let _first = place.client("a", "may", false, Some(4321));
    assert_eq!(place.report("may"), hash);
    let _second = place.client("a", "may-not", false, Some(4322));
    assert!(place.report("may-not").contains("there is no image"));
    // A swap keeps it, and so does the next holder.
    place.load("a", true, &[], weights.as_fd()).unwrap();
    supervisor.wait_for_store(&["acl.2.a", "own.2.a"]);
    let access = |place: &Place, change: Option<(Vec<u32>, Vec<u32>)>| {
        let request = Request::Access { name: "a".into(), change };
        match place.connect().request(&request, &[]).unwrap().0 {
            Reply::Access { before, after } => (before, after),
            reply => panic!("{reply:?}"),
        }
    };
    let list = (vec![4321], vec![]);
    assert_eq!(access(&place, None), (list.clone(), list.clone()));
    // So is a change of it kept, whichever way it goes.
    for (name, change, reads) in [
        ("other", (vec![4322], vec![]), [false, true]),
        ("everybody", (vec![], vec![]), [true, true]),
        ("group", (vec![], vec![4321]), [true, false]),
    ] {
        assert_eq!(access(&place, Some(change.clone())).1, change);
        let generation = place.list()[0].generation;
        supervisor.catch_up();
        holder.kill();
        holder = supervisor.serve(&place, &Start::default());
        assert_eq!((access(&place, None).0, place.list()[0].generation), (change, generation));
        for (uid, reads) in [4321, 4322].into_iter().zip(reads) {
            let report = format!("{name}-{uid}");
            let _client = place.client("a", &report, false, Some(uid));
            assert_eq!(place.report(&report) == hash, reads, "{name} {uid}");
        }
    }
    // An image that everybody may have at first is stored without a list, until it gets one.
    place.load("b", false, &[], weights.as_fd()).unwrap();
    supervisor.wait_for_store(&["acl.2.a", "img.3.b", "own.2.a"]);
    place
        .connect()
        .request(&Request::Access { name: "b".into(), change: Some((vec![1], vec![])) }, &[])
        .unwrap();
    supervisor.wait_for_store(&["acl.2.a", "acl.3.b", "img.3.b", "lst.3.b", "own.2.a"]);
    holder.kill();
    let mut holder = supervisor.serve(&place, &Start::default());
    let _third = place.client("b", "not-any-more", false, Some(4322));
    assert!(place.report("not-any-more").contains("there is no image"));
    // A list that was lost does not make it everybody's again.
    holder.kill();
    supervisor.lose("acl.3.b");
    let _holder = supervisor.serve(&place, &Start::default());
    let _fourth = place.client("b", "not-without-list", false, Some(4322));
    assert!(place.report("not-without-list").contains("there is no image"));
    // All of it goes with the image.
    place.connect().request(&Request::Drop { name: "b".into() }, &[]).unwrap();
    supervisor.wait_for_store(&["acl.2.a", "own.2.a"]);
}

#[test]
fn a_supervisor_that_is_gone_costs_no_image() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::new(&place);
    let holder = supervisor.serve(&place, &Start::default());
    let (a, b) = (place.weights("a", 1, 1000), place.weights("b", 2, 1000));
    place.load_path("a", false, &a).unwrap();
    place.load_path("gone", false, &b).unwrap();
    supervisor.leave();
    // What could not be kept through a crash is not acknowledged, and changes nothing.
    for (name, replace) in [("c", false), ("a", true)] {
        let error = place.load_path(name, replace, &b).unwrap_err().to_string();
        assert!(error.contains("sendmsg"), "{error}");
    }
    place.connect().request(&Request::Drop { name: "gone".into() }, &[]).unwrap();
    assert_eq!(place.list().iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(tensor(&place.open("a")), vec![1; 1000]);
    assert_eq!(place.pid(), Some(holder.0.id()));
}

#[test]
fn what_the_supervisor_has_no_room_for_is_not_acknowledged() {
    let _alone = alone();
    let place = Place::new();
    let supervisor = Supervisor::keeping(&place, 3);
    let mut holder = supervisor.serve(&place, &Start::default());
    let weights = File::open(place.weights("w", 1, 1000)).unwrap();
    let load = |name, replace, options: &[&str]| place.load(name, replace, options, weights.as_fd());
    load("a", false, &[]).unwrap();
    load("b", false, &[]).unwrap();
    let full = |result: Result<_, _>| {
        let error: daxfs_protocol::HolderError =
            result.map(|_: daxfs_protocol::message::ImageInfo| ()).unwrap_err();
        assert!(error.to_string().contains("at most 3 descriptors"), "{error}");
    };
    full(load("listed", false, &["allow-uid=7"]));
    load("c", false, &[]).unwrap();
    // Both generations are kept for a moment.
    full(load("c", true, &[]));
    supervisor.wait_for_store(&["img.1.a", "img.2.b", "img.3.c"]);
    place.connect().request(&Request::Drop { name: "b".into() }, &[]).unwrap();
    load("c", true, &[]).unwrap();
    supervisor.wait_for_store(&["img.1.a", "img.4.c"]);
    holder.kill();
    let _holder = supervisor.serve(&place, &Start::default());
    assert_eq!(place.list().iter().map(|info| info.generation).collect::<Vec<_>>(), [1, 4]);
}
