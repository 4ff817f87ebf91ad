// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! ARC (Megiddo and Modha, FAST'03): what was used once and what was used again in two lists, each with the names of what
//! left it, and a target that moves towards the list whose names come back. Blocks of a request are used from the last
//! to the first, which serves it better here.

use std::collections::{BTreeMap, HashMap};

use super::Simulated;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// Resident, used once.
    Recent,
    /// Resident, used again.
    Frequent,
    /// Names that left `Recent`.
    RecentGhosts,
    /// Names that left `Frequent`.
    FrequentGhosts,
}

use List::{Frequent, FrequentGhosts, Recent, RecentGhosts};

/// The cache.
#[derive(Debug)]
pub struct Arc {
    capacity: usize,
    /// Blocks that `Recent` should have.
    target: f64,
    /// In order of use.
    lists: [BTreeMap<u64, u64>; 4],
    at: HashMap<u64, (List, u64)>,
    uses: u64,
}

impl Arc {
    /// An empty cache of `capacity` blocks, and as many names.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            target: 0.0,
            lists: Default::default(),
            at: HashMap::new(),
            uses: 0,
        }
    }

    fn len(&self, list: List) -> usize {
        self.lists[list as usize].len()
    }

    fn resident(&self) -> usize {
        self.len(Recent) + self.len(Frequent)
    }

    fn put(&mut self, block: u64, list: List) {
        if let Some((old, order)) = self.at.remove(&block) {
            self.lists[old as usize].remove(&order);
        }
        self.uses += 1;
        self.lists[list as usize].insert(self.uses, block);
        self.at.insert(block, (list, self.uses));
    }

    fn drop_oldest(&mut self, list: List) -> Option<u64> {
        let (_, block) = self.lists[list as usize].pop_first()?;
        self.at.remove(&block);
        Some(block)
    }

    /// Makes a name of one resident block.
    fn replace(&mut self, was_frequent: bool) {
        let recent = self.len(Recent) as f64;
        let over = recent > self.target || (was_frequent && recent == self.target);
        let from_recent = self.len(Recent) > 0 && (over || self.len(Frequent) == 0);
        let (from, to) = match from_recent {
            true => (Recent, RecentGhosts),
            false => (Frequent, FrequentGhosts),
        };
        if let Some(block) = self.drop_oldest(from) {
            self.put(block, to);
        }
    }

    fn use_block(&mut self, block: u64) {
        let list = self.at.get(&block).map(|(list, _)| *list);
        let share = |a: usize, b: usize| (a as f64 / b as f64).max(1.0);
        let (recent, frequent) = (self.len(RecentGhosts), self.len(FrequentGhosts));
        match list {
            Some(Recent | Frequent) => self.put(block, Frequent),
            Some(RecentGhosts) => {
                self.target = (self.target + share(frequent, recent)).min(self.capacity as f64);
                self.back(block, false);
            }
            Some(FrequentGhosts) => {
                self.target = (self.target - share(recent, frequent)).max(0.0);
                self.back(block, true);
            }
            None => self.admit(block),
        }
    }

    fn back(&mut self, block: u64, was_frequent: bool) {
        if self.resident() >= self.capacity {
            self.replace(was_frequent);
        }
        self.put(block, Frequent);
    }

    fn admit(&mut self, block: u64) {
        let recent = self.len(Recent) + self.len(RecentGhosts);
        let all = self.at.len();
        if recent >= self.capacity && self.len(Recent) >= self.capacity {
            self.drop_oldest(Recent);
        } else {
            if recent >= self.capacity {
                self.drop_oldest(RecentGhosts);
            } else if all >= 2 * self.capacity {
                self.drop_oldest(FrequentGhosts);
            }
            if self.resident() >= self.capacity {
                self.replace(false);
            }
        }
        self.put(block, Recent);
    }
}

impl Simulated for Arc {
    fn request(&mut self, blocks: &[u64]) -> usize {
        let is_hit = |block: &&u64| matches!(self.at.get(block), Some((Recent | Frequent, _)));
        let hits = blocks.iter().take_while(is_hit).count();
        if self.capacity > 0 {
            blocks.iter().rev().for_each(|block| self.use_block(*block));
        }
        hits
    }
}
