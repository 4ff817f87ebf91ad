// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the facts mean for PegaFlow, and what to do. Pure.

use super::facts::Facts;
use crate::describe::format_bytes;

/// How good something is for PegaFlow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As good as it gets.
    Good,
    /// Works; could be faster or larger.
    Note,
    /// Something PegaFlow can use is not there, and everything else works without it.
    Missing,
}

/// A judgement on one thing.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Check {
    /// What was looked at: `huge pages`.
    pub name: &'static str,
    /// The judgement.
    pub level: Level,
    /// What was found, on one line.
    pub found: String,
    /// What it means, and what could be done; empty when it is good.
    pub advice: String,
    /// Commands that would do it.
    pub commands: Vec<String>,
}

fn good(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        level: Level::Good,
        found: found.into(),
        advice: String::new(),
        commands: vec![],
    }
}

impl Check {
    fn but(self, level: Level, advice: &str, commands: &[&str]) -> Self {
        let commands = commands.iter().map(|c| (*c).to_owned()).collect();
        Self {
            level,
            advice: advice.to_owned(),
            commands,
            ..self
        }
    }
}

/// One check for each thing, in the order people read them.
pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let all: [fn(&Facts) -> Check; 13] = [
        kernel,
        cpu,
        memory,
        numa,
        shm,
        huge_pages,
        transparent,
        memlock,
        io_uring,
        drives,
        gpus,
        cuda,
        rdma,
    ];
    all.iter().map(|check| check(facts)).collect()
}

fn kernel(facts: &Facts) -> Check {
    let mut numbers = facts
        .kernel
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let check = good("kernel", format!("Linux {}", facts.kernel));
    if version < (5, 10) {
        let advice = "Older than 5.10: PegaFlow needs process file descriptors and a usable io_uring. Update the kernel.";
        return check.but(Level::Missing, advice, &[]);
    }
    check
}

fn cpu(facts: &Facts) -> Check {
    let best = facts.vectors.last().map_or("no AVX2", String::as_str);
    let check = good("cpu", format!("{} cores, {best}", facts.cores));
    if facts.vectors.is_empty() {
        let advice =
            "Checksums and copies use portable code; a CPU with AVX2 is several times faster.";
        return check.but(Level::Note, advice, &[]);
    }
    check
}

fn memory(facts: &Facts) -> Check {
    let (all, available) = (size(facts.memory_bytes), size(facts.available_bytes));
    let limit = facts
        .cgroup_bytes
        .filter(|limit| *limit < facts.memory_bytes);
    match limit {
        None => good("memory", format!("{all}, {available} available")),
        Some(limit) => {
            let found = format!(
                "{all}, {available} available, this container may use {}",
                size(limit)
            );
            let advice = "Pool memory counts against the container's limit: keep `pool.bytes` well below it.";
            good("memory", found).but(Level::Note, advice, &[])
        }
    }
}

fn numa(facts: &Facts) -> Check {
    let nodes = facts
        .nodes
        .iter()
        .map(|n| format!("node{} {} (cpus {})", n.id, size(n.memory_bytes), n.cpus));
    let found = nodes.collect::<Vec<_>>().join("; ");
    if facts.nodes.is_empty() {
        let advice = "The kernel shows no NUMA nodes (usual in some containers): one pool without binding is used.";
        return good("numa", "unknown").but(Level::Note, advice, &[]);
    }
    good("numa", found)
}

fn shm(facts: &Facts) -> Check {
    let advice = "The default pool directory is in /dev/shm, so the pool cannot be larger than that. Make it larger, or set `pool.dir`.";
    let commands = [
        "sudo mount -o remount,size=64G /dev/shm",
        "docker run --shm-size=64g ...",
    ];
    match &facts.live.shm {
        None => good("/dev/shm", "not there").but(Level::Missing, advice, &commands),
        Some(space) => {
            let (total, free) = (size(space.total_bytes), size(space.free_bytes));
            let check = good("/dev/shm", format!("{total}, {free} free"));
            if space.total_bytes < facts.memory_bytes / 4 {
                return check.but(Level::Note, advice, &commands);
            }
            check
        }
    }
}

fn huge_pages(facts: &Facts) -> Check {
    let mut found = vec![];
    for node in &facts.nodes {
        for pages in node.huge_pages.iter().filter(|p| p.total > 0) {
            let (page, all) = (size(pages.page_bytes), pages.total);
            found.push(format!(
                "node{} {all} x {page} ({} free)",
                node.id, pages.free
            ));
        }
    }
    if found.is_empty() {
        let advice = "None reserved. Transparent huge pages serve instead where the kernel allows them; reserved pages cannot be split and register faster with GPUs and NICs. Reserve as many as the pool needs, right after boot.";
        let commands = ["sudo sysctl vm.nr_hugepages=2048   # 4GiB in pages of 2MiB"];
        return good("huge pages", "none reserved").but(Level::Note, advice, &commands);
    }
    good("huge pages", found.join("; "))
}

fn transparent(facts: &Facts) -> Check {
    let show = |word: &Option<String>| word.clone().unwrap_or_else(|| "absent".to_owned());
    let shmem = facts.transparent_huge_pages_shmem.as_deref();
    let found = format!(
        "private {}, shared {}",
        show(&facts.transparent_huge_pages),
        show(&facts.transparent_huge_pages_shmem)
    );
    let check = good("transparent", found);
    match shmem {
        None | Some("never" | "deny") => {
            let advice = "The pool is shared memory and gets pages of 4KiB: more TLB misses, slower registration. Allow huge pages on request:";
            let command =
                "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled";
            check.but(Level::Note, advice, &[command])
        }
        Some(_) => check,
    }
}

