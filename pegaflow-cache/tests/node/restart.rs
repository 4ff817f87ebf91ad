// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Pools that outlive their server.

use std::time::Duration;

use pegaflow_cache::client::{Client, Status};
use pegaflow_cache::node::Node;
use pegaflow_cache::{Error, ErrorKind};
use pegaflow_mem::Slot;

use crate::support::*;

const POOL: u64 = 8 << 20;

fn pool_dir() -> tempfile::TempDir {
    let shared = std::path::Path::new("/dev/shm");
    let dir = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    dir.expect("a temporary directory")
}

#[tokio::test]
async fn sealed_blocks_are_found_again() {
    let dir = pool_dir();
    let settings = in_files(dir.path(), POOL);
    let uuid = {
        let node = Node::start(&settings).expect("starts");
        assert_eq!(node.started().blocks_recovered, 0);
        let client = Client::embedded(&node).expect("opens");
        let namespace = client.register_namespace(layout(1, SHAPE, &[1])).await;
        let namespace = namespace.expect("registers");
        let keys = keys(&namespace, 0..20);
        save(&client, &namespace, &keys[..10]).await;
        reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys).await;
        node.pools().get(0).expect("one pool").uuid
    };
    let node = restart(&settings);
    let started = node.started();
    assert_eq!(
        (started.blocks_recovered, started.blocks_unsealed),
        (10, 0),
        "the reservation went with its client, which was in the node's process"
    );
    assert_eq!(
        (started.places_quarantined, started.records_damaged),
        (0, 0)
    );
    assert_eq!(node.pools().get(0).expect("one pool").uuid, uuid);
    let client = Client::embedded(&node).expect("opens");
    let namespace = client.register_namespace(layout(1, SHAPE, &[1])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..20);
    let found = lookup(&client, &namespace, &keys).await;
    assert_eq!(found.blocks.len(), 10);
    for block in &found.blocks {
        let pool = found.session.pools().of(block.place).expect("a pool");
        let key = keys[block.key as usize];
        let kept = pool.checksums(block.place.offset(), key, block.generation);
        assert_eq!(kept, Some(sums(&[block.key], 8)));
    }
    assert_eq!(save(&client, &namespace, &keys).await, 10);
}

#[tokio::test]
async fn a_second_server_is_refused() {
    let dir = pool_dir();
    let settings = in_files(dir.path(), POOL);
    let node = Node::start(&settings).expect("starts");
    let error = Node::start(&settings).expect_err("taken");
    assert!(matches!(error, Error::PoolInUse { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(node);
    restart(&settings);
}

#[tokio::test]
async fn what_cannot_be_used_is_replaced_and_said() {
    let dir = pool_dir();
    let settings = in_files(dir.path(), POOL);
    let uuid = |node: &Node| node.pools().get(0).expect("one pool").uuid;
    let first = uuid(&Node::start(&settings).expect("starts"));
    let larger = uuid(&Node::start(&in_files(dir.path(), POOL * 2)).expect("starts"));
    assert_ne!(first, larger);
    let control = dir.path().join("pools/pool0.ctl");
    let mut bytes = std::fs::read(&control).expect("readable");
    bytes[8] = 99;
    std::fs::write(&control, &bytes).expect("writable");
    let other_format = uuid(&Node::start(&in_files(dir.path(), POOL * 2)).expect("starts"));
    assert_ne!(larger, other_format);
    std::fs::write(&control, "nonsense").expect("writable");
    let damaged = uuid(&Node::start(&in_files(dir.path(), POOL * 2)).expect("starts"));
    assert_ne!(other_format, damaged);
}

#[tokio::test]
async fn a_client_finds_the_node_again_by_itself() {
    let dir = pool_dir();
    let settings = in_files(dir.path(), POOL);
    let served = Served::start(&settings);
    let client = served.client().await;
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..8);
    save(&client, &namespace, &keys[..4]).await;
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys[4..]).await;
    let copy = held.begin_copy().expect("open");
    let found = lookup(&client, &namespace, &keys).await;
    let mut status = client.status();
    let socket = served.socket.clone();
    let dir = served.stop_keeping_dir().await;
    let away = status.wait_for(|status| matches!(status, Status::Disconnected { .. }));
    away.await.expect("the client lives");
    let error = client.stats().await.expect_err("away");
    assert!(
        error.is_unavailable() && error.kind() == ErrorKind::Retry,
        "{error}"
    );
    let error = client
        .seal(&held, &[0], &sums(&[0], 4))
        .await
        .expect_err("away");
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert!(
        held.begin_copy().is_err(),
        "no new copy under an ended session"
    );

    let served = Served::start_at(&settings, &socket, dir);
    let back = status.wait_for(|status| matches!(status, Status::Connected { .. }));
    tokio::time::timeout(Duration::from_secs(20), back)
        .await
        .expect("soon")
        .expect("lives");
    assert_eq!(
        ready(&client, &namespace, &keys).await,
        4,
        "and the namespace is known again"
    );
    let lease = found.lease.expect("asked for");
    let error = client.release(&lease).await.expect_err("of an earlier run");
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    // This process lives and might still write: until it says that it is quiet, its places are not
    // given to anybody.
    let stats = client.stats().await.expect("is back");
    assert_eq!(
        (stats.dropped_unsealed, stats.detached_blocks),
        (4, 0),
        "one process: see restore"
    );
    drop(copy);
    drop(served);
}
