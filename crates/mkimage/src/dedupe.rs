//! Finds files with the same contents, in two stages: only files whose size occurs more than once are opened, and
//! only those whose first bytes agree are read whole.

use crate::Result;
use crate::hash::Hash;
use crate::parallel::{self, Threads};
use crate::plan::Numbers;
use crate::source::Opener;
use crate::tree::Tree;
use std::collections::HashMap;

/// Bytes that the first stage looks at.
const HEAD: usize = 4096;
/// Bytes per read of the second stage.
const STEP: usize = 256 << 10;

/// For every file that repeats another one: its inode, and the lowest inode with the same contents. Files that are
/// made anew in the image are compared among themselves: they will differ from their source. One that `is_alone` repeats
/// none.
pub(crate) fn find(
    tree: &Tree,
    numbers: &Numbers,
    is_rewritten: impl Fn(u32) -> bool,
    is_alone: impl Fn(u32) -> bool,
    threads: Threads,
) -> Result<HashMap<u32, u32>> {
    let mut by_size: HashMap<u64, Vec<u32>> = HashMap::new();
    for (ino, node) in numbers.files(tree) {
        let size = tree.node(node).identity.size;
        if size > 0 && !is_alone(ino) {
            by_size.entry(size).or_default().push(ino);
        }
    }
    let mut candidates: Vec<u32> = by_size.into_values().filter(|same| same.len() > 1).flatten().collect();
    candidates.sort_unstable();

    let heads = hash_all(tree, numbers, &candidates, HEAD as u64, threads)?;
    let mut by_head: HashMap<(u64, Hash), Vec<u32>> = HashMap::new();
    for (&ino, head) in candidates.iter().zip(heads) {
        let size = tree.node(numbers.node_of(ino)).identity.size;
        by_head.entry((size, head)).or_default().push(ino);
    }
    let mut candidates: Vec<u32> = by_head.into_values().filter(|same| same.len() > 1).flatten().collect();
    candidates.sort_unstable();

    let whole = hash_all(tree, numbers, &candidates, u64::MAX, threads)?;
    let mut first: HashMap<(Hash, bool), u32> = HashMap::new();
    let mut shares = HashMap::new();
    for (&ino, hash) in candidates.iter().zip(whole) {
        let owner = *first.entry((hash, is_rewritten(ino))).or_insert(ino);
        if owner != ino {
            shares.insert(ino, owner);
        }
    }
    Ok(shares)
}

/// Hashes of the first `limit` bytes of files, in their order.
fn hash_all(
    tree: &Tree,
    numbers: &Numbers,
    inodes: &[u32],
    limit: u64,
    threads: Threads,
) -> Result<Vec<Hash>> {
    let work = |opener: &mut (Opener<'_>, Vec<u8>), at: usize| {
        let source = opener.0.file(numbers.node_of(inodes[at]))?;
        let end = source.size().min(limit);
        let mut hasher = blake3::Hasher::new();
        let mut position = 0;
        while position < end {
            let len = (end - position).min(STEP as u64);
            let piece = &mut opener.1[..usize::try_from(len).unwrap_or(STEP)];
            source.read_exact_at(piece, position)?;
            hasher.update(piece);
            position += len;
        }
        source.check()?;
        Ok(*hasher.finalize().as_bytes())
    };
    parallel::map(inodes.len(), threads, || (Opener::new(tree), vec![0; STEP]), work)
}
