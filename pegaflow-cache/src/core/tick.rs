// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What time alone brings about: leases run out, half-written blocks are given up, slabs are packed.

use super::block::State;
use super::lease::Kind;
use super::write::WriteIdx;
use super::{Action, Core, Now};

impl Core {
    /// Does what is due at `now`. To be called every 100 ms or so, and cheap if nothing is due.
    pub fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.expire_leases(now, actions);
        self.expire_partials(now, actions);
        if self.wants_compaction {
            self.wants_compaction = self.compact(self.settings.moves_max, actions) > 0;
        }
    }

    fn expire_leases(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some(id) = self.leases.next_expired(now) {
            let Some(lease) = self.leases.get(id) else {
                return;
            };
            let (session, class) = (lease.session, lease.class);
            if lease.kind == Kind::Read {
                // Pins are meant to end so.
                let is_pin = lease.pinned_bytes > 0;
                self.end_read(id, actions);
                self.tenant_of(class).counters.expired_read_leases += u64::from(!is_pin);
                continue;
            }
            self.quarantine(now, id, actions);
            self.tenant_of(class).counters.expired_write_leases += 1;
            actions.push(Action::WriteExpired { session, lease: id });
        }
    }

    fn expire_partials(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some((until, idx, generation)) = self.partials.front().copied() {
            if until > now {
                return;
            }
            self.partials.pop_front();
            let block = self.blocks.get(idx);
            if block.generation != generation || block.state != State::Writing {
                continue;
            }
            let write = self.writes.get(WriteIdx(block.policy[0]));
            let idle_until = Now(write
                .since
                .0
                .saturating_add(self.settings.partial_block_ttl_ms));
            // One that was written to again is noted again when it falls quiet.
            if write.is_quiet() && idle_until <= now {
                self.abandon(idx, actions);
                self.free_if_quiet(idx, actions);
            }
        }
    }
}
