// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Which blocks of a cache group a prefix of so many tokens needs.
//!
//! Each kind of group asks for something else of a prefix of *t* tokens: full attention for all
//! blocks before *t*, a sliding window for those under its last tokens, a state for the last one.
//!
//! Invariant: both ends of what is needed never go back as the prefix grows.

use pegaflow_meta::GroupKind;
use std::ops::Range;

/// What one cache group needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupNeed {
    /// What its blocks hold.
    pub kind: GroupKind,
    /// Tokens a block covers.
    pub block_tokens: u64,
}

impl GroupNeed {
    /// The blocks that a prefix of `tokens` needs, which are a whole number of blocks.
    #[must_use]
    pub fn needed(&self, tokens: u64) -> Range<u64> {
        let end = tokens / self.block_tokens;
        let start = match self.kind {
            GroupKind::FullAttention | GroupKind::Mla => 0,
            // The next token sees itself and the tokens before it.
            GroupKind::SlidingWindow { window_tokens } => {
                tokens.saturating_sub(u64::from(window_tokens) - 1) / self.block_tokens
            }
            GroupKind::State => end.saturating_sub(1),
        };
        start..end
    }
}

/// The block points of these groups of so many blocks each: the numbers of tokens that are whole
/// blocks of all of them, from the first on.
pub fn points(groups: impl Iterator<Item = (GroupNeed, usize)> + Clone) -> Points {
    let tokens = |(need, blocks): (GroupNeed, usize)| blocks as u64 * need.block_tokens;
    let most = groups.clone().map(tokens).min().unwrap_or(0);
    let step = groups
        .into_iter()
        .try_fold(1, |step, (need, _)| lcm(step, need.block_tokens));
    Points { most, step }
}

/// Numbers of tokens at which every group has a block's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Points {
    most: u64,
    /// None beyond 64 bits: then no prefix is long enough.
    step: Option<u64>,
}

impl Points {
    /// Those behind `tokens`, ascending.
    pub fn behind(self, tokens: u64) -> impl DoubleEndedIterator<Item = u64> {
        let step = self.step.unwrap_or(u64::MAX);
        (tokens / step + 1..=self.most / step).map(move |n| n * step)
    }
}

fn lcm(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x).checked_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = GroupKind> {
        prop_oneof![
            Just(GroupKind::FullAttention),
            Just(GroupKind::State),
            (1..200u32).prop_map(|window_tokens| GroupKind::SlidingWindow { window_tokens }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_needed_never_goes_back(kind in kind(), block_tokens in 1..40u64, blocks in 1..40u64) {
            let need = GroupNeed { kind, block_tokens };
            let ranges: Vec<_> = (1..=blocks).map(|n| need.needed(n * block_tokens)).collect();
            prop_assert!(ranges.iter().all(|range| range.start < range.end));
            prop_assert!(ranges.windows(2).all(|two| two[0].start <= two[1].start && two[0].end <= two[1].end));
        }
    }

    #[test]
    fn points_are_whole_blocks_of_all_groups() {
        let check = |groups: &[(u64, usize)], behind: u64, want: &[u64]| {
            let need = |&(block_tokens, blocks): &(u64, usize)| {
                let kind = GroupKind::FullAttention;
                (GroupNeed { kind, block_tokens }, blocks)
            };
            let found: Vec<_> = points(groups.iter().map(need)).behind(behind).collect();
            assert_eq!(found, want, "{groups:?}");
        };
        check(&[(16, 4)], 0, &[16, 32, 48, 64]);
        check(&[(16, 4)], 47, &[48, 64]);
        check(&[(16, 9), (24, 4)], 0, &[48, 96]);
        check(&[(16, 2), (24, 4)], 0, &[]);
        check(&[(16, 2)], 32, &[]);
        check(&[(u64::MAX, 1), (u64::MAX - 1, 1)], 0, &[]);
    }
}
