//! `daxfs upload`: a copy of an image in a GPU's memory, or in host memory for GPUs, made here and kept by the holder.

use crate::args::{Gpu, UploadArgs};
use crate::json;
use crate::output::{Outcome, Output};
use crate::placements;
use crate::progress::Progress;
use crate::text::human;
use daxfs::{ContentHash, Image, OpenOptions};
use daxfs_device::{Device, ImageExt, Placement, UploadOptions, cuda};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;

#[derive(Debug, Serialize)]
struct UploadedJson<'a> {
    name: &'a str,
    generation: Option<u64>,
    size: u64,
    copies: Vec<CopyJson>,
}

#[derive(Debug, Serialize)]
struct CopyJson {
    device: String,
    device_name: String,
    /// `null` for host memory.
    uuid: Option<String>,
    /// Of the plan; `null` for the whole image.
    rank: Option<usize>,
    size: u64,
    /// False when the holder had a copy already.
    copied: bool,
}

/// Copies the image, or what a plan gives each rank, to each device, gives the copies to the holder, and ends: the
/// memory stays.
///
/// # Errors
/// When the holder has no such image, the device cannot be had or has too little memory, or this user may not load
/// images.
pub fn run(
    args: &UploadArgs,
    expect: Option<ContentHash>,
    verify: bool,
    out: &mut Output,
) -> anyhow::Result<Outcome> {
    // A holder that starts this has them blocked.
    SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]).thread_unblock()?;
    let mut source = OsString::from("daxfs+unix://");
    source.push(args.socket.path());
    source.push("/");
    source.push(&args.name);
    let image: Image =
        expect.map_or_else(OpenOptions::new, |hash| OpenOptions::new().expect(hash)).open(source)?;
    let mut copies = Vec::new();
    for (number, placement) in targets(args, &image)? {
        let device = Device::open("cuda", number)?;
        let in_host = args.place.is_none() && matches!(args.device, Gpu::Host(_));
        let size = placement.as_ref().map_or(image.superblock().total_size, Placement::len);
        let options = UploadOptions::new().verify(verify).in_host(in_host);
        let copied = copy(&image, placement.as_ref(), &device, options, args.quiet)?;
        let uuid = device.uuid().filter(|_| !in_host).map(|uuid| uuid.to_string());
        let text = if in_host { Gpu::Host(number) } else { Gpu::One(number) }.to_string();
        let device_name = device.name().to_owned();
        let rank = placement.as_ref().map(Placement::rank);
        if !args.json && !args.quiet {
            let what = match (copied, in_host) {
                (true, false) => "copied to",
                (false, false) => "is already on",
                (true, true) => "copied to host memory,",
                (false, true) => "is already in host memory,",
            };
            let rank = rank.map_or_else(String::new, |rank| format!(" for rank {rank}"));
            writeln!(out, "{}: {}{rank} {what} {text}, {device_name}", args.name, human(size))?;
        }
        copies.push(CopyJson { device: text, device_name, uuid, rank, size, copied });
    }
    if args.json {
        let generation = image.region().attachment().map(|attachment| attachment.info().generation);
        let size = image.superblock().total_size;
        json::write(out, &UploadedJson { name: &args.name, generation, size, copies })?;
    }
    Ok(Outcome::Clean)
}

/// The devices, and what of the image each gets. A rank that has nothing gets nothing.
fn targets(args: &UploadArgs, image: &Image) -> anyhow::Result<Vec<(usize, Option<Placement>)>> {
    if let Some(path) = &args.place {
        let plan = placements::read(path)?;
        let placements = placements::of_all_ranks(&plan, image)?;
        let placed = placements::gpus(&plan, &args.ranks)?.into_iter().zip(placements);
        return Ok(placed
            .filter(|(_, placement)| !placement.is_empty())
            .map(|(number, placement)| (number, Some(placement)))
            .collect());
    }
    let numbers = match args.device {
        Gpu::One(number) | Gpu::Host(number) => vec![number],
        Gpu::All => (0..cuda::devices()?.len()).collect(),
    };
    Ok(numbers.into_iter().map(|number| (number, None)).collect())
}

/// Whether a copy had to be made.
fn copy(
    image: &Image,
    placement: Option<&Placement>,
    device: &Device,
    options: UploadOptions,
    quiet: bool,
) -> anyhow::Result<bool> {
    let size = placement.map_or(image.superblock().total_size, Placement::len);
    let bar = Progress::new("uploading", size, quiet);
    let options = options.progress(move |done, total| {
        bar.set(done, total);
        true
    });
    let resident = match placement {
        Some(placement) => placement.to_with(device, &options)?,
        None => image.to_with(device, &options)?,
    };
    Ok(resident.keep_if_new()?)
}
