//! Loading, attaching, swapping and dropping, with clients that are processes of their own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxfs::{Image, OpenOptions};
use daxfs_protocol::message::{COPIES_MAX, DeviceCopy, MemoryKind, Refusal, Reply, Request, Version};
use daxfs_protocol::{Connection, HolderError};
use support::{
    Done, Place, Process, Start, be_process, hash_of, identity, is_root_for, is_used, packed, tensor,
    wait_for,
};

#[test]
fn process() {
    be_process();
}

fn refusal(result: Result<impl std::fmt::Debug, HolderError>) -> (Refusal, String) {
    match result {
        Err(HolderError::Refused { refusal, text, .. }) => (refusal, text),
        other => panic!("{other:?}"),
    }
}

/// Packs a directory to a file beside it.
fn pack_to_file(directory: &Path) -> std::path::PathBuf {
    let file = directory.with_extension("daxfs");
    let image = Image::from_fd(packed(directory)).unwrap();
    fs::write(&file, image.region().view().to_vec()).unwrap();
    file
}

#[test]
fn a_directory_a_file_and_memory_become_the_same_image() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let weights = place.weights("w", 3, 5000);
    let directory = place.load_path("directory", false, &weights).unwrap();
    let file = place.load_path("file", false, &pack_to_file(&weights)).unwrap();
    let memory = packed(&weights);
    let kept = place.load("memory", false, &[], memory.as_fd()).unwrap();
    assert_eq!([directory.generation, file.generation, kept.generation], [1, 2, 3]);
    let reference = hash_of(&Image::from_fd(memory.try_clone().unwrap()).unwrap());
    for info in place.list() {
        assert_eq!(info.kind, MemoryKind::SealedMemfd, "{}", info.name);
        assert_eq!(
            info.content_hash.map(|hash| hash.digits().to_string()),
            Some(reference.clone()),
            "{}",
            info.name
        );
        let client = place.client(&info.name, &info.name, false, None);
        assert_eq!(place.report(&info.name), reference);
        drop(client);
    }
    let attached = place.open("memory");
    assert_eq!(identity(attached.region().fd().unwrap()), identity(memory.as_fd()), "kept, not copied");
    let shared = place.load("shared", false, &["shared=1"], File::open(&weights).unwrap().as_fd()).unwrap();
    assert_eq!(shared.kind, MemoryKind::SharedMemfd);
    let taken = refusal(place.load_path("file", false, &weights));
    assert_eq!(taken.0, Refusal::NameTaken);
}

#[test]
fn clients_outlive_the_holder_and_each_other() {
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("w", 9, 3 << 20)).unwrap();
    let own = place.open("llama");
    let expected = hash_of(&own);
    let memory = identity(own.region().fd().unwrap());
    let mut clients: Vec<_> = (0..3).map(|i| place.client("llama", &format!("c{i}"), true, None)).collect();
    for i in 0..3 {
        assert_eq!(place.report(&format!("c{i}")), expected);
    }
    clients[0].kill();
    assert_eq!(hash_of(&place.open("llama")), expected, "the holder does not mind");
    holder.kill();
    for i in 1..3 {
        fs::write(place.report_path(&format!("c{i}.go")), "").unwrap();
        assert_eq!(place.report(&format!("c{i}.again")), expected);
    }
    assert!(own.is_current().is_err(), "nobody knows");
    assert_eq!(tensor(&own), vec![9; 3 << 20]);
    assert!(is_used(memory));
    drop(own);
    drop(clients);
    wait_for("the memory to go with its last user", || !is_used(memory));
}

#[test]
fn a_swap_is_seen_by_new_clients_only_and_drop_ends_it() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("a", 1, 1000)).unwrap();
    let old = place.open("llama");
    assert!(old.is_current().unwrap());
    let swapped = place.load_path("llama", true, &place.weights("b", 2, 1000)).unwrap();
    assert_eq!(swapped.generation, 2);
    let new = place.open("llama");
    assert_eq!((old.is_current().unwrap(), new.is_current().unwrap()), (false, true));
    assert_eq!((tensor(&old), tensor(&new)), (vec![1; 1000], vec![2; 1000]));
    assert_eq!((old.version(), old.generation(), new.version(), new.generation()), (1, 0, 2, 0));
    assert_eq!(old.refresh().unwrap().unwrap().version(), 2);
    let (old_memory, new_memory) =
        (identity(old.region().fd().unwrap()), identity(new.region().fd().unwrap()));
    drop(old);
    // A process that another test starts has it for a moment.
    wait_for("the holder to let it go after the swap", || !is_used(old_memory));
    place.connect().request(&Request::Drop { name: "llama".into() }, &[]).unwrap();
    assert!(!new.is_current().unwrap());
    assert!(Image::open(place.address("llama")).is_err());
    assert_eq!(tensor(&new), vec![2; 1000]);
    drop(new);
    wait_for("the memory to go after the drop", || !is_used(new_memory));
    let again = refusal(place.connect().request(&Request::Drop { name: "llama".into() }, &[]));
    assert_eq!(again.0, Refusal::NoSuchName);
}

