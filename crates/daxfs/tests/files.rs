//! What a file gives away, of an image in each kind of memory, with its contents in one extent, in pieces, in a backing
//! file, or nowhere.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/src/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod forge;
#[path = "../../../tests/src/overlay.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod overlay;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use daxfs::{Error, File, Image, OpenOptions, Provenance, Region};
use dmabuf::SharedBytesMut;
use mkimage::Packer;
use overlay::Overlay;

/// Longer than what is copied at a time (256 KiB), and no whole number of pages.
const LEN: usize = (600 << 10) + 123;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

/// A folder with a long file, an empty one, and a short one with two names.
fn tree(root: &Path) {
    fs::create_dir(root).unwrap();
    fs::write(root.join("long"), pattern(LEN)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("short"), b"short").unwrap();
    fs::hard_link(root.join("short"), root.join("other")).unwrap();
}

/// The same image three times: in memory that others can write, in memory that nobody can write, and with the contents in
/// a backing file.
fn images(dir: &Path) -> [Image; 3] {
    let root = dir.join("tree");
    tree(&root);
    let packer = || Packer::new().input(&root);
    packer().plan().unwrap().write_file(dir.join("image")).unwrap();
    packer().split(Some(dir.join("contents"))).plan().unwrap().write_file(dir.join("split")).unwrap();
    let region = Region::open(dir.join("image")).unwrap();
    let sealed = Image::from_region(region.sealed_copy().unwrap()).unwrap();
    let backing = Region::open(dir.join("contents")).unwrap();
    let split = OpenOptions::new().backing(backing).open(dir.join("split")).unwrap();
    [Image::from_region(region).unwrap(), sealed, split]
}

/// Everything that `file` gives away, against what it has.
fn check(file: &File, wanted: &[u8]) {
    let len = wanted.len() as u64;
    assert_eq!((file.len(), file.is_empty()), (len, wanted.is_empty()));
    assert_eq!(file.to_vec().unwrap(), wanted);
    assert_eq!(file.hash().unwrap(), *blake3::hash(wanted).as_bytes());
    let mut written = Vec::new();
    assert_eq!(file.copy_to(&mut written).unwrap(), len);
    assert!(written == wanted);
    let mut target = tempfile::tempfile().unwrap();
    assert_eq!(file.write_to(target.as_fd()).unwrap(), len);
    target.rewind().unwrap();
    let mut written = Vec::new();
    target.read_to_end(&mut written).unwrap();
    assert!(written == wanted);

    for (offset, asked) in
        [(0, 1), (0, wanted.len() + 10), (1, 5000), (wanted.len() / 2, wanted.len()), (4095, 2)]
    {
        let mut buffer = vec![0xee; asked];
        let left = wanted.get(offset..).unwrap_or_default();
        let count = left.len().min(asked);
        assert_eq!(file.read_at(offset as u64, &mut buffer).unwrap(), count, "{offset} {asked}");
        assert!(buffer[..count] == left[..count] && buffer[count..].iter().all(|byte| *byte == 0xee));
        let mut shared = SharedBytesMut::from_slice(&mut buffer);
        assert_eq!(file.read_into(offset as u64, &mut shared).unwrap(), count);
    }
    for offset in [len, len + 1, u64::MAX] {
        assert_eq!(file.read_at(offset, &mut [1; 8]).unwrap(), 0);
    }
    assert_eq!(file.read_at(0, &mut []).unwrap(), 0);
    check_reader(file, wanted);
}

