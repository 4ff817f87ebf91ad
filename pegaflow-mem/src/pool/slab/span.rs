// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One slab: which of its places are free.

use super::bits::Bits;

/// A slab may waste this part of itself at its end (1/256), where its length can be chosen so.
const TAIL_SHARE: u64 = 256;
/// A slab is at most this part of the pool (1/128), unless a single place is larger.
const POOL_SHARE: u32 = 128;
/// Below that share, a slab has at least this many places, so that there are few slabs.
const PLACES_MIN: u64 = 64;

#[derive(Debug)]
pub(super) struct Span {
    pub(super) class: u32,
    pub(super) units: u32,
    pub(super) places: u32,
    pub(super) free: u32,
    /// Planned moves out of this slab. While there are any, nothing new is placed here.
    pub(super) moves: u32,
    /// Planned moves into this slab. While there are any, it is not emptied itself.
    pub(super) arrivals: u32,
    /// More moves out of it are to be planned; until then nothing new is placed here.
    pub(super) leaving: bool,
    bits: Bits,
}

impl Span {
    pub(super) fn new(class: u32, units: u32, places: u32) -> Self {
        Self {
            class,
            units,
            places,
            free: places,
            moves: 0,
            arrivals: 0,
            leaving: false,
            bits: Bits::full(places),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free == self.places
    }

    pub(super) fn is_live(&self, index: u32) -> bool {
        index < self.places && !self.bits.contains(index)
    }

    pub(super) fn take_first(&mut self) -> Option<u32> {
        let index = self.bits.first()?;
        self.take(index);
        Some(index)
    }

    /// Takes a free place; false if it is live.
    pub(super) fn take(&mut self, index: u32) -> bool {
        let was_free = self.bits.remove(index);
        self.free -= was_free as u32;
        was_free
    }

    /// Frees a live place; false if it is free.
    pub(super) fn give(&mut self, index: u32) -> bool {
        let was_live = self.bits.insert(index);
        self.free += was_live as u32;
        was_live
    }

    /// Live places, in order.
    pub(super) fn live(&self) -> impl Iterator<Item = u32> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let index = self.bits.next_gap(from, self.places);
            from = index + 1;
            (index < self.places).then_some(index)
        })
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        size_of::<Self>() + self.bits.metadata_bytes()
    }
}

/// All slabs by their first unit: a row per unit, so that finding one costs no hash.
#[derive(Debug)]
pub(super) struct Spans {
    rows: Vec<Option<Box<Span>>>,
    len: usize,
}

impl Spans {
    pub(super) fn new(units: u32) -> Self {
        Self {
            rows: (0..units).map(|_| None).collect(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, first: u32) -> Option<&Span> {
        self.rows.get(first as usize)?.as_deref()
    }

    /// The slab at `first`, which must exist.
    pub(super) fn at(&mut self, first: u32) -> &mut Span {
        self.rows[first as usize]
            .as_deref_mut()
            .expect("a slab starts at this unit")
    }

    pub(super) fn insert(&mut self, first: u32, span: Span) {
        let before = self.rows[first as usize].replace(Box::new(span));
        debug_assert!(before.is_none(), "two slabs at unit {first}");
        self.len += 1;
    }

    pub(super) fn remove(&mut self, first: u32) -> Span {
        self.len -= 1;
        *self.rows[first as usize]
            .take()
            .expect("a slab starts at this unit")
    }

    /// First units, lowest first.
    pub(super) fn firsts(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        let rows = self.rows.iter().enumerate();
        rows.filter_map(|(first, row)| row.as_ref().map(|_| first as u32))
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        let rows = self.rows.iter().flatten();
        self.rows.len() * 8 + rows.map(|s| s.metadata_bytes()).sum::<usize>()
    }
}

impl std::ops::Index<u32> for Spans {
    type Output = Span;

    fn index(&self, first: u32) -> &Span {
        self.get(first).expect("a slab starts at this unit")
    }
}

/// How many units a slab of this class must have (one place), and should have (little waste).
pub(super) fn units_for(class_bytes: u64, unit_bytes: u64, units: u32) -> (u32, u32) {
    let least = u32::try_from(class_bytes.div_ceil(unit_bytes)).unwrap_or(u32::MAX);
    let most = (units / POOL_SHARE).max(least);
    let waste = |n: &u32| (*n as u64 * unit_bytes) % class_bytes;
    let good = |n: &u32| waste(n) <= *n as u64 * unit_bytes / TAIL_SHARE;
    // Compare waste per unit across lengths without fractions: waste(a)/a < waste(b)/b.
    let start = (PLACES_MIN * class_bytes)
        .div_ceil(unit_bytes)
        .clamp(least as u64, most as u64);
    let full = (start as u32..=most).find(good).or_else(|| {
        (least..=most)
            .min_by(|a, b| (waste(a) as u128 * *b as u128).cmp(&(waste(b) as u128 * *a as u128)))
    });
    (least, full.unwrap_or(least))
}