#[test]
fn swaps_while_clients_attach() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let sources = [place.weights("a", 0, 1000), place.weights("b", 1, 1000)];
    place.load_path("llama", false, &sources[0]).unwrap();
    let (done, attached) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !done.load(Ordering::Relaxed) {
                    let image = place.open("llama");
                    let generation = image.region().attachment().unwrap().info().generation;
                    // The old one or the new one, whole, and never an older one than before.
                    let byte = u8::try_from((generation - 1) % 2).unwrap();
                    assert_eq!(tensor(&image), vec![byte; 1000], "generation {generation}");
                    assert!(generation >= newest);
                    newest = generation;
                    attached.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = Done(&done);
        for swap in 1..=20 {
            let before = attached.load(Ordering::Relaxed);
            place.load_path("llama", true, &sources[swap % 2]).unwrap();
            wait_for("attaches", || attached.load(Ordering::Relaxed) > before);
        }
    });
    assert_eq!(place.list()[0].generation, 21);
}

#[test]
fn a_new_holder_with_the_same_generation_is_not_current() {
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("a", 1, 1000)).unwrap();
    let old = place.open("llama");
    holder.kill();
    let _holder = place.serve(&Start::default());
    assert!(!old.is_current().unwrap());
    let info = place.load_path("llama", false, &place.weights("b", 2, 1000)).unwrap();
    assert_eq!(info.generation, old.region().attachment().unwrap().info().generation);
    assert!(!old.is_current().unwrap());
    assert!(place.open("llama").is_current().unwrap());
}

#[test]
fn another_content_is_refused() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let hash = place.load_path("llama", false, &place.weights("w", 1, 1000)).unwrap().content_hash.unwrap();
    let open = |hash| OpenOptions::new().expect(hash).open(place.address("llama"));
    assert_eq!(open(hash).unwrap().content_hash(), Some(hash));
    let mut other = *hash.as_bytes();
    other[31] ^= 1;
    let error = open(other.into()).unwrap_err().to_string();
    assert!(error.contains("other content"), "{error}");
}

#[test]
fn a_flipped_byte_is_found_on_load() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let file = pack_to_file(&place.weights("w", 1, 4096));
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(64).rposition(|window| window == [1; 64]).unwrap();
    bytes[at] ^= 0x80;
    fs::write(&file, bytes).unwrap();
    let (refusal, text) = refusal(place.load_path("llama", false, &file));
    assert_eq!(refusal, Refusal::Failed);
    assert!(text.contains("/model.safetensors"), "{text}");
    assert!(place.list().is_empty());
}

#[test]
fn what_is_no_image_is_refused_and_costs_nothing() {
    let place = Place::new();
    let holder = place.serve(&Start::default());
    let before = support::descriptors(holder.0.id());
    let text = place.dir.path().join("text");
    fs::write(&text, "not an image").unwrap();
    assert_eq!(refusal(place.load_path("a", false, &text)).0, Refusal::Failed);
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    assert_eq!(refusal(place.load("a", false, &[], pipe.as_fd())).0, Refusal::Failed);
    let directory = File::open(place.weights("w", 1, 10)).unwrap();
    for option in ["x=1", "into=cuda:0", "into=disk", "allow-uid=-1"] {
        let (refusal, text) = refusal(place.load("a", false, &[option], directory.as_fd()));
        assert!(refusal == Refusal::BadRequest && text.contains(option), "{text}");
    }
    wait_for("the descriptors to be closed", || support::descriptors(holder.0.id()) <= before);
}

