//! A load reads with the rights of who asked for it, whatever the holder may read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use daxfs_protocol::HolderError;
use daxfs_protocol::message::{MemoryKind, Refusal};
use dmabuf::{HugePages, Seals};
use nix::fcntl::OFlag;
use support::{Place, Start, be_process, hash_of, is_root_for, tensor, wait_for, write_whole};

/// User "nobody", and a group that it is given.
const NOBODY: u32 = 65534;
const GROUP: u32 = 4321;

#[test]
fn process() {
    be_process();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Weights of root: in a folder that only root may enter; with one file in it that only root may read; and for a group.
fn secrets(place: &Place) {
    let closed = place.weights("closed", 1, 1000);
    chmod(&closed, 0o700);
    let mixed = place.weights("mixed", 2, 1000);
    chmod(&mixed.join("model.safetensors"), 0o600);
    let group = place.weights("group", 3, 1000);
    chown(group.join("model.safetensors"), None, Some(GROUP)).unwrap();
    chmod(&group.join("model.safetensors"), 0o640);
    let own = place.weights("own", 4, 1000);
    chown(own.join("model.safetensors"), Some(NOBODY), Some(NOBODY)).unwrap();
    chmod(&own.join("model.safetensors"), 0o600);
}

/// What another user's process gets to load: run as that user by the tests below.
#[test]
fn client() {
    let Ok(report) = std::env::var("DAXFS_TEST_RIGHTS") else { return };
    let socket = std::path::PathBuf::from(std::env::var("DAXFS_TEST_SOCKET").unwrap());
    let place = Place { dir: tempfile::tempdir().unwrap(), socket };
    let root = place.socket.parent().unwrap().to_owned();
    let open = |name: &str, flags: OFlag| {
        File::options().read(true).custom_flags(flags.bits()).open(root.join(name)).map(OwnedFd::from)
    };
    let mut lines = Vec::new();
    let mut attempt = |what: &str, source: std::io::Result<OwnedFd>| {
        let outcome = match source {
            Err(error) => format!("not opened: {error}"),
            Ok(source) => match place.load(what, false, &[], source.as_fd()) {
                Ok(info) => format!("loaded {:?}", info.kind),
                Err(HolderError::Refused { refusal, text, .. }) => format!("{refusal:?}: {text}"),
                Err(error) => format!("failed: {error}"),
            },
        };
        lines.push(format!("{what} {outcome}"));
    };
    attempt("path-only", open("closed", OFlag::O_PATH));
    attempt("path-only-file", open("closed/model.safetensors", OFlag::O_PATH));
    attempt("closed", open("closed", OFlag::empty()));
    attempt("mixed", open("mixed", OFlag::empty()));
    attempt("group", open("group", OFlag::empty()));
    attempt("own", open("own", OFlag::empty()));
    // One that root opened and left to this process.
    if std::env::var_os("DAXFS_TEST_INHERITED").is_some() {
        attempt("inherited", dmabuf::duplicate(9).map_err(|e| std::io::Error::other(e.to_string())));
    }
    write_whole(Path::new(&report), &lines.join("\n"));
}

/// Runs [`client`] as [`NOBODY`], with these groups.
fn attempts(place: &Place, groups: &str, report: &str) -> Vec<String> {
    place.reports();
    let mut command = std::process::Command::new("setpriv");
    command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), groups]);
    command.arg("bash").arg("-c").arg("exec \"$0\" \"$@\" 9<&8 8<&-").arg(place.program());
    command.args(["--exact", "client", "--nocapture", "--test-threads=1"]);
    command.env("DAXFS_TEST_SOCKET", &place.socket).env("DAXFS_TEST_RIGHTS", place.report_path(report));
    command.env("DAXFS_TEST_INHERITED", "1");
    // Descriptor 8 is the closed folder, opened by root.
    let script = "exec 8<\"$0\"; exec \"$@\"";
    let mut outer = std::process::Command::new("bash");
    outer.arg("-c").arg(script).arg(place.dir.path().join("closed"));
    outer.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        outer.env(key, value.unwrap());
    }
    outer.process_group(0);
    assert!(outer.status().unwrap().success());
    place.report(report).lines().map(str::to_owned).collect()
}

