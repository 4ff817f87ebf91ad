// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The log against a reference: random operations, faults and crashes under thousands of seeds.
//!
//! `PEGAFLOW_SSD_SEED=n` replays one seed, `PEGAFLOW_SSD_SEEDS=n` runs so many.

#[path = "sim.rs"]
mod sim;

use std::collections::BTreeMap;

use sim::{Rng, Sim};

use super::*;
use crate::format::checksum;
use crate::reclaim;
use crate::recover::FoundSegment;
use crate::settings::Reclaim;

const KEYS: u64 = 24;

/// One write of a key, in the order they were handed over.
#[derive(Debug, Clone, PartialEq)]
struct Wrote {
    put: PutId,
    /// Seed and length of the bytes; nothing: a removal.
    value: Option<(u64, u32)>,
    expires_s: u32,
    state: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Open,
    Acknowledged,
    Failed,
}

/// What may be: for each key its writes since the last certainty.
#[derive(Default)]
struct Reference {
    keys: BTreeMap<u64, Vec<Wrote>>,
}

fn body(seed: u64, bytes: u32) -> Vec<u8> {
    let mut rng = Rng(seed);
    let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes());
    words.take(bytes as usize).collect()
}

fn key(n: u64) -> Key {
    Key::from(u128::from(n) * 0x1234_5678_9abc)
}

impl Reference {
    fn told(&mut self, put: PutId, ok: bool) {
        for w in self.keys.values_mut().flatten().filter(|w| w.put == put) {
            w.state = if ok { Fate::Acknowledged } else { Fate::Failed };
        }
    }

    /// The newest acknowledged write, and its place.
    fn newest(&self, k: u64) -> Option<(usize, &Wrote)> {
        let list = self.keys.get(&k)?;
        list.iter()
            .enumerate()
            .rev()
            .find(|(_, w)| w.state == Fate::Acknowledged)
    }
}

fn matches(sim: &Sim, found: &Location, w: &Wrote) -> bool {
    let Some((seed, bytes)) = w.value else {
        return false;
    };
    let Some((got, meta)) = sim.read(found) else {
        return false;
    };
    got == body(seed, bytes) && meta == seed.to_le_bytes()
}

// While the store runs: a key is the newest acknowledged write or, if that was reclaimed or has expired, nothing.
fn check_live(seed: u64, sim: &Sim, reference: &Reference, keys: std::ops::Range<u64>) {
    for k in keys {
        let Some(found) = sim.log.peek(&key(k), sim.now_s) else {
            continue;
        };
        let (_, newest) = reference
            .newest(k)
            .unwrap_or_else(|| panic!("seed {seed}: key {k} from nowhere"));
        assert!(
            matches(sim, &found, newest),
            "seed {seed}: key {k} is not {newest:?}"
        );
    }
}

// After a crash: the newest acknowledged write or one handed over after it; nothing only if that was so before, or a later write says so.
fn check_crashed(seed: u64, sim: &Sim, reference: &mut Reference, before: &[bool]) {
    for k in 0..KEYS {
        let list = reference.keys.get(&k).cloned().unwrap_or_default();
        let from = reference.newest(k).map_or(0, |(i, _)| i);
        let allowed = &list[from.min(list.len())..];
        let now = match sim.log.peek(&key(k), sim.now_s) {
            Some(found) => {
                let hit = allowed.iter().find(|w| matches(sim, &found, w));
                let hit = hit.unwrap_or_else(|| {
                    let got = sim.read(&found).map(|(b, m)| (b.len(), m));
                    panic!("seed {seed}: key {k} came back as {got:?} of {found:?}, none of {allowed:?} of {list:?}")
                });
                vec![Wrote {
                    state: Fate::Acknowledged,
                    ..hit.clone()
                }]
            }
            None => {
                // Something newer may have taken its place and be expired or a removal by now.
                let expired = |w: &Wrote| w.expires_s != 0 && u64::from(w.expires_s) <= sim.now_s;
                let excuse = allowed.iter().any(|w| w.value.is_none() || expired(w));
                let must = before[k as usize] && !excuse;
                assert!(
                    !must,
                    "seed {seed}: key {k} is lost, one of {allowed:?} was acknowledged"
                );
                vec![]
            }
        };
        reference.keys.insert(k, now);
    }
}

