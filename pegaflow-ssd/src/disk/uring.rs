// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The fast backend: one thread with one ring. Submissions never wait for completions.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::threads::answer;
use super::{Disk, DiskInfo, DiskLoad, Scheduler};
use crate::clock::monotonic_us;
use crate::error::{Error, IoKind};
use crate::ring::{Ring, RingDone, RingJob, RingSettings, Waker};
use crate::settings::IoSettings;
use crate::sys::{BlockFile, Region};
use crate::transfer::{Finished, Transfer, WhenDone};

/// How long a closing device is waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A device run by an io_uring.
pub struct UringDisk {
    file: Arc<dyn BlockFile>,
    settings: IoSettings,
    engine: Mutex<Arc<Inbox>>,
    regions: Mutex<Vec<Region>>,
    notes: Mutex<Vec<String>>,
}

/// What other threads leave for the ring's thread.
struct Inbox {
    state: Mutex<InboxState>,
    /// Told when the ring's thread has ended.
    ended: Condvar,
    waker: Waker,
    /// Set while the ring's thread may sleep in the kernel: only then a wake-up is needed.
    sleeping: AtomicBool,
}

#[derive(Default)]
struct InboxState {
    transfers: Vec<Transfer>,
    cancels: Vec<u64>,
    regions: Vec<Region>,
    closed: bool,
    ended: bool,
    load: DiskLoad,
}

impl Inbox {
    fn leave(&self, leave: impl FnOnce(&mut InboxState)) {
        leave(&mut self.state.lock());
        self.wake();
    }

    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

impl UringDisk {
    /// Makes the ring and starts its thread.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn new(file: Arc<dyn BlockFile>, settings: &IoSettings) -> io::Result<Self> {
        let (inbox, notes) = start(&file, settings, Vec::new())?;
        Ok(Self {
            file,
            settings: settings.clone(),
            engine: Mutex::new(inbox),
            regions: Mutex::default(),
            notes: Mutex::new(notes),
        })
    }
}

fn start(
    file: &Arc<dyn BlockFile>,
    settings: &IoSettings,
    regions: Vec<Region>,
) -> io::Result<(Arc<Inbox>, Vec<String>)> {
    let inbox = Arc::new(Inbox {
        state: Mutex::new(InboxState {
            regions,
            ..InboxState::default()
        }),
        ended: Condvar::new(),
        waker: Waker::new()?,
        sleeping: AtomicBool::new(false),
    });
    let (tell, told) = mpsc::channel();
    let (file, settings, theirs) = (file.clone(), settings.clone(), inbox.clone());
    thread::Builder::new()
        .name("ssd-ring".into())
        .spawn(move || {
            // Made here, because only the thread that made a ring may use it.
            let made = make_ring(file, &settings);
            match made {
                Ok(mut ring) => {
                    if !ring.polls() {
                        ring.watch(&theirs.waker);
                    }
                    let _ = tell.send(Ok(ring.notes().to_vec()));
                    Engine::new(ring, &settings, theirs.clone()).run();
                    theirs.state.lock().ended = true;
                    theirs.ended.notify_all();
                }
                Err(e) => drop(tell.send(Err(e))),
            }
        })?;
    let notes = told.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
    Ok((inbox, notes))
}

fn make_ring(file: Arc<dyn BlockFile>, settings: &IoSettings) -> io::Result<Ring> {
    let ring_settings = RingSettings {
        entries: settings.read_ops_max + settings.write_ops_max,
        sqpoll_idle_ms: settings.sqpoll_idle_ms,
        iopoll: settings.iopoll && file.direct(),
    };
    Ring::new(file, &ring_settings)
}

impl Disk for UringDisk {
    fn submit(&self, transfers: Vec<Transfer>) {
        // A second look, because the engine may be replaced between the two locks.
        for _ in 0..2 {
            let engine = self.engine.lock().clone();
            let mut state = engine.state.lock();
            if !state.closed {
                state.transfers.extend(transfers);
                drop(state);
                return engine.wake();
            }
        }
        transfers
            .into_iter()
            .for_each(|t| answer(t, Err(Error::Closed), 0));
    }

    fn cancel(&self, id: u64) {
        self.engine.lock().clone().leave(|s| s.cancels.push(id));
    }

    fn register(&self, region: &Region) {
        self.regions.lock().push(region.clone());
        self.engine
            .lock()
            .clone()
            .leave(|s| s.regions.push(region.clone()));
    }

    fn info(&self) -> DiskInfo {
        let mut notes = self.file.notes();
        notes.extend(self.notes.lock().iter().cloned());
        DiskInfo {
            bytes: self.file.bytes(),
            sector_bytes: self.file.sector_bytes(),
            direct: self.file.direct(),
            backend: "io_uring",
            notes,
        }
    }

    fn load(&self) -> DiskLoad {
        let engine = self.engine.lock().clone();
        let state = engine.state.lock();
        let waiting: u64 = state.transfers.iter().map(Transfer::bytes).sum();
        DiskLoad {
            queued: state.load.queued + state.transfers.len() as u64,
            queued_bytes: state.load.queued_bytes + waiting,
            ..state.load
        }
    }

