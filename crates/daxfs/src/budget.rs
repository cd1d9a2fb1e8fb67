//! What an image may cost in memory: one limit for the metadata that is copied when it is opened, and for all that is
//! parsed and derived from it later.
//!
//! Nothing is ever given back: the sum bounds the work that an image can cause as well, not only what it occupies.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Bytes that an image may still cost.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes, `used` of which are spent.
    pub fn new(limit: u64, used: u64) -> Self {
        Self { limit, used: AtomicU64::new(used) }
    }

    /// What is spent so far.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes back what was spent beyond `used`: it was thrown away.
    pub fn reset(&mut self, used: u64) {
        *self.used.get_mut() = used;
    }

    /// Spends `len` bytes for `place`, or nothing when there are not so many left.
    pub fn charge(&self, place: impl FnOnce() -> String, len: u64) -> Result<()> {
        let spend = |used: u64| used.checked_add(len).filter(|needed| *needed <= self.limit);
        // Only the sum counts; it publishes nothing.
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(_) => Ok(()),
            Err(used) => {
                let needed = used.saturating_add(len);
                Err(Error::MetadataLimit { place: place(), needed, limit: self.limit })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_costs_nothing() {
        let budget = Budget::new(100, 60);
        budget.charge(String::new, 30).unwrap();
        let error = budget.charge(|| "headers".into(), 11).unwrap_err();
        assert!(
            matches!(&error, Error::MetadataLimit { place, needed: 101, limit: 100 } if place == "headers")
        );
        budget.charge(String::new, 10).unwrap();
        assert!(budget.charge(String::new, u64::MAX).is_err());
        budget.charge(String::new, 0).unwrap();
    }
}
