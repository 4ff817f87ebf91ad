// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The same work through the store: index, headers and checksums on.
//!
//! Depth is what the store has, and it decides how much of that the device has. Who is told that a block is there begins the next fetch, then
//! takes the block and so checks it. The ring alone checks nothing.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pegaflow_ssd::{
    Arena, BlockStore, Buf, Device, Done, Fetched, Get, Key, Put, Settings, SsdStore, Ticket,
    cpu_time_us,
};
use serde_json::json;

use crate::{Bench, Figures, Job, Op, raw};

fn open(job: &Job<'_>, format: bool) -> SsdStore {
    let settings = Settings {
        format,
        ..small_segments(job.bytes)
    };
    SsdStore::open(settings, &[Device::existing(job.path)]).expect("a store can be made")
}

fn small_segments(bytes: u64) -> Settings {
    // A quick run has a small file.
    let segment_bytes = if bytes < 1 << 30 { 16 << 20 } else { 64 << 20 };
    Settings {
        segment_bytes,
        ..Settings::default()
    }
}

fn key(n: u64) -> Key {
    Key::from(u128::from(n))
}

fn arena(store: &SsdStore, job: &Job<'_>) -> Arc<Arena> {
    let arena = Arena::new(job.block_bytes as usize, job.depth as usize + 1).expect("memory");
    store.register(&arena.region());
    arena
}

/// Writes, into a new store.
pub(crate) fn write(job: &Job<'_>) -> Figures {
    let store = open(job, true);
    let arena = arena(&store, job);
    drive(job, &arena, |n, buf| {
        store.put(Put::new(key(n), buf)).expect("room")
    })
}

/// Makes the store that [`read`] reads, once: what is still being written inside the drive would slow down whoever comes next. Returns how
/// many blocks it has.
pub(crate) fn prepare(job: &Job<'_>) -> u64 {
    let store = open(job, true);
    fill(job, &store, &arena(&store, job))
}

/// Reads any of so many blocks.
pub(crate) fn read(job: &Job<'_>, blocks: u64) -> Figures {
    let store = open(job, false);
    let arena = arena(&store, job);
    let mut random = 88172645463325252u64;
    drive(job, &arena, |_, buf| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        store
            .get(Get::new(key(random % blocks), buf))
            .expect("room")
    })
}

// Half the device, at most half a GiB.
fn fill(job: &Job<'_>, store: &SsdStore, arena: &Arc<Arena>) -> u64 {
    let blocks = (job.bytes / 2).min(512 << 20) / job.block_bytes;
    let mut waiting: VecDeque<Ticket<_>> = VecDeque::new();
    for n in 0..blocks {
        let buf = match waiting.len() as u64 == job.depth {
            true => wait(&mut waiting),
            false => arena.take(job.block_bytes as usize).expect("one for each"),
        };
        waiting.push_back(store.put(Put::new(key(n), buf)).expect("room"));
    }
    while !waiting.is_empty() {
        wait(&mut waiting);
    }
    blocks
}

fn wait<T>(waiting: &mut VecDeque<Ticket<T>>) -> Buf {
    let mut done: Done<T> = waiting.pop_front().expect("some wait").wait();
    done.result.expect("the device works");
    done.bufs.pop().expect("it comes back")
}

/// Requests under way, taken in the order in which they end: as the bare ring does it.
struct Pending<T> {
    slots: Vec<Option<(Instant, Ticket<T>)>>,
    wakers: Vec<Waker>,
    ended: mpsc::Receiver<usize>,
    at_once: VecDeque<(usize, Instant, Done<T>)>,
}

/// Says which slot has ended.
struct Ended(usize, mpsc::Sender<usize>);

impl Wake for Ended {
    fn wake(self: Arc<Self>) {
        // Nobody listens any more at the very end.
        let _ = self.1.send(self.0);
    }
}

