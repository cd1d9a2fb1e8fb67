//! `daxfs access`: who may attach to an image, and changing that.

use crate::args::AccessArgs;
use crate::json;
use crate::output::{Outcome, Output};
use daxfs_protocol::{Allowed, Connection};
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

impl From<Allowed> for Ids {
    fn from(Allowed { uids, gids }: Allowed) -> Self {
        Self { uids, gids }
    }
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
    let lists = Allowed { uids: args.allow_uid.clone(), gids: args.allow_gid.clone() };
    let changes = args.everybody || lists != Allowed::default();
    let mut connection = Connection::open(&args.socket.path())?;
    let (before, after) = connection.access(&args.name, changes.then_some(lists))?;
    let (before, after) = (Ids::from(before), Ids::from(after));
    if args.json {
        json::write(out, &AccessJson { name: &args.name, before, after })?;
    } else if changes {
        writeln!(out, "{}: {}, before: {}", args.name, after.text(), before.text())?;
    } else {
        writeln!(out, "{}: {}", args.name, after.text())?;
    }
    Ok(Outcome::Clean)
}
