//! `daxfs load` and `daxfs swap`: send a source to a holder and wait until it holds it.

use super::ps::{ImageJson, content};
use super::{LONG, open_source};
use crate::args::LoadArgs;
use crate::json;
use crate::output::{Outcome, Output, report};
use crate::progress::Progress;
use crate::source::name;
use crate::text::{hex, human};
use anyhow::{anyhow, bail};
use daxfs::signature::{self, Found};
use daxfs::{Part, Source};
use daxfs_holder::Target;
use daxfs_protocol::message::{ImageInfo, Refusal, Reply, Request};
use daxfs_protocol::{Connection, HolderError};
use dmabuf::HugePages;
use mkimage::{Memory, Packer};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Options of one request: their number is one byte, and one more may say who has packed.
const MOST_OPTIONS: usize = 254;

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
    let mut options = options(args);
    options.extend(expect.map(|hash| format!("expect=blake3:{}", hex(&hash))));
    options.extend(signature(args)?.map(|text| format!("signature={text}")));
    if options.len() > MOST_OPTIONS {
        bail!("{} globs and other options, a request to a holder has at most {MOST_OPTIONS}", options.len());
    }
    let progress = Progress::new("loading", 0, args.quiet);
    let info = match send(args, replace, &options, &source, &progress) {
        Err(HolderError::Refused { refusal: Refusal::ClientPacks, .. }) => {
            let memory = pack(args, &source, &progress)?;
            // What the packer was told is done.
            let packed = ["align-tensors", "exact", "dedupe", "links", "exclude", "include", "weights-only"];
            options.retain(|option| !packed.contains(&option.split('=').next().unwrap_or_default()));
            // A swap keeps the kind of memory, which only the holder knows.
            options.push("packed=1".to_owned());
            send(args, replace, &options, &memory, &progress)
        }
        sent => sent,
    };
    let info = info.map_err(|error| named(error, args))?;
    drop(progress);
    if args.json {
        json::write(out, &ImageJson::new(&info, None))?;
    } else if !args.quiet {
        let (size, kind) = (human(info.size), info.kind.name());
        writeln!(out, "{}: generation {}, {size}, {kind}, {}", info.name, info.generation, content(&info))?;
    }
    Ok(Outcome::Clean)
}

/// The signature that goes with the source: one that is named, or lies beside it.
fn signature(args: &LoadArgs) -> anyhow::Result<Option<String>> {
    if let Some(path) = &args.signature {
        return Ok(Some(signature::canonical(&signature::read(path)?)?));
    }
    found(&args.source, |text| report(&anyhow!("warning: {text}")))
}

/// The signature beside a source for its holder, which passes it on: nothing but what is signed. Nobody has named it, so
/// what is none is reported and left out, and a holder that requires one refuses the source.
///
/// # Errors
/// When the source is no valid one.
pub fn found(source: &OsStr, mut warn: impl FnMut(String)) -> anyhow::Result<Option<String>> {
    let Some(path) = whole(source)? else { return Ok(None) };
    let (text, refused) = match signature::read_beside(&path) {
        Ok(None) => return Ok(None),
        Ok(Some(found)) => found.canonical(),
        Err(error) => (String::new(), vec![error]),
    };
    for error in refused {
        warn(format!("{}: what is beside it is no signature, left out: {error}", path.display()));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The signatures beside a source that is a path, if any is there.
pub fn beside(source: &OsStr) -> anyhow::Result<Option<Found>> {
    Ok(whole(source)?.map(|path| signature::read_beside(&path)).transpose()?.flatten())
}

/// The path of a source that is a whole file or directory.
fn whole(source: &OsStr) -> anyhow::Result<Option<PathBuf>> {
    match Source::parse(source)? {
        Source::Path { path, part: Part::WHOLE } => Ok(Some(path)),
        _ => Ok(None),
    }
}

/// Sends what is to be loaded, and follows the load.
fn send(
    args: &LoadArgs,
    replace: bool,
    options: &[String],
    source: &OwnedFd,
    progress: &Progress,
) -> Result<ImageInfo, HolderError> {
    let mut connection = Connection::open(&args.socket.path())?;
    connection.set_timeout(LONG)?;
    let request = Request::Load { name: args.name.clone(), replace, options: options.to_vec() };
    let mut reply = connection.request(&request, &[source.as_fd()])?.0;
    loop {
        match reply {
            Reply::Progress { done, total } => progress.set(done, total),
            Reply::Warning { text } => report(&anyhow!("warning: {text}")),
            Reply::Loaded(info) => return Ok(info),
            _ => return Err(connection.unexpected("not the end of a load")),
        }
        reply = connection.receive()?.0;
    }
}

/// Packs a directory here, with the rights of this user, for a holder that has others: into memory that it keeps.
fn pack(args: &LoadArgs, source: &OwnedFd, progress: &Progress) -> anyhow::Result<OwnedFd> {
    // By its path where it has one, so that errors name what the user named.
    let directory = match Source::parse(&args.source)? {
        Source::Path { path, .. } => path,
        _ => PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd())),
    };
    let target = args.into.clone().unwrap_or(Target::Memfd(HugePages::Auto));
    let memory = match target {
        Target::Memfd(pages) if args.shared => Memory::SharedMemfd(pages),
        target => target.memory(),
    };
    let shown = Shown { bar: progress.another(), done: AtomicU64::new(0), total: AtomicU64::new(0) };
    let packer = Packer::new().input(directory).dedupe(args.dedupe);
    let plan = args.packing.apply(packer).progress(shown).plan()?;
    for warning in plan.warnings() {
        report(&anyhow!("warning: {warning}"));
    }
    Ok(plan.write_memory(&memory)?.0)
}

/// The packer's progress on the bar.
#[derive(Debug)]
struct Shown {
    bar: Progress,
    done: AtomicU64,
    total: AtomicU64,
}

impl mkimage::Progress for Shown {
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bar.set(done, self.total.load(Ordering::Relaxed));
    }

    fn finish(&self) {}
}

/// A failure that is the source's names it.
fn named(error: HolderError, args: &LoadArgs) -> anyhow::Error {
    use Refusal::{Failed, Limit, NotSigned, OtherContent};
    match &error {
        HolderError::Refused { refusal: Failed | Limit | NotSigned | OtherContent, .. } => {
            anyhow::Error::new(error).context(name(&args.source))
        }
        _ => error.into(),
    }
}

/// The options as the protocol has them; see `daxfs_holder::LoadOptions`.
fn options(args: &LoadArgs) -> Vec<String> {
    let mut options = Vec::new();
    options.extend(args.into.as_ref().map(|target| format!("into={target}")));
    options.extend(args.shared.then(|| "shared=1".to_owned()));
    options.extend(args.no_copy.then(|| "no-copy=1".to_owned()));
    options.extend(args.dedupe.then(|| "dedupe=1".to_owned()));
    options.extend(args.packing.options());
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
        if args.no_copy {
            bail!("{place}: --no-copy is for memory; a directory is packed");
        }
        return Ok(());
    }
    if let Some(flag) = args.packing.given().or(args.dedupe.then_some("--dedupe")) {
        bail!("{place}: {flag} is for directories; this holds an image already");
    }
    let is_kept = daxfs_holder::is_kept(&dmabuf::describe(source.as_fd())?.kind, false);
    let moving = [("--into", args.into.is_some()), ("--shared", args.shared)];
    if let Some((flag, _)) = moving.iter().find(|(_, given)| *given && is_kept) {
        bail!("{place}: {flag} is for what can be moved; memory that nobody can write is kept as it is");
    }
    Ok(())
}