#[test]
fn a_load_that_panics_fails_and_the_next_one_runs() {
    let place = Place::new();
    let mut command = place.command(&Start::default());
    let _holder = Process(command.env("DAXFS_PANIC_AT", "load-written").spawn().unwrap());
    wait_for("a holder that answers", || place.pid().is_some());
    let weights = place.weights("w", 1, 1000);
    let text = place.dir.path().join("text");
    fs::write(&text, "not an image").unwrap();
    for _ in 0..2 {
        let (code, why) = refusal(place.load_path("a", false, &weights));
        assert!(code == Refusal::Failed && why.contains("bug"), "{why}");
        assert!(refusal(place.load_path("a", false, &text)).1.contains("not an image"));
    }
    match place.connect().request(&Request::Health, &[]).unwrap().0 {
        Reply::Health { bytes, .. } => assert_eq!(bytes, 0, "what a failed load took is given back"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_may_attach_and_control() {
    if !is_root_for("trying other users") {
        return;
    }
    let place = Place::new();
    let _holder = place.serve(&Start { open_to_all: true, ..Start::default() });
    let weights = File::open(place.weights("w", 4, 100)).unwrap();
    place.load("everybody", false, &[], weights.as_fd()).unwrap();
    place.load("user", false, &["allow-uid=4321"], weights.as_fd()).unwrap();
    place.load("group", false, &["allow-gid=4321", "allow-uid=1"], weights.as_fd()).unwrap();
    let hash = hash_of(&place.open("user"));
    for name in ["everybody", "user", "group"] {
        for (uid, may) in [(4321, true), (4322, name == "everybody")] {
            let report = format!("{name}-{uid}");
            let _client = place.client(name, &report, false, Some(uid));
            let text = place.report(&report);
            assert_eq!(text == hash, may, "{report}: {text}");
            assert!(may || text.contains("there is no image"), "{report}: {text}");
        }
    }
    // As another user in this process' place: the kernel records who connects.
    let verbs = [Request::Drop { name: "everybody".into() }, Request::Stop, Request::Takeover];
    for verb in verbs {
        let mut connection = connect_as(&place, 4321);
        assert_eq!(refusal(connection.request(&verb, &[])).0, Refusal::NotAllowed, "{verb:?}");
    }
    let load = Request::Load { name: "n".into(), replace: true, options: vec![] };
    let result = connect_as(&place, 4321).request(&load, &[weights.as_fd()]);
    assert_eq!(refusal(result).0, Refusal::NotAllowed);
    // Of who may not load the kernel drops descriptors, and no more is read; of others they are closed elsewhere.
    for (uid, expected) in [(4321, Refusal::NotAllowed), (0, Refusal::BadRequest)] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let connect = || dmabuf::connect_seqpacket(&place.socket, support::PATIENCE);
        let socket = as_user(uid, connect).unwrap();
        dmabuf::send_fds(socket.as_fd(), &Request::Health.encode(), &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = vec![0; daxfs_protocol::wire::MESSAGE_MAX];
        let (len, _) = dmabuf::recv_fds(socket.as_fd(), &mut buffer, 0).unwrap();
        let reply = Reply::decode(&buffer[..len], 0).unwrap();
        assert!(matches!(&reply, Reply::Error { refusal, .. } if *refusal == expected), "{reply:?}");
        assert_eq!(dmabuf::recv_fds(socket.as_fd(), &mut buffer, 0).unwrap().0, 0, "ended");
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0, "closed");
    }
    // Copies on devices are kept for those who may load, and given to those who may attach.
    let own = |name: &str| place.open(name).region().attachment().unwrap().clone();
    let copy = |device, placement| DeviceCopy {
        device: [device; 16].into(),
        placement: [placement; 32],
        size: 4096,
    };
    let (whole, placed) = (copy(7, 0), copy(7, 1));
    own("user").keep(weights.as_fd(), whole).unwrap();
    for (device, placement) in [(8, 0), (7, 1)] {
        assert!(own("user").copy_on([device; 16].into(), [placement; 32]).unwrap().is_none());
    }
    let (fd, size) = own("user").copy_on(whole.device, whole.placement).unwrap().unwrap();
    assert!(size == 4096 && dmabuf::same_open_file(fd.as_fd(), weights.as_fd()).unwrap());
    own("user").keep(weights.as_fd(), placed).unwrap();
    assert!(own("user").copy_on(placed.device, placed.placement).unwrap().is_some());
    assert_eq!(place.list().iter().map(|info| info.copies.len()).sum::<usize>(), 2);
    let of = |name: &str| {
        let attachment = own(name);
        let (info, stat) =
            (attachment.info(), nix::sys::stat::fstat(place.open(name).region().fd().unwrap()));
        Version { name: name.into(), generation: info.generation, inode: stat.unwrap().st_ino }
    };
    let keep = Request::Keep { of: of("everybody"), copy: whole };
    let result = connect_as(&place, 4321).request(&keep, &[weights.as_fd()]);
    assert_eq!(refusal(result).0, Refusal::NotAllowed);
    let get = |of| Request::Copy { of, device: whole.device, placement: whole.placement };
    assert!(connect_as(&place, 4321).request(&get(of("user")), &[]).is_ok());
    assert_eq!(refusal(connect_as(&place, 4322).request(&get(of("user")), &[])).0, Refusal::NoSuchName);
    let stale = Version { inode: 1, ..of("user") };
    let refused = [
        place.connect().request(&get(stale.clone()), &[]),
        place.connect().request(&Request::Keep { of: stale, copy: whole }, &[weights.as_fd()]),
    ];
    assert!(refused.into_iter().all(|result| refusal(result).0 == Refusal::NoSuchName));
    for number in (0..COPIES_MAX).map(|number| u8::try_from(number).unwrap()) {
        // Those that are there already are replaced.
        let (device, placement) = (7 + number / 8, number % 8);
        let kept = own("user").keep(weights.as_fd(), copy(device, placement));
        kept.unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    let result = own("user").keep(weights.as_fd(), copy(99, 0));
    assert!(result.unwrap_err().to_string().contains("32 copies"));
    let seen = connect_as(&place, 4322).list().unwrap();
    assert_eq!(seen.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["everybody"]);
    assert_eq!(place.list().len(), 3);
}

/// Connects as another user. The thread's user is changed, not the process', by way of its own system call.
fn connect_as(place: &Place, uid: u32) -> Connection {
    as_user(uid, || place.connect())
}

/// Does something as another user.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let connect = scope.spawn(|| {
            #[allow(unsafe_code, reason = "the wrapper of the C library changes the user of all threads")]
            // SAFETY: takes three integers and touches no memory; the user of this thread only is changed, and the
            // thread ends after that.
            let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(result, 0);
            act()
        });
        connect.join().unwrap()
    })
}

