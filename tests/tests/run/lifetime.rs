//! Signals, and what is left when something is killed: nothing.

use super::support::{Place, can_run, mounts_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Waits until something holds.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// Starts a script that says a word when it is there. Its second word is on the command lines of all of its processes.
fn start(
    place: &Place,
    way: &str,
    mark: &str,
    script: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let args = ["--as", way, "image.daxfs", "--", "sh", "-c", script, mark];
    let mut child = place.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(line(&mut out), "up");
    (child, out)
}

fn line(out: &mut impl BufRead) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn processes_with(mark: &str) -> usize {
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.unwrap().path().join("cmdline")).ok()?;
        line.split(|&byte| byte == 0).any(|word| word == mark.as_bytes()).then_some(())
    });
    lines.count()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

#[test]
fn signals_reach_the_command_once_and_its_end_is_the_containers() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let script = "n=0; trap 'n=$((n+1)); echo got $n' USR1; trap 'echo bye; exit 9' TERM; echo up; \
                  while :; do sleep 0.02; done";
    for way in ["erofs", "fuse"] {
        let (mut child, mut out) = start(&place, way, "signals-reach", script);
        for n in 1..=3 {
            kill(pid(&child), Signal::SIGUSR1).unwrap();
            assert_eq!(line(&mut out), format!("got {n}"));
        }
        kill(pid(&child), Signal::SIGTERM).unwrap();
        assert_eq!((line(&mut out).as_str(), child.wait().unwrap().code()), ("bye", Some(9)));
    }
    // One that does nothing about it is ended by it.
    let (mut child, _out) = start(&place, "fuse", "signals-reach", "echo up; exec sleep 1000");
    kill(pid(&child), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(processes_with("signals-reach"), 0);
}

#[test]
fn nothing_is_left_when_it_is_killed() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let loops = || {
        fs::read_dir("/sys/block").unwrap().filter(|entry| {
            let file = entry.as_ref().unwrap().path().join("loop/backing_file");
            fs::read_to_string(file).is_ok_and(|path| path.contains(place.path("").to_str().unwrap()))
        })
    };
    for way in ["erofs", "fuse"] {
        // Children of children, in sessions of their own, which no signal of a group reaches.
        let script = "trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' \"$0\" &) ; \
                      sh -c 'while :; do sleep 1; done' \"$0\" & echo up; wait";
        let (mut child, _out) = start(&place, way, "nothing-is-left", script);
        assert!(processes_with("nothing-is-left") >= 3, "{way}");
        kill(pid(&child), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        until("processes are left", || processes_with("nothing-is-left") == 0);
        until("a loop device is left", || loops().count() == 0);
        assert_eq!(mounts_with(place.path("").to_str().unwrap()), [""; 0]);
    }
}

#[test]
fn what_the_command_leaves_ends_with_it_and_is_collected_before() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    // An orphan that ends is waited for by the first process: no zombie is there.
    let script = "(sleep 0.01 &) ; sleep 0.2; ps | grep -c '\\[sleep\\]'; sleep 1000 & echo up";
    let (text, status) = place.run(&["image.daxfs", "--", "sh", "-c", script, "what-is-left"]);
    assert_eq!((text.as_str(), status), ("0\nup\n", 0));
    assert_eq!(processes_with("what-is-left"), 0);
}

#[test]
fn it_is_ended_while_it_waits_for_its_image() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    // A pipe that nobody writes.
    let pipe = place.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut child = place.command(&["pipe", "--", "true"]).stderr(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_millis(300));
    // It may have been refused as no image by then.
    if child.try_wait().unwrap().is_none() {
        kill(pid(&child), Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15), "{status}");
    }
}
