//! `daxfs access`: who may attach to an image, and changing that.

use super::unexpected;
use crate::args::AccessArgs;
use crate::json;
use crate::output::{Outcome, Output};
use daxfs_protocol::Connection;
use daxfs_protocol::message::{Reply, Request};
use serde::Serialize;
use std::io::Write;

#[derive(Debug, Serialize)]
struct AccessJson<'a> {
    name: &'a str,
    before: Ids,
    after: Ids,
}

/// Both are empty for everybody who may connect.
#[derive(Debug, Serialize)]
struct Ids {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Ids {
    fn text(&self) -> String {
        daxfs_holder::Access::new(self.uids.clone(), self.gids.clone()).to_string()
    }
}

/// Shows who may attach, or changes it and shows what was and what is.
///
/// # Errors
/// When the holder has no such image, or this user may not control it.
pub fn run(args: &AccessArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let lists = (args.allow_uid.clone(), args.allow_gid.clone());
    let changes = args.everybody || !lists.0.is_empty() || !lists.1.is_empty();
    let request = Request::Access { name: args.name.clone(), change: changes.then_some(lists) };
    let mut connection = Connection::open(&args.socket.path())?;
    let (before, after) = match connection.request(&request, &[])?.0 {
        Reply::Access { before: (uids, gids), after: (new_uids, new_gids) } => {
            (Ids { uids, gids }, Ids { uids: new_uids, gids: new_gids })
        }
        reply => return unexpected(&reply),
    };
    if args.json {
        json::write(out, &AccessJson { name: &args.name, before, after })?;
    } else if changes {
        writeln!(out, "{}: {}, before: {}", args.name, after.text(), before.text())?;
    } else {
        writeln!(out, "{}: {}", args.name, after.text())?;
    }
    Ok(Outcome::Clean)
}
