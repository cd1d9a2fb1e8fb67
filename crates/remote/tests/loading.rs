//! Images from a web server: the whole, their metadata, and every way in which a server is not what it should be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Fault, Server, image, options};
use daxfs::{Image, Provenance, Region};
use daxfs_remote::{Error, Options, Progress, Remote};

fn bytes_of(fd: OwnedFd) -> Vec<u8> {
    let region = Region::from_fd(fd).unwrap();
    assert_eq!(region.provenance(), Provenance::Sealed);
    region.as_slice().unwrap().to_vec()
}

fn load(server: &Server, options: Options) -> Result<Vec<u8>, Error> {
    Remote::open(&server.location(), options)?.load().map(|loaded| bytes_of(loaded.fd))
}

fn content(bytes: &[u8]) -> daxfs::ContentHash {
    Image::from_bytes(bytes.to_vec()).unwrap().content_hash().unwrap()
}

#[test]
fn what_is_loaded_is_the_image_to_the_last_byte() {
    let bytes = image();
    let server = Server::new(bytes.clone());
    let done = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&done);
    let mut options = options();
    options.expect = Some(content(&bytes));
    options.progress = Progress::new(move |done, total| {
        assert!(done <= total, "{done} of {total}");
        told.fetch_max(done, Ordering::Relaxed);
        true
    });
    let loaded = Remote::open(&server.location(), options).unwrap().load().unwrap();
    assert_eq!((loaded.len, loaded.content_hash), (bytes.len() as u64, Some(content(&bytes))));
    assert!(bytes_of(loaded.fd) == bytes);
    assert_eq!(done.load(Ordering::Relaxed), bytes.len() as u64);
    // Each byte once, but for the one that asks for the length.
    let asked = server.asked.lock().unwrap();
    let sum: u64 = asked.iter().map(|asked| asked.range.end - asked.range.start).sum();
    assert_eq!(sum, bytes.len() as u64 + 1);
    assert!(asked.len() > 3, "{asked:?}");
    for asked in asked.iter().skip(1) {
        assert_eq!(asked.headers["if-match"], "\"tag\"");
    }
}

#[test]
fn metadata_takes_few_requests_and_no_file() {
    let bytes = image();
    let server = Server::new(bytes.clone());
    let remote = Remote::open(&server.location(), options()).unwrap();
    let image = remote.metadata().unwrap();
    let whole = Image::from_bytes(bytes.clone()).unwrap();
    assert_eq!(image.content_hash(), whole.content_hash());
    let names =
        |image: &Image| image.walk().map(|entry| (entry.path(), entry.metadata().size)).collect::<Vec<_>>();
    assert_eq!(names(&image), names(&whole));
    assert_eq!(image.entry_no_follow("/nested/link").unwrap().read_link().unwrap(), b"../large.bin");
    assert!(server.requests() <= 5, "{}", server.requests());
    let asked = server.asked.lock().unwrap();
    let sum: u64 = asked.iter().map(|asked| asked.range.end - asked.range.start).sum();
    assert!(sum < bytes.len() as u64 / 8, "{sum}");
    // An image that is expected to be another one is refused before any file is fetched.
    let other = Server::new(bytes);
    let mut options = options();
    options.expect = Some([7; 32].into());
    let error = load(&other, options).unwrap_err();
    assert!(
        matches!(&error, Error::Image { source, .. } if matches!(**source, daxfs::Error::OtherContent { .. })),
        "{error}"
    );
    assert!(other.requests() <= 5);
}

#[test]
fn faults_that_pass_are_waited_for() {
    let bytes = image();
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Cut,
        Fault::Shifted,
        Fault::Wrong,
        Fault::Stall,
    ] {
        // Not of the first requests: what they bring wrong, nothing that could be compared is known of yet.
        let server = Server::new(bytes.clone()).fault(3, 1, fault.clone());
        let mut options = options();
        // What is fetched again is not done twice.
        options.progress = Progress::new(|done, total| done <= total);
        let loaded = load(&server, options).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(loaded == bytes, "{fault:?}");
    }
}

#[test]
fn a_piece_that_is_wrong_is_fetched_again_and_nothing_before_it() {
    let bytes = image();
    let server = Server::new(bytes.clone()).fault(3, 1, Fault::Wrong);
    assert!(load(&server, options()).unwrap() == bytes);
    let asked = server.asked.lock().unwrap();
    let wrong = &asked[3].range;
    let again: Vec<_> = asked[4..].iter().filter(|asked| asked.range.end == wrong.end).collect();
    let [again] = again[..] else { panic!("{asked:?}") };
    // The piece that holds the first wrong byte begins within 1 MiB before it.
    let first = wrong.start + (wrong.end - wrong.start) / 2;
    assert!(again.range.start <= first && again.range.start + (1 << 20) > first, "{wrong:?} {again:?}");
}

