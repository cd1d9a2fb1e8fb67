use super::*;
use crate::map::Mapping;
use crate::memfd::{HugePages, Memfd};
use crate::view_mut::SharedBytesMut;
use std::os::fd::AsFd;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

/// Both ways of reading: plain copies of a slice, and atomic loads.
fn with_both(bytes: &mut [u8], check: impl Fn(SharedBytes<'_>)) {
    check(SharedBytes::from_slice(bytes));
    check(SharedBytesMut::from_slice(bytes).as_shared());
}

#[test]
fn reads_equal_slices_at_every_alignment() {
    let expected = pattern(300);
    with_both(&mut expected.clone(), |view| {
        for offset in 0..24 {
            for len in (0..40).chain([63, 64, 65, 127, 128, 129, 200, 276]) {
                let mut got = vec![0xee; len + 2];
                view.read_at(offset as u64, &mut got[1..=len]).unwrap();
                assert_eq!(got[1..=len], expected[offset..offset + len], "offset {offset}, {len} bytes");
                assert_eq!((got[0], got[len + 1]), (0xee, 0xee), "wrote outside of the destination");
            }
        }
        assert_eq!(view.to_vec(), expected);
        assert_eq!(view.get(3, 100).unwrap().to_vec(), expected[3..103]);
    });
}

#[test]
fn ranges_outside_are_refused() {
    with_both(&mut pattern(16), |view| {
        for (offset, len) in [(17, 0), (16, 1), (0, 17), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            match view.get(offset, len) {
                Err(Error::OutOfBounds { offset: o, len: l, bound: 16 }) => assert_eq!((o, l), (offset, len)),
                other => panic!("{offset}+{len}: {other:?}"),
            }
        }
        assert_eq!(view.get(16, 0).unwrap().len(), 0);
        let mut untouched = [9; 4];
        assert!(view.read_at(13, &mut untouched).is_err());
        assert_eq!(untouched, [9; 4]);
    });
}

#[test]
fn sub_views_are_bounded_by_themselves() {
    let bytes = pattern(16);
    let part = SharedBytes::from_slice(&bytes).get(4, 4).unwrap();
    assert!(part.get(0, 5).is_err());
    assert_eq!(part.get(1, 3).unwrap().to_vec(), bytes[5..8]);
}

#[test]
fn empty_views() {
    assert!(SharedBytes::empty().is_empty());
    assert!(!SharedBytes::empty().as_ptr().is_null());
    assert_eq!(SharedBytes::empty().to_vec(), Vec::<u8>::new());
    // SAFETY: a null pointer is allowed with length 0.
    let null = unsafe { SharedBytes::from_raw_parts(std::ptr::null(), 0) };
    assert!(null.is_empty() && !null.as_ptr().is_null());
    SharedBytes::empty().read_at(0, &mut []).unwrap();
}

#[test]
fn chunks_visit_everything_once_and_in_order() {
    let bytes = pattern(1000);
    let view = SharedBytes::from_slice(&bytes);
    for size in [0, 1, 7, 64, 999, 1000, 5000] {
        let mut seen = Vec::new();
        let mut buf = vec![0; size];
        let result: std::result::Result<(), ()> = view.chunks(&mut buf, |offset, piece| {
            assert_eq!(offset, seen.len() as u64);
            assert!(piece.len() <= size.max(512));
            seen.extend_from_slice(piece);
            Ok(())
        });
        result.unwrap();
        assert_eq!(seen, bytes, "buffer of {size} bytes");
    }
}

#[test]
fn chunks_stop_at_the_first_error() {
    let bytes = pattern(100);
    let mut calls = 0;
    let result = SharedBytes::from_slice(&bytes).chunks(&mut [0; 10], |offset, _| {
        calls += 1;
        if offset == 20 { Err("stop") } else { Ok(()) }
    });
    assert_eq!((result, calls), (Err("stop"), 3));
}

#[test]
fn write_to_copies_all_and_passes_errors_on() {
    let bytes = pattern(BOUNCE * 2 + 5);
    let mut out = Vec::new();
    assert_eq!(SharedBytes::from_slice(&bytes).write_to(&mut out).unwrap(), bytes.len() as u64);
    assert_eq!(out, bytes);
    let mut full = &mut [0u8; 10][..];
    let error = SharedBytes::from_slice(&bytes).write_to(&mut full).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}

#[test]
fn words_are_never_torn_while_another_mapping_is_written() {
    const WORDS: usize = 64;
    let memfd = Memfd::create("torn", 4096, HugePages::No).unwrap();
    let reader = Mapping::read_only(memfd.as_fd(), 0, WORDS * 8).unwrap();
    let mut writer = Mapping::read_write(memfd.as_fd(), 0, WORDS * 8).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut view = writer.view_mut().unwrap();
            #[allow(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
            let words = view.as_mut_ptr().cast::<u64>();
            let mut byte = 0u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                for i in 0..WORDS {
                    // SAFETY: word `i` lies within the mapping, is aligned, and at these addresses nobody else
                    // uses it.
                    unsafe { words.wrapping_add(i).write_volatile(u64::from_ne_bytes([byte; 8])) };
                }
            }
        });
        let mut changes = 0;
        let mut last = 0;
        let mut buf = [0; WORDS * 8];
        for _ in 0..200_000 {
            reader.view().read_at(0, &mut buf).unwrap();
            for word in buf.chunks(8) {
                assert!(word.iter().all(|b| *b == word[0]), "torn word {word:?}");
            }
            changes += usize::from(buf[0] != last);
            last = buf[0];
            if changes > 100 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(changes > 1, "the writer was never seen");
    });
}

#[test]
fn slices_where_the_caller_vouches_for_them() {
    let mut bytes = pattern(32);
    // SAFETY: the vector is not written while the slice lives.
    assert_eq!(unsafe { SharedBytes::from_slice(&bytes).as_slice() }, pattern(32));
    let mut view = SharedBytesMut::from_slice(&mut bytes);
    // SAFETY: nobody else reads or writes the vector.
    let slice = unsafe { view.as_mut_slice() };
    slice[0] = 99;
    assert_eq!(view.reborrow().as_shared().get(0, 1).unwrap().to_vec(), [99]);
}
