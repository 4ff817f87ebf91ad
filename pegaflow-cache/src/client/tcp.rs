// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node asked over TCP: what it has, and how it is.
//!
//! For schedulers and routers on other machines. Bytes move through shared memory only, so such a
//! client can neither read nor write blocks: it registers namespaces, looks up and counts.
//!
//! Invariant: a node that was started anew is met with a new session, in which every namespace is
//! registered again before anything is asked about it.

use std::sync::Arc;
use std::time::Duration;

use pegaflow_meta::{BlockKey, GroupId};
use tokio::sync::{Mutex, MutexGuard};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::types::NamespaceHandle;
use super::{TcpSettings, block_refs, check_version};
use crate::core::{BlockRef, LookupMode};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NamespaceLayout;
use crate::rpc::call::key_bytes;
use crate::rpc::proto as pb;
use crate::rpc::proto::node_client::NodeClient;
use crate::rpc::{FRAME_BYTES_MAX, VERSION_MAX, VERSION_MIN};

/// Asks a node over TCP. Connects again by itself; calls fail with [`Error::Unavailable`] while
/// the node is away.
#[derive(Debug)]
pub struct TcpClient {
    node: NodeClient<Channel>,
    settings: TcpSettings,
    bearer: Option<MetadataValue<Ascii>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Open>,
    namespaces: Vec<Arc<NamespaceLayout>>,
}

/// A session; it lives as long as its stream.
#[derive(Debug)]
struct Open {
    id: u64,
    /// The node's numbers of the client's namespaces.
    numbers: Vec<u32>,
    _events: Streaming<pb::SessionEvent>,
}

/// What a node has of the keys asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Blocks that are there. Their places mean something only to clients that share the pools.
    pub blocks: Vec<BlockRef>,
    /// Blocks behind these that are being written.
    pub pending: u32,
}

impl TcpClient {
    /// Connects, and opens a session.
    ///
    /// # Errors
    /// [`Error::Setting`] for a file that cannot be used; [`Error::Unavailable`] if the node does not
    /// answer, or is not one of those that `tls.ca` vouches for; [`Error::Refused`] without the right
    /// token; [`Error::Version`].
    pub async fn connect(settings: TcpSettings) -> Result<Self> {
        let bearer = settings.bearer()?;
        let channel = endpoint(&settings)?.connect().await;
        let channel = channel.map_err(|error| Error::unavailable(Chain(&error)))?;
        let limit = FRAME_BYTES_MAX as usize;
        let node = NodeClient::new(channel)
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        let client = Self {
            node,
            settings,
            bearer,
            state: Mutex::default(),
        };
        drop(client.session().await?);
        Ok(client)
    }

    /// Makes a namespace known to the node, and again to every later run of it.
    ///
    /// # Errors
    /// As [`Client::register_namespace`](super::Client::register_namespace).
    pub async fn register_namespace(&self, layout: NamespaceLayout) -> Result<NamespaceHandle> {
        let (id, layout) = (layout.namespace.fingerprint()?, Arc::new(layout));
        let mut state = self.session().await?;
        let known = state.namespaces.iter().position(|known| *known == layout);
        let index = match known {
            Some(index) => index,
            None => {
                self.register(&mut state, &layout).await?;
                state.namespaces.push(layout.clone());
                state.namespaces.len() - 1
            }
        };
        Ok(NamespaceHandle { index, id, layout })
    }

    /// Which of these blocks the node has now. Nothing is pinned: it may be gone at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses.
    pub async fn lookup(
        &self,
        namespace: &NamespaceHandle,
        group: GroupId,
        keys: &[BlockKey],
        mode: LookupMode,
    ) -> Result<Present> {
        let mode = match mode {
            LookupMode::Prefix => pb::LookupMode::Prefix,
            LookupMode::Set => pb::LookupMode::Set,
        };
        let request = pb::LookupRequest {
            group: group.0.into(),
            keys: key_bytes(keys),
            mode: mode.into(),
            ..Default::default()
        };
        let reply = self.in_session(|open| {
            let request = open.number(namespace).map(|namespace| {
                self.request(pb::LookupRequest {
                    session: open.id,
                    namespace,
                    ..request.clone()
                })
            });
            let mut node = self.node.clone();
            async move { done(node.lookup(request?).await) }
        });
        let reply = reply.await?;
        Ok(Present {
            blocks: block_refs(&reply.places, &reply.generations, &reply.positions)?,
            pending: reply.pending,
        })
    }

