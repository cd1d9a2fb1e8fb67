//! Images with honest files and an index that lies: whoever asks for one content does not get them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::holder::Place;
use common::{Fixture, Run, safetensors};
use daxfs::format::index as raw;
use daxfs::{ContentHash, Image, OpenOptions, join_content_hash};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, IntoBytes};

/// How much of what vouches for its lie a forger repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Repair {
    Nothing,
    /// The hashes of sections and table.
    Sections,
    /// The content hash, too, which is another one then.
    Content,
}

/// The index of an image, out of it and back.
struct Index {
    image: PathBuf,
    offset: u64,
    bytes: Vec<u8>,
}

impl Index {
    fn of(image: &Path) -> Self {
        let opened = Image::open(image).unwrap();
        let file = opened.file(raw::PATH).unwrap();
        let offset = file.extent().unwrap().offset;
        Self { image: image.to_owned(), offset, bytes: file.to_vec().unwrap() }
    }

    fn header(&mut self) -> &mut raw::Header {
        raw::Header::mut_from_bytes(&mut self.bytes[..128]).unwrap()
    }

    fn table(&mut self) -> &mut [raw::Section] {
        let end = 128 + self.header().section_count.get() as usize * 64;
        <[raw::Section]>::mut_from_bytes(&mut self.bytes[128..end]).unwrap()
    }

    /// The tensors of version 1 or 2.
    fn tensors(&mut self) -> &mut [raw::TensorRecord] {
        let (start, len) = match self.header().version.get() {
            1 => {
                let header = raw::v1::Header::read_from_bytes(&self.bytes[..160]).unwrap();
                (header.tensors_offset.get(), u64::from(header.tensor_count.get()) * 48)
            }
            _ => {
                let section = self.table().iter().find(|section| section.kind.get() == raw::TENSORS).unwrap();
                (section.offset.get(), section.len.get())
            }
        };
        let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
        <[raw::TensorRecord]>::mut_from_bytes(&mut self.bytes[range]).unwrap()
    }

    fn swap_offsets(&mut self) {
        let tensors = self.tensors();
        let (first, second) = (tensors[0].offset, tensors[1].offset);
        (tensors[0].offset, tensors[1].offset) = (second, first);
    }

    fn repair(&mut self, repair: Repair) {
        if repair >= Repair::Sections {
            let bytes = self.bytes.clone();
            for section in self.table() {
                let start = usize::try_from(section.offset.get()).unwrap();
                let part = &bytes[start..start + usize::try_from(section.len.get()).unwrap()];
                section.hash = *blake3::hash(part).as_bytes();
            }
            let table = self.table().to_vec();
            let header = self.header();
            header.records_hash = daxfs::tensor::index::records_hash(header, &table);
        }
        self.write();
        if repair == Repair::Content {
            let image = Image::open(&self.image).unwrap();
            let content = daxfs::content_hash(&image, |_, _| Ok::<_, daxfs::Error>(())).unwrap();
            self.header().content_hash = content.into();
            self.write();
        }
    }

    fn write(&self) {
        let file = fs::OpenOptions::new().write(true).open(&self.image).unwrap();
        file.write_all_at(&self.bytes, self.offset).unwrap();
    }
}

/// A model of two layers, packed; its content hash.
fn packed(fixture: &Fixture) -> ContentHash {
    fs::remove_dir_all(fixture.tree()).unwrap();
    fs::create_dir(fixture.tree()).unwrap();
    let file = safetensors(&[("layer.0.w", "F32", &[4], &[1; 16]), ("layer.1.w", "F32", &[4], &[2; 16])], 0);
    fs::write(fixture.tree().join("model.safetensors"), file).unwrap();
    fixture.pack(|packer| packer.erofs(false));
    Image::open(fixture.image()).unwrap().content_hash().unwrap()
}

fn expecting(image: &Path, hash: ContentHash) -> daxfs::Result<Image> {
    OpenOptions::new().expect(hash).open(image)
}

fn failed(run: &Run, status: i32) {
    assert_eq!(run.status, status, "{run:?}");
}

