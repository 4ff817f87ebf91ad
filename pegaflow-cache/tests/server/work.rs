// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Clients of a running server: what they save is there, also after a crash, and shows in the metrics.

use std::path::Path;

use pegaflow_cache::client::{
    Client, ClientSettings, Found, Lookup, NamespaceHandle, Reserve, Status,
};
use pegaflow_cache::core::Answer;
use pegaflow_cache::node::NamespaceLayout;
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec, Namespace, TenantSalt};

use crate::harness::Server;

const GROUP: GroupId = GroupId(0);
const SHAPE: BlockShape = BlockShape {
    layers: 2,
    parts: 2,
    heads: 2,
    inner_bytes: 1024,
};

async fn connect(socket: &Path) -> (Client, NamespaceHandle) {
    let settings = ClientSettings {
        socket: socket.to_owned(),
        ..ClientSettings::default()
    };
    let client = Client::connect(settings).await.expect("connects");
    let namespace = Namespace {
        model: [1; 32],
        weights: [2; 32],
        kv_dtype: "bfloat16".to_owned(),
        kv_quantisation: String::new(),
        hash_algorithm: "sha256".to_owned(),
        hash_seed: vec![],
        groups: vec![GroupSpec {
            kind: GroupKind::FullAttention,
            block_tokens: 16,
            layout: "hnd".to_owned(),
        }],
        tenant_salt: TenantSalt::default(),
    };
    let layout = NamespaceLayout::new(namespace, &[SHAPE]);
    let handle = client.register_namespace(layout).await.expect("registers");
    (client, handle)
}

fn keys(namespace: &NamespaceHandle, count: u32) -> Vec<BlockKey> {
    (0..count)
        .map(|n| namespace.key(GROUP, &n.to_le_bytes()))
        .collect()
}

/// The bytes of a block: made from its key, so that a wrong one shows.
fn content(key: &BlockKey) -> Vec<u8> {
    key.0
        .iter()
        .copied()
        .cycle()
        .take(usize::try_from(SHAPE.bytes()).expect("small"))
        .collect()
}

/// Saves blocks with their content; says how many became visible.
async fn save(client: &Client, namespace: &NamespaceHandle, keys: &[BlockKey]) -> u32 {
    let slot = Slot::whole(&SHAPE);
    let reserve = Reserve {
        namespace,
        group: GROUP,
        slot: &slot,
        parent: None,
        keys,
    };
    let reservation = client.reserve(&reserve).await.expect("reserves");
    let mut items = vec![];
    for (item, (answer, key)) in reservation.answers.iter().zip(keys).enumerate() {
        if let Answer::Place { place, .. } = answer {
            let session = client.session().expect("connected");
            let pool = session.pools().of(*place).expect("a pool").data.clone();
            pool.copy_in(place.offset(), &content(key))
                .expect("inside the pool");
            items.push(u32::try_from(item).expect("few"));
        }
    }
    let each = namespace.layout().groups[0].checksums() as usize;
    let sums = vec![7; items.len() * each];
    client
        .seal(&reservation, &items, &sums)
        .await
        .expect("seals")
        .completed
}

/// Looks blocks up and compares every byte; says how many are there.
async fn load(client: &Client, namespace: &NamespaceHandle, keys: &[BlockKey]) -> usize {
    let found: Found = client
        .lookup(&Lookup::prefix(namespace, GROUP, keys))
        .await
        .expect("looks up");
    for block in &found.blocks {
        let key = keys[block.key as usize];
        let pool = found
            .session
            .pools()
            .of(block.place)
            .expect("a pool")
            .data
            .clone();
        let mut bytes = vec![0; content(&key).len()];
        pool.copy_out(block.place.offset(), &mut bytes)
            .expect("inside the pool");
        assert!(
            bytes == content(&key),
            "block {} has other bytes",
            block.key
        );
    }
    let count = found.blocks.len();
    if let Some(lease) = &found.lease {
        client.release(lease).await.expect("releases");
    }
    count
}

#[tokio::test]
async fn what_is_saved_is_found_and_counted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let (client, namespace) = connect(&server.socket()).await;
    let keys = keys(&namespace, 20);
    assert_eq!(load(&client, &namespace, &keys).await, 0);
    assert_eq!(save(&client, &namespace, &keys[..10]).await, 10);
    assert_eq!(load(&client, &namespace, &keys).await, 10);
    assert_eq!(save(&client, &namespace, &keys[..12]).await, 2);

    for (name, value) in [
        ("pegaflow_lookups_total", 2.0),
        ("pegaflow_lookup_blocks_total{outcome=\"hit\"}", 10.0),
        ("pegaflow_lookup_blocks_total{outcome=\"miss\"}", 30.0),
        ("pegaflow_reserve_blocks_total{outcome=\"placed\"}", 12.0),
        (
            "pegaflow_reserve_blocks_total{outcome=\"deduplicated\"}",
            10.0,
        ),
        ("pegaflow_sealed_blocks_total", 12.0),
        ("pegaflow_sealed_bytes_total", 12.0 * SHAPE.bytes() as f64),
        ("pegaflow_blocks{state=\"sealed\"}", 12.0),
        ("pegaflow_sessions", 1.0),
        ("pegaflow_leases", 0.0),
        ("pegaflow_corrupt_blocks_total", 0.0),
        ("pegaflow_call_seconds_count{call=\"lookup\"}", 2.0),
        ("pegaflow_call_seconds_count{call=\"seal\"}", 2.0),
        (
            "pegaflow_call_failures_total{call=\"lookup\",kind=\"invalid\"}",
            0.0,
        ),
        (
            "pegaflow_tenant_used_bytes{tenant=\"other\"}",
            12.0 * SHAPE.bytes() as f64,
        ),
    ] {
        assert_eq!(server.metric(name), Some(value), "{name}");
    }
    assert!(server.metric("pegaflow_pool_capacity_bytes") > Some(60e6));
    server.promtool();
}

#[tokio::test]
async fn an_orderly_end_does_not_wait_for_idle_clients() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &["--shutdown-drain-ms", "600000"]);
    let (client, namespace) = connect(&server.socket()).await;
    save(&client, &namespace, &keys(&namespace, 3)).await;
    let (status, log) = server.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn blocks_are_there_after_a_crash_and_after_an_orderly_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let (client, namespace) = connect(&server.socket()).await;
    let keys = keys(&namespace, 40);
    save(&client, &namespace, &keys[..20]).await;
    let mut status = client.status();
    let before = status.borrow_and_update().clone();
    server.kill();

    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.metric("pegaflow_recovered_blocks"), Some(20.0));
    let back = status.wait_for(|now| matches!(now, Status::Connected { .. }) && *now != before);
    let back = tokio::time::timeout(crate::harness::DEADLINE, back).await;
    drop(
        back.expect("the client comes back by itself")
            .expect("the client lives"),
    );
    assert_eq!(load(&client, &namespace, &keys).await, 20);
    save(&client, &namespace, &keys[20..30]).await;
    drop(client);
    server.terminate();

    let server = Server::start(dir.path(), &[]);
    let (client, namespace) = connect(&server.socket()).await;
    assert_eq!(load(&client, &namespace, &keys).await, 30);
    server.terminate();
}
