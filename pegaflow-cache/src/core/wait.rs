// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups that wait for blocks which are being written: who waits for which, and what happens when
//! one is ready or will never be.
//!
//! Blocks may be promised: they are not in the index yet, and will be. A wait that has come to them
//! stays until they are begun or the promise is taken back.
//!
//! Invariant: every wait is noted at exactly one block, the first of its prefix that is not ready, or
//! at none if that is promised; it ends with a last word on its ticket unless its lease ends first.

use super::block::{BlockIdx, ClassIdx, State};
use super::error::{Error, within};
use super::write::WriteIdx;
use super::{Action, Core, LeaseId, LookupMode, LookupRequest, TicketId};
use pegaflow_meta::BlockKey;

/// One lookup that waits.
#[derive(Debug)]
struct Wait {
    ticket: TicketId,
    lease: LeaseId,
    /// What was pending; those before `next` are pinned.
    keys: Vec<(ClassIdx, BlockKey)>,
    next: usize,
    /// Keys from here on are promised.
    begun: usize,
    /// Where it is noted.
    on: Option<BlockIdx>,
}

/// All lookups that wait.
#[derive(Debug, Default)]
pub(super) struct Waits {
    table: Vec<Option<Wait>>,
    free: Vec<u32>,
}

impl Waits {
    pub(super) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    fn insert(&mut self, wait: Wait) -> u32 {
        if let Some(id) = self.free.pop() {
            self.table[id as usize] = Some(wait);
            return id;
        }
        self.table.push(Some(wait));
        (self.table.len() - 1) as u32
    }

    fn take(&mut self, id: u32) -> Option<Wait> {
        self.table.get_mut(id as usize)?.take()
    }
}

/// What a wait finds at its next key.
enum Next {
    Ready(BlockIdx),
    Pending(BlockIdx),
    Promised,
    Nothing,
}

impl Core {
    pub(super) fn check_ticket(&self, request: &LookupRequest<'_>) -> Result<(), Error> {
        if request.ticket.is_none() {
            return Ok(());
        }
        self.check_waiters(request.lease_ttl_ms.is_some() && request.mode == LookupMode::Prefix)
    }

    /// Refuses a lookup that would wait, and may not.
    pub(super) fn check_waiters(&self, can_wait: bool) -> Result<(), Error> {
        if !can_wait {
            return Err(Error::ticket_alone());
        }
        within(
            "waiters_max",
            self.waits.len() + 1,
            self.settings.waiters_max,
        )
    }

    /// Follows `keys` for a lease: the first of them is being written, those behind the first `begun`
    /// are promised.
    pub(super) fn follow(
        &mut self,
        class: ClassIdx,
        lease: LeaseId,
        ticket: TicketId,
        keys: &[BlockKey],
        begun: usize,
    ) {
        let keys = keys.iter().map(|key| (class, *key)).collect();
        self.follow_keys(lease, ticket, keys, begun);
    }

