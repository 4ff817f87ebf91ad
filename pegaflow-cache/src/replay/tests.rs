// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The driver against nodes that behave, lose connections, forget, run out of room, damage bytes and lie.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pegaflow_mem::layout::{BlockCopy, KvLayout};
use pegaflow_meta::BlockKey;

use super::drive::{Outcome, Replay};
use super::engine::{EngineMemory, Rank, engine_bytes, engine_layout};
use super::error::Error;
use super::lru::{PrefixLru, TouchOrder};
use super::port::{NodeFacts, Port, PortError, Saved};
use super::settings::ReplaySettings;
use super::source::{Source, Workload};
use super::trace::Request;

/// What the fake node does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Every n-th call finds the node gone.
    Gone(u32),
    /// Every n-th load says that the lease has ended.
    Stale(u32),
    /// Every n-th load flips a bit, and says so.
    Damage(u32),
    /// Every n-th load flips a bit, and does not.
    Lie(u32),
    /// Saves nothing.
    Full,
}

const BASE: u64 = 1 << 20;

struct Memory(Mutex<Vec<u8>>);

impl EngineMemory for Memory {
    fn write(&self, address: u64, bytes: &[u8]) {
        let at = (address - BASE) as usize;
        self.0.lock()[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn read(&self, address: u64, bytes: &mut [u8]) {
        let at = (address - BASE) as usize;
        bytes.copy_from_slice(&self.0.lock()[at..at + bytes.len()]);
    }
}

/// A block as the fake node has it: canonical bytes, and a bit for each rank that wrote its part.
type Pool = HashMap<BlockKey, (Vec<u8>, u32)>;

struct FakeNode {
    fault: Fault,
    calls: AtomicU32,
    block_bytes: u64,
    ranks: Vec<(Arc<KvLayout>, Arc<Memory>)>,
    pool: Mutex<Pool>,
}

impl FakeNode {
    fn now_and_then(&self, n: u32) -> bool {
        (self.calls.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(n)
    }

    fn reachable(&self) -> Result<(), PortError> {
        match self.fault {
            Fault::Gone(n) if self.now_and_then(n) => Err(PortError::Unavailable("gone".into())),
            _ => Ok(()),
        }
    }

    fn damage(&self, n: u32, rank: u32, engine: u32) -> bool {
        let damage = self.now_and_then(n);
        if damage {
            let (layout, memory) = &self.ranks[rank as usize];
            let copy = BlockCopy {
                block: engine,
                place: 0,
            };
            let run = layout
                .runs(copy)
                .expect("in range")
                .last()
                .expect("one run at least");
            memory.0.lock()[(run.device + run.bytes - 1 - BASE) as usize] ^= 1;
        }
        damage
    }
}

impl Port for FakeNode {
    type Held = Vec<BlockKey>;

    fn facts(&self) -> Result<NodeFacts, PortError> {
        Ok(NodeFacts {
            capacity_blocks: u64::from(u32::MAX),
        })
    }

    fn lookup(&self, keys: &[BlockKey]) -> Result<(u32, Self::Held), PortError> {
        self.reachable()?;
        let pool = self.pool.lock();
        let sealed = |key: &&BlockKey| {
            pool.get(key)
                .is_some_and(|b| b.1.count_ones() as usize == self.ranks.len())
        };
        let found: Vec<_> = keys.iter().take_while(sealed).copied().collect();
        Ok((found.len() as u32, found))
    }

    fn wait(&self, _: &mut Self::Held, _: &[BlockKey]) -> Result<u32, PortError> {
        Ok(0)
    }

    fn load(
        &self,
        rank: u32,
        held: &Self::Held,
        blocks: Range<u32>,
        engine: u32,
    ) -> Result<u32, PortError> {
        self.reachable()?;
        match self.fault {
            Fault::Stale(n) if self.now_and_then(n) => return Err(PortError::Stale("old".into())),
            _ => {}
        }
        let (layout, memory) = &self.ranks[rank as usize];
        let pool = self.pool.lock();
        let keys = &held[blocks.start as usize..blocks.end as usize];
        for (block, key) in (engine..).zip(keys) {
            for run in layout
                .runs(BlockCopy { block, place: 0 })
                .expect("in range")
            {
                let at = run.pool as usize;
                memory.write(run.device, &pool[key].0[at..at + run.bytes as usize]);
            }
        }
        match self.fault {
            Fault::Damage(n) if self.damage(n, rank, engine) => Ok(0),
            Fault::Lie(n) => {
                self.damage(n, rank, engine);
                Ok(keys.len() as u32)
            }
            _ => Ok(keys.len() as u32),
        }
    }

    fn release(&self, _: Self::Held) {}

    fn save(
        &self,
        rank: u32,
        keys: &[BlockKey],
        _: Option<BlockKey>,
        engine: u32,
    ) -> Result<Saved, PortError> {
        self.reachable()?;
        if self.fault == Fault::Full {
            return Ok(Saved {
                refused: keys.len() as u32,
                ..Saved::default()
            });
        }
        let (layout, memory) = &self.ranks[rank as usize];
        let mut pool = self.pool.lock();
        let mut saved = Saved::default();
        for (block, key) in (engine..).zip(keys) {
            let empty = || (vec![0; self.block_bytes as usize], 0);
            let (bytes, written) = pool.entry(*key).or_insert_with(empty);
            if *written & (1 << rank) != 0 {
                saved.had += 1;
                continue;
            }
            for run in layout
                .runs(BlockCopy { block, place: 0 })
                .expect("in range")
            {
                let at = run.pool as usize;
                memory.read(run.device, &mut bytes[at..at + run.bytes as usize]);
            }
            *written |= 1 << rank;
            saved.written += 1;
        }
        Ok(saved)
    }

    fn reconnect(&self, _: Duration) -> Result<(), PortError> {
        Ok(())
    }
}

fn node(settings: &ReplaySettings, fault: Fault) -> (FakeNode, Vec<Rank>) {
    let shape = settings.shape().expect("valid");
    let blocks = settings.engine_blocks();
    let of_slot = |slot| {
        let len = engine_bytes(&shape, &slot, blocks);
        let layout = Arc::new(engine_layout(shape, slot, BASE, blocks).expect("valid"));
        (layout, Arc::new(Memory(Mutex::new(vec![0; len as usize]))))
    };
    let slots: Vec<_> = settings
        .slots()
        .expect("valid")
        .into_iter()
        .map(of_slot)
        .collect();
    let rank = |(l, m): &(Arc<KvLayout>, Arc<Memory>)| Rank::new(l.clone(), m.clone());
    let ranks = slots.iter().map(rank).collect();
    let node = FakeNode {
        fault,
        calls: AtomicU32::new(0),
        block_bytes: shape.bytes(),
        ranks: slots,
        pool: Mutex::default(),
    };
    (node, ranks)
}

// Sessions that grow, with a prefix in common.
fn requests() -> Vec<Request> {
    let turn = |n: u64| {
        let (session, turns) = (n % 4, n / 4 + 1);
        let own = (1..=turns * 3).map(move |i| session * 1000 + 100 + i);
        let blocks: Vec<u64> = (0..3).chain(own).collect();
        Request {
            arrival_ms: n,
            input_tokens: 1,
            output_tokens: 1,
            blocks,
        }
    };
    (0..40).map(turn).collect()
}

fn replay(fault: Fault, change: impl Fn(&mut ReplaySettings)) -> Result<Outcome, Error> {
    let mut settings = ReplaySettings {
        layers: 2,
        heads: 4,
        block_bytes: 1024,
        in_flight_max: 1,
        chunk_blocks: 4,
        ..ReplaySettings::default()
    };
    change(&mut settings);
    let (node, ranks) = node(&settings, fault);
    let namespace = settings.namespace().fingerprint().expect("valid");
    let replay = Replay {
        port: &node,
        ranks: &ranks,
        settings: &settings,
        namespace,
    };
    let capacity = node.facts().expect("a fake never fails").capacity_blocks;
    let source = Source::new(
        Workload::Listed(requests().into_iter()),
        settings.requests_max,
        capacity,
    );
    replay.run(source, |_| true)
}

fn references() -> u64 {
    requests().iter().map(|r| r.blocks.len() as u64).sum()
}

#[test]
fn a_good_node_of_any_ranks_hits_like_the_plain_cache() {
    for ranks in [1, 2, 4] {
        let got = replay(Fault::None, |s| s.ranks = ranks).expect("nothing goes wrong");
        let c = got.counts;
        assert_eq!((c.requests, c.blocks_referenced), (40, references()));
        assert_eq!(c.prefix_hit_blocks, got.plain_lru.prefix_hit_blocks);
        assert_eq!(c.prefix_hit_blocks, got.facts.reusable_references);
        assert_eq!(c.bytes_loaded, c.prefix_hit_blocks * 1024);
        assert_eq!((c.bytes_verified, c.mismatches), (c.bytes_loaded, 0));
        assert_eq!(c.bytes_saved, got.facts.unique_blocks * 1024);
        assert_eq!(got.latencies.lookup_us.count, 40);
        assert!(!got.series.is_empty() && got.recoveries_ms.is_empty());
    }
}

#[test]
fn requests_in_flight_together_lose_nothing() {
    let got = replay(Fault::None, |s| s.in_flight_max = 4).expect("nothing goes wrong");
    assert_eq!((got.counts.requests, got.counts.mismatches), (40, 0));
    assert_eq!(
        got.counts.bytes_verified,
        got.counts.prefix_hit_blocks * 1024
    );
}

#[test]
fn limits_end_a_replay() {
    let got = replay(Fault::None, |s| s.requests_max = 7).expect("nothing goes wrong");
    assert_eq!(got.counts.requests, 7);
    let got = replay(Fault::None, |s| s.seconds = 1e-9).expect("nothing goes wrong");
    assert_eq!(got.counts.requests, 0);
    let got = replay(Fault::None, |s| s.speed = 1.0).expect("nothing goes wrong");
    assert!(got.seconds >= 0.039, "in trace time: {}", got.seconds);
}

#[test]
fn an_outage_costs_time_and_no_request() {
    let got = replay(Fault::Gone(31), |_| {}).expect("it comes back");
    let c = got.counts;
    assert_eq!(
        (c.requests, c.blocks_referenced, c.mismatches),
        (40, references(), 0)
    );
    assert!(
        c.unavailable > 3 && c.restarted_requests == c.unavailable,
        "{c:?}"
    );
    assert!(!got.recoveries_ms.is_empty());
    let got = replay(Fault::Stale(23), |_| {}).expect("a new lookup helps");
    assert!(got.counts.restarted_requests > 3 && got.counts.requests == 40);
}

#[test]
fn damage_that_is_reported_is_a_miss_and_a_lie_is_a_mismatch() {
    let honest = replay(Fault::Damage(5), |_| {})
        .expect("a miss is no error")
        .counts;
    assert!(
        honest.damaged_blocks > 5 && honest.mismatches == 0,
        "{honest:?}"
    );
    assert!(honest.prefix_hit_blocks < honest.blocks_referenced / 2);
    let liar = replay(Fault::Lie(5), |_| {})
        .expect("counted, not fatal")
        .counts;
    assert!(liar.mismatches > 5, "{liar:?}");
}

#[test]
fn a_full_node_refuses_and_the_engine_goes_on() {
    let got = replay(Fault::Full, |_| {})
        .expect("a refusal is no error")
        .counts;
    assert_eq!(
        (got.requests, got.prefix_hit_blocks, got.bytes_saved),
        (40, 0, 0)
    );
    assert_eq!(got.refused_blocks, references() * 2);
}

#[test]
fn a_block_that_comes_twice_cuts_the_request() {
    let twice = Request {
        blocks: vec![1, 2, 1, 3],
        ..Request::default()
    };
    let mut source = Source::new(Workload::Listed(vec![twice].into_iter()), 0, 10);
    let request = source
        .next_request()
        .expect("no file")
        .expect("one request");
    assert_eq!((request.blocks, source.repeated_blocks()), (vec![1, 2], 2));
    let mut lru = PrefixLru::new(10, TouchOrder::InOrder);
    lru.request(&[1, 2]);
    assert_eq!(source.plain_lru().prefix_hit_blocks, lru.hits());
}
