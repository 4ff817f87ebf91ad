// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node with several pools, as on a machine with several NUMA nodes, and a pool of huge pages.

use std::path::PathBuf;

use pegaflow_cache::client::{Client, NamespaceHandle};
use pegaflow_cache::node::{Node, NodeSettings};
use pegaflow_mem::HugePages;
use pegaflow_meta::BlockKey;

use crate::support::*;

const POOL: u64 = 2 << 20;

/// Two pools. Both ask for memory of the first NUMA node, which every machine has.
fn two_pools(dir: &std::path::Path) -> NodeSettings {
    NodeSettings {
        numa_nodes: vec![0, 0],
        ..in_files(dir, 2 * POOL)
    }
}

fn blocks_of_one_pool() -> u32 {
    u32::try_from(POOL / SHAPE.bytes()).expect("few")
}

async fn open(client: &Client) -> (NamespaceHandle, Vec<BlockKey>) {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..blocks_of_one_pool() * 3 / 2);
    (namespace, keys)
}

/// In which pool each block lies; its record must stand in that pool's control file.
async fn pools_of(client: &Client, namespace: &NamespaceHandle, keys: &[BlockKey]) -> Vec<u8> {
    let found = lookup(client, namespace, keys).await;
    assert_eq!(found.blocks.len(), keys.len(), "all are there");
    for block in &found.blocks {
        let pool = found.session.pools().of(block.place).expect("a pool");
        let key = keys[block.key as usize];
        let kept = pool.checksums(block.place.offset(), key, block.generation);
        assert!(kept.is_some(), "{block:?}");
    }
    let lease = found.lease.expect("something is found");
    client.release(&lease).await.expect("held");
    found
        .blocks
        .iter()
        .map(|block| block.place.pool())
        .collect()
}

#[tokio::test]
async fn blocks_spill_to_the_other_pool_and_both_outlive_the_server() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a temporary directory");
    let settings = two_pools(dir.path());
    let node = Node::start(&settings).expect("starts");
    let uuids: Vec<_> = node.pools().iter().map(|pool| pool.uuid).collect();
    assert_eq!(uuids.len(), 2);
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    assert_eq!(save(&client, &namespace, &keys).await as usize, keys.len());
    let before = pools_of(&client, &namespace, &keys).await;
    let in_first = before.iter().filter(|pool| **pool == 0).count();
    assert_eq!(
        in_first,
        blocks_of_one_pool() as usize,
        "the near one first"
    );
    assert!(before.iter().all(|pool| *pool < 2));
    let stats = client.stats().await.expect("answers");
    assert_eq!(stats.evicted, 0, "the other pool had room");
    drop((client, node));

    let node = restart(&settings);
    assert_eq!(node.started().blocks_recovered as usize, keys.len());
    let again: Vec<_> = node.pools().iter().map(|pool| pool.uuid).collect();
    assert_eq!(again, uuids);
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    assert_eq!(pools_of(&client, &namespace, &keys).await, before);
}

#[tokio::test]
async fn pools_are_handed_over_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let served = Served::start(&two_pools(dir.path()));
    let client = served.client().await;
    let (namespace, keys) = open(&client).await;
    assert_eq!(save(&client, &namespace, &keys).await as usize, keys.len());
    let pools = pools_of(&client, &namespace, &keys).await;
    assert!(pools.contains(&0) && pools.contains(&1));
    served.stop().await;
}

#[tokio::test]
async fn without_the_first_pool_the_others_mean_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = two_pools(dir.path());
    let node = Node::start(&settings).expect("starts");
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    save(&client, &namespace, &keys).await;
    drop((client, node));
    std::fs::remove_file(dir.path().join("pools/pool0.ctl")).expect("it is there");
    let node = restart(&settings);
    assert_eq!(node.started().blocks_recovered, 0);
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    assert_eq!(ready(&client, &namespace, &keys).await, 0);
    assert_eq!(save(&client, &namespace, &keys).await as usize, keys.len());
}

/// A folder of huge pages that this test may use, or why there is none.
fn huge_folder(bytes: u64) -> Result<PathBuf, String> {
    let free = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let pages = std::fs::read_to_string(free).unwrap_or_default();
    let pages: u64 = pages.trim().parse().unwrap_or(0);
    if pages * (2 << 20) < bytes {
        return Err(format!(
            "{pages} free pages of 2 MiB; write more to nr_hugepages"
        ));
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let folder = mounts.find_map(|mut fields| {
        let path = fields.nth(1)?;
        (fields.next()? == "hugetlbfs").then(|| PathBuf::from(path))
    });
    folder.ok_or_else(|| "no hugetlbfs is mounted; mount -t hugetlbfs none /mnt/huge".to_owned())
}

#[tokio::test]
async fn a_pool_of_huge_pages_outlives_its_server() {
    let bytes = 16 << 20;
    let dir = huge_folder(bytes).and_then(|folder| {
        let made = tempfile::tempdir_in(&folder);
        made.map_err(|error| format!("{}: {error}", folder.display()))
    });
    let dir = match dir {
        Ok(dir) => dir,
        Err(why) => return println!("skipped: a pool on hugetlbfs: {why}"),
    };
    let settings = NodeSettings {
        pages: HugePages::Size2MiB,
        ..in_files(dir.path(), bytes)
    };
    let node = Node::start(&settings).expect("starts");
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    assert_eq!(save(&client, &namespace, &keys).await as usize, keys.len());
    drop((client, node));
    let node = restart(&settings);
    assert_eq!(node.started().blocks_recovered as usize, keys.len());
    let client = Client::embedded(&node).expect("opens");
    let (namespace, keys) = open(&client).await;
    pools_of(&client, &namespace, &keys).await;
}
