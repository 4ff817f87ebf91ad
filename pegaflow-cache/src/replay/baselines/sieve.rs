// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! SIEVE (Zhang et al., NSDI'24): one queue in order of arrival, a bit for what was used, and a hand that takes the next
//! block without it.

use std::collections::{BTreeMap, HashMap};

use super::Simulated;

/// The cache.
#[derive(Debug)]
pub struct Sieve {
    capacity: usize,
    arrivals: u64,
    /// By arrival: the block, and whether it was used since the hand passed.
    queue: BTreeMap<u64, (u64, bool)>,
    resident: HashMap<u64, u64>,
    /// The arrival that is looked at next.
    hand: u64,
}

impl Sieve {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            arrivals: 0,
            queue: BTreeMap::new(),
            resident: HashMap::new(),
            hand: 0,
        }
    }

    fn evict(&mut self) {
        loop {
            let at_hand = self.queue.range(self.hand..).next();
            let Some((&arrival, &(block, used))) = at_hand.or_else(|| self.queue.iter().next())
            else {
                return;
            };
            self.hand = arrival + 1;
            if used {
                self.queue.insert(arrival, (block, false));
                continue;
            }
            self.queue.remove(&arrival);
            self.resident.remove(&block);
            return;
        }
    }
}

impl Simulated for Sieve {
    fn request(&mut self, blocks: &[u64]) -> usize {
        let hits = blocks
            .iter()
            .take_while(|b| self.resident.contains_key(b))
            .count();
        for block in blocks {
            if let Some(arrival) = self.resident.get(block) {
                self.queue.insert(*arrival, (*block, true));
                continue;
            }
            if self.capacity == 0 {
                continue;
            }
            if self.resident.len() >= self.capacity {
                self.evict();
            }
            self.arrivals += 1;
            self.queue.insert(self.arrivals, (*block, false));
            self.resident.insert(*block, self.arrivals);
        }
        hits
    }
}
