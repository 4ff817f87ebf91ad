// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How fast the core finds, leases, reserves and seals, and what a block costs in memory.
//!
//! Napkin: a lookup of one key reads a bucket of the index (one line), the block (one line), and
//! writes a record of the log of touches (four bytes in sequence) and a counter of the log's chunk
//! (in cache); its release comes back to the block. At ten million blocks the two lines are in
//! memory: with some ten misses in flight at 100 ns each that is 20 ns, with address translation
//! twice that. The floor is the naive way in the same run: `HashMap<[u8; 16], u64>` behind one mutex,
//! one locked lookup for every batch, no leases, no order of use.
//!
//! `as-saved`: the blocks of a prefix lie together, as one request saved them. `scattered`: every
//! block of a prefix was saved by another request, the worst the arena can look like.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "lines for tools on stdout, text for people on stderr"
)]

use pegaflow_cache::core::{
    Action, Answer, Core, CoreSettings, GroupShape, LookupMode, LookupReply, LookupRequest,
    NamespaceIndex, NamespaceSpec, Now, ReserveReply, ReserveRequest, SessionId,
};
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, NamespaceId};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

const BATCH: usize = 1024;
const SESSION: SessionId = SessionId(1);
const LAYERS: u32 = 61;

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (sizes, time) = match quick {
        true => (vec![64 << 10], Duration::from_millis(100)),
        false => (vec![1_000_000, 10_000_000], Duration::from_secs(3)),
    };
    for size in sizes {
        for scattered in [false, true] {
            measure(size, scattered, time);
        }
    }
}

/// All points of one number of resident blocks.
fn measure(size: usize, scattered: bool, time: Duration) {
    let chains = size / BATCH;
    let at = Point {
        keys: chains * BATCH,
        order: if scattered { "scattered" } else { "as-saved" },
    };
    eprintln!("index: {} blocks, {}", at.keys, at.order);
    let naive = Naive::new(chains, time);
    let before = resident_bytes();
    let mut node = Node::new(at.keys);
    let grow = node.fill(chains, scattered);
    let bytes = (resident_bytes() - before) as f64 / at.keys as f64;
    node.chains = (0..chains).flat_map(chain).collect();
    let own = node.core.stats().metadata_bytes as f64 / at.keys as f64;
    eprintln!("  {bytes:.1} bytes a block resident, {own:.1} by the core's own count");

    let extra = json!({"bytes_per_block": bytes, "bytes_per_block_counted": own});
    at.print("grow", &grow, &naive.insert, extra);
    let worst = Laps {
        us: vec![grow.worst()],
        keys: 0,
    };
    let worst_insert = Laps {
        us: vec![naive.insert.worst()],
        keys: 0,
    };
    at.print(
        "grow_worst_call",
        &worst,
        &worst_insert,
        json!({"limit_us": 5000}),
    );
    let probe = run(time, |dice| node.lookup(dice % chains, None));
    at.print("probe", &probe, &naive.lookup, json!({}));
    let lookup = run(time, |dice| node.lookup(dice % chains, Some(60_000)));
    at.print("lookup", &lookup, &naive.lookup, json!({}));
    let mut next = chains;
    let replace = run(time, |_| {
        next += 1;
        node.save(&chain(next));
    });
    at.print("reserve_seal_evict", &replace, &naive.insert, json!({}));
}

/// A point of the matrix.
struct Point {
    keys: usize,
    order: &'static str,
}

impl Point {
    fn print(&self, op: &str, laps: &Laps, floor: &Laps, extra: Value) {
        let per_s = laps.keys_per_s();
        let what = match op {
            "grow_worst_call" => "std HashMap behind a mutex: its worst batch of 1,024 inserts",
            "grow" | "reserve_seal_evict" => "std HashMap behind a mutex: batches of 1,024 inserts",
            _ => "std HashMap behind a mutex: batches of 1,024 lookups",
        };
        let share = match (per_s, floor.keys_per_s()) {
            (Some(a), Some(b)) => a / b,
            _ => floor.worst() / laps.worst(),
        };
        let mut line = json!({
            "bench": "index",
            "settings": {"op": op, "keys": self.keys, "layers": LAYERS, "batch": BATCH, "order": self.order},
            "machine": machine(),
            "gb_per_s": null,
            "ops_per_s": per_s,
            "p50_us": laps.quantile(0.5),
            "p99_us": laps.quantile(0.99),
            "p999_us": laps.quantile(0.999),
            "floor": {"what": what, "gb_per_s": null, "us": floor.quantile(0.5)},
            "floor_share": share,
        });
        if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
            line.extend(extra.clone());
        }
        eprintln!(
            "  {op:20} {:8.2} M keys/s, p50 {:.0} us, worst {:.0} us, {share:.2} of the floor",
            per_s.unwrap_or(0.0) / 1e6,
            laps.quantile(0.5),
            laps.worst()
        );
        println!("{line}");
    }
}

/// How long each call took.
#[derive(Default)]
struct Laps {
    us: Vec<f64>,
    keys: usize,
}

impl Laps {
    /// Time is that of this thread on a CPU: what others do on the machine is not the call's.
    fn time<T>(&mut self, keys: usize, call: impl FnOnce() -> T) -> T {
        let start = cpu_us();
        let out = call();
        self.us.push(cpu_us() - start);
        self.keys += keys;
        out
    }

    fn keys_per_s(&self) -> Option<f64> {
        (self.keys > 0).then(|| self.keys as f64 / self.us.iter().sum::<f64>() * 1e6)
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.us.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * q) as usize]
    }

    fn worst(&self) -> f64 {
        self.us.iter().copied().fold(0.0, f64::max)
    }
}

