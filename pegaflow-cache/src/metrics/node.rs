// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! From the core's numbers to metrics.

use std::collections::{BTreeMap, BTreeSet};

use super::Metric;
use super::table;
use crate::core::{Counters, Stats};
use crate::node::SsdStats;
use crate::tier::share::Usage;

/// How things stand.
pub fn publish_stats(stats: &Stats) {
    let set = |metric: Metric, value: u64| metric.gauge(&[]).set(value as f64);
    set(table::POOL_CAPACITY_BYTES, stats.capacity_bytes);
    set(table::POOL_USED_BYTES, stats.used_bytes);
    set(table::SESSIONS, stats.sessions);
    set(table::LEASES, stats.leases);
    set(table::NAMESPACES, stats.namespaces);
    set(table::WAITERS, stats.waiters);
    set(table::MOVES, stats.moves);
    set(table::PINNED_BYTES, stats.pinned_bytes);
    set(table::METADATA_BYTES, stats.metadata_bytes);
    let blocks = |state, value: u64| table::BLOCKS.gauge(&[state]).set(value as f64);
    blocks("sealed", stats.sealed_blocks);
    blocks("writing", stats.writing_blocks);
    blocks("detached", stats.detached_blocks);
}

/// What happened so far, over all tenants.
pub fn publish_counters(all: &Counters) {
    let set = |metric: Metric, value| metric.counter(&[]).absolute(value);
    set(table::LOOKUPS, all.lookups);
    set(table::HIT_BYTES, all.hit_bytes);
    set(table::RESERVES, all.reserves);
    set(table::SEALED_BLOCKS, all.sealed_blocks);
    set(table::SEALED_BYTES, all.sealed_bytes);
    set(table::EVICTED_BLOCKS, all.evicted_blocks);
    set(table::EVICTED_BYTES, all.evicted_bytes);
    set(table::EVICTED_AGE_SECONDS, all.evicted_age_s);
    set(table::CORRUPT_BLOCKS, all.corrupt_blocks);
    set(table::ABORTED_BLOCKS, all.aborted_blocks);
    set(table::MOVED_BLOCKS, all.moved_blocks);
    let set = |metric: Metric, label, value| metric.counter(&[label]).absolute(value);
    let found = all.hit_blocks.saturating_add(all.pending_blocks);
    set(table::LOOKUP_BLOCKS, "hit", all.hit_blocks);
    set(table::LOOKUP_BLOCKS, "pending", all.pending_blocks);
    set(
        table::LOOKUP_BLOCKS,
        "miss",
        all.lookup_keys.saturating_sub(found),
    );
    set(table::RESERVE_BLOCKS, "placed", all.reserved_blocks);
    set(
        table::RESERVE_BLOCKS,
        "deduplicated",
        all.deduplicated_blocks,
    );
    set(table::RESERVE_BLOCKS, "refused", all.refused_blocks);
    set(table::EXPIRED_LEASES, "read", all.expired_read_leases);
    set(table::EXPIRED_LEASES, "write", all.expired_write_leases);
}

/// What the SSD tier did, and how it stands.
pub fn publish_ssd(stats: &SsdStats) {
    let count = |metric: Metric, labels: &[&str], value| metric.counter(labels).absolute(value);
    for (outcome, value) in [
        ("fetched", stats.fetched_blocks),
        ("missing", stats.fetch_missing),
        ("corrupt", stats.fetch_corrupt),
        ("failed", stats.fetch_failed),
        ("cancelled", stats.fetch_cancelled),
    ] {
        count(table::SSD_FETCH_BLOCKS, &[outcome], value);
    }
    for (reason, value) in [
        ("budget", stats.plan_over_budget),
        ("slow", stats.plan_too_slow),
        ("room", stats.plan_no_room),
    ] {
        count(table::SSD_SKIPPED_BLOCKS, &[reason], value);
    }
    for (outcome, value) in [
        ("written", stats.spilled_blocks),
        ("known", stats.spill_known),
        ("declined", stats.spill_declined),
        ("gone", stats.spill_gone),
        ("queue_full", stats.spill_queue_full),
        ("quota", stats.spill_over_quota),
        ("unfit", stats.spill_unfit),
        ("failed", stats.spill_failed),
    ] {
        count(table::SSD_SPILL_BLOCKS, &[outcome], value);
    }
    count(table::SSD_FETCH_BYTES, &[], stats.fetched_bytes);
    count(table::SSD_SPILL_BYTES, &[], stats.spilled_bytes);
    count(table::SSD_DEVICE_BYTES, &[], stats.store.device_bytes);
    count(
        table::SSD_RECLAIMED_BLOCKS,
        &[],
        stats.store.dropped.reclaimed,
    );
    let set = |metric: Metric, labels: &[&str], value: u64| metric.gauge(labels).set(value as f64);
    set(table::SSD_MOVING_BYTES, &["fetch"], stats.fetching_bytes);
    set(table::SSD_MOVING_BYTES, &["spill"], stats.spilling_bytes);
    set(table::SSD_WAITING_BLOCKS, &[], stats.spill_waiting_blocks);
    set(table::SSD_BLOCKS, &[], stats.store.blocks);
    set(table::SSD_USED_BYTES, &[], stats.store.live_bytes);
    set(table::SSD_CAPACITY_BYTES, &[], stats.store.capacity_bytes);
}

/// Room of tenants: name, bytes in use, limit. Tenants not `named` in the configuration are counted
/// together as `other`: anybody can make up a tenant's name, and a label must stay bounded.
pub fn publish_tenants<'a>(
    usage: impl Iterator<Item = (&'a str, u64, Option<u64>)>,
    named: &BTreeSet<String>,
) {
    let mut used: BTreeMap<&str, u64> = BTreeMap::new();
    used.insert(OTHER, 0);
    for (name, bytes, limit) in usage {
        let label = if named.contains(name) { name } else { OTHER };
        *used.entry(label).or_default() += bytes;
        if let Some(limit) = limit.filter(|_| label != OTHER) {
            table::TENANT_LIMIT_BYTES.gauge(&[label]).set(limit as f64);
        }
    }
    for (label, bytes) in used {
        table::TENANT_USED_BYTES.gauge(&[label]).set(bytes as f64);
    }
}

/// What tenants have on SSD and moved so far, by the same labels.
pub fn publish_ssd_tenants(tenants: &[(Option<String>, Usage)]) {
    let mut sums: BTreeMap<&str, Usage> = BTreeMap::new();
    for (name, usage) in tenants {
        let label = name.as_deref().unwrap_or(OTHER);
        let sum = sums.entry(label).or_default();
        sum.bytes += usage.bytes;
        sum.spilled_bytes += usage.spilled_bytes;
        sum.fetched_bytes += usage.fetched_bytes;
        if let Some(limit) = usage.bytes_max {
            table::TENANT_SSD_LIMIT_BYTES
                .gauge(&[label])
                .set(limit as f64);
        }
    }
    for (label, sum) in sums {
        let used = table::TENANT_SSD_USED_BYTES.gauge(&[label]);
        used.set(sum.bytes as f64);
        let count = |metric: Metric, value| metric.counter(&[label]).absolute(value);
        count(table::TENANT_SSD_SPILL_BYTES, sum.spilled_bytes);
        count(table::TENANT_SSD_FETCH_BYTES, sum.fetched_bytes);
    }
}

const OTHER: &str = "other";
