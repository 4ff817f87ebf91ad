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

fn store_one(sim: &mut Sim, put: u64, k: u64, bytes: u32) {
    let body = body(put, bytes);
    let record = NewRecord {
        put: PutId(put),
        key: key(k),
        bytes,
        checksum: checksum(&body),
        expires_s: 0,
        meta: put.to_le_bytes().to_vec(),
        kind: RecordKind::Put,
    };
    sim.offer(record, body);
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
