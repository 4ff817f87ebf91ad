// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the kernel says about this process, under the names that dashboards expect.

use std::path::Path;

use super::table;

/// Clock ticks in a second in `/proc`; the kernel's interface fixes it at 100 on every platform
/// PegaFlow runs on.
const TICKS: f64 = 100.0;

/// Figures of one process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    /// Processor time.
    pub cpu_seconds: f64,
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Memory in RAM without shared memory (the pool).
    pub private_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Most file descriptors that may be open.
    pub max_fds: u64,
    /// Start, in seconds since 1970.
    pub start_seconds: f64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// Reads the figures from a process's directory below `proc` (`/proc`): `self` or a number. What
    /// cannot be read is 0.
    #[must_use]
    pub fn read(proc: &Path, pid: &str) -> Self {
        let dir = proc.join(pid);
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let (stat, status) = (text(&dir.join("stat")), text(&dir.join("status")));
        // The second field is the name in parentheses and may hold anything.
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |i: usize| {
            fields
                .get(i)
                .and_then(|f| f.parse::<f64>().ok())
                .unwrap_or(0.0)
                / TICKS
        };
        let kib = |name| number(&status, name).saturating_mul(1024);
        Self {
            cpu_seconds: ticks(11) + ticks(12),
            resident_bytes: kib("VmRSS:"),
            private_bytes: kib("RssAnon:").saturating_add(kib("RssFile:")),
            open_fds: std::fs::read_dir(dir.join("fd")).map_or(0, |d| d.count() as u64),
            max_fds: number(&text(&dir.join("limits")), "Max open files"),
            start_seconds: number(&text(&proc.join("stat")), "btime ") as f64 + ticks(19),
            threads: number(&status, "Threads:"),
        }
    }

    /// Sets the metrics.
    pub fn publish(&self) {
        // The facade's counters are whole; processor time is published in whole seconds.
        table::PROCESS_CPU_SECONDS
            .counter(&[])
            .absolute(self.cpu_seconds as u64);
        table::PROCESS_RESIDENT_BYTES
            .gauge(&[])
            .set(self.resident_bytes as f64);
        table::PROCESS_PRIVATE_BYTES
            .gauge(&[])
            .set(self.private_bytes as f64);
        table::PROCESS_OPEN_FDS.gauge(&[]).set(self.open_fds as f64);
        table::PROCESS_MAX_FDS.gauge(&[]).set(self.max_fds as f64);
        table::PROCESS_START_TIME.gauge(&[]).set(self.start_seconds);
        table::PROCESS_THREADS.gauge(&[]).set(self.threads as f64);
    }
}

/// The first number after `name` at the start of a line; 0 if there is none.
fn number(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|r| r.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, text).expect("write a fixture");
        };
        write("stat", "cpu 1 2\nbtime 1000\n");
        write(
            "7/stat",
            "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 150 0 0 20 0 4 0 500 0\n",
        );
        write(
            "7/status",
            "Name:\ta) b\nVmRSS:\t  20 kB\nRssAnon:\t 8 kB\nRssFile:\t 2 kB\nThreads:\t4\n",
        );
        write(
            "7/limits",
            "Limit  Soft\nMax open files            1024   4096   files\n",
        );
        write("7/fd/0", "");
        let expect = Process {
            cpu_seconds: 4.0,
            resident_bytes: 20 << 10,
            private_bytes: 10 << 10,
            open_fds: 1,
            max_fds: 1024,
            start_seconds: 1005.0,
            threads: 4,
        };
        assert_eq!(Process::read(dir.path(), "7"), expect);
        assert_eq!(
            Process::read(dir.path(), "8"),
            Process {
                start_seconds: 1000.0,
                ..Process::default()
            }
        );
    }

    #[test]
    fn this_process() {
        let process = Process::read(Path::new("/proc"), "self");
        assert!(process.resident_bytes > 0 && process.open_fds > 0 && process.threads > 0);
    }
}
