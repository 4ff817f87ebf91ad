// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The way to a node that may not be there yet, or not answer any more.
//!
//! Invariant: nothing here waits longer than the time it was given, so an engine never hangs on its cache.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use pegaflow_cache::client::{Client, ClientSettings, Lease, Status};
use pegaflow_cache::core::BlockRef;
use pegaflow_cache::meta::BlockKey;
use pegaflow_cache::{Error, ErrorKind};
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::error::{cache, invalid};

/// Longest wait of one attempt to connect in the background.
const ATTEMPT_MS: u32 = 10_000;

/// What all objects of one client share.
#[derive(Debug)]
pub(crate) struct Shared {
    runtime: Option<Runtime>,
    client: OnceLock<Client>,
    /// Why there is no client yet.
    away: Mutex<String>,
    /// Lookups that nobody waits for any more and that the node has not answered.
    late: AtomicUsize,
    /// The last lookup that was answered or given up had no answer within its deadline.
    silent: AtomicBool,
    /// Corrupt blocks of which the node is being told.
    reports: watch::Sender<usize>,
}

impl Shared {
    pub(crate) fn new() -> PyResult<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("pegaflow")
            .enable_all()
            .build()
            .map_err(invalid)?;
        Ok(Arc::new(Self {
            runtime: Some(runtime),
            client: OnceLock::new(),
            away: Mutex::new("not connected yet".to_owned()),
            late: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
            reports: watch::Sender::new(0),
        }))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("there until it is dropped")
    }

    /// Runs `work`: here as far as it goes without waiting (with a node in this process, to its end), the rest in the
    /// background.
    pub(crate) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let runtime = self.runtime();
        let done = {
            let _inside = runtime.enter();
            let mut context = Context::from_waker(Waker::noop());
            work.as_mut().poll(&mut context).is_ready()
        };
        if !done {
            runtime.spawn(work);
        }
    }

    /// Gives leases back. A node that is away holds nothing.
    pub(crate) fn release(self: &Arc<Self>, leases: Vec<Lease>) {
        let shared = self.clone();
        self.start(async move {
            let Ok(client) = shared.client() else { return };
            for lease in leases {
                let _ = client.release(&lease).await;
            }
        });
    }

    /// Uses a client from now on.
    pub(crate) fn set(&self, client: Client) {
        let _ = self.client.set(client);
    }

    /// Tells the node of a corrupt block. Best effort: the block is a miss for this engine either way.
    pub(crate) fn report_corrupt(self: &Arc<Self>, key: BlockKey, block: BlockRef) {
        self.reports.send_modify(|under_way| *under_way += 1);
        let shared = self.clone();
        self.runtime().spawn(async move {
            if let Ok(client) = shared.client() {
                let _ = client.report_corrupt(key, &block).await;
            }
            shared.reports.send_modify(|under_way| *under_way -= 1);
        });
    }

    /// Waits until the node knows of every corrupt block that was reported: before, it would have no use for the same
    /// block saved again. Not longer than its answers may take.
    pub(crate) async fn reports_over(&self) {
        let mut reports = self.reports.subscribe();
        // The sender is here, so it is not gone.
        let _ = reports.wait_for(|under_way| *under_way == 0).await;
    }

    /// The client, once it has reached its node for the first time.
    pub(crate) fn client(&self) -> Result<&Client, Error> {
        self.client.get().ok_or_else(|| Error::Unavailable {
            why: self.away.lock().clone(),
        })
    }

    /// Connects within `wait`; goes on trying in the background if the node is not there by then.
    pub(crate) fn connect(
        self: &Arc<Self>,
        settings: ClientSettings,
        wait: Duration,
    ) -> PyResult<()> {
        let first = ClientSettings {
            connect_timeout_ms: wait.as_millis().try_into().unwrap_or(u32::MAX),
            ..settings.clone()
        };
        match self.runtime().block_on(Client::connect(first)) {
            Ok(client) => self.set(client),
            Err(error) if is_lasting(&error) => return Err(cache(error)),
            Err(error) => {
                *self.away.lock() = error.to_string();
                self.runtime()
                    .spawn(keep_trying(Arc::downgrade(self), settings));
            }
        }
        Ok(())
    }

    /// Why the node cannot be used at the moment, if it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return Some(error.to_string()),
        };
        if self.silent.load(Ordering::Relaxed) {
            return Some("it does not answer".to_owned());
        }
        match &*client.status().borrow() {
            Status::Connected { .. } => None,
            Status::Disconnected { why } => Some(why.clone()),
        }
    }

    /// Whether lookups are overdue: then no other is worth waiting for.
    pub(crate) fn is_slow(&self) -> bool {
        self.late.load(Ordering::Relaxed) > 0
    }

    /// Notes whether a lookup was answered at all.
    pub(crate) fn note<T>(&self, answer: &Result<T, Error>) {
        let silent = matches!(answer, Err(Error::Timeout { .. }));
        if silent || answer.is_ok() {
            self.silent.store(silent, Ordering::Relaxed);
        }
    }

    pub(crate) fn add_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_late(&self) {
        self.late.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The last owner may be a task of the runtime itself, which must not wait for its own end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether trying again cannot help.
pub(crate) fn is_lasting(error: &Error) -> bool {
    // A socket that is not there is a server that is not there yet.
    !matches!(error, Error::Os { .. })
        && matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported)
}

async fn keep_trying(shared: Weak<Shared>, settings: ClientSettings) {
    let settings = ClientSettings {
        connect_timeout_ms: ATTEMPT_MS,
        ..settings
    };
    loop {
        let connected = Client::connect(settings.clone()).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match connected {
            Ok(client) => return shared.set(client),
            Err(error) => {
                let lasting = is_lasting(&error);
                *shared.away.lock() = error.to_string();
                if lasting {
                    return;
                }
            }
        }
    }
}
