// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One io_uring on one thread: owned buffers in, owned buffers back. Usable alone, as the benchmark does.
//!
//! Knows nothing of budgets, deadlines or blocks. Invariant: a buffer handed to the kernel stays in its slot until its completion was seen;
//! where that never happens, it is leaked, not freed.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::error::{Error, IoKind, Result};
use crate::sys::{BlockFile, Region};
use crate::transfer::Piece;

/// `iovec`s one system call takes. Longer lists go in parts.
const IOVECS_MAX: usize = 1024;
/// Bytes one registered buffer may have; larger regions take several entries.
const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// Entries of the table of registered buffers.
const REGISTERED_MAX: u32 = 256;
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
/// Set in the name of the second entry of a transfer that was cut in two.
const REST: u64 = 1 << 32;

/// How to make a ring.
#[derive(Debug, Clone)]
pub struct RingSettings {
    /// Most transfers in flight.
    pub entries: u32,
    /// Milliseconds without work until the kernel's submission thread sleeps; 0: no such thread.
    pub sqpoll_idle_ms: u32,
    /// Poll the drive for completions. Only with `O_DIRECT` on a drive with polling queues.
    pub iopoll: bool,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            entries: 128,
            sqpoll_idle_ms: 0,
            iopoll: false,
        }
    }
}

/// One transfer for a ring.
#[derive(Debug)]
pub struct RingJob {
    /// The caller's name for it; must be below `u64::MAX - 1`.
    pub token: u64,
    /// Which transfer.
    pub kind: IoKind,
    /// Byte offset on the device.
    pub at: u64,
    /// The memory, in order.
    pub pieces: Vec<Piece>,
}

/// A finished transfer.
#[derive(Debug)]
pub struct RingDone {
    /// The caller's name for it.
    pub token: u64,
    /// The memory, as it came.
    pub pieces: Vec<Piece>,
    /// Whether every byte was moved.
    pub result: Result<()>,
}

#[derive(Default)]
struct Slot {
    job: Option<RingJob>,
    iovecs: Vec<libc::iovec>,
    total: usize,
    moved: usize,
    /// Set while the transfer is with the kernel as two entries.
    cut: Option<Cut>,
}

/// A transfer cut behind its first piece: an entry with several pieces cannot name registered memory, so its pages would be pinned anew.
struct Cut {
    first_bytes: usize,
    answers: usize,
    moved: usize,
    cancelled: bool,
}

/// One io_uring with its registered file and buffers.
pub struct Ring {
    uring: IoUring,
    file: Arc<dyn BlockFile>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    again: VecDeque<u32>,
    done: Vec<RingDone>,
    regions: Vec<(Region, u16)>,
    next_region: u16,
    wake: Option<RawFd>,
    wake_armed: bool,
    notes: Vec<String>,
    // The kernel lets only the thread that made the ring use it.
    _one_thread: PhantomData<*const ()>,
}

impl Ring {
    /// Makes a ring for `file`. It must be used on the thread that made it.
    ///
    /// # Errors
    /// `Unsupported` if the file has no descriptor; `EPERM`, `ENOSYS` or `ENOMEM` where the system forbids or lacks io_uring.
    pub fn new(file: Arc<dyn BlockFile>, settings: &RingSettings) -> io::Result<Self> {
        let fd = file.descriptor().ok_or(io::ErrorKind::Unsupported)?;
        let entries = settings.entries.clamp(1, 4096).next_power_of_two();
        let uring = build(entries, settings)?;
        uring.submitter().register_files(&[fd])?;
        let mut notes = Vec::new();
        if let Err(e) = uring.submitter().register_buffers_sparse(REGISTERED_MAX) {
            notes.push(format!("no registered buffers: {e}"));
        }
        Ok(Self {
            uring,
            file,
            slots: (0..entries).map(|_| Slot::default()).collect(),
            free: (0..entries).rev().collect(),
            again: VecDeque::new(),
            done: Vec::new(),
            regions: Vec::new(),
            next_region: 0,
            wake: None,
            wake_armed: false,
            notes,
            _one_thread: PhantomData,
        })
    }

