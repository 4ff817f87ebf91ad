// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which transfer goes to the device next. Pure: told of arrivals and ends, it reads no clock.
//!
//! Reads go first and have a budget of their own, so they never wait behind writes; it moves with what the device makes of them. Writes fill
//! the rest: their budget shrinks while reads take longer than their target and grows back when they do not.

use std::collections::VecDeque;

use super::inflight::Inflight;
use crate::error::IoKind;
use crate::settings::IoSettings;

/// Reads judged together.
const WINDOW: usize = 64;
/// Writes never shrink below this many bytes in flight, so they always progress.
const WRITE_FLOOR_BYTES: u64 = 256 << 10;

#[derive(Debug)]
struct Lane<T> {
    queue: VecDeque<(T, u64)>,
    queued_bytes: u64,
    ops: u64,
    bytes: u64,
    ops_max: u64,
}

impl<T> Lane<T> {
    fn new(ops_max: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            ops: 0,
            bytes: 0,
            ops_max: ops_max.into(),
        }
    }

    /// The first, if `admits` says so of its bytes, and of the transfers and bytes that are out.
    fn pop(&mut self, admits: impl Fn(u64, u64, u64) -> bool) -> Option<T> {
        let (_, bytes) = self.queue.front()?;
        if self.ops >= self.ops_max || !admits(*bytes, self.ops, self.bytes) {
            return None;
        }
        let (item, bytes) = self.queue.pop_front()?;
        self.queued_bytes -= bytes;
        self.ops += 1;
        self.bytes += bytes;
        Some(item)
    }
}

/// The queue before one device.
#[derive(Debug)]
pub struct Scheduler<T> {
    reads: Lane<T>,
    writes: Lane<T>,
    read_limit: Inflight,
    control: Control,
}

impl<T> Scheduler<T> {
    /// An empty queue with the budgets of `settings`.
    pub fn new(settings: &IoSettings) -> Self {
        Self {
            reads: Lane::new(settings.read_ops_max),
            writes: Lane::new(settings.write_ops_max),
            read_limit: Inflight::new(settings.read_inflight_bytes_max),
            control: Control::new(settings),
        }
    }

    /// Takes a transfer into the queue.
    pub fn push(&mut self, kind: IoKind, bytes: u64, item: T) {
        let lane = match kind {
            IoKind::Read => &mut self.reads,
            IoKind::Write | IoKind::Flush => &mut self.writes,
        };
        lane.queued_bytes += bytes;
        lane.queue.push_back((item, bytes));
    }

    /// The transfer to start now, if the budgets allow one.
    pub fn pop(&mut self) -> Option<T> {
        let limit = &self.read_limit;
        let reads = |bytes, ops, out| limit.admits(bytes, ops, out);
        if let Some(read) = self.reads.pop(reads) {
            self.control.quiet_writes = 0;
            return Some(read);
        }
        let bytes_max = self.control.write_bytes;
        self.writes
            .pop(|bytes, ops, out| ops == 0 || out + bytes <= bytes_max)
    }

    /// Takes the first queued transfer that matches out again.
    pub fn take(&mut self, matches: impl Fn(&T) -> bool) -> Option<T> {
        for lane in [&mut self.reads, &mut self.writes] {
            if let Some(i) = lane.queue.iter().position(|(item, _)| matches(item)) {
                let (item, bytes) = lane.queue.remove(i)?;
                lane.queued_bytes -= bytes;
                return Some(item);
            }
        }
        None
    }

    /// Everything still queued, in order.
    pub fn drain(&mut self) -> Vec<T> {
        let mut all = Vec::new();
        for lane in [&mut self.reads, &mut self.writes] {
            lane.queued_bytes = 0;
            all.extend(lane.queue.drain(..).map(|(item, _)| item));
        }
        all
    }

    /// A started transfer is over; `us` is how long the device had it.
    pub fn done(&mut self, kind: IoKind, bytes: u64, us: u64) {
        let writes_out = self.writes.ops > 0;
        let lane = match kind {
            IoKind::Read => {
                self.control.read_done(us, writes_out);
                let waiting = !self.reads.queue.is_empty();
                self.read_limit.done(bytes, us, self.reads.bytes, waiting);
                &mut self.reads
            }
            IoKind::Write | IoKind::Flush => {
                self.control.write_done(bytes, self.reads.ops > 0);
                &mut self.writes
            }
        };
        lane.ops -= 1;
        lane.bytes -= bytes;
    }

    /// What waits and what is out.
    pub fn load(&self) -> super::DiskLoad {
        super::DiskLoad {
            queued: (self.reads.queue.len() + self.writes.queue.len()) as u64,
            queued_bytes: self.reads.queued_bytes + self.writes.queued_bytes,
            inflight: self.reads.ops + self.writes.ops,
            inflight_bytes: self.reads.bytes + self.writes.bytes,
            read_limit_bytes: self.read_limit.bytes(),
            write_limit_bytes: self.control.write_bytes,
        }
    }
}

