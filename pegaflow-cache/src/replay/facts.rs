// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a trace is like, in the few numbers that matter to a cache.

use std::collections::HashSet;

use serde::Serialize;

use super::trace::Request;

/// Counts over a whole trace; feed it every request in order.
#[derive(Debug, Default, Clone)]
pub struct FactsBuilder {
    seen: HashSet<u64>,
    facts: TraceFacts,
}

/// Facts about a trace. Reuse is what an infinite cache would find: block `i` of a request counts only
/// if blocks `0..i` count as well.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct TraceFacts {
    /// Requests.
    pub requests: u64,
    /// Block references: the sum of the requests' blocks.
    pub references: u64,
    /// Distinct blocks.
    pub unique_blocks: u64,
    /// References an infinite cache answers.
    pub reusable_references: u64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Blocks of the longest request.
    pub blocks_max: u64,
    /// Arrival of the last request, milliseconds.
    pub duration_ms: u64,
}

impl FactsBuilder {
    /// Counts one request.
    pub fn add(&mut self, request: &Request) {
        let blocks = request.blocks.len() as u64;
        let known = request
            .blocks
            .iter()
            .take_while(|id| self.seen.contains(id))
            .count();
        self.seen.extend(&request.blocks[known..]);
        let f = &mut self.facts;
        f.requests += 1;
        f.references += blocks;
        f.reusable_references += known as u64;
        f.unique_blocks = self.seen.len() as u64;
        f.input_tokens = f.input_tokens.saturating_add(request.input_tokens);
        f.output_tokens = f.output_tokens.saturating_add(request.output_tokens);
        f.blocks_max = f.blocks_max.max(blocks);
        f.duration_ms = f.duration_ms.max(request.arrival_ms);
    }

    /// The facts so far.
    pub fn facts(&self) -> &TraceFacts {
        &self.facts
    }
}

impl TraceFacts {
    /// Facts about a finite sequence of requests.
    pub fn of<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Self {
        let mut builder = FactsBuilder::default();
        requests.into_iter().for_each(|r| builder.add(r));
        builder.facts
    }

    /// Mean tokens of a prompt.
    pub fn input_tokens_mean(&self) -> f64 {
        self.input_tokens as f64 / self.requests.max(1) as f64
    }

    /// Mean tokens generated.
    pub fn output_tokens_mean(&self) -> f64 {
        self.output_tokens as f64 / self.requests.max(1) as f64
    }

    /// Share of the references that an infinite cache answers, 0 to 1.
    pub fn reusable_share(&self) -> f64 {
        self.reusable_references as f64 / self.references.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(blocks: &[u64]) -> Request {
        Request {
            arrival_ms: 5,
            input_tokens: 10,
            output_tokens: 3,
            blocks: blocks.to_vec(),
        }
    }

    #[test]
    fn counts_prefixes_not_blocks() {
        let trace = [
            request(&[1, 2, 3]),
            request(&[1, 9, 3]),
            request(&[]),
            request(&[1, 9, 3]),
        ];
        let facts = TraceFacts::of(&trace);
        let expect = TraceFacts {
            requests: 4,
            references: 9,
            unique_blocks: 4,
            reusable_references: 4,
            input_tokens: 40,
            output_tokens: 12,
            blocks_max: 3,
            duration_ms: 5,
        };
        assert_eq!(facts, expect);
    }
}
