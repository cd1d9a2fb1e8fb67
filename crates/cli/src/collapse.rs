//! `daxfs collapse`: huge pages for an image that is in memory.

use crate::args::CollapseArgs;
use crate::memory::{Pages, is_in_memory};
use crate::output::{Outcome, Output};
use crate::source::name;
use crate::text::human;
use anyhow::{Context, bail};
use daxfs::Image;
use std::io::Write;

/// Asks the kernel for huge pages and shows the pages before and after.
pub fn run(image: &Image, args: &CollapseArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let region = image.region();
    let name = name(&args.image);
    if let Some(why) = region.info().and_then(|info| info.kind.not_collapsed()) {
        bail!("{name}: {why}");
    }
    if !is_in_memory(region) {
        bail!("{name}: a file on disk; only a memfd or a file in a tmpfs can be collapsed");
    }
    let before = Pages::of(region)?.context("the memory has no pages of its own")?;
    writeln!(out, "before: {}", before.line())?;
    out.finish()?;
    let done = region.collapse().with_context(|| name.clone())?;
    let after = Pages::of(region)?.context("the memory has no pages of its own")?;
    writeln!(out, "after:  {}", after.line())?;
    if !done && after.huge() <= before.huge() {
        bail!(
            "{name}: the kernel cannot collapse this memory (it takes Linux 6.1 and at least {})",
            human(dmabuf::huge_page_size())
        );
    }
    Ok(Outcome::Clean)
}
