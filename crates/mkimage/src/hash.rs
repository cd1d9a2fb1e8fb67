//! BLAKE3 of a file that several threads read in pieces.
//!
//! BLAKE3 is a tree: any piece of a file that starts on a multiple of 1024 bytes splits into subtrees of that
//! tree, whose chaining values can be computed alone and merged in the end. So each piece is hashed while it is
//! hot in the cache of the core that copied it, and no file is read twice.
//!
//! No subtree is larger than a group of the index, so the groups come out of the same work.

use blake3::hazmat::{
    HasherExt, Mode, left_subtree_len, max_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{CHUNK_LEN, Hasher};
use daxfs::format::index::GROUP_LEN;
use std::ops::Range;

/// A BLAKE3 value of 32 bytes.
pub(crate) type Hash = [u8; 32];

/// The chaining value of one subtree; for a whole file its hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    /// Inode of the file.
    pub(crate) ino: u32,
    /// First byte of the subtree.
    start: u64,
    /// Bytes of it.
    len: u64,
    value: Hash,
}

impl Leaf {
    /// What leaves are sorted by before [`root`] takes them.
    pub(crate) fn key(&self) -> (u32, u64) {
        (self.ino, self.start)
    }
}

/// Hashes one contiguous range of a file.
#[derive(Debug)]
pub(crate) struct RangeHasher {
    ino: u32,
    file_len: u64,
    /// Where the range ends.
    end: u64,
    /// The subtree being hashed, and how much of it is done.
    subtree: Range<u64>,
    at: u64,
    hasher: Hasher,
}

impl RangeHasher {
    /// Begins with `range` of a file of `file_len` bytes. It starts on a multiple of 1024; it ends on one or at
    /// the end of the file.
    pub(crate) fn new(ino: u32, file_len: u64, range: Range<u64>) -> RangeHasher {
        debug_assert!(range.start.is_multiple_of(CHUNK_LEN as u64));
        debug_assert!(range.end == file_len || range.end.is_multiple_of(CHUNK_LEN as u64));
        let mut hasher = RangeHasher {
            ino,
            file_len,
            end: range.end,
            subtree: 0..0,
            at: range.start,
            hasher: Hasher::new(),
        };
        hasher.begin();
        hasher
    }

    /// Turns to the largest subtree that starts here and reaches behind neither the range nor a group.
    fn begin(&mut self) {
        let left = self.end - self.at;
        let most = max_subtree_len(self.at).unwrap_or(u64::MAX).min(GROUP_LEN);
        let len = if self.end == self.file_len && left <= most {
            left
        } else {
            // A power of two; the range is at least one chunk long here.
            most.min(1 << left.ilog2())
        };
        self.subtree = self.at..self.at + len;
        // Not `reset`, which keeps the old offset.
        self.hasher = Hasher::new();
        self.hasher.set_input_offset(self.at);
    }

    /// Takes the next bytes of the range; finished subtrees go to `leaves`.
    pub(crate) fn update(&mut self, mut bytes: &[u8], leaves: &mut Vec<Leaf>) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.subtree.end - self.at).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.at += now.len() as u64;
            bytes = rest;
            if self.at == self.subtree.end {
                leaves.push(self.leaf());
                if self.at < self.end {
                    self.begin();
                } else {
                    return;
                }
            }
        }
    }

    fn leaf(&self) -> Leaf {
        let (start, len) = (self.subtree.start, self.subtree.end - self.subtree.start);
        let whole = start == 0 && len == self.file_len;
        let value = if whole { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() };
        Leaf { ino: self.ino, start, len, value }
    }
}

/// The hash of a file of `len` bytes from all its leaves, by position. `None` when a leaf is missing.
pub(crate) fn root(leaves: &[Leaf], len: u64) -> Option<Hash> {
    let mut rest = leaves;
    if len == 0 {
        return Some(*blake3::hash(b"").as_bytes());
    }
    if let [leaf] = leaves {
        return (leaf.start == 0 && leaf.len == len).then_some(leaf.value);
    }
    let left = left_subtree_len(len);
    let a = subtree(&mut rest, 0..left)?;
    let b = subtree(&mut rest, left..len)?;
    rest.is_empty().then(|| *merge_subtrees_root(&a, &b, Mode::Hash).as_bytes())
}