/// What `file` gives as a stream.
fn check_reader(file: &File, wanted: &[u8]) {
    let len = wanted.len() as u64;
    let mut reader = file.reader();
    let mut copied = Vec::new();
    assert_eq!(std::io::copy(&mut reader, &mut copied).unwrap(), len);
    assert!(copied == wanted);
    assert_eq!((reader.stream_position().unwrap(), reader.read(&mut [1; 8]).unwrap()), (len, 0));

    let half = len / 2;
    assert_eq!(reader.seek(SeekFrom::Start(half)).unwrap(), half);
    let mut rest = Vec::new();
    assert_eq!(reader.read_to_end(&mut rest).unwrap() as u64, len - half);
    assert!(rest == wanted[wanted.len() / 2..]);
    let last = len.min(3);
    assert_eq!(reader.seek(SeekFrom::End(-last.cast_signed())).unwrap(), len - last);
    let mut other = reader.clone();
    let mut bytes = [0; 3];
    let bytes = &mut bytes[..len.min(3) as usize];
    other.read_exact(bytes).unwrap();
    assert!(wanted.ends_with(bytes));
    assert_eq!(reader.stream_position().unwrap(), len - last, "a clone has a position of its own");
    assert_eq!(reader.seek(SeekFrom::Current(7)).unwrap(), len - last + 7);
    assert_eq!(reader.read(&mut [1; 8]).unwrap(), 0, "behind the end");

    let before = reader.seek(SeekFrom::Start(1)).unwrap();
    for to in [SeekFrom::Current(-2), SeekFrom::End(-1 - len.cast_signed()), SeekFrom::Current(i64::MIN)] {
        assert_eq!(reader.seek(to).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    assert_eq!(reader.stream_position().unwrap(), before);
    reader.seek(SeekFrom::Start(u64::MAX)).unwrap();
    assert_eq!(reader.read(&mut [1; 8]).unwrap(), 0);
    assert!(reader.seek(SeekFrom::Current(1)).is_err());
}

#[test]
fn files_in_one_extent() {
    let dir = tempfile::tempdir().unwrap();
    let [shared, sealed, split] = images(dir.path());
    for image in [&shared, &sealed, &split] {
        let file = image.file("long").unwrap();
        check(&file, &pattern(LEN));
        check(&image.file("empty").unwrap(), b"");
        check(&image.file("short").unwrap(), b"short");
        assert_eq!(
            (file.path(), file.piece_count(), file.entry().name()),
            (b"/long".to_vec(), 1, &b"long"[..])
        );
        let empty = image.file("empty").unwrap().extent().unwrap();
        assert_eq!((empty.offset, empty.len), (0, 0));
        let [short, other] = ["short", "other"].map(|name| image.file(name).unwrap());
        assert_eq!((short.ino(), short.extent()), (other.ino(), other.extent()));
        assert_ne!(short.ino(), file.ino());

        let extent = file.extent().unwrap();
        assert_eq!(extent.len, LEN as u64);
        assert_eq!(file.region().len(), image.backing().unwrap_or(image.region()).len());
        let there = file.region().view().get(extent.offset, extent.len).unwrap();
        assert!(there.to_vec() == pattern(LEN) && file.bytes().unwrap().to_vec() == pattern(LEN));
        assert_eq!(file.range(5, 7).unwrap().to_vec(), pattern(LEN)[5..12]);
        let transfer = file.transfer().unwrap();
        assert!(transfer.is_some());

        let end = LEN as u64;
        assert!(file.range(end, 0).unwrap().is_empty());
        for (offset, len, wanted) in
            [(0, end + 1, 0..end + 1), (end, 1, end..end + 1), (1, u64::MAX, 1..u64::MAX)]
        {
            for error in [file.range(offset, len).unwrap_err(), file.range_as_slice(offset, len).unwrap_err()]
            {
                match error {
                    Error::OutsideFile { path, range, len } => {
                        assert_eq!((path, range, len), (b"/long".to_vec(), wanted.clone(), end));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let shown = format!("{file:?}");
        assert!(shown.contains("/long") && shown.contains(&format!("len: {LEN}")), "{shown}");
        assert!(shown.contains(&format!("offset: {}", extent.offset)), "{shown}");
    }
    assert!(split.file("long").unwrap().region().len() != split.region().len());
    // Slices are for what nobody can write.
    let file = sealed.file("long").unwrap();
    assert!(file.as_slice().unwrap() == pattern(LEN));
    assert_eq!(file.range_as_slice(300_000, 9).unwrap(), &pattern(LEN)[300_000..300_009]);
    for image in [&shared, &split] {
        let file = image.file("long").unwrap();
        assert!(matches!(file.as_slice(), Err(Error::NotImmutable(Provenance::Shared))));
        assert!(matches!(file.range_as_slice(0, 1), Err(Error::NotImmutable(Provenance::Shared))));
    }
}

/// Errors of whoever is written to.
#[test]
fn a_writer_that_fails_ends_the_writing() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::other("full"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for image in images(dir.path()) {
        let error = image.file("long").unwrap().copy_to(&mut Full(300_000)).unwrap_err();
        assert!(matches!(&error, Error::Write(source) if source.to_string() == "full"), "{error:?}");
        let closed = fs::File::open("/dev/null").unwrap();
        assert!(matches!(image.file("long").unwrap().write_to(closed.as_fd()), Err(Error::Write(_))));
    }
}

/// A file of which some pages were changed after packing, and some are only there as a length; what was not changed lies in
/// the image, or in a backing file.
#[test]
fn files_in_pieces() {
    for is_split in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let [root, path, contents] = ["tree", "image", "contents"].map(|name| dir.path().join(name));
        tree(&root);
        let packer = Packer::new().input(root.join("long")).plain(true);
        packer.split(is_split.then(|| contents.clone())).plan().unwrap().write_file(&path).unwrap();
        let mut options = OpenOptions::new();
        if is_split {
            options = options.backing(Region::open(&contents).unwrap());
        }
        let ino = Image::open(&path).unwrap().file("long").unwrap().ino();
        pieces(fs::read(&path).unwrap(), ino, &options);
    }
}

/// Changes a file of an image, and checks what it has then.
fn pieces(mut bytes: Vec<u8>, ino: u64, options: &OpenOptions) {
    let mut overlay = Overlay::new(16, 8);
    // 3 pages longer than the base has it.
    let len = LEN + 3 * 4096;
    overlay.inode(ino, 0o100_644, len as u64, 1);
    overlay.page(ino, 0, &[1; 4096]);
    overlay.page(ino, 70, &[2; 4096]);
    overlay.page(ino, 71, &[3; 4096]);
    let last = (len / 4096) as u64;
    overlay.page(ino, last, &[4; 4096]);
    overlay.attach(&mut bytes);
    let mut wanted = pattern(LEN);
    wanted.resize(len, 0);
    wanted[..4096].fill(1);
    wanted[70 * 4096..71 * 4096].fill(2);
    wanted[71 * 4096..72 * 4096].fill(3);
    wanted[len / 4096 * 4096..].fill(4);
    let image = options.open_region(Region::from_bytes(bytes)).unwrap();
    let file = image.file("long").unwrap();
    check(&file, &wanted);
    for offset in [4095, 4096, 70 * 4096 - 1, 70 * 4096 + 5, 71 * 4096 - 1, LEN - 1, LEN, len - 1] {
        let mut buffer = vec![0; 9000];
        let count = file.read_at(offset as u64, &mut buffer).unwrap();
        assert_eq!(buffer[..count], wanted[offset..len.min(offset + 9000)], "{offset}");
    }
    assert!(file.piece_count() > 4 && file.extent().is_none() && file.transfer().unwrap().is_none());
    for error in [file.bytes().unwrap_err(), file.as_slice().unwrap_err(), file.range(0, 1).unwrap_err()] {
        match error {
            Error::NotContiguous { path, pieces } => {
                assert_eq!((path, pieces), (b"/long".to_vec(), file.piece_count()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(file.range_as_slice(0, 1), Err(Error::NotContiguous { .. })));
}

/// A split image of which nobody brought the backing file.
#[test]
fn files_whose_contents_are_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    let image = Image::open(dir.path().join("split")).unwrap();
    let file = image.file("long").unwrap();
    assert_eq!((file.len(), file.extent(), file.piece_count()), (LEN as u64, None, 1));
    let is_elsewhere = |error: Error| matches!(error, Error::NoContents { path, .. } if path == b"/long");
    assert!(is_elsewhere(file.bytes().unwrap_err()) && is_elsewhere(file.to_vec().unwrap_err()));
    assert!(is_elsewhere(file.transfer().map(drop).unwrap_err()));
    assert!(is_elsewhere(file.write_to(tempfile::tempfile().unwrap().as_fd()).unwrap_err()));
    assert!(
        is_elsewhere(file.copy_to(&mut Vec::new()).unwrap_err()) && is_elsewhere(file.hash().unwrap_err())
    );
    let error = file.reader().read(&mut [0; 8]).unwrap_err();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    assert!(matches!(inner, Some(Error::NoContents { path, .. }) if path == b"/long"), "{error:?}");
    assert_eq!(error.to_string(), file.to_vec().unwrap_err().to_string());
}