impl<T> Pending<T> {
    fn new(depth: u64) -> Self {
        let (tell, ended) = mpsc::channel();
        let waker = |i: u64| Waker::from(Arc::new(Ended(i as usize, tell.clone())));
        // One more: a finished one may still be checked when the next begins.
        Self {
            slots: (0..=depth).map(|_| None).collect(),
            wakers: (0..=depth).map(waker).collect(),
            ended,
            at_once: VecDeque::new(),
        }
    }

    fn start(&mut self, slot: usize, since: Instant, ticket: Ticket<T>) {
        self.slots[slot] = Some((since, ticket));
        if let Some(done) = self.poll(slot) {
            self.at_once.push_back(done);
        }
    }

    fn poll(&mut self, slot: usize) -> Option<(usize, Instant, Done<T>)> {
        let (since, ticket) = self.slots[slot].as_mut()?;
        let since = *since;
        match Pin::new(ticket).poll(&mut Context::from_waker(&self.wakers[slot])) {
            Poll::Ready(done) => {
                self.slots[slot] = None;
                Some((slot, since, done))
            }
            Poll::Pending => None,
        }
    }

    /// Waits for the next whose answer is there.
    fn next(&mut self) -> usize {
        match self.at_once.front() {
            Some((slot, ..)) => *slot,
            None => self.ended.recv().expect("the wakers hold senders"),
        }
    }

