// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The points of the matrix.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pegaflow_cache::client::{Client, ClientSettings, Lookup, NamespaceHandle, Reserve};
use pegaflow_cache::core::Answer;
use pegaflow_cache::node::{NamespaceLayout, Node};
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec, Namespace, TenantSalt};
use serde_json::json;

use crate::report::{Point, Times, now};
use crate::server::{Served, settings, socket};

const GROUP: GroupId = GroupId(0);
const LAYERS: u32 = 61;

/// Runs all points, or those of one op.
pub(crate) fn run(quick: bool, only: Option<&str>) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wanted = |op: &str| only.is_none_or(|only| only == op);
    if ["lookup", "probe", "ticket_poll", "reserve_seal", "memory"]
        .into_iter()
        .any(wanted)
    {
        runtime.block_on(through_the_socket(dir.path(), quick, &wanted));
    }
    if wanted("start") {
        let (bytes, block) = if quick {
            (1 << 30, 4 << 20)
        } else {
            (8 << 30, 1 << 20)
        };
        runtime.block_on(start(&dir.path().join("large"), bytes, block, quick));
        if !quick {
            runtime.block_on(start(&dir.path().join("small"), bytes, 64 << 10, quick));
        }
    }
}

fn namespace(model: u8) -> Namespace {
    Namespace {
        model: [model; 32],
        weights: [0; 32],
        kv_dtype: "bfloat16".to_owned(),
        kv_quantisation: String::new(),
        hash_algorithm: "bench".to_owned(),
        hash_seed: vec![],
        groups: vec![GroupSpec {
            kind: GroupKind::FullAttention,
            block_tokens: 16,
            layout: "bench".to_owned(),
        }],
        tenant_salt: TenantSalt::default(),
    }
}

/// Blocks of `bytes` bytes, more or less, in `layers` layers and 8 heads.
async fn register(client: &Client, model: u8, layers: u32, bytes: u32) -> NamespaceHandle {
    let shape = BlockShape {
        layers,
        parts: 1,
        heads: 8,
        inner_bytes: (bytes / layers / 8).next_multiple_of(8),
    };
    let layout = NamespaceLayout::new(namespace(model), &[shape]);
    client.register_namespace(layout).await.expect("registers")
}

fn keys(namespace: &NamespaceHandle, first: usize, count: usize) -> Vec<BlockKey> {
    (first..first + count)
        .map(|n| namespace.key(GROUP, &n.to_le_bytes()))
        .collect()
}

/// Reserves and seals, without copying.
async fn save(client: &Client, namespace: &NamespaceHandle, keys: &[BlockKey], sums: &[u64]) {
    let shape = namespace.layout().groups[0].shape;
    let reserve = Reserve {
        namespace,
        group: GROUP,
        slot: &Slot::whole(&shape),
        parent: None,
        keys,
    };
    let held = client.reserve(&reserve).await.expect("reserves");
    let places = held.answers.iter().enumerate();
    let places = places.filter(|(_, answer)| matches!(answer, Answer::Place { .. }));
    let items: Vec<u32> = places.map(|(at, _)| at as u32).collect();
    let sums = &sums[..items.len() * shape.heads as usize];
    let sealed = client.seal(&held, &items, sums).await.expect("seals");
    assert_eq!(sealed.completed as usize, keys.len(), "all of them are new");
}

async fn through_the_socket(dir: &Path, quick: bool, wanted: &impl Fn(&str) -> bool) {
    let dir = dir.join("node");
    std::fs::create_dir(&dir).expect("a folder");
    let served = Served::spawn(&dir, 1 << 30);
    let client = connect(&dir).await;
    let namespace = register(&client, 1, LAYERS, 16 << 10).await;
    let chain = keys(&namespace, 0, 8192);
    let sums = vec![1; 8192 * 8];
    save(&client, &namespace, &chain, &sums).await;
    for count in [1, 64, 1024, 8192] {
        let laps = if quick {
            200
        } else {
            20_000 / (count / 64 + 1) + 1000
        };
        for op in ["lookup", "probe"] {
            if wanted(op) {
                lookup(&client, &dir, &namespace, &chain[..count], op, laps).await;
            }
        }
    }
    if wanted("ticket_poll") {
        ticket_poll(&client, &namespace).await;
    }
    if wanted("reserve_seal") {
        for layers in [1, LAYERS] {
            reserve_seal(&client, &dir, layers, if quick { 20 } else { 300 }).await;
        }
    }
    if wanted("memory") {
        memory(&client, &served, chain.len()).await;
    }
}

