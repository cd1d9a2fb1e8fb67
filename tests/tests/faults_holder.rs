//! Each system call of the holder, and of the commands that talk to it, fails once: the holder lives and serves, or says
//! why it does not begin; nothing that was acknowledged is lost, and no memory is left behind.
//!
//! `make test` takes a part of the calls, `make test-long` all of them.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use daxfs::Image;
use daxfs_tests::inject::{self, Call, Effect, Fault, Outcome, SORTS, Traced};
use nix::errno::Errno;

/// Runs in `make test` for each way of failing.
const QUICK: usize = 20;
/// More than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What begins a line that a Rust program writes when it panics.
const PANIC: &str = "panicked at";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        for (name, byte) in [("one", 1), ("two", 2)] {
            fs::create_dir(place.path(name)).unwrap();
            fs::write(place.path(name).join("bytes"), vec![byte; 20_000]).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
        assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
        let mut command = Command::new(path);
        command
            .args(args)
            .env("DAXFS_SOCKET", self.path("s"))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG");
        command
    }

    fn load(&self, verb: &str, name: &str, tree: &str) -> Command {
        self.command(&[verb, name, self.path(tree).to_str().unwrap()])
    }

    /// What the image of this name holds.
    fn byte(&self, name: &str) -> Result<u8, daxfs::Error> {
        let image = Image::open(format!("daxfs+unix://{}/{name}", self.path("s").display()))?;
        let bytes = image.file("bytes")?.to_vec()?;
        assert_eq!(bytes, vec![bytes[0]; 20_000], "one image or the other");
        Ok(bytes[0])
    }

    /// Waits until a holder answers; false when it has ended before.
    fn is_served(&self, holder: &Traced) -> bool {
        let started = Instant::now();
        while !holder.has_ended() {
            // A fault may have met the answer to this one.
            if run(self.command(&["health"])).status.success() {
                return true;
            }
            if started.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

/// Memory of images that a process has open.
fn memories(pid: i32) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = links.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("/memfd:")).count()
}

/// Every fault of the calls that a run made, or so many of them, evenly.
fn faults(calls: &[Call], most: usize) -> Vec<Fault> {
    let mut all = Vec::new();
    for sort in SORTS {
        for (at, call) in calls.iter().filter(|call| call.sort == *sort).enumerate() {
            all.extend(sort.effects(call.amount).map(|effect| Fault { sort: *sort, at, effect }));
        }
    }
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step).collect()
}

fn describe(outcome: &Outcome, fault: Fault) -> String {
    let hit = outcome.hit.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
    format!("{hit} {}: {:?} {}", fault.effect, outcome.status, outcome.stderr.trim_end())
}

