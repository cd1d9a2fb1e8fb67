//! How ranges of device memory are hashed in batches of bounded size: which of them at once, and in which slots.
//!
//! A slot holds the BLAKE3 chaining value of a chunk. An extent takes as many as it has chunks, from a multiple of the
//! power of two at or above that number on (see `hash.cu`, which relies on it). Longer ranges than a batch has slots
//! for are cut into subtrees, and joined here.

#![forbid(unsafe_code)]

use blake3::CHUNK_LEN;
use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
use zerocopy::{Immutable, IntoBytes};

use super::driver::Address;

/// A BLAKE3 value.
pub(super) type Hash = [u8; 32];

/// Device memory whose hash is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub address: Address,
    /// Bytes; 0 is as good as any other.
    pub len: u64,
}

/// `struct extent` of `hash.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Extent {
    pub address: Address,
    pub len: u64,
    /// Number of its first chunk in the range.
    pub chunk: u64,
    pub first_slot: u32,
    /// 1 if it is all of a range.
    pub is_whole: u32,
}

const _: () = assert!(size_of::<Extent>() == 32);

/// What one batch has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    /// A power of two.
    pub slots: u32,
    pub extents: usize,
}

/// A level of the trees, counted from the chunks: which nodes are joined to make the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// The first so many extents of the batch have more than one node there.
    pub extents: u32,
    /// Pairs of slots that may hold two nodes.
    pub pairs: u32,
}

/// Extents that are hashed together, in the order of their slots, the longest first.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub extents: Vec<Extent>,
    /// For each extent the number of its range, and of the part of it that it is.
    parts: Vec<(usize, usize)>,
    pub slots: u32,
    pub levels: Vec<Level>,
}

impl Batch {
    /// Bytes that are hashed.
    pub fn len(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    fn add(&mut self, part: &Part) {
        let Part { extent, range, number, chunks } = *part;
        self.extents.push(Extent { first_slot: self.slots, ..extent });
        self.parts.push((range, number));
        self.slots += chunks.next_power_of_two();
        for level in 0..chunks.next_power_of_two().ilog2() {
            let level = level as usize;
            if level == self.levels.len() {
                self.levels.push(Level { extents: 0, pairs: 0 });
            }
            // Longer ones came before, so those of a level are the first ones.
            self.levels[level] = Level { extents: count(&self.extents), pairs: self.slots >> (level + 1) };
        }
    }
}

fn count(extents: &[Extent]) -> u32 {
    u32::try_from(extents.len()).unwrap_or(u32::MAX)
}

/// A part of a range, before it has a place in a batch.
#[derive(Debug, Clone, Copy)]
struct Part {
    extent: Extent,
    range: usize,
    number: usize,
    chunks: u32,
}

/// All that is to be hashed.
#[derive(Debug)]
pub(super) struct Work {
    parts: Vec<Part>,
    /// First part that is in no batch yet.
    next: usize,
    capacity: Capacity,
    /// Hashes of the parts of each range.
    hashes: Vec<Vec<Hash>>,
}

impl Work {
    pub fn new(ranges: &[Range], capacity: Capacity) -> Self {
        let longest = u64::from(capacity.slots) * CHUNK_LEN as u64;
        let mut parts = Vec::new();
        let mut hashes = Vec::with_capacity(ranges.len());
        for (range, Range { address, len }) in ranges.iter().enumerate() {
            let pieces = len.div_ceil(longest).max(1);
            for (number, start) in (0..pieces).map(|number| number * longest).enumerate() {
                let part_len = longest.min(len - start);
                // At most `slots`.
                let chunks = u32::try_from(part_len.div_ceil(CHUNK_LEN as u64).max(1)).unwrap_or(u32::MAX);
                let extent = Extent {
                    address: address + start,
                    len: part_len,
                    chunk: start / CHUNK_LEN as u64,
                    first_slot: 0,
                    is_whole: u32::from(pieces == 1),
                };
                parts.push(Part { extent, range, number, chunks });
            }
            hashes.push(vec![[0; 32]; usize::try_from(pieces).unwrap_or(usize::MAX)]);
        }
        // Then each begins at a multiple of its own power of two, without gaps but for those behind them.
        parts.sort_by_key(|part| std::cmp::Reverse(part.chunks));
        Self { parts, next: 0, capacity, hashes }
    }

    /// What is hashed next; `None` when all is done.
    pub fn batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        while let Some(part) = self.parts.get(self.next) {
            let slots = batch.slots + part.chunks.next_power_of_two();
            if slots > self.capacity.slots || batch.extents.len() == self.capacity.extents {
                break;
            }
            batch.add(part);
            self.next += 1;
        }
        (!batch.extents.is_empty()).then_some(batch)
    }

