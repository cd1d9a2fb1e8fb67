//! The overlay's hash table: which keys the kernel's probing would find, computed for all keys at once.

use hashbrown::HashMap;

/// Pool offsets by key. The map's own hash is keyed: the image chooses its keys.
pub(super) type Keys = HashMap<u64, u64, foldhash::quality::RandomState>;

/// What the kernel's probing finds for each key. A key at distance `d` behind its first bucket is found when the
/// `d` buckets before it are all used, that is when its run of used buckets is long enough; of several buckets
/// with one key the nearest counts.
pub(super) fn reachable(table: &[(u64, u64)]) -> Keys {
    let count = table.len();
    let mut best: HashMap<u64, (usize, u64), foldhash::quality::RandomState> = HashMap::default();
    let used = |index: usize| {
        index.checked_rem(count).and_then(|index| table.get(index)).is_some_and(|(key, _)| key & 1 == 1)
    };
    // Length of the run of used buckets that ends before bucket 0, for keys that wrapped around.
    let mut run = (1..=count).take_while(|back| used(count.saturating_sub(*back))).count();
    for (index, &(state_key, value)) in table.iter().enumerate() {
        if state_key & 1 == 0 {
            run = 0;
            continue;
        }
        let key = state_key >> 1;
        // The count is a power of two (checked), so the low bits are the first bucket.
        let first = usize::try_from(key & (count as u64).saturating_sub(1)).unwrap_or(0);
        let distance = index.saturating_add(count).saturating_sub(first);
        let distance = distance.checked_rem(count).unwrap_or(0);
        if distance <= run {
            let slot = best.entry(key).or_insert((distance, value));
            if distance < slot.0 {
                *slot = (distance, value);
            }
        }
        run = run.saturating_add(1).min(count);
    }
    best.into_iter().map(|(key, (_, value))| (key, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's lookup, word for word.
    fn probe(table: &[(u64, u64)], key: u64) -> Option<u64> {
        let count = table.len();
        let mut index = usize::try_from(key).unwrap() & (count - 1);
        for _ in 0..count {
            let (state_key, value) = table[index];
            if state_key & 1 == 0 {
                return None;
            }
            if state_key >> 1 == key {
                return Some(value);
            }
            index = (index + 1) & (count - 1);
        }
        None
    }

    #[test]
    fn one_pass_finds_what_probing_finds() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for round in 0..2000 {
            let count = 1_usize << (round % 5);
            let table: Vec<(u64, u64)> = (0..count)
                .map(|_| if random() % 4 == 0 { (0, 0) } else { ((random() % 24) << 1 | 1, random()) })
                .collect();
            let keys = reachable(&table);
            for key in 0..24 {
                assert_eq!(keys.get(&key).copied(), probe(&table, key), "key {key} in {table:?}");
            }
        }
    }
}
