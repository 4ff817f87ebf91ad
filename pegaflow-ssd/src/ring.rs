// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One io_uring on one thread: owned buffers in, owned buffers back. Usable alone, as the benchmark does.
//!
//! Knows nothing of budgets, deadlines or blocks. Invariant: a buffer handed to the kernel stays in its slot until its completion was seen;
//! where that never happens, it is leaked, not freed.

mod slot;
mod waker;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use self::slot::{PartsOver, Slot};
pub(crate) use self::waker::Waker;
use self::waker::drain;
use crate::error::{Error, IoKind, Result};
use crate::sys::{BlockFile, Region};
use crate::transfer::Piece;

/// Bytes one registered buffer may have; larger regions take several entries.
const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// Entries handed to the kernel with one call. From three on it passes them on together, and large groups leave a drive idle.
const SUBMITTED_MAX: usize = 2;
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

    /// Takes one transfer. It reaches the kernel with the next few, or with the next [`Ring::enter`].
    ///
    /// # Errors
    /// The job itself, when as many are in flight as the ring has entries.
    pub fn push(&mut self, job: RingJob) -> std::result::Result<(), RingJob> {
        let Some(index) = self.free.pop() else {
            return Err(job);
        };
        let slot = &mut self.slots[index as usize];
        slot.take(job);
        match slot.cut_in_two(&self.regions) {
            Some([first, rest]) => {
                self.submit_entry(first.user_data(index.into()));
                self.submit_entry(rest.user_data(u64::from(index) | REST));
            }
            None => self.start(index),
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
        self.wake = Some(waker.descriptor());
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
        let entry = slot.entry(&self.regions).user_data(index.into());
        self.submit_entry(entry);
    }

    fn submit_entry(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: the memory the entry points to is owned by its slot (buffers and iovecs), which keeps it until the completion
            // was seen; poll and cancel entries point to none.
            let pushed = unsafe { self.uring.submission().push(&entry) }.is_ok();
            // A full queue the kernel takes at once, too. Errors show at the next `enter`.
            if !pushed || self.uring.submission().len() >= SUBMITTED_MAX {
                let _ = self.uring.submit();
            }
            if pushed {
                return;
            }
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

    fn part_transferred(&mut self, index: u32, is_rest: bool, n: i32) {
        match self.slots[index as usize].part_over(is_rest, n) {
            None => {}
            Some(PartsOver::All) => self.finish(index, Ok(())),
            Some(PartsOver::Cancelled) => self.finish(index, Err(Error::Cancelled)),
            Some(PartsOver::Some) => self.again.push_back(index),
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

fn ignore_passing(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) => match e.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests;
