//! The holder, run as people run it: real processes, real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::{Done, Place, Process, until};
use daxfs::{Image, OpenOptions};
use daxfs_protocol::{Connection, HolderError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn load_list_swap_drop_stop() {
    let place = Place::new();
    let other = place.other_image();
    let holder = place.serve(&["m=TREE"]);
    assert_eq!(fs::metadata(place.socket()).unwrap().mode() & 0o777, 0o600);

    let text = place.run(&["ps"]).ok();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "GEN", "SIZE", "MEMORY", "PAGES", "CONTENT", "AGE", "ATTACHES", "COPIES"]);
    assert_eq!((rows[1][0], rows[1][1], rows.len()), ("m", "1", 2));
    assert!(text.contains("sealed memfd") && text.contains("blake3:"), "{text}");

    let stored = Image::open(place.0.image()).unwrap().content_hash().unwrap();
    let hex = stored.digits().to_string();
    let listing = place.run(&["ps", "--json"]).json();
    assert_eq!(listing["images"][0]["content_hash"], format!("blake3:{hex}"));
    assert_eq!(listing["images"][0]["memory"], "sealed memfd");
    assert!(listing["images"][0].get("holders").is_none());

    let expected = place.run(&["ls", "-R", "--json", "IMAGE"]).ok();
    assert_eq!(place.run(&["ls", "-R", "--json", &place.address("m")]).ok(), expected);
    assert_eq!(place.run(&["ls", "-R", "--json", "daxfs://m"]).ok(), expected);
    place.run(&["verify", "-q", "daxfs://m", "TREE"]).ok();

    // This process has the image, too.
    let old = Image::open(place.address("m")).unwrap();
    assert!(old.is_current().unwrap());
    let users = place.run(&["ps", "--holders", "--json"]).json();
    let pids: Vec<u64> = users["images"][0]["holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["pid"].as_u64().unwrap())
        .collect();
    assert!(
        pids.contains(&std::process::id().into()) && pids.contains(&holder.child.id().into()),
        "{pids:?}"
    );
    assert!(place.run(&["ps", "--holders"]).ok().contains(&format!("\n  {} ", std::process::id())));

    let loaded = place.run(&["load", "f", "IMAGE"]).ok();
    assert!(loaded.starts_with("f: generation 2, "), "{loaded}");
    let error = place.run(&["load", "m", "IMAGE"]).error();
    assert!(error.contains("already"), "{error}");

    let swapped = place.run(&["swap", "m", &other, "--json"]).json();
    assert_eq!((swapped["name"].as_str(), swapped["generation"].as_u64()), (Some("m"), Some(3)));
    assert!(!old.is_current().unwrap());
    assert_eq!(
        old.file("/dir/sub/deep.txt").unwrap().to_vec().unwrap(),
        b"deep\n",
        "old clients keep the old bytes"
    );
    let new = Image::open(place.address("m")).unwrap();
    assert_eq!(new.file("/config.json").unwrap().to_vec().unwrap(), b"{}\n");

    assert_eq!(place.run(&["drop", "f", "--json"]).json(), serde_json::json!({"dropped": "f"}));
    assert_eq!(place.generation("f"), None);
    let error = place.run(&["drop", "f"]).error();
    assert!(error.contains("no image \"f\""), "{error}");
    let error = place.run(&["ls", "daxfs://f"]).error();
    assert!(error.contains("no image \"f\""), "{error}");

    let health = place.run(&["health", "--json"]).json();
    assert_eq!(
        (health["pid"].as_u64(), health["images"].as_u64()),
        (Some(holder.child.id().into()), Some(1))
    );
    assert_eq!(place.run(&["stop", "--json"]).json(), serde_json::json!({"stopped": true}));
    assert!(!place.socket().exists());
    assert_eq!(holder.end().1, 0);
    assert!(place.run(&["health"]).error().contains("no holder answers"));
    assert_eq!(new.file("/config.json").unwrap().to_vec().unwrap(), b"{}\n", "clients outlive the holder");
    assert!(new.is_current().is_err());
}

