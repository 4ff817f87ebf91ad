// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the SSD tier did, in plain numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $name:ident, )*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $( pub(super) $name: AtomicU64, )*
        }

        /// Figures of the SSD tier since the node started.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub struct SsdStats {
            $( $(#[doc = $doc])* pub $name: u64, )*
            /// Bytes of blocks on their way into the pools.
            pub fetching_bytes: u64,
            /// Blocks that wait to be written.
            pub spill_waiting_blocks: u64,
            /// Bytes of blocks being written.
            pub spilling_bytes: u64,
            /// Figures of the store.
            pub store: pegaflow_ssd::metrics::Stats,
        }

        impl Counters {
            pub(super) fn stats(
                &self,
                fetching_bytes: u64,
                spill_waiting_blocks: u64,
                spilling_bytes: u64,
                store: pegaflow_ssd::metrics::Stats,
            ) -> SsdStats {
                SsdStats {
                    $( $name: self.$name.load(Relaxed), )*
                    fetching_bytes,
                    spill_waiting_blocks,
                    spilling_bytes,
                    store,
                }
            }
        }
    };
}

counters! {
    /// Blocks fetched into the pools.
    fetched_blocks,
    /// Bytes of these.
    fetched_bytes,
    /// Blocks that had left the drive when they were to be read.
    fetch_missing,
    /// Blocks whose bytes on the drive were not what was saved; dropped there.
    fetch_corrupt,
    /// Blocks that the drive did not return, or not in time.
    fetch_failed,
    /// Fetches that nobody waited for any more.
    fetch_cancelled,
    /// Blocks on SSD that lookups did without because `ssd.fetch_bytes_max` was used up.
    plan_over_budget,
    /// Blocks on SSD that are computed faster than fetched.
    plan_too_slow,
    /// Blocks on SSD that the pools had no room for.
    plan_no_room,
    /// Blocks written.
    spilled_blocks,
    /// Bytes of these.
    spilled_bytes,
    /// Blocks not written because the drive had them.
    spill_known,
    /// Blocks not written because the admission policy declined them.
    spill_declined,
    /// Blocks not written because the pool had them no more when their turn came.
    spill_gone,
    /// Blocks not written because too many waited.
    spill_queue_full,
    /// Blocks not written because their tenant's quota has no room for them.
    spill_over_quota,
    /// Blocks not written because of their size.
    spill_unfit,
    /// Blocks that the drive did not take.
    spill_failed,
}
