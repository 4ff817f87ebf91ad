// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node in another process: connects, notices when it goes, and connects again.
//!
//! One task, the keeper, owns the lifeline. When the lifeline is cut it closes the session's gate,
//! tries to connect until it succeeds, maps the pools (or keeps the mapping, if they are the same),
//! registers the client's namespaces, and tells the node when the copies of the old session are over.

mod connection;
pub(crate) mod link;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::gate::Gate;
use super::pools::Pools;
use super::session::{Session, Way};
use super::settings::{ClientSettings, session_socket};
use crate::error::{Error, Result};
use crate::node::NamespaceLayout;
use crate::rpc::frame::Op;
use crate::rpc::proto as pb;
use connection::Connection;
use link::Link;

/// Longest body of the node's first answer.
const HELLO_BYTES_MAX: u32 = 64 << 10;
/// First pause between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// Whether the node can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It answers; this is its run.
    Connected {
        /// Names the run of the node.
        incarnation: u64,
    },
    /// It does not. The client goes on trying.
    Disconnected {
        /// What was seen last.
        why: String,
    },
}

/// The client's side of a node in another process.
#[derive(Debug)]
pub(crate) struct Remote {
    settings: ClientSettings,
    path: PathBuf,
    current: Mutex<Option<Arc<Session>>>,
    status: watch::Sender<Status>,
    /// All namespaces ever registered, in order; held while they are registered with a new session.
    pub(super) namespaces: tokio::sync::Mutex<Vec<Arc<NamespaceLayout>>>,
    keeper: Mutex<Option<tokio::task::AbortHandle>>,
}

/// A session and its lifeline.
struct Opened {
    session: Arc<Session>,
    lifeline: Connection,
}

impl Remote {
    /// Connects, or goes on trying in the background if the node is not there in time.
    pub(super) async fn connect(settings: ClientSettings) -> Result<Arc<Self>> {
        let (status, _) = watch::channel(Status::Disconnected {
            why: "not connected yet".to_owned(),
        });
        let remote = Arc::new(Self {
            path: session_socket(&settings.socket),
            settings,
            current: Mutex::default(),
            status,
            namespaces: tokio::sync::Mutex::default(),
            keeper: Mutex::default(),
        });
        let first = remote.first().await?;
        remote.publish(&first.session);
        let span = tracing::info_span!("node", socket = %remote.settings.socket.display());
        let keeper = tokio::spawn(keep(Arc::downgrade(&remote), first).instrument(span));
        *remote.keeper.lock() = Some(keeper.abort_handle());
        Ok(remote)
    }

    async fn first(&self) -> Result<Opened> {
        let wait = Duration::from_millis(self.settings.connect_timeout_ms.into());
        let mut last = None;
        let opened = timeout(wait, async {
            let mut pause = PAUSE_MIN;
            loop {
                match self.open(&Pools::default()).await {
                    Ok(opened) => return Ok(opened),
                    Err(error) if is_lasting(&error) => return Err(error),
                    Err(error) => last = Some(error),
                }
                sleep(pause).await;
                pause = (pause * 2).min(self.pause_max());
            }
        });
        match opened.await {
            Ok(opened) => opened,
            Err(_) => Err(Error::unavailable(last.map_or_else(
                || format!("no answer at {}", self.path.display()),
                |error| error.to_string(),
            ))),
        }
    }

    fn pause_max(&self) -> Duration {
        Duration::from_millis(self.settings.reconnect_pause_ms_max.max(1).into())
    }

