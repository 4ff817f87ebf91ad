// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Processes killed with -9 at bad moments. The other process is this test's own program, which plays
//! the part that a variable names.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pegaflow_cache::client::{Client, NamespaceHandle, Status};
use pegaflow_cache::core::Answer;
use pegaflow_cache::node::Node;
use pegaflow_cache::rpc::{Access, serve};
use pegaflow_mem::Slot;

use crate::support::*;

const PART: &str = "PEGAFLOW_TEST_PART";
const DIR: &str = "PEGAFLOW_TEST_DIR";
const POOL: u64 = 4 << 20;

/// Not a test: what the other process does.
#[test]
fn another_process() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let dir = PathBuf::from(std::env::var(DIR).expect("set with the part"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match part.as_str() {
            "server" => play_server(&dir).await,
            "writer" => play_writer(&dir).await,
            other => panic!("{other}"),
        }
    });
}

async fn play_server(dir: &Path) {
    let node = Node::start(&in_files(dir, POOL)).expect("starts");
    let started = node.started();
    let listeners = listen(&dir.join("node.sock"));
    let serving = tokio::spawn(serve(
        node,
        listeners,
        Access::default(),
        std::future::pending(),
    ));
    say(&[
        started.blocks_recovered,
        started.blocks_unsealed,
        started.places_quarantined,
    ]);
    serving.await.expect("no panic").expect("serves");
}

/// Tells the process that started this one that it is ready.
fn say(words: &[u64]) {
    let words: Vec<_> = words.iter().map(u64::to_string).collect();
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {}", words.join(" ")).expect("somebody listens");
    out.flush().expect("somebody listens");
}

/// Reserves the whole pool, and writes to it until it is killed.
async fn play_writer(dir: &Path) {
    let client = connect(&dir.join("node.sock")).await;
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..(POOL / SHAPE.bytes()) as u32);
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys).await;
    let _copy = held.begin_copy().expect("open");
    say(&[items(&held).len() as u64]);
    loop {
        for answer in &held.answers {
            if let Answer::Place { place, .. } = answer {
                let pool = held.session().pools().of(*place).expect("a pool");
                pool.data
                    .fill(place.offset(), SHAPE.bytes(), 0xee)
                    .expect("inside");
            }
        }
    }
}

/// A process that plays a part; killed with -9 when dropped.
struct Other {
    child: Child,
    /// What it said when it was ready.
    words: Vec<u64>,
}

