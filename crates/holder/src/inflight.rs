//! Descriptors that were sent to clients and that these have not read yet.
//!
//! The kernel counts them against the user of the holder, and beyond RLIMIT_NOFILE lets it pass none to anybody. So each
//! client's user may have a part of that, and all of them together a half; what exceeds that waits.

use std::collections::HashMap;

/// What all connections have in flight.
#[derive(Debug)]
pub struct InFlight {
    of_user: HashMap<u32, usize>,
    total: usize,
    per_user: usize,
    most: usize,
}

impl InFlight {
    /// For a process with this limit of open files.
    pub fn new(limit: usize) -> Self {
        Self { of_user: HashMap::new(), total: 0, per_user: (limit / 8).max(8), most: (limit / 2).max(16) }
    }

    /// Whether `count` more may be sent to this user.
    pub fn has_room(&self, uid: u32, count: usize) -> bool {
        let of_user = self.of_user.get(&uid).copied().unwrap_or(0);
        of_user + count <= self.per_user && self.total + count <= self.most
    }

    /// True when all together have so many that this user need not be the one who keeps others waiting.
    pub fn is_full(&self) -> bool {
        self.total >= self.most
    }

    /// Counts what was sent.
    pub fn add(&mut self, uid: u32, count: usize) {
        *self.of_user.entry(uid).or_default() += count;
        self.total += count;
    }

    /// Takes off what was read, or went with its connection.
    pub fn release(&mut self, uid: u32, count: usize) {
        if let Some(of_user) = self.of_user.get_mut(&uid) {
            *of_user = of_user.saturating_sub(count);
            if *of_user == 0 {
                self.of_user.remove(&uid);
            }
        }
        self.total = self.total.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_all_together_are_bounded() {
        let mut flight = InFlight::new(1024);
        flight.add(1, 128);
        assert!(!flight.has_room(1, 1) && flight.has_room(2, 128) && !flight.has_room(2, 129));
        for uid in 2..=4 {
            flight.add(uid, 128);
        }
        assert!(flight.is_full() && !flight.has_room(5, 1));
        flight.release(1, 128);
        assert!(!flight.is_full() && flight.has_room(1, 128) && flight.has_room(5, 1));
        flight.release(7, 1);
        assert_eq!(flight.of_user.len(), 3);
    }
}
