// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How tenants share a drive: who has how much, whose blocks are kept when the drive makes room, and
//! whose oldest leave at a quota.
//!
//! A block's name on the drive carries a tag of its tenant, so that the drive can say whose it is without
//! a table of all blocks. Tenants of equal tags share one account.
//!
//! Invariant: an account has the bytes of the blocks that are found, and are not told to leave.

use std::collections::{BTreeMap, HashMap};

use pegaflow_meta::BlockKey;

use crate::core::TenantSettings;

/// A block's name on the drive: its key, the last two bytes of which are its tenant's tag.
pub type DriveName = [u8; 16];

/// Stands for a tenant in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// The tag of the tenant of this name; the same in every run.
    #[must_use]
    pub fn of(tenant: &str) -> Self {
        let sum = crc32fast::hash(tenant.as_bytes());
        Self((sum ^ (sum >> 16)) as u16)
    }

    fn of_name(name: &DriveName) -> Self {
        Self(u16::from_le_bytes([name[14], name[15]]))
    }

    /// The name of this tenant's block.
    #[must_use]
    pub fn name(self, key: BlockKey) -> DriveName {
        let mut name = key.0;
        name[14..].copy_from_slice(&self.0.to_le_bytes());
        name
    }
}

/// What becomes of a block in the way of new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its tenant has less than its share: it stays.
    Stays,
    /// Its tenant has more than its share: it leaves.
    Leaves,
    /// Neither by much: as if there were no tenants.
    Even,
}

/// What one tenant has and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its blocks on the drive.
    pub bytes: u64,
    /// Most that may be.
    pub bytes_max: Option<u64>,
    /// Bytes written for it so far.
    pub spilled_bytes: u64,
    /// Bytes fetched for it so far.
    pub fetched_bytes: u64,
}

#[derive(Debug)]
struct Account {
    /// None for a tenant that nobody configured.
    tenant: Option<String>,
    weight: u64,
    usage: Usage,
    /// Bytes that are being written.
    writing: u64,
    /// With a quota: its blocks by age.
    blocks: Blocks,
}

/// Blocks of one account in the order they were written.
#[derive(Debug, Default)]
struct Blocks {
    next: u64,
    by_age: BTreeMap<u64, (DriveName, u64)>,
    ages: HashMap<DriveName, u64>,
}

impl Blocks {
    fn push(&mut self, name: DriveName, bytes: u64) {
        self.next += 1;
        self.by_age.insert(self.next, (name, bytes));
        self.ages.insert(name, self.next);
    }

    fn remove(&mut self, name: &DriveName) -> bool {
        let age = self.ages.remove(name);
        age.is_some_and(|age| self.by_age.remove(&age).is_some())
    }

    fn pop_oldest(&mut self) -> Option<(DriveName, u64)> {
        let (_, oldest) = self.by_age.pop_first()?;
        self.ages.remove(&oldest.0);
        Some(oldest)
    }
}

/// All tenants of a drive.
#[derive(Debug, Default)]
pub struct Shares {
    accounts: HashMap<Tag, Account>,
    /// Of all accounts that have blocks.
    weights: u64,
    bytes: u64,
}

impl Shares {
    /// Tenants of the configuration; any other has weight 1 and no quota.
    #[must_use]
    pub fn new(tenants: &BTreeMap<String, TenantSettings>) -> Self {
        let mut shares = Self::default();
        for (name, settings) in tenants {
            let account = shares.account(Tag::of(name));
            account.tenant.get_or_insert_with(|| name.clone());
            account.weight = settings.weight.into();
            account.usage.bytes_max = settings.ssd_bytes_max;
        }
        shares
    }

    fn account(&mut self, tag: Tag) -> &mut Account {
        self.accounts.entry(tag).or_insert_with(|| Account {
            tenant: None,
            weight: 1,
            usage: Usage::default(),
            writing: 0,
            blocks: Blocks::default(),
        })
    }

