// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The offline optimum: knows the whole trace, and gives up the block that is used again last.

use std::collections::{BTreeSet, HashMap};

/// Prefix hits of a cache of `capacity` blocks that knows the future: of its blocks the one with the farthest next use
/// leaves, among equals the deepest in its prefix.
pub fn optimum_hits<'a>(requests: impl Iterator<Item = &'a [u64]> + Clone, capacity: usize) -> u64 {
    let next = next_uses(requests.clone());
    let mut next = next.iter();
    // Next use, depth, block; what leaves first is last.
    let mut resident: BTreeSet<(u32, u32, u64)> = BTreeSet::new();
    let mut entries: HashMap<u64, (u32, u32, u64)> = HashMap::new();
    let mut hits = 0;
    for blocks in requests {
        hits += blocks
            .iter()
            .take_while(|block| entries.contains_key(block))
            .count() as u64;
        for ((depth, block), next) in (0..).zip(blocks).zip(&mut next) {
            let entry = (*next, depth, *block);
            if let Some(old) = entries.insert(*block, entry) {
                resident.remove(&old);
            }
            resident.insert(entry);
        }
        while resident.len() > capacity {
            if let Some((_, _, block)) = resident.pop_last() {
                entries.remove(&block);
            }
        }
    }
    hits
}

/// For every reference: the request that uses the block next.
fn next_uses<'a>(requests: impl Iterator<Item = &'a [u64]> + Clone) -> Vec<u32> {
    let mut next = vec![u32::MAX; requests.clone().map(<[u64]>::len).sum()];
    let mut last: HashMap<u64, usize> = HashMap::new();
    let mut at = 0;
    for (request, blocks) in (0..).zip(requests) {
        for block in blocks {
            if let Some(before) = last.insert(*block, at) {
                next[before] = request;
            }
            at += 1;
        }
    }
    next
}
