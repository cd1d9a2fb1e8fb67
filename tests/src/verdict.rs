//! What the reader says to an image, in a form that a table of expectations can hold.

use daxfs::{Error, Image, OpenOptions, Region};

/// An expected answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The image opens.
    Opens,
    /// It is refused: the kind of error as [`kind`] names it, and a part of the message.
    Refused(&'static str, &'static str),
}

impl Verdict {
    /// What is wrong with `result`, if it is not this.
    pub fn disagreement(self, result: &Result<Image, Error>) -> Option<String> {
        match (self, result) {
            (Verdict::Opens, Ok(_)) => None,
            (Verdict::Opens, Err(error)) => Some(format!("expected to open, but {}: {error}", kind(error))),
            (Verdict::Refused(..), Ok(_)) => Some(format!("expected {self:?}, but it opened")),
            (Verdict::Refused(expected, text), Err(error)) => {
                let agrees = kind(error) == expected && error.to_string().contains(text);
                (!agrees).then(|| format!("expected {self:?}, but {}: {error}", kind(error)))
            }
        }
    }
}

/// Opens bytes, strictly (by the rules of kernels with pages of 4096 bytes) or not.
pub fn open(bytes: Vec<u8>, strict: bool) -> Result<Image, Error> {
    OpenOptions::new().strict(strict).page_size(4096).open_region(Region::from_bytes(bytes))
}

/// Name of the error's variant; of the broken rule where there is one.
pub fn kind(error: &Error) -> String {
    match error {
        Error::Invalid { rule, .. } => format!("{rule:?}"),
        other => {
            let text = format!("{other:?}");
            let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
            text[..end].to_owned()
        }
    }
}
