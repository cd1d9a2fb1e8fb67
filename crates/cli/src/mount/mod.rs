//! `daxfs mount`: an image as files, for programs that know nothing of images.
//!
//! There are several ways to that, each a file here and a row of [`WAYS`], best first. The first that fits the image and
//! the machine is taken, and it is said why not the ones before it; `--as` takes one, and its error is the command's.
//!
//! Where a process serves the mount, it is this one, forked before it has opened anything: it goes into the background
//! once the mount answers, and what goes wrong before is the command's error.

mod compat;
mod erofs;
mod fuse;
pub mod helper;
mod kernel;
mod options;

use crate::args::{MountArgs, MountWay, SourceArgs};
use crate::output::{Outcome, note, report};
use crate::source;
use anyhow::{Context, bail};
use daxfs::Image;
use daxfs_fuse::background::{self, Ready};
use daxfs_fuse::{Mount, Options, Signals};
use options::Wanted;
use std::path::Path;

/// An image that is to be mounted.
struct Request<'a> {
    image: &'a Image,
    at: &'a Path,
    /// What the image is named by, for lists of mounts.
    name: &'a str,
    wanted: &'a Wanted,
}

/// A way to mount images.
struct Way {
    id: MountWay,
    /// As messages name it.
    name: &'static str,
    /// Whether a process serves it, which the options of [`Wanted::of_a_process`] are for.
    has_process: bool,
    /// Why it is out of the question for this image on this machine, as far as that is known beforehand.
    unfit: fn(&Request<'_>) -> Option<String>,
    /// Mounts the image; the mount answers when this returns. Where the kernel does not serve it alone, this process has
    /// to as long as the mount lasts.
    mount: fn(&Request<'_>) -> anyhow::Result<Option<Mount>>,
}

impl Way {
    /// What of the options it cannot do.
    fn lacks(&self, wanted: &Wanted) -> Option<String> {
        let option = wanted.of_a_process().filter(|_| !self.has_process)?;
        Some(format!("the option {option} takes a process that serves the mount"))
    }
}

/// All ways, best first.
const WAYS: &[Way] = &[kernel::WAY, erofs::WAY, fuse::WAY];

/// Mounts the image that the command line names.
pub fn run(source: &SourceArgs, args: &MountArgs) -> anyhow::Result<Outcome> {
    let wanted = Wanted::new(source, args)?;
    let Some(dir) = &args.dir else {
        let image = source::open(&wanted.source, &wanted.image, false)?;
        return compat::report(&image, &source::name(&wanted.image), &wanted, args.json);
    };
    if args.foreground {
        return mount(&wanted, dir, Ready::in_foreground());
    }
    let status = background::run(|ready| match mount(&wanted, dir, ready) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            report(&error);
            Outcome::Failed.into()
        }
    });
    Ok(match status.context("a process for the mount")? {
        0 => Outcome::Clean,
        _ => Outcome::Failed,
    })
}

/// Mounts the image, says that it is ready, and serves it as long as it lasts, if that is to be done here.
fn mount(wanted: &Wanted, dir: &Path, ready: Ready) -> anyhow::Result<Outcome> {
    let signals = Signals::wait()?;
    let image = source::open(&wanted.source, &wanted.image, false)?;
    let name = source::name(&wanted.image);
    let request = Request { image: &image, at: dir, name: &name, wanted };
    let (way, why) = choose(&request)?;
    signals.keep();
    let mounted = (way.mount)(&request).with_context(|| name.clone())?;
    if let Some(why) = why {
        note(&why);
    }
    let Some(mount) = mounted else { return Ok(Outcome::Clean) };
    // The mount has it, as long as it shows it.
    drop(image);
    // Whoever hears that it is ready may end it.
    mount.end_on(&signals);
    ready.tell().context("going into the background")?;
    mount.wait()?;
    Ok(Outcome::Clean)
}

/// Mounts an image for this process and those that it starts, with its own modes and owners, or all files as `owner`'s.
/// Returns the mount where this process serves it.
pub fn at(
    image: &Image,
    name: &str,
    at: &Path,
    way: Option<MountWay>,
    owner: Option<u32>,
    source: &SourceArgs,
) -> anyhow::Result<Option<Mount>> {
    let options = Options { allow_other: true, uid: owner, gid: owner, report: note, ..Options::new("") };
    let wanted =
        Wanted { image: name.into(), source: source.clone(), way, mount: options, foreground: false };
    let request = Request { image, at, name, wanted: &wanted };
    let (way, _) = choose(&request)?;
    (way.mount)(&request).with_context(|| name.to_owned())
}

/// The way that was asked for, else the first that fits, with what is to be said of that. What the last way says is its
/// error, when it is tried.
fn choose(request: &Request<'_>) -> anyhow::Result<(&'static Way, Option<String>)> {
    if let Some(id) = request.wanted.way {
        let way = WAYS.iter().find(|way| way.id == id).context("this build has no such way of mounting")?;
        if let Some(why) = way.lacks(request.wanted) {
            bail!("{}: {why}", way.name);
        }
        return Ok((way, None));
    }
    let (last, better) = WAYS.split_last().context("this build has no way of mounting")?;
    let mut passed = Vec::new();
    let fits = better.iter().find(|way| match way.lacks(request.wanted).or_else(|| (way.unfit)(request)) {
        Some(why) => {
            passed.push(format!("by {}, since {why}", way.name));
            false
        }
        None => true,
    });
    let way = fits.unwrap_or(last);
    let why = (!passed.is_empty()).then(|| format!("mounted by {}; not {}", way.name, passed.join(", not ")));
    Ok((way, why))
}
