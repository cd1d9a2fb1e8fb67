//! What an image holds for its users: everything but what the packer keeps in `/.daxfs`.

use daxfs::{Entry, FileType, Image, is_content};
use std::convert::Infallible;

/// Calls `each` with all that is no directory, outside `/.daxfs`, in bytewise order of the absolute paths.
pub fn each_in_order(image: &Image, mut each: impl FnMut(&[u8], &Entry)) {
    let Ok(()) = image.root().each_below(|path, entry| {
        if entry.file_type() != FileType::Directory && is_content(path) {
            each(path, entry);
        }
        Ok::<_, Infallible>(())
    });
}