fn operate(sim: &mut Sim, reference: &mut Reference, put: u64) {
    let k = sim.rng.below(KEYS);
    let removes = sim.rng.one_in(6);
    let bytes = match sim.rng.below(4) {
        0 => 1 + sim.rng.below(100) as u32,
        1 => 4096,
        2 => 4096 * (1 + sim.rng.below(5)) as u32,
        _ => 1 + sim.rng.below(14 * 4096) as u32,
    };
    let expires_s = if sim.rng.one_in(10) {
        (sim.now_s + sim.rng.below(50)) as u32
    } else {
        0
    };
    let (seed, put) = (sim.rng.next(), PutId(put));
    let wrote = match removes {
        true => Wrote {
            put,
            value: None,
            expires_s: 0,
            state: Fate::Open,
        },
        false => Wrote {
            put,
            value: Some((seed, bytes)),
            expires_s,
            state: Fate::Open,
        },
    };
    reference.keys.entry(k).or_default().push(wrote);
    let body = if removes { vec![] } else { body(seed, bytes) };
    let record = NewRecord {
        put,
        key: key(k),
        bytes: body.len() as u32,
        checksum: checksum(&body),
        expires_s: if removes { 0 } else { expires_s },
        meta: if removes {
            vec![]
        } else {
            seed.to_le_bytes().to_vec()
        },
        kind: if removes {
            RecordKind::Tombstone
        } else {
            RecordKind::Put
        },
    };
    sim.offer(record, body);
}

fn collect(sim: &mut Sim, reference: &mut Reference) {
    for (put, result) in std::mem::take(&mut sim.done) {
        reference.told(put, result.is_ok());
    }
}

fn play(seed: u64) {
    let mut sim = Sim::new(seed);
    let mut reference = Reference::default();
    let steps = 60 + sim.rng.below(240);
    for n in 0..steps {
        match sim.rng.below(16) {
            0..6 => operate(&mut sim, &mut reference, n),
            6 => {
                let k = key(sim.rng.below(KEYS));
                sim.log.lookup(&k, sim.now_s);
            }
            7 => {
                let (k, pinned) = (key(sim.rng.below(KEYS)), sim.rng.one_in(2));
                let _ = sim.log.pin(&k, pinned, sim.now_s);
            }
            8 => sim.now_s += sim.rng.below(10),
            9 if sim.rng.one_in(4) => {
                let before: Vec<bool> = (0..KEYS)
                    .map(|k| sim.log.peek(&key(k), sim.now_s).is_some())
                    .collect();
                collect(&mut sim, &mut reference);
                check_live(seed, &sim, &reference, 0..KEYS);
                sim.crash();
                check_crashed(seed, &sim, &mut reference, &before);
                sim.start();
            }
            _ => sim.step(),
        }
        collect(&mut sim, &mut reference);
        let k = sim.rng.below(KEYS);
        check_live(seed, &sim, &reference, k..k + 1);
    }
    sim.faults = false;
    sim.drain();
    collect(&mut sim, &mut reference);
    check_live(seed, &sim, &reference, 0..KEYS);
    let before: Vec<bool> = (0..KEYS)
        .map(|k| sim.log.peek(&key(k), sim.now_s).is_some())
        .collect();
    sim.crash();
    check_crashed(seed, &sim, &mut reference, &before);
    sim.start();
}

#[test]
fn whatever_happens_the_log_keeps_its_word() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("PEGAFLOW_SSD_SEED") {
        return play(seed);
    }
    for seed in 0..number("PEGAFLOW_SSD_SEEDS").unwrap_or(2000) {
        play(seed);
    }
}

fn block(put: u64, k: u64, body: &[u8]) -> NewRecord {
    NewRecord {
        put: PutId(put),
        key: key(k),
        bytes: body.len() as u32,
        checksum: checksum(body),
        expires_s: 0,
        meta: put.to_le_bytes().to_vec(),
        kind: RecordKind::Put,
    }
}

