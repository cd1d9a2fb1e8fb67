//! Many clients at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Barrier;

use support::{Place, Start, be_process, tensor};

const CLIENTS: usize = 200;

#[test]
fn process() {
    be_process();
}

#[test]
fn two_hundred_clients_attach_at_once_and_read_a_tensor() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("w", 7, 100_000)).unwrap();
    let together = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                together.wait();
                let image = place.open("llama");
                let bytes = tensor(&image);
                assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == 7));
            });
        }
    });
    assert_eq!(place.list()[0].attaches, CLIENTS as u64);
}
