//! Bytes as hexadecimal digits: the one place that writes them, and reads them.

use std::fmt;

/// Shows bytes as lowercase hexadecimal digits, two for each.
///
/// ```
/// assert_eq!(dmabuf::Hex(&[0, 0xab]).to_string(), "00ab");
/// ```
#[derive(Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8]);

impl Hex<'_> {
    /// The bytes that digits stand for, in small or capital letters; `None` unless the text is two digits for each byte.
    pub fn decode(digits: &str) -> Option<Vec<u8>> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        digits.as_bytes().chunks(2).map(pair).collect()
    }

    /// [`Hex::decode`] of digits that have to stand for `N` bytes.
    pub fn array<const N: usize>(digits: &str) -> Option<[u8; N]> {
        if digits.len() != N.checked_mul(2)? {
            return None;
        }
        Self::decode(digits)?.try_into().ok()
    }
}

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_two_for_each_byte() {
        assert_eq!((Hex(&[0, 0xaf]).to_string(), format!("{:?}", Hex(&[7]))), ("00af".into(), "07".into()));
        assert_eq!(Hex::decode("00aF"), Some(vec![0, 0xaf]));
        assert_eq!(Hex::array("00aF"), Some([0, 0xaf]));
        assert_eq!((Hex::array::<1>("00aF"), Hex::array::<3>("00aF")), (None, None));
        for wrong in ["0", "000", "0g", "+1", "é", " 0"] {
            assert_eq!(Hex::decode(wrong), None, "{wrong}");
        }
    }
}
