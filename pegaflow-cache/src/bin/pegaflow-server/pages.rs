// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The HTTP pages as a task, and what `/metrics` is made from.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use pegaflow_cache::core::Counters;
use pegaflow_cache::metrics::{self, Process};
use pegaflow_cache::node::Node;
use pegaflow_cache::server::Settings;
use pegaflow_cache::server::http::{self, Pages, Phase};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::run::Outcome;

/// How often observed latencies are moved into their buckets when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// The HTTP pages as a task.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    /// The node that `/metrics` asks, once there is one.
    pub(crate) node: Arc<OnceLock<Arc<Node>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Http {
    /// Listens, and answers from now on.
    ///
    /// # Errors
    /// The address cannot be had, or the token cannot be read.
    pub(crate) async fn start(
        settings: &Settings,
        phase: watch::Receiver<Phase>,
        recorder: PrometheusHandle,
    ) -> Outcome<Self> {
        let listener = TcpListener::bind(settings.http).await.map_err(|error| {
            let address = settings.http;
            format!("cannot listen on {address} for HTTP: {error}; choose another `http` (port 0 takes any free one)")
        })?;
        let address = listener.local_addr()?;
        metrics::BUILD_INFO
            .gauge(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        metrics::READY.gauge(&[]).set(0.0);
        let recorder = Arc::new(recorder);
        tokio::spawn(upkeep(recorder.clone()));
        let node: Arc<OnceLock<Arc<Node>>> = Arc::default();
        let shown = node.clone();
        let tenants = settings.cache.tenants.keys().cloned().collect();
        let pages = Pages {
            phase,
            token: settings.token()?,
            metrics: Box::new(move || {
                Process::read(Path::new("/proc"), "self").publish();
                if let Some(node) = shown.get() {
                    publish(node, &tenants);
                }
                recorder.render()
            }),
        };
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let task = tokio::spawn(http::serve(listener, pages, stopped));
        Ok(Self {
            address,
            node,
            stop,
            task,
        })
    }

    /// Ends the pages; scrapes under way get `patience` to end.
    pub(crate) async fn stop(self, patience: Duration) {
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(patience, self.task).await;
    }
}

fn publish(node: &Node, tenants: &std::collections::BTreeSet<String>) {
    // Copied out first: the recorder's own work need not keep the node waiting.
    let (stats, all, usage) = node.inspect(|core| {
        let mut all = Counters::default();
        core.counters().for_each(|(_, one)| all += *one);
        let usage = core
            .usage()
            .map(|(name, used, limit)| (name.to_owned(), used, limit));
        (core.stats(), all, usage.collect::<Vec<_>>())
    });
    metrics::publish_stats(&stats);
    metrics::publish_counters(&all);
    metrics::publish_tenants(
        usage.iter().map(|(n, used, max)| (n.as_str(), *used, *max)),
        tenants,
    );
    if let Some(ssd) = node.ssd_stats() {
        metrics::publish_ssd(&ssd);
        metrics::publish_ssd_tenants(&node.ssd_tenants());
    }
}

async fn upkeep(recorder: Arc<PrometheusHandle>) {
    let mut timer = tokio::time::interval(UPKEEP);
    loop {
        timer.tick().await;
        recorder.run_upkeep();
    }
}
