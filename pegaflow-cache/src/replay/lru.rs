// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A plain LRU cache of blocks, simulated: the yardstick for the hit rate of a real node.
//!
//! Deliberately shares nothing with the node's own index and eviction, so that an error there cannot hide
//! here.
//!
//! A hit is a *prefix* hit: block `i` of a request counts only if blocks `0..i` hit as well. After a request
//! all its blocks are in the cache (as far as they fit).

use std::collections::HashMap;

/// In which order the blocks of one request become "most recently used".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchOrder {
    /// From the first block to the last: the leaf is kept longest.
    InOrder,
    /// From the last block to the first: leaves are evicted before their prefixes.
    LeafToRoot,
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    block: u64,
    older: u32,
    newer: u32,
}

/// A least-recently-used set of at most `capacity` blocks.
#[derive(Debug)]
pub struct PrefixLru {
    capacity: usize,
    order: TouchOrder,
    place: HashMap<u64, u32>,
    nodes: Vec<Node>,
    oldest: u32,
    newest: u32,
    references: u64,
    hits: u64,
}

impl PrefixLru {
    /// An empty cache of `capacity` blocks (at most `u32::MAX - 1`; more is the same as that).
    pub fn new(capacity: usize, order: TouchOrder) -> Self {
        Self {
            capacity: capacity.min(NONE as usize - 1),
            order,
            place: HashMap::new(),
            nodes: Vec::new(),
            oldest: NONE,
            newest: NONE,
            references: 0,
            hits: 0,
        }
    }

    /// Serves one request: returns its prefix hits, then makes all its blocks the most recently used.
    pub fn request(&mut self, blocks: &[u64]) -> usize {
        let hits = blocks
            .iter()
            .take_while(|b| self.place.contains_key(b))
            .count();
        self.references += blocks.len() as u64;
        self.hits += hits as u64;
        match self.order {
            TouchOrder::InOrder => blocks.iter().for_each(|b| self.touch(*b)),
            TouchOrder::LeafToRoot => blocks.iter().rev().for_each(|b| self.touch(*b)),
        }
        hits
    }

    /// Prefix hits so far, in blocks.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Share of all references that were prefix hits, 0 to 1.
    pub fn hit_share(&self) -> f64 {
        self.hits as f64 / self.references.max(1) as f64
    }

    fn touch(&mut self, block: u64) {
        if self.capacity == 0 {
            return;
        }
        let index = match self.place.get(&block) {
            Some(&index) => {
                self.unlink(index);
                index
            }
            None => self.admit(block),
        };
        self.link_newest(index);
    }

    // A node for a new block, taken from the oldest one if the cache is full. Not yet linked.
    fn admit(&mut self, block: u64) -> u32 {
        let index = if self.nodes.len() < self.capacity {
            self.nodes.push(Node {
                block,
                older: NONE,
                newer: NONE,
            });
            (self.nodes.len() - 1) as u32
        } else {
            let victim = self.oldest;
            self.unlink(victim);
            self.place.remove(&self.nodes[victim as usize].block);
            self.nodes[victim as usize].block = block;
            victim
        };
        self.place.insert(block, index);
        index
    }

