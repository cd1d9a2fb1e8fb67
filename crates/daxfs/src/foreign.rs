//! What people open or name by mistake: other formats that hold or should hold model weights, told by their first
//! bytes, and what to do with each.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;

use dmabuf::SharedBytes;

/// The longest header of a safetensors file, in bytes, as its own library has it.
pub(crate) const LONGEST_HEADER: u64 = 100_000_000;

/// A file of a well-known kind that is no DAXFS image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Foreign {
    /// A safetensors file.
    Safetensors,
    /// A GGUF file of llama.cpp and others.
    Gguf,
    /// A zip archive, as `torch.save` writes (`.pt`, `.pth`, `pytorch_model.bin`).
    Zip,
    /// A pickle, as old versions of `torch.save` write.
    Pickle,
    /// What git leaves of a large file that `git lfs` has not downloaded.
    LfsPointer,
    /// A tar archive, as `docker save` and dataset tools write.
    Tar,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by Zstandard.
    Zstd,
    /// A SquashFS image.
    SquashFs,
    /// An HDF5 file.
    Hdf5,
    /// A web page, which servers send in place of a file that needs a login.
    Html,
}

/// First bytes of a pointer of git-lfs.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

impl Foreign {
    /// Bytes that [`Foreign::of`] looks at: the magic of a tar archive is the last that it needs.
    pub const HEAD: usize = 512;

    /// What a file is that begins with `head`; `None` for an image and for all that is not known. The first
    /// [`Foreign::HEAD`] bytes decide, fewer of a shorter file.
    pub fn of(head: &[u8]) -> Option<Self> {
        let begins = |magic: &[u8]| head.starts_with(magic);
        if begins(LFS) {
            return Some(Self::LfsPointer);
        }
        if begins(b"GGUF") {
            return Some(Self::Gguf);
        }
        if begins(b"PK\x03\x04") || begins(b"PK\x05\x06") {
            return Some(Self::Zip);
        }
        if begins(b"\x1f\x8b\x08") {
            return Some(Self::Gzip);
        }
        if begins(b"\x28\xb5\x2f\xfd") {
            return Some(Self::Zstd);
        }
        if begins(b"\x89HDF\r\n\x1a\n") {
            return Some(Self::Hdf5);
        }
        // What follows the magic of SquashFS is a count of inodes, and its version is at byte 28.
        if begins(b"hsqs") && head.get(28..30) == Some(&[4, 0]) {
            return Some(Self::SquashFs);
        }
        if matches!(head, [0x80, 2..=5, b'c' | b'}' | b'(' | 0x8a | 0x95, ..]) {
            return Some(Self::Pickle);
        }
        if head.get(257..262) == Some(b"ustar") {
            return Some(Self::Tar);
        }
        let text = head.trim_ascii_start();
        let html = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
        if html(b"<!doctype html") || html(b"<html") {
            return Some(Self::Html);
        }
        Self::is_safetensors(head).then_some(Self::Safetensors)
    }

    /// The length of a header, and the JSON that it begins with.
    fn is_safetensors(head: &[u8]) -> bool {
        let Some((length, json)) = head.split_first_chunk::<8>() else { return false };
        let length = u64::from_le_bytes(*length);
        let starts = json.starts_with(b"{\"") || json.starts_with(b"{}") || json.starts_with(b"{ ");
        starts && (2..=LONGEST_HEADER).contains(&length)
    }

    /// What to do when an image holds it where tensors should be.
    pub(crate) fn advice_inside(self) -> &'static str {
        match self {
            Self::LfsPointer => "; the file itself was not downloaded: run `git lfs pull`, then pack again",
            Self::Html => "; the download went wrong, perhaps for want of a login",
            _ => "",
        }
    }

    /// What the memory in a view is, if it is large enough to tell.
    pub(crate) fn of_view(view: SharedBytes<'_>) -> Option<Self> {
        let mut head = [0; Self::HEAD];
        let head = head.get_mut(..Self::HEAD.min(view.len()))?;
        view.read_at(0, head).ok()?;
        Self::of(head)
    }

    /// What to do with it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Safetensors | Self::Gguf => {
                "pack it: `daxfs-pack FILE -o IMAGE.daxfs`, in Python `daxfs.pack(FILE, IMAGE)`"
            }
            Self::Zip | Self::Pickle => {
                "`daxfs-pack FILE -o IMAGE.daxfs` packs it as a file; tensors in place need safetensors, which \
                 `safetensors.torch.save_file` writes"
            }
            Self::LfsPointer => {
                "the file itself was not downloaded: run `git lfs pull`, then pack it with daxfs-pack"
            }
            Self::Tar => "pack what is in it: `daxfs-pack tar:FILE -o IMAGE.daxfs`",
            Self::Gzip | Self::Zstd => {
                "decompress it, and pack what comes out; what is in an archive: `daxfs-pack tar:FILE -o IMAGE.daxfs`"
            }
            Self::SquashFs => {
                "unpack it (`unsquashfs`) and pack the directory: `daxfs-pack DIR -o IMAGE.daxfs`"
            }
            Self::Hdf5 => {
                "pack it: `daxfs-pack FILE -o IMAGE.daxfs`; its arrays are read by h5py, not by daxfs"
            }
            Self::Html => "the download went wrong, perhaps for want of a login",
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "a safetensors file",
            Self::Gguf => "a GGUF file",
            Self::Zip => "a zip archive, as torch.save writes",
            Self::Pickle => "a pickle, as old versions of torch.save write",
            Self::LfsPointer => "a git-lfs pointer",
            Self::Tar => "a tar archive",
            Self::Gzip => "a gzip file",
            Self::Zstd => "a file compressed by Zstandard",
            Self::SquashFs => "a SquashFS image",
            Self::Hdf5 => "an HDF5 file",
            Self::Html => "a web page",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        let mut squashfs = b"hsqs".to_vec();
        squashfs.resize(96, 0);
        squashfs[28] = 4;
        let header = |json: &[u8]| [&(json.len() as u64).to_le_bytes()[..], json].concat();
        for (head, expected) in [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:".to_vec(), Foreign::LfsPointer),
            (b"GGUF\x03\0\0\0".to_vec(), Foreign::Gguf),
            (b"PK\x03\x04\0\0".to_vec(), Foreign::Zip),
            (b"\x1f\x8b\x08\0".to_vec(), Foreign::Gzip),
            (b"\x80\x02}q\0".to_vec(), Foreign::Pickle),
            (b"\x80\x02\x8a\x0al\xfc\x9c".to_vec(), Foreign::Pickle),
            (b"\n <!DOCTYPE html><html>".to_vec(), Foreign::Html),
            (tar, Foreign::Tar),
            (squashfs, Foreign::SquashFs),
            (header(b"{\"__metadata__\":{}}"), Foreign::Safetensors),
            (header(b"{}"), Foreign::Safetensors),
        ] {
            assert_eq!(Foreign::of(&head), Some(expected), "{}", head.escape_ascii());
        }
        let magic = crate::format::MAGIC.to_le_bytes();
        for head in [&b""[..], b"P", b"hsqshsqshsqshsqshsqshsqshsqshsqs", &[0; 600], &[0xff; 600], &magic] {
            assert_eq!(Foreign::of(head), None, "{}", head.escape_ascii());
        }
    }
}
