// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A policy from outside: it hears of every block that is found, and decides what stays.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::*;
use crate::reclaim::{self, BlockView, ReclaimPolicy, SegmentView};

/// Keeps keys below 3, and counts.
struct Watch {
    inner: Box<dyn ReclaimPolicy>,
    found: Arc<Mutex<HashMap<Key, u64>>>,
}

impl ReclaimPolicy for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn victim(&mut self, full: &[SegmentView], now_s: u64) -> usize {
        self.inner.victim(full, now_s)
    }

    fn keep(&mut self, block: &BlockView) -> bool {
        [key(1), key(2)].contains(&block.key)
    }

    fn found(&mut self, key: &Key, bytes: u64) {
        let known = self.found.lock().insert(*key, bytes);
        assert_eq!(known, None, "told twice of {key:?}");
    }

    fn gone(&mut self, key: &Key, bytes: u64) {
        assert_eq!(self.found.lock().remove(key), Some(bytes), "{key:?}");
    }
}

#[test]
fn a_policy_from_outside_knows_what_is_there_and_decides_what_stays() {
    let store = SsdStore::in_memory(settings(), 4 * MIB).unwrap();
    for n in 1..=4 {
        assert_eq!(put(&store, n, 60_000), Ok(Stored::Stored));
    }
    let found: Arc<Mutex<HashMap<Key, u64>>> = Arc::default();
    store.reclaim_by(|| {
        let inner = reclaim::policy(Reclaim::Fifo);
        let found = found.clone();
        Box::new(Watch { inner, found })
    });
    assert_eq!(found.lock().len(), 4);
    put(&store, 4, 50_000).unwrap();
    let removed = store.remove(key(3)).unwrap().wait();
    assert_eq!(removed.result, Ok(true));
    for n in 10..300 {
        put(&store, n, 60_000).unwrap();
    }
    let stats = store.stats();
    assert!(stats.dropped.reclaimed > 100, "{stats:?}");
    assert_eq!(found.lock().values().sum::<u64>(), stats.live_bytes);
    let kept = [1, 2, 4, 10].map(|n| get(&store, n, 60_000));
    assert_eq!(kept, [Ok(true), Ok(true), Ok(false), Ok(false)]);
}
