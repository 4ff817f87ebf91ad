// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The life of the server: start, recover, serve, drain, end.
//!
//! Order: HTTP first, so that health and readiness can be asked from the start; then the pool and its
//! recovery; then the sockets; then ready. A line is logged for each step and none for each request.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use pegaflow_cache::metrics;
use pegaflow_cache::server::http::Phase;
use pegaflow_cache::server::notify::{self, Ready, ReadyFile};
use pegaflow_cache::server::{Settings, socket, telemetry};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::node::{self, Serving};
use crate::pages::Http;
use crate::signals::Signals;

/// How long threads that do not end are waited for, after everything else has.
const LINGER: Duration = Duration::from_millis(200);

/// An error is a sentence for the user.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Runs the server until a signal ends it.
///
/// # Errors
/// What kept it from starting or going on, for the user.
pub(crate) fn run(settings: &Settings, ready_file: Option<&Path>) -> Outcome<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the binary is the shell that reads the clock"
    )]
    let started = Instant::now();
    telemetry::log_to_stderr(&settings.log);
    let recorder = telemetry::record_metrics()?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = settings.runtime.threads_on(cores);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(threads)
        .thread_name("pegaflow")
        .enable_all()
        .build()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        name = settings.name,
        threads,
        "starting"
    );
    let outcome = runtime.block_on(live(settings, ready_file, recorder, started));
    runtime.shutdown_timeout(LINGER);
    if outcome.is_ok() {
        info!("stopped");
    }
    outcome
}

async fn live(
    settings: &Settings,
    ready_file: Option<&Path>,
    recorder: PrometheusHandle,
    started: Instant,
) -> Outcome<()> {
    let mut signals = Signals::new()?;
    let (phase, phases) = watch::channel(Phase::Starting);
    let path = settings
        .socket
        .as_deref()
        .ok_or("the settings are not resolved")?;
    // Before the pool: the message names who is there, where the pool's lock cannot.
    socket::refuse_if_taken(path)?;
    let http = Http::start(settings, phases, recorder).await?;

    phase.send_replace(Phase::Recovering);
    let node = tokio::select! {
        node = node::start(settings) => node?,
        signal = signals.next() => {
            info!(signal, "asked to stop before it was ready");
            return Ok(());
        }
    };
    let _ = http.node.set(node.clone());
    let mut serving = Serving::start(settings, path, node)?;

    let ready = Ready {
        socket: path.to_owned(),
        tcp: serving.tcp,
        http: http.address,
        pid: std::process::id(),
    };
    let _file = announce(&phase, ready_file, &ready, started)?;

    let signal = tokio::select! {
        signal = signals.next() => signal,
        ended = &mut serving.task => {
            ended??;
            return Err("the sockets closed by themselves".into());
        }
    };
    let patience = Duration::from_millis(settings.shutdown.drain_ms.into());
    info!(signal, drain_ms = settings.shutdown.drain_ms, "draining");
    phase.send_replace(Phase::Draining);
    metrics::READY.gauge(&[]).set(0.0);
    tell("STOPPING=1");
    signals.second_ends_the_process();
    if !serving.drain(patience).await {
        warn!(
            drain_ms = settings.shutdown.drain_ms,
            "calls still ran at the deadline and were cut"
        );
    }
    http.stop(patience).await;
    Ok(())
}

/// Tells everybody that the server is ready.
fn announce(
    phase: &watch::Sender<Phase>,
    file: Option<&Path>,
    ready: &Ready,
    started: Instant,
) -> Outcome<Option<ReadyFile>> {
    let seconds = started.elapsed().as_secs_f64();
    metrics::READY.gauge(&[]).set(1.0);
    metrics::START_SECONDS.gauge(&[]).set(seconds);
    phase.send_replace(Phase::Ready);
    let file = file.map(|file| ReadyFile::write(file, ready)).transpose();
    let file = file.map_err(|error| format!("cannot write the ready file: {error}"))?;
    tell("READY=1");
    let (socket, http) = (ready.socket.display(), ready.http);
    match ready.tcp {
        Some(tcp) => info!(%socket, %tcp, %http, seconds, "ready"),
        None => info!(%socket, %http, seconds, "ready"),
    }
    Ok(file)
}

fn tell(state: &str) {
    if let Err(error) = notify::service_manager(state) {
        warn!(%error, state, "the service manager could not be told");
    }
}
