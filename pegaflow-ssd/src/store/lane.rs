// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The shell around one device's log: a thread that takes blocks, drives the log and starts what it asks for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::ticket::Promise;
use super::{Stored, write};
use crate::clock::{monotonic_us, unix_s};
use crate::disk::Guard;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::log::{Effect, IoId, Log, NewRecord, PutId};
use crate::metrics::{Counters, count};
use crate::sys::{Arena, Buf};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Batches under way below which a new one is begun however small.
const BATCHES_FEW: usize = 4;
/// Bytes waiting from which on a new batch is worth it at any time.
const BATCH_WORTH_BYTES: u64 = 128 << 10;

/// Who waits for a record.
pub(super) enum Waits {
    Put(Promise<Stored>),
    Removed(Promise<bool>),
    Nobody,
}

/// A record's bytes and who waits for it.
pub(super) struct Body {
    pub(super) bufs: Vec<Buf>,
    pub(super) waits: Waits,
    pub(super) bytes: u64,
    pub(super) since_us: u64,
}

/// A block on its way into the log.
pub(super) struct Incoming {
    pub(super) record: NewRecord,
    pub(super) body: Body,
}

/// What became of something the log asked for.
pub(super) enum Event {
    Batch {
        io: IoId,
        header: Result<()>,
        failed: Vec<(PutId, Error)>,
        bufs: Vec<(PutId, Vec<Buf>)>,
        bytes: u64,
    },
    Pages {
        io: IoId,
        result: Result<()>,
    },
    Flush {
        io: IoId,
        result: Result<()>,
    },
    Moved {
        put: PutId,
        buf: Buf,
        result: Result<Vec<u8>>,
    },
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) incoming: Vec<Incoming>,
    pub(super) events: Vec<Event>,
    /// Keys on their way into the log.
    pub(super) keys: HashMap<Key, u32>,
    pub(super) queued_bytes: u64,
    pub(super) closing: bool,
    pub(super) closed: bool,
}

/// One device of a store.
pub(super) struct Member {
    pub(super) log: Mutex<Log>,
    pub(super) guard: Guard,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) wake: Condvar,
    pub(super) counters: Arc<Counters>,
    pub(super) staging: Arc<Arena>,
    pub(super) copy_below_bytes: u64,
    pub(super) write_inflight_bytes_max: u64,
}

impl Member {
    /// Leaves something for the lane's thread.
    pub(super) fn leave(&self, leave: impl FnOnce(&mut Inbox)) {
        leave(&mut self.inbox.lock());
        self.wake.notify_one();
    }
}

/// What only the lane's thread touches.
struct Lane {
    member: Arc<Member>,
    queue: VecDeque<NewRecord>,
    bodies: HashMap<PutId, Body>,
    queue_bytes: u64,
    batches: usize,
    inflight_bytes: u64,
    closing: bool,
}

/// The lane's thread. `first`: what the log wants done to begin with.
pub(super) fn run(member: Arc<Member>, first: Vec<Effect>) {
    let mut lane = Lane {
        member,
        queue: VecDeque::new(),
        bodies: HashMap::new(),
        queue_bytes: 0,
        batches: 0,
        inflight_bytes: 0,
        closing: false,
    };
    lane.perform(first);
    while lane.turn() {}
}

impl Lane {
    fn turn(&mut self) -> bool {
        let (incoming, events) = self.wait();
        let mut effects = Vec::new();
        let log = &self.member.clone().log;
        let now_s = unix_s();
        for event in events {
            self.handle(event, now_s, &mut log.lock(), &mut effects);
        }
        for i in incoming {
            self.take(i);
        }
        while self.may_begin() {
            let taken = self.append(now_s, &mut log.lock(), &mut effects);
            self.perform(std::mem::take(&mut effects));
            if taken == 0 {
                break;
            }
        }
        self.perform(effects);
        self.refuse_if_full();
        self.member.guard.expire();
        !self.closing || !self.close()
    }

    fn wait(&mut self) -> (Vec<Incoming>, Vec<Event>) {
        let member = self.member.clone();
        let mut inbox = member.inbox.lock();
        let told_to_close = inbox.closing && !self.closing;
        if inbox.incoming.is_empty() && inbox.events.is_empty() && !told_to_close {
            member.wake.wait_for(&mut inbox, TICK);
        }
        self.closing = inbox.closing;
        (
            std::mem::take(&mut inbox.incoming),
            std::mem::take(&mut inbox.events),
        )
    }

    fn take(&mut self, incoming: Incoming) {
        let Incoming { record, body } = incoming;
        self.queue_bytes += body.bytes;
        self.bodies.insert(record.put, body);
        self.queue.push_back(record);
    }

    fn may_begin(&self) -> bool {
        !self.queue.is_empty()
            && self.inflight_bytes < self.member.write_inflight_bytes_max * 2
            && (self.batches < BATCHES_FEW || self.queue_bytes >= BATCH_WORTH_BYTES)
    }