#[test]
fn health_waits_for_a_holder_that_is_starting() {
    let place = Place::new();
    assert_eq!(place.run(&["health", "--wait", "0"]).status, 2);
    // What listens here first answers nothing, so the command has to ask again.
    let listener = dmabuf::listen_seqpacket(&place.socket(), 0o600, None).unwrap();
    let mut waiting = place.command(&["health", "--wait", "600", "--json"]);
    let mut waiting = Process(waiting.stdout(Stdio::piped()).spawn().unwrap());
    until("it asks", || dmabuf::accept_seqpacket(listener.as_fd()).unwrap().is_some());
    drop(listener);
    fs::remove_file(place.socket()).unwrap();
    let holder = place.serve(&["m=IMAGE"]);
    assert_eq!(waiting.end(), Some(0));
    let answer: serde_json::Value = serde_json::from_reader(waiting.stdout.take().unwrap()).unwrap();
    assert_eq!(
        (answer["pid"].as_u64(), answer["images"].as_u64()),
        (Some(holder.child.id().into()), Some(1))
    );
}

#[test]
fn what_is_wrong_is_refused() {
    let place = Place::new();
    let _holder = place.serve(&["m=IMAGE", "--max-bytes", "3M"]);
    let size = fs::metadata(place.0.image()).unwrap().len();
    assert!(size < 3 << 20, "the limit below must be reached by one more file");

    let big = place.0.path("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("zeros"), vec![0; 3 << 20]).unwrap();
    let error = place.run(&["load", "big", "DIR/big"]).error();
    assert!(error.contains("--max-bytes is 3145728"), "{error}");

    let wrong = OpenOptions::new().expect([7; 32]).open(place.address("m")).unwrap_err().to_string();
    assert!(wrong.contains("other content"), "{wrong}");
    let hash = Image::open(place.0.image()).unwrap().content_hash().unwrap();
    OpenOptions::new().expect(hash).open(place.address("m")).unwrap();

    // One byte of a file differs from what the index says.
    place.0.poke(place.0.offset_of("/config.json"), b"[");
    let error = place.run(&["load", "bad", "IMAGE"]).error();
    assert!(error.contains("/config.json: BLAKE3 is"), "{error}");
    fs::write(place.0.path("text"), "no image").unwrap();
    place.run(&["load", "bad", "DIR/text"]).error();
    place.run(&["load", "bad", "DIR/absent"]).error();

    let without_effect: [&[&str]; 3] = [
        &["load", "x", "IMAGE", "--dedupe"],
        &["load", "x", "TREE", "--shared", "--into", "udmabuf"],
        &["ps", "--strict"],
    ];
    for args in without_effect {
        assert_eq!(place.run(args).status, 2, "{args:?}");
    }
    for args in [&["load", "a/b", "TREE"][..], &["load", "x", "TREE", "--into", "floppy"], &["serve", "x"]] {
        assert_eq!(place.run(args).status, 2, "{args:?}");
    }
    assert_eq!(place.run(&["ps", "--json"]).json()["images"].as_array().unwrap().len(), 1);
}

#[test]
fn options_of_a_load() {
    let place = Place::new();
    let _holder = place.serve(&["--mode", "0666"]);
    assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o666);
    let shared = place.run(&["load", "s", "TREE", "--shared", "--align-tensors=512", "--json"]).json();
    assert_eq!(shared["memory"], "shared memfd");
    let image = Image::open(place.address("s")).unwrap();
    let aligned = image.tensors_at("/model.safetensors").unwrap().get("head.weight").unwrap().alignment();
    assert!(aligned >= 512, "{aligned}");
    let source = fs::read(place.0.tree().join("model.safetensors")).unwrap();
    let stored = |name: &str| {
        let image = Image::open(place.address(name)).unwrap();
        image.file("/model.safetensors").unwrap().to_vec().unwrap()
    };
    place.run(&["load", "e", "TREE", "--exact", "-q"]).ok();
    assert_eq!(stored("e"), source);
    place.run(&["load", "d", "TREE", "-q"]).ok();
    assert_ne!(stored("d"), source, "aligned by default");
    assert_eq!(place.run(&["load", "x", "TREE", "--exact", "--align-tensors"]).status, 2);
    assert!(place.run(&["load", "x", "daxfs://e", "--exact"]).error().contains("--exact is for directories"));
    let small = place.run(&["load", "p", "TREE", "--into", "memfd:4K", "--json"]).json();
    assert_eq!(small["memory"], "sealed memfd");
    assert_eq!(small["page_size"].as_u64(), Some(dmabuf::page_size()));

    // A memfd is kept as it is, not copied.
    let (fd, _) = mkimage::Packer::new()
        .input(place.0.tree())
        .plan()
        .unwrap()
        .write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No))
        .unwrap();
    let ino = fs::File::from(fd.try_clone().unwrap()).metadata().unwrap().ino();
    let mut load = place.command(&["load", "k", "-", "-q"]);
    let status = load.stdin(Stdio::from(fd)).status().unwrap();
    assert!(status.success());
    assert_eq!(Image::open(place.address("k")).unwrap().region().info().unwrap().ino, ino);
    assert!(place.run(&["load", "l", "daxfs://k", "--into", "memfd:4K"]).error().contains("kept as it is"));
    // Nor is one that a holder has already.
    place.run(&["load", "again", "daxfs://k", "-q"]).ok();
    assert_eq!(Image::open(place.address("again")).unwrap().region().info().unwrap().ino, ino);
}

