//! Handing an image to the kernel's own DAXFS.

#![forbid(unsafe_code)]

use std::path::Path;

use dmabuf::{FdKind, Mountable};

use crate::format::v8;
use crate::{Error, Image, Region, Result, Verify};

/// Pages of a backing file that the kernel tells apart.
const BACKING_PAGES: u64 = 1 << 20;

impl Image {
    /// Has the kernel mount the image at a directory, by its own DAXFS, so that programs that know nothing of images
    /// read it as files, from the same memory. The kernel takes dma-bufs and physical ranges of format version 8.
    ///
    /// The image is opened once more as this one was, and strictly ([`OpenOptions::strict`]): the kernel checks less,
    /// and fails worse. That says nothing about what others write to the memory later, which the kernel reads again
    /// and again. An image with an overlay is mounted for writing, which changes it for all; no other is. Programs do
    /// not get other rights by set-user-ID bits, and device nodes do nothing. [`dmabuf::unmount`] or umount(8) takes
    /// the mount away; the image stays.
    ///
    /// [`OpenOptions::strict`]: crate::OpenOptions::strict
    ///
    /// A split image takes [`Image::mount_split`].
    ///
    /// # Errors
    /// [`Error::NotMountable`] says what the kernel would not take; what is wrong with the image, as for opening it
    /// strictly; [`Error::BeingReplaced`] when the memory has another image by now; [`Error::Memory`] when the kernel
    /// has no DAXFS, without CAP_SYS_ADMIN, and with what the kernel answers.
    pub fn mount(&self, at: impl AsRef<Path>) -> Result<()> {
        self.mount_with(at.as_ref(), None)
    }

    /// As [`Image::mount`], for a split image whose contents are in the file `backing`. The kernel opens it by its path,
    /// reads through the image's page cache, which it writes to, and shows what is in the file then: nothing of it is
    /// kept that was checked. Images of which a file lies beyond 4 GiB of it are refused, since the kernel shows other
    /// bytes there.
    ///
    /// # Errors
    /// As for [`Image::mount`]; [`Error::NotMountable`] for an image that is not split; [`Error::OutOfBounds`] when the
    /// file is too short for the image.
    pub fn mount_split(&self, at: impl AsRef<Path>, backing: impl AsRef<Path>) -> Result<()> {
        self.mount_with(at.as_ref(), Some(backing.as_ref()))
    }

    fn mount_with(&self, at: &Path, backing: Option<&Path>) -> Result<()> {
        let refuse = |why: &str| Err(Error::NotMountable { why: why.into() });
        let region = self.region();
        if region.is_writable() {
            return refuse("it was opened privately, and the kernel does not see what was written");
        }
        let info = region.info();
        let memory = match (region.fd(), info.map(|info| &info.kind)) {
            (Some(fd), Some(FdKind::DmaBuf { .. })) => Mountable::DmaBuf(fd),
            (_, Some(FdKind::Physical)) => {
                Mountable::Physical { address: region.offset(), len: region.len() }
            }
            _ => {
                return refuse(
                    "it lies in neither a dma-buf nor physical memory; what is packed --into udmabuf or heap:NAME does, \
                     but no sealed copy of it",
                );
            }
        };
        let whole = info.map_or(0, |info| info.len);
        if matches!(memory, Mountable::DmaBuf(_)) && region.len() != whole {
            let part =
                format!("{:#x} bytes at {:#x} of a dma-buf of {whole:#x}", region.len(), region.offset());
            return refuse(&format!("it lies in {part}, and the kernel mounts only all of one"));
        }
        let (backing, contents) = match backing {
            None => (None, None),
            Some(path) => {
                // By a path that means the same to the kernel, whatever happens to links on the way.
                let named =
                    |source| dmabuf::Error::Os { op: "open", subject: path.display().to_string(), source };
                let path = path.canonicalize().map_err(named)?;
                let file = Region::open(&path)?;
                if !file.info().is_some_and(|info| info.kind == FdKind::File) {
                    return refuse(&format!("{}: the kernel reads a backing file only", path.display()));
                }
                (Some(path), Some(file))
            }
        };
        let checked = self.checked(contents)?;
        if !self.is_in_place()? {
            return Err(Error::BeingReplaced { generation: checked.generation() });
        }
        let superblock = checked.superblock();
        if superblock.version != v8::VERSION {
            return refuse(&format!("it is of format version {}, not {}", superblock.version, v8::VERSION));
        }
        match (superblock.data_is_external(), &backing) {
            (true, None) => {
                return refuse(
                    "what is in its files lies elsewhere, not in its memory; it takes a backing file",
                );
            }
            (false, Some(_)) => {
                return refuse("what is in its files lies in its memory, not in a backing file");
            }
            _ => {}
        }
        if backing.is_some() {
            let most = BACKING_PAGES * u64::from(superblock.block_size);
            for entry in checked.walk() {
                if entry.backing_end() > most {
                    let path = String::from_utf8_lossy(&entry.path()).into_owned();
                    return refuse(&format!(
                        "{path:?} lies beyond {most:#x} of the backing file, where the kernel shows other bytes"
                    ));
                }
            }
        }
        Ok(dmabuf::mount(memory, at, backing.as_deref())?)
    }

    /// The image as it is there now, opened as this one was, by the kernel's rules, with its contents in `backing` if it
    /// is split.
    fn checked(&self, backing: Option<Region>) -> Result<Image> {
        let mut options = self.options().clone().strict(true).page_size(dmabuf::page_size());
        if self.lazy().is_some() {
            // The kernel does not ask file by file.
            options = options.verify(Verify::Full);
        }
        if let Some(backing) = backing {
            options = options.backing(backing).split();
        }
        options.open_region(self.region().clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use crate::{Error, Image, OpenOptions, Region, Verify};

    /// The kernel does not ask file by file, so all are compared before it gets an image that was opened lazily.
    #[test]
    fn what_was_opened_lazily_is_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [tree, path] = ["tree", "image"].map(|name| dir.path().join(name));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("a"), "a file").unwrap();
        mkimage::Packer::new().input(&tree).plan().unwrap().write_file(&path).unwrap();
        let open = |verify| OpenOptions::new().verify(verify).open(&path).unwrap();
        open(Verify::Lazy).checked(None).unwrap();
        let at = open(Verify::Stored).file("a").unwrap().extent().unwrap().offset;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"A", at).unwrap();
        let error = open(Verify::Lazy).checked(None).unwrap_err();
        assert!(matches!(error, Error::WrongHash { .. }), "{error}");
        open(Verify::Stored).checked(None).unwrap();
    }

    #[test]
    fn what_the_kernel_does_not_take_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/plain-v8.daxfs");
        let bytes = std::fs::read(golden).unwrap();
        let file = std::fs::File::open(golden).unwrap();
        let fd = || file.as_fd().try_clone_to_owned().unwrap();
        for (region, expected) in [
            (Region::from_bytes(bytes), "neither a dma-buf nor physical"),
            (Region::from_fd(fd()).unwrap(), "neither a dma-buf nor physical"),
            (Region::from_fd_private(fd()).unwrap(), "privately"),
        ] {
            let error = Image::from_region(region).unwrap().mount(place.path()).unwrap_err();
            assert!(matches!(error, Error::NotMountable { .. }), "{error:?}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
