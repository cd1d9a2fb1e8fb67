//! Each system call of the packer fails once, in every way that the kernel has for it: nothing is lost, nothing is left,
//! and what is said names what could not be done, or the image is the right one.
//!
//! `make test` takes a part of the calls, `make test-long` all of them.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use daxfs::Image;
use daxfs_tests::inject::{self, Call, Effect, Fault, Outcome, SORTS, Sort};
use daxfs_tests::tree;
use nix::errno::Errno;

/// Runs in `make test` for each way of packing.
const QUICK: usize = 150;
/// What begins a line that a Rust program writes when it panics.
const PANIC: &str = "panicked at";

/// A tree, and a folder for the output that holds another file of its name.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("d/empty")).unwrap();
        fs::write(root.join("d/table"), (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
            .unwrap();
        fs::write(root.join("config.json"), "{}").unwrap();
        fs::hard_link(root.join("config.json"), root.join("again.json")).unwrap();
        std::os::unix::fs::symlink("d/table", root.join("link")).unwrap();
        // The bytes of the tensor lie on a page already: no packing moves them.
        let header = format!("{:4088}", r#"{"w":{"dtype":"U8","shape":[5000],"data_offsets":[0,5000]}}"#);
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend(header.as_bytes());
        weights.extend(vec![7; 5000]);
        fs::write(root.join("model.safetensors"), weights).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        Self { dir }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("out/image")
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path().join("out")).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn is_right(&self, image: &Path) {
        let image = Image::open(image).unwrap();
        let ours = |(path, _): &(Vec<u8>, tree::Facts)| !path.starts_with(b"/.daxfs");
        let packed = tree::in_image(&image).into_iter().filter(ours).collect();
        tree::assert_same(&packed, &tree::on_disk(&self.tree()));
        assert_eq!(image.tensors().unwrap().get("w").unwrap().bytes().unwrap().to_vec(), vec![7; 5000]);
    }
}

fn packer(args: &[&str]) -> Command {
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs-pack");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    let mut command = Command::new(path);
    command.args(args);
    command
}

/// Every fault of the calls that a run made, or so many of them, evenly.
fn faults(calls: &[Call], most: usize) -> Vec<Fault> {
    let mut all = Vec::new();
    for sort in SORTS {
        let of_sort = calls.iter().filter(|call| call.sort == *sort);
        for (at, call) in of_sort.enumerate() {
            all.extend(sort.effects(call.amount).map(|effect| Fault { sort: *sort, at, effect }));
        }
    }
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step).collect()
}

/// Has the packer fail at `most` of its calls, and `check`s what comes of it: what is wrong, if something is.
fn fail_everywhere(
    command: impl Fn() -> Command,
    most: usize,
    mut check: impl FnMut(&Outcome) -> Option<String>,
) {
    let clean = inject::run(command(), SORTS, None);
    assert_eq!(clean.code(), Some(0), "{}", clean.stderr);
    assert!(clean.calls.len() > 30, "calls were counted: {:?}", clean.calls);
    // It puts everything back in its place, for the first fault.
    assert_eq!(check(&clean), None);
    let (mut met, mut failed, mut wrong) = (0, 0, Vec::new());
    let faults = faults(&clean.calls, most);
    for fault in &faults {
        let outcome = inject::run(command(), SORTS, Some(*fault));
        // Checked in any case: it puts everything back in its place.
        let (problem, general) = (check(&outcome), general(&outcome, *fault));
        let problem = general.map(str::to_owned).or(problem);
        // Threads do not always make the same calls.
        let Some(hit) = &outcome.hit else { continue };
        met += 1;
        failed += usize::from(outcome.code() != Some(0));
        let what = format!("{hit} {}: {:?} {}", fault.effect, outcome.status, outcome.stderr.trim_end());
        inject::note(&what);
        wrong.extend(problem.map(|problem| format!("{problem}: {what}")));
    }
    assert!(wrong.is_empty(), "{} of {met} faults:\n{}", wrong.len(), wrong.join("\n"));
    // Most calls are there because something needs them.
    assert!(met > faults.len() / 2 && failed > met / 8, "{met} faults, {failed} failures");
}

