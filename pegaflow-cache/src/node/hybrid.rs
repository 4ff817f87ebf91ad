// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups over all cache groups of a hybrid model: what the pools have at once, and which block point
//! to wait for.
//!
//! Runs under the node's lock, so nothing it sees can change before it is used.

use super::Node;
use super::ssd::Tier;
use super::state::State;
use super::trace::Seen;
use crate::core::{
    GroupKeys, HybridReply, HybridRequest, LeaseId, NamespaceIndex, Now, Presence, SessionId,
    TicketId,
};
use crate::error::Result;
use crate::tier::plan::Limits;
use crate::tier::points::{At, Group, plan};

/// What to look for in all groups at once.
#[derive(Debug, Clone, Copy)]
pub struct HybridCall<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Every group of the namespace, once, in order.
    pub groups: &'a [GroupKeys<'a>],
    /// Life of the lease, in milliseconds; none for no lease.
    pub lease_ttl_ms: Option<u64>,
    /// Give a ticket if a longer prefix is being written, or lies on SSD.
    pub ticket: bool,
}

/// What a hybrid lookup found, as long as the node is held.
#[derive(Debug, Clone, Copy)]
pub struct HybridRefs<'a> {
    /// Tokens, blocks and the lease.
    pub found: &'a HybridReply,
    /// How many of the blocks that it waits for come from SSD.
    pub fetching: u32,
    /// Tells how many tokens are ready.
    pub ticket: Option<TicketId>,
}

/// Plans for one lookup: a second one where the pools turn out to have too little room for the first.
const PLANS_MAX: u32 = 2;