    /// The session to use now.
    pub(super) fn current(&self) -> Result<Arc<Session>> {
        let current = self.current.lock().clone();
        current.filter(|session| session.is_open()).ok_or_else(|| {
            let status = self.status.borrow();
            match &*status {
                Status::Disconnected { why } => Error::unavailable(why),
                Status::Connected { .. } => Error::unavailable("the connection was just lost"),
            }
        })
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn publish(&self, session: &Arc<Session>) {
        *self.current.lock() = Some(session.clone());
        let incarnation = session.incarnation;
        self.status.send_replace(Status::Connected { incarnation });
    }

    /// Opens a session. Pools that are mapped already keep their mapping.
    async fn open(&self, known: &Pools) -> Result<Opened> {
        let mut lifeline = Connection::open(&self.path, HELLO_BYTES_MAX)
            .await
            .map_err(Error::unavailable)?;
        let request = pb::HelloRequest {
            version_min: crate::rpc::VERSION_MIN,
            version_max: crate::rpc::VERSION_MAX,
            client: self.settings.name.clone(),
        };
        let (hello, files) = lifeline.hello(&request, HELLO_BYTES_MAX).await?;
        super::check_version(&hello)?;
        let (pools, tickets) = Pools::attach(&hello, files, known)?;
        let link = Arc::new(Link::new(self.path.clone(), &hello, &self.settings));
        let session = Arc::new(Session {
            way: Way::Remote(link),
            gate: Arc::new(Gate::default()),
            pools,
            tickets,
            incarnation: hello.incarnation,
            namespaces: Mutex::default(),
        });
        self.register_all(&session).await?;
        Ok(Opened { session, lifeline })
    }

    async fn register_all(&self, session: &Session) -> Result<()> {
        let namespaces = self.namespaces.lock().await;
        for layout in namespaces.iter() {
            let reply = session.call(layout.to_request()?).await?;
            session.namespaces.lock().push(reply.namespace);
        }
        Ok(())
    }

    /// Registers a namespace now and with every later session; says its number here.
    pub(super) async fn register(&self, layout: Arc<NamespaceLayout>) -> Result<usize> {
        let mut namespaces = self.namespaces.lock().await;
        let session = self.current()?;
        let reply = session.call(layout.to_request()?).await?;
        if let Some(known) = namespaces.iter().position(|known| *known == layout) {
            return Ok(known);
        }
        namespaces.push(layout);
        session.namespaces.lock().push(reply.namespace);
        Ok(namespaces.len() - 1)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
    }
}

/// Whether trying again will not help.
fn is_lasting(error: &Error) -> bool {
    use pegaflow_mem::ErrorKind::{Invalid, Unsupported};
    matches!(error.kind(), Invalid | Unsupported)
}

/// Watches the lifeline, and connects again when it is cut.
async fn keep(remote: Weak<Remote>, first: Opened) {
    let mut opened = first;
    loop {
        let why = watch_lifeline(&mut opened.lifeline).await;
        let session = opened.session;
        if let Way::Remote(link) = &session.way {
            link.close();
        }
        session.gate.close();
        {
            let Some(remote) = remote.upgrade() else {
                return;
            };
            tracing::warn!(why, "lost the node; calls are refused until it is back");
            *remote.current.lock() = None;
            remote.status.send_replace(Status::Disconnected { why });
        }
        let Some(next) = reconnect(&remote, &session.pools).await else {
            return;
        };
        tokio::spawn(say_quiet(remote.clone(), session));
        opened = next;
    }
}

/// Reads events until the connection ends; says how it ended.
async fn watch_lifeline(lifeline: &mut Connection) -> String {
    loop {
        match lifeline.next().await {
            Ok((header, body)) if header.op == Op::Event as u16 => {
                let event = <pb::SessionEvent as prost::Message>::decode(body);
                tracing::debug!(?event, "event of the session");
            }
            Ok((header, _)) => return format!("unasked frame of kind {}", header.op),
            Err(error) => return error.to_string(),
        }
    }
}

async fn reconnect(remote: &Weak<Remote>, known: &Pools) -> Option<Opened> {
    let mut pause = PAUSE_MIN;
    loop {
        let strong = remote.upgrade()?;
        match strong.open(known).await {
            Ok(opened) => {
                strong.publish(&opened.session);
                let incarnation = opened.session.incarnation;
                tracing::info!(incarnation, "the node is back");
                return Some(opened);
            }
            Err(error) => {
                tracing::debug!(%error, "the node is still away");
                let why = error.to_string();
                strong.status.send_if_modified(|status| {
                    let new = Status::Disconnected { why };
                    let changed = *status != new;
                    *status = new;
                    changed
                });
            }
        }
        let pause_max = strong.pause_max();
        drop(strong);
        sleep(pause).await;
        pause = (pause * 2).min(pause_max);
    }
}

/// Tells the node, once the ended session's copies are over, that its places are free.
async fn say_quiet(remote: Weak<Remote>, ended: Arc<Session>) {
    ended.gate.quiet().await;
    let ended_session = ended.id().0;
    loop {
        let Some(strong) = remote.upgrade() else {
            return;
        };
        let mut status = strong.status();
        let said = match strong.current() {
            Ok(session) => {
                let request = pb::QuiescedRequest {
                    session: 0,
                    ended_session,
                };
                session.call(request).await.map(|_| ())
            }
            Err(error) => Err(error),
        };
        drop(strong);
        match said {
            Ok(()) => {
                tracing::debug!(ended_session, "the ended session is quiet");
                return;
            }
            Err(error) if is_lasting(&error) => {
                tracing::warn!(%error, ended_session, "the node does not take the ended session's word");
                return;
            }
            Err(_) => {}
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}
