//! BLAKE3 of each 1 MiB of a file, which the file's own hash proves.
//!
//! BLAKE3 is a tree of chunks of 1024 bytes. A group is one of its subtrees; the chaining values of all groups, merged
//! as BLAKE3 merges them, are the file's hash. So groups are believed only together with the hash that they give.

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use super::record::place;
use super::{Index, IndexedFile};
use crate::Result;
use crate::format::index as raw;
use crate::tensor::TensorError;

/// Bytes of a group; the last one of a file may have fewer.
pub const GROUP_LEN: u64 = raw::GROUP_LEN;

/// The groups of one file, which were found to give its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    values: Vec<[u8; 32]>,
    len: u64,
}

impl Groups {
    /// Groups that give the `hash` of a file of `len` bytes; `None` for any others.
    pub fn new(values: Vec<[u8; 32]>, len: u64, hash: &[u8; 32]) -> Option<Self> {
        let is_whole = len > GROUP_LEN && values.len() as u64 == len.div_ceil(GROUP_LEN);
        (is_whole && root(&values, len) == *hash).then_some(Self { values, len })
    }

    /// How many there are, at least two.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// The bytes of the file that a group stands for.
    pub fn range(&self, group: usize) -> Range<u64> {
        let start = (group as u64).saturating_mul(GROUP_LEN).min(self.len);
        start..start.saturating_add(GROUP_LEN).min(self.len)
    }

    /// Whether a chaining value, of BLAKE3 of a group's bytes at their place in the file, is the group's.
    pub fn is_value(&self, group: usize, value: &[u8; 32]) -> bool {
        self.values.get(group).is_some_and(|known| known == value)
    }

    /// Whether these are the bytes of a group.
    pub fn matches(&self, group: usize, bytes: &[u8]) -> bool {
        let range = self.range(group);
        let Some(value) = self.values.get(group).filter(|_| bytes.len() as u64 == range.end - range.start)
        else {
            return false;
        };
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.start);
        hasher.update(bytes);
        hasher.finalize_non_root() == *value
    }
}

/// The hash of a file of `len` bytes, more than one group, from its groups.
fn root(values: &[[u8; 32]], len: u64) -> [u8; 32] {
    let left = left_subtree_len(len);
    let (a, b) = values.split_at(usize::try_from(left / GROUP_LEN).unwrap_or(usize::MAX).min(values.len()));
    *merge_subtrees_root(&subtree(a, left), &subtree(b, len - left), Mode::Hash).as_bytes()
}

/// The chaining value of a subtree; as deep as the logarithm of its length.
fn subtree(values: &[[u8; 32]], len: u64) -> [u8; 32] {
    match values {
        [value] => *value,
        // Callers see to it that there are as many as the length says.
        [] => [0; 32],
        _ => {
            let left = left_subtree_len(len);
            let middle = usize::try_from(left / GROUP_LEN).unwrap_or(usize::MAX).min(values.len());
            let (a, b) = values.split_at(middle);
            merge_subtrees_non_root(&subtree(a, left), &subtree(b, len - left), Mode::Hash)
        }
    }
}

impl Index {
    /// The groups of a file, if the packer left any. They are copied: 32 bytes for each MiB.
    ///
    /// # Errors
    /// [`TensorError::Index`] when they do not give the hash of the file.
    pub fn groups(&self, file: &IndexedFile) -> Result<Option<Groups>> {
        let (Some(numbers), Some(hash)) = (&file.groups, &file.hash) else { return Ok(None) };
        let view = self.view()?;
        let values = numbers.clone().map(|number| self.groups.read_long(view, number));
        let values = values.collect::<dmabuf::Result<Vec<_>>>()?;
        match Groups::new(values, file.size, hash) {
            Some(groups) => Ok(Some(groups)),
            None => Err(TensorError::Index {
                place: place("file record", file.number),
                rule: "its groups must give its hash",
                found: "another hash".into(),
            }
            .into()),
        }
    }

    /// Checks that the groups of a record are in the index.
    pub(super) fn group_numbers(&self, number: u32, record: &raw::FileRecord) -> Result<Range<u64>> {
        let (first, count) = (record.first_group.get(), record.size.get().div_ceil(GROUP_LEN));
        let bound = self.groups.long_count();
        match first.checked_add(count) {
            Some(end) if end <= bound => Ok(first..end),
            _ => Err(TensorError::Index {
                place: place("file record", number),
                rule: "its groups must be in the index",
                found: format!("{count} from {first} on, of {bound}"),
            }
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bytes: &[u8]) -> Vec<[u8; 32]> {
        let group = usize::try_from(GROUP_LEN).unwrap();
        let value = |(at, bytes): (usize, &[u8])| {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(at as u64 * GROUP_LEN);
            hasher.update(bytes);
            hasher.finalize_non_root()
        };
        bytes.chunks(group).enumerate().map(value).collect()
    }

    #[test]
    fn groups_give_the_hash_of_the_file_and_find_the_wrong_one() {
        let bytes: Vec<u8> = (0..5 * GROUP_LEN + 77).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for len in [GROUP_LEN + 1, 2 * GROUP_LEN, 3 * GROUP_LEN - 1, 4 * GROUP_LEN, 5 * GROUP_LEN + 77] {
            let bytes = &bytes[..usize::try_from(len).unwrap()];
            let hash = *blake3::hash(bytes).as_bytes();
            let groups = Groups::new(values(bytes), len, &hash).unwrap();
            assert_eq!(groups.count() as u64, len.div_ceil(GROUP_LEN));
            let part = |group: usize| {
                let range = groups.range(group);
                bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
            };
            for group in 0..groups.count() {
                assert!(groups.matches(group, &part(group)), "{len} {group}");
                assert!(!groups.matches(group + 1, &part(group)), "{len} {group}: in another place");
                let mut wrong = part(group);
                wrong[0] ^= 1;
                assert!(!groups.matches(group, &wrong), "{len} {group}");
            }
            let mut wrong = values(bytes);
            wrong[1][3] ^= 1;
            assert_eq!(Groups::new(wrong, len, &hash), None);
            assert_eq!(Groups::new(values(bytes)[1..].to_vec(), len, &hash), None);
        }
        let short = b"one group is the file's own hash";
        assert_eq!(Groups::new(values(short), 32, blake3::hash(short).as_bytes()), None);
    }
}