/// What is wrong whatever was to be done.
fn general(outcome: &Outcome, fault: Fault) -> Option<&'static str> {
    let again = matches!(fault.effect, Effect::Short | Effect::Error(Errno::EINTR));
    match outcome.code() {
        _ if outcome.status.is_none() => Some("it hangs"),
        _ if outcome.stderr.contains(PANIC) => Some("it panics"),
        Some(0) => None,
        Some(2) if again => Some("what can be done again was not"),
        Some(2) => match fault.effect {
            Effect::Error(errno) if !says_why(&outcome.stderr, errno) => Some("the reason is hidden"),
            _ => None,
        },
        _ => Some("it ends as no program should"),
    }
}

/// Whether a message says what the kernel answered, and what was to be done with what.
fn says_why(stderr: &str, errno: Errno) -> bool {
    let message = stderr.lines().last().unwrap_or_default();
    let names =
        ["/tree", "/out", "memfd", "/proc/self", "/bin/sh", "memory of this process", "this process' memory"];
    message.contains("daxfs-pack: ")
        && message.contains(&std::io::Error::from(errno).to_string())
        && names.iter().any(|name| message.contains(name))
}

fn into_a_file(args: &[&str], most: usize) {
    let place = Place::new();
    let (tree, image) = (place.tree(), place.image());
    let command = || {
        let mut command = packer(args);
        command.arg(&tree).arg("-o").arg(&image);
        command
    };
    let old = b"an older file of this name";
    fs::write(&image, old).unwrap();
    fail_everywhere(command, most, |outcome| {
        let left: Vec<_> = place.names().into_iter().filter(|name| name != "image").collect();
        let now = fs::read(&image).unwrap();
        let problem = if !left.is_empty() {
            Some(format!("left: {left:?}"))
        } else if outcome.code() == Some(0) {
            place.is_right(&image);
            None
        } else if now == old {
            None
        } else if [": sync ", ": print the summary of "].iter().any(|late| outcome.stderr.contains(late)) {
            // Its way to the disk alone is uncertain, or nobody hears of it, which is said.
            place.is_right(&image);
            None
        } else {
            Some("the older file is lost".to_owned())
        };
        for name in left {
            fs::remove_file(place.dir.path().join("out").join(name)).unwrap();
        }
        fs::write(&image, old).unwrap();
        problem
    });
}

fn into_memory(args: &[&str], most: usize) {
    let place = Place::new();
    let (tree, image) = (place.tree(), place.image());
    let command = || {
        let mut command = packer(args);
        command.arg(&tree).args(["--", "/bin/sh", "-c", "cat <&$DAXFS_FD >\"$0\""]).arg(&image);
        command
    };
    fail_everywhere(command, most, |outcome| {
        if outcome.code() == Some(0) {
            place.is_right(&image);
            fs::remove_file(&image).unwrap();
        }
        let left = place.names();
        (!left.is_empty()).then(|| format!("left: {left:?}"))
    });
}

#[test]
fn into_a_file_when_a_call_fails() {
    into_a_file(&["--threads", "1"], QUICK);
}

#[test]
fn into_memory_when_a_call_fails() {
    into_memory(&["--into", "memfd", "--hugepages", "no", "--hash"], QUICK);
}

#[test]
#[ignore = "long: make test-long"]
fn long_into_a_file_when_any_call_fails() {
    into_a_file(&[], usize::MAX);
    into_a_file(&["--threads", "1", "--verify", "--dedupe"], usize::MAX);
    into_a_file(&["--no-hash", "--no-sync"], usize::MAX);
}

#[test]
#[ignore = "long: make test-long"]
fn long_into_memory_when_any_call_fails() {
    into_memory(&["--into", "memfd"], usize::MAX);
    into_memory(&["--into", "memfd", "--hugepages", "no", "--verify"], usize::MAX);
}

#[test]
fn the_tracer_sees_what_it_is_asked_for() {
    let sort = *SORTS.iter().find(|sort: &&Sort| sort.name == "openat").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let command = || {
        let mut command = packer(&["-q", "-o", "/dev/null/x"]);
        command.arg(&missing);
        command
    };
    let clean = inject::run(command(), SORTS, None);
    assert!(clean.calls.iter().any(|call| call.about == missing.to_str().unwrap()), "{:?}", clean.calls);
    let fault = Fault { sort, at: usize::MAX, effect: Effect::Short };
    let outcome = inject::run(command(), SORTS, Some(fault));
    assert_eq!((outcome.code(), outcome.hit), (Some(2), None));
}