#[test]
fn swapped_offsets_pass_nowhere() {
    let place = Place::new();
    let hash = packed(&place.0);
    let image = place.0.image();
    let _holder = place.serve(&[]);
    let expect = hash.to_string();
    expecting(&image, hash).unwrap();
    place.run(&["load", "good", "IMAGE", "--expect", &expect]).ok();
    for repair in [Repair::Nothing, Repair::Sections, Repair::Content] {
        packed(&place.0);
        let mut index = Index::of(&image);
        index.swap_offsets();
        index.repair(repair);
        let served = Image::open(&image).unwrap().tensors().unwrap().get("layer.0.w").unwrap();
        assert_eq!(served.bytes().unwrap().to_vec(), [2; 16], "the lie is there, and lookups believe it");
        let claims = Image::open(&image).unwrap().content_hash() == Some(hash);
        assert_eq!(claims, repair < Repair::Content, "{repair:?}");

        let refused = expecting(&image, hash).unwrap_err();
        let reason = match repair {
            Repair::Nothing => "/.daxfs/index: tensor records: its BLAKE3 is ",
            _ => "the image's content hash is ",
        };
        assert!(refused.to_string().starts_with(reason), "{repair:?}: {refused}");
        for verb in ["ls", "inspect", "verify"] {
            let run = place.0.run(&[verb, "IMAGE", "--expect", &expect]);
            failed(&run, 2);
            assert!(run.stderr.contains(reason), "{run:?}");
        }
        let run = place.0.run(&["verify", "-q", "IMAGE"]);
        failed(&run, 1);
        assert!(run.text().contains("tensors: /model.safetensors: "), "{run:?}");
        assert_eq!(run.text().contains("content hash is"), repair == Repair::Sections, "{run:?}");
        // A holder takes it neither for what is expected nor without a wish.
        let sealed = place.run(&["load", "bad", "IMAGE", "--expect", &expect]).error();
        let plain = place.run(&["load", "bad", "IMAGE"]).error();
        for error in [sealed, plain] {
            assert!(error.contains("/.daxfs/index: "), "{error}");
        }
        assert_eq!(place.run(&["ps", "--json"]).json()["images"].as_array().unwrap().len(), 1);
    }
}

/// The index is honest and says what the file was; the bytes are others.
#[test]
fn a_forged_file_passes_nowhere() {
    let place = Place::new();
    let hash = packed(&place.0);
    let image = place.0.image();
    let expect = hash.to_string();
    fs::write(place.0.tree().join("config.json"), "{}").unwrap();
    place.0.pack(|packer| packer);
    let hash_of_both = Image::open(&image).unwrap().content_hash().unwrap();
    let both = hash_of_both.to_string();
    assert_ne!(expect, both);
    let last = Image::open(&image).unwrap().file("model.safetensors").unwrap().len() - 1;
    place.0.poke(place.0.offset_of("/model.safetensors") + last, &[3]);
    assert_eq!(Image::open(&image).unwrap().content_hash(), Some(hash_of_both), "it says so of itself");

    let reason = "/model.safetensors: BLAKE3 is ";
    for flags in [&[][..], &["--sealed-copy"], &["--verify=full"], &["--verify"]] {
        for verb in [&["ls", "IMAGE"][..], &["inspect", "IMAGE"], &["cat", "IMAGE", "/config.json"]] {
            let run = place.0.run(&[verb, &["--expect", &both], flags].concat());
            failed(&run, 2);
            assert!(run.stderr.contains(reason) && run.stdout.is_empty(), "{run:?}");
        }
    }
    failed(&place.0.run(&["ls", "IMAGE", "--verify"]), 2);
    // Each file when it is used, or none.
    let lazy = |file: &str| place.0.run(&["cat", "--expect", &both, "--verify=lazy", "IMAGE", file]);
    assert_eq!(lazy("/config.json").ok(), "{}");
    let run = lazy("/model.safetensors");
    failed(&run, 2);
    assert!(run.stderr.contains(reason) && run.stdout.is_empty(), "{run:?}");
    place.0.run(&["ls", "IMAGE", "--expect", &both, "--verify=lazy"]).ok();
    place.0.run(&["ls", "IMAGE", "--expect", &both, "--verify=stored"]).ok();
    // To find what is wrong is what this verb is for.
    let run = place.0.run(&["verify", "IMAGE", "--expect", &both]);
    failed(&run, 1);
    assert!(run.text().contains("hash: /model.safetensors: BLAKE3 is "), "{run:?}");

    let _holder = place.serve(&[]);
    for args in [&["load", "bad", "IMAGE", "--expect", &both][..], &["load", "bad", "IMAGE"]] {
        let error = place.run(args).error();
        assert!(error.contains("/model.safetensors"), "{error}");
    }
}

/// The records of version 1 are covered by nothing, so they are compared with the headers.
#[test]
fn swapped_offsets_of_version_1_pass_nowhere() {
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1/checkpoint-v8.daxfs");
    let image = place.0.image();
    fs::copy(&golden, &image).unwrap();
    let hash = Image::open(&image).unwrap().content_hash().unwrap();
    let expect = hash.to_string();
    let _holder = place.serve(&[]);
    expecting(&image, hash).unwrap();
    place.run(&["load", "good", "IMAGE", "--expect", &expect]).ok();
    let mut index = Index::of(&image);
    index.swap_offsets();
    index.write();
    let refused = expecting(&image, hash).unwrap_err().to_string();
    assert!(refused.contains("offset of tensor \"b.1\": the index has "), "{refused}");
    failed(&place.0.run(&["cat", "IMAGE", "/model-1.safetensors", "--expect", &expect]), 2);
    failed(&place.0.run(&["verify", "IMAGE"]), 1);
    for args in [&["load", "bad", "IMAGE", "--expect", &expect][..], &["load", "bad", "IMAGE"]] {
        let error = place.run(args).error();
        assert!(error.contains("offset of tensor \"b.1\""), "{error}");
    }
}