impl Node {
    /// Looks keys of all groups up and shows what it found to `f`.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core); [`Error::Limit`](crate::Error::Limit) if no ticket is left.
    pub fn lookup_hybrid<R>(
        &self,
        session: SessionId,
        call: &HybridCall<'_>,
        f: impl FnOnce(HybridRefs<'_>) -> R,
    ) -> Result<R> {
        self.shared.with(|state, now| {
            let ticket = state.take_ticket(now, call.ticket, call.lease_ttl_ms)?;
            let request = HybridRequest {
                namespace: call.namespace,
                groups: call.groups,
                lease_ttl_ms: call.lease_ttl_ms,
                ticket,
            };
            let State { core, hybrid, .. } = state;
            if let Err(error) = core.lookup_hybrid(now, session, &request, hybrid) {
                state.drop_ticket(ticket);
                return Err(error.into());
            }
            let fetching = state.await_points(now, session, &request);
            let waits = state.hybrid.pending_tokens > state.hybrid.tokens;
            let (lease, tokens) = (state.hybrid.lease, state.hybrid.tokens);
            let ticket = state.keep_ticket(ticket, lease.filter(|_| waits), tokens);
            state.trace_hybrid(session, &request);
            Ok(f(HybridRefs {
                found: &state.hybrid,
                fetching,
                ticket,
            }))
        })
    }

    /// Shows how far a hybrid lookup that waits, or has waited, has come.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core).
    pub fn claim_hybrid<R>(
        &self,
        session: SessionId,
        lease: LeaseId,
        f: impl FnOnce(HybridRefs<'_>) -> R,
    ) -> Result<R> {
        self.shared.with(|state, _| {
            let State { core, hybrid, .. } = state;
            core.claim_hybrid(session, lease, hybrid)?;
            Ok(f(HybridRefs {
                found: hybrid,
                fetching: 0,
                ticket: None,
            }))
        })
    }
}

impl State {
    /// Lets a lookup with a ticket wait for the best point that the pools and SSD have together; how many
    /// blocks come from SSD.
    fn await_points(&mut self, now: Now, session: SessionId, request: &HybridRequest<'_>) -> u32 {
        if request.ticket.is_none() {
            return 0;
        }
        let tier = self.tier.clone().filter(|tier| !tier.is_left_alone(now));
        let held = self.hybrid.blocks.len();
        let waits = self.try_points(now, session, request, tier.as_deref());
        waits.unwrap_or_else(|error| {
            // The lookup stands as the pools answered it.
            tracing::debug!(%error, session = session.0, "a hybrid lookup does not wait");
            self.hold_less(held);
            0
        })
    }

    fn try_points(
        &mut self,
        now: Now,
        session: SessionId,
        request: &HybridRequest<'_>,
        tier: Option<&Tier>,
    ) -> Result<u32> {
        let groups = self.locate_points(request, tier)?;
        let (from, held) = (self.hybrid.tokens, self.hybrid.blocks.len());
        let mut limits = tier.map_or_else(Limits::default, |tier| tier.limits(1));
        for _ in 0..PLANS_MAX {
            let plan = plan(&groups, from, &limits);
            if plan.awaited.points.is_empty() {
                break;
            }
            let State { core, hybrid, .. } = self;
            core.hold_more(now, session, request, &plan.awaited.ready, hybrid)?;
            let begun = match tier {
                Some(tier) => tier.begin_points(self, now, request, &plan)?,
                None => Ok(0),
            };
            let State { core, hybrid, .. } = self;
            match begun {
                Ok(fetching) => {
                    core.await_points(request, &plan.awaited, hybrid)?;
                    return Ok(fetching);
                }
                Err(room_bytes) => {
                    self.hold_less(held);
                    limits.budget_bytes = room_bytes;
                }
            }
        }
        self.hybrid.pending_tokens = from;
        Ok(0)
    }

    /// Lets go of what the lookup just made holds beyond its first blocks.
    fn hold_less(&mut self, blocks: usize) {
        if let Some(lease) = self.hybrid.lease {
            self.core.hold_less(lease, blocks, &mut self.actions);
            self.apply(None);
            self.hybrid.lease = self.hybrid.lease.filter(|_| blocks > 0);
        }
        self.hybrid.pending_tokens = self.hybrid.tokens;
    }

    /// Where all blocks of the request are.
    fn locate_points(
        &self,
        request: &HybridRequest<'_>,
        tier: Option<&Tier>,
    ) -> Result<Vec<Group>> {
        let needs = self.core.group_needs(request.namespace)?;
        let mut groups = vec![];
        for (keys, need) in request.groups.iter().zip(needs) {
            let mut present = vec![];
            let (namespace, group) = (request.namespace, keys.group);
            self.core
                .presence(namespace, group, keys.keys, &mut present)?;
            let mut blocks: Vec<_> = present.into_iter().map(At::from).collect();
            if let Some(tier) = tier {
                tier.find_absent(self.tag(namespace), keys.keys, &mut blocks);
            }
            let layout = self.group(namespace, group);
            let bytes = layout.map_or(0, |layout| layout.shape.bytes());
            groups.push(Group::new(need, bytes, blocks));
        }
        Ok(groups)
    }

    /// Notes the lookup just made, if it may become a line of the log.
    fn trace_hybrid(&mut self, session: SessionId, request: &HybridRequest<'_>) {
        let HybridReply {
            lease,
            tokens,
            pending_tokens,
            ..
        } = self.hybrid;
        let Some(lease) = lease else { return };
        let waits = request.ticket.is_some() && pending_tokens > tokens;
        if self.traces.wants(waits) {
            let keys: usize = request.groups.iter().map(|group| group.keys.len()).sum();
            let number = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
            let seen = Seen {
                session,
                unit: "tokens",
                keys: keys as u32,
                at_once: number(tokens),
                pending: match waits {
                    true => number(pending_tokens - tokens),
                    false => 0,
                },
            };
            self.traces.begin(lease, self.now_us(), seen);
        }
    }
}

impl From<Presence> for At {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::Ready => Self::Ready,
            Presence::Writing => Self::Coming,
            Presence::Absent => Self::Absent,
        }
    }
}
