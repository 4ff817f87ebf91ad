// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Room made ahead of need: evicting costs more than saving, and between two saves nobody waits.
//!
//! Invariant: it takes only what the next save of the same size would evict by itself, and never more
//! than a small share of the pools.

use super::block::ClassIdx;
use super::{Action, Core, Now};

/// At most this share of what a tenant may use is kept free.
const SHARE: u64 = 64;

/// What the next save will need, if it is like the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    class: ClassIdx,
    bytes: u64,
}

impl Core {
    /// Notes how much room a reservation took.
    pub(super) fn expect_again(&mut self, class: ClassIdx, places: u32) {
        let all = self.places.capacity_bytes();
        let quota = self.tenant_of(class).limits.bytes_max;
        let most = quota.map_or(all, |quota| quota.min(all)) / SHARE;
        let blocks = most / self.namespaces.class(class).place_bytes;
        let blocks = blocks.min(places.min(self.settings.evict_ahead_blocks_max).into());
        if blocks > 0 {
            self.want_room(class, blocks);
        }
    }

    pub(super) fn want_room(&mut self, class: ClassIdx, blocks: u64) {
        let bytes = blocks * self.namespaces.class(class).place_bytes;
        self.ahead = Some(Ahead { class, bytes });
    }

    /// Makes room for a save like the last one, while nobody waits for it. Evicts at most `blocks_max`
    /// blocks, and says whether more is to be done.
    pub fn evict_ahead(&mut self, now: Now, blocks_max: u32, actions: &mut Vec<Action>) -> bool {
        let Some(Ahead { class, bytes }) = self.ahead else {
            return false;
        };
        let place_bytes = self.namespaces.class(class).place_bytes;
        let mut left = blocks_max;
        while left > 0 {
            let evicted = if !self.tenant_of(class).has_room(bytes) {
                u32::from(self.evict_own(now, class, actions))
            } else if self.places.free_bytes() < bytes || self.blocks.is_full() {
                self.evict_any(now, place_bytes, actions)
            } else {
                0
            };
            if evicted == 0 {
                self.ahead = None;
                return false;
            }
            left = left.saturating_sub(evicted);
        }
        true
    }
}
