//! `daxfs upload`: a copy of an image in a GPU's memory, made here and kept by the holder.

use crate::args::UploadArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::progress::Progress;
use crate::text::{hex, human};
use daxfs::device::cuda::UploadOptions;
use daxfs::device::{Device, Route};
use daxfs::{Image, OpenOptions};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;

#[derive(Debug, Serialize)]
struct UploadedJson<'a> {
    name: &'a str,
    generation: Option<u64>,
    device: &'a str,
    device_name: &'a str,
    uuid: String,
    size: u64,
    /// False when the holder had a copy already.
    copied: bool,
}

/// Copies the image, gives the copy to the holder, and ends: the memory stays.
///
/// # Errors
/// When the holder has no such image, the device cannot be had or has too little memory, or this user may not load
/// images.
pub fn run(args: &UploadArgs, expect: Option<[u8; 32]>, out: &mut Output) -> anyhow::Result<Outcome> {
    // A holder that starts this has them blocked.
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]).thread_unblock()?;
    let mut source = OsString::from("daxfs+unix://");
    source.push(args.socket.path());
    source.push("/");
    source.push(&args.name);
    let image: Image =
        expect.map_or_else(OpenOptions::new, |hash| OpenOptions::new().expect(hash)).open(source)?;
    let device = Device::cuda(args.device.0)?;
    let bar = Progress::new("uploading", image.superblock().total_size, args.quiet);
    let options = UploadOptions::new().verify(args.verify).progress(move |done, total| {
        bar.set(done, total);
        true
    });
    let resident = image.to_with(&device, &options)?;
    drop(options);
    let copied = resident.memory().route() == Route::Copy;
    if copied {
        resident.keep()?;
    }
    let size = resident.memory().len();
    if args.json {
        let uuid = device.as_cuda().map(|device| hex(&device.uuid())).unwrap_or_default();
        let generation = image.region().attachment().map(|attachment| attachment.info().generation);
        let (name, device_name) = (&args.name, device.name());
        let device = &args.device.to_string();
        json::write(out, &UploadedJson { name, generation, device, device_name, uuid, size, copied })?;
    } else if !args.quiet {
        let what = if copied { "copied to" } else { "is already on" };
        writeln!(out, "{}: {} {what} {}, {}", args.name, human(size), args.device, device.name())?;
    }
    Ok(Outcome::Clean)
}
