//! By the kernel's EROFS, for images that were packed with its view.

use super::{Request, Way};
use crate::args::MountWay;
use daxfs::{FdKind, Image, Provenance};
use daxfs_fuse::Mount;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

pub const WAY: Way =
    Way { id: MountWay::Erofs, name: "the kernel's EROFS", has_options: false, unfit, mount };

fn unfit(request: &Request<'_>) -> Option<String> {
    match request.image.erofs_obstacle() {
        Ok(Some(why)) => return Some(why),
        // Half a view is an error of whoever mounts it by EROFS; other ways do not read it.
        Err(error) => return Some(error.to_string()),
        Ok(None) => {}
    }
    if let Err(error) = dmabuf::has_file_system("erofs") {
        return Some(error.to_string());
    }
    (!only_root_writes(request.image)).then(|| {
        "others than root can write its memory, which kernels believe (--as erofs trusts them)".into()
    })
}

/// Whether nobody can write the image's memory, or root alone.
fn only_root_writes(image: &Image) -> bool {
    let region = image.region();
    if region.provenance() == Provenance::Sealed {
        return true;
    }
    let is_file = region.info().is_some_and(|info| matches!(info.kind, FdKind::File));
    let Some(fd) = region.fd().filter(|_| is_file) else { return false };
    let file = fd.as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|file| file.uid() == 0 && file.mode() & 0o022 == 0)
}

fn mount(request: &Request<'_>) -> anyhow::Result<Option<Mount>> {
    request.image.mount_erofs(request.at)?;
    Ok(None)
}