fn store_one(sim: &mut Sim, put: u64, k: u64, bytes: u32) {
    let body = body(put, bytes);
    sim.offer(block(put, k, &body), body);
    sim.drain();
}

#[test]
fn a_full_store_goes_on_and_writes_little_more_than_it_is_given() {
    let mut sim = Sim::new(1);
    sim.faults = false;
    for n in 0..500 {
        store_one(&mut sim, n, n, 4096 * 4);
    }
    let stats = sim.log.stats();
    assert_eq!(stats.stored_blocks, 500, "{stats:?}");
    assert!(sim.idle() && stats.reclaimed_segments > 50, "{stats:?}");
    assert!(sim.log.peek(&key(499), 0).is_some() && sim.log.peek(&key(0), 0).is_none());
}

#[test]
fn pinned_blocks_stay() {
    for seed in 0..20 {
        let mut sim = Sim::new(seed);
        sim.faults = false;
        store_one(&mut sim, 0, 0, 4096);
        assert_eq!(sim.log.pin(&key(0), true, sim.now_s), Ok(true));
        for n in 1..300 {
            store_one(&mut sim, n, n, 4096 * 3);
        }
        assert!(sim.log.peek(&key(0), sim.now_s).is_some(), "seed {seed}");
    }
}

#[test]
fn a_block_is_stored_when_it_is_written_however_slow_an_earlier_one_is() {
    for seed in 0..200 {
        let mut sim = Sim::new(seed);
        sim.faults = false;
        for k in 0..2 {
            let body = body(k, 4096);
            sim.offer(block(k, k, &body), body);
            sim.take();
        }
        // The device has the first block all the time.
        sim.drain_but(PutId(0));
        assert_eq!(sim.done, [(PutId(1), Ok(()))], "seed {seed}");
        sim.crash();
        let found = sim.log.peek(&key(1), sim.now_s);
        let found = found.unwrap_or_else(|| panic!("seed {seed}: it was acknowledged"));
        assert_eq!(sim.read(&found).map(|(b, _)| b), Some(body(1, 4096)));
    }
}

/// A log as a kill can leave it: every segment is full. The blocks (or removals) of each, oldest first.
fn full_log(policy: Reclaim, segments: &[&[(u64, bool)]]) -> Log {
    let geometry = Geometry {
        store: 42,
        segment_bytes: 16 * PAGE as u64,
        segments: segments.len() as u32,
    };
    let settings = LogSettings {
        flushed: false,
        batch_bytes_max: 4096,
        second_chance_percent_max: 50,
        pinned_percent_max: 40,
    };
    let mut sequence = 0;
    let found = segments.iter().map(|records| {
        sequence += 1;
        let generation = sequence;
        let records = records.iter().map(|(k, tombstone)| {
            sequence += 1;
            Record {
                key: key(*k),
                checksum: 0,
                sequence,
                page: 1,
                bytes: if *tombstone { 0 } else { 100 },
                expires_s: 0,
                header_page: 0,
                header_index: 0,
                tombstone: *tombstone,
            }
        });
        Some(FoundSegment {
            generation,
            used_pages: 14,
            sealed: true,
            records: records.collect(),
            ..FoundSegment::default()
        })
    });
    let found = found.collect();
    Log::restore(geometry, settings, reclaim::policy(policy), 100, found)
}

// Plays a device that does at once what it is told, and has no block to read. Panics if the log does not come to rest with room.
fn comes_to_rest(log: &mut Log, mut effects: Vec<Effect>) {
    for _ in 0..100 {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::WriteBatch { io, .. } => log.batch_done(0, io, Ok(()), &[], &mut effects),
                Effect::WritePages { io, .. } => log.pages_done(0, io, Ok(()), &mut effects),
                Effect::Flush { io } => log.flush_done(0, io, Ok(()), &mut effects),
                Effect::Move { put, .. } => log.move_ready(0, put, Ok(vec![]), &mut effects),
                Effect::Done { .. } => {}
            }
        }
        if effects.is_empty() {
            assert!(log.idle(), "something waits for ever");
            assert!(log.stats().free_segments > 0, "no room was made");
            return;
        }
    }
    panic!("it does not come to rest");
}

