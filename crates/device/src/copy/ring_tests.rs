//! The order of pieces and blocks, with threads and a sink that takes what is there when it is waited for.

use super::ring::{Layout, Ring, Sink};
use crate::DeviceError;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn blocks_are_whole_pieces_and_enough_for_all_threads() {
    for (len, piece, threads, wanted) in [
        (8 << 30, MIB, 12, (MIB, 8 * MIB, 5)),
        (8 << 30, 3 * MIB, 4, (3 * MIB, 6 * MIB, 5)),
        (8 << 30, 64 * MIB, 2, (64 * MIB, 64 * MIB, 5)),
        (8 << 30, 4096, 1, (4096, 8 * MIB, 4)),
        (8 << 30, 5000, 1, (8192, 8 * MIB, 4)),
        // Not more than the copy needs.
        (1, 4 * MIB, 12, (4096, 4096, 1)),
        (5000, 4096, 12, (4096, 8192, 1)),
        (20 * MIB, MIB, 12, (MIB, 8 * MIB, 3)),
        (3 * MIB + 1, MIB, 12, (MIB, 4 * MIB, 1)),
    ] {
        let layout = Layout::new(len, piece, threads);
        let Layout { piece, block, count, .. } = layout;
        assert_eq!((piece, block, count), wanted, "{len} {threads}");
        let lens: Vec<u64> = (0..len.div_ceil(block)).map(|number| layout.block_len(number)).collect();
        assert_eq!(lens.iter().sum::<u64>(), len);
        assert!(lens.iter().all(|&len| (1..=block).contains(&len)));
    }
}

/// What is in the memory of all blocks, and where it goes.
#[derive(Debug)]
struct Memory {
    /// Numbers of pieces, one for each place.
    places: Vec<u64>,
    copy: Vec<u64>,
    sent: Vec<(u64, usize)>,
}

/// Takes what is there when it is waited for, as a slow device does.
#[derive(Debug)]
struct Slow {
    memory: Arc<Mutex<Memory>>,
    place: usize,
    pending: VecDeque<(u64, usize)>,
    /// What cannot be sent, or, with `true`, not be waited for.
    fails_at: Option<(u64, bool)>,
}

fn failure() -> DeviceError {
    DeviceError::Cancelled { device: "the test".into() }
}

impl Sink for Slow {
    fn send(&mut self, at: u64, len: usize) -> Result<(), DeviceError> {
        if self.fails_at == Some((at, false)) {
            return Err(failure());
        }
        self.pending.push_back((at, len));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        let mut memory = self.memory.lock().unwrap();
        if self.pending.iter().any(|&(at, _)| self.fails_at == Some((at, true))) {
            return Err(failure());
        }
        while let Some((at, len)) = self.pending.pop_front() {
            memory.sent.push((at, len));
            let (from, to) = (self.place, usize::try_from(at).unwrap() / 4096);
            for piece in 0..len.div_ceil(4096) {
                memory.copy[to + piece] = memory.places[from + piece];
            }
        }
        Ok(())
    }
}

const TINY: Layout = Layout { len: 41 * 4096 + 5, piece: 4096, block: 4 * 4096, count: 3 };

fn ring(layout: Layout, fails_at: Option<(u64, bool)>) -> (Ring<Slow>, Arc<Mutex<Memory>>) {
    let pieces = usize::try_from(layout.len.div_ceil(4096)).unwrap();
    let places = layout.count() * layout.block() / 4096;
    let memory = Memory { places: vec![0; places], copy: vec![0; pieces], sent: Vec::new() };
    let memory = Arc::new(Mutex::new(memory));
    let sink = |number| Slow {
        memory: memory.clone(),
        place: number * layout.block() / 4096,
        pending: VecDeque::new(),
        fails_at,
    };
    (Ring::new(layout, (0..layout.count()).map(sink)), memory)
}

/// Fills pieces with their numbers until there are none.
fn work(ring: &Ring<Slow>, memory: &Mutex<Memory>) -> Result<(), DeviceError> {
    while let Some(piece) = ring.take()? {
        assert_eq!(piece.at % 4096, 0);
        memory.lock().unwrap().places[piece.block * 4 + piece.place / 4096] = piece.at / 4096 + 1;
        thread::yield_now();
        piece.send()?;
    }
    Ok(())
}

#[test]
fn every_piece_arrives_where_it_belongs() {
    // More threads than there are pieces in memory, too.
    for threads in [1, 2, 5, 12, 30] {
        let (ring, memory) = ring(TINY, None);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&ring, &memory))).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap().is_ok()));
        });
        ring.wait().unwrap();
        let memory = memory.lock().unwrap();
        assert!(memory.copy.iter().copied().eq(1..=42), "{:?}", memory.copy);
        let mut sent = memory.sent.clone();
        sent.sort_unstable();
        let blocks: Vec<_> = (0..10).map(|number| (number * 4 * 4096, 4 * 4096)).collect();
        assert_eq!(sent, [&blocks[..], &[(10 * 4 * 4096, 4096 + 5)]].concat());
    }
}

/// Runs `work` in threads while this one has the first piece, which it drops when all of them wait for it; what
/// they answered then. A test that hangs says so.
fn abandoned(threads: usize) -> Vec<Result<(), DeviceError>> {
    let (ring, memory) = ring(TINY, None);
    let ring = Arc::new(ring);
    let first = ring.take().unwrap().unwrap();
    let (sender, answers) = mpsc::channel();
    for _ in 0..threads {
        let (ring, memory, sender) = (ring.clone(), memory.clone(), sender.clone());
        thread::spawn(move || sender.send(work(&ring, &memory)));
    }
    // The memory is full then but for what is missing, and each thread has one more.
    let taken = (12 + threads as u64) * 4096;
    while ring.next.load(Ordering::Relaxed) < taken.min(TINY.len) {
        thread::yield_now();
    }
    assert!(answers.recv_timeout(Duration::from_millis(20)).is_err(), "nobody is through");
    drop(first);
    let answer = |_| answers.recv_timeout(Duration::from_secs(60)).expect("a thread waits for ever");
    (0..threads).map(answer).collect()
}

#[test]
fn nobody_waits_for_a_piece_that_does_not_come() {
    for threads in [1, 3, 8] {
        assert!(abandoned(threads).iter().all(Result::is_ok));
    }
}

#[test]
fn a_block_that_cannot_be_sent_or_waited_for_ends_the_copy() {
    for fails_at in [(0, false), (3 * 4 * 4096, false), (10 * 4 * 4096, false), (4 * 4096, true)] {
        let (ring, memory) = ring(TINY, Some(fails_at));
        let failed = thread::scope(|scope| {
            let threads: Vec<_> = (0..5).map(|_| scope.spawn(|| work(&ring, &memory))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).count()
        });
        // Each thread that waits for a block finds out for itself.
        assert!(if fails_at.1 { failed >= 1 } else { failed == 1 }, "{fails_at:?}: {failed}");
        assert_eq!(ring.wait().is_err(), fails_at.1);
    }
}
