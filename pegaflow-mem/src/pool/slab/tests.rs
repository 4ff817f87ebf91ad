// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;

/// Fills with one size until refused; returns the places.
fn fill(slab: &mut SlabAllocator, bytes: u64) -> Vec<Place> {
    std::iter::from_fn(|| slab.alloc(bytes)).collect()
}

/// Runs compaction to its end as an owner would; returns how many moves it took.
fn compact(slab: &mut SlabAllocator, live: &mut Vec<Place>, at_once: usize) -> usize {
    let mut places: BTreeSet<Place> = live.drain(..).collect();
    let mut moves = 0;
    loop {
        let plan = slab.compaction_plan(at_once);
        if plan.is_empty() {
            live.extend(places);
            return moves;
        }
        for planned in plan {
            assert!(places.remove(&planned.from), "moves live places");
            assert!(places.insert(planned.to), "moves into free places");
            slab.free(planned.from).expect("it was live");
            moves += 1;
        }
        assert!(moves < 4_000_000, "compaction does not end");
    }
}

fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for i in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        items.swap(i, (state >> 33) as usize % (i + 1));
    }
}

/// Fill with `a`, free a random half, compact, refill with `b`: the share of the capacity in use.
fn refill(capacity: u64, a: u64, b: u64, seed: u64) -> f64 {
    let mut slab = SlabAllocator::new(capacity);
    let mut live = fill(&mut slab, a);
    shuffle(&mut live, seed);
    for place in live.split_off(live.len() / 2) {
        slab.free(place).expect("live");
    }
    compact(&mut slab, &mut live, 1000);
    live.extend(fill(&mut slab, b));
    let stats = slab.stats();
    assert_eq!(stats.live_places, live.len() as u64);
    stats.live_bytes as f64 / capacity as f64
}

#[test]
fn refill_with_another_size_examples() {
    let capacity = 64 * MIB;
    for (a, b) in [
        (4096, MIB),
        (MIB, 4096),
        (MIB, 1020 * 1024),
        (36864, 53248),
        (53248, 36864),
    ] {
        let used = refill(capacity, a, b, 7);
        assert!(used >= 0.97, "{a} then {b}: {used}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No external fragmentation: any two sizes of whole pages up to 1/64 of the pool.
    #[test]
    fn refill_with_another_size(
        capacity_mib in 16u64..300, a in 0.0f64..1.0, b in 0.0f64..1.0, seed: u64, extra in 0u64..4096
    ) {
        let capacity = capacity_mib * MIB + extra * 37;
        let size = |x: f64| {
            // Sizes spread evenly over orders of magnitude.
            let top = (capacity / 64) as f64;
            ((4096.0 * (top / 4096.0).powf(x)) as u64) / 4096 * 4096
        };
        let used = refill(capacity, size(a), size(b), seed);
        prop_assert!(used >= 0.97, "{} then {} in {}: {}", size(a), size(b), capacity, used);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Again and again, with the leftovers of all earlier sizes still there: slabs of unlike length leave small holes between
    /// them, and each size a slab that is not full, so this bound is lower.
    #[test]
    fn refill_many_times(pages in prop::collection::vec(1u64..200, 2..6), seed: u64) {
        let capacity = 64 * MIB;
        let mut slab = SlabAllocator::new(capacity);
        let mut live = Vec::new();
        for (round, pages) in pages.iter().enumerate() {
            shuffle(&mut live, seed ^ round as u64);
            for place in live.split_off(live.len() / 2) {
                slab.free(place).expect("live");
            }
            compact(&mut slab, &mut live, 1 + seed as usize % 200);
            live.extend(fill(&mut slab, pages * 4096));
            let used = slab.stats().live_bytes as f64 / capacity as f64;
            prop_assert!(used >= 0.95, "round {}: {}", round, used);
        }
    }
}

/// What the allocator must agree with: live places as intervals.
#[derive(Default)]
struct Model {
    live: BTreeMap<u64, u64>,
}

impl Model {
    fn take(&mut self, place: Place, bytes: u64, capacity: u64) {
        let end = place.0 + bytes;
        assert!(end <= capacity, "inside the pool");
        let before = self.live.range(..end).next_back();
        assert!(
            before.is_none_or(|(at, n)| at + n <= place.0),
            "places overlap"
        );
        let align = if bytes >= PAGE_BYTES { PAGE_BYTES } else { 64 };
        assert!(place.0.is_multiple_of(align), "aligned");
        self.live.insert(place.0, bytes);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(u64),
    Free(prop::sample::Index),
    Plan { moves: usize, abandon: bool },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop_oneof![1u64..5000, (1u64..40).prop_map(|p| p * 4096), 200_000u64..400_000]
            .prop_map(Op::Alloc),
        4 => any::<prop::sample::Index>().prop_map(Op::Free),
        1 => (1usize..20, any::<bool>()).prop_map(|(moves, abandon)| Op::Plan { moves, abandon }),
        1 => Just(Op::Restart),
    ]
}

/// The slab table and the live places of one allocator, moved into a new one.
fn restart(old: &SlabAllocator, capacity: u64) -> SlabAllocator {
    let mut new = SlabAllocator::new(capacity);
    for slab in old.slabs() {
        new.restore_slab(slab.slab, slab.units, slab.class_bytes)
            .expect("it was there before");
        for place in old.places(slab.slab) {
            new.mark_used(place).expect("free so far");
        }
    }
    new
}

proptest! {
    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..200)) {
        let capacity = 4 * MIB + 12345;
        let mut slab = SlabAllocator::new(capacity);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Alloc(bytes) => {
                    if let Some(place) = slab.alloc(bytes) {
                        model.take(place, SlabAllocator::class_bytes(bytes), capacity);
                    }
                }
                Op::Free(index) => {
                    if model.live.is_empty() { continue; }
                    let place = *index.get(&model.live.keys().copied().collect::<Vec<_>>());
                    let bytes = model.live.remove(&place).expect("chosen from it");
                    prop_assert_eq!(slab.free(Place(place)).expect("live"), bytes);
                    prop_assert!(slab.free(Place(place)).is_err(), "freed twice");
                }
                Op::Plan { moves, abandon } => {
                    for planned in slab.compaction_plan(moves) {
                        model.take(planned.to, planned.bytes, capacity);
                        let gone = if abandon {
                            slab.abandon_move(planned).expect("planned");
                            planned.to
                        } else {
                            slab.free(planned.from).expect("live");
                            planned.from
                        };
                        model.live.remove(&gone.0).expect("live");
                    }
                }
                Op::Restart => slab = restart(&slab, capacity),
            }
            let stats = slab.stats();
            prop_assert_eq!(stats.live_places, model.live.len() as u64);
            prop_assert_eq!(stats.live_bytes, model.live.values().sum::<u64>());
        }
        for place in model.live.keys() {
            let place = Place(*place);
            prop_assert!(slab.is_live(place));
            let info = slab.slab_of(place).expect("live");
            let index = slab.index_in_slab(place).expect("live") as u64;
            prop_assert_eq!(info.offset + index * info.class_bytes, place.0);
        }
    }
}

