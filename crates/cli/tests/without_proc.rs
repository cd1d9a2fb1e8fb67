//! Without a mounted `/proc`, as in some sandboxes and initial RAM disks: what does not need it works.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run};
use std::process::Command;

/// Runs a command where `/proc` is an empty directory; `None` where this user may not arrange that.
fn run(fixture: &Fixture, args: &[&str]) -> Option<Run> {
    let hidden = r#"mount -t tmpfs none /proc || exit 99; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", hidden, "sh", DAXFS]);
    command.args(args.iter().map(|arg| fixture.expand(arg.as_ref())));
    let run = Run::of(&mut command);
    if run.status == 99 || run.stderr.starts_with("unshare: ") {
        let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
        assert!(!required && std::env::var("CI").as_deref() != Ok("true"), "{run:?}");
        eprintln!("not run: {}", run.stderr);
        return None;
    }
    Some(run)
}

#[test]
fn verbs_that_look_into_an_image_work() {
    let fixture = Fixture::new();
    for args in [
        &["ls", "-lR", "IMAGE"][..],
        &["tree", "IMAGE"],
        &["stat", "IMAGE", "/", "/config.json"],
        &["cat", "IMAGE", "/config.json"],
        &["inspect", "IMAGE"],
        &["inspect", "--json", "IMAGE"],
        &["ls", "--sealed-copy", "IMAGE"],
        &["verify", "IMAGE", "TREE"],
        &["extract", "-p", "--no-owner", "IMAGE", "DIR/out"],
        &["sources"],
    ] {
        let Some(run) = run(&fixture, args) else { return };
        assert!(!run.ok().is_empty(), "{args:?}");
    }
    // With it there is more to say.
    assert!(fixture.run(&["inspect", "IMAGE"]).ok().contains("pages"));
}
