//! `daxfs serve`: the holder itself.

use super::log;
use super::uploads::{Uploads, own_command};
use crate::args::{NamedSource, ServeArgs};
use crate::output::{Outcome, one_line};
use crate::placements;
use crate::progress::Progress;
use anyhow::{Context, bail};
use daxfs::signature::PublicKeys;
use daxfs_holder::client::{Given, found};
use daxfs_holder::helper::Helper;
use daxfs_holder::{Config, Server, Target};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Loads what is given, then serves until told to end.
///
/// # Errors
/// When a source cannot be loaded, or another holder answers at the socket. A holder that has images already, from
/// systemd or from a takeover, reports a source that cannot be loaded and goes on: it must not lose the others.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let log = log::begin(args.log)?;
    // Before anything else, so that a wrong path or plan leaves a running holder alone.
    if let Some(path) = &args.place {
        placements::gpus(&placements::read(path)?, &args.ranks)?;
    }
    let sources = args
        .images
        .iter()
        .map(|image| {
            let source = Given::Named(image.source.clone()).open()?;
            Ok((image, source, found(&image.source, |text| tracing::warn!("{text}"))?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    check_effect(args, &sources)?;
    if args.require_signed.is_some() && !matches!(args.into.memory, Target::Memfd(_)) {
        bail!("--require-signed is for sealed memory, which nobody can write: --into memfd");
    }
    let require_signed = args.require_signed.as_deref().map(PublicKeys::read).transpose()?;
    let config = Config { lost_log_lines: Some(log.lost.clone()), require_signed, ..config(args) };
    let mut server = Server::start(config, args.takeover)?;
    let keeps_others = !server.is_empty();
    for (image, source, signature) in sources {
        if keeps_others && server.has(&image.name) {
            continue;
        }
        let mut options = args.packing.packing(false).texts();
        options.extend(signature.map(|text| format!("signature={text}")));
        match load(&mut server, image, source, &options) {
            Ok(()) => {}
            // SIGTERM or SIGINT: an end that was asked for.
            Err(_) if server.is_stopping() => {
                server.cancel();
                return Ok(Outcome::Clean);
            }
            Err(error) if keeps_others => tracing::error!(error = one_line(&error), "not loaded"),
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

/// Refuses options that would do nothing with these sources.
fn check_effect(args: &ServeArgs, sources: &[(&NamedSource, OwnedFd, Option<String>)]) -> anyhow::Result<()> {
    let Some(option) = args.packing.packing(false).given() else { return Ok(()) };
    for (_, source, _) in sources {
        if File::from(source.try_clone()?).metadata()?.is_dir() {
            return Ok(());
        }
    }
    bail!("--{option} is for directories, and none of the sources is one")
}

fn load(server: &mut Server, image: &NamedSource, source: OwnedFd, options: &[String]) -> anyhow::Result<()> {
    let progress = Progress::new("loading", 0, false);
    let loaded = server.load_now(&image.name, source, options, |done, total| progress.set(done, total));
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
        helper: Some(Helper::new(|| {
            let mut command = own_command()?;
            command.arg("helper");
            Ok(command)
        })),
        ..Config::new(args.socket.path())
    }
}
