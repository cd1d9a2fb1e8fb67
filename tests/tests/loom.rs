//! The ring of uploads in every order that its threads can run in, as far as loom goes: each piece is one thread's alone
//! while it is filled, and what is sent has been filled.
//!
//! Loom has no sequentially consistent stores beyond fences, so what relies on those (the descriptions that a signal
//! handler reads, `dmabuf::faults`) is not here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Stands for the error of a driver.
#[derive(Debug)]
pub struct DeviceError;

/// The modules that the ring expects around it.
#[path = "."]
mod copy {
    #[path = "../../crates/device/src/copy/ring.rs"]
    #[allow(dead_code, reason = "the crate uses more of it")]
    mod ring;

    /// As `crates/device/src/copy/sync.rs`, of loom.
    mod sync {
        pub(super) use loom::sync::Mutex;
        pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

        #[derive(Debug, Default)]
        pub(super) struct Pause(u32);

        impl Pause {
            pub fn wait(&mut self) {
                self.0 += 1;
                loom::thread::yield_now();
            }
        }
    }

    mod model {
        use super::ring::{Layout, Ring, Sink};
        use crate::DeviceError;
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;

        /// Memory of the blocks, a number for each piece. Loom's cells notice every access that is not ordered behind
        /// the others.
        struct Memory {
            places: Vec<UnsafeCell<u64>>,
        }

        struct Device {
            memory: Arc<Memory>,
            first: usize,
            pending: Vec<(u64, usize)>,
            fails_at: Option<u64>,
        }

        impl Sink for Device {
            fn send(&mut self, at: u64, len: usize) -> Result<(), DeviceError> {
                if self.fails_at == Some(at) {
                    return Err(DeviceError);
                }
                self.pending.push((at, len));
                Ok(())
            }

            fn wait(&mut self) -> Result<(), DeviceError> {
                for (at, len) in self.pending.drain(..) {
                    for piece in 0..len / 4096 {
                        let number = at / 4096 + piece as u64;
                        #[allow(unsafe_code, reason = "loom checks that nobody else has it")]
                        let found = self.memory.places[self.first + piece].with(|place| {
                            // SAFETY: loom ends the test if another thread has the cell now.
                            unsafe { *place }
                        });
                        assert_eq!(found, number + 1, "what is sent was filled");
                    }
                }
                Ok(())
            }
        }

        /// A copy of `pieces` pieces by two threads, and how many of them failed.
        fn copy(pieces: u64, block: u64, count: u64, fails_at: Option<u64>) {
            let layout = Layout { len: pieces * 4096, piece: 4096, block: block * 4096, count };
            let places = (0..block * count).map(|_| UnsafeCell::new(0)).collect();
            let memory = Arc::new(Memory { places });
            let first = |number| usize::try_from(number * block).unwrap();
            let device = |number| Device {
                memory: memory.clone(),
                first: first(number),
                pending: Vec::new(),
                fails_at,
            };
            let ring = Arc::new(Ring::new(layout, (0..count).map(device)));
            let work = {
                let (ring, memory) = (ring.clone(), memory.clone());
                move || {
                    let mut filled = 0;
                    while let Some(piece) = ring.take()? {
                        let place = piece.block * layout.block() / 4096 + piece.place / 4096;
                        #[allow(unsafe_code, reason = "loom checks that nobody else has it")]
                        memory.places[place].with_mut(|place| {
                            // SAFETY: loom ends the test if another thread has the cell now.
                            unsafe { *place = piece.at / 4096 + 1 }
                        });
                        piece.send()?;
                        filled += 1;
                    }
                    Ok::<u64, DeviceError>(filled)
                }
            };
            let other = loom::thread::spawn(work.clone());
            let results = [work(), other.join().unwrap()];
            match fails_at {
                None => {
                    ring.wait().unwrap();
                    let filled: u64 = results.into_iter().map(Result::unwrap).sum();
                    assert_eq!(filled, pieces, "each was filled once");
                }
                Some(_) => assert!(results.iter().any(Result::is_err), "who could not send says so"),
            }
        }

        /// Two threads change places so often at most, but at each wait.
        fn check(model: impl Fn() + Sync + Send + 'static) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(model);
        }

        #[test]
        fn blocks_of_one_piece_are_used_again() {
            check(|| copy(4, 1, 2, None));
        }

        #[test]
        fn who_fills_the_last_piece_sends_all_of_the_block() {
            check(|| copy(4, 2, 1, None));
        }

        #[test]
        fn nobody_waits_for_ever_when_one_cannot_send() {
            for fails_at in [0, 4096] {
                check(move || copy(4, 1, 2, Some(fails_at)));
            }
        }
    }
}