    fn unlink(&mut self, index: u32) {
        let Node { older, newer, .. } = self.nodes[index as usize];
        match older {
            NONE => self.oldest = newer,
            o => self.nodes[o as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            n => self.nodes[n as usize].older = older,
        }
    }

    fn link_newest(&mut self, index: u32) {
        let older = std::mem::replace(&mut self.newest, index);
        let node = &mut self.nodes[index as usize];
        (node.older, node.newer) = (older, NONE);
        match older {
            NONE => self.oldest = index,
            o => self.nodes[o as usize].newer = index,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::facts::FactsBuilder;
    use super::super::trace::{Request, TraceReader};
    use super::*;
    use TouchOrder::{InOrder, LeafToRoot};

    /// Requests with the prefix hits each must have.
    fn check(capacity: usize, order: TouchOrder, script: &[(&[u64], usize)]) {
        let mut lru = PrefixLru::new(capacity, order);
        for (i, (blocks, hits)) in script.iter().enumerate() {
            assert_eq!(lru.request(blocks), *hits, "request {i} of {script:?}");
        }
    }

    #[test]
    fn cases_by_hand() {
        check(0, InOrder, &[(&[1], 0), (&[1], 0)]);
        check(3, InOrder, &[(&[1, 2, 3], 0), (&[1, 2, 3], 3), (&[], 0)]);
        // Block 2 is there, but not as part of a prefix that is.
        check(3, InOrder, &[(&[1, 2], 0), (&[9, 2], 0), (&[9, 2], 2)]);
        // 4 pushes out 1 in order, and 3 from leaf to root.
        check(3, InOrder, &[(&[1, 2, 3], 0), (&[4], 0), (&[1, 2, 3], 0)]);
        check(
            3,
            LeafToRoot,
            &[(&[1, 2, 3], 0), (&[4], 0), (&[1, 2, 3], 2)],
        );
        // A request larger than the cache keeps its end in order, and its start from leaf to root.
        check(
            2,
            InOrder,
            &[(&[1, 2, 3], 0), (&[1, 2, 3], 0), (&[2, 3], 2)],
        );
        check(2, LeafToRoot, &[(&[1, 2, 3], 0), (&[1, 2, 3], 2)]);
    }

    proptest! {
        /// Against the definition written naively: a list, oldest first.
        #[test]
        fn agrees_with_a_list(
            capacity in 1usize..12,
            leaf_first: bool,
            requests in prop::collection::vec(prop::collection::vec(0u64..20, 0..8), 0..40),
        ) {
            let order = if leaf_first { LeafToRoot } else { InOrder };
            let mut lru = PrefixLru::new(capacity, order);
            let mut list: Vec<u64> = vec![];
            for blocks in requests {
                let expect = blocks.iter().take_while(|b| list.contains(b)).count();
                prop_assert_eq!(lru.request(&blocks), expect);
                let mut touched = blocks.clone();
                if leaf_first { touched.reverse(); }
                for b in touched {
                    list.retain(|x| *x != b);
                    list.push(b);
                    if list.len() > capacity { list.remove(0); }
                }
            }
        }
    }

    #[test]
    fn reproduces_the_published_rows_of_the_conversation_trace() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/data/traces/conversation_trace.jsonl.gz");
        if !path.exists() {
            eprintln!("SKIPPED: {} is not there", path.display());
            return;
        }
        let trace: Vec<Request> = TraceReader::open(&path)
            .expect("it exists")
            .collect::<Result<_, _>>()
            .expect("a valid trace");
        let mut facts = FactsBuilder::default();
        trace.iter().for_each(|r| facts.add(r));
        let facts = facts.facts();
        assert_eq!((facts.requests, facts.references), (12_031, 288_500));
        assert_eq!(facts.unique_blocks, 182_790);
        assert_eq!(facts.input_tokens_mean().round() as u64, 12_035);
        assert_eq!(facts.output_tokens_mean().round() as u64, 343);
        assert!((facts.reusable_share() - 0.3664).abs() < 5e-5);
        let rows = [
            (InOrder, [0.0523, 0.1252, 0.2784, 0.3446, 0.3603]),
            (LeafToRoot, [0.0525, 0.1257, 0.2789, 0.3453, 0.3604]),
        ];
        for (order, shares) in rows {
            for (capacity, share) in [1_827, 5_483, 18_279, 36_558, 73_116]
                .into_iter()
                .zip(shares)
            {
                let mut lru = PrefixLru::new(capacity, order);
                trace.iter().for_each(|r| {
                    lru.request(&r.blocks);
                });
                let got = lru.hit_share();
                assert!(
                    (got - share).abs() < 1e-4,
                    "{order:?} {capacity}: {got} for {share}"
                );
            }
        }
    }
}
