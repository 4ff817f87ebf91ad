// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The backend that is always there: a few threads with blocking reads and writes.

use std::io;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::{Disk, DiskInfo, DiskLoad, Scheduler};
use crate::clock::monotonic_us;
use crate::error::{Error, IoKind, Result};
use crate::settings::IoSettings;
use crate::sys::{BlockFile, Region};
use crate::transfer::{Finished, Piece, Transfer};

/// A device run by threads.
pub struct ThreadDisk {
    shared: Arc<Shared>,
    threads: u32,
    notes: Vec<String>,
}

struct Shared {
    file: Arc<dyn BlockFile>,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    queue: Scheduler<Transfer>,
    closed: bool,
}

impl ThreadDisk {
    /// Starts the threads. `notes` is what a user should know beside what the file says.
    pub fn new(file: Arc<dyn BlockFile>, settings: &IoSettings, notes: Vec<String>) -> Self {
        let state = State {
            queue: Scheduler::new(settings),
            closed: false,
        };
        let shared = Arc::new(Shared {
            file,
            state: Mutex::new(state),
            work: Condvar::new(),
        });
        let disk = Self {
            shared,
            threads: settings.threads,
            notes,
        };
        disk.replace();
        disk
    }
}

impl Disk for ThreadDisk {
    fn submit(&self, transfers: Vec<Transfer>) {
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            return transfers
                .into_iter()
                .for_each(|t| answer(t, Err(Error::Closed), 0));
        }
        for t in transfers {
            state.queue.push(t.kind, t.bytes(), t);
        }
        drop(state);
        self.shared.work.notify_all();
    }

    fn cancel(&self, id: u64) {
        let taken = self.shared.state.lock().queue.take(|t| t.id == id);
        if let Some(transfer) = taken {
            answer(transfer, Err(Error::Cancelled), 0);
        }
    }

    fn register(&self, _: &Region) {}

    fn info(&self) -> DiskInfo {
        let file = &self.shared.file;
        let notes = file
            .notes()
            .into_iter()
            .chain(self.notes.iter().cloned())
            .collect();
        DiskInfo {
            bytes: file.bytes(),
            sector_bytes: file.sector_bytes(),
            direct: file.direct(),
            backend: "threads",
            notes,
        }
    }

    fn load(&self) -> DiskLoad {
        self.shared.state.lock().queue.load()
    }

    fn replace(&self) {
        for i in 0..self.threads {
            let shared = self.shared.clone();
            let name = format!("ssd-io-{i}");
            let spawned = thread::Builder::new()
                .name(name)
                .spawn(move || shared.run());
            spawned.expect("the system gives a process a few threads");
        }
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        let left = state.queue.drain();
        drop(state);
        self.shared.work.notify_all();
        left.into_iter()
            .for_each(|t| answer(t, Err(Error::Closed), 0));
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            let Some(mut transfer) = state.queue.pop() else {
                if state.closed {
                    return;
                }
                self.work.wait(&mut state);
                continue;
            };
            drop(state);
            let (kind, bytes, start) = (transfer.kind, transfer.bytes(), monotonic_us());
            let result = perform(&*self.file, &mut transfer);
            let us = monotonic_us() - start;
            state = self.state.lock();
            state.queue.done(kind, bytes, us);
            drop(state);
            self.work.notify_one();
            answer(transfer, result, us);
            state = self.state.lock();
        }
    }
}

pub(super) fn answer(transfer: Transfer, result: Result<()>, device_us: u64) {
    (transfer.done)(Finished {
        pieces: transfer.pieces,
        result,
        device_us,
    });
}

fn perform(file: &dyn BlockFile, transfer: &mut Transfer) -> Result<()> {
    let (kind, bytes) = (transfer.kind, transfer.bytes());
    let mut at = transfer.at;
    let result = match kind {
        IoKind::Flush => file.sync(),
        _ => transfer
            .pieces
            .iter_mut()
            .try_for_each(|p| move_piece(file, kind, p, &mut at)),
    };
    result.map_err(|e| Error::io(kind, transfer.at, bytes, &e))
}

/// Moves all of a piece; a short transfer goes on where it stopped.
fn move_piece(
    file: &dyn BlockFile,
    kind: IoKind,
    piece: &mut Piece,
    at: &mut u64,
) -> io::Result<()> {
    let mut moved = 0;
    while moved < piece.bytes {
        let n = match kind {
            IoKind::Read => file.read_at(&mut piece.buf.whole_mut()[moved..piece.bytes], *at),
            _ => file.write_at(&piece.buf.whole()[moved..piece.bytes], *at),
        };
        match n {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                moved += n;
                *at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