/// The values of the groups of a file of `len` bytes from all its leaves, by position. None for a file that has no
/// more than one; `None` when a leaf is missing.
pub(crate) fn groups(leaves: &[Leaf], len: u64) -> Option<Vec<Hash>> {
    let (mut rest, mut groups) = (leaves, Vec::new());
    if len > GROUP_LEN {
        let mut at = 0;
        while at < len {
            let end = len.min(at + GROUP_LEN);
            groups.push(subtree(&mut rest, at..end)?);
            at = end;
        }
    }
    Some(groups)
}

fn subtree(rest: &mut &[Leaf], range: Range<u64>) -> Option<Hash> {
    let (leaf, others) = rest.split_first()?;
    let len = range.end - range.start;
    if leaf.start == range.start && leaf.len == len {
        *rest = others;
        return Some(leaf.value);
    }
    if leaf.start != range.start || len <= CHUNK_LEN as u64 {
        return None;
    }
    let middle = range.start + left_subtree_len(len);
    let a = subtree(rest, range.start..middle)?;
    let b = subtree(rest, middle..range.end)?;
    Some(merge_subtrees_non_root(&a, &b, Mode::Hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash_in_pieces(bytes: &[u8], cuts: &[usize], step: usize) -> Option<Hash> {
        let mut leaves = Vec::new();
        let mut bounds = vec![0];
        bounds.extend(cuts.iter().map(|cut| cut * 1024).filter(|&cut| cut < bytes.len() && cut > 0));
        bounds.push(bytes.len());
        bounds.dedup();
        for pair in bounds.windows(2) {
            let mut hasher = RangeHasher::new(7, bytes.len() as u64, pair[0] as u64..pair[1] as u64);
            for piece in bytes[pair[0]..pair[1]].chunks(step) {
                hasher.update(piece, &mut leaves);
            }
            assert_eq!(hasher.at, pair[1] as u64);
        }
        root(&leaves, bytes.len() as u64)
    }

    #[test]
    fn pieces_give_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for len in [0, 1, 1023, 1024, 1025, 2048, 2049, 4096, 65_536, 65_537, 131_072, 299_999] {
            for cuts in [&[][..], &[1], &[4, 5, 6], &[3, 64], &[16, 32, 48, 64, 80], &[100, 101, 128, 255]] {
                let expected = *blake3::hash(&bytes[..len]).as_bytes();
                assert_eq!(hash_in_pieces(&bytes[..len], cuts, 1000), Some(expected), "{len} {cuts:?}");
            }
        }
    }

    #[test]
    fn groups_are_those_that_give_the_hash() {
        let bytes: Vec<u8> = (0..4_500_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for len in [0, 77, 1 << 20, (1 << 20) + 1, 3 << 20, 4_500_000] {
            for cuts in [&[][..], &[1 << 20], &[4096, 3 << 20], &[2 << 20, 4 << 20]] {
                let mut leaves = Vec::new();
                let mut bounds = vec![0];
                bounds.extend(cuts.iter().copied().filter(|&cut| cut < len));
                bounds.push(len);
                for pair in bounds.windows(2) {
                    let mut hasher = RangeHasher::new(1, len as u64, pair[0] as u64..pair[1] as u64);
                    hasher.update(&bytes[pair[0]..pair[1]], &mut leaves);
                }
                let found = groups(&leaves, len as u64).unwrap();
                let hash = *blake3::hash(&bytes[..len]).as_bytes();
                assert_eq!(root(&leaves, len as u64), Some(hash));
                match daxfs::Groups::new(found.clone(), len as u64, &hash) {
                    Some(groups) => assert!(groups.matches(1, &bytes[1 << 20..len.min(2 << 20)])),
                    None => assert!(len <= 1 << 20 && found.is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_missing_leaf_is_noticed() {
        let mut leaves = Vec::new();
        let mut hasher = RangeHasher::new(1, 8192, 0..4096);
        hasher.update(&[0; 4096], &mut leaves);
        assert_eq!(root(&leaves, 8192), None);
        assert_eq!(root(&[], 8192), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_cuts_give_the_same_hash(
            len in 0usize..200_000,
            mut cuts in proptest::collection::vec(0usize..200, 0..6),
            step in 1usize..70_000,
        ) {
            cuts.sort_unstable();
            let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n * 7 % 256).unwrap()).collect();
            prop_assert_eq!(hash_in_pieces(&bytes, &cuts, step), Some(*blake3::hash(&bytes).as_bytes()));
        }
    }
}
