//! What was packed is what is read: by our reader, strictly, and by an independent reader where it is there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, OpenOptions};
use daxfs_tests::examine::examine;
use daxfs_tests::golden::Golden;
use daxfs_tests::tree::{self, Item, Tree};
use dmabuf::HugePages;
use mkimage::{Format, Memory, Packer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Sizes on both sides of every boundary that a layout has.
const SIZES: [usize; 14] = [0, 1, 15, 271, 272, 511, 4095, 4096, 4097, 8192, 16_383, 16_385, 65_536, 65_537];

/// How to pack.
#[derive(Debug, Clone)]
struct Options {
    format: Format,
    block_size: u32,
    align: u64,
    dedupe: bool,
    plain: bool,
    hash: bool,
    exact: bool,
}

impl Options {
    fn packer(&self, input: &Path) -> Packer {
        Packer::new()
            .input(input)
            .format(self.format)
            .block_size(self.block_size)
            .align(self.align)
            .dedupe(self.dedupe)
            .plain(self.plain)
            .hash(self.hash)
            .exact(self.exact)
            // Waiting for the disk tests nothing here; `own_golden` packs with it.
            .sync(false)
    }
}

fn options() -> impl Strategy<Value = Options> {
    let places = (select(vec![Format::V8, Format::V5]), select(vec![4096, 16384, 65536]));
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (places, select(vec![65_536, 2 << 20]), switches).prop_map(
        |((format, block_size), align, (dedupe, plain, hash, exact))| Options {
            format,
            // Version 5 knows one block size.
            block_size: if format == Format::V5 { 4096 } else { block_size },
            align,
            dedupe,
            plain,
            hash,
            exact,
        },
    )
}

/// A legal name: any bytes but `/` and NUL, of any length up to 255.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'_' } else { byte });
    let length = prop_oneof![4 => 1usize..12, 1 => Just(255usize), 1 => 200usize..256];
    let raw = length.prop_flat_map(move |length| vec(byte.clone(), length));
    let tidy = prop_oneof![Just("a"), Just("model.bin"), Just("config.json"), Just("ü"), Just("...")];
    prop_oneof![3 => raw, 1 => tidy.prop_map(|name| name.as_bytes().to_vec())]
        .prop_filter("dots are not names", |name| name != b"." && name != b"..")
}

fn item() -> impl Strategy<Value = Item> {
    let size = prop_oneof![select(SIZES.as_slice()), 0usize..20_000];
    let file_mode = select(vec![0o644, 0o600, 0o755, 0o4755, 0o444, 0o2711]);
    let dir_mode = select(vec![0o755, 0o700, 0o1777, 0o2775]);
    let target = vec(1u8..=255, 1..60);
    // Few distinct seeds, so that equal files occur.
    let file = (file_mode, size, 0u8..3).prop_map(|(mode, size, seed)| Item::File(mode, pattern(size, seed)));
    prop_oneof![
        3 => dir_mode.prop_map(Item::Dir),
        6 => file,
        2 => target.prop_map(Item::Symlink),
        1 => Just(Item::HardLink(Vec::new())),
    ]
}

/// `size` bytes that depend on `seed` and repeat with no power of two.
fn pattern(size: usize, seed: u8) -> Vec<u8> {
    (0..=250u8).map(|byte| byte ^ seed).cycle().take(size).collect()
}

/// A tree of up to 40 items, each under one of the directories before it.
fn generated() -> impl Strategy<Value = Tree> {
    vec((any::<Index>(), name(), item(), any::<Index>()), 0..40).prop_map(|parts| {
        let mut tree: Tree = Vec::new();
        let mut dirs: Vec<Vec<u8>> = vec![Vec::new()];
        let mut files: Vec<Vec<u8>> = Vec::new();
        for (parent, name, mut item, other) in parts {
            let parent = &dirs[parent.index(dirs.len())];
            let path = if parent.is_empty() { name } else { [parent, b"/".as_slice(), &name].concat() };
            // A path that the system calls of the packer can still name.
            if path.len() > 3000 || tree.iter().any(|(taken, _)| *taken == path) {
                continue;
            }
            match &mut item {
                Item::Dir(_) => dirs.push(path.clone()),
                Item::File(..) => files.push(path.clone()),
                Item::HardLink(_) if files.is_empty() => continue,
                Item::HardLink(first) => *first = files[other.index(files.len())].clone(),
                Item::Symlink(_) => {}
            }
            tree.push((path, item));
        }
        tree
    })
}

