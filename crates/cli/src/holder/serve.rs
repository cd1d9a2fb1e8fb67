//! `daxfs serve`: the holder itself.

use super::open_source;
use crate::args::{Gpu, Log, NamedSource, ServeArgs};
use crate::output::{Outcome, report, stderr_is_terminal};
use crate::progress::Progress;
use anyhow::{Context, anyhow};
use daxfs_holder::{Config, Server};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use tracing_subscriber::EnvFilter;

/// Loads what is given, then serves until told to end.
///
/// # Errors
/// When a source cannot be loaded, or another holder answers at the socket. A holder that has images already, from
/// systemd or from a takeover, reports a source that cannot be loaded and goes on: it must not lose the others.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    begin_log(args.log)?;
    // Before anything else, so that a wrong path leaves a running holder alone.
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
    if let Some(gpu) = args.into.gpu {
        upload(args, gpu);
    }
    server.run()?;
    Ok(Outcome::Clean)
}

/// Has copies of the images made on a GPU, one after the other, by processes that end when they are there: the holder
/// itself has no GPU driver. One that fails is reported, and clients make copies of their own.
fn upload(args: &ServeArgs, gpu: Gpu) {
    let names: Vec<String> = args.images.iter().map(|image| image.name.clone()).collect();
    let socket = args.socket.path();
    std::thread::spawn(move || {
        for name in names {
            let status = own_command().and_then(|mut command| {
                command.args(["upload", &name, &gpu.to_string(), "--quiet", "--socket"]).arg(&socket);
                // What a supervisor passed is the holder's.
                for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
                    command.env_remove(variable);
                }
                command.stdin(Stdio::null()).stdout(Stdio::null()).status()
            });
            match status {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::error!(name, %gpu, %status, "no copy on the GPU"),
                Err(error) => tracing::error!(name, %gpu, %error, "no copy on the GPU"),
            }
        }
    });
}

/// This command once more, without verb: the program, and what comes before the verb when an interpreter runs it.
fn own_command() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1).take_while(|argument| argument != "serve"));
    Ok(command)
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
