// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The shell around one device's log: takes blocks, drives the log and starts what it asks for.
//!
//! Whoever has something for a lane runs it, a caller with a block as well as the device's thread with an answer: handing it to another
//! thread costs more than the work. One at a time: who finds the lane taken leaves what it has in the inbox, and who has the lane looks
//! there before it goes. A thread of its own keeps the time and closes.

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

/// How often a lane's own thread looks at deadlines, and runs the lane in case there is something to do.
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
}

/// One device of a store.
pub(super) struct Member {
    pub(super) log: Mutex<Log>,
    pub(super) guard: Guard,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) lane: Mutex<Lane>,
    /// Told when the lane must close, and of everything that happens from then on.
    pub(super) wake: Condvar,
    pub(super) counters: Arc<Counters>,
    pub(super) staging: Arc<Arena>,
    pub(super) copy_below_bytes: u64,
    pub(super) write_inflight_bytes_max: u64,
}

impl Member {
    /// Leaves something for the lane, and runs it.
    pub(super) fn leave(self: &Arc<Self>, leave: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.inbox.lock();
        leave(&mut inbox);
        let closing = inbox.closing;
        drop(inbox);
        match closing {
            true => drop(self.wake.notify_one()),
            false => self.drive(),
        }
    }

    /// Runs the lane until its inbox is empty, unless another thread does.
    pub(super) fn drive(self: &Arc<Self>) {
        while let Some(mut lane) = self.lane.try_lock() {
            lane.turn(self);
            drop(lane);
            // What was left since found the lane taken.
            if self.inbox.lock().is_empty() {
                return;
            }
        }
    }
}

/// What only the thread that has the lane touches.
#[derive(Default)]
pub(super) struct Lane {
    queue: VecDeque<NewRecord>,
    bodies: HashMap<PutId, Body>,
    queue_bytes: u64,
    batches: usize,
    inflight_bytes: u64,
}

/// The lane's own thread. `first`: what the log wants done to begin with.
pub(super) fn run(member: &Arc<Member>, first: Vec<Effect>) {
    member.lane.lock().perform(member, first);
    let mut closing = false;
    loop {
        let mut inbox = member.inbox.lock();
        let news = inbox.closing && (!closing || !inbox.is_empty());
        if !news {
            member.wake.wait_for(&mut inbox, TICK);
        }
        closing = inbox.closing;
        drop(inbox);
        member.guard.expire();
        let mut lane = member.lane.lock();
        lane.turn(member);
        if closing && lane.close(member) {
            return;
        }
        drop(lane);
        member.drive();
    }
}

impl Lane {
    fn turn(&mut self, member: &Arc<Member>) {
        let (incoming, events) = member.inbox.lock().take();
        let mut effects = Vec::new();
        let now_s = unix_s();
        if !events.is_empty() {
            let mut log = member.log.lock();
            for event in events {
                self.handle(event, now_s, &mut log, &mut effects);
            }
        }
        for i in incoming {
            self.take(i);
        }
        while self.may_begin(member) {
            let taken = self.append(member, now_s, &mut effects);
            self.perform(member, std::mem::take(&mut effects));
            if taken == 0 {
                break;
            }
        }
        self.perform(member, effects);
        self.refuse_if_full(member);
    }

    fn take(&mut self, incoming: Incoming) {
        let Incoming { record, body } = incoming;
        self.queue_bytes += body.bytes;
        self.bodies.insert(record.put, body);
        self.queue.push_back(record);
    }

    fn may_begin(&self, member: &Member) -> bool {
        !self.queue.is_empty()
            && self.inflight_bytes < member.write_inflight_bytes_max * 2
            && (self.batches < BATCHES_FEW || self.queue_bytes >= BATCH_WORTH_BYTES)
    }

    fn append(&mut self, member: &Member, now_s: u64, effects: &mut Vec<Effect>) -> usize {
        self.drop_cancelled(member);
        let keys: Vec<(Key, u32)> = self
            .queue
            .iter()
            .take(2048)
            .map(|r| (r.key, r.bytes))
            .collect();
        let taken = member.log.lock().append(now_s, &mut self.queue, effects);
        let mut inbox = member.inbox.lock();
        for (key, bytes) in &keys[..taken.min(keys.len())] {
            self.queue_bytes -= u64::from(*bytes);
            inbox.forget(key);
        }
        inbox.queued_bytes = self.queue_bytes;
        taken
    }

    fn drop_cancelled(&mut self, member: &Member) {
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
            self.refuse_first(member, Error::Cancelled);
        }
    }

    fn refuse_first(&mut self, member: &Member, error: Error) {
        let Some(record) = self.queue.pop_front() else {
            return;
        };
        self.queue_bytes -= u64::from(record.bytes);
        member.inbox.lock().forget(&record.key);
        self.answer(member, record.put, Err(error));
    }

    fn refuse_if_full(&mut self, member: &Member) {
        let why = match (self.queue.is_empty(), self.batches) {
            (false, 0) if member.log.lock().full() => "all that is left is pinned or failed",
            _ => return,
        };
        while !self.queue.is_empty() {
            self.refuse_first(member, Error::Full(why));
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

    fn perform(&mut self, member: &Arc<Member>, effects: Vec<Effect>) {
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
                    self.inflight_bytes += write::batch(member, io, at, header, bodies);
                }
                Effect::WritePages { io, parts } => write::pages_of_log(member, io, parts),
                Effect::Flush { io } => write::flush(member, io),
                Effect::Move { put, from } => super::read::for_move(member, put, from),
                Effect::Done { put, result } => self.answer(member, put, result),
            }
        }
    }

    fn answer(&mut self, member: &Member, put: PutId, result: Result<()>) {
        let Some(body) = self.bodies.remove(&put) else {
            return;
        };
        let counters = &member.counters;
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
    fn close(&mut self, member: &Arc<Member>) -> bool {
        let mut effects = Vec::new();
        let mut log = member.log.lock();
        if self.queue.is_empty() && self.batches == 0 {
            log.close_open(unix_s(), &mut effects);
        }
        let rest = effects.is_empty() && self.queue.is_empty() && log.idle();
        drop(log);
        self.perform(member, effects);
        rest && member.inbox.lock().is_empty()
    }
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.incoming.is_empty() && self.events.is_empty()
    }

    fn take(&mut self) -> (Vec<Incoming>, Vec<Event>) {
        (
            std::mem::take(&mut self.incoming),
            std::mem::take(&mut self.events),
        )
    }

    fn forget(&mut self, key: &Key) {
        if let Some(n) = self.keys.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                self.keys.remove(key);
            }
        }
    }
}