/// Packs a folder into a file beside it and opens that.
fn pack(options: &Options, folder: &Path, image: &Path) -> Image {
    let summary = options.packer(folder).plan().unwrap().write_file(image).unwrap();
    let size = fs::metadata(image).unwrap().len();
    assert_eq!(summary.image_bytes, size);
    assert_eq!(size % 4096, 0);
    OpenOptions::new().strict(true).page_size(options.block_size.into()).open(image).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn packed_trees_open_with_the_same_contents(source in generated(), options in options()) {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("tree");
        fs::create_dir(&folder).unwrap();
        tree::write(&source, &folder);
        let file = work.path().join("image");
        let image = pack(&options, &folder, &file);
        examine(&image);
        tree::assert_same(&tree::in_image(&image), &tree::on_disk(&folder));

        // The same input gives the same bytes, also straight into memory.
        let (memory, _) = options.packer(&folder).plan().unwrap().write_memory(&Memory::Memfd(HugePages::No)).unwrap();
        let in_memory = Image::from_fd(memory).unwrap();
        let len = usize::try_from(image.region().len()).unwrap();
        prop_assert!(in_memory.region().view().to_vec()[..len] == fs::read(&file).unwrap());

        for file in image.walk().filter_map(|entry| entry.file().ok()).filter(|file| !file.is_empty()) {
            let extent = file.extent().unwrap();
            prop_assert_eq!(extent.offset % u64::from(options.block_size), 0, "files start on block boundaries");
        }
        if let Some(golden) = Golden::find("the independent reader") && options.plain {
            referee(&golden, &file, &folder);
        }
    }
}

/// The independent reader finds the image equal to the folder.
fn referee(golden: &Golden, image: &Path, folder: &Path) {
    let script = golden.path("readimg.py");
    let output = Command::new("python3").arg(script).arg("compare").args([image, folder]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(
        output.status.success() && last.ends_with("different 0"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const DEFAULT: Options = Options {
    format: Format::V8,
    block_size: 4096,
    align: 2 << 20,
    dedupe: false,
    plain: true,
    hash: false,
    exact: false,
};

#[test]
fn the_golden_source_tree_packs_as_its_manifest_says() {
    let Some(golden) = Golden::find("the golden source tree") else { return };
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    let made = Command::new("python3").arg(golden.path("mktree.py")).arg(&folder).output().unwrap();
    if !made.status.success() {
        eprintln!("not run: the golden source tree: only root can set its owners");
        return;
    }
    let listed = tree::from_manifest(&golden.source_tree());
    for format in [Format::V8, Format::V5] {
        let file = work.path().join("image");
        let image = pack(&Options { format, ..DEFAULT }, &folder, &file);
        let mut found = tree::in_image(&image);
        tree::assert_same(&found, &tree::on_disk(&folder));
        for facts in found.values_mut() {
            facts.same_as = Vec::new();
        }
        tree::assert_same(&found, &listed);
        referee(&golden, &file, &folder);
    }
}

#[test]
fn a_directory_of_a_hundred_thousand_names_opens() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    fs::create_dir(&folder).unwrap();
    // A hundred names for each file: file systems make names faster than files.
    let path = |number: u32| folder.join(format!("file-{number:06}"));
    for number in 0..100_000 {
        match number % 100 {
            0 => drop(fs::File::create(path(number)).unwrap()),
            nth => fs::hard_link(path(number - nth), path(number)).unwrap(),
        }
    }
    let image = pack(&DEFAULT, &folder, &work.path().join("image"));
    assert_eq!((image.len(), image.superblock().inode_count), (100_001, 1001));
    for number in (0..100_000).step_by(9973) {
        let file = image.file(format!("/file-{number:06}")).unwrap();
        assert!(file.is_empty() && file.entry().metadata().nlink == 100);
    }
    assert!(image.entry("/file-100000").unwrap_err().is_not_found());
    assert_eq!(image.root().children().count(), 100_000);
}

#[test]
fn a_tree_as_deep_as_paths_can_be_opens() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    let depth = 1900;
    let deep = folder.join("d/".repeat(depth));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), b"down here").unwrap();
    let image = pack(&DEFAULT, &folder, &work.path().join("image"));
    assert_eq!(image.len(), depth + 2);
    let leaf = image.file(format!("/{}leaf", "d/".repeat(depth))).unwrap();
    assert_eq!(leaf.to_vec().unwrap(), b"down here");
    assert_eq!(image.walk().count(), depth + 2);
}

#[test]
fn equal_files_share_one_extent_with_dedupe_and_none_without() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    let source: Tree =
        [b"one", b"two"].iter().map(|name| (name.to_vec(), Item::File(0o644, pattern(9000, 1)))).collect();
    fs::create_dir(&folder).unwrap();
    tree::write(&source, &folder);
    for dedupe in [true, false] {
        let image = pack(&Options { dedupe, ..DEFAULT }, &folder, &work.path().join("image"));
        let extents = [b"/one", b"/two"].map(|path| image.file(path).unwrap().extent().unwrap().offset);
        assert_eq!(extents[0] == extents[1], dedupe);
        assert_ne!(image.file("/one").unwrap().ino(), image.file("/two").unwrap().ino());
        tree::assert_same(&tree::in_image(&image), &tree::on_disk(&folder));
    }
}

#[test]
fn an_index_left_in_the_source_is_rebuilt_not_copied() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    fs::create_dir_all(folder.join(".daxfs")).unwrap();
    fs::write(folder.join(".daxfs/index"), b"stale").unwrap();
    fs::write(folder.join("file"), b"kept").unwrap();
    let image = pack(&Options { plain: false, ..DEFAULT }, &folder, &work.path().join("image"));
    assert_eq!(image.file("/file").unwrap().to_vec().unwrap(), b"kept");
    assert_ne!(image.file("/.daxfs/index").ok().map(|file| file.to_vec().unwrap()), Some(b"stale".to_vec()));
    let refused = Packer::new().input(&folder).plain(true).plan().map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains(".daxfs"), "{refused}");
}
