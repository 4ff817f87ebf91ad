// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Drives a workload against a node: look up, load what hits, verify every byte, save what misses.
//!
//! A shell: it owns the threads and reads the clock. Each thread drives one request at a time, so that the number
//! of threads bounds the requests in flight. A node that goes away is waited for, and the request starts over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};

use super::engine::Rank;
use super::error::Error;
use super::meter::{Counts, Latencies, Meter, Op, Sample};
use super::port::{Port, PortError};
use super::settings::ReplaySettings;
use super::source::{PlainLru, Source};
use super::trace::Request;

// A request that starts over this often without the node going away is a fault of the node.
const RESTARTS_MAX: u32 = 100;

/// What the observer sees while a replay runs.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Since the start, seconds.
    pub seconds: f64,
    /// Counts so far.
    pub counts: Counts,
    /// Of the last interval.
    pub sample: &'a Sample,
    /// Lengths of the outages that ended in the last interval, milliseconds.
    pub recoveries_ms: &'a [f64],
}

/// What a replay found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Counts.
    pub counts: Counts,
    /// Latencies.
    pub latencies: Latencies,
    /// The yardstick, on the same requests in the same order.
    pub plain_lru: PlainLru,
    /// Facts about the requests.
    pub facts: super::facts::TraceFacts,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Lengths of the outages, milliseconds.
    pub recoveries_ms: Vec<f64>,
    /// The curves.
    pub series: Vec<Sample>,
}

/// One replay: a node, its workers and a workload.
pub struct Replay<'a, P> {
    /// The node.
    pub port: &'a P,
    /// The workers' memory, one per rank, with [`ReplaySettings::engine_blocks`] blocks each.
    pub ranks: &'a [Rank],
    /// How to drive.
    pub settings: &'a ReplaySettings,
    /// Names the blocks.
    pub namespace: NamespaceId,
}

struct Shared<'a, P> {
    replay: &'a Replay<'a, P>,
    source: Mutex<Source>,
    meter: Meter,
    start: Instant,
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
}

impl<P: Port> Replay<'_, P> {
    /// Runs the workload to its end, its limits, or until `observe` (called a few times a second) says `false`.
    ///
    /// # Errors
    /// [`Error::Trace`] for a bad trace, [`Error::NodeLost`] and [`Error::Node`] for a node that stays away or
    /// breaks its word. Misses, refusals and outages are counted, not errors.
    pub fn run(
        &self,
        source: Source,
        mut observe: impl FnMut(&Progress<'_>) -> bool,
    ) -> Result<Outcome, Error> {
        let shared = Shared {
            replay: self,
            source: Mutex::new(source),
            meter: Meter::default(),
            start: now(),
            stop: AtomicBool::new(false),
            failed: Mutex::new(None),
        };
        let mut series = Vec::new();
        let mut recoveries = Vec::new();
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.settings.in_flight_max.max(1))
                .map(|index| {
                    let mut lane = Lane::new(&shared, index);
                    scope.spawn(move || lane.run())
                })
                .collect();
            while !lanes.iter().all(|lane| lane.is_finished()) {
                wait_for(&lanes, self.settings.sample_ms);
                let sample = shared.sample();
                series.push(sample);
                if !shared.observe(&sample, &mut recoveries, &mut observe) {
                    shared.stop.store(true, Ordering::Relaxed);
                }
            }
            // Lanes may be done before the first look at them.
            if series.is_empty() {
                series.push(shared.sample());
            }
        });
        if let Some(error) = shared.failed.into_inner() {
            return Err(error);
        }
        let source = shared.source.into_inner();
        Ok(Outcome {
            counts: shared.meter.counts(),
            latencies: shared.meter.latencies(),
            plain_lru: source.plain_lru(),
            facts: source.facts().clone(),
            seconds: shared.start.elapsed().as_secs_f64(),
            recoveries_ms: shared.meter.recoveries_ms(),
            series,
        })
    }
}