    /// A block is found on the drive from now on.
    pub fn found(&mut self, name: DriveName, bytes: u64) {
        let account = self.account(Tag::of_name(&name));
        if account.usage.bytes_max.is_some() {
            account.blocks.push(name, bytes);
        }
        let (first, weight) = (account.usage.bytes == 0, account.weight);
        account.usage.bytes += bytes;
        self.bytes += bytes;
        self.weights += if first && bytes > 0 { weight } else { 0 };
    }

    /// A block is found no more.
    pub fn gone(&mut self, name: &DriveName, bytes: u64) {
        let account = self.account(Tag::of_name(name));
        // Told to leave: it is counted off already.
        if account.usage.bytes_max.is_none() || account.blocks.remove(name) {
            self.count_off(Tag::of_name(name), bytes);
        }
    }

    fn count_off(&mut self, tag: Tag, bytes: u64) {
        let account = self.account(tag);
        let bytes = bytes.min(account.usage.bytes);
        account.usage.bytes -= bytes;
        let (last, weight) = (account.usage.bytes == 0 && bytes > 0, account.weight);
        self.bytes -= bytes;
        self.weights -= if last { weight } else { 0 };
    }

    /// What becomes of this block when the drive makes room: by its tenant's bytes for its weight beside
    /// the mean of all, with an eighth of play.
    #[must_use]
    pub fn verdict(&self, name: &DriveName) -> Verdict {
        let Some(account) = self.accounts.get(&Tag::of_name(name)) else {
            return Verdict::Even;
        };
        let has = u128::from(account.usage.bytes) * u128::from(self.weights) * 8;
        let mean = u128::from(self.bytes) * u128::from(account.weight);
        match has {
            has if has < mean * 7 => Verdict::Stays,
            has if has > mean * 9 => Verdict::Leaves,
            _ => Verdict::Even,
        }
    }

    /// Books a block that is about to be written, and puts the names of the tenant's oldest blocks that
    /// must leave for it into `leave`. False if its quota has no room for the block at all.
    pub fn begin(&mut self, tag: Tag, bytes: u64, leave: &mut Vec<DriveName>) -> bool {
        let account = self.account(tag);
        if let Some(max) = account.usage.bytes_max {
            if account.writing.saturating_add(bytes) > max {
                return false;
            }
            let mut over = (account.usage.bytes + account.writing + bytes).saturating_sub(max);
            let mut left = 0;
            while over > 0
                && let Some((name, bytes)) = account.blocks.pop_oldest()
            {
                over = over.saturating_sub(bytes);
                left += bytes;
                leave.push(name);
            }
            self.count_off(tag, left);
        }
        self.account(tag).writing += bytes;
        true
    }

    /// The write is over; `stored`: the drive has taken the block.
    pub fn end(&mut self, tag: Tag, bytes: u64, stored: bool) {
        let account = self.account(tag);
        account.writing -= bytes;
        account.usage.spilled_bytes += if stored { bytes } else { 0 };
    }

    /// A block was fetched.
    pub fn fetched(&mut self, tag: Tag, bytes: u64) {
        self.account(tag).usage.fetched_bytes += bytes;
    }