#[test]
fn a_holder_of_root_reads_nothing_that_the_client_may_not_read() {
    if !is_root_for("a holder of root") {
        return;
    }
    let place = Place::new();
    secrets(&place);
    let holder = place.serve(&Start { open_to_all: true, control: Some(NOBODY), ..Start::default() });
    let lines = attempts(&place, "--clear-groups", "without");
    let line = |what: &str| lines.iter().find_map(|line| line.strip_prefix(&format!("{what} "))).unwrap();
    assert!(line("path-only").contains("BadRequest: the descriptor was opened with O_PATH"), "{lines:?}");
    // The file lies beyond a folder that this user may not enter.
    assert!(line("path-only-file").contains("not opened"), "{lines:?}");
    assert!(line("closed").contains("not opened: Permission denied"), "{lines:?}");
    assert!(line("mixed").contains("Failed: open ./model.safetensors: Permission denied"), "{lines:?}");
    assert!(line("group").contains("Permission denied"), "{lines:?}");
    assert!(line("inherited").contains("Permission denied"), "{lines:?}");
    assert_eq!(line("own"), "loaded SealedMemfd");
    assert_eq!(tensor(&place.open("own")), vec![4; 1000]);
    let names: Vec<_> = place.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["own"]);

    // With the group, its files.
    place.connect().request(&daxfs_protocol::message::Request::Drop { name: "own".into() }, &[]).unwrap();
    let lines = attempts(&place, &format!("--groups={GROUP}"), "with");
    assert!(lines.contains(&"group loaded SealedMemfd".to_owned()), "{lines:?}");
    assert_eq!(tensor(&place.open("group")), vec![3; 1000]);

    // Root itself reads what root may.
    let kind = place.load_path("closed", false, &place.dir.path().join("closed")).unwrap().kind;
    assert_eq!(kind, MemoryKind::SealedMemfd);
    // No helper outlives its load.
    let children = format!("/proc/{0}/task/{0}/children", holder.0.id());
    wait_for("the helpers to be gone", || fs::read_to_string(&children).is_ok_and(|text| text.is_empty()));
}

#[test]
fn special_files_are_named_and_end_no_holder() {
    if !is_root_for("a holder of root") {
        return;
    }
    let place = Place::new();
    let directory = place.weights("own", 4, 1000);
    nix::unistd::mkfifo(&directory.join("a"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    chown(directory.join("a"), Some(NOBODY), None).unwrap();
    let mut holder = place.serve(&Start { open_to_all: true, control: Some(NOBODY), ..Start::default() });
    let lines = attempts_of_special(&place);
    assert!(lines.contains("cannot be packed (daxfs-pack --skip-special leaves such files out)"), "{lines}");
    assert!(lines.contains("./a"), "named within the source: {lines}");
    assert!(holder.is_running());
}

/// Runs [`client`], for what it says of the folder with the named pipe.
fn attempts_of_special(place: &Place) -> String {
    secrets_but_own(place);
    attempts(place, "--clear-groups", "special").join("\n")
}

fn secrets_but_own(place: &Place) {
    for name in ["closed", "mixed", "group"] {
        place.weights(name, 1, 10);
    }
}

#[test]
fn a_holder_of_another_user_takes_sealed_memory_only() {
    if !is_root_for("other users") {
        return;
    }
    let place = Place::new();
    let directory = place.weights("w", 6, 1000);
    chmod(&directory.join("model.safetensors"), 0o600);
    let start = Start { user: Some(NOBODY), open_to_all: true, ..Start::default() };
    let _holder = place.serve(&start);
    let refused = place.load_path("llama", false, &directory);
    assert!(
        matches!(&refused, Err(HolderError::Refused { refusal: Refusal::ClientPacks, .. })),
        "{refused:?}"
    );
    // What the client packs with its own rights is taken.
    let memory = support::packed(&directory);
    place.load("llama", false, &["no-copy=1"], memory.as_fd()).unwrap();
    let image = place.open("llama");
    assert_eq!(tensor(&image), vec![6; 1000]);
    assert_eq!(image.region().info().unwrap().ino, File::from(memory).metadata().unwrap().ino());
    assert_eq!(hash_of(&image).len(), 64);
    let unsealed = dmabuf::Memfd::create("x", 4096, HugePages::No).unwrap();
    unsealed.seal(Seals::SHRINK).unwrap();
    place.load("other", false, &[], unsealed.as_fd()).unwrap_err();
}
