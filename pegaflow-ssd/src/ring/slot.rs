// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One transfer under way, and the entries of a ring that it becomes.

use io_uring::{opcode, squeue, types};

use super::RingJob;
use crate::error::IoKind;
use crate::sys::Region;
use crate::transfer::Piece;

/// `iovec`s one system call takes. Longer lists go in parts.
const IOVECS_MAX: usize = 1024;

/// Where a transfer lives while the kernel has its memory.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) job: Option<RingJob>,
    iovecs: Vec<libc::iovec>,
    /// Bytes to be moved.
    pub(super) total: usize,
    /// Bytes moved so far.
    pub(super) moved: usize,
    /// Set while the transfer is with the kernel as two entries.
    pub(super) cut: Option<Cut>,
}

/// A transfer cut behind its first piece: an entry with several pieces cannot name registered memory, so its pages would be pinned anew.
pub(super) struct Cut {
    first_bytes: usize,
    answers: usize,
    moved: usize,
    cancelled: bool,
}

/// How both entries of a cut transfer ended.
pub(super) enum PartsOver {
    /// Every byte was moved.
    All,
    Cancelled,
    /// What did not succeed whole is tried again in one entry, which tells how far it gets.
    Some,
}

impl Slot {
    pub(super) fn take(&mut self, job: RingJob) {
        self.total = job.pieces.iter().map(|p| p.bytes).sum();
        self.moved = 0;
        self.job = Some(job);
    }

    /// A read of several pieces as two entries, if the first piece is registered memory.
    pub(super) fn cut_in_two(&mut self, regions: &[(Region, u16)]) -> Option<[squeue::Entry; 2]> {
        let job = self.job.as_ref().filter(|job| job.kind == IoKind::Read)?;
        let [first, rest @ ..] = &job.pieces[..] else {
            return None;
        };
        if rest.is_empty() || rest.len() > IOVECS_MAX {
            return None;
        }
        let (address, first_bytes) = (first.buf.address(), first.bytes);
        let region = registered(regions, address, first_bytes)?;
        let one = opcode::ReadFixed::new(types::Fixed(0), address, first_bytes as u32, region);
        let one = one.offset(job.at).build();
        self.moved = first_bytes;
        let other = self.entry(regions);
        self.moved = 0;
        self.cut = Some(Cut {
            first_bytes,
            answers: 0,
            moved: 0,
            cancelled: false,
        });
        Some([one, other])
    }

    /// One of the two entries is over, with `n` bytes or an error. Nothing: the other is still under way.
    pub(super) fn part_over(&mut self, is_rest: bool, n: i32) -> Option<PartsOver> {
        let cut = self.cut.as_mut()?;
        let whole = match is_rest {
            true => self.total - cut.first_bytes,
            false => cut.first_bytes,
        };
        cut.answers += 1;
        cut.cancelled |= n == -libc::ECANCELED;
        cut.moved += usize::try_from(n).map_or(0, |n| if n == whole { n } else { 0 });
        if cut.answers < 2 {
            return None;
        }
        let (moved, cancelled) = (cut.moved, cut.cancelled);
        self.cut = None;
        Some(match moved == self.total {
            true => PartsOver::All,
            false if cancelled => PartsOver::Cancelled,
            false => PartsOver::Some,
        })
    }

    /// What is left of a transfer, as one entry.
    pub(super) fn entry(&mut self, regions: &[(Region, u16)]) -> squeue::Entry {
        let file = types::Fixed(0);
        let job = self
            .job
            .as_ref()
            .expect("only called for a slot with a job");
        let at = job.at + self.moved as u64;
        let reads = job.kind == IoKind::Read;
        if let [piece] = &job.pieces[..] {
            let ptr = piece.buf.address().wrapping_add(self.moved);
            let bytes = piece.bytes - self.moved;
            let n = bytes as u32;
            return match (reads, registered(regions, ptr, bytes)) {
                (true, Some(i)) => opcode::ReadFixed::new(file, ptr, n, i).offset(at).build(),
                (false, Some(i)) => opcode::WriteFixed::new(file, ptr, n, i).offset(at).build(),
                (true, None) => opcode::Read::new(file, ptr, n).offset(at).build(),
                (false, None) => opcode::Write::new(file, ptr, n).offset(at).build(),
            };
        }
        self.iovecs.clear();
        if let Some(piece) = last_piece(job, self.moved) {
            let fixed = registered(regions, piece.buf.address(), piece.bytes);
            if let (true, Some(region)) = (reads, fixed) {
                let (ptr, n) = (piece.buf.address(), piece.bytes as u32);
                return opcode::ReadFixed::new(file, ptr, n, region)
                    .offset(at)
                    .build();
            }
        }
        let mut skip = self.moved;
        for piece in &job.pieces {
            let here = skip.min(piece.bytes);
            skip -= here;
            if here < piece.bytes && self.iovecs.len() < IOVECS_MAX {
                let ptr = piece.buf.address().wrapping_add(here);
                self.iovecs.push(libc::iovec {
                    iov_base: ptr.cast(),
                    iov_len: piece.bytes - here,
                });
            }
        }
        let (ptr, n) = (self.iovecs.as_ptr(), self.iovecs.len() as u32);
        match reads {
            true => opcode::Readv::new(file, ptr, n).offset(at).build(),
            false => opcode::Writev::new(file, ptr, n).offset(at).build(),
        }
    }
}

/// Which registered buffer has these bytes.
fn registered(regions: &[(Region, u16)], ptr: *mut u8, bytes: usize) -> Option<u16> {
    let holds = |(region, _): &&(Region, u16)| region.holds(ptr as usize, bytes);
    regions.iter().find(holds).map(|(_, index)| *index)
}

/// The last piece, if it is all that is left after `moved` bytes.
fn last_piece(job: &RingJob, moved: usize) -> Option<&Piece> {
    let (last, before) = job.pieces.split_last()?;
    let before: usize = before.iter().map(|piece| piece.bytes).sum();
    (before == moved).then_some(last)
}
