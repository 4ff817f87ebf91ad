// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The store itself: takes requests, hands them to the right device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::lane::{Body, Incoming, Member, Waits};
use super::read::{Fetch, Wanted, lay_out};
use super::ticket::promise;
use super::{BlockInfo, BlockStore, Fetched, Get, Put, Refused, Stored, Ticket};
use crate::admission::AdmissionPolicy;
use crate::clock::{monotonic_us, unix_s};
use crate::error::{Error, IoKind, Result};
use crate::format::{META_BYTES_MAX, checksum_of};
use crate::key::Key;
use crate::log::{Location, NewRecord, PutId, RecordKind};
use crate::metrics::{Counters, DeviceStats, Dropped, Stats, count};
use crate::reclaim::ReclaimPolicy;
use crate::recover::RecoveryReport;
use crate::settings::Settings;
use crate::sys::{Buf, Region};

/// How often, and how long each time, a closing store waits for its devices' threads to let go of it.
const LEAVE_TRIES_MAX: u32 = 20_000;
const LEAVE_WAIT: Duration = Duration::from_micros(100);

/// A store over one or several devices. Closes when dropped: what was taken is written, and the next opening is fast.
pub struct SsdStore {
    pub(super) members: Vec<Arc<Member>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) settings: Settings,
    pub(super) admission: Mutex<Box<dyn AdmissionPolicy>>,
    pub(super) counters: Arc<Counters>,
    /// Held while a key's device is chosen, so that two writers of a new key agree.
    pub(super) choosing: Mutex<()>,
    pub(super) next_put: AtomicU64,
    pub(super) reports: Vec<RecoveryReport>,
    pub(super) block_bytes_max: u64,
}

impl SsdStore {
    /// What opening found, for each device.
    pub fn recovery(&self) -> &[RecoveryReport] {
        &self.reports
    }

    /// Longest block it takes, bytes.
    pub fn block_bytes_max(&self) -> u64 {
        self.block_bytes_max
    }

    /// Names memory that blocks will often come from and go to: a ring pins it once.
    pub fn register(&self, region: &Region) {
        self.members
            .iter()
            .for_each(|m| m.guard.disk().register(region));
    }

    /// Buffers of requests that were given up by their deadline, and that the device has let go of since.
    pub fn take_late(&self) -> Vec<Buf> {
        self.members
            .iter()
            .flat_map(|m| m.guard.take_late())
            .collect()
    }

    /// Lets another policy choose what leaves from now on: one for each device, told of the blocks that are on it.
    pub fn reclaim_by(&self, make: impl Fn() -> Box<dyn ReclaimPolicy>) {
        self.members
            .iter()
            .for_each(|m| m.log.lock().reclaim_by(make()));
    }

    /// Every block that is found: its key and what is known of it. A snapshot, device by device.
    pub fn blocks(&self) -> Vec<(Key, BlockInfo)> {
        let now_s = unix_s();
        let all = self.members.iter().flat_map(|m| {
            let log = m.log.lock();
            log.blocks(now_s)
                .map(|l| (l.key, info(&l)))
                .collect::<Vec<_>>()
        });
        all.collect()
    }

    fn find_one(&self, key: &Key, now_s: u64, read: bool) -> Option<(Arc<Member>, Location)> {
        self.members.iter().find_map(|m| {
            let mut log = m.log.lock();
            let found = if read {
                log.lookup(key, now_s)
            } else {
                log.peek(key, now_s)
            };
            found.map(|location| (m.clone(), location))
        })
    }

    fn put_one(&self, put: Put) -> std::result::Result<Ticket<Stored>, Refused> {
        let (keeps, ticket) = promise();
        if let Err(error) = self.check(&put) {
            return Err(Refused {
                bufs: put.bufs,
                error,
            });
        }
        let (bytes, since_us) = (put.bytes(), monotonic_us());
        if put.if_absent && self.find_one(&put.key, unix_s(), false).is_some() {
            keeps.keep(put.bufs, Ok(Stored::Present));
            return Ok(ticket);
        }
        if !self.admission.lock().admit(&put.key, bytes, since_us) {
            count(&self.counters.declined, 1);
            keeps.keep(put.bufs, Ok(Stored::Declined));
            return Ok(ticket);
        }
        let limit = self.settings.write_queue_bytes_max;
        let queue = &self.counters.write_queue_bytes;
        if let Err(error) = self.reserve(
            queue,
            bytes,
            limit,
            "the write queue",
            "write_queue_bytes_max",
        ) {
            return Err(Refused {
                bufs: put.bufs,
                error,
            });
        }
        let record = NewRecord {
            put: PutId(self.next_put.fetch_add(1, Ordering::Relaxed)),
            key: put.key,
            bytes: bytes as u32,
            checksum: checksum_of(put.bufs.iter().map(|b| b.bytes())),
            expires_s: match put.ttl_s {
                0 => 0,
                ttl_s => u32::try_from(unix_s() + u64::from(ttl_s)).unwrap_or(u32::MAX),
            },
            meta: put.meta,
            kind: RecordKind::Put,
        };
        let body = Body {
            bufs: put.bufs,
            waits: Waits::Put(keeps),
            bytes,
            since_us,
        };
        match self.dispatch(Box::new(Incoming { record, body })) {
            Ok(()) => Ok(ticket),
            Err(i) => {
                queue.fetch_sub(bytes, Ordering::Relaxed);
                Err(Refused {
                    bufs: i.body.bufs,
                    error: Error::Closed,
                })
            }
        }
    }

