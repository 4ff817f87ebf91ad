// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node as Python sees it: embedded or behind a socket, lookups that never block the caller for long.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pegaflow_cache::client::{self, ClientSettings, Lease, session_socket};
use pegaflow_cache::core::LookupMode;
use pegaflow_cache::meta::{BlockKey, GroupId};
use pegaflow_cache::node::{GroupLayout, NamespaceLayout, Node, NodeSettings};
use pegaflow_cache::rpc::{Access, Listeners, serve};
use pegaflow_mem::BlockShape;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::error::{cache, invalid};
use crate::namespace::Namespace;
use crate::rank::Rank;

/// How long the first poll of a lookup waits: most answers are there by then, and a step is spared.
const FIRST_POLL: Duration = Duration::from_micros(500);

/// Connection to a node, or the node itself.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: client::Client,
    pub(crate) runtime: Runtime,
}

#[derive(Debug)]
struct Server {
    stop: oneshot::Sender<()>,
    paths: [PathBuf; 2],
}

#[pymethods]
impl Client {
    /// Starts a node in this process with a pool of `pool_bytes`, which listens at `path` for the engine's
    /// other processes.
    #[staticmethod]
    fn embedded(py: Python<'_>, pool_bytes: u64, path: PathBuf) -> PyResult<Self> {
        py.detach(|| {
            let runtime = runtime()?;
            let settings = NodeSettings {
                pool_bytes,
                ..NodeSettings::default()
            };
            let node = Node::start(&settings).map_err(cache)?;
            let (stop, stopped) = oneshot::channel();
            let pool = session_socket(&path);
            let listeners = Listeners {
                grpc: listen(&path)?,
                session: listen(&pool)?,
                tcp: None,
            };
            let served = node.clone();
            runtime.spawn(async move {
                let shutdown = async {
                    let _ = stopped.await;
                };
                serve(served, listeners, Access::default(), shutdown).await
            });
            let client = client::Client::embedded(&node).map_err(cache)?;
            let server = Server {
                stop,
                paths: [path, pool],
            };
            Ok(Self {
                shared: Arc::new(Shared { client, runtime }),
                server: Mutex::new(Some(server)),
            })
        })
    }

    /// Connects to the node that listens at `path`.
    #[staticmethod]
    fn connect(py: Python<'_>, path: PathBuf, timeout_ms: u32) -> PyResult<Self> {
        py.detach(|| {
            let runtime = runtime()?;
            let settings = ClientSettings {
                socket: path,
                name: "python".to_owned(),
                call_timeout_ms: timeout_ms,
                ..ClientSettings::default()
            };
            let client = runtime
                .block_on(client::Client::connect(settings))
                .map_err(cache)?;
            Ok(Self {
                shared: Arc::new(Shared { client, runtime }),
                server: Mutex::new(None),
            })
        })
    }

    /// Registers a namespace: its canonical encoding, whose blocks they are, and a shape `(layers, parts, heads,
    /// inner_bytes)` with the ends of pipeline stages.
    fn namespace(
        &self,
        py: Python<'_>,
        encoding: &[u8],
        tenant: String,
        shape: (u32, u32, u32, u32),
        stage_ends: Vec<u32>,
    ) -> PyResult<Namespace> {
        let namespace = pegaflow_cache::meta::Namespace::decode(encoding).map_err(invalid)?;
        let (layers, parts, heads, inner_bytes) = shape;
        let shape = BlockShape {
            layers,
            parts,
            heads,
            inner_bytes,
        };
        let layout = NamespaceLayout {
            namespace,
            tenant,
            groups: vec![GroupLayout { shape, stage_ends }],
        };
        let register = self.shared.client.register_namespace(layout);
        let handle = py
            .detach(|| self.shared.runtime.block_on(register))
            .map_err(cache)?;
        Ok(Namespace { handle })
    }

    /// Starts to look for the longest prefix of `keys`. What is found is kept for `ttl_ms`.
    fn lookup(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        keys: &[u8],
        ttl_ms: u64,
    ) -> PyResult<Lookup> {
        let keys = split_keys(keys)?;
        let slot = Arc::new(Slot::default());
        let (answer, shared) = (slot.clone(), self.shared.clone());
        let handle = namespace.handle.clone();
        let ask = async move {
            let lookup = client::Lookup {
                lease: Some(Duration::from_millis(ttl_ms)),
                mode: LookupMode::Prefix,
                ..client::Lookup::prefix(&handle, GroupId(0), &keys)
            };
            let found = shared.client.lookup(&lookup).await;
            answer.put(&shared, found).await;
        };
        py.detach(|| self.shared.runtime.spawn(ask));
        Ok(Lookup {
            slot,
            started: now(),
        })
    }