/// The index of another version, or another tree, does not stand for the content that is asked for.
#[test]
fn a_stored_hash_is_not_believed() {
    let fixture = Fixture::new();
    let hash = packed(&fixture);
    // A name, a link or a size that the hash does not cover would have to change these.
    let inode = fixture.inode_of("/model.safetensors");
    let image = Image::open(fixture.image()).unwrap();
    let size = image.file("/model.safetensors").unwrap().len();
    fixture.poke(inode + 16, &(size - 1).to_le_bytes());
    let refused = expecting(&fixture.image(), hash).unwrap_err().to_string();
    assert!(refused.contains("/model.safetensors"), "{refused}");

    // Version 1 with the hash of version 2 in it.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v1/checkpoint-v8.daxfs");
    fs::copy(golden, fixture.image()).unwrap();
    let mut index = Index::of(&fixture.image());
    index.bytes[128..160].copy_from_slice(hash.as_bytes());
    index.write();
    assert_eq!(Image::open(fixture.image()).unwrap().content_hash(), Some(hash));
    let refused = expecting(&fixture.image(), hash).unwrap_err().to_string();
    assert!(refused.starts_with("the image's content hash is "), "{refused}");

    // A file beside the index, which the tree hash leaves out.
    let hash = packed(&fixture);
    fixture.add_beside_index();
    let refused = expecting(&fixture.image(), hash).unwrap_err().to_string();
    assert!(
        refused.contains("/.daxfs must hold the index, the EROFS view, a configuration and nothing else"),
        "{refused}"
    );
}

#[test]
fn the_content_hash_is_made_of_names_and_records() {
    let fixture = Fixture::new();
    let hash = packed(&fixture);
    let image = Image::open(fixture.image()).unwrap();
    let mut root = daxfs::DirectoryHasher::new();
    let file = image.file("/model.safetensors").unwrap();
    root.file(b"model.safetensors", file.len(), blake3::hash(&file.to_vec().unwrap()).as_bytes());
    let records = image.index().unwrap().unwrap().records_hash().unwrap();
    assert_eq!(join_content_hash(&records, &root.finish()), hash);
    let bytes = image.file(raw::PATH).unwrap().to_vec().unwrap();
    assert_eq!(bytes[64..96], records);
    assert_eq!(raw::Header::read_from_bytes(&bytes[..128]).unwrap().as_bytes(), &bytes[..128]);
}

/// A list that only a link calls a list: readers find its record by the link, so it is compared, too.
#[test]
fn a_record_that_only_a_link_leads_to_is_compared() {
    let fixture = Fixture::new();
    let (list, hidden) = (&b"model.safetensors.index.json"[..], &b"model.safetensors.index.jsom"[..]);
    std::os::unix::fs::symlink(
        "model.safetensors.index.jsom",
        fixture.tree().join("sharded/m.safetensors.index.json"),
    )
    .unwrap();
    fixture.pack(|packer| packer.erofs(false));
    let replace = |bytes: &mut [u8]| {
        let at = bytes.windows(list.len()).position(|window| window == list).unwrap();
        bytes[at..at + list.len()].copy_from_slice(hidden);
    };
    // The name in the directory, and in the index; then the last tensor is kept from readers.
    let image = Image::open(fixture.image()).unwrap();
    let directory = image.entry("sharded").unwrap();
    let inode = fixture.inode_of("sharded");
    let (count, mut array) = (directory.children().len(), [0; 8]);
    let file = fs::File::open(fixture.image()).unwrap();
    file.read_exact_at(&mut array, inode + 24).unwrap();
    let array = 4096 + u64::from_le_bytes(array);
    let mut entries = vec![0; count * 271];
    file.read_exact_at(&mut entries, array).unwrap();
    replace(&mut entries);
    fixture.poke(array, &entries);
    let mut index = Index::of(&fixture.image());
    replace(&mut index.bytes);
    index.repair(Repair::Content);
    let path = "sharded/m.safetensors.index.json";
    let tensors = |image: &Path| Image::open(image).unwrap().tensors_at(path).unwrap().len();
    assert_eq!(tensors(&fixture.image()), 2);
    fixture.run(&["verify", "IMAGE"]).ok();

    let section = index.table().iter().find(|section| section.kind.get() == raw::CHECKPOINTS).unwrap();
    let at = usize::try_from(section.offset.get()).unwrap();
    let (record, _) = raw::CheckpointRecord::mut_from_prefix(&mut index.bytes[at..]).unwrap();
    record.entry_count = 1.into();
    index.repair(Repair::Content);
    assert_eq!(tensors(&fixture.image()), 1, "the lie is there, and lookups believe it");
    let run = fixture.run(&["verify", "-q", "IMAGE"]);
    failed(&run, 1);
    assert!(run.text().contains("index: /.daxfs/index: ") && run.text().contains("tensors"), "{run:?}");
}
