//! Files whose bytes are others than their hashes, in images that the packer made.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

// The packer depends on the crate that is built without its tests, which is another one for the compiler.
use mkimage::Packer;

use super::*;
use crate::{Error, OpenOptions, Provenance, Region};

struct Packed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    content: crate::ContentHash,
}

impl Packed {
    fn new(files: &[(&str, Vec<u8>)], dedupe: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for (name, bytes) in files {
            let path = tree.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let path = dir.path().join("image.daxfs");
        Packer::new().input(&tree).dedupe(dedupe).plan().unwrap().write_file(&path).unwrap();
        let content = Image::open(&path).unwrap().content_hash().unwrap();
        Self { _dir: dir, path, content }
    }

    /// Changes a byte of a file, and no hash.
    fn forge(&self, file: &str, at: u64) {
        let start = Image::open(&self.path).unwrap().file(file).unwrap().extent().unwrap().offset;
        let image = fs::OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let mut byte = [0];
        image.read_exact_at(&mut byte, start + at).unwrap();
        image.write_all_at(&[byte[0] ^ 1], start + at).unwrap();
    }

    fn options(&self) -> OpenOptions {
        OpenOptions::new().expect(self.content)
    }

    /// A name that is wrong, or nothing.
    fn refused(&self, options: &OpenOptions) -> Option<String> {
        match options.open(&self.path) {
            Ok(_) => None,
            Err(Error::WrongHash { path, expected, found }) => {
                assert_ne!(expected, found);
                Some(String::from_utf8(path).unwrap())
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn three() -> Vec<(&'static str, Vec<u8>)> {
    vec![("config.json", b"{}".to_vec()), ("empty", Vec::new()), ("sub/weights", pattern(3 << 20))]
}

#[test]
fn pieces_give_the_hash_of_the_whole() {
    let piece = usize::try_from(PIECE).unwrap();
    let lengths = [0, 1, 1024, piece - 1, piece, piece + 1, 2 * piece, 3 * piece, 5 * piece + 77];
    let names: Vec<String> = lengths.iter().map(ToString::to_string).collect();
    let files: Vec<_> = names.iter().zip(lengths).map(|(name, len)| (name.as_str(), pattern(len))).collect();
    let packed = Packed::new(&files, false);
    for sealed in [false, true] {
        let image = OpenOptions::new().sealed_copy(sealed).open(&packed.path).unwrap();
        let opened: Vec<File> = names.iter().map(|name| image.file(name).unwrap()).collect();
        let found = hash_files(&opened, &|_| Ok(())).unwrap();
        for (found, (_, bytes)) in found.iter().zip(&files) {
            assert_eq!(*found, *blake3::hash(bytes).as_bytes(), "{} {sealed}", bytes.len());
        }
    }
}

#[test]
fn a_forged_file_is_refused_by_default_and_by_full() {
    let packed = Packed::new(&three(), false);
    assert_eq!(packed.refused(&packed.options()), None);
    packed.forge("sub/weights", (3 << 20) - 1);
    assert_eq!(
        Image::open(&packed.path).unwrap().content_hash(),
        Some(packed.content),
        "it says so of itself"
    );
    let wrong = Some("/sub/weights".to_owned());
    assert_eq!(packed.refused(&packed.options()), wrong);
    assert_eq!(packed.refused(&packed.options().sealed_copy(true)), wrong);
    assert_eq!(packed.refused(&packed.options().private(true)), wrong);
    assert_eq!(packed.refused(&OpenOptions::new().verify(Verify::Full)), wrong, "without expect, too");
    // Nobody can write memory that is sealed, and nobody has hashed it yet.
    let sealed = Region::open(&packed.path).unwrap().sealed_copy().unwrap();
    assert_eq!(sealed.provenance(), Provenance::Sealed);
    assert!(matches!(packed.options().open_region(sealed), Err(Error::WrongHash { .. })));
    assert_eq!(packed.refused(&packed.options().verify(Verify::Stored)), None);
    assert_eq!(packed.refused(&OpenOptions::new()), None);
}

/// A sealed copy has all that its files are made of.
#[test]
fn the_backing_file_of_a_split_image_is_copied_too() {
    let dir = tempfile::tempdir().unwrap();
    let [tree, path, contents] = ["tree", "image", "contents"].map(|name| dir.path().join(name));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("weights"), pattern(100_000)).unwrap();
    Packer::new().input(&tree).split(Some(contents.clone())).plan().unwrap().write_file(&path).unwrap();
    let open = |sealed| {
        let backing = Region::open(&contents).unwrap();
        OpenOptions::new().sealed_copy(sealed).backing(backing).open(&path).unwrap()
    };
    let (shared, sealed) = (open(false), open(true));
    assert_eq!(sealed.backing().unwrap().provenance(), Provenance::Sealed);
    let start = shared.file("weights").unwrap().extent().unwrap().offset;
    fs::OpenOptions::new().write(true).open(&contents).unwrap().write_all_at(b"forged", start).unwrap();
    assert_eq!(shared.file("weights").unwrap().to_vec().unwrap()[..6], *b"forged");
    assert_eq!(sealed.file("weights").unwrap().to_vec().unwrap(), pattern(100_000));
}

#[test]
fn lazy_compares_what_is_used() {
    let packed = Packed::new(&three(), false);
    packed.forge("sub/weights", 5);
    let image = packed.options().verify(Verify::Lazy).open(&packed.path).unwrap();
    assert_eq!(image.file("config.json").unwrap().to_vec().unwrap(), b"{}");
    assert!(image.file("empty").unwrap().bytes().unwrap().is_empty());
    let file = image.file("sub/weights").unwrap();
    let is_wrong = |result: Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::WrongHash { path, .. } if path == b"/sub/weights"), "{error}");
    };
    for _ in 0..2 {
        is_wrong(file.check());
        is_wrong(file.bytes().map(drop));
        is_wrong(file.range(0, 1).map(drop));
        is_wrong(file.read_at(0, &mut [0]).map(drop));
        is_wrong(file.to_vec().map(drop));
        is_wrong(file.copy_to(&mut Vec::new()).map(drop));
        is_wrong(file.write_to(tempfile::tempfile().unwrap()).map(drop));
        is_wrong(file.transfer().map(drop));
        is_wrong(file.original().unwrap().read_at(0, &mut [0]).map(drop));
        is_wrong(image.check_files());
    }
    assert_ne!(file.hash().unwrap(), [0; 32], "what is computed now is compared by who asks");
    // The index has no hash of itself, and is right already.
    image.file(crate::format::index::PATH).unwrap().bytes().unwrap();

    let sealed = packed.options().verify(Verify::Lazy).sealed_copy(true).open(&packed.path).unwrap();
    let file = sealed.file("sub/weights").unwrap();
    is_wrong(file.as_slice().map(drop));
    is_wrong(file.range_as_slice(0, 1).map(drop));
}

#[test]
fn lazy_looks_once() {
    let packed = Packed::new(&three(), false);
    let image = OpenOptions::new().verify(Verify::Lazy).open(&packed.path).unwrap();
    let file = image.file("sub/weights").unwrap();
    file.check().unwrap();
    // What is written afterwards is not noticed, as is said.
    packed.forge("sub/weights", 5);
    file.bytes().unwrap();
    file.check().unwrap();
    image.check_files().unwrap();
}

#[test]
fn threads_that_come_together_get_one_answer() {
    let packed = Packed::new(&[("a", pattern(9 << 20)), ("b", pattern(9 << 20)), ("c", pattern(77))], true);
    for forged in [false, true] {
        if forged {
            packed.forge("a", 8 << 20);
        }
        let image = packed.options().verify(Verify::Lazy).open(&packed.path).unwrap();
        let places = ["a", "b"].map(|name| image.file(name).unwrap().extent().unwrap().offset);
        assert_eq!(places[0], places[1], "stored once");
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "a", "b", "c"] {
                let image = &image;
                scope.spawn(move || {
                    let found = image.file(name).unwrap().bytes().map(drop);
                    assert_eq!(found.is_err(), forged && name != "c", "{name}");
                });
            }
        });
        let lazy = image.lazy().unwrap();
        assert_eq!(lazy.computed.lock().unwrap().len(), 2, "what is stored once is hashed once");
    }
}

