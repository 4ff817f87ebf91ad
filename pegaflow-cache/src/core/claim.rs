// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a read lease holds by now: for clients that followed a ticket.

use super::error::Error;
use super::lease::Kind;
use super::lookup::block_ref;
use super::{Core, LeaseId, LookupReply, SessionId};

impl Core {
    /// Lists all blocks that a read lease pins, counted from its first key on.
    ///
    /// # Errors
    /// [`Error::UnknownSession`]; [`Error::UnknownLease`], also for a lease of a writer.
    pub fn claim(
        &self,
        session: SessionId,
        lease: LeaseId,
        reply: &mut LookupReply,
    ) -> Result<(), Error> {
        self.open(session)?;
        let held = self.leases.get(lease);
        let held = held.filter(|held| held.session == session && held.kind == Kind::Read);
        let held = held.ok_or(Error::UnknownLease(lease))?;
        reply.blocks.clear();
        (reply.lease, reply.pending) = (Some(lease), 0);
        let blocks = held.blocks.iter().enumerate();
        let blocks = blocks.map(|(at, idx)| block_ref(self.blocks.get(*idx), at));
        reply.blocks.extend(blocks);
        Ok(())
    }
}
