//! Messages with descriptors, as a fuzzer's input: each begins with one byte that chooses the descriptors and two bytes
//! with the length of what follows.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use dmabuf::{HugePages, Memfd, Seals};

/// `O_PATH` of `fcntl.h`.
const O_PATH: i32 = 0o10_000_000;

/// A folder of this process, with a folder to pack in it.
pub fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("daxfs-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("tree")).expect("a folder");
        std::fs::write(folder.join("tree/table"), [7; 5000]).expect("a file");
        folder
    })
}

/// An image in a sealed memfd.
pub fn image() -> OwnedFd {
    static IMAGE: OnceLock<OwnedFd> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        let plan = mkimage::Packer::new().input(folder().join("tree")).plan().expect("a plan");
        plan.write_memory(&mkimage::Memory::Memfd(HugePages::No)).expect("an image").0
    });
    image.try_clone().expect("a descriptor")
}

/// A descriptor of one kind or another.
fn descriptor(kind: u8) -> OwnedFd {
    let open = |path: PathBuf| OwnedFd::from(File::open(path).expect("a file"));
    let memfd = |len, seals| {
        let memfd = Memfd::create("fuzz", len, HugePages::No).expect("a memfd");
        memfd.seal(seals).expect("seals");
        OwnedFd::from(memfd)
    };
    match kind % 8 {
        0 | 1 => image(),
        2 => open(folder().join("tree")),
        3 => open("/dev/null".into()),
        4 => memfd(8192, Seals::empty()),
        5 => memfd(8192, Seals::IMMUTABLE),
        6 => {
            let mut options = File::options();
            options.read(true).custom_flags(O_PATH).open(folder().join("tree")).expect("a path").into()
        }
        _ => std::io::pipe().expect("a pipe").0.into(),
    }
}

/// The messages of an input.
pub fn records(mut data: &[u8]) -> Vec<(Vec<u8>, Vec<OwnedFd>)> {
    let mut records = Vec::new();
    while let Some(([choice, low, high], rest)) = data.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (message, rest) = rest.split_at(len);
        let count = usize::from(choice & 3);
        let fds = (0..count).map(|at| descriptor((choice >> 2).wrapping_add(at as u8 * 3))).collect();
        if !message.is_empty() {
            records.push((message.to_vec(), fds));
        }
        data = rest;
    }
    records
}
