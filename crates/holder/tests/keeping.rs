//! What a name keeps when its image is swapped or its holder replaced: who may attach, and the kind of memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::os::fd::AsFd;

use daxfs_protocol::HolderError;
use daxfs_protocol::message::{ImageInfo, MemoryKind, Refusal, Reply, Request};
use support::{Place, Start, be_process, is_root_for};

#[test]
fn process() {
    be_process();
}

type Lists = (Vec<u32>, Vec<u32>);

fn access(place: &Place, name: &str, change: Option<Lists>) -> Result<(Lists, Lists), HolderError> {
    match place.connect().request(&Request::Access { name: name.into(), change }, &[])?.0 {
        Reply::Access { before, after } => Ok((before, after)),
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn a_swap_and_a_takeover_keep_who_may_attach() {
    let place = Place::new();
    let mut holder = place.serve(&Start { open_to_all: true, ..Start::default() });
    let weights = File::open(place.weights("w", 1, 1000)).unwrap();
    let list: Lists = (vec![1000], vec![100]);
    place.load("a", false, &["allow-uid=1000", "allow-gid=100"], weights.as_fd()).unwrap();
    place.load("open", false, &[], weights.as_fd()).unwrap();
    place.load("a", true, &[], weights.as_fd()).unwrap();
    assert_eq!(access(&place, "a", None).unwrap(), (list.clone(), list.clone()));
    // The same list again is no change.
    place.load("a", true, &["allow-gid=100", "allow-uid=1000"], weights.as_fd()).unwrap();
    for options in [&["allow-uid=1000"][..], &["allow-uid=1000", "allow-gid=100", "allow-gid=7"]] {
        let error = place.load("a", true, options, weights.as_fd()).unwrap_err().to_string();
        assert!(error.contains("keeps who may attach (user 1000, group 100)"), "{error}");
    }
    let error = place.load("open", true, &["allow-uid=1000"], weights.as_fd()).unwrap_err().to_string();
    assert!(error.contains("keeps who may attach (everybody who may connect)"), "{error}");
    let generations: Vec<u64> = place.list().iter().map(|info| info.generation).collect();
    assert_eq!(generations, [4, 2], "nothing was replaced");
    // A swap under a new name is a load.
    place.load("new", true, &["allow-uid=5"], weights.as_fd()).unwrap();

    let other: Lists = (vec![], vec![7, 8]);
    assert_eq!(access(&place, "a", Some(other.clone())).unwrap(), (list, other.clone()));
    let mut successor = place.serve(&Start { takeover: true, open_to_all: true, ..Start::default() });
    assert_eq!(holder.wait().code(), Some(0));
    assert_eq!(access(&place, "a", None).unwrap().0, other);
    assert_eq!(access(&place, "new", None).unwrap().0, (vec![5], vec![]));
    assert_eq!(access(&place, "a", Some((vec![], vec![]))).unwrap(), (other, (vec![], vec![])));
    assert!(access(&place, "absent", None).unwrap_err().is_not_found());
    let many: Vec<u32> = (0..5000).collect();
    assert!(access(&place, "a", Some((many, vec![]))).is_err());
    assert!(successor.is_running());
}

#[test]
fn a_change_during_a_swap_stays() {
    let place = Place::new();
    let start = Start { pause_at: Some("load-written"), ..Start::default() };
    // The first load must not wait.
    place.go_on();
    let _holder = place.serve(&start);
    let weights = place.weights("w", 1, 1000);
    place.load("a", false, &["allow-uid=1000"], File::open(&weights).unwrap().as_fd()).unwrap();
    std::fs::remove_file(place.dir.path().join("go")).unwrap();
    std::thread::scope(|scope| {
        let swap = scope.spawn(|| place.load("a", true, &[], File::open(&weights).unwrap().as_fd()));
        // It has begun when another load is told to wait: the list is changed while it runs.
        std::thread::sleep(std::time::Duration::from_millis(50));
        access(&place, "a", Some((vec![7], vec![]))).unwrap();
        place.go_on();
        swap.join().unwrap().unwrap();
    });
    assert_eq!(access(&place, "a", None).unwrap().0, (vec![7], vec![]));
}

#[test]
fn a_swap_keeps_the_kind_of_memory() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let weights = File::open(place.weights("w", 1, 1000)).unwrap();
    let load = |name: &str, replace, options: &[&str]| -> ImageInfo {
        place.load(name, replace, options, weights.as_fd()).unwrap()
    };
    assert_eq!(load("shared", false, &["shared=1"]).kind, MemoryKind::SharedMemfd);
    assert_eq!(load("shared", true, &[]).kind, MemoryKind::SharedMemfd);
    assert_eq!(load("shared", true, &["dedupe=1"]).kind, MemoryKind::SharedMemfd);
    // Said otherwise.
    assert_eq!(load("shared", true, &["shared=0"]).kind, MemoryKind::SealedMemfd);
    assert_eq!(load("shared", true, &[]).kind, MemoryKind::SealedMemfd);
}

/// Of the image that is there when the swap begins, not of the one that was there when it was asked for.
#[test]
fn a_swap_that_waits_keeps_the_kind_of_what_came_before_it() {
    let place = Place::new();
    place.go_on();
    let _holder = place.serve(&Start { pause_at: Some("load-written"), ..Start::default() });
    let weights = File::open(place.weights("w", 1, 1000)).unwrap();
    place.load("a", false, &[], weights.as_fd()).unwrap();
    std::fs::remove_file(place.dir.path().join("go")).unwrap();
    let (mut first, mut second) = (place.connect(), place.connect());
    for (connection, options) in [(&mut first, vec!["shared=1".to_owned()]), (&mut second, vec![])] {
        let swap = Request::Load { name: "a".into(), replace: true, options };
        let reply = connection.request(&swap, &[weights.as_fd()]).unwrap().0;
        assert!(matches!(reply, Reply::Progress { .. }), "{reply:?}");
    }
    place.go_on();
    for connection in [&mut first, &mut second] {
        let loaded = loop {
            match connection.receive().unwrap().0 {
                Reply::Progress { .. } => {}
                reply => break reply,
            }
        };
        let Reply::Loaded(info) = loaded else { panic!("{loaded:?}") };
        assert_eq!(info.kind, MemoryKind::SharedMemfd, "generation {}", info.generation);
    }
}

#[test]
fn only_who_controls_may_change_it() {
    if !is_root_for("another user") {
        return;
    }
    let place = Place::new();
    let _holder = place.serve(&Start { open_to_all: true, ..Start::default() });
    place.load_path("a", false, &place.weights("w", 1, 1000)).unwrap();
    let mut client = place.program_as(65534, "uncontrolled_client");
    client.env("DAXFS_TEST_UNCONTROLLED", &place.socket);
    assert!(client.status().unwrap().success());
    assert_eq!(access(&place, "a", None).unwrap().0, (vec![], vec![]));
}

/// Run as another user by the test above.
#[test]
fn uncontrolled_client() {
    let Some(socket) = std::env::var_os("DAXFS_TEST_UNCONTROLLED") else { return };
    let place = Place { dir: tempfile::tempdir().unwrap(), socket: socket.into() };
    for change in [None, Some((vec![65534], vec![]))] {
        let error = access(&place, "a", change).unwrap_err();
        assert!(matches!(error, HolderError::Refused { refusal: Refusal::NotAllowed, .. }), "{error}");
    }
}
