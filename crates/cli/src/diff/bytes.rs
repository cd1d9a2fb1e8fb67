//! Comparing bytes of two images, bounded by what the images have.

use crate::progress::Progress;
use anyhow::bail;
use daxfs::{Image, Original, Tensor};
use std::collections::HashMap;

/// Bytes that are compared at once.
const PIECE: usize = 256 << 10;

/// Compares bytes, and remembers which files are the same.
pub(super) struct Bytes {
    /// Files of both images by inode, and whether they are the same as they lie there.
    known: HashMap<(u64, u64), bool>,
    /// What may still be read: files that share bytes could take any time.
    left: u64,
    bar: Progress,
    buffers: [Vec<u8>; 2],
}

impl Bytes {
    pub fn new(first: &Image, second: &Image, quiet: bool) -> Self {
        let memory = first.region().len().saturating_add(second.region().len());
        let bar = Progress::new("comparing", memory, quiet);
        Self {
            known: HashMap::new(),
            left: memory.saturating_mul(2),
            bar,
            buffers: [vec![0; PIECE], vec![0; PIECE]],
        }
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        self.bar.clear();
    }

    fn spend(&mut self, bytes: u64) -> anyhow::Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => {
                bail!("the files share bytes, so that comparing them would take more than twice both images")
            }
        }
        self.bar.add(bytes);
        Ok(())
    }

    /// Whether two files were the same in their sources.
    pub fn same_originals(&mut self, first: &Original, second: &Original) -> anyhow::Result<bool> {
        if first.len() != second.len() {
            return Ok(false);
        }
        if let (Some(one), Some(other)) = (first.stored_hash()?, second.stored_hash()?) {
            return Ok(one == other);
        }
        let key = (first.file().ino(), second.file().ino());
        let as_they_lie = !first.differs() && !second.differs();
        if let Some(known) = self.known.get(&key).filter(|_| as_they_lie) {
            return Ok(*known);
        }
        let read = |original: &Original, at, buffer: &mut [u8]| original.read_at(at, buffer);
        let same = self.same(
            first.len(),
            |at, buffer| read(first, at, buffer),
            |at, buffer| read(second, at, buffer),
        )?;
        if as_they_lie {
            self.known.insert(key, same);
        }
        Ok(same)
    }

    /// Whether two tensors have the same bytes.
    pub fn same_tensors(&mut self, first: &Tensor, second: &Tensor) -> anyhow::Result<bool> {
        if first.nbytes() != second.nbytes() {
            return Ok(false);
        }
        if first.offset() == second.offset() && self.are_known_as_same(first, second)? {
            return Ok(true);
        }
        let bytes = (first.bytes()?, second.bytes()?);
        let read = |bytes: daxfs::SharedBytes<'_>, at: u64, buffer: &mut [u8]| {
            let len = usize::try_from(at).map_or(0, |at| bytes.len().saturating_sub(at)).min(buffer.len());
            bytes.read_at(at, buffer.get_mut(..len).unwrap_or_default())?;
            Ok(len)
        };
        self.same(
            first.nbytes(),
            |at, buffer| read(bytes.0, at, buffer),
            |at, buffer| read(bytes.1, at, buffer),
        )
    }

    /// Whether the files of two tensors are the same as they lie in the images, without reading them.
    fn are_known_as_same(&mut self, first: &Tensor, second: &Tensor) -> anyhow::Result<bool> {
        let (one, other) = (first.file(), second.file());
        let key = (one.ino(), other.ino());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let hash = |file: &daxfs::File| match file.image().index()? {
            Some(index) => index.file_hash(file.ino()),
            None => Ok(None),
        };
        let (Some(one), Some(other)) = (hash(one)?, hash(other)?) else { return Ok(false) };
        let same = one == other;
        self.known.insert(key, same);
        Ok(same)
    }

    fn same(
        &mut self,
        len: u64,
        first: impl Fn(u64, &mut [u8]) -> daxfs::Result<usize>,
        second: impl Fn(u64, &mut [u8]) -> daxfs::Result<usize>,
    ) -> anyhow::Result<bool> {
        let mut at = 0_u64;
        while at < len {
            let [one, other] = &mut self.buffers;
            let (left, right) = (first(at, one)?, second(at, other)?);
            if one.get(..left) != other.get(..right) {
                return Ok(false);
            }
            if left == 0 {
                bail!("a file became shorter while it was read");
            }
            self.spend(left as u64)?;
            at = at.saturating_add(left as u64);
        }
        Ok(true)
    }
}
