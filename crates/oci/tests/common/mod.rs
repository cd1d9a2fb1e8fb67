//! Layers written member by member, as honest and as odd as a test wants them, and what is read of them.

#![allow(dead_code, reason = "each test binary uses a part")]

use daxfs_oci::{Error, Kind, Limits, Options, ROOT, Rootfs, Source, Special, Time};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tar::EntryType;

/// What a name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    File { mode: u32, owner: (u32, u32), contents: Vec<u8> },
    Directory { mode: u32, owner: (u32, u32) },
    Symlink { owner: (u32, u32), target: String },
    Special(&'static str),
}

/// By absolute path.
pub type Listing = BTreeMap<String, Node>;

/// An archive that is being written.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

/// Attributes of a member.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: u64,
}

pub const PLAIN: Attributes = Attributes { mode: 0o644, owner: (0, 0), mtime: 1_700_000_000 };

impl Layer {
    pub fn new() -> Layer {
        Layer::default()
    }

    pub fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Layer {
        self.member(EntryType::Regular, name, "", contents.as_ref(), PLAIN)
    }

    pub fn dir(self, name: &str) -> Layer {
        self.member(EntryType::Directory, name, "", b"", Attributes { mode: 0o755, ..PLAIN })
    }

    pub fn symlink(self, name: &str, target: &str) -> Layer {
        self.member(EntryType::Symlink, name, target, b"", Attributes { mode: 0o777, ..PLAIN })
    }

    pub fn hard_link(self, name: &str, target: &str) -> Layer {
        self.member(EntryType::Link, name, target, b"", PLAIN)
    }

    /// Takes away what lower layers have at `name`.
    pub fn gone(self, name: &str) -> Layer {
        let (around, last) = name.rsplit_once('/').map_or(("", name), |(around, last)| (around, last));
        let slash = if around.is_empty() { "" } else { "/" };
        self.file(&format!("{around}{slash}.wh.{last}"), "")
    }