    /// Gives leases back. Never fails: a node that is away holds nothing.
    fn release(&self, py: Python<'_>, found: Vec<PyRef<'_, Found>>) {
        let leases: Vec<_> = found
            .iter()
            .filter_map(|found| found.lease.clone())
            .collect();
        let shared = self.shared.clone();
        let give_back = async move {
            for lease in leases {
                let _ = shared.client.release(&lease).await;
            }
        };
        py.detach(|| self.shared.runtime.spawn(give_back));
    }

    /// This rank's copies: see `Rank`.
    fn rank(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        layout: crate::rank::Layout,
        threads: u32,
    ) -> PyResult<Rank> {
        let (shared, handle) = (self.shared.clone(), namespace.handle.clone());
        py.detach(|| Rank::open(shared, handle, layout, threads))
    }

    /// Counters and sizes of the node, by name.
    fn stats(&self, py: Python<'_>) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        let stats = py
            .detach(|| self.shared.runtime.block_on(self.shared.client.stats()))
            .map_err(cache)?;
        Ok([
            ("blocks", stats.blocks),
            ("capacity_bytes", stats.capacity_bytes),
            ("used_bytes", stats.used_bytes),
            ("leases", stats.leases),
            ("sealed", stats.sealed),
            ("evicted", stats.evicted),
            ("corrupt", stats.corrupt),
        ]
        .into())
    }

    /// Ends the node, if it runs here. Copies that still run end first.
    fn close(&self, py: Python<'_>) {
        let Some(server) = self.server.lock().take() else {
            return;
        };
        py.detach(|| {
            let _ = server.stop.send(());
            for path in &server.paths {
                let _ = std::fs::remove_file(path);
            }
        });
    }
}

/// A lookup on its way.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Lookup {
    slot: Arc<Slot>,
    started: Instant,
}

#[pymethods]
impl Lookup {
    /// What was found, or None while the node has not answered. `wait_ms` after its start a lookup that still has
    /// no answer has found nothing.
    fn poll(&self, py: Python<'_>, wait_ms: u64) -> Option<Found> {
        let first = FIRST_POLL.saturating_sub(self.started.elapsed());
        if let Some(found) = py.detach(|| self.slot.take(first)) {
            return Some(found);
        }
        if self.started.elapsed() < Duration::from_millis(wait_ms) {
            return None;
        }
        self.cancel();
        Some(Found::default())
    }

    /// The answer is not wanted any more: its lease is given back when it comes.
    fn cancel(&self) {
        self.slot.state.lock().cancelled = true;
    }
}

/// Blocks that a lookup found: the first ones of its keys.
#[pyclass(frozen)]
#[derive(Debug, Default)]
pub(crate) struct Found {
    lease: Option<Lease>,
    places: Vec<u8>,
    generations: Vec<u8>,
}

#[pymethods]
impl Found {
    /// How many.
    #[getter]
    fn ready(&self) -> usize {
        self.generations.len() / 4
    }

    /// Where they are: 8 bytes each, for `Rank.load`.
    #[getter]
    fn places<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.places)
    }

    /// The use of each place: 4 bytes each, for `Rank.load`.
    #[getter]
    fn generations<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.generations)
    }
}

#[derive(Debug, Default)]
struct State {
    found: Option<Found>,
    cancelled: bool,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    came: Condvar,
}

impl Slot {
    async fn put(&self, shared: &Shared, found: Result<client::Found, pegaflow_cache::Error>) {
        // A node that does not answer has nothing.
        let found = found.map_or_else(|_| Found::default(), into_found);
        let lease = found.lease.clone();
        let unwanted = {
            let mut state = self.state.lock();
            state.found = Some(found);
            self.came.notify_all();
            state.cancelled
        };
        if let Some(lease) = lease.filter(|_| unwanted) {
            let _ = shared.client.release(&lease).await;
        }
    }

    fn take(&self, wait: Duration) -> Option<Found> {
        let mut state = self.state.lock();
        if state.found.is_none() && !wait.is_zero() {
            self.came.wait_for(&mut state, wait);
        }
        state.found.take()
    }
}

fn into_found(found: client::Found) -> Found {
    let mut out = Found {
        lease: found.lease,
        ..Found::default()
    };
    for block in &found.blocks {
        out.places.extend(block.place.to_bits().to_le_bytes());
        out.generations.extend(block.generation.to_le_bytes());
    }
    out
}

/// Keys from Python: 16 bytes each.
pub(crate) fn split_keys(bytes: &[u8]) -> PyResult<Vec<BlockKey>> {
    let (keys, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(invalid("keys must be 16 bytes each"));
    }
    Ok(keys.iter().map(|key| BlockKey(*key)).collect())
}

fn runtime() -> PyResult<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("pegaflow")
        .enable_all()
        .build()
        .map_err(invalid)
}

fn listen(path: &Path) -> PyResult<UnixListener> {
    let listener =
        UnixListener::bind(path).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(invalid)?;
    Ok(listener)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a shell: measures how long an engine has waited"
)]
fn now() -> Instant {
    Instant::now()
}
