//! Many small clients of a holder at once: each attaches, checks a tensor, and stays until all have been looked at.
//!
//! All clients share three ends of two pipes. Each says on its standard output that it is ready, takes one byte of its
//! standard input as the sign to start, says what it found, and ends when its input does.

use crate::{peer, print};
use anyhow::{Context, Result, bail, ensure};
use daxfs::Image;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image, as `daxfs+unix:///path/to.sock/NAME`.
    address: OsString,

    /// The safetensors file in it, for what the tensors must be.
    #[arg(long)]
    model: PathBuf,

    /// Clients.
    #[arg(long, default_value_t = 1000)]
    clients: usize,

    /// Process number of the holder, whose memory counts, too.
    #[arg(long)]
    holder: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientArgs {
    /// The image.
    address: OsString,

    /// The tensor to check.
    tensor: String,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let expected = sums_of(&args.model)?;
    let names: Vec<&String> = expected.keys().collect();
    ensure!(!names.is_empty(), "{}: no tensor", args.model.display());
    let holder_before = Memory::of(args.holder)?;
    let (go, mut start) = io::pipe()?;
    let (reports, report) = io::pipe()?;
    let mut clients = Vec::new();
    for name in names.iter().cycle().take(args.clients) {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("client").arg(&args.address).arg(name);
        clients.push(command.stdin(go.try_clone()?).stdout(report.try_clone()?).spawn()?);
    }
    drop((go, report));
    let mut lines = BufReader::new(reports).lines();
    let mut next = || -> Result<Value> {
        let line = lines.next().context("the clients have ended")??;
        let report: Value = serde_json::from_str(&line).context(line)?;
        if let Some(error) = report.get("error") {
            bail!("a client: {error}");
        }
        Ok(report)
    };
    for _ in &clients {
        next()?;
    }
    start.write_all(&vec![0; clients.len()])?;
    let reports = clients.iter().map(|_| next()).collect::<Result<Vec<_>>>()?;
    for report in &reports {
        let name = report["tensor"].as_str().unwrap_or_default();
        ensure!(report["sum"].as_u64() == expected.get(name).copied(), "a client read another tensor {name}");
    }
    let memory = clients.iter().map(|client| Memory::of(client.id())).collect::<Result<Vec<_>>>()?;
    let holder = Memory::of(args.holder)?;
    drop(start);
    clients.iter_mut().try_for_each(|client: &mut Child| client.wait().map(drop))?;
    let seconds = |field: &str| reports.iter().map(|report| report[field].clone()).collect::<Vec<_>>();
    Ok(json!({
        "pss": memory.iter().map(|memory| memory.all).sum::<u64>(),
        "image_pss": memory.iter().map(|memory| memory.image).sum::<u64>(),
        "holder_growth": holder.all.saturating_sub(holder_before.all),
        "open": seconds("open"),
        "checked": seconds("checked"),
    }))
}

pub(crate) fn client(args: &ClientArgs) -> Result<()> {
    // Not by `Stdin`, which would take the others' bytes, too.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    print(&json!({}))?;
    input.read_exact(&mut [0])?;
    match attach(args) {
        Ok((report, image)) => {
            print(&report)?;
            // Until the other end is closed. Not by reading: the bytes that are there are for the others.
            let mut hang_up = [PollFd::new(input.as_fd(), PollFlags::empty())];
            while poll(&mut hang_up, PollTimeout::NONE)? == 0 {}
            drop(image);
            Ok(())
        }
        Err(error) => print(&json!({ "error": format!("{error:#}") })),
    }
}

fn attach(args: &ClientArgs) -> Result<(Value, Image)> {
    let started = Instant::now();
    let image = Image::open(&args.address)?;
    let opened = started.elapsed().as_secs_f64();
    let sum = sum(image.tensors()?.get(&args.tensor)?.as_slice()?);
    let checked = started.elapsed().as_secs_f64();
    Ok((json!({ "open": opened, "checked": checked, "tensor": args.tensor, "sum": sum }), image))
}

/// Of every byte, so that another place or another byte gives another number.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let words = words.fold(0, |sum: u64, word| sum.rotate_left(1).wrapping_add(word));
    rest.iter().fold(words, |sum, byte| sum.rotate_left(1).wrapping_add(u64::from(*byte)))
}

/// The sums of all tensors, from the file that was packed.
fn sums_of(model: &Path) -> Result<BTreeMap<String, u64>> {
    let map = peer::map(model)?;
    let tensors = SafeTensors::deserialize(&map)?;
    Ok(tensors.iter().map(|(name, view)| (name.to_owned(), sum(view.data()))).collect())
}

/// PSS of a process in bytes: each shared page counts for its part.
struct Memory {
    all: u64,
    /// Mappings of the image.
    image: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let (mut memory, mut within) = (Self { all: 0, image: 0 }, false);
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("Pss:") => {
                    let kib = words.next().and_then(|word| word.parse::<u64>().ok()).context(path.clone())?;
                    memory.all += kib << 10;
                    memory.image += if within { kib << 10 } else { 0 };
                }
                Some(first) if !first.ends_with(':') => within = line.contains("/memfd:daxfs"),
                _ => {}
            }
        }
        Ok(memory)
    }
}
