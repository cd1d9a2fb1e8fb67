//! Handing an image to the kernel's own DAXFS.

#![forbid(unsafe_code)]

use std::path::Path;

use dmabuf::{FdKind, Mountable};

use crate::{Error, Image, Result, format};

impl Image {
    /// Has the kernel mount the image at a directory, by its own DAXFS, so that programs that know nothing of images
    /// read it as files, from the same memory. The kernel takes dma-bufs and physical ranges of format version 8.
    ///
    /// The image is checked once more, by the rules of [`OpenOptions::strict`](crate::OpenOptions::strict): the kernel
    /// checks less, and fails worse. That says nothing about what others write to the memory later, which the kernel
    /// reads again and again. [`dmabuf::unmount`] or umount(8) takes the mount away; the image stays.
    ///
    /// # Errors
    /// [`Error::NotMountable`] says what the kernel would not take; what is wrong with the image, as for opening it
    /// strictly; [`Error::Memory`] when the kernel has no DAXFS, without CAP_SYS_ADMIN, and with what the kernel
    /// answers.
    pub fn mount(&self, at: impl AsRef<Path>) -> Result<()> {
        let refuse = |why| Err(Error::NotMountable { why });
        let region = self.region();
        if self.superblock().version != format::v8::VERSION {
            return refuse("it is not of format version 8");
        }
        if self.superblock().data_is_external() {
            return refuse("what is in its files lies elsewhere, not in its memory");
        }
        let memory = match (region.fd(), region.info().map(|info| &info.kind)) {
            (Some(fd), Some(FdKind::DmaBuf { .. })) if region.offset() == 0 => Mountable::DmaBuf(fd),
            (Some(_), Some(FdKind::DmaBuf { .. })) => return refuse("it is a part of a dma-buf"),
            (_, Some(FdKind::Physical)) => {
                Mountable::Physical { address: region.offset(), len: region.len() }
            }
            _ => {
                return refuse(
                    "the kernel mounts dma-bufs and physical memory: pack it --into udmabuf or heap:NAME",
                );
            }
        };
        crate::OpenOptions::new().strict(true).open_region(region.clone())?;
        Ok(dmabuf::mount(memory, at.as_ref())?)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Error, Image, Region};

    #[test]
    fn what_the_kernel_does_not_take_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/");
        for (name, expected) in [("plain-v8", "into udmabuf"), ("everything-v5", "version 8")] {
            let bytes = std::fs::read(format!("{golden}{name}.daxfs")).unwrap();
            let image = Image::from_region(Region::from_bytes(bytes)).unwrap();
            let error = image.mount(place.path()).unwrap_err();
            assert!(matches!(error, Error::NotMountable { .. }), "{error:?}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
