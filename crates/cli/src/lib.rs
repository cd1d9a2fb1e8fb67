//! The `daxfs` command: look into DAXFS images, and keep them in memory for other processes.
//!
//! [`main`] takes the whole command line, so that the binary and the Python wheel share one entry point.
//! Every verb has a module of its own; all flags and all help texts are in [`args`].
//!
//! Exit status: 0 when all went well, 1 when `verify` or `diff` found differences, 2 on errors; `run` has that
//! of its command. Errors go to standard
//! error as one line, `daxfs: what: why`. When standard output is a pipe that nobody reads any more, the
//! command ends quietly with 0.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod args;
mod bundle;
mod cat;
mod collapse;
mod cut;
mod descent;
mod diff;
mod extract;
mod holder;
mod inspect;
mod json;
mod ls;
mod manual;
mod memory;
mod mount;
mod output;
mod paths;
mod place;
mod placements;
mod progress;
mod push;
mod run;
mod source;
mod sources;
mod stat;
mod text;
mod tree;
mod verify;
mod vm_args;

use args::{Cli, ImageVerb, SourceArgs, Verb};
use output::{Outcome, Output, report};
use std::ffi::OsString;

/// Runs the command line `args`, the first of which is the name of the program, and returns the exit status.
///
/// Writes to the standard output and standard error of the process. Does not end the process.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    dmabuf::fill_standard_descriptors();
    let args: Vec<OsString> = args.into_iter().collect();
    let args = mount::helper::translate(&args).unwrap_or(args);
    if args.is_empty() {
        return Outcome::Clean.into();
    }
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed terminal, and the exit status tells the story.
            let _ = error.print();
            return if error.use_stderr() { Outcome::Failed } else { Outcome::Clean }.into();
        }
    };
    let mut out = Output::stdout();
    let result = run_verb(&cli, &mut out).and_then(|outcome| {
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

fn run_verb(cli: &Cli, out: &mut Output) -> anyhow::Result<Outcome> {
    match &cli.verb {
        Verb::Image(verb) => run_on_image(&cli.source, verb, out),
        Verb::Holder(verb) => holder::run(verb, cli.source.content(), cli.source.verify.is_some(), out),
        Verb::Sources(verb) => sources::run(verb, out),
        Verb::Man(verb) => manual::write_pages(verb),
        Verb::Completions(verb) => manual::complete(verb, out),
    }
}

fn run_on_image(args: &SourceArgs, verb: &ImageVerb, out: &mut Output) -> anyhow::Result<Outcome> {
    cut::end_with_an_error()?;
    let open = || source::open(args, verb.image(), verb.is_quiet());
    let listing = |needs_index| source::open_listing(args, verb.image(), needs_index, verb.is_quiet());
    match verb {
        ImageVerb::Ls(verb) => ls::run(&listing(false)?, verb, out),
        ImageVerb::Tree(verb) => tree::run(&listing(false)?, verb, out),
        ImageVerb::Stat(verb) => stat::run(&listing(true)?, verb, out),
        ImageVerb::Cat(verb) => cat::run(&open()?, verb, out),
        ImageVerb::Inspect(verb) => inspect::run(&listing(true)?, verb, out),
        ImageVerb::Place(verb) => placements::run(&open()?, verb, out),
        ImageVerb::Extract(verb) => extract::run(&open()?, verb, out),
        ImageVerb::Push(verb) => push::run(&open()?, verb, out),
        ImageVerb::Collapse(verb) => collapse::run(&open()?, verb, out),
        ImageVerb::VmArgs(verb) => vm_args::run(&open()?, verb, out),
        // Opens the image in its own process, where one serves the mount.
        ImageVerb::Mount(verb) => mount::run(args, verb),
        // Opens it in namespaces of the container.
        ImageVerb::Run(verb) => run::run(args, verb),
        // Has it mounted first, by another process or not.
        ImageVerb::Bundle(verb) => bundle::run(args, verb),
        // Opens two.
        ImageVerb::Diff(verb) => diff::run(args, verb, out),
        // Opens the image in its own way: a broken rule is a finding there.
        ImageVerb::Verify(verb) => verify::run(args, verb, out),
    }
}
