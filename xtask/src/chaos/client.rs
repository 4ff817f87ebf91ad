// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A replaying process that is watched through the JSON lines it prints.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context as _;
use serde_json::Value;

use crate::programs::Running;

/// Running totals of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) blocks_referenced: u64,
    pub(super) prefix_hit_blocks: u64,
    pub(super) late_hit_blocks: u64,
    pub(super) bytes_verified: u64,
    pub(super) mismatches: u64,
    pub(super) damaged_blocks: u64,
    pub(super) unavailable: u64,
}

/// Totals and outages so far.
#[derive(Debug, Default)]
struct Log {
    seen: Seen,
    recoveries_ms: Vec<f64>,
}

/// A replaying process.
pub(super) struct Client {
    process: Running,
    log: Arc<Mutex<Log>>,
}

impl Client {
    /// Starts one; `command` is a replay.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        command
            .args(["--progress", "events"])
            .stdout(Stdio::piped());
        let mut process = Running::start(command)?;
        let stdout = process.child().stdout.take().context("stdout is piped")?;
        let log: Arc<Mutex<Log>> = Arc::default();
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lock(&writer).take(&line);
            }
        });
        Ok(Self { process, log })
    }

    /// What it has done so far.
    pub(super) fn seen(&self) -> Seen {
        lock(&self.log).seen
    }

    /// Outages that ended since the last call, milliseconds.
    pub(super) fn take_recoveries_ms(&self) -> Vec<f64> {
        std::mem::take(&mut lock(&self.log).recoveries_ms)
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    // A panic cannot leave a log half changed: every field stands for itself.
    log.lock().unwrap_or_else(|e| e.into_inner())
}

impl Log {
    // A line that was cut by a kill is no event.
    fn take(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let count = |name: &str| event["counts"][name].as_u64().unwrap_or(0);
        self.seen = Seen {
            requests: count("requests"),
            blocks_referenced: count("blocks_referenced"),
            prefix_hit_blocks: count("prefix_hit_blocks"),
            late_hit_blocks: count("late_hit_blocks"),
            bytes_verified: count("bytes_verified"),
            mismatches: count("mismatches"),
            damaged_blocks: count("damaged_blocks"),
            unavailable: count("unavailable"),
        };
        let recovered = event["recoveries_ms"].as_array().into_iter().flatten();
        self.recoveries_ms
            .extend(recovered.filter_map(Value::as_f64));
    }
}

impl Seen {
    /// Adds another process's totals.
    pub(super) fn add(&mut self, other: Seen) {
        self.requests += other.requests;
        self.blocks_referenced += other.blocks_referenced;
        self.prefix_hit_blocks += other.prefix_hit_blocks;
        self.late_hit_blocks += other.late_hit_blocks;
        self.bytes_verified += other.bytes_verified;
        self.mismatches += other.mismatches;
        self.damaged_blocks += other.damaged_blocks;
        self.unavailable += other.unavailable;
    }

    /// What was added since `before`.
    pub(super) fn since(&self, before: &Seen) -> Seen {
        Seen {
            requests: self.requests.saturating_sub(before.requests),
            blocks_referenced: self
                .blocks_referenced
                .saturating_sub(before.blocks_referenced),
            prefix_hit_blocks: self
                .prefix_hit_blocks
                .saturating_sub(before.prefix_hit_blocks),
            late_hit_blocks: self.late_hit_blocks.saturating_sub(before.late_hit_blocks),
            bytes_verified: self.bytes_verified.saturating_sub(before.bytes_verified),
            mismatches: self.mismatches.saturating_sub(before.mismatches),
            damaged_blocks: self.damaged_blocks.saturating_sub(before.damaged_blocks),
            unavailable: self.unavailable.saturating_sub(before.unavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_rubbish_is_not() {
        let mut log = Log::default();
        log.take(r#"{"counts":{"requests":3,"mismatches":1},"recoveries_ms":[5.5]}"#);
        log.take(r#"{"counts":{"requ"#);
        log.take(r#"{"counts":{"requests":4,"mismatches":1},"recoveries_ms":[7]}"#);
        assert_eq!((log.seen.requests, log.seen.mismatches), (4, 1));
        assert_eq!(log.recoveries_ms, [5.5, 7.0]);
    }
}
