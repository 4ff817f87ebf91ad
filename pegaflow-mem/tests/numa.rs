// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Pools on a machine with several NUMA nodes and reserved huge pages. `cargo xtask vm test` has one and runs this; elsewhere each test says
//! what it misses.
#![allow(clippy::print_stderr, reason = "a test that cannot run says why")]

use pegaflow_mem::topology::{NumaNode, PciKind, Topology};
use pegaflow_mem::{Access, Backing, ErrorKind, HugePages, PageKind, PoolSpec, SharedMemory};
use std::path::PathBuf;
use std::sync::Mutex;

const HUGE: u64 = 2 << 20;
const POOL: u64 = 4 * HUGE;

/// Set in the test VM.
const VM: &str = "PEGAFLOW_VM";

/// Huge pages are counted: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn with_nodes(test: impl Fn(&[NumaNode])) {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let nodes = Topology::this_machine().nodes;
    let free = |n: &NumaNode| huge(n).is_some_and(|(_, free)| free * HUGE >= POOL);
    if nodes.len() >= 2 && nodes.iter().all(free) {
        return test(&nodes);
    }
    assert!(std::env::var_os(VM).is_none(), "the VM has them: {nodes:?}");
    eprintln!(
        "skipped: needs two NUMA nodes with free huge pages (`cargo xtask vm test` has them)"
    );
}

/// Reserved pages of 2 MiB of a node: all, and free ones.
fn huge(node: &NumaNode) -> Option<(u64, u64)> {
    let pool = node.huge.iter().find(|pool| pool.page_bytes == HUGE)?;
    Some((pool.total, pool.free))
}

fn free_now(id: u32) -> u64 {
    let nodes = Topology::this_machine().nodes;
    let node = nodes.iter().find(|n| n.id == id).expect("nodes stay");
    huge(node).expect("as before").1
}

fn spec(pages: HugePages, node: u32, bytes: u64) -> PoolSpec {
    PoolSpec {
        pages,
        node: Some(node),
        touch_threads: 2,
        ..PoolSpec::memfd("numa", bytes)
    }
}

fn all_on(memory: &SharedMemory, node: u32) {
    for offset in (0..memory.len()).step_by(HUGE as usize / 2) {
        assert_eq!(memory.node_at(offset).expect("known"), node, "at {offset}");
    }
}

#[test]
fn each_node_gets_its_own_pool() {
    with_nodes(|nodes| {
        for node in nodes {
            let memory = SharedMemory::create(&spec(HugePages::None, node.id, POOL));
            let memory = memory.expect("memory");
            assert_eq!(memory.notes(), [] as [&str; 0]);
            all_on(&memory, node.id);
        }
    });
}

#[test]
fn huge_pages_come_from_the_node_asked_for_and_go_back_there() {
    with_nodes(|nodes| {
        for node in nodes {
            let before = free_now(node.id);
            let memory = SharedMemory::create(&spec(HugePages::Size2MiB, node.id, POOL));
            let memory = memory.expect("memory");
            assert_eq!(memory.pages(), PageKind::Huge(HUGE));
            all_on(&memory, node.id);
            assert_eq!(free_now(node.id), before - POOL / HUGE);
            drop(memory);
            assert_eq!(free_now(node.id), before);
        }
    });
}

#[test]
fn a_node_with_too_few_huge_pages_lets_others_help_and_says_so() {
    with_nodes(|nodes| {
        let here = free_now(nodes[0].id);
        let bytes = (here + 4) * HUGE;
        let memory = SharedMemory::create(&spec(HugePages::Size2MiB, nodes[0].id, bytes));
        let memory = memory.expect("all nodes together have enough");
        assert_eq!(free_now(nodes[0].id), 0);
        let [note] = memory.notes() else {
            panic!("{:?}", memory.notes());
        };
        assert!(note.contains("a part is on node"), "{note}");
        drop(memory);
        assert_eq!(free_now(nodes[0].id), here, "all went back");
    });
}

#[test]
fn more_huge_pages_than_there_are_is_an_error_and_not_a_signal() {
    with_nodes(|nodes| {
        let all: u64 = nodes.iter().map(|n| free_now(n.id)).sum();
        let spec = spec(HugePages::Size2MiB, nodes[0].id, (all + 1) * HUGE);
        let error = SharedMemory::create(&spec).expect_err("one too many");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let now: u64 = nodes.iter().map(|n| free_now(n.id)).sum();
        assert_eq!(now, all, "nothing is kept");
    });
}

#[test]
fn a_pool_on_hugetlbfs_outlives_its_maker() {
    with_nodes(|nodes| {
        let Some(folder) = std::env::var_os("PEGAFLOW_VM_HUGETLBFS").map(PathBuf::from) else {
            eprintln!(
                "skipped: needs hugetlbfs at PEGAFLOW_VM_HUGETLBFS (`cargo xtask vm test` has it)"
            );
            return;
        };
        let path = folder.join("pool");
        let spec = PoolSpec {
            backing: Backing::File(path.clone()),
            ..spec(HugePages::Size2MiB, nodes[1].id, POOL)
        };
        let first = SharedMemory::create(&spec).expect("memory");
        assert_eq!(first.pages(), PageKind::Huge(HUGE));
        all_on(&first, nodes[1].id);
        first.copy_in(POOL - 100, b"still here").expect("inside");
        drop(first);
        let second = SharedMemory::attach_path(&path, Access::Read).expect("attach");
        assert_eq!(second.pages(), PageKind::Huge(HUGE));
        let mut got = [0; 10];
        second.copy_out(POOL - 100, &mut got).expect("inside");
        assert_eq!(&got, b"still here");
        std::fs::remove_file(&path).expect("it is ours");
    });
}

#[test]
fn drives_and_nodes_are_found_as_they_are() {
    if std::env::var_os(VM).is_none() {
        eprintln!("skipped: needs the known devices of `cargo xtask vm test`");
        return;
    }
    let machine = Topology::this_machine();
    let far: Vec<u32> = machine.nodes.iter().map(|n| n.distances[0]).collect();
    assert_eq!(far, [10, 20], "{:?}", machine.nodes);
    assert!(
        machine
            .nodes
            .iter()
            .all(|n| n.cpus.len() == 1 && n.memory_bytes > 0)
    );
    let drives = machine.devices.iter().filter(|d| d.kind == PciKind::Nvme);
    let nodes: Vec<u32> = drives.map(|d| machine.node_of(d)).collect();
    assert_eq!(nodes, [0, 1], "{:?}", machine.devices);
}
