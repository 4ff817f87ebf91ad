// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which device takes a block: the one that knows the key, else the one with the most room and the least to do.

use std::sync::Arc;

use super::SsdStore;
use super::lane::{Inbox, Incoming, Member};
use crate::key::Key;

impl SsdStore {
    /// Hands a record to its device, which takes it when its lane is run; or back, if the store is closing.
    pub(super) fn dispatch(&self, incoming: Box<Incoming>) -> Result<(), Box<Incoming>> {
        if let [only] = &self.members[..] {
            return only.offer(incoming);
        }
        let _choosing = self.choosing.lock();
        let key = &incoming.record.key;
        let home = self.members.iter().find(|m| m.may_hold(key));
        home.unwrap_or_else(|| self.least_busy()).offer(incoming)
    }

    pub(super) fn may_hold(&self, key: &Key) -> bool {
        self.members.iter().any(|m| m.may_hold(key))
    }

    fn least_busy(&self) -> &Arc<Member> {
        let cost = |m: &Arc<Member>| {
            let load = m.guard.disk().load();
            let waiting = load.queued_bytes + load.inflight_bytes + m.inbox.lock().waiting_bytes();
            let log = m.log.lock().stats();
            let used = log.live_bytes as f64 / log.capacity_bytes.max(1) as f64;
            // A tenth of the store more in use weighs as much as 8 MiB more to do.
            waiting as f64 / f64::from(8 << 20) + used * 10.0
        };
        let costs = self.members.iter().map(|m| (cost(m), m));
        let least = costs.min_by(|a, b| a.0.total_cmp(&b.0));
        least
            .map(|(_, m)| m)
            .expect("a store has at least one device")
    }
}

impl Member {
    fn offer(&self, incoming: Box<Incoming>) -> Result<(), Box<Incoming>> {
        let mut inbox = self.inbox.lock();
        if inbox.closing {
            return Err(incoming);
        }
        *inbox.keys.entry(incoming.record.key).or_default() += 1;
        inbox.incoming.push(*incoming);
        Ok(())
    }

    fn may_hold(&self, key: &Key) -> bool {
        let log = self.log.lock();
        log.knows(key) || self.inbox.lock().keys.contains_key(key)
    }
}

impl Inbox {
    fn waiting_bytes(&self) -> u64 {
        self.queued_bytes + self.incoming.iter().map(|i| i.body.bytes).sum::<u64>()
    }
}