/// How many bytes of writes may be out, by the latency of reads.
#[derive(Debug)]
struct Control {
    write_bytes: u64,
    write_bytes_max: u64,
    target_us: u64,
    alone_us: u64,
    window: Vec<u64>,
    beside_writes: usize,
    quiet_writes: u64,
}

impl Control {
    fn new(settings: &IoSettings) -> Self {
        Self {
            write_bytes: settings.write_inflight_bytes_max,
            write_bytes_max: settings.write_inflight_bytes_max,
            target_us: settings.read_p99_target_us.into(),
            alone_us: 0,
            window: Vec::with_capacity(WINDOW),
            beside_writes: 0,
            quiet_writes: 0,
        }
    }

    fn read_done(&mut self, us: u64, writes_out: bool) {
        self.window.push(us);
        self.beside_writes += usize::from(writes_out);
        if self.window.len() < WINDOW {
            return;
        }
        self.window.sort_unstable();
        // The second largest of 64: one outlier in a window is not a trend.
        let high = self.window[WINDOW - 2];
        let beside = std::mem::take(&mut self.beside_writes);
        self.window.clear();
        if beside == 0 {
            self.alone_us = match self.alone_us {
                0 => high,
                old => (old * 7 + high) / 8,
            };
        } else if beside > WINDOW / 4 {
            self.steer(high);
        }
    }

    fn steer(&mut self, high: u64) {
        let target = match (self.target_us, self.alone_us) {
            (0, 0) => return,
            // Aim well below the promise of twice: what is steered by swings around its aim.
            (0, alone) => alone * 5 / 4,
            (target, _) => target,
        };
        self.write_bytes = if high > target {
            (self.write_bytes * 3 / 4).max(WRITE_FLOOR_BYTES)
        } else {
            (self.write_bytes + self.write_bytes / 16).min(self.write_bytes_max)
        };
    }

    // With no reads about, writes get their whole budget back soon.
    fn write_done(&mut self, bytes: u64, reads_out: bool) {
        self.quiet_writes = if reads_out {
            0
        } else {
            self.quiet_writes + bytes
        };
        if self.quiet_writes > 16 << 20 {
            self.write_bytes = self.write_bytes_max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> IoSettings {
        IoSettings {
            read_ops_max: 2,
            read_inflight_bytes_max: 10_000,
            write_ops_max: 4,
            write_inflight_bytes_max: 8 << 20,
            ..IoSettings::default()
        }
    }

    #[test]
    fn reads_pass_writes_and_each_keeps_to_its_budget() {
        let mut s = Scheduler::new(&settings());
        for i in 0..6 {
            s.push(IoKind::Write, 1 << 20, format!("w{i}"));
        }
        for i in 0..3 {
            s.push(IoKind::Read, 4096, format!("r{i}"));
        }
        let started: Vec<_> = std::iter::from_fn(|| s.pop()).collect();
        assert_eq!(started, ["r0", "r1", "w0", "w1", "w2", "w3"]);
        s.done(IoKind::Read, 4096, 1);
        assert_eq!(s.pop().as_deref(), Some("r2"));
        assert_eq!(s.take(|x| x == "w5").as_deref(), Some("w5"));
        assert_eq!(s.drain(), ["w4"]);
        assert_eq!((s.load().queued_bytes, s.load().inflight), (0, 6));
    }

    #[test]
    fn one_transfer_larger_than_the_budget_still_goes() {
        let mut s = Scheduler::new(&settings());
        s.push(IoKind::Read, 1 << 30, 1);
        s.push(IoKind::Read, 1, 2);
        assert_eq!((s.pop(), s.pop()), (Some(1), None));
    }

    #[test]
    fn writes_shrink_while_reads_are_slow_and_grow_back() {
        let mut c = Control::new(&settings());
        for _ in 0..WINDOW {
            c.read_done(100, false);
        }
        for _ in 0..WINDOW * 40 {
            c.read_done(1000, true);
        }
        assert_eq!(c.write_bytes, WRITE_FLOOR_BYTES);
        for _ in 0..WINDOW * 200 {
            c.read_done(120, true);
        }
        assert_eq!(c.write_bytes, c.write_bytes_max);
    }

    #[test]
    fn writes_without_reads_get_everything() {
        let mut c = Control::new(&settings());
        c.write_bytes = WRITE_FLOOR_BYTES;
        c.write_done(17 << 20, true);
        assert_eq!(c.write_bytes, WRITE_FLOOR_BYTES);
        c.write_done(17 << 20, false);
        assert_eq!(c.write_bytes, c.write_bytes_max);
    }
}
