//! Source trees for the tests, and their comparison with what an image holds.

#![allow(dead_code, reason = "each test binary uses a part")]

use daxfs::{FileType, Image};
use mkimage::Packer;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What a name is, in a source tree or in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    File { mode: u32, owner: (u32, u32), contents: Vec<u8> },
    Directory { mode: u32, owner: (u32, u32) },
    Symlink { owner: (u32, u32), target: Vec<u8> },
}

/// By absolute path.
pub type Listing = BTreeMap<Vec<u8>, Node>;

/// Lists a directory as an image of it should look.
pub fn list_directory(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut todo = vec![(root.to_path_buf(), Vec::new())];
    while let Some((path, name)) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let (mode, owner) = (stat.mode(), (stat.uid(), stat.gid()));
        let node = if stat.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let child = [&name[..], b"/", entry.file_name().as_bytes()].concat();
                todo.push((entry.path(), child));
            }
            Node::Directory { mode, owner }
        } else if stat.is_symlink() {
            Node::Symlink { owner, target: fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec() }
        } else {
            Node::File { mode, owner, contents: fs::read(&path).unwrap() }
        };
        listing.insert(if name.is_empty() { b"/".to_vec() } else { name }, node);
    }
    listing
}

/// Lists an image, without the packer's own directory.
pub fn list_image(image: &Image) -> Listing {
    let mut listing = Listing::new();
    for entry in image.walk() {
        let metadata = entry.metadata();
        let (mode, owner) = (metadata.mode, (metadata.uid, metadata.gid));
        let node = match entry.file_type() {
            FileType::Directory => Node::Directory { mode, owner },
            FileType::Symlink => Node::Symlink { owner, target: entry.read_link().unwrap().to_vec() },
            FileType::File => Node::File { mode, owner, contents: entry.file().unwrap().to_vec().unwrap() },
            _ => panic!("{:?} is special", entry.path()),
        };
        if !entry.path().starts_with(b"/.daxfs") {
            listing.insert(entry.path(), node);
        }
    }
    listing
}

/// Opens an image with the rules of the kernel that it is for.
pub fn open_strict(path: &Path) -> Image {
    let image = Image::open(path).unwrap();
    let page = image.superblock().block_size.into();
    daxfs::OpenOptions::new().strict(true).page_size(page).open(path).unwrap()
}

/// Packs one directory with these settings, and opens the result with the rules of the kernel.
pub fn pack(source: &Path, packer: Packer) -> Image {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    packer.input(source).plan().unwrap().write_file(&path).unwrap();
    open_strict(&path)
}

/// Writes a file and the directories that it needs.
pub fn write(root: &Path, name: impl AsRef<OsStr>, contents: &[u8]) -> PathBuf {
    let path = root.join(name.as_ref());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}

/// Bytes that look random and differ from seed to seed.
pub fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A safetensors file: `(name, dtype, shape)` one after the other, filled with noise.
pub fn safetensors(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let (mut json, mut at) = (String::from("{\"__metadata__\":{\"format\":\"pt\"}"), 0);
    for (name, dtype, shape) in tensors {
        let bits = match *dtype {
            "F4" => 4,
            "U8" | "I8" | "BOOL" | "F8_E4M3" => 8,
            "F16" | "BF16" | "I16" => 16,
            "F32" | "I32" => 32,
            _ => 64,
        };
        let end = at + shape.iter().product::<usize>() * bits / 8;
        json +=
            &format!(",{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}");
        at = end;
    }
    json += "}";
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes());
    bytes.extend(noise(7, at));
    bytes
}

/// A tree with one of everything that an image can hold.
pub fn varied_tree(root: &Path) {
    write(root, "empty", b"");
    for len in [1, 4095, 4096, 4097, 40_000, 600_000] {
        write(root, format!("sizes/{len}"), &noise(len, len as usize));
    }
    write(root, "large/a.bin", &noise(1, (2 << 20) + 5));
    write(root, "large/b.bin", &noise(2, 3 << 20));
    write(root, OsStr::from_bytes(&[b'n'; 255]), b"a name of 255 bytes");
    write(root, OsStr::from_bytes(b"not\xffutf-8\xc3"), b"any bytes");
    write(root, "tab\tnewline\nquote\"\\", b"odd");
    fs::create_dir_all(root.join("empty directory/below")).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(write(root, "setuid", b"#!"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("sizes/1", root.join("relative")).unwrap();
    symlink("/sizes/1", root.join("absolute")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("x/".repeat(2047) + "y", root.join("long link")).unwrap();
    fs::create_dir(root.join("links")).unwrap();
    fs::hard_link(root.join("sizes/4097"), root.join("links/again")).unwrap();
    fs::hard_link(root.join("sizes/4097"), root.join("links/and again")).unwrap();
}

/// A tree of all that has a form of its own in EROFS.
pub fn erofs_tree(root: &Path) -> PathBuf {
    varied_tree(root);
    for name in ["!x", "-", ".a", "...", "..x", ".!", "~"] {
        write(root, format!("order/{name}"), name.as_bytes());
    }
    for number in 0..700 {
        write(root, format!("many/a file with a longer name {number:04}"), b"");
    }
    // Directories of one block, and of nearly one.
    for number in [268, 269, 270, 271, 272] {
        for file in 0..number {
            write(root, format!("full{number}/{file:03}"), b"");
        }
    }
    for len in [1_usize, 2000, 4030, 4064, 4095] {
        let target: String = "some/name/".chars().cycle().take(len).collect();
        symlink(target, root.join(format!("link{len}"))).unwrap();
    }
    fs::hard_link(root.join("large/a.bin"), root.join("order/again")).unwrap();
    // Files with one extent: equal ones, and others by their modes, with every length of a last block that matters.
    for len in [1, 4032, 4033, 4064, 4065, 4095, 4096, 8192, 12_000] {
        let bytes = noise(len + 5, len as usize);
        for (name, mode) in [("one", 0o644), ("two", 0o644), ("three", 0o600), ("four", 0o600)] {
            let path = write(root, format!("same/{len}/{name}"), &bytes);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    root.to_path_buf()
}
