// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Where requests come from: a trace file or the generator, with the yardstick LRU fed in the same order.

use std::collections::HashSet;
use std::io::BufRead;

use super::facts::{FactsBuilder, TraceFacts};
use super::lru::{PrefixLru, TouchOrder};
use super::synth::Synth;
use super::trace::{Request, TraceError, TraceReader};

/// A workload.
pub enum Workload {
    /// A trace file.
    Trace(TraceReader<Box<dyn BufRead + Send>>),
    /// The synthetic generator: never ends by itself.
    Synthetic(Box<Synth>),
    /// Requests at hand.
    Listed(std::vec::IntoIter<Request>),
}

impl Iterator for Workload {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Workload::Trace(reader) => reader.next(),
            Workload::Synthetic(synth) => synth.next().map(|made| Ok(made.request)),
            Workload::Listed(requests) => requests.next().map(Ok),
        }
    }
}

/// Prefix hits of the simulated plain LRU of the node's capacity, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct PlainLru {
    /// Capacity of the simulated cache, blocks.
    pub capacity_blocks: u64,
    /// Prefix hits where the blocks of a request are touched in order.
    pub prefix_hit_blocks: u64,
    /// Prefix hits where they are touched from the leaf to the root.
    pub prefix_hit_blocks_leaf_first: u64,
}

/// Hands out requests one by one; counts them and simulates a plain LRU on the way.
pub struct Source {
    workload: Workload,
    requests_left: u64,
    facts: FactsBuilder,
    lru: [PrefixLru; 2],
    capacity_blocks: u64,
    repeated: u64,
}

impl Source {
    /// At most `requests_max` requests (0: no limit) of `workload`, against an LRU of `capacity_blocks`.
    pub fn new(workload: Workload, requests_max: u64, capacity_blocks: u64) -> Self {
        let lru = |order| PrefixLru::new(capacity_blocks as usize, order);
        Self {
            workload,
            requests_left: if requests_max == 0 {
                u64::MAX
            } else {
                requests_max
            },
            facts: FactsBuilder::default(),
            lru: [lru(TouchOrder::InOrder), lru(TouchOrder::LeafToRoot)],
            capacity_blocks,
            repeated: 0,
        }
    }

    /// The next request, or `None` at the end.
    ///
    /// A block that comes twice in one request cannot be (an id stands for the whole prefix); the request is
    /// cut there.
    ///
    /// # Errors
    /// [`TraceError`] where the trace is bad.
    pub fn next_request(&mut self) -> Result<Option<Request>, TraceError> {
        if self.requests_left == 0 {
            return Ok(None);
        }
        let Some(mut request) = self.workload.next().transpose()? else {
            return Ok(None);
        };
        self.requests_left -= 1;
        let mut seen = HashSet::with_capacity(request.blocks.len());
        let unique = request
            .blocks
            .iter()
            .take_while(|id| seen.insert(**id))
            .count();
        self.repeated += (request.blocks.len() - unique) as u64;
        request.blocks.truncate(unique);
        self.facts.add(&request);
        for lru in &mut self.lru {
            lru.request(&request.blocks);
        }
        Ok(Some(request))
    }

    /// Facts about the requests handed out.
    pub fn facts(&self) -> &TraceFacts {
        self.facts.facts()
    }

    /// What the plain LRU has found.
    pub fn plain_lru(&self) -> PlainLru {
        PlainLru {
            capacity_blocks: self.capacity_blocks,
            prefix_hit_blocks: self.lru[0].hits(),
            prefix_hit_blocks_leaf_first: self.lru[1].hits(),
        }
    }

    /// Blocks cut off because their id came twice in one request.
    pub fn repeated_blocks(&self) -> u64 {
        self.repeated
    }
}
