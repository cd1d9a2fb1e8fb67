//! Images of about a megabyte that are made to cost gigabytes: every verb answers with little memory, before a deadline.
//!
//! Each command runs under `ulimit -v`, and a deadline that only work without end reaches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "the images are small")]

mod common;
#[path = "../../../tests/src/forge.rs"]
#[allow(dead_code, missing_docs, reason = "made for other tests, which use all of it")]
mod forge;

use common::{DAXFS, Fixture, Run, safetensors};
use daxfs::format::{DIRENT_SIZE, PAGE_CACHE_MAGIC, S_IFDIR, S_IFREG, index, v8};
use forge::{Forge, entry};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use zerocopy::{FromZeros, IntoBytes};

/// KiB of address space: threads and the image have room, a gigabyte of tables has not.
const MEMORY: u32 = 1_000_000;
/// Seconds, where `$DAXFS_TEST_DEADLINE` says no others: emulated processors take twenty times as long.
const DEADLINE: &str = "120";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(image: &[u8]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(place.image(), image).unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.daxfs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `daxfs ARGS` within the bounds; `IMAGE` and `OUT` stand for paths. Standard output goes to a file, whose
    /// length is returned.
    fn run(&self, args: &[&str]) -> (Run, u64) {
        let stdout = self.path("stdout");
        let deadline = std::env::var("DAXFS_TEST_DEADLINE").unwrap_or_else(|_| DEADLINE.to_owned());
        let script = format!(r#"ulimit -v {MEMORY}; exec timeout {deadline} "$@" > "$0""#);
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&stdout).arg(DAXFS).env("RAYON_NUM_THREADS", "2");
        command.env("MALLOC_ARENA_MAX", "2");
        for arg in args {
            match *arg {
                "IMAGE" => command.arg(self.image()),
                "OUT" => command.arg(self.path("out")),
                arg => command.arg(arg),
            };
        }
        let run = Run::of(&mut command);
        assert!((0..=2).contains(&run.status), "{args:?}: {} {}", run.status, start(&run.stderr));
        assert!(!run.stderr.contains("panicked"), "{args:?}: {}", start(&run.stderr));
        (run, fs::metadata(stdout).unwrap().len())
    }
}

/// The first part of what may be very long.
fn start(text: &str) -> String {
    text.chars().take(300).collect()
}

/// Removes a tree that is deeper than this process may open directories.
fn remove(tree: &Path) {
    assert!(Command::new("rm").arg("-rf").arg(tree).status().unwrap().success());
}

/// A chain of directories with long names, and a file in each, which is one file with all these names.
fn chain(depth: u32) -> Vec<u8> {
    let mut forge = Forge::new(depth + 1);
    let (name, file) = ([b'd'; 255], depth + 1);
    let mut entries = Vec::new();
    for ino in 1..=depth {
        if ino < depth {
            entries.extend_from_slice(entry(ino + 1, S_IFDIR | 0o755, &name).as_bytes());
        }
        entries.extend_from_slice(entry(file, S_IFREG | 0o644, b"f").as_bytes());
    }
    let at = forge.place(&entries);
    for ino in 1..=depth {
        let count = if ino < depth { 2 } else { 1 };
        forge.set(ino, S_IFDIR | 0o755, count * DIRENT_SIZE, at + u64::from(ino - 1) * 2 * 272, 2);
    }
    let data = forge.place(b"contents");
    forge.set(file, S_IFREG | 0o644, 8, data, depth);
    forge.finish()
}

/// Many names in the root for one stretch of bytes.
fn same_bytes(count: u32, suffix: &str, bytes: &[u8], extra: &[(&str, &[u8])]) -> Vec<u8> {
    let all = count + u32::try_from(extra.len()).unwrap();
    let mut forge = Forge::new(1 + all);
    let names =
        (0..count).map(|n| format!("{n}{suffix}")).chain(extra.iter().map(|(name, _)| (*name).to_owned()));
    let names: Vec<(u32, String)> = (2..).zip(names).collect();
    forge.dir(1, &names);
    let at = forge.place(bytes);
    for ino in 2..2 + count {
        forge.set(ino, S_IFREG | 0o644, bytes.len() as u64, at, 1);
    }
    for (ino, (_, bytes)) in (2 + count..).zip(extra) {
        forge.file(ino, bytes);
    }
    forge.finish()
}

