// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Deadlines around any device: a transfer without answer is given up, its memory is not.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Disk;
use crate::clock::monotonic_us;
use crate::error::{Error, IoKind};
use crate::sys::Buf;
use crate::transfer::{Finished, Piece, Transfer, WhenDone};

struct Waiting {
    kind: IoKind,
    at: u64,
    since_us: u64,
    done: WhenDone,
}

#[derive(Default)]
struct Table {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// Given up, and not yet let go by the device.
    stuck: u64,
    /// Memory of given-up transfers that the device let go of after all.
    late: Vec<Buf>,
}

/// A transfer without its name: kind, byte offset on the device, memory, and who is told.
pub type Part = (IoKind, u64, Vec<Piece>, WhenDone);

/// A device whose transfers have deadlines.
pub struct Guard {
    disk: Arc<dyn Disk>,
    table: Arc<Mutex<Table>>,
    deadline_us: u64,
}

impl Guard {
    /// Puts deadlines of so many milliseconds around `disk`. 0: every transfer is over its time at once.
    pub fn new(disk: Arc<dyn Disk>, deadline_ms: u64) -> Self {
        Self {
            disk,
            table: Arc::default(),
            deadline_us: deadline_ms.saturating_mul(1000),
        }
    }

    /// The device.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Starts transfers; returns the first's id, the others follow.
    pub fn submit(&self, parts: Vec<Part>) -> u64 {
        let since_us = monotonic_us();
        let mut table = self.table.lock();
        let first = table.next;
        table.next += parts.len() as u64;
        let transfers = parts
            .into_iter()
            .enumerate()
            .map(|(i, (kind, at, pieces, done))| {
                let id = first + i as u64;
                table.waiting.insert(
                    id,
                    Waiting {
                        kind,
                        at,
                        since_us,
                        done,
                    },
                );
                let shared = self.table.clone();
                let done: WhenDone = Box::new(move |finished| answered(&shared, id, finished));
                Transfer {
                    id,
                    kind,
                    at,
                    pieces,
                    done,
                }
            });
        let transfers = transfers.collect();
        drop(table);
        self.disk.submit(transfers);
        first
    }

    /// Takes a transfer back, if it is not over.
    pub fn cancel(&self, id: u64) {
        self.disk.cancel(id);
    }

    /// Gives up what is over its deadline. Called now and then.
    pub fn expire(&self) {
        let now = monotonic_us();
        let mut table = self.table.lock();
        let over = |w: &Waiting| now.saturating_sub(w.since_us) > self.deadline_us;
        let ids: Vec<u64> = table
            .waiting
            .iter()
            .filter(|(_, w)| over(w))
            .map(|(id, _)| *id)
            .collect();
        let given_up: Vec<_> = ids
            .iter()
            .filter_map(|id| Some((*id, table.waiting.remove(id)?)))
            .collect();
        table.stuck += given_up.len() as u64;
        drop(table);
        if given_up.is_empty() {
            return;
        }
        for (id, w) in given_up {
            self.disk.cancel(id);
            let (kind, at, deadline_ms) = (w.kind, w.at, self.deadline_us / 1000);
            let result = Err(Error::Deadline {
                kind,
                at,
                deadline_ms,
            });
            (w.done)(Finished {
                pieces: Vec::new(),
                result,
                device_us: 0,
            });
        }
        self.disk.replace();
    }

    /// Transfers that were given up and that the device still holds.
    pub fn stuck(&self) -> u64 {
        self.table.lock().stuck
    }

    /// Transfers that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.table.lock().waiting.len()
    }

    /// Memory of given-up transfers that is free again.
    pub fn take_late(&self) -> Vec<Buf> {
        std::mem::take(&mut self.table.lock().late)
    }
}

fn answered(table: &Mutex<Table>, id: u64, finished: Finished) {
    let mut t = table.lock();
    match t.waiting.remove(&id) {
        Some(waiting) => {
            drop(t);
            (waiting.done)(finished);
        }
        None => {
            t.stuck = t.stuck.saturating_sub(1);
            t.late.extend(finished.pieces.into_iter().map(|p| p.buf));
        }
    }
}
