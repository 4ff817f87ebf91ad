// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! From a batch of the log to transfers: small blocks are copied next to their header, large ones go from where they are.

use std::sync::Arc;

use parking_lot::Mutex;

use super::lane::{Event, Member};
use crate::disk::Part;
use crate::error::{Error, IoKind, Result};
use crate::log::{IoId, PutId};
use crate::sys::{Arena, Buf, PAGE, pages};
use crate::transfer::{Finished, Piece};

/// A transfer has about this many bytes, if its blocks are smaller.
const TRANSFER_BYTES: usize = 1 << 20;
/// Bytes of one staging buffer: a transfer's worth and the largest header.
pub(super) const STAGING_BYTES: usize = TRANSFER_BYTES + (128 << 10);

/// A record's name, length and memory.
pub(super) type Bytes = (PutId, u32, Vec<Buf>);

#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// Whose memory each piece is; nothing: ours.
    owners: Vec<Option<PutId>>,
    /// Records with bytes in this transfer.
    puts: Vec<PutId>,
    bytes: usize,
    has_header: bool,
}

struct Planner<'a> {
    staging: &'a Arc<Arena>,
    plans: Vec<Plan>,
    now: Plan,
    /// To be copied in one run.
    copy: Vec<(Option<PutId>, Vec<u8>, Vec<Buf>)>,
    copy_bytes: usize,
    returned: Vec<(PutId, Vec<Buf>)>,
}