#[test]
fn with_every_segment_full_what_was_read_gets_no_second_chance() {
    let mut log = full_log(
        Reclaim::Clock,
        &[&[(0, false)], &[(1, false)], &[(2, false)], &[(3, false)]],
    );
    for k in 0..4 {
        log.lookup(&key(k), 0);
    }
    let mut effects = Vec::new();
    log.start(0, &mut effects);
    comes_to_rest(&mut log, effects);
    assert_eq!(
        (log.peek(&key(0), 0), log.peek(&key(3), 0).is_some()),
        (None, true)
    );
}

#[test]
fn with_every_segment_full_the_oldest_leaves_although_another_is_empty() {
    // The removal of key 0 must outlive the block: nothing may be void before it is written elsewhere, and there is no elsewhere.
    let mut log = full_log(
        Reclaim::Fifo,
        &[
            &[(0, false), (9, false)],
            &[(0, true)],
            &[(2, false)],
            &[(3, false)],
        ],
    );
    let mut effects = Vec::new();
    log.start(0, &mut effects);
    comes_to_rest(&mut log, effects);
    assert_eq!((log.peek(&key(0), 0), log.peek(&key(9), 0)), (None, None));
}

#[test]
fn an_end_that_could_not_be_written_takes_no_later_block_along() {
    for later in [false, true] {
        // Key 7 was replaced; when the newer block leaves, its end must be written, or the older comes back.
        let mut log = full_log(
            Reclaim::Fifo,
            &[
                &[(7, false)],
                &[(0, false)],
                &[(7, false)],
                &[(3, false)],
                &[],
            ],
        );
        log.free.push_back(4);
        *log.segment(4) = Segment::new();
        log.shadow(key(7), 1);
        let mut effects = Vec::new();
        let bury = NewRecord {
            kind: RecordKind::Bury { segment: 2 },
            ..block(PutId::INTERNAL, 7, &[])
        };
        log.forget(&key(7));
        log.segment(2).state = State::Vacating;
        log.victim = Some(Victim {
            segment: 2,
            todo: vec![],
            unburied: vec![],
            outstanding: 1,
            kept_bytes: 0,
            wrote: false,
            failures: 0,
        });
        log.append_batch(&mut VecDeque::from([bury]), &mut effects);
        if later {
            let put = block(1, 7, &[1; 10]);
            log.append_batch(
                &mut VecDeque::from([NewRecord {
                    put: PutId(PutId::INTERNAL + 1),
                    ..put
                }]),
                &mut effects,
            );
        }
        let Some(Effect::WriteBatch { io, .. }) = effects
            .iter()
            .find(|e| is_of(e, PutId(PutId::INTERNAL)))
            .cloned()
        else {
            panic!("its end is not on its way")
        };
        effects.retain(|e| !is_of(e, PutId(PutId::INTERNAL)));
        let failed = [(PutId(PutId::INTERNAL), Error::Cancelled)];
        log.batch_done(0, io, Ok(()), &failed, &mut effects);
        comes_to_rest(&mut log, effects);
        assert_eq!(log.peek(&key(7), 0).is_some(), later);
    }
}

fn is_of(effect: &Effect, put: PutId) -> bool {
    matches!(effect, Effect::WriteBatch { parts, .. } if parts.iter().any(|(p, _)| *p == put))
}

#[test]
fn a_damaged_summary_costs_no_block() {
    for seed in 0..50 {
        let mut sim = Sim::new(seed);
        sim.faults = false;
        for n in 0..6 {
            store_one(&mut sim, n, n, 4096 * 5);
        }
        assert!(sim.log.stats().full_segments > 0);
        let there: Vec<bool> = (0..6).map(|k| sim.log.peek(&key(k), 0).is_some()).collect();
        let damaged = sim.damage_summaries();
        let report = sim.crash();
        assert!(
            report.scanned_segments >= damaged && damaged > 0,
            "seed {seed}: {report:?}"
        );
        let now: Vec<bool> = (0..6).map(|k| sim.log.peek(&key(k), 0).is_some()).collect();
        assert_eq!(now, there, "seed {seed}: {report:?}");
    }
}