    fn check(&self, put: &Put) -> Result<()> {
        let (bytes, limit) = (put.bytes(), self.block_bytes_max);
        if bytes == 0 {
            return Err(Error::Invalid("a block has at least one byte".into()));
        }
        if bytes > limit {
            return Err(Error::BlockTooLarge {
                bytes,
                bytes_max: limit,
            });
        }
        if put.meta.len() > META_BYTES_MAX {
            let n = put.meta.len();
            return Err(Error::Invalid(format!(
                "{n} bytes of metadata, {META_BYTES_MAX} allowed"
            )));
        }
        Ok(())
    }

    fn reserve(
        &self,
        queue: &AtomicU64,
        bytes: u64,
        limit: u64,
        what: &'static str,
        setting: &'static str,
    ) -> Result<()> {
        let before = queue.fetch_add(bytes, Ordering::Relaxed);
        // One block may be larger than the queue; it must not be refused for ever.
        if before > 0 && before + bytes > limit {
            queue.fetch_sub(bytes, Ordering::Relaxed);
            count(&self.counters.busy, 1);
            return Err(Error::Busy {
                what,
                setting,
                limit,
            });
        }
        Ok(())
    }

    fn get_one(&self, get: Get) -> std::result::Result<(Ticket<Fetched>, Option<Read>), Refused> {
        let (keeps, ticket) = promise();
        let Some((member, from)) = self.find_one(&get.key, unix_s(), true) else {
            count(&self.counters.misses, 1);
            keeps.keep(get.bufs, Ok(Fetched::Miss));
            return Ok((ticket, None));
        };
        let (pieces, spare) = match lay_out(from.bytes, get.bufs) {
            Ok(laid_out) => laid_out,
            Err(bufs) => {
                let reason = format!("a block of {} bytes does not fit the buffers", from.bytes);
                return Err(Refused {
                    bufs,
                    error: Error::Invalid(reason),
                });
            }
        };
        let (queued_bytes, limit) = (u64::from(from.bytes), self.settings.read_queue_bytes_max);
        let queue = &self.counters.read_queue_bytes;
        if let Err(error) = self.reserve(
            queue,
            queued_bytes,
            limit,
            "the read queue",
            "read_queue_bytes_max",
        ) {
            let bufs = pieces.into_iter().map(|p| p.buf).chain(spare).collect();
            return Err(Refused { bufs, error });
        }
        let since_us = monotonic_us();
        let at = from.at;
        let device = member;
        let wanted = Wanted {
            member: Arc::downgrade(&device),
            counters: self.counters.clone(),
            from,
            meta: get.meta,
            queued_bytes,
            since_us,
            spare,
        };
        let fetch = Fetch {
            promise: keeps,
            wanted,
        };
        Ok((
            ticket,
            Some(Read {
                device,
                at,
                pieces,
                fetch,
            }),
        ))
    }
}

/// A fetch that is ready to start.
struct Read {
    device: Arc<Member>,
    at: u64,
    pieces: Vec<crate::transfer::Piece>,
    fetch: Fetch,
}

fn info(l: &Location) -> BlockInfo {
    BlockInfo {
        bytes: l.bytes,
        expires_s: l.expires_s,
    }
}

impl BlockStore for SsdStore {
    fn put_batch(&self, puts: Vec<Put>) -> Vec<std::result::Result<Ticket<Stored>, Refused>> {
        let answers = puts.into_iter().map(|p| self.put_one(p)).collect();
        self.members.iter().for_each(Member::drive);
        answers
    }

    fn get_batch(&self, gets: Vec<Get>) -> Vec<std::result::Result<Ticket<Fetched>, Refused>> {
        let mut answers = Vec::with_capacity(gets.len());
        let mut reads: Vec<Read> = Vec::new();
        for get in gets {
            answers.push(self.get_one(get).map(|(ticket, read)| {
                reads.extend(read);
                ticket
            }));
        }
        for member in &self.members {
            let (ours, rest): (Vec<_>, Vec<_>) = reads
                .into_iter()
                .partition(|r| Arc::ptr_eq(&r.device, member));
            reads = rest;
            start(member, ours);
        }
        answers
    }

