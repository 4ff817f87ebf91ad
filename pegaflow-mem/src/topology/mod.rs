// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What the machine is made of: NUMA nodes, and the GPUs, network cards and drives on its PCI buses.
//!
//! Read from sysfs once; afterwards plain data. Whatever sysfs does not say is left out, never guessed: a machine
//! without NUMA is one node. Knows nothing of drivers.

mod pci;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

pub use pci::{PciDevice, PciDistance, PciKind};

/// Highest CPU number believed.
const CPUS_MAX: u32 = 1 << 16;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// NUMA nodes, by number.
    pub nodes: Vec<NumaNode>,
    /// GPUs, network cards and NVMe drives, by PCI address.
    pub devices: Vec<PciDevice>,
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs, by number.
    pub cpus: Vec<u32>,
    /// Bytes of memory on it; 0 if not known.
    pub memory_bytes: u64,
    /// Bytes of it that are free; 0 if not known.
    pub free_bytes: u64,
    /// Reserved huge pages on it, one row per page size.
    pub huge: Vec<HugePool>,
    /// Relative cost of memory of each node (10 is local), in the order of nodes that have one.
    pub distances: Vec<u32>,
}

/// Reserved huge pages of one size on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePool {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages reserved.
    pub total: u64,
    /// Pages of them that are free.
    pub free: u64,
}

impl Topology {
    /// Reads the running machine.
    pub fn this_machine() -> Self {
        Self::read(Path::new("/sys"))
    }

    /// Reads a machine from its sysfs tree. Never fails: what is missing or unreadable is left out.
    pub fn read(sys: &Path) -> Self {
        let mut nodes: Vec<NumaNode> = names(&sys.join("devices/system/node"))
            .iter()
            .filter_map(|name| name.strip_prefix("node")?.parse().ok())
            .map(|id| read_node(sys, id))
            .collect();
        nodes.sort_by_key(|n| n.id);
        if nodes.is_empty() {
            nodes.push(only_node(sys));
        }
        Self {
            nodes,
            devices: pci::read(sys),
        }
    }

    /// Nodes that have memory of their own: each gets a pool.
    pub fn memory_nodes(&self) -> impl Iterator<Item = &NumaNode> {
        let known = self.nodes.iter().any(|n| n.memory_bytes > 0);
        self.nodes
            .iter()
            .filter(move |n| !known || n.memory_bytes > 0)
    }

    /// The node of a device; the first node if sysfs does not say.
    pub fn node_of(&self, device: &PciDevice) -> u32 {
        let first = self.nodes.first().map_or(0, |n| n.id);
        device.node.unwrap_or(first)
    }

    /// Devices of a kind, nearest to `from` first; at equal distance by address.
    pub fn nearest(&self, from: &PciDevice, kind: PciKind) -> Vec<(PciDistance, &PciDevice)> {
        let of_kind = self
            .devices
            .iter()
            .filter(|d| d.kind == kind && d.address != from.address);
        let mut found: Vec<_> = of_kind.map(|d| (from.distance(d), d)).collect();
        found.sort_by(|a, b| (a.0, &a.1.address).cmp(&(b.0, &b.1.address)));
        found
    }
}

fn read_node(sys: &Path, id: u32) -> NumaNode {
    let dir = sys.join(format!("devices/system/node/node{id}"));
    let memory = fs::read_to_string(dir.join("meminfo")).unwrap_or_default();
    let distances = text(&dir.join("distance"));
    let mut huge: Vec<HugePool> = names(&dir.join("hugepages"))
        .iter()
        .filter_map(|name| {
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let pages = dir.join("hugepages").join(name);
            let count = |file| text(&pages.join(file)).parse().unwrap_or(0);
            Some(HugePool {
                page_bytes: kib.checked_mul(1024)?,
                total: count("nr_hugepages"),
                free: count("free_hugepages"),
            })
        })
        .collect();
    huge.sort_by_key(|h| h.page_bytes);
    NumaNode {
        id,
        cpus: parse_list(&text(&dir.join("cpulist"))),
        memory_bytes: meminfo(&memory, "MemTotal:"),
        free_bytes: meminfo(&memory, "MemFree:"),
        huge,
        distances: distances
            .split_whitespace()
            .filter_map(|d| d.parse().ok())
            .collect(),
    }
}

fn only_node(sys: &Path) -> NumaNode {
    let cpus = parse_list(&text(&sys.join("devices/system/cpu/online")));
    NumaNode {
        cpus,
        distances: vec![10],
        ..NumaNode::default()
    }
}

/// A line such as `Node 0 MemTotal:  1024 kB`, in bytes.
fn meminfo(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|w| *w != key);
        words.nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    });
    value.unwrap_or(0)
}

/// A list such as `0-3,8,10-11`; what does not parse is left out.
fn parse_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<u32>().ok()?);
        Some(first..=last.min(CPUS_MAX))
    };
    text.split(',')
        .filter_map(range)
        .flatten()
        .take(CPUS_MAX as usize)
        .collect()
}

fn text(file: &Path) -> String {
    fs::read_to_string(file)
        .map(|t| t.trim().to_owned())
        .unwrap_or_default()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}
