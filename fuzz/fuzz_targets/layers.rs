//! Reads any bytes as two layers of a container image: the first length in two bytes, in blocks of 512, then one behind
//! the other. What comes out of them is a tree, and its contents can be read.

#![no_main]

use daxfs_oci::{Error, Kind, Limits, Options, ROOT, Rootfs};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 512;

fuzz_target!(|data: &[u8]| {
    let Some((len, rest)) = data.split_first_chunk() else { return };
    let len = (usize::from(u16::from_le_bytes(*len)) * BLOCK).min(rest.len());
    let (lower, upper) = rest.split_at(len);
    let layers = [lower, upper].map(|bytes| seal(bytes.to_vec()));
    let one = read(&layers, 1);
    let several = read(&layers, 3);
    match (&one, &several) {
        (Ok(one), Ok(several)) => assert_eq!(check(one), check(several)),
        (Err(_), Err(_)) => {}
        (one, several) => panic!("{one:?} and {several:?}"),
    }
    // Bytes as they are, compressed or not.
    let _ = read(&[rest.to_vec()], 1);
});

fn read(layers: &[Vec<u8>], threads: usize) -> Result<Rootfs, Error> {
    let limits = Limits { members: 4096, bytes: 1 << 28, ratio: 10 };
    let options = Options { limits, threads, spool: Some("/dev/shm".into()), ..Options::default() };
    let files: Vec<File> = layers.iter().map(|bytes| file(bytes)).collect();
    daxfs_oci::read_layers(files, &options, &|| false)
}

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("layer", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("memory");
    file
}

/// Gives what may be headers the checksums that they need, so that mutations get behind them.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// Goes through all that a tree has, and gives its names.
fn check(rootfs: &Rootfs) -> Vec<(Vec<u8>, u32)> {
    let tree = &rootfs.tree;
    let (mut todo, mut seen, mut names) = (vec![ROOT], HashSet::new(), Vec::new());
    while let Some(id) = todo.pop() {
        assert!(seen.insert(id), "a name is in two places");
        let (inode, path) = (tree.inode(id), tree.path(id));
        assert!(path.len() <= Limits::PATH && inode.mode <= 0o7777);
        let children = tree.children(id);
        match &inode.kind {
            Kind::Directory => {
                let order: Vec<&[u8]> = children.iter().map(|&child| tree.name(child)).collect();
                assert!(order.is_sorted_by(|left, right| left < right), "names stand twice");
            }
            Kind::File(content) if content.len > 0 => {
                let source = rootfs.sources[content.source as usize].as_ref().expect("a source");
                let mut byte = [0];
                for offset in [content.offset, content.offset + content.len - 1] {
                    source.file.read_exact_at(&mut byte, offset).expect("contents that are there");
                }
            }
            Kind::Symlink(target) => assert!(!target.is_empty() && !target.contains(&0)),
            Kind::File(_) | Kind::Special(_) => {}
        }
        assert!(inode.kind == Kind::Directory || children.is_empty());
        if id != ROOT {
            let name = tree.name(id);
            let is_odd = matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0);
            assert!(!is_odd && name.len() <= Limits::NAME, "{}", name.escape_ascii());
        }
        names.push((path, inode.mode));
        todo.extend(children);
    }
    names
}
