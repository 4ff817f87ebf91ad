// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Request traces: the way of a lookup from its question to its release, as one structured log line.
//!
//! Which lookups get a line is decided at their end: those that waited long or got less than they
//! waited for, always; of all others a share. So what nobody will look at costs a counter. Lines are
//! written by the janitor, never under the node's lock.
//!
//! Invariant: every trace that was begun ends as a line or is forgotten, at most one lease's life
//! after its lookup.

use std::collections::HashMap;

use crate::core::{LeaseId, SessionId};
use crate::describe::settings;

settings! {
    /// Which lookups are traced in the log.
    pub struct TraceSettings {
        /// One lookup in so many is traced whatever becomes of it; 0 for none.
        pub one_in: u32 = 100,
        /// A lookup whose blocks took longer to be ready, in milliseconds, is always traced.
        pub slow_ms: u32 = 200,
    }
}

/// One lookup on its way. Times in microseconds since the node started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trace {
    session: SessionId,
    unit: &'static str,
    began_us: u64,
    /// When nothing more was waited for.
    ready_us: Option<u64>,
    keys: u32,
    at_once: u32,
    pending: u32,
    /// Blocks that the lease has by now.
    ready: u32,
    sampled: bool,
}

/// What a lookup found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) session: SessionId,
    /// What is counted at once and pending: blocks, or tokens of all groups.
    pub(super) unit: &'static str,
    pub(super) keys: u32,
    pub(super) at_once: u32,
    pub(super) pending: u32,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Released,
    Expired,
}

/// A line to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    lease: LeaseId,
    trace: Trace,
    outcome: Outcome,
    ended_us: u64,
    why: &'static str,
}

/// Lookups that may become a line.
#[derive(Debug)]
pub(super) struct Traces {
    settings: TraceSettings,
    lookups: u32,
    open: HashMap<LeaseId, Trace>,
    lines: Vec<Line>,
}

/// Lines that wait for the janitor. Over it they are not written.
const LINES_MAX: usize = 1024;
/// Lookups followed at once. Over it they are not traced.
const OPEN_MAX: usize = 1 << 16;

impl Traces {
    pub(super) fn new(settings: TraceSettings) -> Self {
        Self {
            settings,
            lookups: 0,
            open: HashMap::new(),
            lines: vec![],
        }
    }

    /// Whether the next lookup must be noted; `waits`: it has something to wait for.
    pub(super) fn wants(&mut self, waits: bool) -> bool {
        self.lookups = self.lookups.wrapping_add(1);
        waits || self.is_sampled()
    }

    fn is_sampled(&self) -> bool {
        self.settings.one_in > 0 && self.lookups.is_multiple_of(self.settings.one_in)
    }

    /// Notes the lookup that was just asked about.
    pub(super) fn begin(&mut self, lease: LeaseId, now_us: u64, seen: Seen) {
        if self.open.len() >= OPEN_MAX {
            return;
        }
        let trace = Trace {
            session: seen.session,
            unit: seen.unit,
            began_us: now_us,
            ready_us: (seen.pending == 0).then_some(now_us),
            keys: seen.keys,
            at_once: seen.at_once,
            pending: seen.pending,
            ready: seen.at_once,
            sampled: self.is_sampled(),
        };
        self.open.insert(lease, trace);
    }

    /// Nothing more is waited for.
    pub(super) fn ready(&mut self, lease: LeaseId, now_us: u64, ready: u32) {
        if let Some(trace) = self.open.get_mut(&lease) {
            (trace.ready_us, trace.ready) = (Some(now_us), ready);
        }
    }

    /// The lease was released. The time is only asked for if it matters.
    pub(super) fn end(&mut self, lease: LeaseId, now_us: impl FnOnce() -> u64) {
        if !self.open.is_empty()
            && let Some(trace) = self.open.remove(&lease)
        {
            self.judge(lease, trace, Outcome::Released, now_us());
        }
    }

