//! The `daxfs` command: list, inspect, verify and extract DAXFS images.
//!
//! [`main`] takes the whole command line, so that the binary and the Python wheel share one entry point.
//! Every verb has a module of its own; all flags and all help texts are in [`args`].
//!
//! Exit status: 0 when all went well, 1 when `verify` found differences, 2 on errors. Errors go to standard
//! error as one line, `daxfs: what: why`. When standard output is a pipe that nobody reads any more, the
//! command ends quietly with 0.

pub mod args;
mod cat;
mod collapse;
mod extract;
mod inspect;
mod json;
mod ls;
mod memory;
mod output;
mod place;
mod progress;
mod source;
mod stat;
mod text;
mod tree;
mod verify;

use args::{Cli, Verb};
use clap::Parser;
use output::{Outcome, Output, report};
use std::ffi::OsString;

/// Runs the command line `args`, the first of which is the name of the program, and returns the exit status.
///
/// Writes to the standard output and standard error of the process. Does not end the process.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed terminal, and the exit status tells the story.
            let _ = error.print();
            return if error.use_stderr() { Outcome::Failed } else { Outcome::Clean }.into();
        }
    };
    let mut out = Output::stdout();
    let result = run(&cli, &mut out).and_then(|outcome| {
        out.finish()?;
        Ok(outcome)
    });
    match result {
        Ok(outcome) => outcome.into(),
        Err(_) if out.reader_left() => Outcome::Clean.into(),
        Err(error) => {
            report(&error);
            Outcome::Failed.into()
        }
    }
}

fn run(cli: &Cli, out: &mut Output) -> anyhow::Result<Outcome> {
    if let Verb::Verify(verb) = &cli.verb {
        // Opens the image in its own way: a broken rule is a finding there.
        return verify::run(&cli.source, verb, out);
    }
    let image = source::open(&cli.source, cli.verb.image())?;
    match &cli.verb {
        Verb::Ls(verb) => ls::run(&image, verb, out),
        Verb::Tree(verb) => tree::run(&image, verb, out),
        Verb::Stat(verb) => stat::run(&image, verb, out),
        Verb::Cat(verb) => cat::run(&image, verb, out),
        Verb::Inspect(verb) => inspect::run(&image, verb, out),
        Verb::Extract(verb) => extract::run(&image, verb, out),
        Verb::Collapse(verb) => collapse::run(&image, verb, out),
        Verb::Verify(_) => Ok(Outcome::Clean),
    }
}
