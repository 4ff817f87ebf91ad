// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How far to follow a prefix: the blocks whose fetch ends sooner than computing them would.
//!
//! A prefix is used up to some block; what follows is computed by the engine. The plan takes the end
//! for which fetching before it and computing behind it together take the least time. Blocks in the
//! pool cost nothing, so an end never lies right before one.
//!
//! Invariant: every block before the end is in the pool, on its way there, or to be fetched.

use super::Source;
use super::estimate::Estimate;

/// Where one block of the wanted prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the pool, or being written to it: costs no fetch.
    Ram,
    /// On SSD.
    Ssd,
}

/// What limits a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// What is known of the drive.
    pub ssd: Estimate,
    /// Bytes under way from the drive.
    pub ahead_bytes: u64,
    /// Most bytes that may be fetched.
    pub budget_bytes: u64,
    /// Microseconds the engine needs to compute a block, or a token; none if not known, then all is
    /// fetched.
    pub compute_us: Option<f64>,
}

impl Default for Limits {
    /// Nothing can be fetched.
    fn default() -> Self {
        Self {
            ssd: Estimate::of(Source::Ssd),
            ahead_bytes: 0,
            budget_bytes: 0,
            compute_us: None,
        }
    }
}

/// What to do for a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// Blocks to follow, from the first on.
    pub blocks: u32,
    /// Of these, blocks to fetch.
    pub fetches: u32,
    /// Blocks on SSD, behind these, that are not fetched because the budget is used up.
    pub over_budget: u32,
    /// Blocks on SSD, behind these, that are computed faster than fetched.
    pub too_slow: u32,
}

/// Plans the fetch of the blocks at `places`, of `block_bytes` each: the run of the prefix that is there
/// at all, from the first block on that is not ready. `limits.compute_us` is that of a block.
#[must_use]
pub fn plan(places: &[Place], block_bytes: u64, limits: &Limits) -> Plan {
    let affordable = affordable(places, block_bytes, limits);
    let end = match limits.compute_us {
        Some(compute_us) => cheapest(&places[..affordable], block_bytes, limits, compute_us),
        None => affordable,
    };
    let ssd = |places: &[Place]| places.iter().filter(|place| **place == Place::Ssd).count() as u32;
    Plan {
        blocks: end as u32,
        fetches: ssd(&places[..end]),
        over_budget: ssd(&places[affordable..]),
        too_slow: ssd(&places[end..affordable]),
    }
}

/// How many blocks the budget reaches for.
fn affordable(places: &[Place], block_bytes: u64, limits: &Limits) -> usize {
    let mut left = limits.budget_bytes;
    let taken = places.iter().take_while(|place| match place {
        Place::Ram => true,
        Place::Ssd => match left.checked_sub(block_bytes) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        },
    });
    taken.count()
}

/// The end for which fetching before and computing behind it take the least time; the longest of
/// several.
fn cheapest(places: &[Place], block_bytes: u64, limits: &Limits, compute_us: f64) -> usize {
    let (mut best, mut bytes) = ((0, places.len() as f64 * compute_us), 0);
    for (at, place) in places.iter().enumerate() {
        if *place == Place::Ssd {
            bytes += block_bytes;
        }
        let behind = (places.len() - at - 1) as f64;
        let us = limits.ssd.us(bytes, limits.ahead_bytes) + behind * compute_us;
        if us <= best.1 {
            best = (at + 1, us);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 1000;

    fn limits(latency_us: u32, block_us: u32, compute_us: Option<u32>, budget: u64) -> Limits {
        Limits {
            ssd: Estimate {
                latency_us: latency_us.into(),
                bytes_per_us: BLOCK as f64 / f64::from(block_us),
            },
            ahead_bytes: 0,
            budget_bytes: budget * BLOCK,
            compute_us: compute_us.map(f64::from),
        }
    }

    fn places(text: &str) -> Vec<Place> {
        let place = |c| if c == 'r' { Place::Ram } else { Place::Ssd };
        text.chars().map(place).collect()
    }

    #[test]
    fn it_stops_where_computing_is_faster() {
        let check = |text: &str, limits: Limits, want: (u32, u32, u32, u32)| {
            let plan = plan(&places(text), BLOCK, &limits);
            let got = (plan.blocks, plan.fetches, plan.over_budget, plan.too_slow);
            assert_eq!(got, want, "{text} {limits:?}");
        };
        check("", limits(10, 1, Some(5), 9), (0, 0, 0, 0));
        check("ssss", limits(10, 1, None, 9), (4, 4, 0, 0));
        // A fetch of four costs 14, computing them 20, or 12.
        check("ssss", limits(10, 1, Some(5), 9), (4, 4, 0, 0));
        check("ssss", limits(10, 1, Some(3), 9), (0, 0, 0, 4));
        // The drive moves bytes more slowly than the engine computes; blocks of the pool tip it.
        check("ssss", limits(1, 6, Some(5), 9), (0, 0, 0, 4));
        check("srrr", limits(1, 6, Some(5), 9), (4, 1, 0, 0));
        check("srrrs", limits(1, 6, Some(5), 9), (4, 1, 0, 1));
        // Over the budget.
        check("srss", limits(1, 1, None, 2), (3, 2, 1, 0));
        check("ssr", limits(1, 1, None, 0), (0, 0, 2, 0));
    }

    proptest! {
        /// Against trying every end.
        #[test]
        fn no_other_end_is_better(
            text in "[rs]{0,40}",
            latency_us in 0u32..200, block_us in 1u32..20, compute_us in 1u32..20, budget in 0u64..40,
        ) {
            let places = places(&text);
            let limits = limits(latency_us, block_us, Some(compute_us), budget);
            let plan = plan(&places, BLOCK, &limits);
            let ssd = |end: usize| places[..end].iter().filter(|p| **p == Place::Ssd).count() as u64;
            let total = ssd(places.len());
            prop_assert_eq!(u64::from(plan.fetches), ssd(plan.blocks as usize));
            prop_assert_eq!(u64::from(plan.fetches + plan.over_budget + plan.too_slow), total);
            prop_assert!(u64::from(plan.fetches) <= budget);
            let reach = (0..=places.len()).filter(|end| ssd(*end) <= budget).max().unwrap_or(0);
            let cost = |end: usize| {
                limits.ssd.us(ssd(end) * BLOCK, 0) + (reach - end) as f64 * f64::from(compute_us)
            };
            for end in 0..=reach {
                prop_assert!(cost(plan.blocks as usize) <= cost(end) + 1e-6);
            }
        }
    }
}