    /// What each tenant of the configuration has and did, and others, without a name.
    pub fn usage(&self) -> impl Iterator<Item = (Option<&str>, Usage)> {
        let accounts = self.accounts.values();
        accounts.map(|account| (account.tenant.as_deref(), account.usage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(tenants: &[(&str, u32, Option<u64>)]) -> Shares {
        let one = |(name, weight, max): &(&str, u32, Option<u64>)| {
            let settings = TenantSettings {
                weight: *weight,
                ssd_bytes_max: *max,
                ..TenantSettings::default()
            };
            ((*name).to_owned(), settings)
        };
        Shares::new(&tenants.iter().map(one).collect())
    }

    fn name(tenant: &str, n: u8) -> DriveName {
        Tag::of(tenant).name(BlockKey([n; 16]))
    }

    fn used(shares: &Shares, tenant: &str) -> u64 {
        shares.accounts[&Tag::of(tenant)].usage.bytes
    }

    #[test]
    fn who_has_more_than_its_share_gives_way() {
        let mut shares = shares(&[("a", 3, None), ("b", 1, None)]);
        let check = |shares: &Shares, a, b| {
            let got = (shares.verdict(&name("a", 0)), shares.verdict(&name("b", 0)));
            assert_eq!(got, (a, b));
        };
        shares.found(name("a", 1), 100);
        assert_eq!(shares.verdict(&name("a", 0)), Verdict::Even, "alone");
        shares.found(name("b", 1), 100);
        check(&shares, Verdict::Stays, Verdict::Leaves);
        shares.found(name("a", 2), 200);
        check(&shares, Verdict::Even, Verdict::Even);
        shares.gone(&name("b", 1), 100);
        shares.found(name("b", 2), 10);
        check(&shares, Verdict::Leaves, Verdict::Stays);
        shares.gone(&name("b", 2), 10);
        assert_eq!(shares.verdict(&name("a", 0)), Verdict::Even, "alone again");
    }

    #[test]
    fn at_its_quota_a_tenants_oldest_leave() {
        let mut shares = shares(&[("a", 1, Some(100))]);
        let tag = Tag::of("a");
        let mut leave = vec![];
        for n in 1..=3 {
            assert!(shares.begin(tag, 40, &mut leave));
            shares.end(tag, 40, true);
            shares.found(name("a", n), 40);
        }
        assert_eq!(
            (leave.as_slice(), used(&shares, "a")),
            (&[name("a", 1)][..], 80)
        );
        shares.gone(&name("a", 1), 40);
        assert_eq!(used(&shares, "a"), 80, "counted once");
        assert!(!shares.begin(tag, 101, &mut leave), "it can never fit");
        assert!(shares.begin(tag, 60, &mut leave));
        assert!(
            !shares.begin(tag, 60, &mut leave),
            "that much is being written"
        );
        shares.end(tag, 60, false);
        assert_eq!(shares.accounts[&tag].usage.spilled_bytes, 120);
        assert_eq!(leave, [name("a", 1), name("a", 2)]);
    }

    #[test]
    fn a_quota_of_zero_keeps_a_tenant_off_the_drive() {
        let mut shares = shares(&[("a", 1, Some(0))]);
        assert!(!shares.begin(Tag::of("a"), 1, &mut vec![]));
        assert!(
            shares.begin(Tag::of("b"), 1, &mut vec![]),
            "others have none"
        );
    }

    proptest! {
        /// Against a plain list: bytes add up, and no quota is exceeded.
        #[test]
        fn accounts_are_what_is_found(ops in prop::collection::vec((0u8..3, 0u8..8, any::<bool>()), 0..200)) {
            let mut shares = shares(&[("0", 2, Some(50)), ("1", 1, None)]);
            let mut found: BTreeMap<DriveName, u64> = BTreeMap::new();
            for (tenant, n, put) in ops {
                let tenant = tenant.to_string();
                let (tag, name, bytes) = (Tag::of(&tenant), name(&tenant, n), 10 + u64::from(n));
                let mut leave = vec![];
                if put && !found.contains_key(&name) && shares.begin(tag, bytes, &mut leave) {
                    for left in leave {
                        let bytes = found.remove(&left).expect("it was there");
                        shares.gone(&left, bytes);
                    }
                    shares.end(tag, bytes, true);
                    shares.found(name, bytes);
                    found.insert(name, bytes);
                } else if let Some(bytes) = found.remove(&name) {
                    shares.gone(&name, bytes);
                }
                prop_assert_eq!(shares.bytes, found.values().sum::<u64>());
                let mut weights = 0;
                for (tag, account) in &shares.accounts {
                    let own = found.iter().filter(|(name, _)| Tag::of_name(name) == *tag);
                    let own: u64 = own.map(|(_, bytes)| *bytes).sum();
                    prop_assert_eq!(account.usage.bytes, own);
                    prop_assert!(own <= account.usage.bytes_max.unwrap_or(u64::MAX));
                    weights += if own > 0 { account.weight } else { 0 };
                }
                prop_assert_eq!(shares.weights, weights);
            }
        }
    }
}