#[test]
fn a_deep_chain_is_extracted_and_compared() {
    for depth in [4_000, 7_000] {
        let place = Place::new(&chain(depth));
        place.run(&["extract", "-q", "-p", "IMAGE", "OUT"]).0.ok();
        let (run, _) = place.run(&["verify", "-q", "IMAGE", place.path("out").to_str().unwrap()]);
        run.ok();
        // One file with a name in every directory, and nothing that was needed on the way.
        assert_eq!(fs::metadata(place.path("out/f")).unwrap().nlink(), u64::from(depth));
        assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 2);
        remove(&place.path("out"));
    }
}

#[test]
fn a_deep_chain_is_listed_as_far_as_paths_go() {
    let place = Place::new(&chain(4_000));
    for args in [&["ls", "-R", "IMAGE"][..], &["ls", "-lR", "IMAGE"], &["ls", "-R", "--json", "IMAGE"]] {
        let (run, written) = place.run(args);
        assert!(run.error().starts_with("1 directory is not listed: the path has more than 4095 bytes"));
        assert!(written < 1 << 20, "{args:?}: {written}");
    }
    let (run, written) = place.run(&["tree", "IMAGE"]);
    run.ok();
    assert!(written < 16 << 20, "{written}");
    for args in [&["inspect", "IMAGE"][..], &["verify", "IMAGE"], &["inspect", "--json", "IMAGE"]] {
        place.run(args);
    }
}

#[test]
fn files_that_share_a_header_have_it_once() {
    let tensors: Vec<String> = (0..5_000).map(|n| format!("layer.{n}.weight")).collect();
    let tensors: Vec<(&str, &str, &[u64], &[u8])> =
        tensors.iter().map(|name| (name.as_str(), "U8", &[0][..], &[][..])).collect();
    let place = Place::new(&same_bytes(1_500, ".safetensors", &safetensors(&tensors, 0), &[]));
    place.run(&["verify", "IMAGE"]).0.ok();
    // The rows of all of them are a table of 7.5 million, which is not made.
    let (run, _) = place.run(&["inspect", "IMAGE"]);
    assert!(run.status == 2 && run.stderr.contains("--max-metadata"), "{}", start(&run.stderr));
    // A broken header is parsed once, too.
    let broken = [&800_000_u64.to_le_bytes()[..], &b"[".repeat(800_000)].concat();
    let place = Place::new(&same_bytes(1_500, ".safetensors", &broken, &[]));
    let (run, _) = place.run(&["verify", "-q", "IMAGE"]);
    assert_eq!(run.status, 1, "{}", start(&run.stderr));
}

