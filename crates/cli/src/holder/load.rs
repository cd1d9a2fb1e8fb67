//! `daxfs load` and `daxfs swap`: send a source to a holder and wait until it holds it.

use super::ps::{ImageJson, content};
use super::{LONG, open_source, unexpected};
use crate::args::LoadArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::progress::Progress;
use crate::source::name;
use crate::text::{hex, human};
use anyhow::bail;
use daxfs::holder::Connection;
use daxfs::holder::message::{Reply, Request};
use daxfs_holder::Target;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

/// Sends the source and follows the load.
///
/// # Errors
/// When the source cannot be opened, an option would have no effect on it, or the holder refuses.
pub fn run(
    args: &LoadArgs,
    replace: bool,
    expect: Option<[u8; 32]>,
    out: &mut Output,
) -> anyhow::Result<Outcome> {
    let source = open_source(&args.source)?;
    check_effect(args, &source)?;
    let mut connection = Connection::open(&args.socket.path())?;
    connection.set_timeout(LONG)?;
    let mut options = options(args);
    options.extend(expect.map(|hash| format!("expect=blake3:{}", hex(&hash))));
    let request = Request::Load { name: args.name.clone(), replace, options };
    let progress = Progress::new("loading", 0, args.quiet);
    let mut reply = connection.request(&request, &[source.as_fd()])?.0;
    let info = loop {
        match reply {
            Reply::Progress { done, total } => progress.set(done, total),
            Reply::Loaded(info) => break info,
            reply => return unexpected(&reply),
        }
        reply = connection.receive()?.0;
    };
    drop(progress);
    if args.json {
        json::write(out, &ImageJson::new(&info, None))?;
    } else if !args.quiet {
        let (size, kind) = (human(info.size), info.kind.name());
        writeln!(out, "{}: generation {}, {size}, {kind}, {}", info.name, info.generation, content(&info))?;
    }
    Ok(Outcome::Clean)
}

/// The options as the protocol has them; see `daxfs_holder::LoadOptions`.
fn options(args: &LoadArgs) -> Vec<String> {
    let mut options = Vec::new();
    options.extend(args.into.as_ref().map(|target| format!("into={target}")));
    options.extend(args.shared.then(|| "shared=1".to_owned()));
    options.extend(args.align_tensors.map(|bytes| format!("align-tensors={bytes}")));
    options.extend(args.dedupe.then(|| "dedupe=1".to_owned()));
    options.extend(args.allow_uid.iter().map(|uid| format!("allow-uid={uid}")));
    options.extend(args.allow_gid.iter().map(|gid| format!("allow-gid={gid}")));
    options
}

/// Refuses options that would do nothing with this source.
fn check_effect(args: &LoadArgs, source: &OwnedFd) -> anyhow::Result<()> {
    let place = name(&args.source);
    if args.shared && !matches!(args.into, None | Some(Target::Memfd(_))) {
        bail!("--shared is for memfds; a dma-buf is always shared");
    }
    if File::from(source.try_clone()?).metadata()?.is_dir() {
        return Ok(());
    }
    let packing = [("--align-tensors", args.align_tensors.is_some()), ("--dedupe", args.dedupe)];
    if let Some((flag, _)) = packing.iter().find(|(_, given)| *given) {
        bail!("{place}: {flag} is for directories; this holds an image already");
    }
    let moving = [("--into", args.into.is_some()), ("--shared", args.shared)];
    if let Some((flag, _)) = moving.iter().find(|(_, given)| *given)
        && daxfs_holder::is_kept(&dmabuf::describe(source.as_fd())?.kind)
    {
        bail!("{place}: {flag} is for directories and files; memory that cannot shrink is kept as it is");
    }
    Ok(())
}
