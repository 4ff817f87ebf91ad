// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Each call in numbers; in words only where it failed in a way that somebody should look at.
//!
//! A call that succeeds costs two readings of the clock and one observation, and logs nothing.

use std::time::Instant;

use metrics::{Counter, Histogram};

use super::frame::Op;
use crate::core::SessionId;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{CALL_FAILURES, CALL_SECONDS, CALLS, KINDS};

/// The metrics of all calls, looked up once.
pub(crate) struct Calls {
    /// In the order of [`CALLS`].
    seconds: Vec<Histogram>,
    /// For each call in that order, in the order of [`KINDS`].
    failures: Vec<Vec<Counter>>,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

impl Calls {
    /// Handles from the recorder in place.
    pub(crate) fn new() -> Self {
        let failures = |call: &'static str| {
            KINDS
                .iter()
                .map(move |kind| CALL_FAILURES.counter(&[call, kind]))
        };
        Self {
            seconds: CALLS
                .iter()
                .map(|call| CALL_SECONDS.histogram(&[call]))
                .collect(),
            failures: CALLS
                .iter()
                .map(|&call| failures(call).collect::<Vec<_>>())
                .collect(),
        }
    }

    /// Runs `serve` as the answer to call `op` with the caller's number `request`.
    pub(crate) fn observe<T>(
        &self,
        op: Op,
        session: SessionId,
        request: u32,
        serve: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        #[expect(
            clippy::disallowed_methods,
            reason = "latency is measured in the shell"
        )]
        let started = Instant::now();
        let served = serve();
        let index = op.call_index().unwrap_or(usize::MAX);
        if let Some(seconds) = self.seconds.get(index) {
            seconds.record(started.elapsed());
        }
        if let Err(error) = &served {
            self.failed(index, op, session, request, error);
        }
        served
    }

    #[cold]
    fn failed(&self, index: usize, op: Op, session: SessionId, request: u32, error: &Error) {
        let kind = kind(error.kind());
        if let Some(counter) = self.failures.get(index).and_then(|kinds| kinds.get(kind)) {
            counter.increment(1);
        }
        let (session, request_id) = (session.0, request);
        match error.kind() {
            ErrorKind::Internal | ErrorKind::Corrupt => {
                tracing::warn!(?op, session, request_id, %error, "call failed");
            }
            _ => tracing::debug!(?op, session, request_id, %error, "call refused"),
        }
    }
}

/// Where the kind stands in [`KINDS`].
fn kind(kind: ErrorKind) -> usize {
    match kind {
        ErrorKind::Retry => 0,
        ErrorKind::Busy => 1,
        ErrorKind::Invalid => 2,
        ErrorKind::Corrupt => 3,
        ErrorKind::Unsupported => 4,
        ErrorKind::Closed => 5,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_name() {
        let snake = |name: String| {
            let part = |c: char| {
                let lower = c.to_ascii_lowercase();
                if c.is_uppercase() {
                    format!("_{lower}")
                } else {
                    lower.to_string()
                }
            };
            name.chars().map(part).collect::<String>()[1..].to_owned()
        };
        let ops = (0..=u16::MAX).filter_map(Op::from_wire);
        let calls: Vec<_> = ops.filter(|op| op.call_index().is_some()).collect();
        for (index, op) in calls.iter().enumerate() {
            assert_eq!(op.call_index(), Some(index));
            assert_eq!(snake(format!("{op:?}")), CALLS[index]);
        }
        assert_eq!(calls.len(), CALLS.len());
    }

    #[test]
    fn every_kind_has_its_name() {
        for (index, name) in KINDS.iter().enumerate() {
            let all = [
                ErrorKind::Retry,
                ErrorKind::Busy,
                ErrorKind::Invalid,
                ErrorKind::Corrupt,
                ErrorKind::Unsupported,
                ErrorKind::Closed,
                ErrorKind::Internal,
            ];
            assert_eq!(kind(all[index]), index);
            assert_eq!(format!("{:?}", all[index]).to_lowercase(), *name);
        }
    }
}