    /// Counters and sizes of the node.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stats(&self) -> Result<pb::StatsReply> {
        let reply = self.in_session(|open| {
            let request = self.request(pb::StatsRequest { session: open.id });
            let mut node = self.node.clone();
            async move { done(node.stats(request).await) }
        });
        reply.await
    }

    /// Calls in the session; in a new one if the node has forgotten it.
    async fn in_session<R, F>(&self, call: impl Fn(Known) -> F) -> Result<R>
    where
        F: Future<Output = Result<R>>,
    {
        let open = Known::of(&*self.session().await?);
        let id = open.id;
        match call(open).await {
            Err(Error::Remote {
                kind: ErrorKind::Closed,
                ..
            }) => {}
            done => return done,
        }
        let mut state = self.state.lock().await;
        state.session = state.session.take().filter(|open| open.id != id);
        drop(state);
        call(Known::of(&*self.session().await?)).await
    }

    /// The state, with a session in it.
    async fn session(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().await;
        if state.session.is_none() {
            state.session = Some(self.open().await?);
            for layout in state.namespaces.clone() {
                let registered = self.register(&mut state, &layout).await;
                registered.inspect_err(|_| state.session = None)?;
            }
        }
        Ok(state)
    }

    async fn open(&self) -> Result<Open> {
        let mut node = self.node.clone();
        let hello = pb::HelloRequest {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            client: self.settings.name.clone(),
        };
        let hello = done(node.hello(self.request(hello)).await)?;
        check_version(&hello)?;
        let session = pb::SessionRequest {
            session: hello.session,
        };
        // No deadline: it is to last.
        let mut stream = Request::new(session);
        self.sign(&mut stream);
        Ok(Open {
            id: hello.session,
            numbers: vec![],
            _events: done(node.session(stream).await)?,
        })
    }

    async fn register(&self, state: &mut State, layout: &NamespaceLayout) -> Result<()> {
        let Some(open) = &mut state.session else {
            return Err(Error::unavailable("the session has ended"));
        };
        let request = pb::RegisterNamespaceRequest {
            session: open.id,
            ..layout.to_request()?
        };
        let mut node = self.node.clone();
        let reply = done(node.register_namespace(self.request(request)).await)?;
        open.numbers.push(reply.namespace);
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let wait = Duration::from_millis(self.settings.call_timeout_ms.into());
        request.set_timeout(wait);
        self.sign(&mut request);
        request
    }

    fn sign<T>(&self, request: &mut Request<T>) {
        if let Some(bearer) = &self.bearer {
            request
                .metadata_mut()
                .insert("authorization", bearer.clone());
        }
    }
}

/// The session as one call needs it.
struct Known {
    id: u64,
    numbers: Vec<u32>,
}

impl Known {
    fn number(&self, namespace: &NamespaceHandle) -> Result<u32> {
        let number = self.numbers.get(namespace.index).copied();
        number.ok_or_else(|| Error::protocol("the namespace was registered with another client"))
    }

    fn of(state: &State) -> Self {
        let open = state.session.as_ref();
        Self {
            id: open.map_or(0, |open| open.id),
            numbers: open.map_or_else(Vec::new, |open| open.numbers.clone()),
        }
    }
}

fn endpoint(settings: &TcpSettings) -> Result<Endpoint> {
    let tls = settings.tls.read()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", settings.address));
    let endpoint = endpoint.map_err(|error| Error::Setting {
        setting: "address",
        why: format!("`{}`: {error}; write HOST:PORT", settings.address),
    })?;
    let wait = Duration::from_millis(settings.connect_timeout_ms.into());
    let endpoint = endpoint.connect_timeout(wait).tcp_nodelay(true);
    match tls {
        Some(tls) => tls.endpoint(endpoint).map_err(Error::unavailable),
        None => Ok(endpoint),
    }
}

/// What a call brought.
fn done<R>(reply: std::result::Result<Response<R>, Status>) -> Result<R> {
    reply.map(Response::into_inner).map_err(|status| {
        let failure = <pb::Failure as prost::Message>::decode(status.details());
        match (failure, status.code()) {
            (Ok(failure), _) if !status.details().is_empty() => failure.into(),
            (_, Code::Unauthenticated | Code::PermissionDenied) => Error::Refused {
                why: status.message().to_owned(),
            },
            _ => Error::unavailable(Chain(&status)),
        }
    })
}

/// An error with what caused it, which is where transports say what happened.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}
