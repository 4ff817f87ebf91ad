// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! S3-FIFO (Yang et al., SOSP'23): a small queue of a tenth for what is new, a main queue for what was used again
//! there, and the names of those that left the small one.

use std::collections::{HashMap, VecDeque};

use super::Simulated;

/// Uses that are counted.
const USES_MAX: u8 = 3;
/// Uses in the small queue that a block needs to go on to the main one: more than this.
const PROMOTED_ABOVE: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

/// The cache.
#[derive(Debug)]
pub struct S3Fifo {
    capacity: usize,
    small_max: usize,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    /// Where a resident block is, and its uses since it came there.
    resident: HashMap<u64, (Queue, u8)>,
    ghosts: VecDeque<u64>,
    /// How often a name is among the ghosts.
    ghost_counts: HashMap<u64, u32>,
}

impl S3Fifo {
    /// An empty cache of `capacity` blocks, as many ghosts, and a small queue of a tenth.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            small_max: (capacity / 10).max(1),
            small: VecDeque::new(),
            main: VecDeque::new(),
            resident: HashMap::new(),
            ghosts: VecDeque::new(),
            ghost_counts: HashMap::new(),
        }
    }

    fn admit(&mut self, block: u64) {
        if self.capacity == 0 {
            return;
        }
        while self.resident.len() >= self.capacity {
            self.make_room();
        }
        let queue = match self.ghost_counts.contains_key(&block) {
            true => Queue::Main,
            false => Queue::Small,
        };
        match queue {
            Queue::Main => self.main.push_back(block),
            Queue::Small => self.small.push_back(block),
        }
        self.resident.insert(block, (queue, 0));
    }

    /// One step: a block leaves, or moves within the queues.
    fn make_room(&mut self) {
        if self.small.len() >= self.small_max || self.main.is_empty() {
            let Some(block) = self.small.pop_front() else {
                return;
            };
            if self.resident[&block].1 > PROMOTED_ABOVE {
                self.main.push_back(block);
                self.resident.insert(block, (Queue::Main, 0));
            } else {
                self.resident.remove(&block);
                self.remember(block);
            }
        } else if let Some(block) = self.main.pop_front() {
            match self.resident.get_mut(&block) {
                Some((_, uses)) if *uses > 0 => {
                    *uses -= 1;
                    self.main.push_back(block);
                }
                _ => {
                    self.resident.remove(&block);
                }
            }
        }
    }

    fn remember(&mut self, block: u64) {
        self.ghosts.push_back(block);
        *self.ghost_counts.entry(block).or_default() += 1;
        if self.ghosts.len() > self.capacity
            && let Some(old) = self.ghosts.pop_front()
            && let Some(count) = self.ghost_counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.ghost_counts.remove(&old);
            }
        }
    }
}

impl Simulated for S3Fifo {
    fn request(&mut self, blocks: &[u64]) -> usize {
        let hits = blocks
            .iter()
            .take_while(|b| self.resident.contains_key(b))
            .count();
        for block in blocks {
            match self.resident.get_mut(block) {
                Some((_, uses)) => *uses = (*uses + 1).min(USES_MAX),
                None => self.admit(*block),
            }
        }
        hits
    }
}
