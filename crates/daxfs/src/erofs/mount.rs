//! Handing an image to the kernel's EROFS.

use std::path::Path;

use dmabuf::{ErofsMount, FdKind};

use crate::error::{Error, Result};
use crate::{Image, Verify};

/// Bytes with the superblocks and the record of generations.
const FIRST_BLOCK: usize = 4096;

impl Image {
    /// Has the kernel mount the image at a directory, by its EROFS: the view that the packer made, after it was compared
    /// with the image's own tree ([`Image::check_erofs`]). For images in files and memfds. What is read comes into the
    /// page cache, once for all mounts of the image; one on persistent memory is mounted in place, by mount(8) with
    /// `dax=always`.
    ///
    /// Programs do not get other rights by set-user-ID bits and capabilities, and device nodes do nothing.
    /// [`dmabuf::unmount`] or umount(8) takes the mount away; the image stays.
    ///
    /// # Errors
    /// [`Error::NotMountable`] for an image without a view, or in other memory; [`Error::ErofsView`] for a wrong view;
    /// [`Error::BeingReplaced`] when the memory has another image by now; [`Error::Memory`] when the kernel has no EROFS,
    /// without CAP_SYS_ADMIN, and with what the kernel answers.
    pub fn mount_erofs(&self, at: impl AsRef<Path>) -> Result<ErofsMount> {
        if let Some(why) = self.erofs_obstacle()? {
            return Err(Error::NotMountable { why });
        }
        if self.lazy().is_some() {
            // The kernel does not ask file by file.
            self.options().clone().verify(Verify::Full).open_region(self.region().clone())?;
        }
        self.check_erofs()?;
        if !self.is_in_place()? {
            return Err(Error::BeingReplaced { generation: self.generation() });
        }
        let region = self.region();
        let Some(fd) = region.fd() else {
            return Err(Error::NotMountable { why: "it has no descriptor".to_owned() });
        };
        Ok(dmabuf::mount_erofs(fd, region.offset(), region.len(), self.state()?, at.as_ref())?)
    }

    /// A number for what the image's memory has now. Whoever changes an image in place changes its first block: a
    /// generation, or another superblock.
    fn state(&self) -> Result<u64> {
        let view = self.region().view();
        let mut block = [0; FIRST_BLOCK];
        let len = FIRST_BLOCK.min(view.len());
        view.read_at(0, &mut block[..len])?;
        let mut number = [0; 8];
        number.copy_from_slice(&blake3::hash(&block).as_bytes()[..8]);
        Ok(u64::from_le_bytes(number))
    }

    /// Why the kernel's EROFS cannot mount the image, as far as that is up to the image and its memory.
    ///
    /// # Errors
    /// [`Error::ErofsView`] for half a view.
    pub fn erofs_obstacle(&self) -> Result<Option<String>> {
        let region = self.region();
        let (block, page) = (self.superblock().block_size, dmabuf::page_size());
        Ok(match region.info().map(|info| &info.kind) {
            _ if !self.has_erofs()? => Some("it has no EROFS view; pack it with --erofs".to_owned()),
            _ if u64::from(block) > page => Some(format!(
                "its blocks have {block} bytes, and EROFS has none larger than a page, here {page}"
            )),
            _ if region.is_writable() => {
                Some("it was opened privately, and the kernel does not see what was written".to_owned())
            }
            Some(FdKind::File | FdKind::Memfd { .. }) => None,
            _ => Some(
                "it lies in neither a file nor a memfd, of which the kernel could make a disk".to_owned(),
            ),
        })
    }
}