    /// Takes its answer: a fetched block is checked here.
    fn take(&mut self, slot: usize) -> (Instant, Done<T>) {
        let at_once = self.at_once.iter().position(|(s, ..)| *s == slot);
        let done = match at_once {
            Some(i) => self.at_once.remove(i),
            None => self.poll(slot),
        };
        let (_, since, done) = done.expect("its waker was called");
        (since, done)
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn drive<T: std::fmt::Debug>(
    job: &Job<'_>,
    arena: &Arc<Arena>,
    mut start_one: impl FnMut(u64, Buf) -> Ticket<T>,
) -> Figures {
    let mut pending = Pending::new(job.depth);
    let (mut us, mut ops) = (Vec::with_capacity(1 << 20), 0u64);
    for n in 0..job.depth {
        let mut buf = arena.take(job.block_bytes as usize).expect("one for each");
        buf.fill(n as u8 + 1);
        pending.start(n as usize, Instant::now(), start_one(n, buf));
    }
    let (mut start, mut cpu, mut ramp) = (Instant::now(), cpu_time_us(), job.ramp);
    let (mut all, mut free) = (0, job.depth as usize);
    let mut spare = arena.take(job.block_bytes as usize);
    while start.elapsed() < job.time + ramp {
        if !ramp.is_zero() && start.elapsed() >= ramp {
            (start, cpu, ramp, ops) = (Instant::now(), cpu_time_us(), Duration::ZERO, 0);
            us.clear();
        }
        let slot = pending.next();
        let mut next = spare.take();
        if job.op != Op::Write {
            // The device need not wait until the bytes that it brought are checked.
            let buf = next.take().expect("one is spare");
            pending.start(free, Instant::now(), start_one(job.depth + all, buf));
        }
        let (since, mut done) = pending.take(slot);
        us.push(since.elapsed().as_micros() as u32);
        done.result.expect("the device works");
        let mut buf = done.bufs.pop().expect("it comes back");
        buf.set_len(job.block_bytes as usize);
        spare = Some(buf);
        if let Some(buf) = next {
            pending.start(free, Instant::now(), start_one(job.depth + all, buf));
        }
        (free, ops, all) = (slot, ops + 1, all + 1);
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_time_us() - cpu;
    for (_, ticket) in pending.slots.into_iter().flatten() {
        let _ = ticket.wait();
    }
    Figures::new(ops, ops * job.block_bytes, seconds, cpu, &mut us)
}

/// Reads at half the drive's speed, alone and while writes fill the rest. The floor is the p99 alone.
pub(crate) fn mixed(bench: &Bench) {
    let job = bench.job(Op::RandRead, 256 << 10, 16);
    let full = raw::run(&job);
    let pause = Duration::from_secs_f64(2.0 / full.ops_per_s);
    let store = open(&job, true);
    let arena = arena(&store, &job);
    let blocks = fill(&job, &store, &arena);
    // What is written meanwhile would reclaim them, and a miss is fast.
    for n in 0..blocks {
        assert_eq!(store.pin(key(n), true), Ok(true), "block {n}");
    }
    let time = bench.time * 3;
    let alone = paced(&store, &arena, &job, blocks, pause, time);
    let stop = AtomicBool::new(false);
    let mut written = 0.0;
    let beside = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&store, blocks, &stop));
        // The first second is for the budgets to find their place.
        paced(&store, &arena, &job, blocks, pause, bench.time);
        let figures = paced(&store, &arena, &job, blocks, pause, time);
        stop.store(true, Ordering::Relaxed);
        written = writer.join().expect("the writer works");
        figures
    });
    let line = json!({
        "bench": "ssd",
        "settings": {"op": "store_mixed", "block_bytes": job.block_bytes, "depth": job.depth, "direct": true},
        "machine": crate::machine(bench),
        "gb_per_s": beside.gb_per_s,
        "ops_per_s": beside.ops_per_s,
        "p50_us": beside.p50_us,
        "p99_us": beside.p99_us,
        "p999_us": beside.p999_us,
        "floor": {"what": "the same reads alone (p99)", "gb_per_s": alone.gb_per_s, "us": alone.p99_us},
        "floor_share": alone.p99_us / beside.p99_us,
        "write_gb_per_s": written,
    });
    println!("{line}");
    eprintln!(
        "store_mixed: reads {:.3} GB/s p99 {:.0} us beside {written:.3} GB/s of writes; alone {:.3} GB/s p99 {:.0} us",
        beside.gb_per_s, beside.p99_us, alone.gb_per_s, alone.p99_us
    );
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn write_until(store: &SsdStore, from: u64, stop: &AtomicBool) -> f64 {
    let (start, mut n) = (Instant::now(), from);
    let mut waiting = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let buf = match waiting.len() {
            16 => wait(&mut waiting),
            _ => Buf::copy_of(&vec![7; 1 << 20]),
        };
        n += 1;
        waiting.push_back(store.put(Put::new(key(n), buf)).expect("room"));
    }
    while !waiting.is_empty() {
        wait(&mut waiting);
    }
    ((n - from) << 20) as f64 / start.elapsed().as_secs_f64() / 1e9
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn paced(
    store: &SsdStore,
    arena: &Arc<Arena>,
    job: &Job<'_>,
    blocks: u64,
    pause: Duration,
    time: Duration,
) -> Figures {
    let (mut us, mut ops, mut random) = (Vec::new(), 0u64, 88172645463325252u64);
    let mut waiting: VecDeque<(Instant, Ticket<Fetched>)> = VecDeque::new();
    let (start, cpu) = (Instant::now(), cpu_time_us());
    while start.elapsed() < time {
        while let Some((since, ticket)) = waiting.pop_front() {
            let full = waiting.len() as u64 + 1 >= job.depth;
            let done = match full {
                true => Ok(ticket.wait()),
                false => ticket.wait_for(Duration::ZERO),
            };
            match done {
                Ok(done) => {
                    let result = done.result.expect("the device works");
                    assert!(matches!(result, Fetched::Hit { .. }), "pinned");
                    us.push(since.elapsed().as_micros() as u32);
                    ops += 1;
                }
                Err(ticket) => {
                    waiting.push_front((since, ticket));
                    break;
                }
            }
        }
        let due = start + pause * (ops as u32 + waiting.len() as u32);
        let now = Instant::now();
        if now < due {
            std::thread::sleep((due - now).min(Duration::from_micros(100)));
            continue;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let buf = arena.take(job.block_bytes as usize).expect("one for each");
        let get = Get::new(key(random % blocks), buf);
        waiting.push_back((Instant::now(), store.get(get).expect("room")));
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_time_us() - cpu);
    for (_, ticket) in waiting {
        let _ = ticket.wait();
    }
    Figures::new(ops, ops * job.block_bytes, seconds, cpu, &mut us)
}