    /// A member with a header of GNU's form, and names of any kind.
    pub fn member(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        contents: &[u8],
        attributes: Attributes,
    ) -> Layer {
        for (text, kind) in [(name, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            if text.len() > 100 {
                self = self.raw(kind, "././@LongLink", "", &[text.as_bytes(), b"\0"].concat(), PLAIN);
            }
        }
        self.raw(kind, name, link, contents, attributes)
    }

    fn raw(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        contents: &[u8],
        attributes: Attributes,
    ) -> Layer {
        let mut header = tar::Header::new_gnu();
        let put = |field: &mut [u8], text: &str| {
            let len = text.len().min(field.len());
            field[..len].copy_from_slice(&text.as_bytes()[..len]);
        };
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, link);
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.owner.0.into());
        header.set_gid(attributes.owner.1.into());
        header.set_mtime(attributes.mtime);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self = self.block(header.as_bytes());
        self.block(contents)
    }

    /// A directory as it was before there were any: a file whose name ends in a slash.
    pub fn old_dir(self, name: &str) -> Layer {
        let start = self.bytes.len();
        let mut layer = self.file(name, "");
        layer.bytes[start + 156] = 0;
        let sum: u32 = layer.bytes[start..]
            .iter()
            .enumerate()
            .fold(0, |sum, (at, &byte)| sum + u32::from(if (148..156).contains(&at) { b' ' } else { byte }));
        layer.bytes[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        layer
    }

    /// Records of POSIX for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Layer {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut len = body.len() + 1;
            while len.to_string().len() + body.len() != len {
                len = len.to_string().len() + body.len();
            }
            bytes.extend_from_slice(len.to_string().as_bytes());
            bytes.extend_from_slice(&body);
        }
        self.raw(EntryType::XHeader, "PaxHeaders/x", "", &bytes, PLAIN)
    }

    /// Bytes as they are, up to the next block.
    pub fn block(mut self, bytes: &[u8]) -> Layer {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// All of it, with the end that archives have.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 1024]].concat()
    }

    /// As [`Layer::bytes`], without the end.
    pub fn cut(&self, len: usize) -> Vec<u8> {
        self.bytes[..len].to_vec()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A file without a name that holds these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub fn options() -> Options {
    Options { threads: 2, ..Options::default() }
}

/// Reads layers, the lowest first.
pub fn read_bytes(layers: &[Vec<u8>], options: &Options) -> Result<Rootfs, Error> {
    daxfs_oci::read_layers(layers.iter().map(|bytes| file(bytes)), options, &|| false)
}

/// What layers become, however they are compressed, and with one thread as with several.
pub fn read(layers: &[Layer]) -> Result<Listing, Error> {
    let plain: Vec<Vec<u8>> = layers.iter().map(Layer::bytes).collect();
    let first = read_bytes(&plain, &options()).map(|rootfs| list(&rootfs));
    for encode in [gzip, zstd] {
        let encoded: Vec<Vec<u8>> = plain.iter().map(|bytes| encode(bytes)).collect();
        for threads in [1, 3] {
            let again = read_bytes(&encoded, &Options { threads, ..Options::default() });
            match (&first, again.map(|rootfs| list(&rootfs))) {
                (Ok(first), Ok(again)) => assert_eq!(*first, again),
                (Err(first), Err(again)) => assert_eq!(first.to_string(), again.to_string()),
                (first, again) => panic!("{first:?} and {again:?}"),
            }
        }
    }
    first
}

/// What a tree is that layers are read into.
pub fn list(rootfs: &Rootfs) -> Listing {
    let mut listing = Listing::new();
    let mut todo = vec![ROOT];
    while let Some(id) = todo.pop() {
        let tree = &rootfs.tree;
        let inode = tree.inode(id);
        let (mode, owner) = (inode.mode, (inode.uid, inode.gid));
        let node = match &inode.kind {
            Kind::Directory => Node::Directory { mode, owner },
            Kind::File(content) => {
                let mut contents = vec![0; usize::try_from(content.len).unwrap()];
                if content.len > 0 {
                    let source = rootfs.sources[content.source as usize].as_ref().unwrap();
                    source.file.read_exact_at(&mut contents, content.offset).unwrap();
                }
                Node::File { mode, owner, contents }
            }
            Kind::Symlink(target) => {
                Node::Symlink { owner, target: String::from_utf8(target.to_vec()).unwrap() }
            }
            Kind::Special(special) => Node::Special(special.name()),
        };
        listing.insert(String::from_utf8(tree.path(id)).unwrap(), node);
        todo.extend(tree.children(id));
    }
    listing
}

/// The paths of a listing that are no directories, with the contents of files and the targets of links.
pub fn brief(listing: &Listing) -> Vec<String> {
    let name = |(path, node): (&String, &Node)| match node {
        Node::File { contents, .. } => Some(format!("{path}={}", String::from_utf8_lossy(contents))),
        Node::Symlink { target, .. } => Some(format!("{path}->{target}")),
        Node::Special(kind) => Some(format!("{path}: {kind}")),
        Node::Directory { .. } => None,
    };
    listing.iter().filter_map(name).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image layout that is being written.
pub struct Layout<'a> {
    pub path: &'a Path,
    pub manifests: Vec<Value>,
}

impl Layout<'_> {
    pub fn new(path: &Path) -> Layout<'_> {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { path, manifests: Vec::new() }
    }

    /// Writes a blob and describes it.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.path.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes an image and describes its manifest.
    pub fn image(&self, layers: &[Layer], encode: fn(&[u8]) -> Vec<u8>, architecture: &str) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.bytes())).collect();
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Entrypoint": ["/bin/sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let blobs = layers.iter().map(|layer| {
            let bytes = encode(&layer.bytes());
            let end = match bytes[..2] {
                [0x1f, 0x8b] => "+gzip",
                [0x28, 0xb5] => "+zstd",
                _ => "",
            };
            self.blob(&format!("application/vnd.oci.image.layer.v1.tar{end}"), &bytes)
        });
        let layers: Vec<Value> = blobs.collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
        });
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
    }

    /// Puts a manifest into the index.
    pub fn tag(&mut self, mut manifest: Value, tag: &str) {
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(manifest);
    }

    pub fn finish(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }
}

/// Reads what has a name.
pub fn read_name(name: &str, options: &Options) -> Result<Rootfs, Error> {
    daxfs_oci::read(&Source::parse(name)?.unwrap(), options, &|| false)
}

/// Bytes that no encoder makes smaller.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(step).take(len).collect()
}

pub const FEW: Limits = Limits { members: 100, bytes: 1 << 30, ratio: 10 };

pub fn at(seconds: i64, nanoseconds: u32) -> Time {
    Time { seconds, nanoseconds }
}

pub const FIFO: &str = "FIFO";

pub fn special(kind: Special) -> Node {
    Node::Special(kind.name())
}
