// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! From settings to a node behind its sockets.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_cache::client::session_socket;
use pegaflow_cache::metrics;
use pegaflow_cache::node::{Node, NodeSettings, PoolFiles};
use pegaflow_cache::rpc::{Access, Listeners, serve};
use pegaflow_cache::server::Settings;
use pegaflow_cache::server::settings::Numa;
use pegaflow_cache::server::socket::{Claim, claim};
use pegaflow_mem::topology::Topology;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::run::Outcome;

/// Starts the node: makes its pool, or finds the one of an earlier run.
///
/// # Errors
/// What kept it from starting.
pub(crate) async fn start(settings: &Settings) -> Outcome<Arc<Node>> {
    let settings = node_settings(settings);
    let node = tokio::task::spawn_blocking(move || Node::start(&settings)).await??;
    let found = node.started();
    metrics::RECOVERED_BLOCKS
        .gauge(&[])
        .set(found.blocks_recovered as f64);
    metrics::RECOVERY_DROPPED
        .gauge(&["unsealed"])
        .set(found.blocks_unsealed as f64);
    metrics::RECOVERY_DROPPED
        .gauge(&["damaged"])
        .set(found.records_damaged as f64);
    metrics::RECOVERY_SECONDS
        .gauge(&[])
        .set(found.micros as f64 / 1e6);
    Ok(node)
}

fn node_settings(settings: &Settings) -> NodeSettings {
    let pool = &settings.pool;
    NodeSettings {
        name: settings.name.clone(),
        files: pool
            .dir
            .clone()
            .map_or(PoolFiles::Anonymous, PoolFiles::Directory),
        pool_bytes: pool.bytes,
        pages: pool.pages.into(),
        numa_nodes: numa_nodes(pool.numa),
        touch_threads: pool.touch_threads,
        recover_threads: pool.recover_threads,
        ssd: settings.ssd.clone(),
        tickets_max: settings.runtime.tickets_max,
        tick_ms: settings.runtime.tick_ms,
        trace: settings.trace.clone(),
        core: settings.cache.clone(),
    }
}

/// The NUMA nodes that get a pool of their own; none where there is nothing to choose.
fn numa_nodes(numa: Numa) -> Vec<u32> {
    if numa == Numa::Off {
        return vec![];
    }
    let topology = Topology::this_machine();
    let nodes: Vec<_> = topology.memory_nodes().map(|node| node.id).collect();
    if nodes.len() > 1 { nodes } else { vec![] }
}

/// A node behind its sockets.
pub(crate) struct Serving {
    pub(crate) tcp: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<(), pegaflow_cache::Error>>,
    _claims: [Claim; 2],
}

impl Serving {
    /// Takes the sockets and lets clients in.
    ///
    /// # Errors
    /// A socket or port cannot be had.
    pub(crate) fn start(settings: &Settings, path: &Path, node: Arc<Node>) -> Outcome<Self> {
        let (grpc, grpc_claim) = claim(path)?;
        let (session, session_claim) = claim(&session_socket(path))?;
        let tcp = settings.tcp.map(listen).transpose()?;
        let address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let tls = settings.tls.read().map_err(|problem| problem.what)?;
        let access = Access::new(settings.token()?.as_deref(), settings.insecure).with_tls(tls);
        let listeners = Listeners { grpc, session, tcp };
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let task = tokio::spawn(serve(node, listeners, access, stopped));
        Ok(Self {
            tcp: address,
            stop,
            task,
            _claims: [grpc_claim, session_claim],
        })
    }

    /// Lets nobody in any more, and waits until running calls have ended, `patience` at most. Says
    /// whether they have.
    pub(crate) async fn drain(self, patience: Duration) -> bool {
        let _ = self.stop.send(());
        let task = self.task;
        let abort = task.abort_handle();
        let ended = tokio::time::timeout(patience, task).await.is_ok();
        abort.abort();
        ended
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address}: {error}; choose another `tcp`"))
}