    /// Pins a region once, so that transfers inside it need not. Where the kernel refuses (locked-memory limit), transfers
    /// work unpinned and [`Ring::notes`] says so.
    pub fn register(&mut self, region: &Region) {
        if !self.notes.is_empty() {
            return;
        }
        let mut at = 0;
        while at < region.bytes() {
            let bytes = (region.bytes() - at).min(REGISTERED_BYTES_MAX);
            if self.next_region as u32 >= REGISTERED_MAX {
                self.notes
                    .push("more memory than registered buffers".into());
                return;
            }
            let base = region.base() + at;
            let iovec = libc::iovec {
                iov_base: base as *mut _,
                iov_len: bytes,
            };
            // SAFETY: the memory is mapped for as long as `region` (its owner) lives, and a clone of it stays in `self.regions`
            // until the ring is gone.
            let result = unsafe {
                self.uring.submitter().register_buffers_update(
                    self.next_region.into(),
                    &[iovec],
                    None,
                )
            };
            if let Err(e) = result {
                self.notes
                    .push(format!("{bytes} bytes not registered with the ring: {e}"));
                return;
            }
            self.regions
                .push((region.part(at, bytes), self.next_region));
            self.next_region += 1;
            at += bytes;
        }
    }

    /// What a user should know: what could not be registered, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Transfers that are with the kernel or waiting for it.
    pub fn inflight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes one transfer. It reaches the kernel with the next [`Ring::enter`].
    ///
    /// # Errors
    /// The job itself, when as many are in flight as the ring has entries.
    pub fn push(&mut self, job: RingJob) -> std::result::Result<(), RingJob> {
        let Some(index) = self.free.pop() else {
            return Err(job);
        };
        let slot = &mut self.slots[index as usize];
        slot.total = job.pieces.iter().map(|p| p.bytes).sum();
        slot.moved = 0;
        slot.job = Some(job);
        if !self.start_cut(index) {
            self.start(index);
        }
        Ok(())
    }

    /// Asks the kernel to give up a transfer. It still completes, with [`Error::Cancelled`] or with success.
    pub fn cancel(&mut self, token: u64) {
        let holds = |s: &Slot| s.job.as_ref().is_some_and(|j| j.token == token);
        if let Some(index) = self.slots.iter().position(holds) {
            let rest = self.slots[index].cut.as_ref().map(|_| REST);
            for part in [Some(0), rest].into_iter().flatten() {
                let cancel = opcode::AsyncCancel::new(index as u64 | part);
                self.submit_entry(cancel.build().user_data(CANCEL));
            }
        }
    }

    /// Hands new transfers to the kernel and waits for `want` completions, at most `timeout_ms` milliseconds if given.
    ///
    /// # Errors
    /// Those of the operating system; a passed timeout is none.
    pub fn enter(&mut self, want: usize, timeout_ms: Option<u64>) -> io::Result<()> {
        self.arm_wake();
        while let Some(index) = self.again.pop_front() {
            self.start(index);
        }
        if !self.done.is_empty() {
            return ignore_passing(self.uring.submit());
        }
        let Some(ms) = timeout_ms.filter(|_| want > 0) else {
            return ignore_passing(self.uring.submit_and_wait(want));
        };
        let time = types::Timespec::new()
            .sec(ms / 1000)
            .nsec((ms % 1000 * 1_000_000) as u32);
        let args = types::SubmitArgs::new().timespec(&time);
        ignore_passing(self.uring.submitter().submit_with_args(want, &args))
    }

    /// Appends what has finished to `out`.
    pub fn reap(&mut self, out: &mut Vec<RingDone>) {
        loop {
            let Some(cqe) = self.uring.completion().next() else {
                break;
            };
            self.complete(&cqe);
        }
        out.append(&mut self.done);
    }

    /// Whether completions are polled from the drive.
    pub(crate) fn polls(&self) -> bool {
        self.uring.params().is_setup_iopoll()
    }

    /// Makes `enter` return when `waker` is used.
    pub(crate) fn watch(&mut self, waker: &Waker) {
        self.wake = Some(waker.0.as_raw_fd());
    }

