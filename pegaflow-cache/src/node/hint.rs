// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Hints: what engines and agents know of blocks to come or to go.
//!
//! A prefetch is a lookup for nobody: the node itself waits for it, and lets go of what has come.

use super::Node;
use super::state::State;
use crate::core::{
    HintRequest, Hinted, LeaseId, LookupMode, LookupReply, LookupRequest, Now, SessionId, TicketId,
};
use crate::error::Result;
use crate::metrics;
use crate::tier::fetch::Purpose;

/// What to do with blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Keep them in the pool for so many milliseconds, at most `pin_ttl_max_ms`.
    Pin {
        /// How long.
        ttl_ms: u64,
    },
    /// They leave before others.
    Demote,
    /// Bring what is on SSD into the pool.
    Prefetch,
    /// Those leave that no other branch shares.
    ReleaseBranch,
}

impl Hint {
    fn name(self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Demote => "demote",
            Self::Prefetch => "prefetch",
            Self::ReleaseBranch => "release_branch",
        }
    }
}

impl Node {
    /// Does what a hint asks for, as far as budgets let it.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core); [`Error::Limit`](crate::Error::Limit) if no ticket is left for
    /// a prefetch.
    pub fn hint(
        &self,
        session: SessionId,
        request: &HintRequest<'_>,
        hint: Hint,
    ) -> Result<Hinted> {
        let hinted = self.shared.with(|state, now| {
            let State { core, actions, .. } = state;
            let hinted = match hint {
                Hint::Pin { ttl_ms } => core.pin(now, session, request, ttl_ms)?,
                Hint::Demote => core.demote(session, request)?,
                Hint::Prefetch => state.prefetch(now, session, request)?,
                Hint::ReleaseBranch => {
                    let hinted = core.release_branch(session, request, actions)?;
                    state.apply(None);
                    hinted
                }
            };
            crate::Result::Ok(hinted)
        })?;
        count(hint.name(), &hinted);
        Ok(hinted)
    }
}

fn count(hint: &'static str, hinted: &Hinted) {
    for (outcome, blocks) in [
        ("done", hinted.done),
        ("coming", hinted.coming),
        ("absent", hinted.absent),
        ("refused", hinted.refused),
    ] {
        let counter = metrics::HINT_BLOCKS.counter(&[hint, outcome]);
        counter.increment(blocks.into());
    }
}

impl State {
    fn prefetch(&mut self, now: Now, session: SessionId, hint: &HintRequest<'_>) -> Result<Hinted> {
        let ticket = self.take_ticket(now, true, None)?;
        let request = LookupRequest {
            namespace: hint.namespace,
            group: hint.group,
            keys: hint.keys,
            mode: LookupMode::Prefix,
            lease_ttl_ms: Some(u64::MAX),
            ticket,
        };
        let State { core, lookup, .. } = self;
        if let Err(error) = core.look_ahead(now, session, &request, lookup) {
            self.drop_ticket(ticket);
            return Err(error.into());
        }
        self.fetch_rest(now, session, &request, Purpose::Prefetch);
        let LookupReply { lease, pending, .. } = self.lookup;
        let done = self.lookup.blocks.len() as u32;
        let waits = lease.filter(|_| pending > 0);
        match (self.keep_ticket(ticket, waits, done.into()), lease) {
            (Some(ticket), Some(lease)) => drop(self.prefetches.insert(ticket, (session, lease))),
            (_, Some(lease)) => self.end_prefetch(session, lease),
            (_, None) => {}
        }
        Ok(Hinted {
            done,
            coming: pending,
            absent: (hint.keys.len() as u32) - done - pending,
            ..Hinted::default()
        })
    }

    /// A ticket has had its last word: if it was that of a prefetch, this ends once all actions are applied.
    pub(super) fn note_prefetch_over(&mut self, ticket: TicketId) {
        let over = self.prefetches.remove(&ticket);
        self.prefetches_over.extend(over);
    }

    /// Lets go of what prefetches have brought.
    pub(super) fn end_prefetches(&mut self) {
        while let Some((session, lease)) = self.prefetches_over.pop() {
            self.end_prefetch(session, lease);
        }
    }

    fn end_prefetch(&mut self, session: SessionId, lease: LeaseId) {
        // Over already if the session has ended.
        if self.core.release(session, lease, &mut self.actions).is_ok() {
            self.apply(None);
        }
        self.tickets.lease_ended(lease);
    }
}
