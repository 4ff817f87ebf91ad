// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Settings of a replay: the model's shape, the workers and how hard they drive.

use pegaflow_mem::layout::{BlockShape, Slot};
use pegaflow_meta::{GroupKind, GroupSpec, Namespace, TenantSalt};
use serde::{Deserialize, Serialize};

use super::error::Error;

/// What is replayed against, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaySettings {
    /// Layers of the model.
    pub layers: u32,
    /// KV heads of the model.
    pub heads: u32,
    /// Bytes of a block: all layers, K and V, all heads.
    pub block_bytes: u64,
    /// Tensor-parallel ranks; each holds an equal share of the heads.
    pub ranks: u32,
    /// Most requests in flight at once; each is driven by a thread of its own.
    pub in_flight_max: u32,
    /// Most blocks copied by one load or save call.
    pub chunk_blocks: u32,
    /// Workload time per real time; 0 for as fast as possible.
    pub speed: f64,
    /// Stop after this many seconds; 0 for no limit.
    pub seconds: f64,
    /// Stop after this many requests; 0 for no limit.
    pub requests_max: u64,
    /// How often the curves get a point, in milliseconds.
    pub sample_ms: u32,
    /// How long a request waits for blocks that are on their way, from SSD or from another request, in
    /// milliseconds; 0 for not at all.
    pub wait_ms: u32,
    /// How long to wait for a node that has gone away before giving up, in milliseconds.
    pub reconnect_ms_max: u64,
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self {
            layers: 4,
            heads: 4,
            block_bytes: 128 << 10,
            ranks: 2,
            in_flight_max: 2,
            chunk_blocks: 32,
            speed: 0.0,
            seconds: 0.0,
            requests_max: 0,
            sample_ms: 250,
            wait_ms: 0,
            reconnect_ms_max: 60_000,
        }
    }
}

impl ReplaySettings {
    /// Shape of a block. K and V are apart, as in most engines.
    ///
    /// # Errors
    /// [`Error::Settings`] if `block_bytes` cannot be shared out evenly in whole words.
    pub fn shape(&self) -> Result<BlockShape, Error> {
        const PARTS: u32 = 2;
        let runs = u64::from(self.layers) * u64::from(PARTS) * u64::from(self.heads);
        if runs == 0 || !self.block_bytes.is_multiple_of(runs * 8) || self.block_bytes == 0 {
            let reason = format!(
                "{} bytes cannot be {} layers x 2 parts x {} heads of whole 8-byte words; try {}",
                self.block_bytes,
                self.layers,
                self.heads,
                self.block_bytes
                    .next_multiple_of((runs * 8).max(1))
                    .max(runs * 8),
            );
            return Err(Error::Settings {
                setting: "block_bytes",
                reason,
            });
        }
        let too_large = |_| Error::Settings {
            setting: "block_bytes",
            reason: "a block has at most 256 MiB".into(),
        };
        let inner_bytes = u32::try_from(self.block_bytes / runs).map_err(too_large)?;
        let shape = BlockShape {
            layers: self.layers,
            parts: PARTS,
            heads: self.heads,
            inner_bytes,
        };
        shape.validate().map_err(|e| Error::Settings {
            setting: "block_bytes",
            reason: e.to_string(),
        })?;
        Ok(shape)
    }

    /// The part of a block that each rank holds.
    ///
    /// # Errors
    /// [`Error::Settings`] if the heads cannot be shared out evenly.
    pub fn slots(&self) -> Result<Vec<Slot>, Error> {
        let shape = self.shape()?;
        if self.ranks == 0 || !self.heads.is_multiple_of(self.ranks) {
            let reason = format!(
                "{} heads cannot be shared out to {} ranks",
                self.heads, self.ranks
            );
            return Err(Error::Settings {
                setting: "ranks",
                reason,
            });
        }
        let slot = |rank| Slot::of_rank(&shape, rank, self.ranks).map_err(Error::from);
        (0..self.ranks).map(slot).collect()
    }

    /// Engine blocks that every rank has: one chunk for each request in flight.
    pub fn engine_blocks(&self) -> u32 {
        self.in_flight_max
            .max(1)
            .saturating_mul(self.chunk_blocks.max(1))
    }

    /// The namespace of the replayed model. Block content follows from the key alone, so replays of the
    /// same shape share blocks, whatever their number of ranks.
    pub fn namespace(&self) -> Namespace {
        let shape = format!(
            "pegaflow replay {}x{}x{}",
            self.layers, self.heads, self.block_bytes
        );
        let mut model = [0; 32];
        for (to, from) in model.iter_mut().zip(shape.bytes().rev()) {
            *to = from;
        }
        Namespace {
            model,
            weights: [0; 32],
            kv_dtype: "keystream".into(),
            kv_quantisation: String::new(),
            hash_algorithm: "trace-id".into(),
            hash_seed: Vec::new(),
            groups: vec![GroupSpec {
                kind: GroupKind::FullAttention,
                block_tokens: 512,
                layout: "hnd".into(),
            }],
            tenant_salt: TenantSalt::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inner bytes and heads per rank, or the setting that is refused.
    fn check(change: impl Fn(&mut ReplaySettings), expect: Result<(u32, usize), &str>) {
        let mut settings = ReplaySettings::default();
        change(&mut settings);
        let got = settings
            .slots()
            .and_then(|slots| Ok((settings.shape()?.inner_bytes, slots[0].heads.len())));
        match (got, expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect),
            (Err(Error::Settings { setting, .. }), Err(expect)) => assert_eq!(setting, expect),
            (got, expect) => panic!("{got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn blocks_are_shared_out_evenly_or_not_at_all() {
        check(|_| {}, Ok((4096, 2)));
        check(|s| s.ranks = 4, Ok((4096, 1)));
        check(|s| s.ranks = 3, Err("ranks"));
        check(|s| s.ranks = 0, Err("ranks"));
        check(|s| s.layers = 0, Err("block_bytes"));
        check(|s| s.block_bytes = 0, Err("block_bytes"));
        check(|s| s.block_bytes = 1000, Err("block_bytes"));
        check(|s| s.block_bytes = 1 << 40, Err("block_bytes"));
    }
}
