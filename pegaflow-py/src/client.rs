// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node as Python sees it: embedded or behind a socket, lookups that never block the caller for long.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pegaflow_cache::client::{self, ClientSettings, HybridLookup, session_socket};
use pegaflow_cache::core::GroupKeys;
use pegaflow_cache::meta::{BlockKey, GroupId};
use pegaflow_cache::node::{GroupLayout, NamespaceLayout, Node, NodeSettings};
use pegaflow_cache::rpc::{Access, Listeners, serve};
use pegaflow_cache::tier::SsdSettings;
use pegaflow_mem::BlockShape;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use tokio::sync::oneshot;

use crate::device::Device;
use crate::error::{cache, invalid};
use crate::lookup::{Answer, Found, Lookup, Slot};
use crate::namespace::{Known, Namespace};
use crate::node::{Shared, is_lasting};
use crate::rank::{Layout, Rank};

/// Connection to a node, or the node itself.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    stop: oneshot::Sender<()>,
    paths: [PathBuf; 2],
}

/// Layers, parts, heads and bytes of a head; and the ends of pipeline stages.
type Group = ((u32, u32, u32, u32), Vec<u32>);

#[pymethods]
impl Client {
    /// Starts a node in this process with a pool of `pool_bytes`, which listens at `path` for the engine's
    /// other processes. `ssd_path` and `ssd_bytes` are those of `pegaflow-server`.
    #[staticmethod]
    #[pyo3(signature = (pool_bytes, path, ssd_path="", ssd_bytes=0))]
    fn embedded(
        py: Python<'_>,
        pool_bytes: u64,
        path: PathBuf,
        ssd_path: &str,
        ssd_bytes: u64,
    ) -> PyResult<Self> {
        py.detach(|| {
            let shared = Shared::new()?;
            let settings = NodeSettings {
                pool_bytes,
                ssd: SsdSettings {
                    path: ssd_path.to_owned(),
                    bytes: ssd_bytes,
                    ..SsdSettings::default()
                },
                ..NodeSettings::default()
            };
            let node = Node::start(&settings).map_err(cache)?;
            let server = Server::start(&shared, &node, path)?;
            shared.set(client::Client::embedded(&node).map_err(cache)?);
            Ok(Self {
                shared,
                server: Mutex::new(Some(server)),
            })
        })
    }

    /// Connects to the node that listens at `path`: waits for it for at most `wait_ms`, and goes on trying in the
    /// background. Each call waits for its answer for at most `timeout_ms`.
    #[staticmethod]
    fn connect(py: Python<'_>, path: PathBuf, timeout_ms: u32, wait_ms: u64) -> PyResult<Self> {
        py.detach(|| {
            let shared = Shared::new()?;
            let settings = ClientSettings {
                socket: path,
                name: "python".to_owned(),
                call_timeout_ms: timeout_ms,
                ..ClientSettings::default()
            };
            shared.connect(settings, Duration::from_millis(wait_ms))?;
            Ok(Self {
                shared,
                server: Mutex::new(None),
            })
        })
    }

    /// Why the node cannot be used at the moment; None if it can.
    fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// A namespace: its canonical encoding, whose blocks they are, and the shape of each group's blocks with the ends
    /// of pipeline stages. Registered at once if the node is there, else when it is.
    fn namespace(
        &self,
        py: Python<'_>,
        encoding: &[u8],
        tenant: String,
        groups: Vec<Group>,
    ) -> PyResult<Namespace> {
        let namespace = pegaflow_cache::meta::Namespace::decode(encoding).map_err(invalid)?;
        let groups = groups
            .into_iter()
            .map(|((layers, parts, heads, inner_bytes), stage_ends)| {
                let shape = BlockShape {
                    layers,
                    parts,
                    heads,
                    inner_bytes,
                };
                GroupLayout { shape, stage_ends }
            });
        let known = Arc::new(Known::new(NamespaceLayout {
            namespace,
            tenant,
            groups: groups.collect(),
        })?);
        let registered = py.detach(|| {
            let register = known.handle(&self.shared);
            self.shared.runtime().block_on(register).map(|_| ())
        });
        match registered {
            Err(error) if is_lasting(&error) => Err(cache(error)),
            _ => Ok(Namespace { known }),
        }
    }

    /// Starts to look for the longest prefix of `keys`, and to fetch what of it is on SSD. What is found is kept for
    /// `ttl_ms`.
    fn lookup(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        keys: &[u8],
        ttl_ms: u64,
    ) -> PyResult<Lookup> {
        let keys = split_keys(keys)?;
        Ok(self.ask(py, namespace, move |shared, known| async move {
            look_up(&shared, &known, &keys, ttl_ms).await
        }))
    }

    /// Starts to look, in all groups of the namespace at once, for the longest prefix that every group can start from.
    /// `keys` has those of each group, in order.
    fn lookup_hybrid(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        keys: Vec<PyBackedBytes>,
        ttl_ms: u64,
    ) -> PyResult<Lookup> {
        let keys = keys.iter().map(|keys| split_keys(keys));
        let keys = keys.collect::<PyResult<Vec<_>>>()?;
        Ok(self.ask(py, namespace, move |shared, known| async move {
            look_up_hybrid(&shared, &known, &keys, ttl_ms).await
        }))
    }