/// The files of a Hugging Face snapshot are links out of it.
#[test]
fn links_out_of_a_directory_are_followed() {
    let place = Place::new();
    let snapshot = place.0.path("cache/snapshots/1");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(place.0.path("cache/blobs")).unwrap();
    for (name, blob) in [("model.safetensors", "0a"), ("config.json", "0b"), ("vocabulary.bin", "0c")] {
        let from = if name == "vocabulary.bin" { "config.json" } else { name };
        fs::copy(place.0.tree().join(from), place.0.path("cache/blobs").join(blob)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let source = "DIR/cache/snapshots/1";
    let _holder = place.serve(&[&format!("first={source}"), "--exclude", "*.bin"]);
    let names = |name: &str| {
        let image = Image::open(place.address(name)).unwrap();
        let mut names: Vec<_> =
            image.root().children().map(|entry| String::from_utf8_lossy(entry.name()).into_owned()).collect();
        names.sort();
        (names, image.tensors().map_or(0, |tensors| tensors.len()))
    };
    let (all, tensors) = names("first");
    assert_eq!(all, [".daxfs", "config.json", "model.safetensors"]);
    assert!(tensors > 0);
    place.run(&["load", "second", source, "-q"]).ok();
    assert_eq!(names("second").0.len(), 4);
    place.run(&["load", "third", source, "-q", "--weights-only", "--include", "*.safetensors"]).ok();
    assert_eq!(names("third"), (vec![".daxfs".into(), "model.safetensors".into()], tensors));
    place.run(&["load", "kept", source, "-q", "--links", "keep"]).ok();
    assert_eq!(names("kept").1, 0);
    let error = place.run(&["load", "refused", source, "--links", "refuse"]).error();
    assert!(error.contains("links are refused"), "{error}");
    assert!(place.run(&["load", "x", "IMAGE", "--exclude", "a"]).error().contains("is for directories"));
    assert!(place.run(&["serve", "x=IMAGE", "--links", "keep"]).error().contains("is for directories"));
    assert_eq!(place.run(&["load", "x", source, "--links", "all"]).status, 2);
}

/// A holder of another user, or in another container, must not read for a client what the client may not read.
#[test]
fn links_out_of_a_directory_are_not_followed_for_others() {
    if !nix::unistd::Uid::effective().is_root() {
        assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "trying other users needs root");
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.0.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let open = place.0.path("open");
    fs::create_dir(&open).unwrap();
    for (name, mode) in [("secret", 0o600), ("public", 0o644)] {
        fs::write(place.0.path(name), name).unwrap();
        fs::set_permissions(place.0.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::symlink("../secret", open.join("link")).unwrap();
    let _holder = place.serve(&["--mode", "0666", "--allow-control", "4321"]);
    let as_other = |args: &[&str]| {
        let load = place.command(args);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=4321", "--regid=4321", "--clear-groups"]).arg(load.get_program());
        command.args(load.get_args()).env("DAXFS_SOCKET", place.socket());
        common::Run::of(&mut command)
    };
    let run = as_other(&["load", "stolen", "DIR/open", "-q"]);
    assert!(run.stderr.contains("warning: ") && run.stderr.contains("link"), "the helper's warning: {run:?}");
    assert_eq!(run.status, 0, "{run:?}");
    let image = Image::open(place.address("stolen")).unwrap();
    assert!(image.file("link").is_err(), "it may not be read, so it stays a link that leads nowhere");
    assert_eq!(image.entry_no_follow("link").unwrap().read_link().unwrap(), b"../secret");
    let error = as_other(&["load", "x", "DIR/open", "--links", "follow"]).error();
    assert!(error.contains("cannot be read"), "{error}");
    std::os::unix::fs::symlink("../public", open.join("other")).unwrap();
    let run = as_other(&["load", "own", "DIR/open", "-q"]);
    assert_eq!((run.status, run.stderr.matches("warning").count()), (0, 1), "{run:?}");
    let image = Image::open(place.address("own")).unwrap();
    assert_eq!(image.file("other").unwrap().to_vec().unwrap(), b"public");

    // Another container: the same user, another file behind the same name.
    let absolute = place.0.path("absolute");
    fs::create_dir(&absolute).unwrap();
    std::os::unix::fs::symlink(place.0.path("public"), absolute.join("link")).unwrap();
    let load = place.command(&["load", "apart", "DIR/absolute", "-q"]);
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$SECRET\" \"$PUBLIC\" && exec \"$0\" \"$@\""]);
    command.arg(load.get_program()).args(load.get_args()).env("DAXFS_SOCKET", place.socket());
    command.env("SECRET", place.0.path("secret")).env("PUBLIC", place.0.path("public"));
    common::Run::of(&mut command).ok();
    let image = Image::open(place.address("apart")).unwrap();
    assert_eq!(image.file("link").unwrap().to_vec().unwrap(), b"secret");
}

#[test]
fn starting_and_ending() {
    let place = Place::new();
    let first = place.serve(&["m=IMAGE"]);
    let error = place.run(&["serve"]);
    assert_eq!(error.status, 2);
    assert!(error.stderr.contains(&first.child.id().to_string()), "names the other: {error:?}");
    assert!(error.stderr.contains("--takeover"), "{error:?}");

    first.signal(Signal::SIGKILL);
    first.end();
    assert!(place.socket().exists(), "a killed holder leaves its socket");
    let error = place.run(&["ps"]).error();
    assert!(error.contains("no holder answers") && error.matches("os error").count() == 1, "{error}");
    let second = place.serve(&[]);
    assert!(place.run(&["health"]).ok().contains("0 images"));
    second.signal(Signal::SIGTERM);
    let (log, status) = second.end();
    assert_eq!(status, 0, "{log}");
    assert!(!place.socket().exists());

    // A source that is none ends the start, and leaves no socket.
    fs::write(place.0.path("text"), "no image").unwrap();
    let failed = place.run(&["serve", "t=DIR/text"]);
    assert_eq!(failed.status, 2, "{failed:?}");
    assert!(failed.stderr.lines().last().unwrap().starts_with("daxfs: t: "), "{failed:?}");
    assert!(!place.socket().exists());
    assert!(place.run(&["serve", "--takeover"]).stderr.contains("no holder answers"));
}

/// Who names files chooses what is warned of, not what the log says, and not how long it gets.
#[test]
fn names_of_files_make_no_lines_of_the_log() {
    let place = Place::new();
    let tree = place.0.path("named");
    fs::create_dir(&tree).unwrap();
    for number in 0..300 {
        fs::write(tree.join(format!("{number}\nforged.safetensors")), "no weights").unwrap();
    }
    let holder = place.serve(&[]);
    let run = place.run(&["load", "m", "DIR/named", "-q"]);
    assert_eq!((run.status, run.stderr.lines().count()), (0, 101), "{run:?}");
    assert!(run.stderr.contains("there are more warnings"), "{run:?}");
    place.run(&["stop"]).ok();
    let (log, _) = holder.end();
    assert!(log.lines().count() < 120, "{} lines", log.lines().count());
    assert!(log.contains("forged") && !log.lines().any(|line| line.starts_with("forged")), "{log}");
}

#[test]
fn a_signal_while_it_loads_ends_it() {
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let go = place.0.path("go");
        let mut command = place.command(&["serve", "m=TREE", "n=TREE"]);
        command.env("DAXFS_PAUSE_AT", "load-written").env("DAXFS_PAUSE_UNTIL", &go);
        let mut holder = Process(command.stderr(Stdio::null()).spawn().unwrap());
        let pid = Pid::from_raw(holder.id().cast_signed());
        let descriptors = format!("/proc/{pid}/fd");
        // By its name: emulators of programs make others, before the program has begun.
        let is_memfd = |entry: fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:daxfs"))
        };
        until("the load runs", || {
            assert!(holder.try_wait().unwrap().is_none());
            fs::read_dir(&descriptors).unwrap().flatten().any(is_memfd)
        });
        kill(pid, signal).unwrap();
        fs::write(&go, "").unwrap();
        assert_eq!(holder.end(), Some(0), "{signal}");
        assert!(!place.socket().exists());
        fs::remove_file(go).unwrap();
    }
}

