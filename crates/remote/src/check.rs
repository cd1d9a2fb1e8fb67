//! Compares bytes with hashes as they come.

use blake3::Hasher;
use blake3::hazmat::HasherExt;

use crate::plan::{Expected, Part, Piece};

/// The bytes of a part, in order, against its pieces.
#[derive(Debug)]
pub(crate) struct Check<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    /// The piece that is hashed.
    piece: Option<&'a Piece>,
    hasher: Hasher,
    /// Where in the image the next byte belongs.
    at: u64,
}

impl<'a> Check<'a> {
    /// Of a part from `at` on, where a piece begins, or before its first one.
    pub(crate) fn new(part: &'a Part, at: u64) -> Self {
        let first = part.pieces.partition_point(|piece| piece.range.start < at);
        let pieces = part.pieces.get(first..).unwrap_or_default().iter();
        let mut check = Self { pieces, piece: None, hasher: Hasher::new(), at };
        check.next();
        check
    }

    fn next(&mut self) {
        self.piece = self.pieces.next();
        // Resetting one keeps the offset.
        self.hasher = Hasher::new();
        if let Some(Piece { expected: Expected::Group(..), from, .. }) = self.piece {
            self.hasher.set_input_offset(*from);
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The piece that they make wrong.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) -> Result<(), &'a Piece> {
        while let (Some(piece), false) = (self.piece, bytes.is_empty()) {
            if self.at < piece.range.start {
                let between =
                    usize::try_from(piece.range.start - self.at).unwrap_or(usize::MAX).min(bytes.len());
                (self.at, bytes) = (self.at + between as u64, bytes.get(between..).unwrap_or_default());
                continue;
            }
            let rest = usize::try_from(piece.range.end - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let (these, behind) = bytes.split_at(rest);
            self.hasher.update(these);
            (self.at, bytes) = (self.at + rest as u64, behind);
            if self.at == piece.range.end {
                let is_right = match &piece.expected {
                    Expected::File(hash) => self.hasher.finalize() == *hash,
                    Expected::Group(groups, group) => {
                        groups.is_value(*group, &self.hasher.finalize_non_root())
                    }
                };
                if !is_right {
                    return Err(piece);
                }
                self.next();
            }
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// From where on the part has to be fetched again when it ends here: nothing before that is wrong.
    pub(crate) fn resume(&self) -> u64 {
        self.piece.map_or(self.at, |piece| piece.range.start.min(self.at))
    }
}
