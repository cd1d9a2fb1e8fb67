//! The timings of the benchmarks that have to be taken inside one process, and the peers that are libraries.
//!
//! `benches/run.py` makes the data, starts this program and prints the results; by hand it is of use for profiling:
//!
//! ```text
//! daxfs-pack weights/ --into memfd -- daxfs-bench open --model weights/model.safetensors --tensor lm_head.weight
//! ```
//!
//! Each command prints one JSON object on standard output. The image is the one that `$DAXFS_IMAGE` names.

mod attach;
mod bare;
mod crowd;
mod first_touch;
mod lookup;
mod open;
mod peer;
mod reader;
mod rounds;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};

#[derive(Debug, Parser)]
#[command(name = "daxfs-bench", version, about = "Timings that benches/run.py takes inside one process")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read files into fresh memory as fast as a bare program can: no names, no hashes, no image
    Bare(bare::Args),
    /// Open to first tensor, and to every page touched: daxfs against the safetensors crate
    Open(open::Args),
    /// Open and touch every page: images in several kinds of pages against a mapping of the file
    FirstTouch(first_touch::Args),
    /// Look paths up: an opened image against access(2)
    Lookup(lookup::Args),
    /// Open the image and touch all of it when told to, then stay until standard input ends
    Reader,
    /// Attach to an image of a holder: against a bare server that passes a descriptor
    Attach(attach::Args),
    /// The server of `attach` that does the least
    #[command(hide = true)]
    BareServer(attach::BareServerArgs),
    /// Start many clients of a holder at once, and look at their memory
    Crowd(crowd::Args),
    /// One of `crowd`
    #[command(hide = true)]
    Client(crowd::ClientArgs),
}

fn main() -> Result<()> {
    let result = match Cli::parse().command {
        Command::Bare(args) => bare::run(&args)?,
        Command::Open(args) => open::run(&args)?,
        Command::FirstTouch(args) => first_touch::run(&args)?,
        Command::Lookup(args) => lookup::run(&args)?,
        Command::Reader => return reader::run(),
        Command::Attach(args) => attach::run(&args)?,
        Command::BareServer(args) => return attach::bare_server(&args),
        Command::Crowd(args) => crowd::run(&args)?,
        Command::Client(args) => return crowd::client(&args),
    };
    print(&result)
}

/// Writes one line of JSON.
fn print(result: &serde_json::Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{result}")?;
    out.flush().context("standard output")
}

/// The source of the image that is measured.
fn image_source() -> Result<OsString> {
    std::env::var_os("DAXFS_IMAGE")
        .context("DAXFS_IMAGE is not set; start this with daxfs-pack ... --into memfd --")
}