#[test]
fn progress_ends_with_all_and_can_end_it() {
    let packed = Packed::new(&three(), false);
    let most = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&most);
    let total = (3 << 20) + 2;
    let options = packed.options().progress(move |done, all| {
        assert_eq!(all, total);
        seen.fetch_max(done, Ordering::Relaxed);
        true
    });
    options.open(&packed.path).unwrap();
    assert_eq!(most.load(Ordering::Relaxed), total);
    let cancelled = packed.options().progress(|_, _| false).open(&packed.path);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    packed
        .options()
        .verify(Verify::Stored)
        .progress(|_, _| panic!("nothing is hashed"))
        .open(&packed.path)
        .unwrap();
}

#[test]
fn what_has_no_hashes_cannot_be_compared() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    fs::write(dir.path().join("tree/a"), "a").unwrap();
    let path = dir.path().join("image.daxfs");
    Packer::new().input(dir.path().join("tree")).plain(true).plan().unwrap().write_file(&path).unwrap();
    for verify in [Verify::Full, Verify::Lazy] {
        let error = OpenOptions::new().verify(verify).open(&path).unwrap_err();
        assert!(matches!(error, Error::NoHashes { verify: found } if found == verify), "{error}");
        assert!(error.to_string().contains(&format!("verify {verify}")), "{error}");
    }
    OpenOptions::new().verify(Verify::Stored).open(&path).unwrap();
}

