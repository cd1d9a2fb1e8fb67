//! What a client is told when the holder cannot be asked, by its kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use daxfs_protocol::message::Request;
use daxfs_protocol::{Connection, HolderError};
use nix::sys::signal::{Signal, kill};
use support::{Place, Start, be_process, is_root_for, wait_for, write_whole};

#[test]
fn process() {
    be_process();
}

/// Run by the tests below, in processes that may not, or cannot, connect.
#[test]
fn hindered_client() {
    let Ok(socket) = std::env::var("DAXFS_TEST_HINDERED") else { return };
    let mut files = Vec::new();
    if std::env::var_os("DAXFS_TEST_EXHAUSTED").is_some() {
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
    }
    let error = Connection::open(&PathBuf::from(socket)).unwrap_err();
    // The report needs one.
    files.pop();
    files.pop();
    let kind = match &error {
        HolderError::System { .. } => "System",
        HolderError::Unreachable { .. } => "Unreachable",
        _ => "other",
    };
    let report = PathBuf::from(std::env::var("DAXFS_TEST_REPORT").unwrap());
    write_whole(&report, &format!("{kind} {:?} {error}", error.raw_os_error()));
}

#[test]
fn what_the_system_refuses_is_said_as_that() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    place.reports();
    let mut exhausted = Command::new(std::env::current_exe().unwrap());
    exhausted.args(["--exact", "hindered_client", "--nocapture", "--test-threads=1"]).stdout(Stdio::null());
    exhausted.env("DAXFS_TEST_HINDERED", &place.socket).env("DAXFS_TEST_EXHAUSTED", "1");
    exhausted.env("DAXFS_TEST_REPORT", place.report_path("exhausted"));
    assert!(exhausted.status().unwrap().success());
    let report = place.report("exhausted");
    assert!(report.starts_with("System Some(24) ") && !report.contains("daxfs serve"), "{report}");
    if is_root_for("another user") {
        let mut client = place.program_as(65534, "hindered_client");
        client.env("DAXFS_TEST_HINDERED", &place.socket);
        client.env("DAXFS_TEST_REPORT", place.report_path("denied"));
        assert!(client.status().unwrap().success());
        let report = place.report("denied");
        assert!(report.starts_with("System Some(13) ") && report.contains("Permission denied"), "{report}");
        assert!(!report.contains("no holder answers"), "{report}");
    }
}

#[test]
fn nobody_there_and_somebody_who_does_not_answer_differ() {
    let place = Place::new();
    let error = Connection::open(&place.socket).unwrap_err();
    assert!(matches!(error, HolderError::Unreachable { .. }), "{error}");
    assert!(error.is_unreachable() && !error.is_disconnect(), "nobody was ever there");
    let mut holder = place.serve(&Start::default());
    let pid = holder.pause();
    let mut connection = place.connect();
    connection.set_timeout(Duration::from_millis(100)).unwrap();
    let error = connection.request(&Request::Health, &[]).unwrap_err();
    assert!(matches!(error, HolderError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("does not answer within 0.1 s"), "{error}");
    assert!(error.is_unreachable() && !error.is_disconnect());
    kill(pid, Signal::SIGCONT).unwrap();
    // The reply that comes late is nobody's.
    wait_for("the holder", || place.pid().is_some());
    let error = connection.request(&Request::List { after: String::new() }, &[]).unwrap_err();
    assert!(matches!(error, HolderError::Closed { .. }), "{error}");
    holder.kill();
    let error = Connection::open(&place.socket).unwrap_err();
    assert!(matches!(error, HolderError::Unreachable { .. }), "{error}");
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ECONNREFUSED as i32));
    assert!(error.is_unreachable() && error.is_disconnect(), "it was killed");
}
