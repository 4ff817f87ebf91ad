// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Reading what the kernel says about a machine. A file that is missing or odd is a fact that is
//! absent, never an error: a probe must work where little does.

use std::path::Path;

use pegaflow_mem::topology::{HugePool, NumaNode, Topology};

use super::devices::{self, Drive, Gpu, Rdma};

/// What was found on a machine. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Facts {
    /// Kernel release, such as `6.8.0-45-generic`.
    pub kernel: String,
    /// Cores this process may run on.
    pub cores: usize,
    /// Vector extensions that the copy and checksum code can use, best last.
    pub vectors: Vec<String>,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Memory that could be used now without swapping.
    pub available_bytes: u64,
    /// Limit of the control group (container), if there is one.
    pub cgroup_bytes: Option<u64>,
    /// NUMA nodes, by number.
    pub nodes: Vec<Node>,
    /// Transparent huge pages for private memory: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Transparent huge pages for shared memory: `always`, `advise`, `within_size`, `never`...
    pub transparent_huge_pages_shmem: Option<String>,
    /// How much memory this user may lock.
    pub memlock: Option<Memlock>,
    /// `kernel.io_uring_disabled`: 0 on, 1 for privileged only, 2 off; absent before Linux 6.6.
    pub io_uring_disabled: Option<u32>,
    /// What was tried rather than read.
    pub live: Live,
    /// Version of the NVIDIA kernel driver, if it is loaded.
    pub nvidia_driver: Option<String>,
    /// Where `libcuda.so.1` lies.
    pub libcuda: Option<String>,
    /// GPUs on the PCI bus.
    pub gpus: Vec<Gpu>,
    /// Where `libibverbs.so.1` lies.
    pub libibverbs: Option<String>,
    /// RDMA devices.
    pub rdma: Vec<Rdma>,
    /// Solid-state drives.
    pub drives: Vec<Drive>,
}

/// A NUMA node.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its cores as the kernel lists them: `0-15,32-47`.
    pub cpus: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Of it, free.
    pub free_bytes: u64,
    /// Reserved huge pages, by page size.
    pub huge_pages: Vec<HugePages>,
}

/// Reserved huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct HugePages {
    /// Size of a page.
    pub page_bytes: u64,
    /// Pages reserved.
    pub total: u64,
    /// Of them, free.
    pub free: u64,
}

/// `RLIMIT_MEMLOCK`; `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Memlock {
    /// What holds now.
    pub soft_bytes: Option<u64>,
    /// Up to where this user may raise it.
    pub hard_bytes: Option<u64>,
}

/// Room on a file system.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// Of it, free for this user.
    pub free_bytes: u64,
}

/// What is found out by trying.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Live {
    /// Why no ring could be set up; `None` when one could, or none was tried.
    pub io_uring_error: Option<String>,
    /// Room in `/dev/shm`, where pools live by default.
    pub shm: Option<Space>,
    /// Whether this is root.
    pub root: bool,
}

impl Live {
    /// Sets up a small ring and drops it, and asks the file system of `shm` for its room.
    #[must_use]
    pub fn try_now(shm: &Path) -> Self {
        let ring = io_uring::IoUring::new(4);
        let space = rustix::fs::statvfs(shm).ok().map(|s| Space {
            total_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            free_bytes: s.f_bavail.saturating_mul(s.f_frsize),
        });
        Self {
            io_uring_error: ring.err().map(|error| error.to_string()),
            shm: space,
            root: rustix::process::geteuid().is_root(),
        }
    }
}

impl Facts {
    /// Reads the facts below `root` (`/` for this machine).
    #[must_use]
    pub fn read(root: &Path, live: Live) -> Self {
        let meminfo = read(root, "proc/meminfo");
        let thp = "sys/kernel/mm/transparent_hugepage";
        let dirs = devices::library_dirs(root);
        let topology = Topology::read(&root.join("sys"));
        Self {
            kernel: read(root, "proc/sys/kernel/osrelease").trim().to_owned(),
            cores: cores(&field(&read(root, "proc/self/status"), "Cpus_allowed_list")),
            vectors: vectors(&read(root, "proc/cpuinfo")),
            memory_bytes: kib(&meminfo, "MemTotal"),
            available_bytes: kib(&meminfo, "MemAvailable"),
            cgroup_bytes: cgroup(root),
            nodes: topology.nodes.iter().map(node).collect(),
            transparent_huge_pages: chosen(&read(root, &format!("{thp}/enabled"))),
            transparent_huge_pages_shmem: chosen(&read(root, &format!("{thp}/shmem_enabled"))),
            memlock: memlock(&read(root, "proc/self/limits")),
            io_uring_disabled: number(root, "proc/sys/kernel/io_uring_disabled"),
            live,
            nvidia_driver: devices::nvidia_driver(root),
            libcuda: devices::library(root, &dirs, "libcuda.so.1"),
            gpus: devices::gpus(root, &topology),
            libibverbs: devices::library(root, &dirs, "libibverbs.so.1"),
            rdma: devices::rdma(root),
            drives: devices::drives(root),
        }
    }
}

