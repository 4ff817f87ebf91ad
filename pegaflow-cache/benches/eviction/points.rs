// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One line for each policy, workload and capacity; and one for what a decision costs.

use std::collections::HashSet;

use pegaflow_cache::core::{EvictionPolicy, PolicyHarness};
use pegaflow_cache::replay::baselines::{Arc, S3Fifo, Sieve, Simulated, optimum_hits};
use pegaflow_cache::replay::lru::{PrefixLru, TouchOrder};
use serde_json::{Value, json};

use crate::cache::{CoreCache, key};

/// Capacities as shares of the workload's unique blocks.
const SHARES: [f64; 5] = [0.01, 0.03, 0.1, 0.2, 0.4];
/// Blocks of a prefix in the measure of decisions.
const CHAIN: u64 = 32;

/// The capacities that are measured.
pub(crate) fn shares(quick: bool) -> impl Iterator<Item = f64> {
    SHARES
        .into_iter()
        .filter(move |share| !quick || *share == 0.1)
}

/// How many different blocks there are, and how many references to them.
pub(crate) fn count(requests: &[Vec<u64>]) -> (usize, usize) {
    let unique: HashSet<u64> = requests.iter().flatten().copied().collect();
    (unique.len(), requests.iter().map(Vec::len).sum())
}

pub(crate) fn measure(workload: &str, requests: &[Vec<u64>], quick: bool) {
    let (unique, references) = count(requests);
    for share in shares(quick) {
        let capacity = (unique as f64 * share) as usize;
        let optimum = optimum_hits(requests.iter().map(Vec::as_slice), capacity);
        let optimum = optimum as f64 / references as f64;
        let at = Point {
            workload,
            share,
            capacity,
            optimum,
        };
        let caches: [(&str, Box<dyn Simulated>); 5] = [
            (
                "lru",
                Box::new(PrefixLru::new(capacity, TouchOrder::LeafToRoot)),
            ),
            ("s3-fifo", Box::new(S3Fifo::new(capacity))),
            ("sieve", Box::new(Sieve::new(capacity))),
            ("arc", Box::new(Arc::new(capacity))),
            (
                "gittins",
                Box::new(CoreCache::new(EvictionPolicy::Gittins, capacity)),
            ),
        ];
        let (mut best, mut lru) = (0.0_f64, None);
        for (policy, mut cache) in caches {
            let start = cpu_us();
            let hits: usize = requests.iter().map(|blocks| cache.request(blocks)).sum();
            let per_s = references as f64 / (cpu_us() - start) * 1e6;
            let hits = hits as f64 / references as f64;
            let mut extra = json!({"hit_share": hits});
            if policy == "gittins" {
                extra["lru_hit_share"] = json!(lru);
                extra["best_other_hit_share"] = json!(best);
            }
            at.print(policy, per_s, hits, &extra);
            best = best.max(hits);
            lru = lru.or(Some(hits));
        }
    }
}

struct Point<'a> {
    workload: &'a str,
    share: f64,
    capacity: usize,
    optimum: f64,
}

impl Point<'_> {
    fn print(&self, policy: &str, references_per_s: f64, hits: f64, extra: &Value) {
        eprintln!(
            "{:20} {:4.2} {policy:8} {hits:.4}, optimum {:.4}",
            self.workload, self.share, self.optimum
        );
        let floor = json!({
            "what": "offline optimum", "gb_per_s": null, "us": null, "hit_share": self.optimum,
        });
        let share = (self.optimum > 0.0).then(|| hits / self.optimum);
        let settings = json!({
            "op": "replay", "policy": policy, "workload": self.workload,
            "capacity_share": self.share, "capacity_blocks": self.capacity,
        });
        print(
            &settings,
            Some(references_per_s),
            &[],
            (&floor, share),
            extra,
        );
    }
}

/// What one eviction, and noting a use and a new block, cost in a cache that is full.
pub(crate) fn decisions(quick: bool) {
    let sizes: &[u64] = if quick {
        &[1 << 12]
    } else {
        &[100_000, 1_000_000]
    };
    for blocks in sizes {
        for (policy, name) in [
            (EvictionPolicy::Lru, "lru"),
            (EvictionPolicy::Gittins, "gittins"),
        ] {
            decide(*blocks, policy, name, quick);
        }
    }
}

fn decide(blocks: u64, policy: EvictionPolicy, name: &str, quick: bool) {
    let mut harness = PolicyHarness::new(policy);
    let mut next = 0;
    let mut chain = || {
        next += CHAIN;
        (next - CHAIN..next).map(key).collect::<Vec<_>>()
    };
    (0..blocks / CHAIN).for_each(|_| harness.save(&chain()));
    let full = harness.bytes() as f64 / blocks as f64;
    let rounds = if quick { 100 } else { 2 * blocks / CHAIN };
    let (mut evict, mut note) = (vec![], vec![]);
    for _ in 0..rounds {
        let keys = chain();
        let start = cpu_us();
        assert_eq!(
            harness.evict(CHAIN as usize),
            CHAIN as usize,
            "the cache is full"
        );
        let between = cpu_us();
        harness.save(&keys);
        evict.push((between - start) / CHAIN as f64);
        note.push((cpu_us() - between) / CHAIN as f64);
    }
    let ghosts = harness.bytes() as f64 / blocks as f64;
    for (op, mut us) in [("evict", evict), ("note_use_and_insert", note)] {
        us.sort_by(f64::total_cmp);
        let mean = us.iter().sum::<f64>() / us.len() as f64;
        eprintln!(
            "{op:20} {name:8} {blocks:>8} blocks: {:.0} ns a block",
            mean * 1e3
        );
        let settings = json!({"op": op, "policy": name, "blocks": blocks});
        let extra = json!({
            "mean_ns": mean * 1e3, "limit_ns": 100, "table_bytes_per_block": full,
            "table_bytes_per_block_with_ghosts": ghosts,
        });
        print(
            &settings,
            Some(1e6 / mean),
            &us,
            (&Value::Null, None),
            &extra,
        );
    }
}

pub(crate) fn print(
    settings: &Value,
    ops_per_s: Option<f64>,
    sorted_us: &[f64],
    floor: (&Value, Option<f64>),
    extra: &Value,
) {
    let at = |q: f64| sorted_us.get((sorted_us.len().saturating_sub(1) as f64 * q) as usize);
    let mut line = json!({
        "bench": "eviction", "settings": settings, "machine": machine(),
        "gb_per_s": null, "ops_per_s": ops_per_s,
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
        "floor": floor.0, "floor_share": floor.1,
    });
    if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
        line.extend(extra.clone());
    }
    println!("{line}");
}

/// Time of this thread on a CPU.
pub(crate) fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({"cpus": cpus, "cpu": model.map(|(_, name)| name)})
}