#[test]
fn takeovers_while_clients_attach() {
    let place = Place::new();
    let mut holder = place.serve(&["m=IMAGE"]);
    let address = place.address("m");
    let before = Image::open(&address).unwrap();
    let (ending, attaches) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let attach = || {
            while !ending.load(Ordering::Relaxed) {
                let image = Image::open(&address).expect("no attach fails");
                assert_eq!(image.file("/dir/sub/deep.txt").unwrap().to_vec().unwrap(), b"deep\n");
                attaches.fetch_add(1, Ordering::Relaxed);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(attach)).collect();
        let done = Done(&ending);
        for _ in 0..3 {
            let seen = attaches.load(Ordering::Relaxed);
            let new = place.serve(&["--takeover", "m=IMAGE"]);
            let old = std::mem::replace(&mut holder, new);
            let (log, status) = old.end();
            assert_eq!(status, 0, "{log}");
            while attaches.load(Ordering::Relaxed) < seen + 20 && !threads.iter().any(|t| t.is_finished()) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(done);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert!(before.is_current().unwrap(), "a takeover changes no generation, and loads nothing again");
    assert_eq!(place.generation("m"), Some(1));
    let health = place.run(&["health", "--json"]).json();
    assert_eq!(health["pid"].as_u64(), Some(holder.child.id().into()));
    place.run(&["stop"]).ok();
    assert!(!place.socket().exists(), "the last one removes the socket");
}

#[test]
fn another_content_than_expected_is_refused_everywhere() {
    let place = Place::new();
    let other = place.other_image();
    let _holder = place.serve(&["m=IMAGE"]);
    let hash = place.run(&["ps", "--json"]).json()["images"][0]["content_hash"].as_str().unwrap().to_owned();
    let wrong = format!("blake3:{}", "7".repeat(64));
    for source in ["IMAGE", "daxfs://m"] {
        for verb in [&["verify", "-q"][..], &["inspect"], &["stat"], &["ls"], &["tree"]] {
            let line = |hash| [verb, &[source, "--expect", hash]].concat();
            place.run(&line(&hash)).ok();
            let error = place.run(&line(&wrong)).error();
            assert!(
                error.contains(&format!("hash is {hash}, expected {wrong}")),
                "{verb:?} {source}: {error}"
            );
        }
    }
    // What is packed by a load is compared, too, before the name means it.
    let error = place.run(&["swap", "m", &other, "--expect", &hash]).error();
    assert!(error.contains(&hash), "{error}");
    place.run(&["swap", "m", "TREE", "--expect", &hash, "-q"]).ok();
    assert_eq!(place.generation("m"), Some(2));
    fs::write(place.0.tree().join("config.json"), "changed").unwrap();
    place.run(&["swap", "m", "TREE", "--expect", &hash]).error();
    place.0.pack(|packer| packer.plain(true));
    assert!(place.run(&["ls", "IMAGE", "--expect", &hash]).error().contains("not stored"));
}

#[test]
fn a_silent_client_does_not_keep_the_holder_alive_or_others_waiting() {
    let place = Place::new();
    let holder = place.serve(&["m=IMAGE"]);
    let mut silent = Connection::open(&place.socket()).unwrap();
    place.run(&["ls", "daxfs://m"]).ok();
    holder.signal(Signal::SIGINT);
    assert_eq!(holder.end().1, 0);
    assert!(matches!(silent.receive().unwrap_err(), HolderError::Closed { .. }));
}

#[test]
fn pages_and_completions() {
    let place = Place::new();
    place.run(&["man", "DIR/man/man1"]).ok();
    for page in ["daxfs.1", "daxfs-ls.1", "daxfs-serve.1", "daxfs-swap.1", "daxfs-pack.1"] {
        let text = fs::read_to_string(place.0.path("man/man1").join(page)).unwrap();
        assert!(text.contains(".TH ") && text.contains(".SH NAME"), "{page}");
    }
    assert!(!place.0.path("man/man1/daxfs-help.1").exists());
    let serve = fs::read_to_string(place.0.path("man/man1/daxfs-serve.1")).unwrap();
    assert!(serve.contains("takeover") && !serve.contains("sealed\\-copy"), "{serve}");
    assert!(place.run(&["completions", "bash"]).ok().contains("takeover"));
    assert!(place.run(&["completions", "fish", "--program", "daxfs-pack"]).ok().contains("align-tensors"));
}

#[test]
fn who_may_attach_is_shown_and_changed_by_a_verb_of_its_own() {
    let place = Place::new();
    let _holder = place.serve(&["--mode", "0666"]);
    place.run(&["load", "m", "TREE", "--allow-uid", "1000", "-q"]).ok();
    assert_eq!(place.run(&["access", "m"]).ok(), "m: user 1000\n");
    place.run(&["swap", "m", "TREE", "-q"]).ok();
    assert_eq!(place.run(&["access", "m"]).ok(), "m: user 1000\n");
    let error = place.run(&["swap", "m", "TREE", "--allow-uid", "5"]).error();
    assert!(error.contains("keeps who may attach (user 1000); change that with `daxfs access`"), "{error}");
    let changed = place.run(&["access", "m", "--allow-gid", "7", "--allow-uid", "5"]).ok();
    assert_eq!(changed, "m: user 5, group 7, before: user 1000\n");
    let json = place.run(&["access", "m", "--everybody", "--json"]).json();
    let before = serde_json::json!({"uids": [5], "gids": [7]});
    let after = serde_json::json!({"uids": [], "gids": []});
    assert_eq!(json, serde_json::json!({"name": "m", "before": before, "after": after}));
    assert_eq!(place.run(&["access", "m"]).ok(), "m: everybody who may connect\n");
    assert!(place.run(&["access", "x"]).error().contains("no image \"x\""));
    assert_eq!(place.run(&["access", "m", "--everybody", "--allow-uid", "1"]).status, 2);
}

#[test]
fn a_load_that_fails_names_what_the_user_named() {
    let place = Place::new();
    let _holder = place.serve(&[]);
    let special = place.0.path("special");
    fs::create_dir(&special).unwrap();
    nix::unistd::mkfifo(&special.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = place.run(&["load", "x", "DIR/special"]).error();
    assert!(error.contains(special.to_str().unwrap()) && error.contains(": ./pipe: "), "{error}");
    assert!(error.contains("(daxfs-pack --skip-special leaves such files out)"), "{error}");
    assert!(!error.contains("/proc/"), "{error}");
    let error = place.run(&["load", "x", "IMAGE", "--no-copy"]).error();
    assert!(error.contains("would have to be copied"), "{error}");
    assert!(place.run(&["load", "x", "TREE", "--no-copy"]).error().contains("--no-copy is for memory"));
}

/// A holder of another user than the one who loads: it reads nothing for root, and root packs for itself.
#[test]
fn a_holder_without_the_rights_is_sent_what_was_packed() {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
        assert!(!required, "becoming another user needs root");
        return;
    }
    let place = Place::new();
    let other = place.other_image();
    // Others can run it there, whatever the way to the build directory allows.
    let program = place.0.path("daxfs");
    fs::copy(common::DAXFS, &program).unwrap();
    let run = place.0.path("run");
    fs::create_dir(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(place.0.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = run.join("s.sock");
    let mut holder = std::process::Command::new("setpriv");
    holder.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    holder.arg("serve").arg("--socket").arg(&socket).stderr(Stdio::null());
    let _holder = Process(holder.spawn().unwrap());
    let run = |args: &[&str]| common::Run::of(place.command(args).env("DAXFS_SOCKET", &socket));
    until("the holder answers", || run(&["health"]).status == 0);
    // As safetensors are written by default: for their owner alone.
    for file in ["model.safetensors", "config.json"] {
        fs::set_permissions(place.0.tree().join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let loaded = run(&["load", "m", "TREE", "--json"]).json();
    assert_eq!(loaded["memory"], "sealed memfd");
    assert!(loaded["content_hash"].is_string(), "{loaded}");
    run(&["verify", "-q", "daxfs://m", "TREE"]).ok();
    assert_eq!(run(&["swap", "m", "TREE", "--align-tensors=512", "--json"]).json()["generation"], 2);
    run(&["load", "e", "TREE", "--exact", "-q"]).ok();
    let source = fs::read(place.0.tree().join("model.safetensors")).unwrap();
    assert_eq!(run(&["cat", "daxfs://e", "model.safetensors"]).stdout, source);
    run(&["swap", "m", &other, "-q"]).ok();
    // A swap keeps the kind of memory, whoever packs.
    run(&["load", "s", "TREE", "--shared", "-q"]).ok();
    assert_eq!(run(&["swap", "s", "TREE", "--json"]).json()["memory"], "shared memfd");
    let error = run(&["load", "x", "DIR/absent"]).error();
    assert!(error.contains("No such file"), "{error}");
}
