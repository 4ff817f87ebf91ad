// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The limits of the core, as a user writes them.

use super::error::Error;
use crate::describe::{choices, settings};
use std::collections::BTreeMap;

settings! {
    /// Limits and lifetimes of one node's core. Every table and queue has its limit here.
    pub struct CoreSettings {
        /// Most blocks known at once, sealed or being written. Over it blocks are evicted.
        pub blocks_max: u32 = 64 << 20,
        /// Most open sessions. Over it: `Busy`.
        pub sessions_max: u32 = 1024,
        /// Most leases of all sessions together. Over it: `Busy`.
        pub leases_max: u32 = 1 << 16,
        /// Most leases of one session. Over it: `Busy`.
        pub session_leases_max: u32 = 1 << 14,
        /// Most bytes one session may hold reserved and unsealed. Over it: `OutOfBudget` per key.
        pub session_reserved_bytes_max: u64 = 64 << 30,
        /// Most keys in one request. Over it: `Busy`.
        pub request_keys_max: u32 = 1 << 16,
        /// Most blocks that one request may evict. Over it: `OutOfBudget` per key.
        pub request_evictions_max: u32 = 1 << 16,
        /// After a save, room for the next one like it is made while nobody waits: most blocks evicted
        /// so. At most a 64th of the pools is kept free. 0: room is made only when it is needed.
        pub evict_ahead_blocks_max: u32 = 1024,
        /// Most namespaces registered. Over it: `Busy`.
        pub namespaces_max: u32 = 4096,
        /// Most tenants. Over it: `Busy`.
        pub tenants_max: u32 = 1024,
        /// Most slots that one unsealed block may be written in. Over it the block is not reserved.
        pub block_slots_max: u32 = 256,
        /// Most lookups waiting on tickets. Over it: `Busy`.
        pub waiters_max: u32 = 1 << 14,
        /// Most block moves in flight for compaction.
        pub moves_max: u32 = 64,
        /// Longest life of a read lease, and its life where the client names none, in milliseconds.
        pub read_lease_ttl_max_ms: u64 = 60_000,
        /// Most bytes that hints may pin for one tenant, and never more than a quarter of the pools for all
        /// of them, or of its quota for one. 0: no pins.
        pub pin_bytes_max: u64 = 8 << 30,
        /// Longest life of a pin, in milliseconds.
        pub pin_ttl_max_ms: u64 = 600_000,
        /// Life of a write lease in milliseconds; after it the blocks leave the index, and their
        /// places come back once the writer has said that it is quiet, or its process is gone.
        pub write_lease_ttl_ms: u64 = 60_000,
        /// How long an unsealed block that nobody writes is kept for its missing slots, in
        /// milliseconds.
        pub partial_block_ttl_ms: u64 = 30_000,
        /// Which block leaves first when room is needed.
        pub eviction: EvictionPolicy = EvictionPolicy::Gittins,
        /// Limits of tenants by name. A tenant that is not named here has the default's.
        pub tenants: BTreeMap<String, TenantSettings> = BTreeMap::new(),
    }
}

settings! {
    /// What one tenant may use.
    pub struct TenantSettings {
        /// Most bytes of pool its blocks may take; it evicts its own beyond. None: the whole pool.
        pub bytes_max: Option<u64> = None,
        /// Most bytes its blocks may take on SSD; its oldest there leave beyond. None: the whole drive.
        pub ssd_bytes_max: Option<u64> = None,
        /// Its share of the pool, and of the drive, relative to other tenants when space is short.
        pub weight: u32 = 1,
    }
}

choices! {
    /// Eviction policies, by name.
    pub enum EvictionPolicy {
        /// Least recently used, leaves before their prefixes.
        Lru = "lru",
        /// Least expected reuse by Gittins' index, learnt from what became of blocks like it.
        Gittins = "gittins",
    }
}

impl CoreSettings {
    /// Checks what serde cannot.
    ///
    /// # Errors
    /// [`Error::Bad`] for a limit of zero, or a tenant of no weight.
    pub fn validate(&self) -> Result<(), Error> {
        let limits = [
            ("blocks_max", u64::from(self.blocks_max)),
            ("sessions_max", u64::from(self.sessions_max)),
            ("leases_max", u64::from(self.leases_max)),
            ("session_leases_max", u64::from(self.session_leases_max)),
            (
                "session_reserved_bytes_max",
                self.session_reserved_bytes_max,
            ),
            ("request_keys_max", u64::from(self.request_keys_max)),
            (
                "request_evictions_max",
                u64::from(self.request_evictions_max),
            ),
            ("namespaces_max", u64::from(self.namespaces_max)),
            ("tenants_max", u64::from(self.tenants_max)),
            ("block_slots_max", u64::from(self.block_slots_max)),
            ("read_lease_ttl_max_ms", self.read_lease_ttl_max_ms),
            ("pin_ttl_max_ms", self.pin_ttl_max_ms),
            ("write_lease_ttl_ms", self.write_lease_ttl_ms),
            ("partial_block_ttl_ms", self.partial_block_ttl_ms),
        ];
        for (what, value) in limits {
            if value == 0 {
                return Err(Error::Bad {
                    what,
                    reason: "must be at least 1",
                });
            }
        }
        if self.tenants.values().any(|tenant| tenant.weight == 0) {
            return Err(Error::Bad {
                what: "weight",
                reason: "must be at least 1",
            });
        }
        Ok(())
    }
}
