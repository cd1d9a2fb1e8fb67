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
use crate::text::{count, escape, human};
use anyhow::{bail, ensure};
use daxfs::{Part, Source};
use daxfs_protocol::message::{Reply, Request};
use daxfs_protocol::{Connection, HolderError};
use serde::Serialize;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the answer to a request may take that the holder works on for as long as it has to. A holder that dies
/// closes the connection, which ends the wait at once.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Time between two questions to a holder that does not answer yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs a verb; `expect` is the content hash that a load must have, and `verify` that a copy on a device is compared.
///
/// # Errors
/// When the holder cannot be reached, refuses, or cannot start.
pub fn run(
    verb: &HolderVerb,
    expect: Option<[u8; 32]>,
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

pub use load::beside;

/// Opens what is to be held, read-only.
///
/// # Errors
/// When it is not there or may not be read.
fn open_source(source: &OsStr) -> anyhow::Result<OwnedFd> {
    let opened = Source::parse(source)?.open(false, None)?;
    ensure!(
        opened.part == Part::WHOLE,
        "{}: a holder passes whole descriptors on, not parts of them; open the part where it is used",
        escape(source.as_bytes())
    );
    Ok(opened.fd)
}

#[derive(Debug, Serialize)]
struct DroppedJson<'a> {
    dropped: &'a str,
}

fn drop_image(args: &DropArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut connection = Connection::open(&args.socket.path())?;
    done(&connection.request(&Request::Drop { name: args.name.clone() }, &[])?.0)?;
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
    done(&connection.request(&Request::Stop, &[])?.0)?;
    match connection.receive() {
        Err(HolderError::Closed { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok((reply, _)) => return unexpected(&reply),
    }
    if args.json {
        json::write(out, &StoppedJson { stopped: true })?;
    }
    Ok(Outcome::Clean)
}

fn done(reply: &Reply) -> anyhow::Result<()> {
    match reply {
        Reply::Ok => Ok(()),
        reply => unexpected(reply),
    }
}

fn unexpected<T>(reply: &Reply) -> anyhow::Result<T> {
    bail!("the holder answers something else than was asked for: {reply:?}")
}

#[derive(Debug, Serialize)]
struct HealthJson {
    pid: u32,
    images: u64,
    bytes: u64,
    uptime: u64,
}

fn health(args: &HealthArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let begin = Instant::now();
    let wait = Duration::from_secs(args.wait.into());
    let reply = loop {
        let left = wait.saturating_sub(begin.elapsed());
        match ask_health(&args.socket.path(), left) {
            Ok(reply) => break reply,
            Err(error) if left.is_zero() || !may_answer_later(&error) => return Err(error.into()),
            Err(_) => std::thread::sleep(PAUSE.min(left)),
        }
    };
    match reply {
        Reply::Health { pid, images, bytes, uptime } => {
            if args.json {
                json::write(out, &HealthJson { pid, images, bytes, uptime })?;
            } else {
                let images = count(images, "image", "images");
                writeln!(out, "process {pid}, {images}, {}, up {}", human(bytes), duration(uptime))?;
            }
            Ok(Outcome::Clean)
        }
        reply => unexpected(&reply),
    }
}

/// Asks once. The socket of a holder that loads its first images accepts connections before they are answered: the
/// answer may take as long as there is time `left`.
fn ask_health(socket: &Path, left: Duration) -> Result<Reply, HolderError> {
    let mut connection = Connection::open(socket)?;
    if !left.is_zero() {
        connection.set_timeout(left)?;
    }
    Ok(connection.request(&Request::Health, &[])?.0)
}

/// True where a holder that is starting may be the cause.
fn may_answer_later(error: &HolderError) -> bool {
    matches!(error, HolderError::Unreachable { .. } | HolderError::Timeout { .. }) || error.is_disconnect()
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