#[test]
fn strangers_are_refused() {
    let mut slab = SlabAllocator::new(MIB);
    assert_eq!(slab.alloc(0), None);
    assert_eq!(slab.alloc(2 * MIB), None);
    assert_eq!(slab.alloc(u64::MAX), None);
    let place = slab.alloc(8192).expect("room");
    for wrong in [
        Place(place.0 + 4096),
        Place(MIB),
        Place(u64::MAX),
        Place(512 * 1024),
    ] {
        assert!(slab.free(wrong).is_err(), "{wrong:?}");
    }
    assert!(slab.restore_slab(0, 1, 4096).is_err(), "in use");
    assert!(slab.restore_slab(255, 2, 4096).is_err(), "past the end");
    assert!(slab.restore_slab(100, 1, 0).is_err());
    assert!(
        slab.restore_slab(100, 1, 8192).is_err(),
        "no room for one place"
    );
    assert_eq!(
        SlabAllocator::new(100).alloc(64),
        None,
        "a pool below one page has no unit"
    );
}

#[test]
fn events_tell_the_slab_table() {
    let mut slab = SlabAllocator::new(64 * MIB).with_events();
    let place = slab.alloc(10 * 4096).expect("room");
    let info = slab.slab_of(place).expect("live");
    let events: Vec<_> = slab.drain_events().collect();
    assert_eq!(events, [SlabEvent::Assigned(SlabInfo { live: 0, ..info })]);
    slab.free(place).expect("live");
    assert_eq!(
        slab.drain_events().count(),
        0,
        "an empty slab waits for someone who needs it"
    );
    fill(&mut slab, MIB);
    assert!(
        slab.drain_events()
            .any(|e| e == SlabEvent::Released(info.slab))
    );
}

#[test]
fn metadata_is_small() {
    let mut slab = SlabAllocator::new(1 << 30);
    let places = fill(&mut slab, 4096);
    let stats = slab.stats();
    assert!(places.len() as f64 * 4096.0 >= 0.999 * (1u64 << 30) as f64);
    assert!(stats.metadata_bytes <= 6 * places.len() as u64, "{stats:?}");
}
