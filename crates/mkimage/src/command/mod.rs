//! The `daxfs-pack` command. The binary and the Python wheel's entry point call [`main`].

mod args;
mod bar;
mod run_child;

use crate::{Error, Result, Signer, Summary};
use args::Args;
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

/// Exit status when the finished image differs from its source.
const DIFFERENT: u8 = 1;
/// Exit status of every other error.
const FAILED: u8 = 2;

/// Runs `daxfs-pack` with these arguments (the first is the program's name) and returns its exit status: 0 done,
/// 1 `--verify` found a difference, 2 error. With a COMMAND it does not return unless that cannot be started.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    dmabuf::fill_standard_descriptors();
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // A closed pipe is not worth an error message.
            let _ = error.print();
            return if error.use_stderr() { FAILED } else { 0 };
        }
    };
    match run(&args) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "daxfs-pack: {error}");
            if matches!(error, Error::Mismatch { .. }) { DIFFERENT } else { FAILED }
        }
    }
}

/// The definition of the command, for manual pages and completions.
#[must_use]
pub fn definition() -> clap::Command {
    Args::command()
}

fn run(args: &Args) -> Result<()> {
    let memory = args.memory()?;
    let mut packer = args.packer(memory.as_ref())?;
    if !args.quiet && io::stderr().is_terminal() {
        packer = packer.progress(bar::Bar::new());
    }
    match memory {
        None => {
            let file = args.file()?;
            // What could be wrong with the key, and with the place of the signature, is found before anything is
            // written.
            let password = args.password_file.as_deref();
            let signer = args.sign.as_ref().map(|key| Signer::open(key, password)).transpose()?;
            signer.as_ref().map(|signer| signer.place(&file)).transpose()?;
            let mut summary = packer.plan()?.write_file(&file)?;
            if let Some(signer) = signer {
                let content = summary.content_hash.ok_or_else(|| Error::Setting {
                    option: "--sign",
                    why: "this image has no content hash that could be signed".to_owned(),
                })?;
                let path = signer.write(&content, &file, !args.no_sync)?;
                summary.signature = Some(path.display().to_string());
            }
            report(args, &summary, io::stdout())
        }
        Some(memory) => {
            let (fd, part, summary) = packer.plan()?.write_part(&memory)?;
            match &args.command[..] {
                [] => report(args, &summary, io::stdout()),
                [program, arguments @ ..] => {
                    report(args, &summary, io::stderr())?;
                    Err(run_child::exec(program, arguments, fd, part))
                }
            }
        }
    }
}

/// Prints the summary. A reader that went away is no error: the image is there.
fn report(args: &Args, summary: &Summary, mut to: impl Write) -> Result<()> {
    if args.quiet {
        return Ok(());
    }
    let text = if args.json {
        serde_json::to_string_pretty(summary).map_err(io::Error::from)
    } else {
        for warning in &summary.warnings {
            let _ = writeln!(io::stderr(), "daxfs-pack: warning: {warning}");
        }
        for skipped in &summary.skipped {
            let _ = writeln!(io::stderr(), "daxfs-pack: left out: {skipped}");
        }
        Ok(summary.to_string())
    };
    // At once: standard error has no buffer, and half a summary helps nobody.
    let written = text.and_then(|text| to.write_all(format!("{text}\n").as_bytes()));
    match written.and_then(|()| to.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("print the summary of", summary.target.as_ref(), error))
        }
        _ => Ok(()),
    }
}
