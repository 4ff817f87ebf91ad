// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The node's one thread of its own: it keeps time for the core, sees clients die, and moves blocks.
//!
//! It needs no async runtime, so an embedded node runs in any process.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::Shared;
use super::state::Move;
use super::trace::Line;
use crate::core::SessionId;
use crate::error::{Error, Result};

/// The thread, and how to reach it.
#[derive(Debug)]
pub(super) struct Janitor {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inbox {
    wake: OwnedFd,
    stop: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

#[derive(Debug)]
enum Order {
    Watch(SessionId, OwnedFd),
    Unwatch(SessionId),
}

impl Janitor {
    pub(super) fn start(
        shared: Arc<Shared>,
        tick_ms: u32,
        watches: Vec<(SessionId, OwnedFd)>,
    ) -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::os("create an", "eventfd".as_ref())(error.into()))?;
        let inbox = Arc::new(Inbox {
            wake,
            stop: AtomicBool::new(false),
            orders: Mutex::default(),
        });
        let thread = std::thread::Builder::new()
            .name("pegaflow-node".to_owned())
            .spawn({
                let inbox = inbox.clone();
                move || run(&shared, &inbox, tick_ms, watches)
            })
            .map_err(Error::os("start the thread", "pegaflow-node".as_ref()))?;
        Ok(Self {
            inbox,
            thread: Some(thread),
        })
    }

    /// Sees to it that the session ends with its process.
    pub(super) fn watch(&self, session: SessionId, pidfd: OwnedFd) {
        self.order(Order::Watch(session, pidfd));
    }

    pub(super) fn unwatch(&self, session: SessionId) {
        self.order(Order::Unwatch(session));
    }

    fn order(&self, order: Order) {
        self.inbox.orders.lock().push(order);
        self.inbox.ring();
    }
}

impl Inbox {
    fn ring(&self) {
        // Only fails when the counter is full, and then the thread is awake already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.inbox.stop.store(true, Ordering::Release);
        self.inbox.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the node's thread panicked");
        }
    }
}

fn run(shared: &Shared, inbox: &Inbox, tick_ms: u32, mut watches: Vec<(SessionId, OwnedFd)>) {
    let pause = Timespec {
        tv_sec: i64::from(tick_ms / 1000),
        tv_nsec: i64::from(tick_ms % 1000) * 1_000_000,
    };
    while !inbox.stop.load(Ordering::Acquire) {
        for session in wait(inbox, &watches, &pause) {
            tracing::debug!(session = session.0, "a client's process is gone");
            shared.session_gone(session);
            watches.retain(|(other, _)| *other != session);
        }
        for order in std::mem::take(&mut *inbox.orders.lock()) {
            match order {
                Order::Watch(session, pidfd) => watches.push((session, pidfd)),
                Order::Unwatch(session) => watches.retain(|(other, _)| *other != session),
            }
        }
        let (moves, lines) = shared.with(|state, now| {
            state.core.tick(now, &mut state.actions);
            state.apply(None);
            state.tickets.expire(now);
            state.expire_traces();
            (std::mem::take(&mut state.moves), state.traces.take_lines())
        });
        // What no connection has done by now.
        while shared.evict_ahead() {}
        lines.iter().for_each(Line::log);
        moves.iter().for_each(|order| move_block(shared, order));
    }
}

/// Waits for the tick, an order, or the end of a process; says which sessions are over.
fn wait(inbox: &Inbox, watches: &[(SessionId, OwnedFd)], pause: &Timespec) -> Vec<SessionId> {
    let mut fds = vec![PollFd::new(&inbox.wake, PollFlags::IN)];
    fds.extend(
        watches
            .iter()
            .map(|(_, pidfd)| PollFd::new(pidfd, PollFlags::IN)),
    );
    if poll(&mut fds, Some(pause)).is_err() {
        return vec![];
    }
    if !fds[0].revents().is_empty() {
        let _ = rustix::io::read(&inbox.wake, &mut [0; 8]);
    }
    let ended = fds[1..].iter().zip(watches);
    ended
        .filter(|(fd, _)| !fd.revents().is_empty())
        .map(|(_, (session, _))| *session)
        .collect()
}

/// Copies a block outside the lock: nobody writes to either place meanwhile, the source is pinned.
fn move_block(shared: &Shared, order: &Move) {
    let pool = |place: crate::core::Place| usize::from(place.pool());
    let (from, to) = (pool(order.from), pool(order.to));
    let memory =
        shared.with(|state, _| (state.pools[from].data.clone(), state.pools[to].data.clone()));
    let copied = memory.0.copy_to(
        order.from.offset(),
        &memory.1,
        order.to.offset(),
        order.bytes,
    );
    shared.with(|state, _| {
        let recorded = copied.is_ok()
            && state.pools[from].copy_record(
                order.from.offset(),
                &state.pools[to],
                order.to.offset(),
                order.generation,
            );
        let done = state
            .core
            .move_done(order.from, recorded, &mut state.actions);
        debug_assert!(done.is_ok(), "{done:?}");
        state.apply(None);
    });
}