#[test]
fn thousands_of_shards_that_share_a_header_are_one_parse() {
    let names: Vec<String> = (0..4_000).map(|n| format!("t{n}")).collect();
    let tensors: Vec<(&str, &str, &[u64], &[u8])> =
        names.iter().map(|name| (name.as_str(), "U8", &[0][..], &[][..])).collect();
    let map: Vec<String> = (0..4_000).map(|n| format!(r#""t{n}":"{n}.safetensors""#)).collect();
    let map = format!(r#"{{"weight_map":{{{}}}}}"#, map.join(","));
    let list: [(&str, &[u8]); 1] = [("model.safetensors.index.json", map.as_bytes())];
    let place = Place::new(&same_bytes(4_000, ".safetensors", &safetensors(&tensors, 0), &list));
    let text = place.run(&["verify", "IMAGE"]).0;
    assert_eq!((text.status, text.stderr.as_str()), (0, ""));
}

/// An index of version 1 whose records all have the same name for their tensors, and one for the files.
fn shared_names(files: u32, name: usize) -> Vec<u8> {
    let strings = [b"/".as_slice(), &vec![b'n'; name]].concat();
    let mut header = index::v1::Header::new_zeroed();
    let records = u64::from(files);
    let tensors_at = 160 + records * 96;
    let strings_at = tensors_at + records * 48;
    let total = strings_at + strings.len() as u64;
    header.magic = index::MAGIC;
    header.version = 1.into();
    header.total_size = total.into();
    header.files_offset = 160.into();
    header.file_count = files.into();
    header.tensor_count = files.into();
    header.tensors_offset = tensors_at.into();
    for offset in [
        &mut header.checkpoints_offset,
        &mut header.entries_offset,
        &mut header.dims_offset,
        &mut header.strings_offset,
    ] {
        *offset = strings_at.into();
    }
    header.strings_size = (strings.len() as u64).into();
    let mut bytes = header.as_bytes().to_vec();
    for number in 0..files {
        let mut record = index::FileRecord::new_zeroed();
        record.path_len = (strings.len() as u32).into();
        record.ino = (4 + number).into();
        record.size = 8.into();
        record.first_tensor = number.into();
        record.tensor_count = 1.into();
        record.flags = index::FILE_TENSORS.into();
        bytes.extend_from_slice(record.as_bytes());
    }
    for number in 0..files {
        let mut record = index::TensorRecord::new_zeroed();
        record.name_offset = 1.into();
        record.name_len = (name as u32).into();
        record.size = 1.into();
        record.file = number.into();
        record.dtype = daxfs::Dtype::U8.code().unwrap().into();
        bytes.extend_from_slice(record.as_bytes());
    }
    bytes.extend_from_slice(&strings);
    bytes
}

#[test]
fn one_long_name_for_everything_is_not_multiplied() {
    let count = 2_000;
    let index = shared_names(count, 64 << 10);
    let mut forge = Forge::new(3 + count);
    let names: Vec<(u32, String)> = (4..4 + count).map(|ino| (ino, format!("{ino}.safetensors"))).collect();
    let names: Vec<(u32, &str)> =
        [(2, ".daxfs")].into_iter().chain(names.iter().map(|(ino, name)| (*ino, name.as_str()))).collect();
    forge.dir(1, &names).dir(2, &[(3, "index")]).file(3, &index);
    let at = forge.place(b"12345678");
    for ino in 4..4 + count {
        forge.set(ino, S_IFREG | 0o644, 8, at, 1);
    }
    let place = Place::new(&forge.finish());
    let (run, _) = place.run(&["verify", "-q", "IMAGE"]);
    assert_eq!(run.status, 1, "{}", start(&run.stderr));
    assert!(
        fs::read_to_string(place.path("stdout"))
            .unwrap()
            .contains("the paths of the records share their bytes")
    );
    for json in [&[][..], &["--json"]] {
        let (run, written) = place.run(&[&["inspect", "IMAGE", "--max-metadata", "16M"], json].concat());
        assert!(run.status == 2 && run.stderr.contains("--max-metadata"), "{}", start(&run.stderr));
        assert!(written < 40 << 20, "{written}");
    }
}

#[test]
fn files_that_overlap_are_not_written_unasked() {
    let bytes = vec![7_u8; 1 << 20];
    let mut forge = Forge::new(2_001);
    let names: Vec<(u32, String)> = (2..=2_001).map(|ino| (ino, format!("f{ino}"))).collect();
    forge.dir(1, &names);
    let at = forge.place(&bytes);
    for ino in 2..=2_001 {
        let skip = u64::from(ino) * 16;
        forge.set(ino, S_IFREG | 0o644, bytes.len() as u64 - skip, at + skip, 1);
    }
    let bytes = forge.finish();
    // Nor hashed by a holder.
    let image = daxfs::Image::from_bytes(bytes.clone()).unwrap();
    let hashed = daxfs::content_hash(&image, |_, _| Ok::<_, daxfs::Error>(()));
    assert!(matches!(hashed, Err(daxfs::Error::FilesOverlap { .. })), "{hashed:?}");
    let place = Place::new(&bytes);
    let error = place.run(&["extract", "IMAGE", "OUT"]).0.error();
    assert!(error.contains("more than twice the image's") && error.contains("--max-bytes 2065"), "{error}");
    assert!(!place.path("out").exists());
    let error = place.run(&["extract", "--max-bytes", "1G", "IMAGE", "OUT"]).0.error();
    assert!(error.contains("more than --max-bytes 1073741824"), "{error}");
    place.run(&["verify", "IMAGE"]).0.ok();
}

#[test]
fn files_that_share_their_bytes_honestly_are_written_when_asked() {
    let fixture = Fixture::new();
    for copy in 0..40 {
        fs::write(fixture.tree().join(format!("copy-{copy}")), vec![b'x'; 100_000]).unwrap();
    }
    fixture.pack(|packer| packer.dedupe(true));
    let error = fixture.run(&["extract", "IMAGE", "DIR/out"]).error();
    let limit = error.rsplit("--max-bytes ").next().unwrap().to_owned();
    assert!(error.contains("--dedupe") && limit.parse::<u64>().is_ok(), "{error}");
    assert!(!fixture.path("out").exists());
    fixture.run(&["extract", "-q", "-p", "--max-bytes", &limit, "IMAGE", "DIR/out"]).ok();
    fixture.run(&["verify", "-q", "IMAGE", "DIR/out"]).ok();
    // Their extent is hashed once.
    let json = fixture.run(&["verify", "--json", "IMAGE"]).json();
    assert_eq!(json["ok"], true);
    let hashed = json["checked"]["hashed_bytes"].as_u64().unwrap();
    assert!((100_000..200_000).contains(&hashed), "{hashed}");
}

#[test]
fn sizes_near_the_end_of_numbers_are_summed() {
    // A split image without its backing file: nothing bounds what its files claim.
    let fixture = Fixture::new();
    let mut forge = Forge::new(4);
    forge.dir(1, &[(2, "a"), (3, "b"), (4, "c")]);
    for ino in 2..=4 {
        forge.set(ino, S_IFREG | 0o644, u64::MAX - 7, 3, 1);
    }
    fs::write(fixture.image(), external(forge.finish())).unwrap();
    let text = fixture.run(&["tree", "IMAGE"]).ok();
    assert!(text.contains("48.0 EiB") && text.contains("3 files"), "{text}");
    assert!(fixture.run(&["tree", "-b", "IMAGE"]).ok().contains("55340232221128654824"));
    assert!(fixture.run(&["extract", "IMAGE", "DIR/out"]).error().contains("more than twice the image's"));
    for args in [
        &["ls", "-lR", "IMAGE"][..],
        &["stat", "IMAGE", "/", "/a"],
        &["stat", "--json", "IMAGE", "/a"],
        &["inspect", "IMAGE"],
        &["inspect", "--json", "IMAGE"],
        &["verify", "IMAGE"],
        &["verify", "IMAGE", "TREE"],
        &["cat", "IMAGE", "/a"],
        &["extract", "--max-bytes", "16777215T", "IMAGE", "DIR/out"],
    ] {
        let run = fixture.run(args);
        assert!(!run.stderr.contains("panicked") && (0..=2).contains(&run.status), "{args:?}: {run:?}");
    }
}

/// Adds a page cache, which says that the data of files lies elsewhere.
fn external(mut image: Vec<u8>) -> Vec<u8> {
    const SLOTS: u32 = 8;
    let at = image.len() as u64;
    let mut cache = v8::PageCacheHeader::new_zeroed();
    cache.magic = PAGE_CACHE_MAGIC.into();
    cache.version = v8::PAGE_CACHE_VERSION.into();
    image.extend_from_slice(cache.as_bytes());
    image.resize(at as usize + 4096 * (1 + SLOTS as usize), 0);
    let total = image.len() as u64;
    let superblock = forge::superblock(&mut image);
    superblock.pcache_offset = at.into();
    superblock.pcache_size = (total - at).into();
    superblock.pcache_slot_count = SLOTS.into();
    superblock.total_size = total.into();
    image
}