#[test]
fn a_listed_user_may_control() {
    if !is_root_for("trying other users") {
        return;
    }
    let place = Place::new();
    let mut holder = place.serve(&Start { open_to_all: true, control: Some(4321), ..Start::default() });
    connect_as(&place, 4321).request(&Request::Stop, &[]).unwrap();
    assert!(holder.wait().success());
    assert!(!place.socket.exists(), "a holder that ends removes its socket");
}

#[test]
fn content_without_tensors_has_an_identity_too() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let tree = place.dir.path().join("tables");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("lookup.bin"), [7; 5000]).unwrap();
    let first = place.load_path("tables", false, &tree).unwrap().content_hash.unwrap();
    let image = OpenOptions::new().expect(first).open(place.address("tables")).unwrap();
    assert_eq!(hash_of(&image), first.digits().to_string());
    fs::write(tree.join("lookup.bin"), [[7; 4999].as_slice(), &[8]].concat()).unwrap();
    let second = place.load_path("tables", true, &tree).unwrap().content_hash.unwrap();
    assert_ne!(first, second);
    assert!(OpenOptions::new().expect(first).open(place.address("tables")).is_err());
    let expect = format!("expect={first}");
    let source = File::open(&tree).unwrap();
    let (refusal, text) = refusal(place.load("tables", true, &[&expect], source.as_fd()));
    assert!(refusal == Refusal::OtherContent && text.contains(&second.to_string()), "{text}");
    assert_eq!(place.open("tables").content_hash(), Some(second), "what is refused replaces nothing");
}

#[test]
fn connections_of_one_user_do_not_push_out_those_of_another() {
    if !is_root_for("trying other users") {
        return;
    }
    let place = Place::new();
    let start = Start { open_to_all: true, max_connections: Some(8), ..Start::default() };
    let _holder = place.serve(&start);
    place.load_path("llama", false, &place.weights("w", 1, 100)).unwrap();
    let attach = Request::Attach { name: "llama".into(), expect: None };
    let mut own = place.connect();
    own.request(&attach, &[]).unwrap();
    let mut others: Vec<_> = (0..30).map(|_| connect_as(&place, 4321)).collect();
    // Each answers once, so it was accepted; the first were closed for the last.
    let answers = others.iter_mut().map(|other| other.request(&attach, &[]).is_ok());
    let answers: Vec<bool> = answers.collect();
    assert!(answers.iter().filter(|answer| **answer).count() <= 8, "{answers:?}");
    assert!(answers[29], "the newest is served");
    own.request(&attach, &[]).unwrap();
}