/// Calls with a random number until the time is over. Each call works on one batch.
fn run(time: Duration, mut call: impl FnMut(usize)) -> Laps {
    let mut laps = Laps::default();
    let mut dice = 1;
    while laps.us.iter().sum::<f64>() < time.as_secs_f64() * 1e6 {
        for _ in 0..16 {
            dice = mix(dice);
            laps.time(BATCH, || call(dice as usize >> 8));
        }
    }
    laps
}

fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn key(chain: usize, at: usize) -> BlockKey {
    let low = mix((chain * BATCH + at) as u64);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&low.to_le_bytes());
    key[8..].copy_from_slice(&mix(low).to_le_bytes());
    BlockKey(key)
}

fn chain(chain: usize) -> Vec<BlockKey> {
    (0..BATCH).map(|at| key(chain, at)).collect()
}

/// A core with buffers, as a node has them.
struct Node {
    core: Core,
    namespace: NamespaceIndex,
    slot: Slot,
    reserved: ReserveReply,
    found: LookupReply,
    actions: Vec<Action>,
    items: Vec<u32>,
    /// The keys of the lookups: made before the clock runs, as a node gets them from the wire.
    chains: Vec<BlockKey>,
}

impl Node {
    fn new(blocks: usize) -> Self {
        let shape = BlockShape {
            layers: LAYERS,
            parts: 2,
            heads: 1,
            inner_bytes: 1024,
        };
        let mut core = Core::new(CoreSettings::default(), [1, 2]).expect("the defaults are valid");
        // A little more than needed: slabs do not end where blocks do.
        core.add_pool(blocks as u64 * (shape.bytes() + 4096))
            .expect("the first pool");
        let kind = GroupKind::FullAttention;
        let spec = NamespaceSpec {
            id: NamespaceId([1; 32]),
            tenant: String::new(),
            groups: vec![GroupShape {
                kind,
                block_tokens: 16,
                shape,
            }],
        };
        let namespace = core.register_namespace(&spec).expect("a valid namespace");
        core.open_session(SESSION, 0).expect("the first session");
        Self {
            core,
            namespace,
            slot: Slot::whole(&shape),
            reserved: ReserveReply::default(),
            found: LookupReply::default(),
            actions: Vec::new(),
            items: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// Saves that many prefixes of one batch each, and says how long each batch took.
    fn fill(&mut self, chains: usize, scattered: bool) -> Laps {
        let mut laps = Laps::default();
        for i in 0..chains {
            // Scattered: block `at` of a prefix is saved in batch `i` with those of others.
            let keys = match scattered {
                false => chain(i),
                true => (0..BATCH)
                    .map(|at| key((i + at * 977) % chains, at))
                    .collect(),
            };
            laps.time(BATCH, || self.save(&keys));
        }
        laps
    }

    fn save(&mut self, keys: &[BlockKey]) {
        self.actions.clear();
        let request = ReserveRequest {
            namespace: self.namespace,
            group: GroupId(0),
            slot: &self.slot,
            parent: None,
            keys,
        };
        let reserved = &mut self.reserved;
        let reserve = self
            .core
            .reserve(Now(0), SESSION, &request, reserved, &mut self.actions);
        reserve.expect("a valid request");
        self.items.clear();
        let answers = (0..).zip(&self.reserved.answers);
        self.items.extend(
            answers
                .filter(|(_, a)| matches!(a, Answer::Place { .. }))
                .map(|(item, _)| item),
        );
        let lease = self.reserved.lease.expect("the keys are new");
        assert_eq!(self.items.len(), keys.len(), "the pool has room");
        self.core
            .seal(Now(0), SESSION, lease, &self.items, &mut self.actions)
            .expect("the lease is fresh");
    }

    /// Looks a whole prefix up; with a lease also releases it.
    fn lookup(&mut self, chain: usize, lease_ttl_ms: Option<u64>) {
        let request = LookupRequest {
            namespace: self.namespace,
            group: GroupId(0),
            keys: &self.chains[chain * BATCH..][..BATCH],
            mode: LookupMode::Prefix,
            lease_ttl_ms,
            ticket: None,
        };
        self.core
            .lookup(Now(0), SESSION, &request, &mut self.found)
            .expect("a valid request");
        assert_eq!(self.found.blocks.len(), BATCH, "all blocks are resident");
        if let Some(lease) = self.found.lease {
            self.core
                .release(SESSION, lease, &mut self.actions)
                .expect("the lease lives");
        }
    }
}

/// The naive way.
struct Naive {
    insert: Laps,
    lookup: Laps,
}

impl Naive {
    fn new(chains: usize, time: Duration) -> Self {
        let map = Mutex::new(HashMap::<[u8; 16], u64>::new());
        let mut insert = Laps::default();
        for i in 0..chains {
            let keys = chain(i);
            insert.time(BATCH, || {
                let mut map = map.lock().expect("nobody panics");
                map.extend(keys.iter().map(|key| key.0).zip(0..));
            });
        }
        let keys: Vec<_> = (0..chains).flat_map(chain).collect();
        let mut found: Vec<u64> = Vec::with_capacity(BATCH);
        let lookup = run(time, |dice| {
            found.clear();
            let map = map.lock().expect("nobody panics");
            let keys = &keys[dice % chains * BATCH..][..BATCH];
            found.extend(keys.iter().map_while(|key| map.get(&key.0)));
            assert_eq!(found.len(), BATCH);
        });
        Self { insert, lookup }
    }
}

/// Bytes of this process in memory.
fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<i64>().ok());
    pages.unwrap_or(0) * 4096
}

fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({"cpus": cpus, "cpu": model.map(|(_, name)| name)})
}
