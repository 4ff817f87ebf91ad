// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A file that fails on purpose: part of the crate, so that users can test what they build on it.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::IoKind;
use crate::sys::BlockFile;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The system's error number, for example EIO or ENOSPC.
    Error(i32),
    /// At most this many bytes are moved, and the call says so.
    Short(usize),
    /// The answer comes this many milliseconds late.
    Delay(u64),
    /// The answer does not come until [`FaultPlan::release`].
    Stuck,
    /// This byte of the transfer has one bit flipped, and nobody is told.
    Flip(usize),
    /// A write is acknowledged and not done.
    Lost,
}

#[derive(Debug, Clone)]
struct Rule {
    kind: IoKind,
    range: Range<u64>,
    skip: u64,
    count: u64,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    hits: u64,
    released: bool,
    keeps_undo: bool,
    undo: Vec<(u64, Vec<u8>)>,
}

/// Which transfers of a [`FaultFile`] go wrong, and how. Clones share one plan.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    inner: Arc<(Mutex<State>, Condvar)>,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on: of the transfers of `kind` that touch `range`, `skip` pass and the next `count` go wrong.
    pub fn add(&self, kind: IoKind, range: Range<u64>, skip: u64, count: u64, fault: Fault) {
        self.inner.0.lock().rules.push(Rule {
            kind,
            range,
            skip,
            count,
            fault,
        });
    }

    /// The next `count` transfers of `kind` go wrong, wherever they are.
    pub fn next(&self, kind: IoKind, count: u64, fault: Fault) {
        self.add(kind, 0..u64::MAX, 0, count, fault);
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        self.inner.0.lock().rules.clear();
    }

    /// How many transfers went wrong so far.
    pub fn hits(&self) -> u64 {
        self.inner.0.lock().hits
    }

    /// Lets every stuck transfer go on.
    pub fn release(&self) {
        self.inner.0.lock().released = true;
        self.inner.1.notify_all();
    }

    /// From now on, remembers what writes replace, until a flush: for [`FaultFile::lose_last`].
    pub fn keep_undo(&self) {
        self.inner.0.lock().keeps_undo = true;
    }

    fn fault(&self, kind: IoKind, at: u64, bytes: usize) -> Option<Fault> {
        let mut state = self.inner.0.lock();
        let touched = at..at + bytes.max(1) as u64;
        let hits = |r: &Rule| {
            let touches = r.range.start < touched.end && touched.start < r.range.end;
            r.kind == kind && r.count > 0 && (kind == IoKind::Flush || touches)
        };
        let rule = state.rules.iter_mut().find(|r| hits(r))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.count -= 1;
        let fault = rule.fault;
        state.hits += 1;
        Some(fault)
    }

    fn wait_released(&self) {
        let mut state = self.inner.0.lock();
        while !state.released {
            self.inner.1.wait(&mut state);
        }
    }
}

/// A file whose transfers follow a [`FaultPlan`].
pub struct FaultFile<F> {
    inner: F,
    plan: FaultPlan,
}

impl<F: BlockFile> FaultFile<F> {
    /// Wraps `inner`.
    pub fn new(inner: F, plan: FaultPlan) -> Self {
        Self { inner, plan }
    }

    /// What is below.
    pub fn inner(&self) -> &F {
        &self.inner
    }

    /// Takes the last `n` unflushed writes back, as a device does that loses power with a full cache. Returns how many there were.
    ///
    /// # Errors
    /// Those of the file below.
    pub fn lose_last(&self, n: usize) -> io::Result<usize> {
        let mut state = self.plan.inner.0.lock();
        let from = state.undo.len().saturating_sub(n);
        let lost = state.undo.split_off(from);
        for (at, bytes) in lost.iter().rev() {
            self.inner.write_at(bytes, *at)?;
        }
        Ok(lost.len())
    }

    fn remember(&self, bytes: usize, at: u64) -> io::Result<()> {
        let mut state = self.plan.inner.0.lock();
        if state.keeps_undo {
            let mut old = vec![0; bytes];
            self.inner.read_at(&mut old, at)?;
            state.undo.push((at, old));
        }
        Ok(())
    }
}

impl<F: BlockFile> BlockFile for FaultFile<F> {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        match self.plan.fault(IoKind::Read, at, buf.len()) {
            Some(Fault::Error(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short(n)) => {
                let n = n.min(buf.len());
                return self.inner.read_at(&mut buf[..n], at);
            }
            Some(Fault::Flip(i)) => {
                let n = self.inner.read_at(buf, at)?;
                let i = i % n.max(1);
                buf[i] ^= 1;
                return Ok(n);
            }
            Some(Fault::Delay(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            Some(Fault::Stuck) => self.plan.wait_released(),
            Some(Fault::Lost) | None => {}
        }
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        match self.plan.fault(IoKind::Write, at, buf.len()) {
            Some(Fault::Error(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short(n)) => {
                let n = n.min(buf.len());
                self.remember(n, at)?;
                return self.inner.write_at(&buf[..n], at);
            }
            Some(Fault::Flip(i)) => {
                let mut bytes = buf.to_vec();
                let i = i % bytes.len().max(1);
                bytes[i] ^= 1;
                self.remember(buf.len(), at)?;
                return self.inner.write_at(&bytes, at);
            }
            Some(Fault::Lost) => return Ok(buf.len()),
            Some(Fault::Delay(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            Some(Fault::Stuck) => self.plan.wait_released(),
            None => {}
        }
        self.remember(buf.len(), at)?;
        self.inner.write_at(buf, at)
    }

    fn sync(&self) -> io::Result<()> {
        match self.plan.fault(IoKind::Flush, 0, 0) {
            Some(Fault::Error(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Delay(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            Some(Fault::Stuck) => self.plan.wait_released(),
            _ => {}
        }
        self.inner.sync()?;
        self.plan.inner.0.lock().undo.clear();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn sector_bytes(&self) -> u32 {
        self.inner.sector_bytes()
    }

    fn direct(&self) -> bool {
        self.inner.direct()
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}
