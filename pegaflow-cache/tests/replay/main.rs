// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A workload against real nodes: in this process, behind a socket, and one that goes away and comes back.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pegaflow_cache::client::session_socket;
use pegaflow_cache::core::EvictionPolicy;
use pegaflow_cache::node::{Node, NodeSettings, PoolFiles};
use pegaflow_cache::replay::drive::{Outcome, Progress, Replay};
use pegaflow_cache::replay::node::{NodePort, Place};
use pegaflow_cache::replay::port::Port;
use pegaflow_cache::replay::source::{Source, Workload};
use pegaflow_cache::replay::synth::{Synth, SynthSettings};
use pegaflow_cache::replay::{Error, ReplaySettings};
use pegaflow_cache::rpc::{Access, Listeners, serve};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

const RAM_BYTES: u64 = 32 << 20;

fn settings(requests_max: u64) -> ReplaySettings {
    ReplaySettings {
        layers: 2,
        heads: 4,
        block_bytes: 16 << 10,
        in_flight_max: 1,
        sample_ms: 5,
        requests_max,
        ..ReplaySettings::default()
    }
}

fn replay(
    place: &Place,
    settings: &ReplaySettings,
    observe: impl FnMut(&Progress<'_>) -> bool,
) -> Result<Outcome, Error> {
    let port = NodePort::open(place, settings)?;
    let capacity_blocks = port.facts().expect("it answers").capacity_blocks;
    let synth = Synth::new(SynthSettings::default());
    let source = Source::new(
        Workload::Synthetic(Box::new(synth)),
        settings.requests_max,
        capacity_blocks,
    );
    let (ranks, namespace) = (port.ranks(), port.namespace());
    Replay {
        port: &port,
        ranks,
        settings,
        namespace,
    }
    .run(source, observe)
}

/// Nothing wrong, everything verified, and as many hits as a plain LRU, or a little more.
fn check(outcome: &Outcome, requests: u64) {
    check_within(0.005, outcome, requests);
}

/// The same, with at most `slack` less hits: a restart forgets the order of touches.
fn check_within(slack: f64, outcome: &Outcome, requests: u64) {
    let c = outcome.counts;
    assert_eq!(
        (c.requests, c.mismatches, c.damaged_blocks),
        (requests, 0, 0),
        "{c:?}"
    );
    assert!(
        c.bytes_verified > 0 && c.bytes_verified == c.bytes_loaded,
        "{c:?}"
    );
    let share = |hits: u64| hits as f64 / outcome.facts.references as f64;
    let (got, plain) = (
        share(c.prefix_hit_blocks),
        share(outcome.plain_lru.prefix_hit_blocks),
    );
    assert!(
        got > plain - slack,
        "{got} of the node, {plain} of a plain LRU"
    );
}

#[test]
fn a_node_in_this_process_hits_like_a_plain_lru() {
    for ranks in [1, 4] {
        let settings = ReplaySettings {
            ranks,
            ..settings(400)
        };
        let place = Place::Embedded {
            ram_bytes: RAM_BYTES,
            pool_dir: None,
            eviction: EvictionPolicy::Lru,
            ssd: Default::default(),
        };
        let outcome = replay(&place, &settings, |_| true).expect("nothing goes wrong");
        check(&outcome, 400);
    }
}

/// Starts a node; the one before it in this process may hold the pool for a moment yet (its housekeeping thread).
fn start_node(settings: &NodeSettings) -> Arc<Node> {
    loop {
        match Node::start(settings) {
            Err(pegaflow_cache::Error::PoolInUse { .. }) => std::thread::yield_now(),
            started => return started.expect("it starts"),
        }
    }
}

/// A server in this process that can be stopped and started on the same pool.
struct Server {
    runtime: Runtime,
    dir: TempDir,
    running: Option<(oneshot::Sender<()>, tokio::task::JoinHandle<()>)>,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = Runtime::new().expect("threads");
        let mut server = Self {
            runtime,
            dir,
            running: None,
        };
        server.start();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    fn start(&mut self) {
        let settings = NodeSettings {
            files: PoolFiles::Directory(self.dir.path().join("pool")),
            pool_bytes: RAM_BYTES,
            ..NodeSettings::default()
        };
        let node = start_node(&settings);
        let bind = |path: &Path| {
            let _ = std::fs::remove_file(path);
            UnixListener::bind(path).expect("a free path")
        };
        let (socket, (stop, stopped)) = (self.socket(), oneshot::channel());
        let _guard = self.runtime.enter();
        let listeners = Listeners {
            session: bind(&session_socket(&socket)),
            grpc: bind(&socket),
            tcp: None,
        };
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(node, listeners, Access::default(), stopped)
                .await
                .expect("it serves");
        });
        self.running = Some((stop, task));
    }

    fn restart(&mut self) {
        let (stop, task) = self.running.take().expect("it runs");
        let _ = stop.send(());
        self.runtime.block_on(task).expect("a good end");
        self.start();
    }
}

#[test]
fn a_server_serves_the_same_as_a_node_in_this_process() {
    let server = Server::new();
    let place = Place::Remote {
        socket: server.socket(),
    };
    let outcome = replay(&place, &settings(400), |_| true).expect("nothing goes wrong");
    check(&outcome, 400);
    // Another process of another TP size finds the blocks of the first.
    let settings = ReplaySettings {
        ranks: 4,
        ..settings(50)
    };
    let again = replay(&place, &settings, |_| true).expect("nothing goes wrong");
    assert_eq!(again.counts.mismatches, 0);
}

#[test]
fn a_server_that_comes_back_still_has_the_blocks() {
    let mut server = Server::new();
    let place = Place::Remote {
        socket: server.socket(),
    };
    let settings = ReplaySettings {
        in_flight_max: 2,
        seconds: 60.0,
        ..settings(0)
    };
    let mut restarts_left = 3;
    let mut requests_at_restart = 0;
    let outcome = replay(&place, &settings, |progress| {
        if progress.counts.requests >= requests_at_restart + 100 {
            if restarts_left == 0 {
                return false;
            }
            server.restart();
            restarts_left -= 1;
            requests_at_restart = progress.counts.requests;
        }
        true
    });
    let outcome = outcome.expect("the client reconnects by itself");
    assert_eq!(restarts_left, 0, "{:?}", outcome.counts);
    check_within(0.05, &outcome, outcome.counts.requests);
}

#[test]
fn a_server_that_stays_away_is_an_error_in_the_end() {
    let mut server = Server::new();
    let place = Place::Remote {
        socket: server.socket(),
    };
    let settings = ReplaySettings {
        reconnect_ms_max: 50,
        ..settings(0)
    };
    let outcome = replay(&place, &settings, |_| {
        if let Some((stop, _)) = server.running.take() {
            let _ = stop.send(());
        }
        true
    });
    assert!(
        matches!(outcome, Err(Error::NodeLost { .. })),
        "{outcome:?}"
    );
}