impl Other {
    fn start(part: &str, dir: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([
                "death::another_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(PART, part)
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = output.lines().map_while(Result::ok);
        // The test's own words may stand before it on the line.
        let line = lines.find_map(|line| Some(line.split_once("ready ")?.1.to_owned()));
        let line = line.expect("it becomes ready");
        let words = line.split(' ').map(|word| word.parse().expect("a number"));
        Self {
            words: words.collect(),
            child,
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done` says so of the node's counters.
async fn until(client: &Client, done: impl Fn(&pegaflow_cache::rpc::proto::StatsReply) -> bool) {
    let wait = async {
        loop {
            match client.stats().await {
                Ok(stats) if done(&stats) => return,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
    if waited.is_err() {
        panic!("{:?}", client.stats().await);
    }
}

async fn register(client: &Client) -> NamespaceHandle {
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    namespace.expect("registers")
}

fn test_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    dir.expect("a temporary directory")
}

#[tokio::test]
async fn a_client_killed_while_it_writes_gives_its_places_back() {
    let dir = test_dir();
    let served = Served::start_at(
        &in_files(dir.path(), POOL),
        &dir.path().join("node.sock"),
        tempfile::tempdir().expect("a temporary directory"),
    );
    let client = served.client().await;
    let namespace = register(&client).await;
    let dir_path = dir.path().to_owned();
    let writer = tokio::task::spawn_blocking(move || Other::start("writer", &dir_path));
    let mut writer = writer.await.expect("starts");
    let keys = keys(&namespace, 1000..1000 + writer.words[0] as u32);
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys).await;
    assert_eq!(items(&held).len(), 0, "the pool is full");
    writer.kill();
    until(&client, |stats| {
        stats.writing_blocks + stats.detached_blocks == 0
    })
    .await;
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys).await;
    let items = items(&held);
    assert_eq!(items.len(), keys.len(), "all of it is free again");
    for answer in &held.answers {
        let Answer::Place { place, .. } = answer else {
            panic!("{answer:?}")
        };
        let pool = held.session().pools().of(*place).expect("a pool");
        pool.data
            .fill(place.offset(), SHAPE.bytes(), 0x11)
            .expect("inside");
    }
    client
        .seal(&held, &items, &sums(&items, 4))
        .await
        .expect("seals");
    for block in lookup(&client, &namespace, &keys).await.blocks {
        let mut bytes = vec![0; SHAPE.bytes() as usize];
        let pool = held.session().pools().of(block.place).expect("a pool");
        pool.data
            .copy_out(block.place.offset(), &mut bytes)
            .expect("inside");
        assert!(
            bytes.iter().all(|byte| *byte == 0x11),
            "nobody else writes there"
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn a_server_killed_and_started_again_has_what_was_sealed() {
    let dir = test_dir();
    let mut server = Other::start("server", dir.path());
    let client = connect(&dir.path().join("node.sock")).await;
    let namespace = register(&client).await;
    let keys = keys(&namespace, 0..40);
    save(&client, &namespace, &keys[..30]).await;
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &keys[30..]).await;
    let copy = held.begin_copy().expect("open");
    let mut status = client.status();
    server.kill();
    let away = status.wait_for(|status| matches!(status, Status::Disconnected { .. }));
    away.await.expect("the client lives");
    assert!(client.stats().await.expect_err("away").is_unavailable());

    let server = Other::start("server", dir.path());
    assert_eq!(
        server.words,
        [30, 10, 10],
        "recovered, unsealed, quarantined"
    );
    let back = status.wait_for(|status| matches!(status, Status::Connected { .. }));
    tokio::time::timeout(Duration::from_secs(20), back)
        .await
        .expect("soon")
        .expect("lives");
    assert_eq!(ready(&client, &namespace, &keys).await, 30);
    until(&client, |stats| stats.detached_blocks == 10).await;
    // As long as the old copy runs, its places are nobody's.
    let all = self::keys_beyond(&namespace);
    let others = reserve(&client, &namespace, &Slot::whole(&SHAPE), &all).await;
    let old: Vec<_> = held.answers.iter().collect();
    assert!(
        others
            .answers
            .iter()
            .all(|answer| !old.iter().any(|old| same_place(old, answer)))
    );
    client.abort(&others, true).await.expect("held");
    drop(copy);
    until(&client, |stats| stats.detached_blocks == 0).await;
    assert_eq!(save(&client, &namespace, &keys[30..]).await, 10);
}

fn keys_beyond(namespace: &NamespaceHandle) -> Vec<pegaflow_meta::BlockKey> {
    keys(namespace, 5000..5000 + (POOL / SHAPE.bytes()) as u32)
}

fn same_place(one: &Answer, other: &Answer) -> bool {
    match (one, other) {
        (Answer::Place { place: one, .. }, Answer::Place { place: other, .. }) => one == other,
        _ => false,
    }
}

#[tokio::test]
async fn places_of_a_writer_stay_out_of_use_over_a_restart_until_it_is_gone() {
    let dir = test_dir();
    let mut server = Other::start("server", dir.path());
    let mut writer = Other::start("writer", dir.path());
    server.kill();
    let server = Other::start("server", dir.path());
    assert_eq!(server.words, [0, writer.words[0], writer.words[0]]);
    let client = connect(&dir.path().join("node.sock")).await;
    // It never stops copying, so it never says that it is quiet.
    until(&client, |stats| stats.sessions >= 2).await;
    let stats = client.stats().await.expect("answers");
    assert_eq!(stats.detached_blocks, writer.words[0]);
    writer.kill();
    until(&client, |stats| stats.detached_blocks == 0).await;
}
