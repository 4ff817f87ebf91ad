// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Nodes, servers and namespaces for tests.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pegaflow_cache::Error;
use pegaflow_cache::client::{
    Client, ClientSettings, Found, Lookup, NamespaceHandle, Reservation, Reserve, session_socket,
};
use pegaflow_cache::core::Answer;
use pegaflow_cache::node::{GroupLayout, NamespaceLayout, Node, NodeSettings, PoolFiles};
use pegaflow_cache::rpc::{Access, Listeners, serve};
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec, Namespace, TenantSalt};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const GROUP: GroupId = GroupId(0);
pub(crate) const SHAPE: BlockShape = BlockShape {
    layers: 2,
    parts: 2,
    heads: 4,
    inner_bytes: 1024,
};

pub(crate) fn settings(bytes: u64) -> NodeSettings {
    NodeSettings {
        pool_bytes: bytes,
        tick_ms: 5,
        ..NodeSettings::default()
    }
}

/// Settings of a node whose pools are files, in memory if the machine has a place for that.
pub(crate) fn in_files(dir: &Path, bytes: u64) -> NodeSettings {
    NodeSettings {
        files: PoolFiles::Directory(dir.join("pools")),
        ..settings(bytes)
    }
}

pub(crate) fn namespace(model: u8) -> Namespace {
    Namespace {
        model: [model; 32],
        weights: [2; 32],
        kv_dtype: "bfloat16".to_owned(),
        kv_quantisation: String::new(),
        hash_algorithm: "sha256".to_owned(),
        hash_seed: vec![],
        groups: vec![GroupSpec {
            kind: GroupKind::FullAttention,
            block_tokens: 16,
            layout: "hnd".to_owned(),
        }],
        tenant_salt: TenantSalt::default(),
    }
}

/// One group of blocks of `shape`; slots may be cut after each of `stage_ends`.
pub(crate) fn layout(model: u8, shape: BlockShape, stage_ends: &[u32]) -> NamespaceLayout {
    NamespaceLayout {
        groups: vec![GroupLayout {
            shape,
            stage_ends: stage_ends.to_vec(),
        }],
        ..NamespaceLayout::new(namespace(model), &[shape])
    }
}

/// Full attention, and a window of 32 tokens beside it.
pub(crate) fn two_groups(model: u8) -> NamespaceLayout {
    let mut namespace = namespace(model);
    namespace.groups.push(GroupSpec {
        kind: GroupKind::SlidingWindow { window_tokens: 32 },
        ..namespace.groups[0].clone()
    });
    NamespaceLayout::new(namespace, &[SHAPE, SHAPE])
}

pub(crate) fn keys(namespace: &NamespaceHandle, range: std::ops::Range<u32>) -> Vec<BlockKey> {
    range
        .map(|n| namespace.key(GROUP, &n.to_le_bytes()))
        .collect()
}

/// Starts a node on pools that another one has just let go of. A process which a test beside this one
/// is starting has a copy of the pools' lock until its exec, so "in use" is no answer at once.
pub(crate) fn restart(settings: &NodeSettings) -> Arc<Node> {
    for _ in 0..100_000 {
        match Node::start(settings) {
            Err(Error::PoolInUse { .. }) => std::thread::yield_now(),
            started => return started.expect("starts again"),
        }
    }
    panic!("the pools stay in use");
}

/// A server in this process, on sockets of its own.
pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    pub(crate) tcp: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<pegaflow_cache::Result<()>>,
    dir: TempDir,
}

