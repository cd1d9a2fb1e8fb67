//! `daxfs serve`: the holder itself.

use super::open_source;
use super::uploads::Uploads;
use crate::args::{Log, NamedSource, ServeArgs};
use crate::output::{Outcome, report, stderr_is_terminal};
use crate::placements;
use crate::progress::Progress;
use anyhow::{Context, anyhow};
use daxfs_holder::{Config, Server};
use std::os::fd::OwnedFd;
use tracing_subscriber::EnvFilter;

/// Loads what is given, then serves until told to end.
///
/// # Errors
/// When a source cannot be loaded, or another holder answers at the socket. A holder that has images already, from
/// systemd or from a takeover, reports a source that cannot be loaded and goes on: it must not lose the others.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    begin_log(args.log)?;
    // Before anything else, so that a wrong path or plan leaves a running holder alone.
    if let Some(path) = &args.place {
        placements::gpus(&placements::read(path)?, &args.ranks)?;
    }
    let sources = args
        .images
        .iter()
        .map(|image| Ok((image, open_source(&image.source)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut server = Server::start(config(args), args.takeover)?;
    let keeps_others = !server.is_empty();
    for (image, source) in sources {
        if keeps_others && server.has(&image.name) {
            continue;
        }
        match load(&mut server, image, source) {
            Ok(()) => {}
            // SIGTERM or SIGINT: an end that was asked for.
            Err(_) if server.is_stopping() => {
                server.cancel();
                return Ok(Outcome::Clean);
            }
            Err(error) if keeps_others => report(&error),
            Err(error) => {
                server.cancel();
                return Err(error);
            }
        }
    }
    let uploads = Uploads::begin(args);
    let served = server.run();
    uploads.end();
    served?;
    Ok(Outcome::Clean)
}

fn load(server: &mut Server, image: &NamedSource, source: OwnedFd) -> anyhow::Result<()> {
    let progress = Progress::new("loading", 0, false);
    let loaded = server.load_now(&image.name, source, &[], |done, total| progress.set(done, total));
    loaded.with_context(|| image.name.clone())
}

fn config(args: &ServeArgs) -> Config {
    let default_mode = if args.group.is_some() { 0o660 } else { 0o600 };
    Config {
        mode: args.mode.unwrap_or(default_mode),
        group: args.group,
        into: args.into.memory.clone(),
        shared: args.shared,
        max_bytes: args.max_bytes,
        control: args.allow_control.clone(),
        metrics: args.metrics,
        ..Config::new(args.socket.path())
    }
}

/// Log lines go to standard error: one for each attach, refusal, load, drop, swap and takeover.
fn begin_log(form: Log) -> anyhow::Result<()> {
    let filter = match std::env::var_os("RUST_LOG") {
        None => EnvFilter::new("info"),
        Some(_) => EnvFilter::try_from_default_env().map_err(|e| anyhow!("RUST_LOG: {e}"))?,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = match form {
        Log::Text => lines.with_ansi(stderr_is_terminal()).with_target(false).try_init(),
        Log::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    };
    begun.map_err(|error| anyhow!("log: {error}"))
}