    fn arm_wake(&mut self) {
        let Some(fd) = self.wake.filter(|_| !self.wake_armed) else {
            return;
        };
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true);
        self.submit_entry(poll.build().user_data(WAKE));
        self.wake_armed = true;
    }

    fn start(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(job) = &slot.job else { return };
        if job.kind == IoKind::Flush {
            let fsync = opcode::Fsync::new(types::Fixed(0)).flags(types::FsyncFlags::DATASYNC);
            if self.uring.params().is_setup_iopoll() {
                let result = self.file.sync();
                return self.finish(
                    index,
                    result.map_err(|e| Error::io(IoKind::Flush, 0, 0, &e)),
                );
            }
            return self.submit_entry(fsync.build().user_data(index.into()));
        }
        let entry = transfer_entry(slot, &self.regions).user_data(index.into());
        self.submit_entry(entry);
    }

    /// Starts a read of several pieces as two entries, if the first piece is registered memory.
    fn start_cut(&mut self, index: u32) -> bool {
        let slot = &mut self.slots[index as usize];
        let Some(job) = slot.job.as_ref().filter(|job| job.kind == IoKind::Read) else {
            return false;
        };
        let [first, rest @ ..] = &job.pieces[..] else {
            return false;
        };
        let (address, first_bytes) = (first.buf.address(), first.bytes);
        let Some(region) = registered(&self.regions, address, first_bytes) else {
            return false;
        };
        if rest.is_empty() || rest.len() > IOVECS_MAX {
            return false;
        }
        let file = types::Fixed(0);
        let one = opcode::ReadFixed::new(file, address, first_bytes as u32, region)
            .offset(job.at)
            .build();
        slot.moved = first_bytes;
        let other = transfer_entry(slot, &self.regions);
        slot.moved = 0;
        slot.cut = Some(Cut {
            first_bytes,
            answers: 0,
            moved: 0,
            cancelled: false,
        });
        self.submit_entry(one.user_data(index.into()));
        self.submit_entry(other.user_data(u64::from(index) | REST));
        true
    }

    fn submit_entry(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: the memory the entry points to is owned by its slot (buffers and iovecs), which keeps it until the completion
            // was seen; poll and cancel entries point to none.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The submission queue is full: the kernel takes all of it at once. Errors show at the next `enter`.
            let _ = self.uring.submit();
        }
    }

    fn complete(&mut self, cqe: &cqueue::Entry) {
        match cqe.user_data() {
            WAKE => {
                self.wake_armed = cqueue::more(cqe.flags());
                if let Some(fd) = self.wake {
                    drain(fd);
                }
            }
            CANCEL => {}
            index if self.slots[index as u32 as usize].cut.is_some() => {
                self.part_transferred(index as u32, index & REST != 0, cqe.result());
            }
            index => self.transferred(index as u32, cqe.result()),
        }
    }

    /// One of the two entries of a cut transfer is over. What did not succeed whole is tried again in one, which tells how far it gets.
    fn part_transferred(&mut self, index: u32, is_rest: bool, n: i32) {
        let slot = &mut self.slots[index as usize];
        let Some(cut) = slot.cut.as_mut() else { return };
        let whole = match is_rest {
            true => slot.total - cut.first_bytes,
            false => cut.first_bytes,
        };
        cut.answers += 1;
        cut.cancelled |= n == -libc::ECANCELED;
        cut.moved += usize::try_from(n).map_or(0, |n| if n == whole { n } else { 0 });
        if cut.answers < 2 {
            return;
        }
        let (moved, cancelled) = (cut.moved, cut.cancelled);
        slot.cut = None;
        match moved == slot.total {
            true => self.finish(index, Ok(())),
            false if cancelled => self.finish(index, Err(Error::Cancelled)),
            false => self.again.push_back(index),
        }
    }

    fn transferred(&mut self, index: u32, n: i32) {
        let slot = &mut self.slots[index as usize];
        let Some(job) = &slot.job else { return };
        let (kind, at, total) = (job.kind, job.at, slot.total as u64);
        if n < 0 {
            return match -n {
                libc::EINTR | libc::EAGAIN => self.again.push_back(index),
                libc::ECANCELED => self.finish(index, Err(Error::Cancelled)),
                errno => {
                    self.finish(
                        index,
                        Err(Error::Io {
                            kind,
                            at,
                            bytes: total,
                            errno,
                        }),
                    );
                }
            };
        }
        slot.moved += n as usize;
        if kind == IoKind::Flush || slot.moved >= slot.total {
            self.finish(index, Ok(()));
        } else if n == 0 {
            self.finish(index, Err(Error::EndOfDevice { at, bytes: total }));
        } else {
            self.again.push_back(index);
        }
    }

    fn finish(&mut self, index: u32, result: Result<()>) {
        let slot = &mut self.slots[index as usize];
        if let Some(job) = slot.job.take() {
            self.done.push(RingDone {
                token: job.token,
                pieces: job.pieces,
                result,
            });
            self.free.push(index);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        for _ in 0..50 {
            if self.inflight() == 0 {
                return;
            }
            if self.enter(1, Some(100)).is_err() {
                break;
            }
            self.reap(&mut done);
        }
        // Still with the kernel: the memory may be written at any time, so nobody gets it again.
        std::mem::forget(std::mem::take(&mut self.slots));
        std::mem::forget(std::mem::take(&mut self.regions));
    }
}

