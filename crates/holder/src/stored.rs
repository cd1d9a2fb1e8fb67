//! Names of descriptors in systemd's store: at most 255 characters, and no colon.

use std::fmt;

use daxfs_protocol::DeviceUuid;
use daxfs_protocol::message::{DeviceCopy, is_valid_name};

/// What a stored descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredKind {
    /// An image for everybody who may connect.
    Open,
    /// An image for some users, who are listed in another descriptor.
    Restricted,
    /// That list.
    Access,
    /// The signature of an image.
    Signature,
    /// That an image that was for everybody has had such a list since: it stays as long as the image.
    Listed,
}

impl StoredKind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Open, "img"),
        (Self::Restricted, "own"),
        (Self::Access, "acl"),
        (Self::Signature, "sig"),
        (Self::Listed, "lst"),
    ];
}

/// Name of an image's descriptor in the store, `img.GENERATION.NAME` for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// What it is.
    pub kind: StoredKind,
    /// Generation of the image.
    pub generation: u64,
    /// Name of the image.
    pub name: &'a str,
}

impl fmt::Display for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix =
            StoredKind::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or("img", |(_, text)| text);
        write!(f, "{prefix}.{}.{}", self.generation, self.name)
    }
}

impl<'a> Stored<'a> {
    /// Reads such a name; `None` for other descriptors.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (prefix, rest) = text.split_once('.')?;
        let (kind, _) = StoredKind::ALL.iter().find(|(_, known)| *known == prefix)?;
        let (generation, name) = rest.split_once('.')?;
        let generation = generation.parse().ok()?;
        is_valid_name(name).then_some(Self { kind: *kind, generation, name })
    }
}

/// Whether a descriptor is one that a holder stored, if maybe not one of this version: its name begins like one.
pub fn is_stored(text: &str) -> bool {
    let Some((prefix, _)) = text.split_once('.') else { return false };
    prefix == "gpu" || StoredKind::ALL.iter().any(|(_, known)| *known == prefix)
}

/// Name of the descriptor of an image's copy on a device: `gpu.GENERATION.COPY.NAME`, where COPY is all that is known
/// of the copy, 56 bytes in the letters of base64url (RFC 4648), since in hexadecimal digits the longest names would be
/// too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCopy<'a> {
    /// The copy.
    pub copy: DeviceCopy,
    /// Generation of the image.
    pub generation: u64,
    /// Name of the image.
    pub name: &'a str,
}

/// Bytes of [`StoredCopy`]'s COPY.
const COPY_SIZE: usize = 56;
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl fmt::Display for StoredCopy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceCopy { device, placement, size } = &self.copy;
        let bytes = [&device.as_bytes()[..], placement, &size.to_le_bytes()].concat();
        write!(f, "gpu.{}.{}.{}", self.generation, encode(&bytes), self.name)
    }
}

impl<'a> StoredCopy<'a> {
    /// Reads such a name; `None` for other descriptors.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (generation, rest) = text.strip_prefix("gpu.")?.split_once('.')?;
        let (copy, name) = rest.split_once('.')?;
        let bytes: [u8; COPY_SIZE] = decode(copy)?.try_into().ok()?;
        let (device, rest) = bytes.split_first_chunk()?;
        let (placement, size) = rest.split_first_chunk()?;
        let size = u64::from_le_bytes(size.try_into().ok()?);
        let copy = DeviceCopy { device: DeviceUuid::from(*device), placement: *placement, size };
        let generation = generation.parse().ok()?;
        is_valid_name(name).then_some(Self { copy, generation, name })
    }
}

/// Base64url without padding.
fn encode(bytes: &[u8]) -> String {
    let letters = bytes.chunks(3).flat_map(|chunk| {
        let word =
            chunk.iter().fold(0, |word, byte| word << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(move |at| char::from(LETTERS[word >> (18 - 6 * at) & 63]))
    });
    letters.collect()
}

/// The other way; bits behind the last byte are not looked at.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for letter in chunk {
            let value = LETTERS.iter().position(|known| known == letter)?;
            word = word << 6 | u32::try_from(value).ok()?;
        }
        word <<= 6 * (4 - chunk.len());
        bytes.extend_from_slice(word.to_be_bytes().get(1..chunk.len())?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_names() {
        for (kind, text) in StoredKind::ALL {
            let stored = Stored { kind, generation: 12, name: "llama-3.1" };
            assert_eq!(stored.to_string(), format!("{text}.12.llama-3.1"));
            assert_eq!(Stored::parse(&stored.to_string()), Some(stored));
        }
        for wrong in ["daxfs.sock", "img.x.a", "img.1", "img.1.", "img.1..a"] {
            assert_eq!(Stored::parse(wrong), None, "{wrong}");
            assert_eq!(is_stored(wrong), wrong != "daxfs.sock", "{wrong}");
        }
        let longest =
            Stored { kind: StoredKind::Open, generation: u64::MAX, name: &"n".repeat(128) }.to_string();
        assert!(longest.len() <= 255);
    }

    #[test]
    fn names_of_copies() {
        let placement = std::array::from_fn(|at| 250 - u8::try_from(at).unwrap());
        let copy = DeviceCopy { device: [7; 16].into(), placement, size: u64::MAX - 1 };
        let stored = StoredCopy { copy, generation: 12, name: "llama-3.1" };
        let text = stored.to_string();
        assert_eq!(StoredCopy::parse(&text), Some(stored));
        assert_eq!(Stored::parse(&text), None);
        for wrong in [text.replace("gpu", "img"), text.replace("12.", "12.A"), text.replace("12.", "12.!")] {
            assert_eq!(StoredCopy::parse(&wrong), None, "{wrong}");
        }
        let longest = StoredCopy { copy, generation: u64::MAX, name: &"n".repeat(128) }.to_string();
        assert!(longest.len() <= 255, "{}", longest.len());
    }

    #[test]
    fn letters() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!((encode(bytes.as_bytes()), decode(text).unwrap()), (text.to_owned(), bytes.into()));
        }
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(decode("Zg=="), None);
    }
}