impl Planner<'_> {
    fn copied(&mut self, put: Option<PutId>, own: Vec<u8>, bufs: Vec<Buf>) {
        let bytes = own.len() + bufs.iter().map(|b| b.len()).sum::<usize>();
        let bytes = pages(bytes as u64) as usize;
        if self.copy_bytes + bytes > STAGING_BYTES {
            self.end_run();
        }
        self.copy_bytes += bytes;
        self.copy.push((put, own, bufs));
        if self.now.bytes + self.copy_bytes >= TRANSFER_BYTES {
            self.end_transfer();
        }
    }

    fn end_run(&mut self) {
        let bytes = std::mem::take(&mut self.copy_bytes);
        if bytes == 0 {
            return;
        }
        let mut to = self.staging.take(bytes).unwrap_or_else(|| Buf::new(bytes));
        let mut at = 0;
        for (put, own, bufs) in self.copy.drain(..) {
            for part in std::iter::once(&own[..]).chain(bufs.iter().map(|b| b.bytes())) {
                to[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            let end = at.next_multiple_of(PAGE);
            to[at..end].fill(0);
            at = end;
            if let Some(put) = put {
                self.now.puts.push(put);
                self.returned.push((put, bufs));
            }
        }
        self.now.bytes += bytes;
        self.now.pieces.push(Piece { buf: to, bytes });
        self.now.owners.push(None);
    }

    fn direct(&mut self, put: PutId, bufs: Vec<Buf>) {
        self.end_run();
        self.now.puts.push(put);
        for mut buf in bufs {
            let bytes = pages(buf.len() as u64) as usize;
            buf.zero_to(bytes);
            self.now.bytes += bytes;
            self.now.pieces.push(Piece { buf, bytes });
            self.now.owners.push(Some(put));
        }
        if self.now.bytes >= TRANSFER_BYTES {
            self.end_transfer();
        }
    }

    fn end_transfer(&mut self) {
        self.end_run();
        if !self.now.pieces.is_empty() {
            self.plans.push(std::mem::take(&mut self.now));
        }
    }
}

/// Starts a batch. Returns how many bytes it writes.
pub(super) fn batch(
    member: &Arc<Member>,
    io: IoId,
    at: u64,
    header: Vec<u8>,
    bodies: Vec<Bytes>,
) -> u64 {
    let mut planner = Planner {
        staging: &member.staging,
        plans: Vec::new(),
        now: Plan {
            has_header: true,
            ..Plan::default()
        },
        copy: Vec::new(),
        copy_bytes: 0,
        returned: Vec::new(),
    };
    planner.copied(None, header, Vec::new());
    for (put, bytes, bufs) in bodies {
        let Some((_, front)) = bufs.split_last() else {
            continue;
        };
        let whole = front
            .iter()
            .all(|b| b.len().is_multiple_of(PAGE) && !b.is_empty());
        match whole && u64::from(bytes) >= member.copy_below_bytes {
            true => planner.direct(put, bufs),
            false => copy_any(&mut planner, put, bytes, bufs),
        }
    }
    planner.end_transfer();
    let Planner {
        plans, returned, ..
    } = planner;
    let bytes = plans.iter().map(|p| p.bytes as u64).sum();
    let state = JoinState {
        left: plans.len(),
        header: Ok(()),
        failed: Vec::new(),
        bufs: returned,
    };
    let join = Arc::new(Join {
        member: member.clone(),
        io,
        bytes,
        state: Mutex::new(state),
    });
    let mut to = at;
    let parts = plans.into_iter().map(|plan| {
        let (here, join) = (to, join.clone());
        to += plan.bytes as u64;
        let Plan {
            pieces,
            owners,
            puts,
            has_header,
            ..
        } = plan;
        let done = Box::new(move |f| join.over(f, &owners, &puts, has_header));
        (
            IoKind::Write,
            here,
            pieces,
            done as crate::transfer::WhenDone,
        )
    });
    member.guard.submit(parts.collect());
    bytes
}

// A block in odd pieces, larger than a staging buffer: gathered into memory of its own.
fn copy_any(planner: &mut Planner<'_>, put: PutId, bytes: u32, bufs: Vec<Buf>) {
    if bytes as usize <= TRANSFER_BYTES {
        return planner.copied(Some(put), Vec::new(), bufs);
    }
    let mut whole = Buf::new(bytes as usize);
    let mut at = 0;
    for b in &bufs {
        whole[at..at + b.len()].copy_from_slice(b.bytes());
        at += b.len();
    }
    planner.end_run();
    let padded = whole.capacity();
    planner.now.puts.push(put);
    planner.now.bytes += padded;
    planner.now.pieces.push(Piece {
        buf: whole,
        bytes: padded,
    });
    planner.now.owners.push(None);
    planner.returned.push((put, bufs));
    planner.end_transfer();
}

struct JoinState {
    left: usize,
    header: Result<()>,
    failed: Vec<(PutId, Error)>,
    bufs: Vec<(PutId, Vec<Buf>)>,
}

/// Collects the ends of a batch's transfers.
struct Join {
    member: Arc<Member>,
    io: IoId,
    bytes: u64,
    state: Mutex<JoinState>,
}

impl Join {
    fn over(&self, f: Finished, owners: &[Option<PutId>], puts: &[PutId], has_header: bool) {
        let mut s = self.state.lock();
        for (piece, owner) in f.pieces.into_iter().zip(owners) {
            let Some(put) = owner else { continue };
            match s.bufs.last_mut().filter(|(last, _)| last == put) {
                Some((_, bufs)) => bufs.push(piece.buf),
                None => s.bufs.push((*put, vec![piece.buf])),
            }
        }
        if let Err(e) = f.result {
            s.failed.extend(puts.iter().map(|p| (*p, e.clone())));
            if has_header {
                s.header = Err(e);
            }
        }
        s.left -= 1;
        if s.left > 0 {
            return;
        }
        let header = s.header.clone();
        let (failed, bufs) = (std::mem::take(&mut s.failed), std::mem::take(&mut s.bufs));
        drop(s);
        let event = Event::Batch {
            io: self.io,
            header,
            failed,
            bufs,
            bytes: self.bytes,
        };
        self.member.leave(|inbox| inbox.events.push(event));
    }
}

/// Writes pages of the log's own.
pub(super) fn pages_of_log(member: &Arc<Member>, io: IoId, parts: Vec<(u64, Vec<u8>)>) {
    let state = Arc::new(Mutex::new((parts.len(), Ok(()))));
    let parts = parts.into_iter().map(|(at, bytes)| {
        let (state, member) = (state.clone(), member.clone());
        let done: crate::transfer::WhenDone = Box::new(move |f| {
            let mut s = state.lock();
            s.0 -= 1;
            if f.result.is_err() {
                s.1 = f.result;
            }
            if s.0 == 0 {
                let event = Event::Pages {
                    io,
                    result: s.1.clone(),
                };
                member.leave(|inbox| inbox.events.push(event));
            }
        });
        (
            IoKind::Write,
            at,
            vec![Piece::whole(Buf::copy_of(&bytes))],
            done,
        )
    });
    let parts: Vec<Part> = parts.collect();
    member.guard.submit(parts);
}

/// Makes what is written durable.
pub(super) fn flush(member: &Arc<Member>, io: IoId) {
    let theirs = member.clone();
    let done: crate::transfer::WhenDone = Box::new(move |f| {
        let event = Event::Flush {
            io,
            result: f.result,
        };
        theirs.leave(|inbox| inbox.events.push(event));
    });
    member
        .guard
        .submit(vec![(IoKind::Flush, 0, Vec::new(), done)]);
}
