//! What a holder tells by HTTP: metrics, whether it is well, and whether it is ready.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::{Place, Process, get, until};
use daxfs::Image;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

#[test]
fn metrics_are_served() {
    let place = Place::new();
    let mut holder = place.serve(&["m=IMAGE", "--metrics", "127.0.0.1:0"]);
    let address = holder.seen("serving metrics")["address"].as_str().unwrap().to_owned();
    drop(Image::open(place.address("m")).unwrap());
    assert!(Image::open(place.address("absent")).is_err());
    place.run(&["load", "m", "IMAGE"]).error();
    place.run(&["swap", "m", "TREE", "-q"]).ok();
    place.run(&["swap", "m", "TREE", "--expect", &"7".repeat(64)]).error();
    let metrics = get(&address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.0 200"), "{metrics}");
    for line in [
        "daxfs_images 1",
        "daxfs_attaches_total 1",
        "daxfs_loads_total 2",
        "daxfs_failed_loads_total 1",
        "daxfs_load_seconds_count 3",
        "daxfs_refusals_total{reason=\"no_such_name\"} 1",
        "daxfs_refusals_total{reason=\"name_taken\"} 1",
        "daxfs_refusals_total{reason=\"other_content\"} 1",
        "daxfs_refusals_total{reason=\"not_allowed\"} 0",
        "daxfs_image_generation{name=\"m\",kind=\"sealed memfd\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let seconds = metrics.lines().find_map(|line| line.strip_prefix("daxfs_load_seconds_sum ")).unwrap();
    assert!(seconds.parse::<f64>().unwrap() > 0.0, "{seconds}");
    assert!(get(&address, "/healthz").ends_with("ok\n"));
    let attached = holder.wait_for("attached");
    assert_eq!(attached["name"], "m");
    assert_eq!(attached["peer.pid"].as_u64(), Some(std::process::id().into()));
}

#[test]
fn it_is_ready_when_it_answers() {
    let place = Place::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (address, go) = (format!("127.0.0.1:{port}"), place.0.path("go"));
    let mut command = place.command(&["serve", "m=TREE", "--metrics", &address]);
    command.env("DAXFS_PAUSE_AT", "load-written").env("DAXFS_PAUSE_UNTIL", &go);
    let mut holder = Process(command.stderr(Stdio::null()).spawn().unwrap());
    until("it listens", || {
        assert!(holder.try_wait().unwrap().is_none());
        TcpStream::connect(&address).is_ok()
    });
    assert!(get(&address, "/healthz").starts_with("HTTP/1.0 200 "));
    assert!(get(&address, "/readyz").starts_with("HTTP/1.0 503 "));
    fs::write(&go, "").unwrap();
    // It waits until it is answered.
    place.run(&["health"]).ok();
    assert!(get(&address, "/readyz").starts_with("HTTP/1.0 200 "));
    place.run(&["stop"]).ok();
    assert_eq!(holder.end(), Some(0));
}

#[test]
fn the_new_holder_serves_metrics_at_the_same_port() {
    let place = Place::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let old = place.serve(&["m=IMAGE", "--metrics", &address]);
    drop(Image::open(place.address("m")).unwrap());
    assert!(get(&address, "/metrics").contains("\ndaxfs_attaches_total 1\n"));
    let mut new = place.serve(&["--takeover", "--metrics", &address]);
    assert_eq!(old.end().1, 0);
    // The old one had the port until it ended.
    new.seen("serving metrics");
    let metrics = get(&address, "/metrics");
    assert!(
        metrics.contains("\ndaxfs_attaches_total 0\n") && metrics.contains("\ndaxfs_images 1\n"),
        "{metrics}"
    );
}

#[test]
fn it_is_not_ready_while_another_takes_over() {
    let place = Place::new();
    let mut old = place.serve(&["m=IMAGE", "--metrics", "127.0.0.1:0"]);
    let address = old.seen("serving metrics")["address"].as_str().unwrap().to_owned();
    let ready = || get(&address, "/readyz").starts_with("HTTP/1.0 200 ");
    assert!(ready());
    let mut command = place.command(&["serve", "--takeover"]);
    command.env("DAXFS_PAUSE_AT", "takeover-before-done").env("DAXFS_PAUSE_UNTIL", place.0.path("go"));
    let new = Process(command.stderr(Stdio::null()).spawn().unwrap());
    until("clients wait", || !ready());
    drop(new);
    until("the old one goes on", ready);
    place.run(&["health"]).ok();
}
