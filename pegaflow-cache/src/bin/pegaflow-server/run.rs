// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The life of the server: start, recover, serve, drain, end.
//!
//! Order: HTTP first, so that health and readiness can be asked from the start; then the pool and its
//! recovery; then the sockets; then ready. A line is logged for each step and none for each request.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use pegaflow_cache::metrics::{self, Process};
use pegaflow_cache::server::http::{self, Pages, Phase};
use pegaflow_cache::server::notify::{self, Ready, ReadyFile};
use pegaflow_cache::server::{Settings, socket, telemetry};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::signals::Signals;

/// How often observed latencies are moved into their buckets when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long threads that do not end are waited for, after everything else has.
const LINGER: Duration = Duration::from_millis(200);

type Outcome<T> = Result<T, Box<dyn Error>>;

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
    socket::refuse_if_taken(path)?;
    let http = Http::start(settings, phases, recorder).await?;

    phase.send_replace(Phase::Recovering);
    let (listener, claim) = socket::claim(path)?;

    metrics::READY.gauge(&[]).set(1.0);
    metrics::START_SECONDS
        .gauge(&[])
        .set(started.elapsed().as_secs_f64());
    phase.send_replace(Phase::Ready);
    let ready = Ready {
        socket: path.to_owned(),
        tcp: settings.tcp,
        http: http.address,
        pid: std::process::id(),
    };
    let file = ready_file
        .map(|file| ReadyFile::write(file, &ready))
        .transpose();
    let _file = file.map_err(|error| format!("cannot write the ready file: {error}"))?;
    tell("READY=1");
    info!(socket = %path.display(), http = %http.address, "ready");

    let signal = signals.next().await;
    info!(signal, drain_ms = settings.shutdown.drain_ms, "draining");
    phase.send_replace(Phase::Draining);
    metrics::READY.gauge(&[]).set(0.0);
    tell("STOPPING=1");
    signals.second_ends_the_process();
    drop((listener, claim));
    http.stop(Duration::from_millis(settings.shutdown.drain_ms.into()))
        .await;
    Ok(())
}

fn tell(state: &str) {
    if let Err(error) = notify::service_manager(state) {
        warn!(%error, state, "the service manager could not be told");
    }
}

/// The HTTP pages as a task.
struct Http {
    address: std::net::SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Http {
    async fn start(
        settings: &Settings,
        phase: watch::Receiver<Phase>,
        recorder: PrometheusHandle,
    ) -> Outcome<Self> {
        let listener = TcpListener::bind(settings.http).await.map_err(|error| {
            format!(
                "cannot listen on {} for HTTP: {error}; choose another `http` (port 0 takes any free one)",
                settings.http
            )
        })?;
        let address = listener.local_addr()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        metrics::BUILD_INFO
            .gauge(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        metrics::READY.gauge(&[]).set(0.0);
        let recorder = Arc::new(recorder);
        let upkeep = recorder.clone();
        let pages = Pages {
            phase,
            token: settings.token()?,
            metrics: Box::new(move || {
                Process::read(Path::new("/proc"), "self").publish();
                recorder.render()
            }),
        };
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(UPKEEP);
            loop {
                timer.tick().await;
                upkeep.run_upkeep();
            }
        });
        let stopped = async { drop(stopped.await) };
        let task = tokio::spawn(http::serve(listener, pages, stopped));
        Ok(Self {
            address,
            stop,
            task,
        })
    }

    /// Ends the pages; scrapes under way get `patience` to end.
    async fn stop(self, patience: Duration) {
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(patience, self.task).await;
    }
}
