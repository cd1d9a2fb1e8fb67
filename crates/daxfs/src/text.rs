//! What errors show: names that may hold anything, names that are like another.

#![forbid(unsafe_code)]

use std::fmt;

/// Bytes of a name or path as readable text: printable UTF-8 as it is, all else escaped.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// The end of an error's message, with the names that are like one that is not there.
pub(crate) fn question(near: &[String]) -> String {
    match near {
        [] => String::new(),
        [one] => format!("; did you mean {one}?"),
        [first @ .., last] => format!("; did you mean {} or {last}?", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_print_are_escaped() {
        assert_eq!(Escaped(b"a\n\xff/\xc3\xa9").to_string(), "a\\n\\xff/\u{e9}");
    }

    #[test]
    fn questions() {
        assert_eq!(question(&[]), "");
        assert_eq!(question(&["a".into()]), "; did you mean a?");
        assert_eq!(question(&["a".into(), "b".into(), "c".into()]), "; did you mean a, b or c?");
    }
}