fn wait_for(lanes: &[std::thread::ScopedJoinHandle<'_, ()>], sample_ms: u32) {
    let until = now() + Duration::from_millis(sample_ms.max(1).into());
    while !lanes.iter().all(|lane| lane.is_finished()) && now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl<P: Port> Shared<'_, P> {
    fn sample(&self) -> Sample {
        let source = self.source.lock();
        let (references, lru) = (source.facts().references, source.plain_lru());
        drop(source);
        self.meter
            .sample(self.start.elapsed().as_secs_f64(), references, lru)
    }

    fn observe(
        &self,
        sample: &Sample,
        recoveries: &mut Vec<f64>,
        observe: &mut impl FnMut(&Progress<'_>) -> bool,
    ) -> bool {
        let known = std::mem::replace(recoveries, self.meter.recoveries_ms()).len();
        let progress = Progress {
            seconds: sample.seconds,
            counts: self.meter.counts(),
            sample,
            recoveries_ms: &recoveries[known..],
        };
        observe(&progress)
    }

    fn stopped(&self) -> bool {
        let limit = self.replay.settings.seconds;
        let late = limit > 0.0 && self.start.elapsed().as_secs_f64() >= limit;
        late || self.stop.load(Ordering::Relaxed)
    }

    // The next request, when its time has come.
    fn next(&self) -> Result<Option<Request>, Error> {
        if self.stopped() {
            return Ok(None);
        }
        let Some(request) = self.source.lock().next_request()? else {
            return Ok(None);
        };
        let speed = self.replay.settings.speed;
        if speed > 0.0 {
            let due = Duration::from_secs_f64(request.arrival_ms as f64 / 1000.0 / speed);
            while self.start.elapsed() < due {
                if self.stopped() {
                    return Ok(None);
                }
                let left = due.saturating_sub(self.start.elapsed());
                std::thread::sleep(left.min(Duration::from_millis(50)));
            }
        }
        Ok(Some(request))
    }
}

/// One request in flight after the other.
struct Lane<'a, P> {
    shared: &'a Shared<'a, P>,
    /// First of this lane's engine blocks, the same in every rank.
    engine: u32,
    chunk: usize,
    scratch: Vec<u8>,
}

impl<'a, P: Port> Lane<'a, P> {
    fn new(shared: &'a Shared<'a, P>, index: u32) -> Self {
        let chunk = shared.replay.settings.chunk_blocks.max(1);
        Self {
            shared,
            engine: index * chunk,
            chunk: chunk as usize,
            scratch: Vec::new(),
        }
    }

    fn run(&mut self) {
        let served = loop {
            match self.shared.next() {
                Ok(Some(request)) => {
                    if let Err(error) = self.serve(&request) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = served {
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.failed.lock().get_or_insert(error);
        }
    }

    fn serve(&mut self, request: &Request) -> Result<(), Error> {
        let namespace = &self.shared.replay.namespace;
        let key = |id: &u64| BlockKey::derive(namespace, GroupId(0), &id.to_le_bytes());
        let keys: Vec<BlockKey> = request.blocks.iter().map(key).collect();
        let mut restarts = 0;
        let (hits, late) = loop {
            match self.attempt(&keys) {
                Ok(hits) => break hits,
                Err(PortError::Refused(_)) => {
                    self.meter().count(|c| c.refused_requests += 1);
                    break (0, 0);
                }
                Err(PortError::Unavailable(reason)) => self.wait_for_node(reason)?,
                Err(PortError::Stale(_)) if restarts < RESTARTS_MAX => restarts += 1,
                Err(PortError::Stale(reason) | PortError::Fatal(reason)) => {
                    return Err(Error::Node {
                        op: "serving a request",
                        reason,
                    });
                }
            }
            self.meter().count(|c| c.restarted_requests += 1);
            if self.shared.stopped() {
                return Ok(());
            }
        };
        self.meter().count(|c| {
            c.requests += 1;
            c.blocks_referenced += keys.len() as u64;
            c.prefix_hit_blocks += hits as u64;
            c.late_hit_blocks += late as u64;
        });
        Ok(())
    }

    fn meter(&self) -> &'a Meter {
        &self.shared.meter
    }

    fn wait_for_node(&self, reason: String) -> Result<(), Error> {
        let shared = self.shared;
        tracing::debug!(reason, "node unavailable");
        shared.meter.gone(shared.start.elapsed());
        let waited_ms = shared.replay.settings.reconnect_ms_max;
        let port = shared.replay.port;
        port.reconnect(Duration::from_millis(waited_ms))
            .map_err(|e| Error::NodeLost {
                waited_ms,
                reason: e.to_string(),
            })
    }

    // One pass over a request; returns its prefix hits, and how many of them were waited for.
    fn attempt(&mut self, keys: &[BlockKey]) -> Result<(usize, usize), PortError> {
        let port = self.shared.replay.port;
        let started = now();
        let (at_once, mut held) = port.lookup(keys)?;
        self.meter().took(Op::Lookup, started.elapsed());
        if let Some(outage) = self.meter().answered(self.shared.start.elapsed()) {
            tracing::info!(outage_ms = outage.as_millis() as u64, "the node is back");
        }
        let waited = now();
        let came = port.wait(&mut held, keys)?;
        if came > 0 {
            self.meter().took(Op::Wait, waited.elapsed());
        }
        let found = (at_once + came) as usize;
        let loaded = self.load(&keys[..found], &held);
        port.release(held);
        let hits = loaded?;
        self.save(keys, hits)?;
        Ok((hits, hits.saturating_sub(at_once as usize)))
    }

    // Loads and verifies a found prefix, chunk by chunk; returns how many of its blocks are good.
    fn load(&mut self, keys: &[BlockKey], held: &P::Held) -> Result<usize, PortError> {
        let replay = self.shared.replay;
        let mut good = 0;
        for chunk in keys.chunks(self.chunk) {
            let blocks = good as u32..(good + chunk.len()) as u32;
            let mut intact = chunk.len();
            for (r, rank) in replay.ranks.iter().enumerate() {
                let started = now();
                let n = replay
                    .port
                    .load(r as u32, held, blocks.clone(), self.engine)?
                    as usize;
                self.meter().took(Op::Load, started.elapsed());
                self.verify(rank, &chunk[..n.min(chunk.len())]);
                if n < chunk.len() {
                    self.meter().count(|c| c.damaged_blocks += 1);
                }
                intact = intact.min(n);
            }
            good += intact;
            if intact < chunk.len() {
                break;
            }
        }
        Ok(good)
    }

    fn verify(&mut self, rank: &Rank, keys: &[BlockKey]) {
        let mut mismatches = 0;
        for (engine, key) in (self.engine..).zip(keys) {
            if let Some(wrong) = rank.check(key, engine, &mut self.scratch) {
                tracing::error!(%key, offset = wrong.offset, "wrong byte after a load");
                mismatches += 1;
            }
        }
        let bytes = rank.block_bytes() * keys.len() as u64;
        self.meter().count(|c| {
            c.bytes_loaded += bytes;
            c.bytes_verified += bytes;
            c.mismatches += mismatches;
        });
    }

    // Computes and saves what was not found, chunk by chunk.
    fn save(&mut self, keys: &[BlockKey], hits: usize) -> Result<(), PortError> {
        let replay = self.shared.replay;
        let mut parent = hits.checked_sub(1).map(|last| keys[last]);
        for chunk in keys[hits..].chunks(self.chunk) {
            for (r, rank) in replay.ranks.iter().enumerate() {
                for (engine, key) in (self.engine..).zip(chunk) {
                    rank.fill(key, engine, &mut self.scratch);
                }
                let started = now();
                let saved = replay.port.save(r as u32, chunk, parent, self.engine)?;
                self.meter().took(Op::Save, started.elapsed());
                self.meter().count(|c| {
                    c.bytes_saved += rank.block_bytes() * u64::from(saved.written);
                    c.had_blocks += u64::from(saved.had);
                    c.refused_blocks += u64::from(saved.refused);
                });
            }
            parent = chunk.last().copied();
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a replay is a shell: it times calls"
)]
fn now() -> Instant {
    Instant::now()
}
