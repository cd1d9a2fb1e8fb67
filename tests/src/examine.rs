//! Calls every accessor of an image and checks what must hold whatever the image says.
//!
//! For damaged and hostile images: an answer may be an error, but it must come, and what is given out must lie
//! inside the memory it comes from.

use daxfs::{Entry, Error, File, FileType, Image, OpenOptions, Tensors};
use std::collections::BTreeMap;
use std::io;

/// Files longer than this are read in parts only: an overlay may claim any size.
const WHOLE: u64 = 1 << 20;

/// Whether others write to the memory meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nobody does: two reads agree.
    Still,
    /// Somebody may: only what was copied when the image was opened is certain.
    Live,
}

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Entries, the root included.
    pub entries: usize,
    /// Names of regular files.
    pub files: usize,
    /// Bytes read from them.
    pub bytes: u64,
}

/// Opens an image in both modes, and examines it.
///
/// # Panics
/// When the strict mode opens what the lenient one refuses, or they show different trees.
pub fn examine_both(open: impl Fn(OpenOptions) -> daxfs::Result<Image>) {
    let (lenient, strict) = (open(OpenOptions::new()), open(OpenOptions::new().strict(true)));
    if let Ok(image) = &strict {
        let other = lenient.as_ref().expect("what the strict mode opens, the lenient one opens too");
        assert_eq!(examine(image), examine(other), "both modes show the same tree");
    } else if let Ok(image) = &lenient {
        examine(image);
    }
}

/// Uses everything that `image` offers; nobody writes to its memory.
///
/// # Panics
/// When a promise of the library does not hold for this image.
pub fn examine(image: &Image) -> Seen {
    examine_in(image, Memory::Still)
}

/// Uses everything that `image` offers while others may write to its memory.
///
/// # Panics
/// When a promise of the library does not hold for this image.
pub fn examine_live(image: &Image) -> Seen {
    examine_in(image, Memory::Live)
}

fn examine_in(image: &Image, memory: Memory) -> Seen {
    let mut seen = Seen::default();
    assert!(format!("{image:?}").len() < 4096, "Debug of an image is a summary");
    let _ = (image.superblock(), image.view_kind(), image.content_hash());
    let _ = image.check_erofs();
    let mut inodes = BTreeMap::new();
    for entry in image.walk() {
        seen.entries += 1;
        check_entry(image, &entry);
        let known = inodes.entry(entry.metadata().ino).or_insert(*entry.metadata());
        assert_eq!(known.size, entry.metadata().size, "two names of one inode agree");
        if entry.file_type() == FileType::File {
            seen.files += 1;
            seen.bytes += check_file(&entry.file().unwrap(), memory);
        }
    }
    assert_eq!(seen.entries, image.len(), "walk visits every entry once");
    assert!(image.entry("/no such name/at all").unwrap_err().is_not_found());
    if let Ok(tensors) = image.tensors() {
        check_tensors(&tensors);
    }
    let _ = image.tensors_at("/");
    let _ = image.index().map(|index| index.is_some());
    seen
}

fn check_entry(image: &Image, entry: &Entry) {
    let path = entry.path();
    let found = image.entry_no_follow(&path).unwrap();
    assert_eq!(found.path(), path);
    assert_eq!(found.metadata().ino, entry.metadata().ino);
    let name = entry.name();
    match entry.parent() {
        None => assert!(name.is_empty() && path == b"/"),
        Some(parent) => {
            assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            assert_eq!(parent.file_type(), FileType::Directory);
            assert_eq!(parent.child(name).unwrap().path(), path);
        }
    }
    assert!(entry.child(b"no such name").is_none());
    let children = entry.children().count();
    match entry.file_type() {
        FileType::Directory => {
            assert!(matches!(entry.file().unwrap_err(), Error::NotAFile { .. }));
        }
        other => {
            assert_eq!(children, 0);
            let link = entry.read_link();
            assert_eq!(link.is_ok(), other == FileType::Symlink, "{link:?}");
            if let Ok(target) = link {
                assert!(!target.is_empty() && !target.contains(&0));
                // Where it leads is the image's affair; that the walk ends is ours.
                let _ = image.entry(&path);
                let _ = image.file(&path);
            }
            assert_eq!(entry.file().is_ok(), other == FileType::File);
        }
    }
}

