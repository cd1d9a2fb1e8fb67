//! Reads a header from its beginning, a piece at a time: how long it is shows only when it has been read.

use super::fault;
use crate::Result;
use crate::tensor::TensorError;
use crate::tensor::container::HeaderSource;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

const WHAT: &str = "GGUF headers";

pub(super) struct Cursor<'a> {
    source: &'a dyn HeaderSource,
    /// Bytes that were read and not yet taken begin at `taken`.
    piece: Vec<u8>,
    taken: usize,
    /// Offset of the end of the piece.
    read: u64,
    /// Where headers end at the latest.
    bound: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(source: &'a dyn HeaderSource, max_header: u64) -> Self {
        let bound = source.len().min(max_header);
        Self { source, piece: Vec::new(), taken: 0, read: 0, bound }
    }

    /// Offset of what comes next.
    pub fn position(&self) -> u64 {
        self.read.saturating_sub(self.here().len() as u64)
    }

    fn here(&self) -> &[u8] {
        self.piece.get(self.taken..).unwrap_or_default()
    }

    /// Charges memory before it is used.
    pub fn charge(&self, bytes: u64) -> Result<()> {
        self.source.charge(WHAT, bytes)
    }

    /// Checks that `len` bytes of `what` can be there at all.
    pub fn check(&self, what: &str, len: u64) -> Result<(), TensorError> {
        let begin = self.position();
        let end = begin.saturating_add(len);
        if end <= self.bound {
            return Ok(());
        }
        let rule = match self.bound == self.source.len() {
            true => "it must lie in the file; is the file cut off?",
            false => "the header must not be longer than 256 MiB",
        };
        Err(fault(what, rule, format!("{begin:#x}..{end:#x} in {:#x} bytes", self.source.len())))
    }

    /// The next `len` bytes, which are taken.
    pub fn bytes(&mut self, what: &str, len: u64) -> Result<&[u8]> {
        self.check(what, len)?;
        let missing = len.saturating_sub(self.here().len() as u64);
        if missing > 0 {
            let more = missing.max(PIECE).min(self.bound.saturating_sub(self.read));
            // What is parsed twice is charged twice, as for other headers.
            self.charge(more)?;
            self.piece.drain(..self.taken);
            self.taken = 0;
            let old = self.piece.len();
            // A piece has at most what is left of one before it, and `more`, which is at most the bound.
            self.piece.resize(old.saturating_add(usize::try_from(more).unwrap_or(usize::MAX)), 0);
            self.source.read(self.read, self.piece.get_mut(old..).unwrap_or_default())?;
            self.read = self.read.saturating_add(more);
        }
        let start = self.taken;
        self.taken = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(self.piece.get(start..self.taken).unwrap_or_default())
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(what, N as u64)?);
        Ok(array)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The bytes of a text, whose length stands before it.
    pub fn string(&mut self, what: &str) -> Result<&[u8]> {
        let len = self.u64(what)?;
        self.bytes(what, len)
    }

    /// A name: UTF-8 of at most `bound` bytes. `place` says which in errors.
    pub fn text(&mut self, what: &str, bound: u64, place: impl Fn() -> String) -> Result<String> {
        let len = self.u64(what)?;
        if len > bound {
            return Err(fault(place(), "its name must have at most 64 KiB", format!("{len} bytes")).into());
        }
        let bytes = self.bytes(what, len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => {
                let found = crate::tensor::error::escaped(bytes);
                Err(fault(place(), "its name must be UTF-8", found).into())
            }
        }
    }
}
