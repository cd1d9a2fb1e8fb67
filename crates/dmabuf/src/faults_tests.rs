//! Ranges come and go, and the place of one that went is used again. What the handler says is tested where processes
//! die of it: `python/tests/test_faults.py`.

use super::*;

fn live() -> usize {
    nodes().filter(|node| node.start.load(Ordering::SeqCst) != 0).count()
}

#[test]
fn places_are_used_again() {
    let before = live();
    let memory = [0_u8; 100];
    let start = memory.as_ptr().addr();
    for _ in 0..3 {
        let description = Description { what: "it".into(), parts: vec![(start, 10, "a".into())] };
        let one = describe(start, 50, description);
        let two = describe(start + 50, 50, Description::default());
        assert_eq!(live(), before + 2);
        drop(one);
        assert_eq!(live(), before + 1);
        drop(two);
    }
    assert_eq!(live(), before);
    assert_eq!(nodes().count(), 2);
}
