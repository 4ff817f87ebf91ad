// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The tenants' shares as the store's policy of what leaves.

use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_ssd::reclaim::{self, BlockView, ReclaimPolicy, SegmentView};
use pegaflow_ssd::settings::Reclaim;
use pegaflow_ssd::{Key, SsdStore};

use crate::tier::SsdReclaim;
use crate::tier::share::{Shares, Verdict};

/// Another policy, asked for tenants that have neither more nor less than their share.
struct Fair {
    inner: Box<dyn ReclaimPolicy>,
    shares: Arc<Mutex<Shares>>,
}

impl ReclaimPolicy for Fair {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn victim(&mut self, full: &[SegmentView], now_s: u64) -> usize {
        self.inner.victim(full, now_s)
    }

    fn keep(&mut self, block: &BlockView) -> bool {
        let verdict = self.shares.lock().verdict(&block.key.0);
        match verdict {
            Verdict::Stays => true,
            Verdict::Leaves => false,
            Verdict::Even => self.inner.keep(block),
        }
    }

    fn found(&mut self, key: &Key, bytes: u64) {
        self.shares.lock().found(key.0, bytes);
    }

    fn gone(&mut self, key: &Key, bytes: u64) {
        self.shares.lock().gone(&key.0, bytes);
    }
}

/// The store's own policy of this name.
pub(super) fn named(setting: SsdReclaim) -> Reclaim {
    match setting {
        SsdReclaim::Clock => Reclaim::Clock,
        SsdReclaim::Fifo => Reclaim::Fifo,
    }
}

/// Lets `shares` know what is on the drives, and decide what leaves them.
pub(super) fn attach(store: &SsdStore, setting: SsdReclaim, shares: &Arc<Mutex<Shares>>) {
    store.reclaim_by(|| {
        let inner = reclaim::policy(named(setting));
        let shares = shares.clone();
        Box::new(Fair { inner, shares })
    });
}
