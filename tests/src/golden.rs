//! The golden set: images that other tools and the kernel made, with manifests of what must be read from them.
//!
//! It is not part of the project. It lies in `../shared/golden` beside the project's root, or where the
//! variable `DAXFS_GOLDEN` says; where there is none, the tests that need it say so and end.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The folder of the golden set.
#[derive(Debug, Clone)]
pub struct Golden(PathBuf);

/// What must be read from one image.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// Name of the image without extension.
    pub name: String,
    /// Bytes of the uncompressed image.
    pub image_size: u64,
    /// Hash of the uncompressed image.
    pub image_sha256: String,
    /// Version of the format.
    pub format_version: u32,
    /// Slots of the inode table that nothing refers to.
    pub unused_inode_slots: Vec<u32>,
    /// Every entry, the root included.
    pub entries: Vec<Expected>,
}

/// One entry of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Expected {
    /// Absolute path.
    pub path: String,
    /// The path's bytes, where it is not UTF-8.
    pub path_hex: Option<String>,
    /// `file`, `dir`, `symlink`, or `other:` and the type bits in octal.
    #[serde(rename = "type")]
    pub kind: String,
    /// Permission bits in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 271 per entry for a directory.
    pub size: u64,
    /// Link count.
    pub nlink: u32,
    /// Inode number; absent in the list of the source tree.
    pub ino: Option<u64>,
    /// Absolute offset of the data in the image.
    pub image_offset: Option<u64>,
    /// Offset of the data in the backing file.
    pub backing_offset: Option<u64>,
    /// Hash of the contents; null where the image does not hold them.
    pub sha256: Option<String>,
    /// Target of a symbolic link.
    pub target: Option<String>,
}

impl Expected {
    /// The absolute path as bytes.
    pub fn path_bytes(&self) -> Vec<u8> {
        match &self.path_hex {
            Some(hex) => [b"/".as_slice(), &unhex(hex)].concat(),
            None => self.path.clone().into_bytes(),
        }
    }
}

/// One changed copy of a mini image, with what the kernel of version 8 said to it.
#[derive(Debug, Clone, Deserialize)]
pub struct Mutation {
    /// Name of the case.
    pub name: String,
    /// The image that was changed.
    pub base: String,
    /// Changed bytes: offset and hex digits.
    #[serde(default)]
    pub edits: Vec<(u64, String)>,
    /// The whole image, where the edits do not keep the length.
    pub image: Option<String>,
    /// The kernel's verdict.
    pub kernel: KernelVerdict,
}

/// What the kernel said to a mutation.
#[derive(Debug, Clone, Deserialize)]
pub struct KernelVerdict {
    /// `accepted` or `rejected`, mounted without options.
    pub mount: String,
    /// The same, mounted with `validate`.
    pub validate: String,
    /// What it printed.
    pub validate_message: Option<String>,
}

impl Golden {
    /// The golden set, or `None` and a line on standard error that says what was not run.
    pub fn find(what: &str) -> Option<Golden> {
        let folder = match std::env::var_os("DAXFS_GOLDEN") {
            Some(folder) => PathBuf::from(folder),
            None => project_root().join("../shared/golden"),
        };
        if folder.join("manifests").is_dir() {
            return Some(Golden(folder));
        }
        eprintln!("not run: {what}: no golden set at {} (set DAXFS_GOLDEN)", folder.display());
        None
    }

    /// A file of the set.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names of all images that have a manifest, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path("manifests"))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .filter(|name| name != "source-tree")
            .collect();
        names.sort();
        names
    }

    /// The manifest of an image.
    pub fn manifest(&self, name: &str) -> Manifest {
        self.json(&format!("manifests/{name}.json"))
    }

    /// What `mktree.py` makes.
    pub fn source_tree(&self) -> Vec<Expected> {
        self.json("manifests/source-tree.json")
    }

    /// The uncompressed image.
    pub fn image(&self, name: &str) -> Vec<u8> {
        self.unpack(&format!("images/{name}.img.zst")).unwrap()
    }

    /// The uncompressed backing file, where the image has one.
    pub fn backing(&self, name: &str) -> Option<Vec<u8>> {
        self.unpack(&format!("images/{name}.backing.zst"))
    }

    /// All mutations.
    pub fn mutations(&self) -> Vec<Mutation> {
        self.json("mutations.json")
    }

    /// The bytes of a mutation.
    pub fn mutated(&self, mutation: &Mutation) -> Vec<u8> {
        if let Some(image) = &mutation.image {
            return self.unpack(image).unwrap();
        }
        let mut image = self.image(&mutation.base);
        for (offset, hex) in &mutation.edits {
            let (start, bytes) = (usize::try_from(*offset).unwrap(), unhex(hex));
            image[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        image
    }

    fn unpack(&self, name: &str) -> Option<Vec<u8>> {
        let packed = std::fs::read(self.path(name)).ok()?;
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
        Some(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> T {
        let text = std::fs::read(self.path(name)).unwrap();
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// The root of the project.
pub fn project_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// SHA-256 in hex digits, as the manifests have it.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