    fn replace(&self) {
        match start(&self.file, &self.settings, self.regions.lock().clone()) {
            Ok((fresh, _)) => {
                let old = std::mem::replace(&mut *self.engine.lock(), fresh.clone());
                // The old thread goes on until the device has answered everything it holds; what it had not started moves over.
                // A cancel names what either of them has.
                let mut state = old.state.lock();
                let left = std::mem::take(&mut state.transfers);
                let cancels = state.cancels.clone();
                state.closed = true;
                drop(state);
                fresh.leave(|s| {
                    s.transfers.extend(left);
                    s.cancels.extend(cancels);
                });
                old.wake();
            }
            Err(e) => self
                .notes
                .lock()
                .push(format!("the ring could not be replaced: {e}")),
        }
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let engine = self.engine.lock().clone();
        engine.leave(|s| s.closed = true);
        // So that the file is free when this returns. A device that does not answer is not waited for.
        let mut state = engine.state.lock();
        while !state.ended {
            if engine.ended.wait_for(&mut state, CLOSE_WAIT).timed_out() {
                return;
            }
        }
    }
}

struct Out {
    kind: IoKind,
    bytes: u64,
    since_us: u64,
    done: WhenDone,
}

/// The ring's thread.
struct Engine {
    ring: Ring,
    inbox: Arc<Inbox>,
    queue: Scheduler<Transfer>,
    out: HashMap<u64, Out>,
    finished: Vec<RingDone>,
    closed: bool,
    polls: bool,
}

impl Engine {
    fn new(ring: Ring, settings: &IoSettings, inbox: Arc<Inbox>) -> Self {
        let queue = Scheduler::new(settings);
        let polls = ring.polls();
        let (out, finished) = (HashMap::new(), Vec::new());
        Self {
            ring,
            inbox,
            queue,
            out,
            finished,
            closed: false,
            polls,
        }
    }

    fn run(mut self) {
        loop {
            self.take_inbox();
            while let Some(transfer) = self.queue.pop() {
                self.begin(transfer);
            }
            if self.closed && self.out.is_empty() {
                return self.close();
            }
            if self.wait().is_err() {
                // The ring itself is broken: its transfers cannot be proven over. The guard above answers them.
                return self.close();
            }
            self.ring.reap(&mut self.finished);
            for done in std::mem::take(&mut self.finished) {
                self.end(done);
            }
        }
    }

    fn take_inbox(&mut self) {
        self.inbox.sleeping.store(false, Ordering::SeqCst);
        let mut state = self.inbox.state.lock();
        let transfers = std::mem::take(&mut state.transfers);
        let cancels = std::mem::take(&mut state.cancels);
        let regions = std::mem::take(&mut state.regions);
        self.closed = state.closed;
        state.load = self.queue.load();
        drop(state);
        regions.iter().for_each(|r| self.ring.register(r));
        for t in transfers {
            self.queue.push(t.kind, t.bytes(), t);
        }
        for id in cancels {
            match self.queue.take(|t| t.id == id) {
                Some(transfer) => answer(transfer, Err(Error::Cancelled), 0),
                None => self.ring.cancel(id),
            }
        }
        if self.closed {
            for t in self.queue.drain() {
                answer(t, Err(Error::Closed), 0);
            }
        }
    }

    fn begin(&mut self, transfer: Transfer) {
        let bytes = transfer.bytes();
        let Transfer {
            id,
            kind,
            at,
            pieces,
            done,
        } = transfer;
        self.out.insert(
            id,
            Out {
                kind,
                bytes,
                since_us: monotonic_us(),
                done,
            },
        );
        let job = RingJob {
            token: id,
            kind,
            at,
            pieces,
        };
        // The budgets together are no larger than the ring.
        if let Err(job) = self.ring.push(job) {
            let result = Err(Error::Io {
                kind,
                at,
                bytes,
                errno: libc::EAGAIN,
            });
            self.end(RingDone {
                token: job.token,
                pieces: job.pieces,
                result,
            });
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.polls && !self.out.is_empty() {
            return self.ring.enter(0, None);
        }
        // Say that we sleep, then look once more: whoever left something in between saw it and did not wake us.
        self.inbox.sleeping.store(true, Ordering::SeqCst);
        let state = self.inbox.state.lock();
        let more = !state.transfers.is_empty()
            || !state.cancels.is_empty()
            || !state.regions.is_empty()
            || state.closed != self.closed;
        drop(state);
        if self.polls && !more {
            // A polling ring cannot wait for the waker: sleep outside of it.
            self.inbox.waker.sleep();
            return Ok(());
        }
        self.ring.enter(usize::from(!more), None)
    }

    fn end(&mut self, done: RingDone) {
        let Some(out) = self.out.remove(&done.token) else {
            return;
        };
        let us = monotonic_us() - out.since_us;
        self.queue.done(out.kind, out.bytes, us);
        (out.done)(Finished {
            pieces: done.pieces,
            result: done.result,
            device_us: us,
        });
    }

    fn close(mut self) {
        let mut state = self.inbox.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.transfers);
        drop(state);
        for t in left.into_iter().chain(self.queue.drain()) {
            answer(t, Err(Error::Closed), 0);
        }
    }
}