async fn connect(dir: &Path) -> Client {
    let settings = ClientSettings {
        socket: socket(dir),
        name: "bench".to_owned(),
        connect_timeout_ms: 60_000,
        call_timeout_ms: 60_000,
        ..ClientSettings::default()
    };
    Client::connect(settings).await.expect("connects")
}

/// A bare ping-pong of the same bytes between the same processes.
struct Bare {
    stream: UnixStream,
    buffer: Vec<u8>,
    answer: usize,
}

impl Bare {
    fn new(dir: &Path, request: usize, answer: usize) -> Self {
        let mut buffer = vec![0; 8 + request.max(answer)];
        buffer[..4].copy_from_slice(&(request as u32).to_le_bytes());
        buffer[4..8].copy_from_slice(&(answer as u32).to_le_bytes());
        buffer.truncate(8 + request);
        Self {
            stream: UnixStream::connect(dir.join("echo.sock")).expect("the echo listens"),
            buffer,
            answer,
        }
    }

    fn lap(&mut self) -> Duration {
        let mut answer = vec![0; self.answer];
        let start = now();
        self.stream.write_all(&self.buffer).expect("echo");
        self.stream.read_exact(&mut answer).expect("echo");
        start.elapsed()
    }
}

async fn lookup(
    client: &Client,
    dir: &Path,
    namespace: &NamespaceHandle,
    keys: &[BlockKey],
    op: &str,
    laps: usize,
) {
    let lease = (op == "lookup").then_some(Duration::ZERO);
    let lookup = Lookup {
        lease,
        ..Lookup::prefix(namespace, GROUP, keys)
    };
    let mut bare = Bare::new(dir, keys.len() * 16 + 48, keys.len() * 12 + 48);
    let (mut times, mut floor) = (vec![], vec![]);
    // In turns, so that both see the same machine.
    for _ in 0..10 {
        for _ in 0..laps / 10 {
            let start = now();
            let found = client.lookup(&lookup).await.expect("looks up");
            times.push(start.elapsed());
            assert_eq!(found.blocks.len(), keys.len(), "all hit");
            if let Some(lease) = &found.lease {
                client.release(lease).await.expect("held");
            }
        }
        floor.extend((0..laps / 10).map(|_| bare.lap()));
    }
    let point = Point {
        op,
        keys: keys.len(),
        layers: LAYERS,
    };
    let what = "bare Unix socket ping-pong of the same bytes";
    point.print(
        &Times::new(times),
        Some((what, &Times::new(floor))),
        json!({}),
    );
}

async fn ticket_poll(client: &Client, namespace: &NamespaceHandle) {
    let keys = keys(namespace, 1 << 20, 1);
    let shape = namespace.layout().groups[0].shape;
    let slot = Slot::whole(&shape);
    let reserve = Reserve {
        namespace,
        group: GROUP,
        slot: &slot,
        parent: None,
        keys: &keys,
    };
    let held = client.reserve(&reserve).await.expect("reserves");
    let lookup = Lookup::prefix(namespace, GROUP, &keys).with_ticket();
    let found = client.lookup(&lookup).await.expect("looks up");
    let ticket = found.ticket.expect("it is being written");
    let mut times = vec![];
    for _ in 0..1000 {
        let start = now();
        for _ in 0..1000 {
            std::hint::black_box(ticket.poll());
        }
        times.push(start.elapsed());
    }
    client
        .release(&found.lease.expect("with a ticket"))
        .await
        .expect("held");
    client.abort(&held, true).await.expect("held");
    let point = Point {
        op: "ticket_poll",
        keys: 1,
        layers: LAYERS,
    };
    point.print(&Times::new(times).of_each(1000.0), None, json!({}));
}

