//! By the kernel's own DAXFS: from the same memory, without a copy.

use super::{Request, Way};
use crate::args::MountWay;
use daxfs::FdKind;
use daxfs_fuse::Mount;
use std::path::Path;

pub const WAY: Way =
    Way { id: MountWay::Kernel, name: "the kernel's DAXFS", has_process: false, unfit, mount };

fn unfit(request: &Request<'_>) -> Option<String> {
    match request.image.region().info().map(|info| &info.kind) {
        Some(FdKind::DmaBuf { .. } | FdKind::Physical) => {}
        _ => return Some("the image lies in neither a dma-buf nor physical memory".into()),
    }
    // What cannot be read says nothing.
    let known = std::fs::read_to_string("/proc/filesystems").ok()?;
    let known = known.lines().any(|line| line.split_whitespace().last() == Some("daxfs"));
    (!known).then(|| "the module daxfs is not loaded".into())
}

fn mount(request: &Request<'_>) -> anyhow::Result<Option<Mount>> {
    match &request.wanted.source.backing {
        None => request.image.mount(request.at)?,
        Some(path) => request.image.mount_split(request.at, Path::new(path))?,
    }
    Ok(None)
}
