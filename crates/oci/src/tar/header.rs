//! One header of a tar archive: 512 bytes, in the forms of V7, POSIX (ustar) and GNU, which differ in their last part.
//!
//! Numbers are octal digits, or, where the first bit is set, 256-based and signed. What does not fit or is neither is
//! an error: other readers must not see another archive.

use crate::error::{Error, Result};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of a header, and what everything in an archive is padded to.
pub(crate) const BLOCK: usize = 512;

/// First byte in a sparse file, and bytes, of what is there of it.
pub(crate) type Stretches = Vec<(u64, u64)>;

/// A header as it lies in the archive.
#[derive(Debug, Clone, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    name: [u8; 100],
    mode: [u8; 8],
    uid: [u8; 8],
    gid: [u8; 8],
    size: [u8; 12],
    mtime: [u8; 12],

    checksum: [u8; 8],
    pub(crate) typeflag: u8,
    link: [u8; 100],

    /// `ustar`, NUL, `00`: POSIX; `ustar`, two spaces, NUL: GNU; else V7.
    magic: [u8; 8],
    user: [u8; 32],
    group: [u8; 32],
    device_major: [u8; 8],
    device_minor: [u8; 8],

    /// The prefix of a POSIX name, or GNU's fields.
    tail: [u8; 167],
}

/// The last part of GNU's form.
#[derive(Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct GnuTail {
    atime: [u8; 12],
    ctime: [u8; 12],
    offset: [u8; 12],
    long_names: [u8; 4],
    unused: u8,
    sparse: [Stretch; 4],
    is_extended: u8,
    real_size: [u8; 12],
    padding: [u8; 17],
}

/// More stretches of a sparse file of GNU's form, in a block of their own.
#[derive(Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Extension {
    sparse: [Stretch; 21],
    is_extended: u8,
    padding: [u8; 7],
}

/// Bytes of a sparse file that are there.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Stretch {
    offset: [u8; 12],
    len: [u8; 12],
}

const _: () = {
    assert!(size_of::<Header>() == BLOCK);
    assert!(core::mem::offset_of!(Header, checksum) == 148);
    assert!(core::mem::offset_of!(Header, typeflag) == 156);
    assert!(core::mem::offset_of!(Header, magic) == 257);
    assert!(core::mem::offset_of!(Header, tail) == 345);
    assert!(size_of::<GnuTail>() == 167);
    assert!(core::mem::offset_of!(GnuTail, sparse) == 386 - 345);
    assert!(core::mem::offset_of!(GnuTail, real_size) == 483 - 345);
    assert!(size_of::<Extension>() == BLOCK);
};

/// A header and where it lies.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) header: Header,
    /// Its first byte in the archive.
    pub(crate) offset: u64,
    place: String,
}