async fn reserve_seal(client: &Client, dir: &Path, layers: u32, laps: usize) {
    const COUNT: usize = 1024;
    let namespace = register(client, 10 + layers as u8, layers, 16 << 10).await;
    let sums = vec![1; COUNT * 8];
    // Two calls: keys there and places back, then items and checksums there.
    let mut first = Bare::new(dir, COUNT * 16 + 48, COUNT * 12 + 48);
    let mut second = Bare::new(dir, COUNT * 66 + 48, 32);
    let (mut times, mut floor) = (vec![], vec![]);
    for lap in 0..laps {
        let keys = keys(&namespace, lap * COUNT, COUNT);
        let start = now();
        save(client, &namespace, &keys, &sums).await;
        times.push(start.elapsed());
        floor.push(first.lap() + second.lap());
    }
    let point = Point {
        op: "reserve_seal",
        keys: COUNT,
        layers,
    };
    let what = "bare Unix socket ping-pongs of the same bytes";
    point.print(
        &Times::new(times),
        Some((what, &Times::new(floor))),
        json!({}),
    );
}

/// Bytes of the server's process beside the pool, and the share of them that the core counts as
/// metadata of blocks.
async fn memory(client: &Client, served: &Served, keys: usize) {
    let status = format!("/proc/{}/status", served.child.id());
    let status = std::fs::read_to_string(status).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let beside = field("RssAnon:") + field("RssFile:");
    let metadata = client.stats().await.expect("answers").metadata_bytes;
    eprintln!("memory beside the pool: {beside} bytes, {metadata} of them metadata of blocks");
    let point = Point {
        op: "memory",
        keys,
        layers: LAYERS,
    };
    let zero = Times::new(vec![Duration::ZERO]);
    let extra = json!({"beside_pool_bytes": beside, "metadata_bytes": metadata, "p50_us": null,
        "p99_us": null, "p999_us": null, "ops_per_s": null});
    point.print(&zero, None, extra);
}

/// From the server's exec to the answer of a first lookup, on a pool that is there.
async fn start(dir: &Path, bytes: u64, block: u32, quick: bool) {
    std::fs::create_dir(dir).expect("a folder");
    let (last, blocks) = fill(dir, bytes, block).await;
    let (mut times, mut floor, mut inside) = (vec![], vec![], vec![]);
    for _ in 0..if quick { 2 } else { 11 } {
        let _ = std::fs::remove_file(dir.join("echo.sock"));
        let begin = now();
        let served = Served::spawn(dir, bytes);
        let echo: PathBuf = dir.join("echo.sock");
        while UnixStream::connect(&echo).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
        floor.push(begin.elapsed());
        let client = connect(dir).await;
        let namespace = register(&client, 1, LAYERS, block).await;
        let lookup = Lookup::prefix(&namespace, GROUP, &last).without_lease();
        let found = client.lookup(&lookup).await.expect("looks up");
        times.push(begin.elapsed());
        assert_eq!(found.blocks.len(), 1, "found again");
        inside.push(client.stats().await.expect("answers").recovered);
        drop(served);
    }
    assert!(
        inside.iter().all(|found| *found == blocks as u64),
        "{inside:?} of {blocks}"
    );
    let point = Point {
        op: "start",
        keys: blocks,
        layers: LAYERS,
    };
    let what = "start of the same program that only listens";
    let extra = json!({"pool_bytes": bytes});
    point.print(&Times::new(times), Some((what, &Times::new(floor))), extra);
}

/// A full pool; says the last key and how many blocks.
async fn fill(dir: &Path, bytes: u64, block: u32) -> (Vec<BlockKey>, usize) {
    let node = Node::start(&settings(dir, bytes)).expect("starts");
    let client = Client::embedded(&node).expect("opens");
    let namespace = register(&client, 1, LAYERS, block).await;
    let place = namespace.layout().groups[0]
        .shape
        .bytes()
        .next_multiple_of(4096);
    let blocks = (bytes / place) as usize * 9 / 10;
    let sums = vec![1; 512 * 8];
    for first in (0..blocks).step_by(512) {
        let count = 512.min(blocks - first);
        save(&client, &namespace, &keys(&namespace, first, count), &sums).await;
    }
    (keys(&namespace, blocks - 1, 1), blocks)
}
