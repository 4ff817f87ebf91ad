// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Tenants: who uses how many bytes, and who must give way.
//!
//! Each tenant has a policy of its own, so one tenant's burst orders nobody else's blocks.

use super::block::{BlockIdx, Blocks};
use super::counters::Counters;
use super::demoted::Demoted;
use super::error::{Error, within};
use super::evict::{self, Eviction};
use super::settings::{CoreSettings, TenantSettings};
use super::types::TenantIndex;
use std::collections::HashMap;

/// One tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) limits: TenantSettings,
    /// Bytes of places its blocks take, in whatever state.
    pub(crate) used_bytes: u64,
    pub(crate) policy: Box<dyn Eviction>,
    /// What leaves before the policy's choice.
    pub(crate) demoted: Demoted,
    /// Bytes of places that hints keep pinned.
    pub(crate) pinned_bytes: u64,
    pub(crate) counters: Counters,
}

impl Tenant {
    /// The block that should leave next.
    pub(crate) fn victim(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        let demoted = self.demoted.victim(blocks);
        demoted.or_else(|| self.policy.victim(blocks))
    }

    /// Bytes per unit of weight: who has most gives way first.
    fn pressure(&self) -> u64 {
        self.used_bytes / u64::from(self.limits.weight)
    }

    /// Whether a block of that many bytes would fit if it had no other.
    pub(crate) fn could_hold(&self, place_bytes: u64) -> bool {
        self.limits.bytes_max.is_none_or(|max| place_bytes <= max)
    }

    /// Whether `more` bytes fit into its quota.
    pub(crate) fn has_room(&self, more: u64) -> bool {
        self.limits
            .bytes_max
            .is_none_or(|max| self.used_bytes.saturating_add(more) <= max)
    }
}

/// All tenants of a node.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    table: Vec<Tenant>,
    by_name: HashMap<String, TenantIndex>,
}

impl Tenants {
    /// The tenant of this name, made if it is new.
    pub(crate) fn get_or_insert(
        &mut self,
        name: &str,
        settings: &CoreSettings,
    ) -> Result<TenantIndex, Error> {
        if let Some(index) = self.by_name.get(name) {
            return Ok(*index);
        }
        within("tenants_max", self.table.len() + 1, settings.tenants_max)?;
        let index = TenantIndex(self.table.len() as u32);
        self.table.push(Tenant {
            name: name.to_owned(),
            limits: settings.tenants.get(name).cloned().unwrap_or_default(),
            used_bytes: 0,
            policy: evict::make(settings.eviction, index.0),
            demoted: Demoted::default(),
            pinned_bytes: 0,
            counters: Counters::default(),
        });
        self.by_name.insert(name.to_owned(), index);
        Ok(index)
    }

    pub(crate) fn get(&self, index: TenantIndex) -> &Tenant {
        &self.table[index.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, index: TenantIndex) -> &mut Tenant {
        &mut self.table[index.0 as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tenant> {
        self.table.iter()
    }

    /// The block of all tenants that should leave next: one of the tenant that uses most for its weight
    /// and has a block that can leave. So nobody's burst takes what another has within its share.
    pub(crate) fn victim(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        let mut best: Option<(u64, BlockIdx)> = None;
        for tenant in &mut self.table {
            let pressure = tenant.pressure();
            if best.is_none_or(|(most, _)| pressure > most)
                && let Some(victim) = tenant.victim(blocks)
            {
                best = Some((pressure, victim));
            }
        }
        best.map(|(_, victim)| victim)
    }
}
