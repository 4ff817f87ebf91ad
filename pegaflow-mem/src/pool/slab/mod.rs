// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which bytes of a pool are whose: places of equal size, in slabs that change their size class when empty.
//!
//! The pool is cut into *units* (a power of two, at most 1/16384 of the pool). A *slab* is a run of units given to one size class,
//! long enough that the tail that holds no place is small. A slab whose places are all free goes back to the units as soon as another class needs it. Places are taken
//! from the lowest slab first, so high slabs run empty by themselves; [`SlabAllocator::compaction_plan`] says which places to move so that they do.
//!
//! Pure: numbers only, no memory, no clock. Invariant: live places never overlap, and each lies inside one slab of its class.

mod bits;
mod compact;

mod sink;
mod span;
#[cfg(test)]
mod tests;
mod units;

use crate::{Error, Result};
use span::{Span, Spans};
use std::collections::{BTreeSet, HashMap};
use units::Units;

pub use compact::Move;

/// A byte offset in a pool, handed out by a [`SlabAllocator`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(pub u64);

/// Places of at least this size start and end at multiples of it, as direct I/O needs.
pub const PAGE_BYTES: u64 = 4096;
/// Smaller places start at multiples of a cache line.
const LINE_BYTES: u64 = 64;
const UNITS_MAX: u64 = 1 << 15;
const UNIT_BYTES_MAX: u64 = 16 << 20;

/// One slab, as it must be written down to [restore](SlabAllocator::restore_slab) it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlabInfo {
    /// Number of its first unit: the slab's name while it exists.
    pub slab: u32,
    /// Units it spans.
    pub units: u32,
    /// Byte offset of its first place in the pool.
    pub offset: u64,
    /// Distance between places, in bytes.
    pub class_bytes: u64,
    /// How many places it has.
    pub places: u32,
    /// How many of them are in use.
    pub live: u32,
}

/// A change of the slab table, for owners that keep it in a file too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabEvent {
    /// A slab was given to a class. Write it down before its first place is used.
    Assigned(SlabInfo),
    /// The slab with this first unit is no more.
    Released(u32),
}

/// How full a pool is. All in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlabStats {
    /// Bytes the allocator manages (whole units).
    pub capacity_bytes: u64,
    /// Bytes of live places, rounded up to their class.
    pub live_bytes: u64,
    /// Number of live places.
    pub live_places: u64,
    /// Bytes of units that belong to no slab.
    pub unassigned_bytes: u64,
    /// Number of slabs.
    pub slabs: u32,
    /// Number of slabs without a live place; they are re-assigned on demand.
    pub slabs_empty: u32,
    /// Memory of the allocator's own tables, about.
    pub metadata_bytes: u64,
}

#[derive(Debug)]
struct Class {
    bytes: u64,
    /// First units of slabs that have a free place and are not being emptied.
    open: BTreeSet<u32>,
    slabs: u32,
}

/// Hands out places of any size in `[0, capacity)`.
#[derive(Debug)]
pub struct SlabAllocator {
    units: Units,
    unit_shift: u32,
    /// By first unit.
    spans: Spans,
    classes: Vec<Class>,
    class_of: HashMap<u64, u32>,
    /// The row asked for last: most pools have one size.
    last_class: u32,
    /// First units of slabs without a live place.
    empty: BTreeSet<u32>,
    /// Planned moves: from -> to.
    moving: HashMap<Place, Place>,
    /// First units of slabs that are being emptied over several plans.
    leaving: BTreeSet<u32>,
    live_bytes: u64,
    live_places: u64,
    events: Option<Vec<SlabEvent>>,
}