/// A life of a holder: it begins, takes two images, replaces one, is asked for both, and ends. What is wrong about it is
/// said beside what became of the holder.
fn life(place: &Place, serve: &[&str], fault: Option<Fault>) -> (Outcome, Vec<String>) {
    let mut wrong = Vec::new();
    let holder = inject::start(place.command(&[&["serve"], serve].concat()), SORTS, fault);
    if place.is_served(&holder) {
        let mut expected = [None, None];
        // One of these may fail, as the fault is met; what failed has changed nothing.
        for (index, verb, name, tree, byte) in
            [(0, "load", "a", "one", 1), (1, "load", "b", "one", 1), (0, "swap", "a", "two", 2)]
        {
            let output = run(place.load(verb, name, tree));
            if output.status.success() {
                expected[index] = Some(byte);
            } else {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                if text.contains(PANIC) || !text.contains("daxfs: ") {
                    wrong.push(format!("{verb} {name} ends by: {text}"));
                }
                // Only the answer may have been lost.
                let now = retried(|| place.byte(name));
                if now.is_some() && now != expected[index] {
                    if now != Some(byte) {
                        wrong.push(format!("{verb} {name} leaves {now:?}"));
                    }
                    expected[index] = now;
                }
            }
        }
        for (name, expected) in [("a", expected[0]), ("b", expected[1])] {
            let now = retried(|| place.byte(name));
            if now != expected {
                wrong.push(format!("{name}: {now:?} instead of {expected:?}"));
            }
        }
        let kept = expected.iter().flatten().count();
        let started = Instant::now();
        while !holder.has_ended() && memories(holder.pid()) != kept {
            if started.elapsed() > PATIENCE {
                wrong.push(format!("{} memories of {kept} images", memories(holder.pid())));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if holder.has_ended() {
            wrong.push("it has ended".to_owned());
        }
        // The second one only if the first one met the fault.
        if !run(place.command(&["stop"])).status.success() && !holder.has_ended() {
            run(place.command(&["stop"]));
        }
    }
    let outcome = holder.wait();
    if outcome.status.is_none() {
        wrong.push("it hangs".to_owned());
    }
    if outcome.stderr.contains(PANIC) {
        wrong.push("it panics".to_owned());
    }
    if fs::exists(place.path("s")).unwrap() && outcome.code() == Some(0) {
        // What it could not look at or remove, or not lock to do so, the next one takes over.
        let hindered = |call: &Call| {
            call.sort.name.starts_with("unlink")
                || call.about.contains("/s.lock")
                || (call.sort.name.contains("stat") && call.about.ends_with("/s"))
        };
        if !outcome.hit.as_ref().is_some_and(hindered) {
            wrong.push("its socket is left".to_owned());
        }
    }
    for name in ["s", "s.lock"] {
        let _ = fs::remove_file(place.path(name));
    }
    (outcome, wrong)
}

/// What a client gets that asks again once, when the first answer met the fault.
fn retried(ask: impl Fn() -> Result<u8, daxfs::Error>) -> Option<u8> {
    ask().or_else(|_| ask()).ok()
}

/// Has the holder fail at `most` of its calls.
fn fail_everywhere(serve: &[&str], most: usize) {
    let place = Place::new();
    let (clean, wrong) = life(&place, serve, None);
    assert!(clean.code() == Some(0) && wrong.is_empty(), "{wrong:?} {}", clean.stderr);
    let mut problems = Vec::new();
    let mut met = 0;
    let faults = faults(&clean.calls, most);
    for fault in &faults {
        let (outcome, mut wrong) = life(&place, serve, Some(*fault));
        // Not all lives have the same calls.
        if outcome.hit.is_none() && wrong.is_empty() {
            continue;
        }
        met += 1;
        if !matches!(outcome.code(), Some(0 | 2)) && outcome.status.is_some() {
            wrong.push("it ends as no program should".to_owned());
        }
        if matches!(fault.effect, Effect::Short | Effect::Error(Errno::EINTR)) && outcome.code() != Some(0) {
            wrong.push("what can be done again was not".to_owned());
        }
        if outcome.code() == Some(2) && !outcome.stderr.contains("daxfs: ") {
            wrong.push("it does not say why".to_owned());
        }
        let what = describe(&outcome, *fault);
        inject::note(&what);
        if !wrong.is_empty() {
            problems.push(format!("{}: {what}", wrong.join(", ")));
        }
    }
    assert!(problems.is_empty(), "{} of {met} faults:\n{}", problems.len(), problems.join("\n"));
    assert!(met > faults.len() / 2, "{met} of {} faults were met", faults.len());
}

#[test]
fn a_holder_whose_call_fails_lives_or_says_why() {
    fail_everywhere(&[], QUICK);
}

#[test]
#[ignore = "long: make test-long"]
fn long_a_holder_any_of_whose_calls_fails_lives_or_says_why() {
    fail_everywhere(&[], usize::MAX);
    fail_everywhere(&["--log", "json"], 400);
}

/// A command that talks to a sound holder fails, or has done it.
fn client_fails_everywhere(most: usize) {
    let place = Place::new();
    let holder = inject::start(place.command(&["serve"]), &[], None);
    assert!(place.is_served(&holder));
    assert!(run(place.load("load", "a", "one")).status.success());
    let mut problems = Vec::new();
    for verb in ["load", "swap", "ps", "drop"] {
        let command = || match verb {
            "ps" => place.command(&["ps"]),
            "drop" => place.command(&["drop", "b"]),
            verb => place.load(verb, if verb == "load" { "b" } else { "a" }, "two"),
        };
        let prepare = || {
            let _ = run(place.command(&["drop", "b"]));
            if verb == "drop" {
                assert!(run(place.load("load", "b", "one")).status.success());
            }
            assert!(run(place.load("swap", "a", "one")).status.success());
        };
        prepare();
        let clean = inject::run(command(), SORTS, None);
        assert_eq!(clean.code(), Some(0), "{verb}: {}", clean.stderr);
        for fault in faults(&clean.calls, most / 4) {
            prepare();
            let outcome = inject::run(command(), SORTS, Some(fault));
            let again = matches!(fault.effect, Effect::Short | Effect::Error(Errno::EINTR));
            let (a, b) = (place.byte("a").unwrap(), place.byte("b").ok());
            let done = match verb {
                "load" => b == Some(2),
                "swap" => a == 2,
                "drop" => b.is_none(),
                _ => true,
            };
            let problem = match outcome.code() {
                None => "it hangs, or dies of a signal",
                _ if outcome.stderr.contains(PANIC) => "it panics",
                Some(0) if !done => "it says that it did what it did not",
                Some(0) => continue,
                Some(2) if again => "what can be done again was not",
                Some(1 | 2) if outcome.stderr.contains("daxfs: ") => continue,
                _ => "it does not say why",
            };
            problems.push(format!("{verb}: {problem}: {}", describe(&outcome, fault)));
        }
    }
    assert!(problems.is_empty(), "{}:\n{}", problems.len(), problems.join("\n"));
    assert!(run(place.command(&["stop"])).status.success());
    assert_eq!(holder.wait().code(), Some(0));
}

#[test]
fn a_client_whose_call_fails_says_why() {
    client_fails_everywhere(QUICK);
}

#[test]
#[ignore = "long: make test-long"]
fn long_a_client_any_of_whose_calls_fails_says_why() {
    client_fails_everywhere(usize::MAX);
}
