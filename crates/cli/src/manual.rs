//! `daxfs man` and `daxfs completions`, from the definitions of the commands.

use crate::args::{self, CompletionsArgs, ManArgs, Program};
use crate::output::{Outcome, Output};
use anyhow::Context;

/// Writes the manual pages of both commands and of every verb.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_pages(args: &ManArgs) -> anyhow::Result<Outcome> {
    let place = || args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir).with_context(place)?;
    for command in [args::command(), mkimage::command::definition()] {
        // Without a page for each `daxfs help VERB`.
        let command = command.disable_help_subcommand(true);
        clap_mangen::generate_to(command, &args.dir).with_context(place)?;
    }
    Ok(Outcome::Clean)
}

/// Prints the completion script of a command.
///
/// # Errors
/// What `out` reports.
pub fn complete(args: &CompletionsArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let (mut command, name) = match args.program {
        Program::Daxfs => (args::command(), "daxfs"),
        Program::DaxfsPack => (mkimage::command::definition(), "daxfs-pack"),
    };
    // The generator panics on a writer that fails, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    std::io::Write::write_all(out, &script)?;
    Ok(Outcome::Clean)
}
