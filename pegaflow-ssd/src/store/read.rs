// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! From a place on the device to checked bytes in the caller's memory.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::lane::{Event, Member};
use super::ticket::Promise;
use super::{Done, Fetched};
use crate::clock::monotonic_us;
use crate::error::{Error, IoKind, Result};
use crate::format::{Batch, checksum_of};
use crate::log::{Location, PutId};
use crate::metrics::{Counters, count};
use crate::sys::{Buf, pages};
use crate::transfer::{Finished, Piece, WhenDone};

/// A fetch on its way.
pub(super) struct Fetch {
    pub(super) promise: Promise<Fetched>,
    pub(super) wanted: Wanted,
}

/// What is fetched. Its answer may be taken after the store was closed, and must not keep the device open.
pub(super) struct Wanted {
    pub(super) member: Weak<Member>,
    pub(super) counters: Arc<Counters>,
    pub(super) from: Location,
    pub(super) meta: bool,
    pub(super) queued_bytes: u64,
    pub(super) since_us: u64,
    /// Buffers beyond the block's end.
    pub(super) spare: Vec<Buf>,
}

/// Lays a block of so many bytes into these buffers: the pieces, and the buffers that stay unused.
pub(super) fn lay_out(
    bytes: u32,
    bufs: Vec<Buf>,
) -> std::result::Result<(Vec<Piece>, Vec<Buf>), Vec<Buf>> {
    let mut left = pages(u64::from(bytes).max(1)) as usize;
    if bufs.iter().map(Buf::capacity).sum::<usize>() < left {
        return Err(bufs);
    }
    let (mut pieces, mut spare) = (Vec::with_capacity(bufs.len()), Vec::new());
    for buf in bufs {
        let n = left.min(buf.capacity());
        left -= n;
        match n {
            0 => spare.push(buf),
            n => pieces.push(Piece { buf, bytes: n }),
        }
    }
    Ok((pieces, spare))
}

// Sets lengths, so that the buffers hold exactly the block.
fn trim(pieces: Vec<Piece>, bytes: u32) -> Vec<Buf> {
    let mut left = bytes as usize;
    let trimmed = pieces.into_iter().map(|mut p| {
        let n = left.min(p.bytes);
        p.buf.set_len(n);
        left -= n;
        p.buf
    });
    trimmed.collect()
}

impl Fetch {
    /// What runs when the bytes are here.
    pub(super) fn when_done(self) -> WhenDone {
        Box::new(move |finished| self.read(finished))
    }

    fn read(self, finished: Finished) {
        let Self { promise, wanted } = self;
        wanted.counters.device_read_us.record(finished.device_us);
        let queue = &wanted.counters.read_queue_bytes;
        queue.fetch_sub(wanted.queued_bytes, Ordering::Relaxed);
        let bufs = trim(finished.pieces, wanted.from.bytes);
        match finished.result {
            Err(e) => promise.keep_by(move || wanted.end(bufs, Err(e))),
            Ok(()) if wanted.meta => wanted.read_meta(promise, bufs),
            Ok(()) => promise.keep_by(move || wanted.checked(bufs, Vec::new())),
        }
    }
}

impl Wanted {
    fn checked(self, bufs: Vec<Buf>, meta: Vec<u8>) -> Done<Fetched> {
        match self.check(&bufs) {
            Ok(true) => self.hit(bufs, meta),
            Ok(false) => self.miss(bufs),
            Err(e) => self.end(bufs, Err(e)),
        }
    }

    // Whether it is the block; false: its segment was used anew meanwhile.
    fn check(&self, bufs: &[Buf]) -> Result<bool> {
        let got = checksum_of(bufs.iter().map(|b| b.bytes()));
        if got == self.from.checksum {
            return Ok(true);
        }
        let Some(member) = self.member.upgrade() else {
            return Ok(false);
        };
        let mut log = member.log.lock();
        if !log.still(&self.from) {
            return Ok(false);
        }
        log.spoiled(&self.from);
        let (at, want) = (self.from.at, self.from.checksum);
        Err(Error::Corrupt {
            what: "block",
            at,
            want,
            got,
        })
    }