fn memlock(facts: &Facts) -> Check {
    let Some(limit) = &facts.memlock else {
        return good("memlock", "unknown");
    };
    let show = |bytes: Option<u64>| bytes.map_or_else(|| "unlimited".to_owned(), size);
    let check = good("memlock", show(limit.soft_bytes));
    if limit.soft_bytes.is_none() || facts.live.root {
        return check;
    }
    let advice = "Registering a pool with an RDMA device or io_uring locks it in memory, up to this limit. (CUDA is not bound by it.)";
    let commands = [
        "ulimit -l unlimited            # this shell, if the hard limit allows",
        "LimitMEMLOCK=infinity          # systemd unit",
        "docker run --ulimit memlock=-1 ...",
    ];
    check.but(Level::Note, advice, &commands)
}

fn io_uring(facts: &Facts) -> Check {
    let Some(error) = &facts.live.io_uring_error else {
        return good("io_uring", "works");
    };
    let check = good("io_uring", format!("no: {error}"));
    match facts.io_uring_disabled {
        Some(1 | 2) => {
            let advice = "Switched off on this machine. The SSD tier then uses threads and pread/pwrite: correct, and slower.";
            check.but(
                Level::Missing,
                advice,
                &["sudo sysctl kernel.io_uring_disabled=0"],
            )
        }
        _ => {
            let advice = "Refused, most likely by the container's seccomp profile. The SSD tier then uses threads and pread/pwrite: correct, and slower. Allow io_uring_setup, io_uring_enter and io_uring_register in the profile.";
            check.but(
                Level::Missing,
                advice,
                &["docker run --security-opt seccomp=profile.json ..."],
            )
        }
    }
}

fn drives(facts: &Facts) -> Check {
    if facts.drives.is_empty() {
        let advice =
            "No solid-state drive is visible: the SSD tier can still use any directory with room.";
        return good("drives", "none").but(Level::Note, advice, &[]);
    }
    let all = facts.drives.iter().map(|d| {
        let name = [d.name.as_str(), d.model.as_str()].join(" ");
        format!("{} {}{}", name.trim(), size(d.bytes), on_node(d.numa_node))
    });
    good("drives", all.collect::<Vec<_>>().join("; "))
}

fn gpus(facts: &Facts) -> Check {
    if facts.gpus.is_empty() {
        let advice =
            "No NVIDIA GPU on the PCI bus. Engines on the CPU work; nothing else is needed.";
        return good("gpus", "none").but(Level::Missing, advice, &[]);
    }
    let all = facts.gpus.iter().map(|g| {
        let model = g.model.as_deref().unwrap_or("unknown model");
        let near = match g.near.as_slice() {
            [] => String::new(),
            names => format!(", near {}", names.join(" ")),
        };
        format!("{} {model}{}{near}", g.pci, on_node(g.numa_node))
    });
    let check = good("gpus", all.collect::<Vec<_>>().join("; "));
    if facts.nvidia_driver.is_some() && facts.gpus.iter().any(|g| !g.device_file) {
        let advice =
            "Not every GPU's device file is visible here. In a container, pass the GPUs in:";
        return check.but(Level::Note, advice, &["docker run --gpus all ..."]);
    }
    check
}

fn cuda(facts: &Facts) -> Check {
    match (&facts.nvidia_driver, &facts.libcuda) {
        (Some(driver), Some(library)) => good("cuda", format!("driver {driver}, {library}")),
        (None, _) if facts.gpus.is_empty() => good("cuda", "not needed without a GPU"),
        (None, _) => {
            let advice = "There is a GPU but its kernel driver is not loaded. Install NVIDIA's driver, or check `dmesg` for why it did not load.";
            good("cuda", "no driver").but(Level::Missing, advice, &["sudo modprobe nvidia"])
        }
        (Some(driver), None) => {
            let advice = "The driver is loaded but libcuda.so.1 was not found. In a container, use the NVIDIA container toolkit; otherwise install the driver's user-space libraries.";
            let found = format!("driver {driver}, no libcuda.so.1");
            good("cuda", found).but(Level::Missing, advice, &["docker run --gpus all ..."])
        }
    }
}

fn rdma(facts: &Facts) -> Check {
    if facts.rdma.is_empty() {
        let advice =
            "No RDMA device: nodes talk over TCP. For tests, soft RoCE on any Ethernet card:";
        let command = "sudo rdma link add rxe0 type rxe netdev eth0";
        return good("rdma", "none").but(Level::Missing, advice, &[command]);
    }
    let all = facts.rdma.iter().map(|d| {
        format!(
            "{} {} {} {}{}",
            d.name,
            d.link,
            d.state,
            d.rate,
            on_node(d.numa_node)
        )
    });
    let check = good("rdma", all.collect::<Vec<_>>().join("; "));
    if facts.libibverbs.is_none() {
        let advice = "The user-space library is missing, so the devices cannot be used.";
        return check.but(
            Level::Missing,
            advice,
            &["sudo apt install libibverbs1 ibverbs-providers"],
        );
    }
    if facts.rdma.iter().all(|d| d.state != "ACTIVE") {
        let advice = "No port is active: check the cable, the switch, and for InfiniBand the subnet manager.";
        return check.but(Level::Missing, advice, &["rdma link show"]);
    }
    check
}

fn on_node(node: Option<u32>) -> String {
    node.map(|n| format!(" on node{n}")).unwrap_or_default()
}

/// A size for people: three digits and a unit.
pub(super) fn size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20)] {
        if bytes >= 1 << shift && !bytes.is_multiple_of(1 << shift) {
            return format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64);
        }
        if bytes >= 1 << shift {
            return format_bytes(bytes);
        }
    }
    format_bytes(bytes)
}
