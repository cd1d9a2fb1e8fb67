//! A file whose pages lie partly in the overlay, as a list of pieces in order and without gaps.

use super::{Content, Piece, PieceSource};
use crate::error::{Error, Result};

/// Builds the pieces of one file. Its size was checked, and no sum here goes beyond it.
pub(super) struct Pieces<'a> {
    base: &'a Content,
    base_len: u64,
    pieces: Vec<Piece>,
    end: u64,
}

impl<'a> Pieces<'a> {
    /// A file of which nothing is placed yet, over `base_len` packed bytes.
    pub fn new(base: &'a Content, base_len: u64) -> Self {
        Self { base, base_len, pieces: Vec::new(), end: 0 }
    }

    /// Adds `len` bytes that lie at `source`.
    pub fn push(&mut self, len: u64, source: PieceSource) {
        if len > 0 {
            self.pieces.push(Piece { start: self.end, len, source });
            self.end = self.end.saturating_add(len);
        }
    }

    /// Base bytes as far as they reach, then zeros.
    pub fn fill_to(&mut self, end: u64) -> Result<()> {
        let from_base = end.min(self.base_len).saturating_sub(self.end);
        if from_base > 0 {
            let source = match self.base {
                Content::Image(range) => PieceSource::Image(range.start.saturating_add(self.end)),
                Content::Backing(range) => PieceSource::Backing(range.start.saturating_add(self.end)),
                Content::Elsewhere(why) => {
                    // Without the backing file none of this file can be read in full.
                    self.pieces.clear();
                    return Err(Error::NoContents { path: Vec::new(), why });
                }
                _ => PieceSource::Zeros,
            };
            self.push(from_base, source);
        }
        self.push(end.saturating_sub(self.end), PieceSource::Zeros);
        Ok(())
    }

    /// What the file consists of.
    pub fn finish(self) -> Content {
        if self.pieces.is_empty() { Content::Empty } else { Content::Pieces(self.pieces.into_boxed_slice()) }
    }
}
