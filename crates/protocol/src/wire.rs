//! Framing and fields of the holder's protocol: fixed little-endian integers and length-prefixed bytes.
//!
//! A message is one datagram of a `SOCK_SEQPACKET` socket, so it comes whole or not at all. It holds a 16-byte
//! header and a body, together at most [`MESSAGE_MAX`] bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `dxh1` |
//! | 4 | 2 | protocol version, 1 |
//! | 6 | 2 | verb |
//! | 8 | 4 | bytes of the body |
//! | 12 | 4 | descriptors that come with it |

#![forbid(unsafe_code)]

use crate::ContentHash;

/// Most bytes of a message.
pub const MESSAGE_MAX: usize = 64 << 10;
/// Most descriptors with a message.
pub const DESCRIPTORS_MAX: usize = 4;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 16;
/// The version described here.
pub const PROTOCOL_VERSION: u16 = 1;
/// First bytes of every message.
const MAGIC: [u8; 4] = *b"dxh1";
/// Longest text or byte string in a body.
const STRING_MAX: usize = 4096;

/// Why a message is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than a header.
    #[error("a message of {0} bytes, but its header takes {HEADER_SIZE}")]
    Short(usize),
    /// The first bytes are wrong: the peer speaks another protocol.
    #[error("a message that begins with {0:02x?} instead of \"dxh1\"")]
    Magic([u8; 4]),
    /// Another protocol version.
    #[error("protocol version {found}, this side speaks {PROTOCOL_VERSION}")]
    Version {
        /// The peer's.
        found: u16,
    },
    /// The header's body length is not what came.
    #[error("a body of {came} bytes, its header says {said}")]
    Length {
        /// Bytes received.
        came: usize,
        /// Bytes announced.
        said: usize,
    },
    /// The header's descriptor count is not what came.
    #[error("{came} descriptors, the header says {said}")]
    Descriptors {
        /// Received.
        came: usize,
        /// Announced.
        said: usize,
    },
    /// A verb that is not known, or not expected here.
    #[error("unexpected verb {0:#x}")]
    Verb(u16),
    /// A field is cut off, too long, or has no such value.
    #[error("{field}: {what}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A message that was taken apart as far as its header.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// What the body is.
    pub verb: u16,
    /// The fields.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the header of a received datagram against what really came.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn parse(message: &'a [u8], descriptors: usize) -> Result<Self, WireError> {
        let Some((header, body)) = message.split_first_chunk::<HEADER_SIZE>() else {
            return Err(WireError::Short(message.len()));
        };
        let mut fields = Fields::new(header);
        let magic = fields.array("magic")?;
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let version = fields.u16("version")?;
        if version != PROTOCOL_VERSION {
            return Err(WireError::Version { found: version });
        }
        let verb = fields.u16("verb")?;
        let said = fields.u32("length")? as usize;
        if said != body.len() {
            return Err(WireError::Length { came: body.len(), said });
        }
        let said = fields.u32("descriptors")? as usize;
        if said != descriptors {
            return Err(WireError::Descriptors { came: descriptors, said });
        }
        Ok(Self { verb, body })
    }
}

/// Builds a message.
#[derive(Debug)]
pub struct Builder(Vec<u8>);

impl Builder {
    /// Begins a message that `descriptors` descriptors will go with.
    pub fn new(verb: u16, descriptors: u32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(MAGIC);
        bytes.extend(PROTOCOL_VERSION.to_le_bytes());
        bytes.extend(verb.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(descriptors.to_le_bytes());
        Self(bytes)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Bytes of a known number.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// A length and that many bytes; longer strings are cut at 4096 bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let bytes = bytes.get(..STRING_MAX).unwrap_or(bytes);
        // At most 4096.
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        self.u32(len).raw(bytes)
    }

    /// A presence byte, and the 32 bytes if there are any.
    pub fn hash(&mut self, hash: Option<&ContentHash>) -> &mut Self {
        match hash {
            Some(hash) => self.u8(1).raw(hash.as_bytes()),
            None => self.u8(0),
        }
    }

    /// Bytes so far, the header included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true: a message has a header.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - HEADER_SIZE).unwrap_or(u32::MAX);
        if let Some(field) = self.0.get_mut(8..12) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        self.0
    }
}

/// Takes a body apart. Every take is bounds-checked; nothing is allocated but the strings, which are bounded.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Over a body.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or(WireError::Field { field, what: "the message ends in it" })?;
        self.0 = rest;
        Ok(taken)
    }

    /// Bytes of a known number.
    ///
    /// # Errors
    /// [`WireError::Field`], as for all that follow.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// Two bytes.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length and that many bytes, at most 4096.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u32(field)? as usize;
        if len > STRING_MAX {
            return Err(WireError::Field { field, what: "longer than 4096 bytes" });
        }
        self.take(len, field)
    }

    /// Text in UTF-8.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn text(&mut self, field: &'static str) -> Result<String, WireError> {
        let bytes = self.bytes(field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(WireError::Field { field, what: "not UTF-8" }),
        }
    }

    /// A presence byte, and 32 bytes if it is 1.
    ///
    /// # Errors
    /// See [`Fields::array`].
    pub fn hash(&mut self, field: &'static str) -> Result<Option<ContentHash>, WireError> {
        match self.u8(field)? {
            0 => Ok(None),
            1 => Ok(Some(ContentHash::from(self.array::<32>(field)?))),
            _ => Err(WireError::Field { field, what: "its presence byte is neither 0 nor 1" }),
        }
    }

    /// Refuses bytes behind the last field.
    ///
    /// # Errors
    /// [`WireError::Field`].
    pub fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(WireError::Field { field: "end", what: "bytes follow it" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Vec<u8> {
        let mut builder = Builder::new(7, 1);
        builder.u8(1).u32(2).u64(3).bytes(b"name").hash(None).hash(Some(&[9; 32].into()));
        builder.finish()
    }

    #[test]
    fn fields_come_back() {
        let message = message();
        let frame = Frame::parse(&message, 1).unwrap();
        assert_eq!(frame.verb, 7);
        let mut fields = Fields::new(frame.body);
        assert_eq!(fields.u8("a"), Ok(1));
        assert_eq!(fields.u32("b"), Ok(2));
        assert_eq!(fields.u64("c"), Ok(3));
        assert_eq!(fields.text("d"), Ok("name".to_owned()));
        assert_eq!(fields.hash("e"), Ok(None));
        assert_eq!(fields.hash("f"), Ok(Some([9; 32].into())));
        fields.end().unwrap();
    }

    #[test]
    fn damage_is_refused() {
        let good = message();
        for len in 0..good.len() {
            assert!(Frame::parse(&good[..len], 1).is_err(), "{len}");
        }
        assert_eq!(Frame::parse(&good, 0).unwrap_err(), WireError::Descriptors { came: 0, said: 1 });
        let mut other = good.clone();
        other[4] = 2;
        assert_eq!(Frame::parse(&other, 1).unwrap_err(), WireError::Version { found: 2 });
        let mut long = Builder::new(1, 0);
        long.u32(5000).raw(&[0; 5000]);
        let long = long.finish();
        let frame = Frame::parse(&long, 0).unwrap();
        assert!(Fields::new(frame.body).bytes("x").is_err());
        assert!(Fields::new(&[1]).end().is_err());
    }
}