    /// As [`follow`](Self::follow), for keys of several groups.
    pub(super) fn follow_keys(
        &mut self,
        lease: LeaseId,
        ticket: TicketId,
        keys: Vec<(ClassIdx, BlockKey)>,
        begun: usize,
    ) {
        let first = keys.first();
        let Some(on) = first.and_then(|(class, key)| self.find_in(*class, key)) else {
            return;
        };
        let id = self.waits.insert(Wait {
            ticket,
            lease,
            keys,
            next: 0,
            begun,
            on: Some(on),
        });
        self.write_of(on).waiters.push(id);
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.wait = Some(id);
        }
    }

    /// Follows further keys after those that a lease follows already, if it follows any.
    pub(super) fn follow_more(
        &mut self,
        class: ClassIdx,
        lease: LeaseId,
        ticket: TicketId,
        keys: &[BlockKey],
        begun: usize,
    ) {
        match self.wait_of(lease) {
            Some(wait) => {
                wait.keys.extend(keys.iter().map(|key| (class, *key)));
                wait.begun += begun;
            }
            None => self.follow(class, lease, ticket, keys, begun),
        }
    }

    fn wait_of(&mut self, lease: LeaseId) -> Option<&mut Wait> {
        let id = self.leases.get(lease)?.wait?;
        self.waits.table.get_mut(id as usize)?.as_mut()
    }

    /// The next `begun` blocks that were promised to a lookup are in the index now. With `last`, the
    /// others will not be: its wait ends where they would follow. Nothing if it waits no more.
    pub fn promised(&mut self, lease: LeaseId, begun: u32, last: bool, actions: &mut Vec<Action>) {
        let Some(wait) = self.wait_of(lease) else {
            return;
        };
        wait.begun = (wait.begun + begun as usize).min(wait.keys.len());
        if last {
            wait.keys.truncate(wait.begun);
        }
        let parked = wait.on.is_none() && (begun > 0 || last);
        let id = self.leases.get(lease).and_then(|lease| lease.wait);
        if let Some(id) = id.filter(|_| parked) {
            self.wake(&mut vec![id], actions);
        }
    }

    /// Ends the wait of a lease that ends.
    pub(super) fn unfollow(&mut self, lease: LeaseId, actions: &mut Vec<Action>) {
        let Some(id) = self
            .leases
            .get_mut(lease)
            .and_then(|lease| lease.wait.take())
        else {
            return;
        };
        if let Some(wait) = self.waits.take(id) {
            self.waits.free.push(id);
            if let Some(on) = wait.on {
                self.write_of(on).waiters.retain(|other| *other != id);
            }
            let ticket = wait.ticket;
            actions.push(Action::WaitOver { ticket });
        }
    }

    fn write_of(&mut self, idx: BlockIdx) -> &mut super::write::Write {
        let at = WriteIdx(self.blocks.get(idx).policy[0]);
        self.writes.get_mut(at)
    }

    /// Wakes the waits that were noted at a block which is sealed, or out of the index.
    pub(super) fn wake(&mut self, waiters: &mut Vec<u32>, actions: &mut Vec<Action>) {
        for id in waiters.drain(..) {
            let Some(mut wait) = self.waits.take(id) else {
                continue;
            };
            let mut pinned = std::mem::take(&mut self.scratch.blocks);
            let next = self.advance(&mut wait, &mut pinned);
            let ready = self.blocks_ready(&wait, &pinned);
            pinned.clear();
            self.scratch.blocks = pinned;
            let done = !matches!(next, Next::Pending(_) | Next::Promised);
            actions.push(Action::Ticket {
                ticket: wait.ticket,
                ready,
                done,
            });
            match next {
                Next::Pending(on) => {
                    wait.on = Some(on);
                    self.waits.table[id as usize] = Some(wait);
                    self.write_of(on).waiters.push(id);
                }
                Next::Promised => {
                    wait.on = None;
                    self.waits.table[id as usize] = Some(wait);
                }
                Next::Ready(_) | Next::Nothing => {
                    self.waits.free.push(id);
                    if let Some(lease) = self.leases.get_mut(wait.lease) {
                        lease.wait = None;
                    }
                }
            }
        }
    }

    fn advance(&self, wait: &mut Wait, pinned: &mut Vec<BlockIdx>) -> Next {
        let mut last = Next::Nothing;
        while let Some((class, key)) = wait.keys.get(wait.next) {
            if wait.next == wait.begun {
                return Next::Promised;
            }
            let found = self.find_in(*class, key);
            last = match found.map(|idx| (idx, self.blocks.get(idx).state)) {
                Some((idx, State::Sealed)) => Next::Ready(idx),
                Some((idx, _)) => return Next::Pending(idx),
                None => return Next::Nothing,
            };
            if let Next::Ready(idx) = last {
                pinned.push(idx);
            }
            wait.next += 1;
        }
        last
    }

    /// Pins blocks that became ready under the wait's lease; returns how far the lease is now.
    fn blocks_ready(&mut self, wait: &Wait, ready: &[BlockIdx]) -> u32 {
        for idx in ready {
            self.blocks.get_mut(*idx).pins += 1;
        }
        if let Some((class, _)) = wait.keys.first() {
            let tenant = self.namespaces.class(*class).tenant;
            let tenant = self.tenants.get_mut(tenant);
            tenant.demoted.forget(ready);
            tenant.policy.refresh(&mut self.blocks, ready);
        }
        let Some(lease) = self.leases.get_mut(wait.lease) else {
            return 0;
        };
        lease.blocks.extend_from_slice(ready);
        lease.progress()
    }
}
