//! `daxfs run`: a container over an image, with nothing of a container engine around it.
//!
//! ```text
//! this process                                          first process of the container
//!   namespaces.rs  user, mounts, processes
//!   root.rs        what of the machine is shown
//!   process.rs     starts ------------------------------> waits
//!   root.rs        the image, the overlay above it
//!   config.rs      what to run ------------------------->
//!   waits, hands signals on, serves the mount             inside.rs   its root, /proc, /sys, /dev
//!                                                         process.rs  starts the command, collects processes
//!                                                                       -> privileges.rs, users.rs, the command
//! ```
//!
//! Nothing of it is seen by the machine, and nothing needs to be taken away: mounts go with the processes that have them,
//! and the processes with this one, also when it is killed.

#![allow(unsafe_code, reason = "closing what is open in the first process")]

pub mod config;
mod inside;
pub mod namespaces;
mod privileges;
mod process;
pub mod root;
mod trees;
pub mod users;

use crate::args::{RunArgs, SourceArgs};
use crate::output::{Outcome, report};
use anyhow::Context;
use config::Program;
use inside::Surroundings;
use namespaces::Users;
use process::{First, Signals};
use root::{Parts, Root};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What the first process of a container is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    root: PathBuf,
    program: Program,
}

/// Runs a command in a container.
pub fn run(source: &SourceArgs, args: &RunArgs) -> anyhow::Result<Outcome> {
    let signals = Signals::hold().context("signals")?;
    let users = namespaces::enter(args.net)?;
    let parts = Parts::take(args)?;
    let (listen, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    let mut listen = Some(listen);
    let mut tell = Some(tell);
    let first = First::start(|| {
        drop(tell.take());
        match listen.take().context("a pipe").and_then(|pipe| be_first(pipe, args, &parts, users, &signals)) {
            Ok(status) => status,
            Err(error) => {
                report(&error);
                Outcome::Failed.into()
            }
        }
    })?;
    drop(listen.take());
    signals.hand_on(&first.fd)?;
    let mut tell = File::from(tell.take().context("a pipe")?);
    let made = Root::make(source, args, &parts, users);
    let root = match made {
        Ok(root) => root,
        Err(error) => {
            // It is told nothing, and ends.
            drop(tell);
            first.wait()?;
            return Err(error);
        }
    };
    let order = Order { root: root.path, program: root.program };
    signals.started();
    tell.write_all(&serde_json::to_vec(&order)?).context("the container")?;
    drop(tell);
    let status = first.wait()?;
    drop(root.mount);
    Ok(Outcome::Status(status))
}

/// What the first process of a container does.
fn be_first(
    pipe: OwnedFd,
    args: &RunArgs,
    parts: &Parts,
    users: Users,
    signals: &Signals,
) -> anyhow::Result<u8> {
    let Some(Order { root, program }) = process::listen(pipe)? else { return Ok(Outcome::Failed.into()) };
    let around = Surroundings {
        binds: &args.bind,
        trees: &parts.binds,
        network: args.net,
        hostname: args.hostname.as_deref(),
        read_only: args.read_only,
        users,
    };
    inside::enter(&root, &around)?;
    // SAFETY: this is the child of `First::start`, which ends by _exit(2) and drops nothing of its callers' frames: not
    // `parts` either, whose descriptors were used by `enter` for the last time. What follows opens its own.
    unsafe { process::close_descriptors() }.context("close_range (Linux 5.9)")?;
    process::make_workdir(&program);
    if args.read_only {
        inside::close()?;
    }
    process::run(&program, users, signals)
}