impl Served {
    pub(crate) fn start(settings: &NodeSettings) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("node.sock");
        Self::start_at(settings, &socket, dir)
    }

    pub(crate) fn start_at(settings: &NodeSettings, socket: &Path, dir: TempDir) -> Self {
        Self::start_on(settings, socket, listen(socket), Access::default(), dir)
    }

    /// A server that listens on TCP as well.
    pub(crate) fn over_tcp(settings: &NodeSettings, tcp: TcpListener, access: Access) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("node.sock");
        let listeners = Listeners {
            tcp: Some(tcp),
            ..listen(&socket)
        };
        Self::start_on(settings, &socket, listeners, access, dir)
    }

    fn start_on(
        settings: &NodeSettings,
        socket: &Path,
        listeners: Listeners,
        access: Access,
        dir: TempDir,
    ) -> Self {
        let node = Node::start(settings).expect("starts");
        let tcp = listeners.tcp.as_ref();
        let tcp = tcp.map(|tcp| tcp.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(node, listeners, access, async {
            let _ = stopped.await;
        }));
        Self {
            socket: socket.to_owned(),
            tcp,
            stop: Some(stop),
            task,
            dir,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        connect(&self.socket).await
    }

    /// Stops serving and waits for it.
    pub(crate) async fn stop(self) {
        self.stop_keeping_dir().await;
    }

    /// The same; what comes back keeps the socket's folder.
    pub(crate) async fn stop_keeping_dir(mut self) -> TempDir {
        let _ = self.stop.take().expect("once").send(());
        self.task.await.expect("no panic").expect("a good end");
        self.dir
    }
}

pub(crate) fn listen(socket: &Path) -> Listeners {
    let bind = |path: &Path| {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path).expect("a free path")
    };
    Listeners {
        session: bind(&session_socket(socket)),
        grpc: bind(socket),
        tcp: None,
    }
}

pub(crate) fn client_settings(socket: &Path) -> ClientSettings {
    ClientSettings {
        socket: socket.to_owned(),
        name: "test".to_owned(),
        ..ClientSettings::default()
    }
}

pub(crate) async fn connect(socket: &Path) -> Client {
    Client::connect(client_settings(socket))
        .await
        .expect("connects")
}

pub(crate) async fn reserve(
    client: &Client,
    namespace: &NamespaceHandle,
    slot: &Slot,
    keys: &[BlockKey],
) -> Reservation {
    reserve_in(client, namespace, GROUP, slot, keys).await
}

pub(crate) async fn reserve_in(
    client: &Client,
    namespace: &NamespaceHandle,
    group: GroupId,
    slot: &Slot,
    keys: &[BlockKey],
) -> Reservation {
    let reserve = Reserve {
        namespace,
        group,
        slot,
        parent: None,
        keys,
    };
    client.reserve(&reserve).await.expect("reserves")
}

/// Checksums that tests can tell apart: of item `item`, number `n`.
pub(crate) fn sums(items: &[u32], each: usize) -> Vec<u64> {
    let of = |item: u32| (0..each as u64).map(move |n| u64::from(item) << 32 | n);
    items.iter().copied().flat_map(of).collect()
}

/// The items of a reservation that are to be written.
pub(crate) fn items(reservation: &Reservation) -> Vec<u32> {
    let places = reservation.answers.iter().enumerate();
    let places = places.filter(|(_, answer)| matches!(answer, Answer::Place { .. }));
    places.map(|(item, _)| item as u32).collect()
}

/// Reserves and seals whole blocks; says how many became visible.
pub(crate) async fn save(client: &Client, namespace: &NamespaceHandle, keys: &[BlockKey]) -> u32 {
    save_in(client, namespace, GROUP, keys).await
}

pub(crate) async fn save_in(
    client: &Client,
    namespace: &NamespaceHandle,
    group: GroupId,
    keys: &[BlockKey],
) -> u32 {
    let layout = &namespace.layout().groups[usize::from(group.0)];
    let slot = Slot::whole(&layout.shape);
    let reservation = reserve_in(client, namespace, group, &slot, keys).await;
    let items = items(&reservation);
    let sums = sums(&items, layout.checksums() as usize);
    let sealed = client.seal(&reservation, &items, &sums).await;
    sealed.expect("seals").completed
}

pub(crate) async fn lookup(
    client: &Client,
    namespace: &NamespaceHandle,
    keys: &[BlockKey],
) -> Found {
    let lookup = Lookup::prefix(namespace, GROUP, keys);
    client.lookup(&lookup).await.expect("looks up")
}

pub(crate) async fn ready(
    client: &Client,
    namespace: &NamespaceHandle,
    keys: &[BlockKey],
) -> usize {
    let lookup = Lookup::prefix(namespace, GROUP, keys).without_lease();
    client.lookup(&lookup).await.expect("looks up").blocks.len()
}
