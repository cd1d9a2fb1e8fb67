//! Standard streams that are closed, full, or that nobody reads: no command dies of them, and no holder stops.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::{Place, Process, get, until};
use common::{DAXFS, Fixture};
use daxfs::Image;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// Starts a holder with this for standard error, and waits until it answers.
fn serve(place: &Place, stderr: Stdio) -> (Process, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metrics = format!("127.0.0.1:{port}");
    let mut command = place.command(&["serve", "m=IMAGE", "--metrics", &metrics]);
    let mut holder = Process(command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap());
    until("the holder answers", || {
        assert!(holder.try_wait().unwrap().is_none(), "it ended");
        place.run(&["health"]).status == 0
    });
    (holder, metrics)
}

/// Lines that the log has lost, as the metrics say.
fn lost(metrics: &str) -> u64 {
    let text = get(metrics, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix("daxfs_log_lines_lost_total ")).unwrap();
    line.parse().unwrap()
}

/// Attaches so often that the log fills any pipe.
fn attach_often(place: &Place) {
    for _ in 0..1500 {
        drop(Image::open(place.address("m")).unwrap());
    }
}

#[test]
fn a_full_disk_ends_no_holder() {
    let place = Place::new();
    let (mut holder, metrics) = serve(&place, File::options().write(true).open("/dev/full").unwrap().into());
    for _ in 0..10 {
        drop(Image::open(place.address("m")).unwrap());
    }
    until("the lost lines are counted", || lost(&metrics) >= 10);
    place.run(&["load", "x", "TREE", "-q"]).ok();
    place.run(&["stop"]).ok();
    assert_eq!(holder.end(), Some(0));
}

#[test]
fn a_pipe_that_nobody_reads_holds_nothing_up() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut holder, metrics) = serve(&place, writer.into());
    attach_often(&place);
    place.run(&["load", "x", "TREE", "-q"]).ok();
    assert!(get(&metrics, "/metrics").contains("\ndaxfs_attaches_total 1500\n"));
    // It ends when it is told to, although lines wait.
    kill(Pid::from_raw(holder.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(holder.end(), Some(0));
    assert!(!place.socket().exists());
    drop(reader);
}

#[test]
fn a_reader_that_leaves_ends_no_holder() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut holder, metrics) = serve(&place, writer.into());
    drop(reader);
    attach_often(&place);
    until("the lost lines are counted", || lost(&metrics) > 0);
    place.run(&["stop"]).ok();
    assert_eq!(holder.end(), Some(0));
}

#[test]
fn a_terminal_that_closes_ends_a_holder_in_order() {
    let place = Place::new();
    let (mut holder, _) = serve(&place, Stdio::null());
    kill(Pid::from_raw(holder.id().cast_signed()), Signal::SIGHUP).unwrap();
    assert_eq!(holder.end(), Some(0));
    let left: Vec<_> =
        fs::read_dir(place.0.path(".")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("s.sock")), "{left:?}");
}

/// Runs a command with standard streams as the shell's words say.
fn with_streams(place: &Place, args: &[&str], streams: &str) -> Command {
    let own = place.command(args);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec \"$0\" \"$@\" {streams}")).arg(DAXFS).args(own.get_args());
    command.env("DAXFS_SOCKET", place.socket()).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    command
}

#[test]
fn closed_streams_lead_to_nothing() {
    let place = Place::new();
    let mut command = with_streams(&place, &["serve", "m=IMAGE"], "<&- >&- 2>&-");
    let mut holder = Process(command.spawn().unwrap());
    until("the holder answers", || place.run(&["health"]).status == 0);
    for number in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{number}", holder.id())).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"), "{number}");
    }
    drop(Image::open(place.address("m")).unwrap());
    place.run(&["stop"]).ok();
    assert_eq!(holder.end(), Some(0));
}

#[test]
fn every_command_survives_closed_and_full_streams() {
    let place = Place::new();
    let _holder = place.serve(&["m=IMAGE"]);
    let commands: &[&[&str]] = &[
        &["ls", "-lR", "IMAGE"],
        &["tree", "IMAGE"],
        &["stat", "IMAGE"],
        &["cat", "IMAGE", "/config.json"],
        &["inspect", "IMAGE"],
        &["verify", "IMAGE"],
        &["verify", "IMAGE", "TREE"],
        &["sources"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
        &["serve", "--help"],
        &["ps"],
        &["ps", "--json"],
        &["health"],
        &["access", "m"],
        &["swap", "m", "TREE"],
        &["load", "m", "TREE"],
        &["no-such-verb"],
    ];
    for args in commands {
        let expected = place.run(args).status;
        for streams in
            [">&- 2>&-", "<&- >&- 2>&-", "2>&-", ">/dev/full 2>/dev/full", "2>/dev/full", ">/dev/full"]
        {
            let mut command = with_streams(&place, args, streams);
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            let code = status.code().unwrap_or_else(|| panic!("{args:?} {streams}: {:?}", status.signal()));
            // What cannot be written is an error; what leads to nothing, as /dev/null does, is none.
            let allowed = code == expected || (streams.contains(">/dev/full") && code == 2);
            assert!(allowed, "{args:?} {streams}: {code} instead of {expected}");
        }
    }
    // Nothing was opened in the place of a closed stream and written to.
    let fixture: &Fixture = &place.0;
    place.run(&["verify", "-q", "IMAGE", "TREE"]).ok();
    assert!(fixture.image().exists());
}