    /// Takes the hashes of a batch, in the order of its extents.
    pub fn put(&mut self, batch: &Batch, hashes: &[Hash]) {
        for (&(range, number), hash) in batch.parts.iter().zip(hashes) {
            self.hashes[range][number] = *hash;
        }
    }

    /// The hashes of the ranges, when those of all batches were put.
    pub fn finish(self) -> Vec<Hash> {
        self.hashes.into_iter().map(join).collect()
    }
}

/// The hash of a range from those of its parts: subtrees of one size, but for the last.
fn join(mut parts: Vec<Hash>) -> Hash {
    while parts.len() > 2 {
        parts = parts
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                // The last of an odd number goes up as it is.
                rest => rest[0],
            })
            .collect();
    }
    match parts[..] {
        [left, right] => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        _ => parts[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake3::Hasher;
    use blake3::hazmat::HasherExt;

    /// Hashes as the kernels do; an address is a place in `memory`.
    fn run(batch: &Batch, memory: &[u8], capacity: Capacity) -> Vec<Hash> {
        assert!(batch.slots <= capacity.slots && batch.extents.len() <= capacity.extents);
        let chunks = |extent: &Extent| extent.len.div_ceil(1024).max(1);
        let mut nodes = vec![None; batch.slots as usize];
        for extent in &batch.extents {
            assert!(u64::from(extent.first_slot).is_multiple_of(chunks(extent).next_power_of_two()));
            let bytes =
                &memory[usize::try_from(extent.address).unwrap()..][..usize::try_from(extent.len).unwrap()];
            let mut pieces: Vec<&[u8]> = bytes.chunks(1024).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            for (number, piece) in pieces.iter().enumerate() {
                let mut hasher = Hasher::new();
                hasher.set_input_offset((extent.chunk + number as u64) * 1024);
                hasher.update(piece);
                let is_root = extent.is_whole == 1 && pieces.len() == 1;
                let value = if is_root { hasher.finalize().into() } else { hasher.finalize_non_root() };
                assert!(
                    nodes[extent.first_slot as usize + number].replace(value).is_none(),
                    "two in one slot"
                );
            }
        }
        for (level, &Level { extents, pairs }) in batch.levels.iter().enumerate() {
            let slot_of = |pair: u32| pair << (level + 1);
            for left in (0..pairs).map(slot_of) {
                let of = batch.extents[..extents as usize].iter().rfind(|extent| extent.first_slot <= left);
                let extent = of.unwrap();
                let right = left - extent.first_slot + (1 << level);
                if u64::from(right) >= chunks(extent) {
                    continue;
                }
                let pair =
                    [nodes[left as usize].unwrap(), nodes[(extent.first_slot + right) as usize].unwrap()];
                let is_root = extent.is_whole == 1 && chunks(extent) <= 2 << level;
                nodes[left as usize] = Some(if is_root {
                    merge_subtrees_root(&pair[0], &pair[1], Mode::Hash).into()
                } else {
                    merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)
                });
            }
        }
        batch.extents.iter().map(|extent| nodes[extent.first_slot as usize].unwrap()).collect()
    }

    #[test]
    fn batches_of_any_size_give_the_hashes_of_the_ranges() {
        let memory: Vec<u8> =
            (0..300_000_u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect();
        let lens = [
            0, 1, 64, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 5000, 16_384, 16_385, 70_001, 131_072,
            299_999,
        ];
        let ranges: Vec<Range> =
            lens.iter().map(|&len| Range { address: len % 7 % (300_000 - len), len }).collect();
        for (slots, extents) in [(1, 1), (2, 100), (4, 3), (16, 16), (64, 2), (1024, 100)] {
            let capacity = Capacity { slots, extents };
            let mut work = Work::new(&ranges, capacity);
            let mut bytes = 0;
            while let Some(batch) = work.batch() {
                let hashes = run(&batch, &memory, capacity);
                bytes += batch.len();
                work.put(&batch, &hashes);
            }
            assert_eq!(bytes, lens.iter().sum::<u64>());
            for (range, hash) in ranges.iter().zip(work.finish()) {
                let start = usize::try_from(range.address).unwrap();
                let bytes = &memory[start..start + usize::try_from(range.len).unwrap()];
                assert_eq!(hash, *blake3::hash(bytes).as_bytes(), "{range:?} {capacity:?}");
            }
        }
    }

    #[test]
    fn many_small_ranges_are_few_batches() {
        let ranges = vec![Range { address: 0, len: 5000 }; 60_000];
        let mut work = Work::new(&ranges, Capacity { slots: 1 << 20, extents: 1 << 16 });
        let first = work.batch().unwrap();
        assert_eq!((first.extents.len(), first.slots, first.levels.len()), (60_000, 480_000, 3));
        assert_eq!(first.levels[2], Level { extents: 60_000, pairs: 60_000 });
        assert!(work.batch().is_none());
    }
}