    /// Gives leases back. Never fails: a node that is away holds nothing.
    fn release(&self, py: Python<'_>, found: Vec<PyRef<'_, Found>>) {
        let leases = found.iter().filter_map(|found| found.lease.clone());
        let leases = leases.collect();
        py.detach(|| self.shared.release(leases));
    }

    /// The copies of a rank for one group of the namespace, whose KV lies in memory of `device` as `layout` says.
    fn rank(
        &self,
        py: Python<'_>,
        device: &Device,
        namespace: &Namespace,
        group: u16,
        layout: Layout,
    ) -> PyResult<Rank> {
        let (shared, device) = (self.shared.clone(), device.clone());
        let known = namespace.known.clone();
        py.detach(|| Rank::open(shared, device, known, GroupId(group), layout))
    }

    /// Counters and sizes of the node, by name.
    fn stats(&self, py: Python<'_>) -> PyResult<std::collections::HashMap<&'static str, u64>> {
        let stats = py.detach(|| {
            let client = self.shared.client()?;
            self.shared.runtime().block_on(client.stats())
        });
        let stats = stats.map_err(cache)?;
        Ok([
            ("blocks", stats.blocks),
            ("capacity_bytes", stats.capacity_bytes),
            ("used_bytes", stats.used_bytes),
            ("leases", stats.leases),
            ("sealed", stats.sealed),
            ("evicted", stats.evicted),
            ("corrupt", stats.corrupt),
            ("ssd_fetched", stats.ssd_fetched),
            ("ssd_spilled", stats.ssd_spilled),
            ("ssd_waiting", stats.ssd_waiting),
            ("ssd_spilling_bytes", stats.ssd_spilling_bytes),
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

impl Client {
    /// A lookup that `look` makes, unless the node owes answers already.
    fn ask<F, A>(&self, py: Python<'_>, namespace: &Namespace, look: F) -> Lookup
    where
        F: FnOnce(Arc<Shared>, Arc<Known>) -> A + Send + 'static,
        A: Future<Output = pegaflow_cache::Result<Answer>> + Send + 'static,
    {
        let slot = Arc::new(Slot::default());
        let lookup = Lookup::new(self.shared.clone(), slot.clone());
        let (shared, known) = (self.shared.clone(), namespace.known.clone());
        let ask = async move {
            let answer = if shared.is_slow() {
                Err(pegaflow_cache::Error::Timeout { timeout_ms: 0 })
            } else {
                let answer = look(shared.clone(), known).await;
                shared.note(&answer);
                answer
            };
            slot.put(&shared, answer).await;
        };
        py.detach(|| self.shared.start(ask));
        lookup
    }
}

impl Server {
    fn start(shared: &Shared, node: &Arc<Node>, path: PathBuf) -> PyResult<Self> {
        let (stop, stopped) = oneshot::channel();
        let pool = session_socket(&path);
        let listeners = Listeners {
            grpc: listen(&path)?,
            session: listen(&pool)?,
            tcp: None,
        };
        let served = node.clone();
        shared.runtime().spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            serve(served, listeners, Access::default(), shutdown).await
        });
        Ok(Self {
            stop,
            paths: [path, pool],
        })
    }
}

async fn look_up(
    shared: &Shared,
    known: &Known,
    keys: &[BlockKey],
    ttl_ms: u64,
) -> pegaflow_cache::Result<Answer> {
    let handle = known.handle(shared).await?;
    let lookup = client::Lookup {
        lease: Some(Duration::from_millis(ttl_ms)),
        ..client::Lookup::prefix(handle, GroupId(0), keys).with_ticket()
    };
    shared.client()?.lookup(&lookup).await.map(Answer::from)
}

async fn look_up_hybrid(
    shared: &Shared,
    known: &Known,
    keys: &[Vec<BlockKey>],
    ttl_ms: u64,
) -> pegaflow_cache::Result<Answer> {
    let handle = known.handle(shared).await?;
    let groups = (0..).map(GroupId).zip(keys);
    let groups: Vec<_> = groups
        .map(|(group, keys)| GroupKeys { group, keys })
        .collect();
    let lookup = HybridLookup {
        lease: Some(Duration::from_millis(ttl_ms)),
        ..HybridLookup::new(handle, &groups)
    };
    let found = shared.client()?.lookup_hybrid(&lookup).await;
    found.map(Answer::from)
}

/// Keys from Python: 16 bytes each.
pub(crate) fn split_keys(bytes: &[u8]) -> PyResult<Vec<BlockKey>> {
    let (keys, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(invalid("keys must be 16 bytes each"));
    }
    Ok(keys.iter().map(|key| BlockKey(*key)).collect())
}

fn listen(path: &Path) -> PyResult<UnixListener> {
    let listener =
        UnixListener::bind(path).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(invalid)?;
    Ok(listener)
}
