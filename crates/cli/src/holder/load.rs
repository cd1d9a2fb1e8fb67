//! `daxfs load` and `daxfs swap`: send a source to a holder and wait until it holds it.

use super::LONG;
use super::ps::{ImageJson, content};
use crate::args::LoadArgs;
use crate::json;
use crate::output::{Outcome, Output, report};
use crate::progress::Progress;
use crate::text::human;
use anyhow::anyhow;
use daxfs_holder::client::{Given, Load, LoadError};
use daxfs_protocol::{Allowed, Connection, ContentHash, Step};
use std::io::Write;

/// Sends the source and follows the load.
///
/// # Errors
/// When the source cannot be opened, an option would have no effect on it, or the holder refuses.
pub fn run(
    args: &LoadArgs,
    replace: bool,
    expect: Option<ContentHash>,
    out: &mut Output,
) -> anyhow::Result<Outcome> {
    let load = Load {
        replace,
        into: args.into.clone(),
        shared: args.shared,
        no_copy: args.no_copy,
        signature: args.signature.clone(),
        packing: args.packing.packing(args.dedupe),
        expect,
        allowed: Allowed { uids: args.allow_uid.clone(), gids: args.allow_gid.clone() },
        ..Load::new(args.name.as_str())
    };
    let progress = Progress::new("loading", 0, args.quiet);
    let connect = || {
        let mut connection = Connection::open(&args.socket.path())?;
        connection.set_timeout(LONG)?;
        Ok(connection)
    };
    let mut tell = |step| {
        match step {
            Step::Progress { done, total } => progress.set(done, total),
            Step::Warning(text) => report(&anyhow!("warning: {text}")),
            _ => {}
        }
        true
    };
    let info = load.run(connect, &Given::Named(args.source.clone()), &mut tell).map_err(as_flags)?;
    drop(progress);
    if args.json {
        json::write(out, &ImageJson::new(&info, None))?;
    } else if !args.quiet {
        let (size, kind) = (human(info.size), info.kind.name());
        writeln!(out, "{}: generation {}, {size}, {kind}, {}", info.name, info.generation, content(&info))?;
    }
    Ok(Outcome::Clean)
}

/// Options as the command line has them.
fn as_flags(error: LoadError) -> anyhow::Error {
    match error {
        LoadError::NoEffect { place, option, why } if place.is_empty() => anyhow!("--{option} {why}"),
        LoadError::NoEffect { place, option, why } => anyhow!("{place}: --{option} {why}"),
        error => error.into(),
    }
}
