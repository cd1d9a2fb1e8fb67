//! By the kernel's EROFS, for images that were packed with its view.

use super::{Request, Way};
use crate::args::MountWay;
use daxfs::{FdKind, Image, Provenance};
use daxfs_fuse::Mount;
use nix::sys::stat::fstat;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};

pub const WAY: Way =
    Way { id: MountWay::Erofs, name: "the kernel's EROFS", has_process: false, unfit, mount };

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

/// File systems whose files are what the disks and the memory of this machine have, and not what a server says, or a
/// process of some user.
const LOCAL: [FsType; 4] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC];

/// Whether nobody can write the image's memory, or root alone: then it is root's file, on a local file system.
fn only_root_writes(image: &Image) -> bool {
    let region = image.region();
    if region.provenance() == Provenance::Sealed {
        return true;
    }
    let is_file = region.info().is_some_and(|info| matches!(info.kind, FdKind::File));
    let Some(fd) = region.fd().filter(|_| is_file) else { return false };
    fstatfs(fd).is_ok_and(|fs| LOCAL.contains(&fs.filesystem_type()))
        && fstat(fd).is_ok_and(|file| file.st_uid == 0 && file.st_mode & 0o022 == 0)
}

fn mount(request: &Request<'_>) -> anyhow::Result<Option<Mount>> {
    request.image.mount_erofs(request.at)?;
    Ok(None)
}