fn build(entries: u32, settings: &RingSettings) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(entries * 2).setup_clamp();
    if settings.iopoll {
        builder.setup_iopoll();
    }
    if settings.sqpoll_idle_ms > 0 {
        builder.setup_sqpoll(settings.sqpoll_idle_ms);
        return builder.build(entries);
    }
    // Completions are worked off when this thread asks, not by interrupting it: fewer context switches. Linux 6.1.
    let mut modern = builder.clone();
    modern.setup_single_issuer().setup_defer_taskrun();
    modern.build(entries).or_else(|_| builder.build(entries))
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

fn transfer_entry(slot: &mut Slot, regions: &[(Region, u16)]) -> squeue::Entry {
    let file = types::Fixed(0);
    let job = slot
        .job
        .as_ref()
        .expect("only called for a slot with a job");
    let at = job.at + slot.moved as u64;
    let reads = job.kind == IoKind::Read;
    if let [piece] = &job.pieces[..] {
        let ptr = piece.buf.address().wrapping_add(slot.moved);
        let bytes = piece.bytes - slot.moved;
        let n = bytes as u32;
        return match (reads, registered(regions, ptr, bytes)) {
            (true, Some(i)) => opcode::ReadFixed::new(file, ptr, n, i).offset(at).build(),
            (false, Some(i)) => opcode::WriteFixed::new(file, ptr, n, i).offset(at).build(),
            (true, None) => opcode::Read::new(file, ptr, n).offset(at).build(),
            (false, None) => opcode::Write::new(file, ptr, n).offset(at).build(),
        };
    }
    slot.iovecs.clear();
    if let Some(piece) = last_piece(job, slot.moved) {
        let fixed = registered(regions, piece.buf.address(), piece.bytes);
        if let (true, Some(region)) = (reads, fixed) {
            let (ptr, n) = (piece.buf.address(), piece.bytes as u32);
            return opcode::ReadFixed::new(file, ptr, n, region)
                .offset(at)
                .build();
        }
    }
    let mut skip = slot.moved;
    for piece in &job.pieces {
        let here = skip.min(piece.bytes);
        skip -= here;
        if here < piece.bytes && slot.iovecs.len() < IOVECS_MAX {
            let ptr = piece.buf.address().wrapping_add(here);
            slot.iovecs.push(libc::iovec {
                iov_base: ptr.cast(),
                iov_len: piece.bytes - here,
            });
        }
    }
    let (ptr, n) = (slot.iovecs.as_ptr(), slot.iovecs.len() as u32);
    match reads {
        true => opcode::Readv::new(file, ptr, n).offset(at).build(),
        false => opcode::Writev::new(file, ptr, n).offset(at).build(),
    }
}

fn ignore_passing(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) => match e.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(e),
        },
    }
}

/// Wakes a thread out of [`Ring::enter`].
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// A new one.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the thread. Never blocks.
    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes the eight bytes of a live u64 to an open eventfd.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Sleeps until somebody wakes us.
    pub(crate) fn sleep(&self) {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live `pollfd` with an open descriptor.
        unsafe { libc::poll(&mut poll, 1, -1) };
        drain(self.0.as_raw_fd());
    }
}

fn drain(fd: RawFd) {
    let mut n = 0u64;
    // SAFETY: reads eight bytes of a non-blocking eventfd into a live u64; the owner of `fd` outlives the ring's thread.
    unsafe { libc::read(fd, (&raw mut n).cast(), 8) };
}

#[cfg(test)]
mod tests;
