// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The core on a real hour of requests: with LRU its prefix hits must be those of a plain LRU, as
//! computed by others for the same capacities; with the policy that learns, far more where the cache
//! is small, and nowhere less than the best of the published policies has, but for 0.3 points.
#![cfg(feature = "replay")]

use pegaflow_cache::core::{
    Answer, Core, CoreSettings, EvictionPolicy, GroupShape, LookupMode, LookupReply, LookupRequest,
    NamespaceSpec, Now, ReserveReply, ReserveRequest, SessionId,
};
use pegaflow_cache::replay::trace::{Request, TraceReader};
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, NamespaceId};
use std::path::Path;

const TRACE: &str = "../../shared/data/traces/conversation_trace.jsonl.gz";
/// Capacity in blocks, and shares of all references that hit: LRU, leaves before their prefixes; and
/// the least wanted: a quarter of the way from there to the offline optimum for the first two, the
/// best of LRU, S3-FIFO, SIEVE and ARC less 0.003 for the others.
const SHARES: [(u64, f64, f64); 5] = [
    (1_827, 0.0525, 0.1009),
    (5_483, 0.1257, 0.1813),
    (18_279, 0.2789, 0.2813),
    (36_558, 0.3453, 0.3423),
    (73_116, 0.3604, 0.3574),
];
const SESSION: SessionId = SessionId(1);
const SHAPE: BlockShape = BlockShape {
    layers: 1,
    parts: 2,
    heads: 1,
    inner_bytes: 2048,
};

#[test]
fn prefix_hits_on_the_conversation_trace() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TRACE);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let trace = TraceReader::open(&path).expect("a trace");
    let trace: Vec<Request> = trace.map(|request| request.expect("a request")).collect();
    for (capacity, expect, wanted) in SHARES {
        let learnt = hit_share(&trace, capacity, EvictionPolicy::Gittins);
        assert!(learnt > wanted, "{capacity} blocks: {learnt:.4}");
        let share = hit_share(&trace, capacity, EvictionPolicy::Lru);
        println!("{capacity} blocks: {share:.4}, LRU has {expect:.4}");
        assert!(
            (share - expect).abs() < 0.005,
            "{capacity} blocks: {share:.4}, not {expect:.4}"
        );
    }
}

fn hit_share(trace: &[Request], capacity: u64, eviction: EvictionPolicy) -> f64 {
    let settings = CoreSettings {
        eviction,
        ..CoreSettings::default()
    };
    let mut core = Core::new(settings, [1, 2]).expect("the settings are valid");
    core.add_pool(capacity * SHAPE.bytes())
        .expect("the first pool");
    let kind = GroupKind::FullAttention;
    let groups = vec![GroupShape {
        kind,
        block_tokens: 512,
        shape: SHAPE,
    }];
    let spec = NamespaceSpec {
        id: NamespaceId([0; 32]),
        tenant: String::new(),
        groups,
    };
    core.register_namespace(&spec).expect("a valid namespace");
    core.open_session(SESSION, 0).expect("the first session");
    let (mut hits, mut references) = (0, 0);
    for request in trace {
        let key = |id: &u64| BlockKey(u128::from(*id).to_le_bytes());
        let keys: Vec<_> = request.blocks.iter().map(key).collect();
        hits += serve(&mut core, Now(request.arrival_ms), &keys);
        references += keys.len();
    }
    hits as f64 / references as f64
}

/// Loads what is there, saves the rest; returns the blocks that were there.
fn serve(core: &mut Core, now: Now, keys: &[BlockKey]) -> usize {
    let (namespace, group) = (pegaflow_cache::core::NamespaceIndex(0), GroupId(0));
    let (mode, lease_ttl_ms) = (LookupMode::Prefix, Some(1000));
    let request = LookupRequest {
        namespace,
        group,
        keys,
        mode,
        lease_ttl_ms,
        ticket: None,
    };
    let (mut found, mut actions) = (LookupReply::default(), vec![]);
    core.lookup(now, SESSION, &request, &mut found)
        .expect("a valid request");
    if let Some(lease) = found.lease {
        core.release(SESSION, lease, &mut actions)
            .expect("it lives");
    }
    let slot = Slot::whole(&SHAPE);
    let request = ReserveRequest {
        namespace,
        group,
        slot: &slot,
        parent: None,
        keys,
    };
    let mut reply = ReserveReply::default();
    core.reserve(now, SESSION, &request, &mut reply, &mut actions)
        .expect("a valid request");
    let is_place =
        |(at, answer): (u32, &Answer)| matches!(answer, Answer::Place { .. }).then_some(at);
    let items: Vec<u32> = (0..).zip(&reply.answers).filter_map(is_place).collect();
    if let Some(lease) = reply.lease {
        core.seal(now, SESSION, lease, &items, &mut actions)
            .expect("it lives");
    }
    found.blocks.len()
}
