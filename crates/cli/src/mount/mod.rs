//! `daxfs mount`: an image as files, for programs that know nothing of images.
//!
//! There are several ways to that, each a file here and a row of [`WAYS`], best first. The first that fits the image and
//! the machine is taken, and it is said why not the ones before it; `--as` takes one, and its error is the command's.

mod kernel;

use crate::args::{MountArgs, MountWay, SourceArgs};
use crate::output::{Outcome, note};
use crate::source;
use anyhow::Context;
use daxfs::Image;

/// An image that is to be mounted.
struct Request<'a> {
    image: &'a Image,
    args: &'a MountArgs,
    source: &'a SourceArgs,
}

/// A way to mount images.
struct Way {
    id: MountWay,
    /// As messages name it.
    name: &'static str,
    /// Why it is out of the question for this image on this machine, as far as that is known beforehand.
    unfit: fn(&Request<'_>) -> Option<String>,
    /// Mounts the image; the mount answers when this returns.
    mount: fn(&Request<'_>) -> anyhow::Result<()>,
}

/// All ways, best first.
const WAYS: &[Way] = &[kernel::WAY];

/// Mounts the image that the command line names.
pub fn run(source: &SourceArgs, args: &MountArgs) -> anyhow::Result<Outcome> {
    let image = source::open(source, &args.image, false)?;
    let request = Request { image: &image, args, source };
    let way = choose(&request)?;
    (way.mount)(&request).with_context(|| source::name(&args.image))?;
    Ok(Outcome::Clean)
}

/// The way that was asked for, else the first that fits. What the last way says is its error, when it is tried.
fn choose(request: &Request<'_>) -> anyhow::Result<&'static Way> {
    if let Some(id) = request.args.way {
        return WAYS.iter().find(|way| way.id == id).context("this build has no such way of mounting");
    }
    let (last, better) = WAYS.split_last().context("this build has no way of mounting")?;
    let mut passed = Vec::new();
    for way in better {
        match (way.unfit)(request) {
            None => return Ok(way),
            Some(why) => passed.push(format!("{}: {why}", way.name)),
        }
    }
    if !passed.is_empty() {
        note(&format!("mounted by {}; not by {}", last.name, passed.join("; not by ")));
    }
    Ok(last)
}