    fn remove(&self, key: Key) -> Result<Ticket<bool>> {
        let (keeps, ticket) = promise();
        if !self.may_hold(&key) {
            keeps.keep(Vec::new(), Ok(false));
            return Ok(ticket);
        }
        let record = NewRecord {
            put: PutId(self.next_put.fetch_add(1, Ordering::Relaxed)),
            key,
            bytes: 0,
            checksum: 0,
            expires_s: 0,
            meta: Vec::new(),
            kind: RecordKind::Tombstone,
        };
        let since_us = monotonic_us();
        let body = Body {
            bufs: Vec::new(),
            waits: Waits::Removed(keeps),
            bytes: 0,
            since_us,
        };
        self.dispatch(Box::new(Incoming { record, body }))
            .map_err(|_| Error::Closed)?;
        self.members.iter().for_each(Member::drive);
        Ok(ticket)
    }

    fn find(&self, keys: &[Key]) -> Vec<Option<BlockInfo>> {
        let now_s = unix_s();
        let mut out = vec![None; keys.len()];
        for member in &self.members {
            let log = member.log.lock();
            for (key, out) in keys.iter().zip(&mut out).filter(|(_, o)| o.is_none()) {
                *out = log.peek(key, now_s).map(|l| info(&l));
            }
        }
        out
    }

    fn pin(&self, key: Key, pinned: bool) -> Result<bool> {
        for member in &self.members {
            if member.log.lock().pin(&key, pinned, unix_s())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stats(&self) -> Stats {
        let logs: Vec<_> = self.members.iter().map(|m| m.log.lock().stats()).collect();
        let sum = |f: fn(&crate::log::LogStats) -> u64| logs.iter().map(f).sum::<u64>();
        let c = &self.counters;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let (stored, device) = (sum(|l| l.stored_bytes), sum(|l| l.device_bytes));
        let devices = self.members.iter().zip(&logs).map(|(m, log)| {
            let disk = m.guard.disk();
            DeviceStats::new(disk.info(), disk.load(), m.guard.stuck(), log)
        });
        Stats {
            blocks: sum(|l| l.blocks),
            live_bytes: sum(|l| l.live_bytes),
            pinned_bytes: sum(|l| l.pinned_bytes),
            capacity_bytes: sum(|l| l.capacity_bytes),
            index_bytes: sum(|l| l.index_bytes),
            stored_blocks: sum(|l| l.stored_blocks),
            stored_bytes: stored,
            device_bytes: device,
            write_amplification: device as f64 / stored.max(1) as f64,
            moved_blocks: sum(|l| l.moved_blocks),
            hits: get(&c.hits),
            hit_bytes: get(&c.hit_bytes),
            misses: get(&c.misses),
            dropped: Dropped {
                busy: get(&c.busy),
                declined: get(&c.declined),
                failed: get(&c.failed),
                reclaimed: sum(|l| l.reclaimed_blocks),
                expired: sum(|l| l.expired_blocks),
                corrupt: sum(|l| l.corrupt_blocks),
            },
            write_queue_bytes: get(&c.write_queue_bytes),
            read_queue_bytes: get(&c.read_queue_bytes),
            put_latency: c.put_us.summary(),
            get_latency: c.get_us.summary(),
            device_read_latency: c.device_read_us.summary(),
            devices: devices.collect(),
        }
    }
}

// Starts reads of one device together; each can be taken back by its ticket.
fn start(member: &Arc<Member>, reads: Vec<Read>) {
    if reads.is_empty() {
        return;
    }
    let cancels: Vec<_> = reads.iter().map(|r| r.fetch.promise.canceller()).collect();
    let parts = reads
        .into_iter()
        .map(|r| (IoKind::Read, r.at, r.pieces, r.fetch.when_done()));
    let first = member.guard.submit(parts.collect());
    for (i, canceller) in cancels.into_iter().enumerate() {
        let member = Arc::downgrade(member);
        canceller.set(Box::new(move || {
            if let Some(member) = member.upgrade() {
                member.guard.cancel(first + i as u64);
            }
        }));
    }
}

impl Drop for SsdStore {
    fn drop(&mut self) {
        self.members
            .iter()
            .for_each(|m| m.leave(|inbox| inbox.closing = true));
        for thread in self.threads.drain(..) {
            // A lane that panicked has nothing left to close.
            let _ = thread.join();
        }
        for member in self.members.drain(..) {
            // The device's thread may still be leaving the last answer's code. Its file must be free when this returns.
            let mut tries = 0;
            while Arc::strong_count(&member) > 1 && tries < LEAVE_TRIES_MAX {
                std::thread::sleep(LEAVE_WAIT);
                tries += 1;
            }
        }
    }
}