impl Placed {
    /// Takes a block whose checksum holds. `None`: it is all zeros, with which archives end.
    pub(crate) fn new(block: &[u8; BLOCK], offset: u64, place: &str) -> Result<Option<Placed>> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let Ok(header) = Header::read_from_bytes(block) else { return Ok(None) };
        let placed = Placed { header, offset, place: place.to_owned() };
        let stored = placed.number(&placed.header.checksum, "the checksum must be a number")?;
        // Some old programs summed signed bytes. 512 of them fit.
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned = unsigned.saturating_add(i64::from(byte));
            signed = signed.saturating_add(i64::from(byte.cast_signed()));
        }
        if stored != unsigned && stored != signed {
            return Err(placed
                .wrong("the checksum must be that of the header", format!("{stored}, it is {unsigned}")));
        }
        Ok(Some(placed))
    }

    /// An error of this header.
    pub(crate) fn wrong(&self, rule: &'static str, found: impl Into<String>) -> Error {
        Error::Header { place: self.place.clone(), offset: self.offset, rule, found: found.into() }
    }

    /// The name, with the prefix that POSIX knows.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.header.name);
        let prefix = match &self.header.magic {
            b"ustar\x0000" => text(self.header.tail.get(..155).unwrap_or_default()),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    /// What a link leads to.
    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.header.link).to_vec()
    }

    /// Permissions: the lowest twelve bits.
    pub(crate) fn mode(&self) -> Result<u32> {
        let mode = self.number(&self.header.mode, "the mode must be a number")?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub(crate) fn uid(&self) -> Result<u32> {
        self.id(&self.header.uid, "the owner must be a number of 32 bits")
    }

    pub(crate) fn gid(&self) -> Result<u32> {
        self.id(&self.header.gid, "the group must be a number of 32 bits")
    }

    fn id(&self, field: &[u8], rule: &'static str) -> Result<u32> {
        let number = self.number(field, rule)?;
        u32::try_from(number).map_err(|_| self.wrong(rule, number.to_string()))
    }

    pub(crate) fn mtime(&self) -> Result<i64> {
        self.number(&self.header.mtime, "the time must be a number")
    }

    /// Bytes that follow the header.
    pub(crate) fn size(&self) -> Result<u64> {
        self.unsigned(&self.header.size, "the size must be a number below 2^63")
    }

    /// Bytes of a sparse file, and the first of its stretches; whether more blocks of them follow.
    pub(crate) fn sparse(&self) -> Result<(u64, Stretches, bool)> {
        let wrong = |_| self.wrong("a sparse file must have a header of GNU's form", "another");
        if self.header.magic != *b"ustar  \0" {
            return Err(wrong(()));
        }
        let tail = GnuTail::ref_from_bytes(&self.header.tail).map_err(|_| wrong(()))?;
        let real = self.unsigned(&tail.real_size, "the size must be a number below 2^63")?;
        Ok((real, self.stretches(&tail.sparse)?, tail.is_extended != 0))
    }

    /// The stretches of a further block; whether more follow.
    pub(crate) fn extension(&self, block: &[u8; BLOCK]) -> Result<(Stretches, bool)> {
        let Ok(extension) = Extension::ref_from_bytes(block) else { return Ok((Vec::new(), false)) };
        Ok((self.stretches(&extension.sparse)?, extension.is_extended != 0))
    }

    fn stretches(&self, list: &[Stretch]) -> Result<Stretches> {
        const RULE: &str = "a stretch of a sparse file must be two numbers below 2^63";
        let mut stretches = Vec::new();
        // The first that is empty ends the list.
        for Stretch { offset, len } in
            list.iter().take_while(|stretch| stretch.offset.iter().any(|&b| b != 0))
        {
            stretches.push((self.unsigned(offset, RULE)?, self.unsigned(len, RULE)?));
        }
        Ok(stretches)
    }

    fn unsigned(&self, field: &[u8], rule: &'static str) -> Result<u64> {
        let number = self.number(field, rule)?;
        u64::try_from(number).map_err(|_| self.wrong(rule, number.to_string()))
    }

    fn number(&self, field: &[u8], rule: &'static str) -> Result<i64> {
        number(field).ok_or_else(|| self.wrong(rule, format!("\"{}\"", field.escape_ascii())))
    }
}

/// The bytes in front of the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number of a header. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // The bit behind the first is the sign.
        let start = i128::from((first << 1).cast_signed() >> 1);
        let value = rest.iter().try_fold(start, |value, &byte| {
            let shifted = value.checked_mul(256)?.checked_add(i128::from(byte))?;
            // Far from what fits, so that 12 bytes cannot overflow.
            (shifted.unsigned_abs() < 1 << 100).then_some(shifted)
        })?;
        return i64::try_from(value).ok();
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    // What stands behind a NUL is of no concern, as for names.
    if rest.iter().take_while(|&&byte| byte != 0).any(|byte| !is_blank(byte)) {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, &byte| {
        let digit = i64::from(byte.checked_sub(b'0').filter(|digit| *digit < 8)?);
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_of_256() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"    644 ", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"", 0),
            (b"77777777777\0", 0o77_777_777_777),
            (b"777777777777", 0o777_777_777_777),
            (b"0000017\0junk", 0o17),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", 256),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field), Some(value), "{}", field.escape_ascii());
        }
        for field in [
            &b"0000648\0"[..],
            b"-1",
            b"12 34",
            b"x",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(number(field), None, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn headers_of_the_tar_crate_are_read() {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("{}/name", "d".repeat(120))).unwrap();
        header.set_link_name("target").unwrap();
        header.set_mode(0o104_755);
        header.set_uid(1000);
        header.set_gid(7);
        header.set_size(12345);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        let placed = Placed::new(header.as_bytes(), 1024, "layer").unwrap().unwrap();
        assert_eq!(placed.name(), format!("{}/name", "d".repeat(120)).as_bytes());
        assert_eq!((placed.link(), placed.mode().unwrap()), (b"target".to_vec(), 0o4755));
        assert_eq!((placed.uid().unwrap(), placed.gid().unwrap(), placed.size().unwrap()), (1000, 7, 12345));
        assert_eq!(placed.mtime().unwrap(), 1_700_000_000);
        assert!(placed.sparse().is_err());
        let mut broken = *header.as_bytes();
        broken[0] ^= 1;
        let error = Placed::new(&broken, 1024, "layer").unwrap_err().to_string();
        assert!(
            error.starts_with("layer: header at byte 1024: the checksum must be that of the header"),
            "{error}"
        );
        assert!(Placed::new(&[0; BLOCK], 0, "layer").unwrap().is_none());
    }
}