    fn read_meta(self, promise: Promise<Fetched>, bufs: Vec<Buf>) {
        let Some(member) = self.member.upgrade() else {
            return promise.keep_by(move || self.miss(bufs));
        };
        let (at, bytes) = (self.from.header_at, self.from.header_bytes);
        let done: WhenDone = Box::new(move |f| {
            let header = f.pieces.first().map(|p| &p.buf[..bytes]);
            let member = self.member.upgrade();
            let meta = header.and_then(|h| meta_in(&*member?, &self.from, h));
            promise.keep_by(move || match meta {
                Some(meta) => self.checked(bufs, meta),
                None => self.miss(bufs),
            });
        });
        member.guard.submit(vec![(
            IoKind::Read,
            at,
            vec![Piece::whole(Buf::new(bytes))],
            done,
        )]);
    }

    fn hit(self, bufs: Vec<Buf>, meta: Vec<u8>) -> Done<Fetched> {
        let counters = &self.counters;
        counters.get_us.record(monotonic_us() - self.since_us);
        count(&counters.hits, 1);
        count(&counters.hit_bytes, self.from.bytes.into());
        let bytes = self.from.bytes;
        self.end(bufs, Ok(Fetched::Hit { bytes, meta }))
    }

    fn miss(self, bufs: Vec<Buf>) -> Done<Fetched> {
        count(&self.counters.misses, 1);
        self.end(bufs, Ok(Fetched::Miss))
    }

    fn end(self, mut bufs: Vec<Buf>, result: Result<Fetched>) -> Done<Fetched> {
        bufs.extend(self.spare);
        Done { bufs, result }
    }
}

fn meta_in(member: &Member, from: &Location, header: &[u8]) -> Option<Vec<u8>> {
    let place = member.log.lock().geometry().place(from.segment);
    let batch = Batch::decode(header, place)?;
    let index = usize::from(from.header_index);
    let ours = batch.records.get(index)?.key == from.key;
    ours.then(|| batch.metas.get(index).cloned())?
}

/// Reads a block that is to be written again, checks it, and tells the lane.
pub(super) fn for_move(member: &Arc<Member>, put: PutId, from: Location) {
    let theirs = member.clone();
    let done: WhenDone = Box::new(move |f| match f.pieces.into_iter().next() {
        Some(mut piece) if f.result.is_ok() => {
            piece.buf.set_len(from.bytes as usize);
            match checksum_of(std::iter::once(piece.buf.bytes())) == from.checksum {
                true => move_header(&theirs, put, from, piece.buf),
                false => tell(&theirs, put, piece.buf, Err(Error::Cancelled)),
            }
        }
        _ => tell(
            &theirs,
            put,
            Buf::new(1),
            Err(f.result.err().unwrap_or(Error::Cancelled)),
        ),
    });
    let buf = Piece::whole(Buf::new(from.bytes as usize));
    member
        .guard
        .submit(vec![(IoKind::Read, from.at, vec![buf], done)]);
}

fn move_header(member: &Arc<Member>, put: PutId, from: Location, buf: Buf) {
    let theirs = member.clone();
    let done: WhenDone = Box::new(move |f| {
        let header = f.pieces.first().map(|p| &p.buf[..from.header_bytes]);
        let meta = header.and_then(|h| meta_in(&theirs, &from, h));
        tell(&theirs, put, buf, meta.ok_or(Error::Cancelled));
    });
    let header = Piece::whole(Buf::new(from.header_bytes));
    member
        .guard
        .submit(vec![(IoKind::Read, from.header_at, vec![header], done)]);
}

fn tell(member: &Arc<Member>, put: PutId, buf: Buf, result: Result<Vec<u8>>) {
    member.leave(|inbox| inbox.events.push(Event::Moved { put, buf, result }));
}