/// The text of a file below `root`; empty when it cannot be read.
pub(super) fn read(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_default()
}

/// A file that holds one number.
pub(super) fn number<T: std::str::FromStr>(root: &Path, path: &str) -> Option<T> {
    read(root, path).trim().parse().ok()
}

/// Names in a directory below `root`, sorted by their number where they end in one.
pub(super) fn names(root: &Path, path: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(path))
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_by_key(|name| (trailing_number(name), name.clone()));
    names
}

fn trailing_number(name: &str) -> Option<u64> {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().ok()
}

/// The value of `name:` in a file of such lines.
pub(super) fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| {
        line.trim()
            .strip_prefix(name)?
            .trim_start()
            .strip_prefix(':')
    });
    line.unwrap_or_default().trim().to_owned()
}

/// A field in kibibytes, as bytes.
fn kib(text: &str, name: &str) -> u64 {
    let value = field(text, name);
    let number = value
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// How many cores a list such as `0-3,8` names.
fn cores(list: &str) -> usize {
    let count = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        to.checked_sub(from)?.checked_add(1)
    };
    list.split(',')
        .filter_map(count)
        .fold(0, usize::saturating_add)
}

fn vectors(cpuinfo: &str) -> Vec<String> {
    let flags = field(cpuinfo, "flags");
    let known = ["avx2", "avx512f", "avx512bw"];
    known
        .iter()
        .filter(|k| flags.split(' ').any(|f| f == **k))
        .map(|k| (*k).to_owned())
        .collect()
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn memlock(limits: &str) -> Option<Memlock> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"))?;
    let mut words = line.split_whitespace();
    let mut next = || words.next()?.parse().ok();
    Some(Memlock {
        soft_bytes: next(),
        hard_bytes: next(),
    })
}

/// The tightest memory limit of version 2 or 1 of control groups, if it says more than "no limit".
fn cgroup(root: &Path) -> Option<u64> {
    let own = read(root, "proc/self/cgroup");
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .unwrap_or_default();
    let paths = [
        format!("sys/fs/cgroup/{own}/memory.max"),
        "sys/fs/cgroup/memory.max".to_owned(),
        "sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let limits = paths.iter().filter_map(|path| number::<u64>(root, path));
    limits.filter(|bytes| *bytes < 1 << 60).min()
}

fn node(node: &NumaNode) -> Node {
    let huge = |h: &HugePool| HugePages {
        page_bytes: h.page_bytes,
        total: h.total,
        free: h.free,
    };
    Node {
        id: node.id,
        cpus: ranges(&node.cpus),
        memory_bytes: node.memory_bytes,
        free_bytes: node.free_bytes,
        huge_pages: node.huge.iter().map(huge).collect(),
    }
}

/// Ascending numbers as the kernel lists them: `0-3,8`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let run = |run: &[u32]| match run {
        [] => String::new(),
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        assert_eq!(cores("0-3,8,10-11"), 7);
        assert_eq!(cores("3-1,x,"), 0);
        assert_eq!(
            chosen("always [madvise] never\n").as_deref(),
            Some("madvise")
        );
        assert_eq!(chosen("never"), None);
        let limits = "Limit   Soft  Hard Units\nMax locked memory         8388608              unlimited            bytes\n";
        let expect = Memlock {
            soft_bytes: Some(8 << 20),
            hard_bytes: None,
        };
        assert_eq!(memlock(limits), Some(expect));
        assert_eq!(kib("MemTotal:       24 kB\n", "MemTotal"), 24 << 10);
        assert_eq!(field("flags\t\t: fpu avx2", "flags"), "fpu avx2");
    }
}