    fn append(&mut self, now_s: u64, log: &mut Log, effects: &mut Vec<Effect>) -> usize {
        self.drop_cancelled();
        let keys: Vec<(Key, u32)> = self
            .queue
            .iter()
            .take(2048)
            .map(|r| (r.key, r.bytes))
            .collect();
        let taken = log.append(now_s, &mut self.queue, effects);
        let mut inbox = self.member.inbox.lock();
        for (key, bytes) in &keys[..taken.min(keys.len())] {
            self.queue_bytes -= u64::from(*bytes);
            inbox.forget(key);
        }
        inbox.queued_bytes = self.queue_bytes;
        taken
    }

    fn drop_cancelled(&mut self) {
        while let Some(first) = self.queue.front() {
            let body = self.bodies.get(&first.put);
            let back = body.is_some_and(|b| match &b.waits {
                Waits::Put(promise) => promise.cancelled(),
                Waits::Removed(promise) => promise.cancelled(),
                Waits::Nobody => false,
            });
            if !back {
                return;
            }
            self.refuse_first(Error::Cancelled);
        }
    }

    fn refuse_first(&mut self, error: Error) {
        let Some(record) = self.queue.pop_front() else {
            return;
        };
        self.queue_bytes -= u64::from(record.bytes);
        self.member.inbox.lock().forget(&record.key);
        self.answer(record.put, Err(error));
    }

    fn refuse_if_full(&mut self) {
        let why = match (self.queue.is_empty(), self.batches) {
            (false, 0) if self.member.log.lock().full() => "all that is left is pinned or failed",
            _ => return,
        };
        while !self.queue.is_empty() {
            self.refuse_first(Error::Full(why));
        }
    }

    fn handle(&mut self, event: Event, now_s: u64, log: &mut Log, effects: &mut Vec<Effect>) {
        match event {
            Event::Batch {
                io,
                header,
                failed,
                bufs,
                bytes,
            } => {
                self.batches -= 1;
                self.inflight_bytes -= bytes;
                for (put, bufs) in bufs {
                    if let Some(body) = self.bodies.get_mut(&put) {
                        body.bufs = bufs;
                    }
                }
                log.batch_done(now_s, io, header, &failed, effects);
            }
            Event::Pages { io, result } => log.pages_done(now_s, io, result, effects),
            Event::Flush { io, result } => log.flush_done(now_s, io, result, effects),
            Event::Moved { put, buf, result } => {
                let body = Body {
                    bufs: vec![buf],
                    waits: Waits::Nobody,
                    bytes: 0,
                    since_us: 0,
                };
                self.bodies.insert(put, body);
                log.move_ready(now_s, put, result, effects);
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::WriteBatch {
                    io,
                    at,
                    header,
                    parts,
                } => {
                    let bodies = parts.iter().map(|(put, bytes)| {
                        let body = self.bodies.get_mut(put);
                        let bufs = body.map_or(Vec::new(), |b| std::mem::take(&mut b.bufs));
                        (*put, *bytes, bufs)
                    });
                    let bodies = bodies.collect();
                    self.batches += 1;
                    self.inflight_bytes += write::batch(&self.member, io, at, header, bodies);
                }
                Effect::WritePages { io, parts } => write::pages_of_log(&self.member, io, parts),
                Effect::Flush { io } => write::flush(&self.member, io),
                Effect::Move { put, from } => super::read::for_move(&self.member, put, from),
                Effect::Done { put, result } => self.answer(put, result),
            }
        }
    }

    fn answer(&mut self, put: PutId, result: Result<()>) {
        let Some(body) = self.bodies.remove(&put) else {
            return;
        };
        let counters = &self.member.counters;
        counters
            .write_queue_bytes
            .fetch_sub(body.bytes, std::sync::atomic::Ordering::Relaxed);
        if result.is_err() && !put.internal() {
            count(&counters.failed, 1);
        }
        match body.waits {
            Waits::Put(promise) => {
                counters.put_us.record(monotonic_us() - body.since_us);
                promise.keep(body.bufs, result.map(|()| Stored::Stored));
            }
            Waits::Removed(promise) => promise.keep(Vec::new(), result.map(|()| true)),
            Waits::Nobody => {}
        }
    }

    /// Whether everything is at rest and the thread may end.
    fn close(&mut self) -> bool {
        let mut effects = Vec::new();
        if self.queue.is_empty() && self.batches == 0 {
            self.member.log.lock().close_open(unix_s(), &mut effects);
        }
        let rest = effects.is_empty() && self.queue.is_empty() && self.member.log.lock().idle();
        self.perform(effects);
        let mut inbox = self.member.inbox.lock();
        let rest = rest && inbox.incoming.is_empty() && inbox.events.is_empty();
        inbox.closed |= rest;
        rest
    }
}

impl Inbox {
    fn forget(&mut self, key: &Key) {
        if let Some(n) = self.keys.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                self.keys.remove(key);
            }
        }
    }
}
