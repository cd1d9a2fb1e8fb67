//! The records of POSIX's extended headers: `LEN KEY=VALUE\n`, LEN counting all of it. Values are bytes, and may hold
//! line ends: capabilities of files do.

use super::header::Placed;
use super::sparse::PaxMap;
use crate::error::{Result, shown};

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And so many of 10^9 parts of one.
    pub nanoseconds: u32,
}

/// Name and value of an extended attribute.
pub type Attribute = (Box<[u8]>, Box<[u8]>);

/// Prefixes of records that are extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// What the records in front of a header say of its member.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Time>,
    /// By name, each once.
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) sparse: PaxMap,
}

impl Records {
    /// Reads all records of the extended header `placed`.
    pub(crate) fn read(mut bytes: &[u8], placed: &Placed) -> Result<Records> {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let (key, value, rest) = split(bytes).ok_or_else(|| {
                let start = bytes.get(..bytes.len().min(40)).unwrap_or_default();
                placed
                    .wrong("a record must be its length, a key and a value", format!("\"{}\"", shown(start)))
            })?;
            records.take(key, value, placed)?;
            bytes = rest;
        }
        records.attributes.sort_by(|(left, _), (right, _)| left.cmp(right));
        // The last of those with one name counts; sorting kept their order.
        records.attributes.reverse();
        records.attributes.dedup_by(|(later, _), (kept, _)| later == kept);
        records.attributes.reverse();
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8], placed: &Placed) -> Result<()> {
        let wrong = |rule| placed.wrong(rule, format!("\"{}={}\"", shown(key), shown(value)));
        // An empty value takes back what an earlier record said.
        let filled = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = filled.map(<[u8]>::to_vec),
            b"linkpath" => self.link = filled.map(<[u8]>::to_vec),
            b"size" => {
                self.size = optional(
                    filled,
                    |value| decimal(value, i64::MAX as u64),
                    || wrong("the size must be a number below 2^63"),
                )?
            }
            b"uid" | b"gid" => {
                let read =
                    |value: &[u8]| decimal(value, u32::MAX.into()).and_then(|id| u32::try_from(id).ok());
                let id = optional(filled, read, || wrong("an owner must be a number of 32 bits"))?;
                if key == b"uid" { self.uid = id } else { self.gid = id }
            }
            b"mtime" => self.mtime = optional(filled, time, || wrong("the time must be a decimal number"))?,
            _ => {
                if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                    if name.is_empty() || name.contains(&0) {
                        return Err(wrong("an extended attribute must have a name"));
                    }
                    self.attributes.push((name.into(), value.into()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse
                        .take(key, value)
                        .ok_or_else(|| wrong("a record of a sparse file must hold what its key says"))?;
                }
            }
        }
        Ok(())
    }
}

fn optional<T, E>(
    value: Option<&[u8]>,
    read: impl Fn(&[u8]) -> Option<T>,
    wrong: impl Fn() -> E,
) -> Result<Option<T>, E> {
    value.map(|value| read(value).ok_or_else(&wrong)).transpose()
}

/// Key and value of the first record, and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = bytes.iter().position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(bytes.get(..digits)?, u32::MAX.into())?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let record = record.get(digits.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
    let (key, value) = record.split_at_checked(equals)?;
    Some((key, value.get(1..)?, rest))
}

/// Digits of a number up to `bound`.
pub(crate) fn decimal(digits: &[u8], bound: u64) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, &byte| {
        let digit = u64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        value.checked_mul(10)?.checked_add(digit)
    })?;
    (value <= bound).then_some(value)
}

/// Seconds, with a fraction or without, and perhaps a sign. What is smaller than a nanosecond is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(at) => (text.get(..at)?, text.get(at.checked_add(1)?..)?),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole, i64::MAX as u64)?).ok()?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let parts = digits.fold(0_u32, |value, byte| {
        value.saturating_mul(10).saturating_add(u32::from(byte.saturating_sub(b'0')))
    });
    match (negative, parts) {
        (false, parts) => Some(Time { seconds, nanoseconds: parts }),
        (true, 0) => Some(Time { seconds: seconds.checked_neg()?, nanoseconds: 0 }),
        (true, parts) => Some(Time {
            seconds: seconds.checked_neg()?.checked_sub(1)?,
            nanoseconds: 1_000_000_000_u32.saturating_sub(parts),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::header::BLOCK;

    fn placed() -> Placed {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_cksum();
        let bytes: &[u8; BLOCK] = header.as_bytes();
        Placed::new(bytes, 0, "layer").unwrap().unwrap()
    }

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = [b" ", key, b"=", value, b"\n"].concat();
        let len =
            (1..=9).map(|digits| body.len() + digits).find(|len| *len == body.len() + len.to_string().len());
        [len.unwrap().to_string().into_bytes(), body].concat()
    }

    fn read(records: &[(&[u8], &[u8])]) -> Result<Records> {
        let bytes = records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>();
        Records::read(&bytes, &placed())
    }

    #[test]
    fn values_may_hold_anything() {
        let capability = b"\x01\0\0\x02\n=\0\0\0\0\0\n";
        let records = read(&[
            (b"path", "\u{e9}\n=".as_bytes()),
            (b"SCHILY.xattr.security.capability", b"old"),
            (b"SCHILY.xattr.security.capability", capability),
            (b"SCHILY.xattr.a", b""),
            (b"size", b"9000000000"),
            (b"uid", b"4294967295"),
            (b"comment", b"of no concern"),
        ])
        .unwrap();
        assert_eq!(records.path.as_deref(), Some("\u{e9}\n=".as_bytes()));
        let attributes: Vec<(&[u8], &[u8])> = records.attributes.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(attributes, [(&b"a"[..], &b""[..]), (b"security.capability", capability)]);
        assert_eq!((records.size, records.uid, records.gid), (Some(9_000_000_000), Some(u32::MAX), None));
        assert_eq!(read(&[(b"path", b"a"), (b"path", b"")]).unwrap().path, None);
    }

    #[test]
    fn times_have_fractions() {
        let at = |text: &str| time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(at("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(at("1.5"), Some((1, 500_000_000)));
        assert_eq!(at("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!((at("-1.25"), at("-3")), (Some((-2, 750_000_000)), Some((-3, 0))));
        for text in ["", "-", ".5", "1.x", "1e9", "99999999999999999999"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [
            &b"x"[..],
            b"6 a=\n",
            b"99 path=a\n",
            b"8 path=a\n",
            b"7 patha\n",
            b"9 =value\n",
            b"0 \n",
            b"6 a=b\n\0\0",
        ] {
            assert!(Records::read(bytes, &placed()).is_err(), "{}", bytes.escape_ascii());
        }
        for (key, value) in [(&b"size"[..], &b"-1"[..]), (b"uid", b"4294967296"), (b"SCHILY.xattr.", b"x")] {
            assert!(read(&[(key, value)]).is_err());
        }
    }
}
