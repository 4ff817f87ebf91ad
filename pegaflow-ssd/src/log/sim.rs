// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A device and a shell in one thread under a seed: transfers end in any order, fail, and the power goes at any moment.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Effect, Geometry, IoId, Location, Log, LogSettings, NewRecord, PutId};
use crate::error::{Error, IoKind};
use crate::format::{Batch, SEGMENTS_AT, Trailer, checksum};
use crate::reclaim;
use crate::recover::{RecoveryReport, recover};
use crate::settings::Reclaim;
use crate::sys::PAGE;

const SECTOR: usize = 512;

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone)]
struct Write {
    at: usize,
    bytes: Vec<u8>,
}

enum Doing {
    Batch {
        header: Write,
        parts: Vec<(PutId, Write)>,
    },
    Pages(Vec<Write>),
    /// How many finished writes it covers.
    Flush(usize),
    Move {
        put: PutId,
        from: Location,
    },
}

/// The device: what is seen now, and what of it survives.
pub(super) struct Device {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Finished and not flushed, in order.
    cached: Vec<Write>,
}

impl Device {
    fn write(&mut self, w: Write) {
        self.seen[w.at..w.at + w.bytes.len()].copy_from_slice(&w.bytes);
        self.cached.push(w);
    }

    fn torn(rng: &mut Rng, bytes: &mut [u8], w: &Write) {
        for (i, sector) in w.bytes.chunks(SECTOR).enumerate() {
            if rng.one_in(2) {
                let at = w.at + i * SECTOR;
                bytes[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }
}

pub(super) struct Sim {
    pub(super) rng: Rng,
    pub(super) log: Log,
    pub(super) device: Device,
    pub(super) now_s: u64,
    pub(super) queue: VecDeque<NewRecord>,
    /// What became of callers' records.
    pub(super) done: Vec<(PutId, Result<(), Error>)>,
    pub(super) faults: bool,
    geometry: Geometry,
    settings: LogSettings,
    reclaim: Reclaim,
    doing: BTreeMap<u64, (Option<IoId>, Doing)>,
    next: u64,
    bodies: HashMap<PutId, Vec<u8>>,
}

impl Sim {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let geometry = Geometry {
            store: 42,
            segment_bytes: 16 * PAGE as u64,
            segments: 6 + rng.below(6) as u32,
        };
        let settings = LogSettings {
            flushed: rng.one_in(2),
            batch_bytes_max: (1 + rng.below(8)) * PAGE as u64,
            second_chance_percent_max: 50,
            pinned_percent_max: 40,
        };
        let reclaim =
            [Reclaim::Fifo, Reclaim::Clock, Reclaim::ExpectedReuse][rng.below(3) as usize];
        let bytes = geometry.capacity() as usize;
        let device = Device {
            seen: vec![0; bytes],
            durable: vec![0; bytes],
            cached: Vec::new(),
        };
        let log = Log::new(geometry, settings, reclaim::policy(reclaim));
        let faults = rng.one_in(3);
        Self {
            rng,
            log,
            device,
            now_s: 1000,
            queue: VecDeque::new(),
            done: Vec::new(),
            faults,
            geometry,
            settings,
            reclaim,
            doing: BTreeMap::new(),
            next: 0,
            bodies: HashMap::new(),
        }
    }

    pub(super) fn offer(&mut self, record: NewRecord, body: Vec<u8>) {
        self.bodies.insert(record.put, body);
        self.queue.push_back(record);
    }

    /// One step of the shell: more records into the log, or one transfer ends.
    pub(super) fn step(&mut self) {
        let mut effects = Vec::new();
        if self.doing.is_empty() || self.rng.one_in(3) {
            self.log.append(self.now_s, &mut self.queue, &mut effects);
        } else {
            let pick = self.rng.below(self.doing.len() as u64) as usize;
            let id = *self.doing.keys().nth(pick).expect("below its length");
            self.end(id, &mut effects);
        }
        self.run(effects);
    }

    /// What waits goes into the log.
    pub(super) fn take(&mut self) {
        let mut effects = Vec::new();
        self.log.append(self.now_s, &mut self.queue, &mut effects);
        self.run(effects);
    }

    /// Until only the batch with this block is under way.
    pub(super) fn drain_but(&mut self, slow: PutId) {
        let is_slow = |doing: &Doing| matches!(doing, Doing::Batch { parts, .. } if parts.iter().any(|(p, _)| *p == slow));
        while let Some(id) = self
            .doing
            .iter()
            .find(|(_, (_, d))| !is_slow(d))
            .map(|(id, _)| *id)
        {
            let mut effects = Vec::new();
            self.end(id, &mut effects);
            self.run(effects);
        }
    }

    /// Until nothing moves any more.
    pub(super) fn drain(&mut self) {
        for _ in 0..10_000 {
            let before = self.queue.len();
            let mut effects = Vec::new();
            self.log.append(self.now_s, &mut self.queue, &mut effects);
            self.run(effects);
            if self.doing.is_empty() && self.queue.len() == before {
                return;
            }
            self.step();
        }
        panic!("it does not come to rest");
    }

    pub(super) fn idle(&self) -> bool {
        self.doing.is_empty() && self.log.idle()
    }

    pub(super) fn run(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.next += 1;
            let base = SEGMENTS_AT as usize;
            match effect {
                Effect::WriteBatch {
                    io,
                    at,
                    header,
                    parts,
                } => {
                    let mut to = at as usize - base + header.len();
                    let parts = parts.into_iter().map(|(put, bytes)| {
                        let body = self.bodies.get(&put).cloned().unwrap_or_default();
                        assert_eq!(body.len(), bytes as usize);
                        let at = to;
                        to += body.len().next_multiple_of(PAGE);
                        (put, Write { at, bytes: body })
                    });
                    let parts = parts.collect();
                    let header = Write {
                        at: at as usize - base,
                        bytes: header,
                    };
                    self.doing
                        .insert(self.next, (Some(io), Doing::Batch { header, parts }));
                }
                Effect::WritePages { io, parts } => {
                    let write = |(at, bytes): (u64, Vec<u8>)| Write {
                        at: at as usize - base,
                        bytes,
                    };
                    let writes = parts.into_iter().map(write).collect();
                    self.doing
                        .insert(self.next, (Some(io), Doing::Pages(writes)));
                }
                Effect::Flush { io } => {
                    let covers = self.device.cached.len();
                    self.doing
                        .insert(self.next, (Some(io), Doing::Flush(covers)));
                }
                Effect::Move { put, from } => {
                    self.doing
                        .insert(self.next, (None, Doing::Move { put, from }));
                }
                Effect::Done { put, result } => {
                    self.bodies.remove(&put);
                    if !put.internal() {
                        self.done.push((put, result));
                    }
                }
            }
        }
    }

    fn end(&mut self, id: u64, effects: &mut Vec<Effect>) {
        let (io, doing) = self.doing.remove(&id).expect("it is under way");
        let io = io.unwrap_or(IoId(0));
        match doing {
            Doing::Batch { header, parts } => {
                let result = self.write(header);
                let mut failed = Vec::new();
                for (put, w) in parts {
                    if let Err(e) = self.write(w) {
                        failed.push((put, e));
                    }
                }
                self.log
                    .batch_done(self.now_s, io, result, &failed, effects);
            }
            Doing::Pages(writes) => {
                let results: Vec<_> = writes.into_iter().map(|w| self.write(w)).collect();
                let result = results.into_iter().collect();
                self.log.pages_done(self.now_s, io, result, effects);
            }
            Doing::Flush(covers) => {
                let result = self.maybe_fails();
                if result.is_ok() {
                    // Other transfers ended since it began: only what it covers is safe, and flushes come one at a time.
                    for w in self.device.cached.drain(..covers) {
                        self.device.durable[w.at..w.at + w.bytes.len()].copy_from_slice(&w.bytes);
                    }
                }
                self.log.flush_done(self.now_s, io, result, effects);
            }
            Doing::Move { put, from } => {
                let result = match self.read(&from) {
                    Some((body, meta)) if self.log.still(&from) && self.maybe_fails().is_ok() => {
                        self.bodies.insert(put, body);
                        Ok(meta)
                    }
                    _ => Err(Error::Cancelled),
                };
                self.log.move_ready(self.now_s, put, result, effects);
            }
        }
    }

    fn maybe_fails(&mut self) -> Result<(), Error> {
        match self.faults && self.rng.one_in(20) {
            true => Err(Error::Io {
                kind: IoKind::Write,
                at: 0,
                bytes: 0,
                errno: libc::EIO,
            }),
            false => Ok(()),
        }
    }

    fn write(&mut self, w: Write) -> Result<(), Error> {
        let result = self.maybe_fails();
        if result.is_ok() {
            self.device.write(w);
        } else {
            // Some of it may have been written all the same.
            let mut partly = self.device.seen[w.at..w.at + w.bytes.len()].to_vec();
            Device::torn(
                &mut self.rng,
                &mut partly,
                &Write {
                    at: 0,
                    bytes: w.bytes,
                },
            );
            self.device.write(Write {
                at: w.at,
                bytes: partly,
            });
        }
        result
    }

    /// A block's bytes and metadata as the device has them now; nothing if they are not what was written.
    pub(super) fn read(&self, from: &Location) -> Option<(Vec<u8>, Vec<u8>)> {
        let base = SEGMENTS_AT;
        let at = (from.at - base) as usize;
        let body = self.device.seen[at..at + from.bytes as usize].to_vec();
        let at = (from.header_at - base) as usize;
        let header = &self.device.seen[at..at + from.header_bytes];
        let batch = Batch::decode(header, self.geometry.place(from.segment))?;
        let meta = batch.metas.get(from.header_index as usize)?.clone();
        (checksum(&body) == from.checksum).then_some((body, meta))
    }

    /// Flips a bit in the first record of every summary. Returns how many there are.
    pub(super) fn damage_summaries(&mut self) -> u32 {
        let (mut n, pages) = (0, self.geometry.pages() as usize);
        for segment in 0..self.geometry.segments {
            let end = (segment as usize + 1) * pages * PAGE;
            let last = end - PAGE..end;
            let place = self.geometry.place(segment);
            if Trailer::decode(&self.device.seen[last.clone()], place).is_some() {
                // Few records: the summary is one page.
                self.device.seen[last.start] ^= 1;
                self.device.durable.clone_from(&self.device.seen);
                n += 1;
            }
        }
        n
    }

    /// The process ends, or the power goes; then the store is opened anew.
    pub(super) fn crash(&mut self) -> RecoveryReport {
        let power_cut = self.settings.flushed && self.rng.one_in(2);
        let mut bytes = match power_cut {
            true => self.device.durable.clone(),
            false => self.device.seen.clone(),
        };
        let doing = std::mem::take(&mut self.doing);
        let under_way = doing.into_values().flat_map(|(_, d)| match d {
            Doing::Batch { header, parts } => {
                let mut all = vec![header];
                all.extend(parts.into_iter().map(|(_, w)| w));
                all
            }
            Doing::Pages(writes) => writes,
            _ => Vec::new(),
        });
        let cached = if power_cut {
            self.device.cached.clone()
        } else {
            Vec::new()
        };
        let mut loose: Vec<Write> = cached.into_iter().chain(under_way).collect();
        // In any order.
        for i in (1..loose.len()).rev() {
            let j = self.rng.below(i as u64 + 1) as usize;
            loose.swap(i, j);
        }
        for w in &loose {
            match self.rng.below(3) {
                0 => {}
                1 => bytes[w.at..w.at + w.bytes.len()].copy_from_slice(&w.bytes),
                _ => Device::torn(&mut self.rng, &mut bytes, w),
            }
        }
        self.device = Device {
            seen: bytes.clone(),
            durable: bytes,
            cached: Vec::new(),
        };
        self.queue.clear();
        self.bodies.clear();
        self.done.clear();
        self.reopen()
    }

    fn reopen(&mut self) -> RecoveryReport {
        let gap = self.rng.next();
        let seen = &self.device.seen;
        let mut read = |wishes: &[(u64, usize)]| {
            let one = |(at, n): &(u64, usize)| {
                let at = (at - SEGMENTS_AT) as usize;
                Some(seen[at..at + n].to_vec())
            };
            wishes.iter().map(one).collect()
        };
        let policy = reclaim::policy(self.reclaim);
        let (log, report) = recover(self.geometry, self.settings, policy, gap, &mut read);
        self.log = log;
        report
    }

    /// After opening anew: from here on, segments may be sealed and reclaimed again.
    pub(super) fn start(&mut self) {
        let mut effects = Vec::new();
        self.log.start(self.now_s, &mut effects);
        self.run(effects);
    }
}