    /// Ends what began before `before_us`: its lease is over.
    pub(super) fn expire(&mut self, before_us: u64, now_us: u64) {
        let old = self
            .open
            .iter()
            .filter(|(_, trace)| trace.began_us < before_us);
        let old: Vec<_> = old.map(|(lease, _)| *lease).collect();
        for lease in old {
            if let Some(trace) = self.open.remove(&lease) {
                self.judge(lease, trace, Outcome::Expired, now_us);
            }
        }
    }

    fn judge(&mut self, lease: LeaseId, trace: Trace, outcome: Outcome, ended_us: u64) {
        let waited_us = trace.ready_us.unwrap_or(ended_us) - trace.began_us;
        let why = if waited_us > u64::from(self.settings.slow_ms) * 1000 {
            "slow"
        } else if trace.ready_us.is_some() && trace.ready < trace.at_once + trace.pending {
            "short"
        } else if trace.sampled {
            "sample"
        } else {
            return;
        };
        if self.lines.len() < LINES_MAX {
            self.lines.push(Line {
                lease,
                trace,
                outcome,
                ended_us,
                why,
            });
        }
    }

    /// Lines to be written.
    pub(super) fn take_lines(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.lines)
    }
}

impl Line {
    /// Writes the line.
    pub(super) fn log(&self) {
        let Trace {
            session,
            unit,
            began_us,
            ready_us,
            keys,
            at_once,
            pending,
            ready,
            ..
        } = self.trace;
        tracing::info!(
            target: "pegaflow_cache::trace",
            request_id = self.lease.0,
            session = session.0,
            why = self.why,
            outcome = ?self.outcome,
            keys,
            unit,
            at_once,
            pending,
            ready,
            ready_after_us = ready_us.map(|us| us - began_us),
            held_us = self.ended_us - began_us,
            "lookup"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at_once: u32, pending: u32) -> Seen {
        Seen {
            session: SessionId(1),
            unit: "blocks",
            keys: 10,
            at_once,
            pending,
        }
    }

    /// A script of one lookup against why it is logged.
    fn check(pending: u32, ready: Option<(u64, u32)>, end: u64, why: Option<&str>) {
        let settings = TraceSettings {
            one_in: 0,
            slow_ms: 1,
        };
        let mut traces = Traces::new(settings);
        assert_eq!(traces.wants(pending > 0), pending > 0);
        traces.begin(LeaseId(7), 100, seen(2, pending));
        if let Some((us, ready)) = ready {
            traces.ready(LeaseId(7), us, ready);
        }
        traces.end(LeaseId(7), || end);
        let lines = traces.take_lines();
        assert_eq!(lines.first().map(|line| line.why), why);
        lines.iter().for_each(Line::log);
    }

    #[test]
    fn what_was_slow_or_short_is_always_logged() {
        check(3, Some((1100, 5)), 9000, None);
        check(3, Some((1101, 5)), 9000, Some("slow"));
        check(3, Some((200, 4)), 300, Some("short"));
        // Nobody waited to the end.
        check(3, None, 300, None);
        check(3, None, 1200, Some("slow"));
        check(0, None, 90_000, None);
    }

    #[test]
    fn of_the_rest_one_in_so_many_is() {
        let mut traces = Traces::new(TraceSettings::default());
        for n in 0..1000 {
            if traces.wants(false) {
                traces.begin(LeaseId(n), 0, seen(10, 0));
                traces.end(LeaseId(n), || 1);
            }
        }
        let lines = traces.take_lines();
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().all(|line| line.why == "sample"));
    }

    #[test]
    fn a_lease_that_is_never_released_ends_its_trace() {
        let mut traces = Traces::new(TraceSettings::default());
        traces.begin(LeaseId(1), 5, seen(0, 1));
        traces.expire(5, 900_000);
        assert_eq!(traces.open.len(), 1);
        traces.expire(6, 900_000);
        assert_eq!(traces.take_lines()[0].outcome, Outcome::Expired);
        assert!(traces.open.is_empty());
    }
}
