// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which blocks are worth writing. Pure: time is an argument.

use std::collections::{HashSet, VecDeque};

use crate::key::Key;
use crate::settings::Admission;

/// Decides about each new block. Called under a lock: it must not wait.
pub trait AdmissionPolicy: Send {
    /// Whether to write a block of so many bytes.
    fn admit(&mut self, key: &Key, bytes: u64, now_us: u64) -> bool;
}

/// The policy that the setting names.
pub fn policy(setting: Admission) -> Box<dyn AdmissionPolicy> {
    match setting {
        Admission::All => Box::new(All),
        Admission::SecondTouch { remembered_keys } => {
            Box::new(SecondTouch::new(remembered_keys as usize))
        }
        Admission::Budget { gb_per_day } => Box::new(Budget::new(gb_per_day)),
    }
}

/// Every block.
#[derive(Debug, Clone, Copy, Default)]
pub struct All;

impl AdmissionPolicy for All {
    fn admit(&mut self, _: &Key, _: u64, _: u64) -> bool {
        true
    }
}

/// A block that was offered before, and not long ago.
#[derive(Debug)]
pub struct SecondTouch {
    seen: HashSet<Key>,
    order: VecDeque<Key>,
    max: usize,
}

impl SecondTouch {
    /// Remembers so many keys.
    pub fn new(max: usize) -> Self {
        Self {
            seen: HashSet::new(),
            order: VecDeque::new(),
            max,
        }
    }
}

impl AdmissionPolicy for SecondTouch {
    fn admit(&mut self, key: &Key, _: u64, _: u64) -> bool {
        if self.seen.remove(key) {
            return true;
        }
        if self.order.len() >= self.max
            && let Some(old) = self.order.pop_front()
        {
            self.seen.remove(&old);
        }
        self.seen.insert(*key);
        self.order.push_back(*key);
        false
    }
}

/// As many bytes as the drive is meant to take, with an hour's worth saved up at most.
#[derive(Debug)]
pub struct Budget {
    bytes_per_us: f64,
    saved: f64,
    last_us: u64,
}

impl Budget {
    /// Gigabytes (10^9 bytes) a day.
    pub fn new(gb_per_day: f64) -> Self {
        let bytes_per_us = gb_per_day * 1e9 / 86_400e6;
        Self {
            bytes_per_us,
            saved: bytes_per_us * 60e6,
            last_us: 0,
        }
    }
}

impl AdmissionPolicy for Budget {
    fn admit(&mut self, _: &Key, bytes: u64, now_us: u64) -> bool {
        let passed = now_us.saturating_sub(self.last_us) as f64;
        self.last_us = now_us.max(self.last_us);
        self.saved = (self.saved + passed * self.bytes_per_us).min(self.bytes_per_us * 3600e6);
        let fits = self.saved >= bytes as f64;
        if fits {
            self.saved -= bytes as f64;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_touch_counts_while_the_first_is_remembered() {
        let mut p = SecondTouch::new(2);
        let got: Vec<bool> = [1u128, 1, 2, 3, 4, 2, 4]
            .iter()
            .map(|k| p.admit(&Key::from(*k), 1, 0))
            .collect();
        assert_eq!(got, [false, true, false, false, false, false, true]);
    }

    #[test]
    fn a_budget_is_kept_over_a_day() {
        let mut p = Budget::new(100.0);
        let mut bytes = 0u64;
        for second in 0..86_400u64 {
            for _ in 0..20 {
                if p.admit(&Key::default(), 1 << 20, second * 1_000_000) {
                    bytes += 1 << 20;
                }
            }
        }
        let gb = bytes as f64 / 1e9;
        assert!((98.0..=101.0).contains(&gb), "{gb} GB");
    }
}
