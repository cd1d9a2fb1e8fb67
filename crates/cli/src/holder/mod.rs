//! Verbs of the holder.

mod access;
mod load;
mod log;
mod ps;
mod serve;
mod upload;
mod uploads;

use crate::args::{DropArgs, HealthArgs, HolderVerb, StopArgs};
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{count, human};
use daxfs_protocol::{Connection, ContentHash, Health};
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// How long the answer to a request may take that the holder works on for as long as it has to. A holder that dies
/// closes the connection, which ends the wait at once.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs a verb; `expect` is the content hash that a load must have, and `verify` that a copy on a device is compared.
///
/// # Errors
/// When the holder cannot be reached, refuses, or cannot start.
pub fn run(
    verb: &HolderVerb,
    expect: Option<ContentHash>,
    verify: bool,
    out: &mut Output,
) -> anyhow::Result<Outcome> {
    match verb {
        HolderVerb::Serve(args) => serve::run(args),
        HolderVerb::Ps(args) => ps::run(args, out),
        HolderVerb::Load(args) => load::run(args, false, expect, out),
        HolderVerb::Swap(args) => load::run(args, true, expect, out),
        HolderVerb::Upload(args) => upload::run(args, expect, verify, out),
        HolderVerb::Access(args) => access::run(args, out),
        HolderVerb::Helper => Ok(match daxfs_holder::helper::main() {
            0 => Outcome::Clean,
            _ => Outcome::Failed,
        }),
        HolderVerb::Drop(args) => drop_image(args, out),
        HolderVerb::Stop(args) => stop(args, out),
        HolderVerb::Health(args) => health(args, out),
    }
}

#[derive(Debug, Serialize)]
struct DroppedJson<'a> {
    dropped: &'a str,
}

fn drop_image(args: &DropArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut connection = Connection::open(&args.socket.path())?;
    connection.drop_image(&args.name)?;
    if args.json {
        json::write(out, &DroppedJson { dropped: &args.name })?;
    }
    Ok(Outcome::Clean)
}

#[derive(Debug, Serialize)]
struct StoppedJson {
    stopped: bool,
}

/// Asks the holder to end, and waits until it has.
fn stop(args: &StopArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut connection = Connection::open(&args.socket.path())?;
    connection.stop()?;
    if args.json {
        json::write(out, &StoppedJson { stopped: true })?;
    }
    Ok(Outcome::Clean)
}

#[derive(Debug, Serialize)]
struct HealthJson {
    pid: u32,
    images: u64,
    bytes: u64,
    uptime: u64,
}

fn health(args: &HealthArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let wait = Duration::from_secs(args.wait.into());
    let Health { pid, images, bytes, uptime, .. } = if args.wait == 0 {
        Connection::open(&args.socket.path())?.health()?
    } else {
        Health::wait_for(&args.socket.path(), wait, &mut || true)?
    };
    if args.json {
        json::write(out, &HealthJson { pid, images, bytes, uptime })?;
    } else {
        let images = count(images, "image", "images");
        writeln!(out, "process {pid}, {images}, {}, up {}", human(bytes), duration(uptime))?;
    }
    Ok(Outcome::Clean)
}

/// Seconds the short way: the two largest units.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let texts = [5, 65, 3 * 3600 + 120, 2 * 86_400 + 3600 + 59].map(duration);
        assert_eq!(texts, ["5s", "1m5s", "3h2m", "2d1h"]);
    }
}
