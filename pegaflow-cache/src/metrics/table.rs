// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The table itself. The doc comment of a metric is its HELP text and its line in the book.

use super::{Metric, Type, Values};

/// Upper bounds of latency buckets in seconds: 10 microseconds to 10 seconds.
const LATENCY: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1.0, 10.0,
];

/// Calls of the protocol, in the order of their numbers.
pub const CALLS: &[&str] = &[
    "register_namespace",
    "lookup",
    "lookup_hybrid",
    "claim",
    "reserve",
    "seal",
    "abort",
    "release",
    "report_corrupt",
    "quiesced",
    "stats",
    "claim_hybrid",
    "hint",
];
/// What a caller must do about a failure: the words of [`pegaflow_mem::ErrorKind`].
pub const KINDS: &[&str] = &[
    "retry",
    "busy",
    "invalid",
    "corrupt",
    "unsupported",
    "closed",
    "internal",
];

const TENANT: Values = Values::Each("tenant of the configuration, and `other` for all others");

macro_rules! table {
    ($(
        $(#[doc = $help:literal])+
        $kind:ident $id:ident = $name:literal $([ $($label:ident: $values:expr),+ ])?;
    )*) => {
        $(
            $(#[doc = $help])+
            pub const $id: Metric = Metric {
                name: $name,
                kind: Type::$kind,
                labels: &[$($((stringify!($label), $values)),+)?],
                help: concat!($($help),+).trim_ascii(),
                buckets: table!(@buckets $kind),
            };
        )*
        /// Every metric there is, in the order of the book.
        pub const TABLE: &[Metric] = &[$($id),*];
    };
    (@buckets Histogram) => { LATENCY };
    (@buckets $other:ident) => { &[] };
}

table! {
    /// Always 1; the label says which version runs.
    Gauge BUILD_INFO = "pegaflow_build_info" [version: Values::Each("version that runs")];
    /// 1 while the node accepts requests, 0 while it starts, recovers or drains.
    Gauge READY = "pegaflow_ready";
    /// Time from the start of the process until the node was ready.
    Gauge START_SECONDS = "pegaflow_start_seconds";
    /// HTTP requests answered, by path and status.
    Counter HTTP_REQUESTS = "pegaflow_http_requests_total" [
        path: Values::Of(&["/health", "/ready", "/metrics", "other"]),
        status: Values::Of(&["200", "401", "404", "405", "503"])
    ];
    /// Calls answered, by what was asked.
    Histogram CALL_SECONDS = "pegaflow_call_seconds" [call: Values::Of(CALLS)];
    /// Calls that failed, by what the caller must do about it.
    Counter CALL_FAILURES = "pegaflow_call_failures_total" [
        call: Values::Of(CALLS),
        kind: Values::Of(KINDS)
    ];
    /// Lookups answered.
    Counter LOOKUPS = "pegaflow_lookups_total";
    /// Blocks asked for in lookups: found ready, found in flight behind the ready ones, or not found.
    Counter LOOKUP_BLOCKS = "pegaflow_lookup_blocks_total" [
        outcome: Values::Of(&["hit", "pending", "miss"])
    ];
    /// Bytes of the blocks that lookups found ready.
    Counter HIT_BYTES = "pegaflow_lookup_hit_bytes_total";
    /// Reservations answered.
    Counter RESERVES = "pegaflow_reserves_total";
    /// Blocks to be saved: given a place, not needed because they are here or on their way already,
    /// or refused for want of room.
    Counter RESERVE_BLOCKS = "pegaflow_reserve_blocks_total" [
        outcome: Values::Of(&["placed", "deduplicated", "refused"])
    ];
    /// Blocks that became visible.
    Counter SEALED_BLOCKS = "pegaflow_sealed_blocks_total";
    /// Bytes of the blocks that became visible.
    Counter SEALED_BYTES = "pegaflow_sealed_bytes_total";
    /// Blocks evicted for room.
    Counter EVICTED_BLOCKS = "pegaflow_evicted_blocks_total";
    /// Bytes of the blocks evicted for room.
    Counter EVICTED_BYTES = "pegaflow_evicted_bytes_total";
    /// Time since their last use, summed over evicted blocks; by their number it is the mean age.
    Counter EVICTED_AGE_SECONDS = "pegaflow_evicted_age_seconds_total";
    /// Blocks dropped because their bytes were not those that were saved. Anything but 0 wants a look.
    Counter CORRUPT_BLOCKS = "pegaflow_corrupt_blocks_total";
    /// Blocks given up before they were sealed.
    Counter ABORTED_BLOCKS = "pegaflow_aborted_blocks_total";
    /// Blocks moved to join free room.
    Counter MOVED_BLOCKS = "pegaflow_moved_blocks_total";
    /// Leases that ran out instead of being released.
    Counter EXPIRED_LEASES = "pegaflow_expired_leases_total" [
        kind: Values::Of(&["read", "write"])
    ];
    /// Blocks that hints named and what became of them: done, or for a prefetch in the pool already; on
    /// their way; not there; over the budget of pins, or shared by another branch.
    Counter HINT_BLOCKS = "pegaflow_hint_blocks_total" [
        hint: Values::Of(&["pin", "demote", "prefetch", "release_branch"]),
        outcome: Values::Of(&["done", "coming", "absent", "refused"])
    ];
    /// Room of blocks that hints keep pinned.
    Gauge PINNED_BYTES = "pegaflow_pinned_bytes";
    /// Room for blocks in all pools.
    Gauge POOL_CAPACITY_BYTES = "pegaflow_pool_capacity_bytes";
    /// Room taken by blocks, whatever their state.
    Gauge POOL_USED_BYTES = "pegaflow_pool_used_bytes";
    /// Blocks in the pools: visible, being written, or out of sight until nobody can touch their place.
    Gauge BLOCKS = "pegaflow_blocks" [state: Values::Of(&["sealed", "writing", "detached"])];
    /// Open sessions of clients.
    Gauge SESSIONS = "pegaflow_sessions";
    /// Leases of readers and writers.
    Gauge LEASES = "pegaflow_leases";
    /// Registered namespaces: models and what else must match.
    Gauge NAMESPACES = "pegaflow_namespaces";
    /// Lookups that wait for blocks in flight.
    Gauge WAITERS = "pegaflow_waiting_lookups";
    /// Block moves in flight.
    Gauge MOVES = "pegaflow_moving_blocks";
    /// Memory taken by the tables of blocks, without the allocator's overhead.
    Gauge METADATA_BYTES = "pegaflow_metadata_bytes";
    /// Room taken by the blocks of a tenant.
    Gauge TENANT_USED_BYTES = "pegaflow_tenant_used_bytes" [tenant: TENANT];
    /// Most room the blocks of a tenant may take, where it has such a limit.
    Gauge TENANT_LIMIT_BYTES = "pegaflow_tenant_limit_bytes" [tenant: TENANT];
    /// Blocks of an earlier run that were found again at the start.
    Gauge RECOVERED_BLOCKS = "pegaflow_recovered_blocks";
    /// Blocks of an earlier run that were dropped at the start, by cause.
    Gauge RECOVERY_DROPPED = "pegaflow_recovery_dropped_blocks" [
        cause: Values::Of(&["unsealed", "damaged"])
    ];
    /// How long the start took to find the blocks of an earlier run.
    Gauge RECOVERY_SECONDS = "pegaflow_recovery_seconds";
    /// Blocks that lookups got from SSD, or did without: read, gone from the drive, wrong on it, not
    /// read in time or at all, or not waited for.
    Counter SSD_FETCH_BLOCKS = "pegaflow_ssd_fetch_blocks_total" [
        outcome: Values::Of(&["fetched", "missing", "corrupt", "failed", "cancelled"])
    ];
    /// Bytes of the blocks read from SSD into the pool.
    Counter SSD_FETCH_BYTES = "pegaflow_ssd_fetch_bytes_total";
    /// Time from the start of a block's fetch from SSD until it is in the pool.
    Histogram SSD_FETCH_SECONDS = "pegaflow_ssd_fetch_seconds";
    /// Blocks on SSD that lookups were not given: the budget was used up, computing them is faster,
    /// or the pool had no room.
    Counter SSD_SKIPPED_BLOCKS = "pegaflow_ssd_skipped_blocks_total" [
        reason: Values::Of(&["budget", "slow", "room"])
    ];
    /// Saved blocks and what became of them on SSD: written, there already, or not written because the
    /// admission policy declined them, the pool had them no more, too many waited, their tenant's quota
    /// or their size does not allow it, or the drive failed.
    Counter SSD_SPILL_BLOCKS = "pegaflow_ssd_spill_blocks_total" [
        outcome: Values::Of(&["written", "known", "declined", "gone", "queue_full", "quota", "unfit", "failed"])
    ];
    /// Bytes of the blocks written to SSD.
    Counter SSD_SPILL_BYTES = "pegaflow_ssd_spill_bytes_total";
    /// Bytes of blocks on their way between SSD and pool.
    Gauge SSD_MOVING_BYTES = "pegaflow_ssd_moving_bytes" [
        direction: Values::Of(&["fetch", "spill"])
    ];
    /// Blocks that wait to be written to SSD.
    Gauge SSD_WAITING_BLOCKS = "pegaflow_ssd_waiting_blocks";
    /// Blocks on SSD.
    Gauge SSD_BLOCKS = "pegaflow_ssd_blocks";
    /// Bytes of the blocks on SSD.
    Gauge SSD_USED_BYTES = "pegaflow_ssd_used_bytes";
    /// Room for blocks on SSD.
    Gauge SSD_CAPACITY_BYTES = "pegaflow_ssd_capacity_bytes";
    /// Room taken on SSD by the blocks of a tenant.
    Gauge TENANT_SSD_USED_BYTES = "pegaflow_tenant_ssd_used_bytes" [tenant: TENANT];
    /// Most room the blocks of a tenant may take on SSD, where it has such a limit.
    Gauge TENANT_SSD_LIMIT_BYTES = "pegaflow_tenant_ssd_limit_bytes" [tenant: TENANT];
    /// Bytes of a tenant's blocks written to SSD.
    Counter TENANT_SSD_SPILL_BYTES = "pegaflow_tenant_ssd_spilled_bytes_total" [tenant: TENANT];
    /// Bytes of a tenant's blocks fetched from SSD.
    Counter TENANT_SSD_FETCH_BYTES = "pegaflow_tenant_ssd_fetched_bytes_total" [tenant: TENANT];
    /// Bytes written to the drives, headers and moved blocks included.
    Counter SSD_DEVICE_BYTES = "pegaflow_ssd_device_written_bytes_total";
    /// Blocks that left the drives for newer ones.
    Counter SSD_RECLAIMED_BLOCKS = "pegaflow_ssd_reclaimed_blocks_total";
    /// Processor time the process has used, in user and system mode.
    Counter PROCESS_CPU_SECONDS = "process_cpu_seconds_total";
    /// Memory of the process that is in RAM, with the parts of the pool that it has touched.
    Gauge PROCESS_RESIDENT_BYTES = "process_resident_memory_bytes";
    /// Memory of the process that is in RAM, without the pool: private memory and mapped files.
    Gauge PROCESS_PRIVATE_BYTES = "pegaflow_process_private_memory_bytes";
    /// Open file descriptors.
    Gauge PROCESS_OPEN_FDS = "process_open_fds";
    /// Most file descriptors that may be open.
    Gauge PROCESS_MAX_FDS = "process_max_fds";
    /// When the process started, in seconds since 1970.
    Gauge PROCESS_START_TIME = "process_start_time_seconds";
    /// Threads of the process.
    Gauge PROCESS_THREADS = "process_threads";
}