fn check_file(file: &File, memory: Memory) -> u64 {
    let len = file.len();
    assert_eq!(len, file.entry().metadata().size);
    assert_eq!(file.is_empty(), len == 0);
    assert_eq!(file.path(), file.entry().path());
    if let Some(extent) = file.extent() {
        let end = extent.offset.checked_add(extent.len).unwrap();
        assert!(end <= file.region().len(), "{extent:?} lies inside its region");
        assert_eq!(extent.len, len);
    }
    let view = file.bytes();
    match &view {
        Ok(view) => assert_eq!(view.len() as u64, len),
        Err(Error::NotContiguous { .. } | Error::NoContents { .. }) => {}
        Err(error) => panic!("bytes(): {error}"),
    }
    let mut part = [0; 100];
    assert!(!matches!(file.read_at(u64::MAX, &mut part), Ok(1..)), "nothing lies behind the end");
    assert!(!matches!(file.read_at(len, &mut part), Ok(1..)), "nothing lies behind the end");
    for offset in [0, len / 2, len.saturating_sub(1)] {
        if let Ok(count) = file.read_at(offset, &mut part) {
            assert!(count as u64 <= len - offset.min(len));
        }
    }
    let _ = file.tensors().map(|tensors| check_tensors(&tensors));
    if len > WHOLE {
        return 0;
    }
    match file.to_vec() {
        Ok(bytes) => {
            assert_eq!(bytes.len() as u64, len);
            assert_eq!(file.copy_to(&mut io::sink()).unwrap(), len);
            let hash = file.hash().unwrap();
            if memory == Memory::Live {
                assert!(
                    file.is_empty() || file.as_slice().is_err(),
                    "no slice of memory that others may write"
                );
                return len;
            }
            assert_eq!(hash, *blake3::hash(&bytes).as_bytes());
            if let Ok(view) = view {
                assert_eq!(view.to_vec(), bytes);
            }
            if let Ok(slice) = file.as_slice() {
                assert_eq!(slice, bytes);
            }
            len
        }
        Err(Error::NoContents { .. }) => {
            assert!(file.hash().is_err() && file.copy_to(&mut io::sink()).is_err());
            0
        }
        Err(error) => panic!("to_vec(): {error}"),
    }
}

/// Names come in the order of their tensors, and a tensor whose record holds has the name that is listed.
fn check_names(tensors: &Tensors) {
    let names: Vec<_> = tensors.names().into_iter().collect();
    let all: Vec<_> = tensors.iter().collect();
    for (name, tensor) in names.iter().zip(&all) {
        match (name, tensor) {
            (Ok(name), Ok(tensor)) => assert_eq!(name, tensor.name()),
            (Err(error), Ok(tensor)) => {
                // The names together are too long; a wrong one is not counted there, and ends that later.
                assert!(error.to_string().contains("bytes of their own"), "{}: {error}", tensor.name());
            }
            (_, Err(_)) => {}
        }
    }
}

fn check_tensors(tensors: &Tensors) {
    check_names(tensors);
    let _ = (tensors.metadata(), tensors.shards().map(|shards| shards.len()));
    for tensor in tensors.iter().flatten() {
        let end = tensor.offset().checked_add(tensor.nbytes()).unwrap();
        assert!(end <= tensor.file().len());
        assert!(tensor.alignment().is_power_of_two());
        if let Ok(view) = tensor.bytes() {
            assert_eq!(view.len() as u64, tensor.nbytes());
        }
        let _ = tensor.as_slice();
    }
    assert!(tensors.get("no such tensor").is_err());
}
