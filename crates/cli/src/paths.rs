//! Walks over an image that make paths one by one: in a tree that is made to be deep, all paths together are far longer
//! than the image.

use crate::ls::sorted_children;
use daxfs::{Entry, FileType, Image, format};

/// Calls `each` with all that is no directory, outside `/.daxfs`, in bytewise order of the absolute paths.
pub fn each_in_order(image: &Image, mut each: impl FnMut(&[u8], &Entry)) {
    let mut path = Vec::new();
    let mut levels = vec![(in_order(&image.root()), 0)];
    while let Some((entries, len)) = levels.last_mut() {
        path.truncate(*len);
        let at_root = path.is_empty();
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        if at_root && entry.name() == format::index::DIR.as_bytes() {
            continue;
        }
        path.push(b'/');
        path.extend_from_slice(entry.name());
        if entry.file_type() == FileType::Directory {
            levels.push((in_order(&entry), path.len()));
        } else {
            each(&path, &entry);
        }
    }
}

/// What is in a directory is ordered among its neighbours by the slash behind its name.
fn in_order(directory: &Entry) -> std::vec::IntoIter<Entry> {
    let mut entries = sorted_children(directory);
    let is_directory = |entry: &Entry| entry.file_type() == FileType::Directory;
    // Only a name that begins with a directory's name can be out of order.
    if entries.iter().any(is_directory) {
        entries.sort_by_cached_key(|entry| {
            let slash: &[u8] = if is_directory(entry) { b"/" } else { b"" };
            [entry.name(), slash].concat()
        });
    }
    entries.into_iter()
}