#[test]
fn faults_that_stay_are_typed_errors() {
    let bytes = image();
    let ever = usize::MAX;
    type Is = fn(&Error) -> bool;
    let cases: [(usize, Fault, Is); 12] = [
        (0, Fault::Status(404), |e| matches!(e, Error::NotFound { .. })),
        (0, Fault::Status(401), |e| matches!(e, Error::Denied { .. })),
        (0, Fault::Status(403), |e| matches!(e, Error::Denied { .. })),
        (0, Fault::NoRanges, |e| matches!(e, Error::NoRanges { .. })),
        (2, Fault::NoRanges, |e| matches!(e, Error::NoRanges { .. })),
        (2, Fault::Status(412), |e| matches!(e, Error::Changed { .. })),
        (2, Fault::OtherTag, |e| matches!(e, Error::Changed { .. })),
        (2, Fault::Grown, |e| matches!(e, Error::Changed { .. })),
        (2, Fault::Shifted, |e| matches!(e, Error::WrongRange { .. })),
        (3, Fault::Wrong, |e| matches!(e, Error::WrongBytes { .. })),
        (2, Fault::Status(500), |e| matches!(e, Error::Server { again: true, .. })),
        (2, Fault::Status(400), |e| matches!(e, Error::Server { again: false, .. })),
    ];
    for (from, fault, is) in cases {
        let server = Server::new(bytes.clone()).fault(from, ever, fault.clone());
        let error = load(&server, options()).unwrap_err();
        assert!(is(&error), "{fault:?} from {from}: {error:?}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("127.0.0.1") && !text.contains("secret"), "{text}");
    }
    // Bytes that stay wrong are named.
    let server = Server::new(bytes).fault(3, ever, Fault::Wrong);
    let error = load(&server, options()).unwrap_err().to_string();
    assert!(error.contains("/large.bin are not those that the image has a hash of"), "{error}");
}

#[test]
fn a_server_that_sends_nothing_is_left() {
    let server = Server::new(image()).fault(2, usize::MAX, Fault::Stall);
    let mut options = options();
    options.patience = std::time::Duration::from_millis(200);
    options.retries = 1;
    let error = load(&server, options).unwrap_err();
    assert!(matches!(error, Error::Stalled { got: 0, .. }), "{error}");
}

#[test]
fn metadata_that_is_wrong_is_an_error_of_the_reader() {
    // The superblock, the inodes, a directory, the index.
    let bytes = image();
    let whole = Image::from_bytes(bytes.clone()).unwrap();
    let index = whole.file("/.daxfs/index").unwrap().extent().unwrap();
    for at in [0, 9, 4096 + 16, index.offset + 4, index.offset + 200] {
        let mut bytes = bytes.clone();
        bytes[usize::try_from(at).unwrap()] ^= 0xff;
        let mut options = options();
        options.expect = whole.content_hash();
        let error = load(&Server::new(bytes), options).unwrap_err();
        assert!(matches!(error, Error::Image { .. }), "{at}: {error:?}");
    }
    // A file whose bytes lie in the first request.
    let small = whole.file("/nested/7.txt").unwrap().extent().unwrap();
    let mut bytes = bytes;
    bytes[usize::try_from(small.offset).unwrap()] ^= 1;
    let error = load(&Server::new(bytes), options()).unwrap_err();
    assert!(matches!(&error, Error::WrongBytes { path, .. } if path == "/nested/7.txt"), "{error}");
    // What is no image, and what is empty or cut short.
    for bytes in
        [Vec::new(), vec![7; 5000], b"x".to_vec(), whole.region().as_slice().unwrap()[..1 << 20].to_vec()]
    {
        let len = bytes.len();
        let error = load(&Server::new(bytes), options()).unwrap_err();
        assert!(matches!(error, Error::Image { .. } | Error::Memory(_)), "{len}: {error:?}");
    }
}

#[test]
fn who_wants_it_no_more_ends_it() {
    let server = Server::new(image());
    let mut options = options();
    options.progress = Progress::new(|done, total| done < total / 2);
    assert!(matches!(load(&server, options), Err(Error::Cancelled)));
}
