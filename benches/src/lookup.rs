//! Looking up every file of a tree by its full path, in an order that no cache foresees.

use crate::image_source;
use crate::rounds::{self, Case, Limits};
use anyhow::{Context, Result, ensure};
use daxfs::{FileType, Image};
use nix::unistd::{AccessFlags, access};
use serde_json::Value;
use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

/// How often a case looks all paths up in its turn. The first time it finds the caches full of the other cases' data.
const PASSES: u32 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The tree that the image was packed from, for access(2). Its paths are looked up relative to it, as those of
    /// the image are.
    #[arg(long)]
    tree: PathBuf,

    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let image = Image::open(image_source()?)?;
    std::env::set_current_dir(&args.tree).with_context(|| args.tree.display().to_string())?;
    let mut paths: Vec<Vec<u8>> = image
        .walk()
        .filter(|entry| entry.file_type() == FileType::File)
        .map(|entry| entry.path().split_off(1))
        // The packer's own index is not in the tree.
        .filter(|path| !path.starts_with(b".daxfs/"))
        .collect();
    ensure!(!paths.is_empty(), "the image holds no file");
    shuffle(&mut paths);
    // Copied in the new order, so that the paths themselves come from the cache, as a caller's do.
    let paths = paths.clone();
    let names = paths.iter().cloned().map(CString::new).collect::<Result<Vec<_>, _>>()?;
    let count = u32::try_from(paths.len())?;

    // Seconds for one path.
    let each = |work: &dyn Fn() -> Result<()>| -> Result<Duration> {
        Ok(rounds::time(|| (0..PASSES).try_for_each(|_| work()))? / (PASSES * count))
    };
    let (image, paths, names) = (&image, &paths, &names);
    let mut cases: Vec<Case<'_>> = vec![
        (
            "entry",
            Box::new(move || each(&|| Ok(paths.iter().try_for_each(|path| image.entry(path).map(drop))?))),
        ),
        (
            "file",
            Box::new(move || each(&|| Ok(paths.iter().try_for_each(|path| image.file(path).map(drop))?))),
        ),
        (
            "contains",
            Box::new(move || {
                each(&|| {
                    ensure!(paths.iter().all(|path| image.contains(path)), "a path is missing");
                    Ok(())
                })
            }),
        ),
        (
            "access",
            Box::new(move || {
                each(&|| Ok(names.iter().try_for_each(|name| access(name.as_c_str(), AccessFlags::F_OK))?))
            }),
        ),
    ];
    rounds::interleave(&mut cases, args.limits)
}

/// Fisher-Yates with a fixed xorshift generator: the same order in every run.
fn shuffle(paths: &mut [Vec<u8>]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..paths.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (last as u64 + 1)).unwrap_or(last);
        paths.swap(last, other);
    }
}