/// Tables that are as long as there are files come out of the budget.
#[test]
fn what_is_compared_with_is_charged() {
    let names: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.clone().into_bytes())).collect();
    let packed = Packed::new(&files, false);
    let least = |options: &dyn Fn() -> OpenOptions| {
        let (mut too_few, mut enough) = (0, 64 << 20);
        while enough - too_few > 1 {
            let middle = u64::midpoint(too_few, enough);
            match options().max_metadata(middle).open(&packed.path) {
                Ok(_) => enough = middle,
                Err(Error::MetadataLimit { .. }) => too_few = middle,
                Err(error) => panic!("{error}"),
            }
        }
        enough
    };
    let stored = least(&|| OpenOptions::new());
    let stated = least(&|| packed.options().verify(Verify::Stored));
    let full = least(&|| packed.options());
    assert!(stated >= stored + 500 * (8 + 32), "{stored} {stated}");
    assert!(full >= stated + 500 * 16, "{stated} {full}");
}

/// A signature in a file is read again when the image is: that of the image before is not one of the new image.
#[test]
fn what_is_refreshed_has_its_own_signature() {
    use crate::signature::{PublicKeys, beside};
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/minisign/minisign");
    let keys = PublicKeys::read(format!("{tests}.pub").as_ref()).unwrap();
    let signer = mkimage::Signer::open(format!("{tests}.key").as_ref(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [tree, path] = ["tree", "image"].map(|name| dir.path().join(name));
    fs::create_dir(&tree).unwrap();
    let pack = |text: &str| {
        fs::write(tree.join("a"), text).unwrap();
        Packer::new().input(&tree).plan().unwrap().write_file(&path).unwrap();
        let content = Image::open(&path).unwrap().content_hash().unwrap();
        signer.write(&content, &path, false).unwrap();
    };
    pack("old");
    let text = fs::read_to_string(beside(&path)).unwrap();
    let options = OpenOptions::new();
    let given = options.clone().signed(keys.clone(), Some(text)).open(&path).unwrap();
    let found = [
        options.clone().signed_beside(keys.clone(), &path).open(&path).unwrap(),
        options.clone().signed_in(keys.clone(), beside(&path)).open(&path).unwrap(),
    ];
    pack("new");
    assert!(matches!(given.refresh(), Err(Error::Signature(_))));
    for image in found {
        let new = image.refresh().unwrap().unwrap();
        assert_eq!(new.file("a").unwrap().to_vec().unwrap(), b"new");
    }
    fs::remove_file(beside(&path)).unwrap();
    let missing = options.signed_beside(keys, &path).open(&path).unwrap_err();
    assert!(missing.to_string().contains("no signature"), "{missing}");
}

#[test]
fn names() {
    for (name, verify) in Verify::NAMES {
        assert_eq!((name.parse(), verify.to_string().as_str()), (Ok(verify), name));
    }
    assert!("some".parse::<Verify>().unwrap_err().contains("full, lazy and stored"));
}

/// What others left on a device is compared where the host's bytes are.
#[test]
fn copies_on_devices_are_compared_where_the_host_is() {
    let packed = Packed::new(&three(), false);
    let compares = |options: OpenOptions| options.open(&packed.path).unwrap().is_compared();
    assert!(!compares(OpenOptions::new()));
    assert!(!compares(OpenOptions::new().verify(Verify::Stored)));
    assert!(compares(packed.options()) && compares(packed.options().verify(Verify::Stored)));
    assert!(compares(OpenOptions::new().verify(Verify::Full)));
    assert!(compares(OpenOptions::new().verify(Verify::Lazy)));
}
