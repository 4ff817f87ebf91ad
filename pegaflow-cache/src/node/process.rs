// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Which process a client is, and whether it is gone.
//!
//! A pid alone is not a process: pids are used again. A process is its pid and the time it
//! started, both as the kernel states them in `/proc`.
//!
//! Invariant: [`Process::watch`] never returns a descriptor of another process than the one named.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process of this machine, over the reuse of pids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its pid, as this process sees it.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// What became of a process.
#[derive(Debug)]
pub enum Watch {
    /// It lives; the descriptor becomes readable when it ends.
    Alive(OwnedFd),
    /// It is gone: nothing of it touches any memory.
    Gone,
}

impl Process {
    /// The process that has this pid now, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_ticks = start_ticks(&stat)?;
        Some(Self { pid, start_ticks })
    }

    /// This process.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
            .ok_or_else(|| io::Error::other("/proc/self/stat cannot be read: is /proc mounted?"))
    }

    /// A descriptor that becomes readable when the process ends.
    ///
    /// # Errors
    /// Anything but "no such process", such as a kernel without pidfd (before 5.3).
    pub fn watch(self) -> io::Result<Watch> {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the client's pid is not visible from here"))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(Watch::Gone),
            Err(error) => return Err(error.into()),
        };
        // Opened first, checked second: the descriptor pins the process it was opened for, so
        // the start time read now is that process's or, if it ended meanwhile, a later one's.
        if Self::of(self.pid) == Some(self) {
            Ok(Watch::Alive(pidfd))
        } else {
            Ok(Watch::Gone)
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`. The second field is a name in brackets that may itself hold
/// spaces and brackets, so fields are counted from the last bracket.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_name_of_a_process_cannot_move_its_fields() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        for name in ["sleep", "a b", "x) S 1 2 (y"] {
            assert_eq!(start_ticks(&format!("12 ({name}) {tail}")), Some(777));
        }
        for bad in ["", "12 (x", "12 (x) S 1 2"] {
            assert_eq!(start_ticks(bad), None);
        }
    }

    #[test]
    fn a_process_is_watched_until_it_is_gone() {
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep exists");
        let process = Process::of(child.id()).expect("it runs");
        let Watch::Alive(pidfd) = process.watch().expect("pidfd works") else {
            panic!("it runs")
        };
        child.kill().expect("it is ours");
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).expect("poll works");
        child.wait().expect("it is ours");
        assert!(matches!(process.watch(), Ok(Watch::Gone)));
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_it() {
        let mut process = Process::current().expect("/proc is there");
        process.start_ticks += 1;
        assert!(matches!(process.watch(), Ok(Watch::Gone)));
    }
}
