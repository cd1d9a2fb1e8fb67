//! By FUSE: on every kernel, from every source.

use super::{Request, Way};
use crate::args::MountWay;
use daxfs_fuse::Mount;

pub const WAY: Way = Way { id: MountWay::Fuse, name: "FUSE", has_process: true, unfit: |_| None, mount };

fn mount(request: &Request<'_>) -> anyhow::Result<Option<Mount>> {
    let mut options = request.wanted.mount.clone();
    if options.source.is_empty() {
        request.name.clone_into(&mut options.source);
    }
    Ok(Some(Mount::new(request.image.clone(), request.at, &options)?))
}