impl SlabAllocator {
    /// An allocator for `capacity` bytes, all free. At most one unit (1/16384) at the end stays unused.
    pub fn new(capacity: u64) -> Self {
        let unit = (capacity / UNITS_MAX)
            .next_power_of_two()
            .clamp(PAGE_BYTES, UNIT_BYTES_MAX);
        let units = u32::try_from(capacity / unit).unwrap_or(u32::MAX - 1);
        Self {
            units: Units::new(units),
            unit_shift: unit.trailing_zeros(),
            spans: Spans::new(units),
            classes: Vec::new(),
            class_of: HashMap::new(),
            last_class: 0,
            empty: BTreeSet::new(),
            moving: HashMap::new(),
            leaving: BTreeSet::new(),
            live_bytes: 0,
            live_places: 0,
            events: None,
        }
    }

    /// Keeps a log of slab changes from now on, which the owner must [drain](Self::drain_events).
    pub fn with_events(mut self) -> Self {
        self.events = Some(Vec::new());
        self
    }

    /// Whether there are slab changes to [drain](Self::drain_events).
    pub fn has_events(&self) -> bool {
        self.events.as_ref().is_some_and(|e| !e.is_empty())
    }

    /// Takes the slab changes since the last call, in order.
    pub fn drain_events(&mut self) -> impl Iterator<Item = SlabEvent> + '_ {
        self.events.iter_mut().flat_map(|e| e.drain(..))
    }

    /// Bytes of a unit: slabs start and end at multiples of it.
    pub fn unit_bytes(&self) -> u64 {
        1 << self.unit_shift
    }

    /// Bytes the allocator manages.
    pub fn capacity_bytes(&self) -> u64 {
        (self.units.len() as u64) << self.unit_shift
    }

    /// Bytes of live places, rounded up to their class.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Bytes a place of `bytes` bytes really takes: rounded up to a page, or to a cache line below one page.
    pub fn class_bytes(bytes: u64) -> u64 {
        let step = if bytes >= PAGE_BYTES {
            PAGE_BYTES
        } else {
            LINE_BYTES
        };
        bytes
            .max(1)
            .checked_next_multiple_of(step)
            .unwrap_or(u64::MAX)
    }

    /// Takes a place of `bytes` bytes, or `None` if there is no room (evict or [compact](Self::compaction_plan), then try again).
    pub fn alloc(&mut self, bytes: u64) -> Option<Place> {
        let class_bytes = Self::class_bytes(bytes);
        if bytes == 0 || class_bytes > self.capacity_bytes() {
            return None;
        }
        let class = self.class(class_bytes);
        let first = match self.classes[class as usize].open.first() {
            Some(first) => *first,
            None => self.new_span(class).or_else(|| self.call_back(class))?,
        };
        Some(self.take_from(first))
    }

    /// Gives a place back and says how many bytes that freed. Also the end of a planned [`Move`]: free its `from`.
    ///
    /// # Errors
    /// [`Error::NotAllocated`]; nothing changes then.
    pub fn free(&mut self, place: Place) -> Result<u64> {
        let (first, index) = self.find(place)?;
        let span = self.spans.at(first);
        if !span.give(index) {
            return Err(Error::NotAllocated { place: place.0 });
        }
        let class = span.class;
        let bytes = self.classes[class as usize].bytes;
        self.live_bytes -= bytes;
        self.live_places -= 1;
        let moved = if span.moves > 0 {
            self.moving.remove(&place)
        } else {
            None
        };
        span.moves -= moved.is_some() as u32;
        let (empty, opened) = (span.is_empty(), span.free == 1 || moved.is_some());
        if empty && span.leaving {
            span.leaving = false;
            self.leaving.remove(&first);
        }
        if opened && span.moves == 0 && !span.leaving {
            self.classes[class as usize].open.insert(first);
        }
        if empty {
            self.empty.insert(first);
        }
        if let Some(to) = moved {
            self.arrived(to);
        }
        Ok(bytes)
    }

    /// The slab a place lies in.
    ///
    /// # Errors
    /// [`Error::NotAllocated`] if there is no slab, or no place starts there. The place itself may be free.
    pub fn slab_of(&self, place: Place) -> Result<SlabInfo> {
        let (first, _) = self.find(place)?;
        Ok(self.info(first))
    }

    /// The place's number in its slab, from 0.
    ///
    /// # Errors
    /// As [`slab_of`](Self::slab_of).
    pub fn index_in_slab(&self, place: Place) -> Result<u32> {
        self.find(place).map(|(_, index)| index)
    }

    /// Whether the place is handed out.
    pub fn is_live(&self, place: Place) -> bool {
        self.find(place)
            .is_ok_and(|(first, index)| self.spans[first].is_live(index))
    }

    /// All slabs, in no particular order.
    pub fn slabs(&self) -> impl Iterator<Item = SlabInfo> + '_ {
        self.spans.firsts().map(|first| self.info(first))
    }

    /// The live places of a slab, in order.
    pub fn places(&self, slab: u32) -> impl Iterator<Item = Place> + '_ {
        self.spans.get(slab).into_iter().flat_map(move |span| {
            let bytes = self.classes[span.class as usize].bytes;
            let start = (slab as u64) << self.unit_shift;
            span.live().map(move |i| Place(start + i as u64 * bytes))
        })
    }

    /// Makes a slab anew that an earlier allocator of the same capacity had; all its places are free at first.
    ///
    /// # Errors
    /// [`Error::PlaceSize`] for a class that cannot be, [`Error::OutOfBounds`] outside the pool, [`Error::InUse`] if a
    /// unit of it has a slab already.
    pub fn restore_slab(&mut self, slab: u32, units: u32, class_bytes: u64) -> Result<()> {
        let (len, unit) = (self.units.len() as u64, self.unit_bytes());
        if class_bytes == 0
            || class_bytes != Self::class_bytes(class_bytes)
            || class_bytes > units as u64 * unit
        {
            return Err(Error::PlaceSize {
                bytes: class_bytes,
                bytes_max: units as u64 * unit,
            });
        }
        if slab as u64 + units as u64 > len {
            let (offset, bytes) = (slab as u64 * unit, units as u64 * unit);
            return Err(Error::OutOfBounds {
                what: "slab",
                offset,
                bytes,
                len: len * unit,
            });
        }
        if !self.units.is_free(slab, units) {
            return Err(Error::InUse {
                place: slab as u64 * unit,
            });
        }
        let class = self.class(class_bytes);
        self.add_span(class, slab, units);
        Ok(())
    }

    /// Marks a free place as handed out, while a pool is being restored.
    ///
    /// # Errors
    /// [`Error::NotAllocated`] if no slab has such a place, [`Error::InUse`] if it is taken.
    pub fn mark_used(&mut self, place: Place) -> Result<()> {
        let (first, index) = self.find(place)?;
        let span = self.spans.at(first);
        if !span.take(index) {
            return Err(Error::InUse { place: place.0 });
        }
        self.took(first);
        Ok(())
    }

    /// How full the pool is.
    pub fn stats(&self) -> SlabStats {
        SlabStats {
            capacity_bytes: self.capacity_bytes(),
            live_bytes: self.live_bytes,
            live_places: self.live_places,
            unassigned_bytes: (self.units.free() as u64) << self.unit_shift,
            slabs: self.spans.len() as u32,
            slabs_empty: self.empty.len() as u32,
            metadata_bytes: (self.spans.metadata_bytes() + self.units.metadata_bytes()) as u64,
        }
    }

    fn info(&self, first: u32) -> SlabInfo {
        let span = &self.spans[first];
        SlabInfo {
            slab: first,
            units: span.units,
            offset: (first as u64) << self.unit_shift,
            class_bytes: self.classes[span.class as usize].bytes,
            places: span.places,
            live: span.places - span.free,
        }
    }

    fn find(&self, place: Place) -> Result<(u32, u32)> {
        let missing = Error::NotAllocated { place: place.0 };
        let unit = u32::try_from(place.0 >> self.unit_shift).unwrap_or(u32::MAX);
        let Some(first) = self.units.owner(unit) else {
            return Err(missing);
        };
        let span = &self.spans[first];
        let bytes = self.classes[span.class as usize].bytes;
        let within = place.0 - ((first as u64) << self.unit_shift);
        let index = within / bytes;
        if index * bytes != within || index >= span.places as u64 {
            return Err(missing);
        }
        Ok((first, index as u32))
    }

    fn class(&mut self, bytes: u64) -> u32 {
        if self
            .classes
            .get(self.last_class as usize)
            .is_some_and(|c| c.bytes == bytes)
        {
            return self.last_class;
        }
        self.last_class = self.class_row(bytes);
        self.last_class
    }

    fn class_row(&mut self, bytes: u64) -> u32 {
        if let Some(class) = self.class_of.get(&bytes) {
            return *class;
        }
        // A class without slabs is gone: its row serves the next size, so rows never outnumber units by more than one.
        let class = match self.classes.iter().position(|c| c.slabs == 0) {
            Some(row) => {
                self.class_of.remove(&self.classes[row].bytes);
                row
            }
            None => {
                self.classes.push(Class {
                    bytes,
                    open: BTreeSet::new(),
                    slabs: 0,
                });
                self.classes.len() - 1
            }
        };
        self.classes[class].bytes = bytes;
        self.class_of.insert(bytes, class as u32);
        class as u32
    }

    fn take_from(&mut self, first: u32) -> Place {
        let span = self.spans.at(first);
        let index = span.take_first().expect("open slabs have a free place");
        let bytes = self.took(first);
        Place(((first as u64) << self.unit_shift) + index as u64 * bytes)
    }

    /// Books one more live place in the slab; returns its size.
    fn took(&mut self, first: u32) -> u64 {
        let span = &self.spans[first];
        let class = &mut self.classes[span.class as usize];
        if span.free == 0 {
            class.open.remove(&first);
        }
        if span.free + 1 == span.places {
            self.empty.remove(&first);
        }
        self.live_bytes += class.bytes;
        self.live_places += 1;
        class.bytes
    }

    fn new_span(&mut self, class: u32) -> Option<u32> {
        let bytes = self.classes[class as usize].bytes;
        let (least, full) = span::units_for(bytes, self.unit_bytes(), self.units.len());
        let run = match self.units.first_fit(full) {
            Some(first) => Some((first, full)),
            None => {
                self.release_empty();
                self.units.first_fit_or_longest(full)
            }
        };
        let (first, found) = run.filter(|(_, n)| *n >= least)?;
        let places = ((found as u64) << self.unit_shift) / bytes;
        let units = (places * bytes).div_ceil(self.unit_bytes()) as u32;
        self.add_span(class, first, units);
        Some(first)
    }

    /// With no room elsewhere, a slab that was to be emptied serves again.
    fn call_back(&mut self, class: u32) -> Option<u32> {
        let ready = |first: &&u32| {
            let span = &self.spans[**first];
            span.class == class && span.moves == 0 && span.free > 0
        };
        let first = *self.leaving.iter().find(ready)?;
        self.stop_leaving(first);
        Some(first)
    }

    fn add_span(&mut self, class: u32, first: u32, units: u32) {
        let row = &mut self.classes[class as usize];
        let places = ((units as u64) << self.unit_shift) / row.bytes;
        self.units.take(first, units);
        self.spans
            .insert(first, Span::new(class, units, places as u32));
        row.open.insert(first);
        row.slabs += 1;
        self.empty.insert(first);
        let info = self.info(first);
        if let Some(events) = &mut self.events {
            events.push(SlabEvent::Assigned(info));
        }
    }

    fn release_empty(&mut self) {
        for first in std::mem::take(&mut self.empty) {
            let span = self.spans.remove(first);
            let class = &mut self.classes[span.class as usize];
            class.open.remove(&first);
            class.slabs -= 1;
            self.units.give(first, span.units);
            if let Some(events) = &mut self.events {
                events.push(SlabEvent::Released(first));
            }
        }
    }
}
