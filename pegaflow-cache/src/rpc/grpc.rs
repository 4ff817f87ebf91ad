// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The same calls over gRPC, for clients in other languages and on other machines.
//!
//! A session opened here has no memory of the node: it can look up, lease and ask, not write. It
//! lives as long as its `Session` stream, or until it was silent for [`IDLE_MAX`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::call::Call;
use super::failure::to_status;
use super::proto::node_server::Node as NodeService;
use super::session_socket::{hello_reply, negotiate};
use super::{Access, proto as pb};
use crate::core::SessionId;
use crate::error::Error;
use crate::node::{Client, Node};

/// How long a session without a stream may be silent.
const IDLE_MAX: Duration = Duration::from_secs(60);
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
struct Held {
    last_use: Instant,
    /// Taken by the session's stream.
    events: Option<mpsc::Receiver<pb::SessionEvent>>,
}

/// Sessions that were opened over gRPC.
type Table = Arc<Mutex<HashMap<SessionId, Held>>>;

/// The service. One for each listener: they differ in who may call.
#[derive(Debug, Clone)]
pub(super) struct Service {
    node: Arc<Node>,
    access: Option<Access>,
    sessions: Table,
}

#[expect(
    clippy::disallowed_methods,
    reason = "idle sessions are a matter of the shell"
)]
fn now() -> Instant {
    Instant::now()
}

impl Service {
    /// Calls are let pass by `access`; `None` lets all pass.
    pub(super) fn new(node: Arc<Node>, access: Option<Access>) -> Self {
        Self {
            node,
            access,
            sessions: Table::default(),
        }
    }

    /// Ends sessions that nobody uses; to be called every second or so.
    pub(super) fn end_idle(&self) {
        let mut idle = vec![];
        self.sessions.lock().retain(|session, held| {
            // One with a stream ends with the stream.
            let keep = held.events.is_none() || held.last_use.elapsed() < IDLE_MAX;
            if !keep {
                idle.push(*session);
            }
            keep
        });
        for session in idle {
            self.node.close_session(session);
        }
    }

    /// Ends all sessions, and so their streams.
    pub(super) fn end_all(&self) {
        let all = std::mem::take(&mut *self.sessions.lock());
        for session in all.into_keys() {
            self.node.close_session(session);
        }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match &self.access {
            Some(access) => access.check_call(request.metadata()),
            None => Ok(()),
        }
    }

    fn serve<C: Call>(&self, request: Request<C>) -> Result<Response<C::Reply>, Status> {
        self.check(&request)?;
        let request = request.into_inner();
        let session = request.session();
        if let Some(held) = self.sessions.lock().get_mut(&session) {
            held.last_use = now();
        }
        let span = tracing::debug_span!("call", op = ?C::OP, session = session.0);
        let _entered = span.enter();
        let served = request.answer(&self.node, session, 0);
        served.map(Response::new).map_err(|error| to_status(&error))
    }
}

/// Events of a session; the session ends with it.
pub(super) struct Events {
    receiver: mpsc::Receiver<pb::SessionEvent>,
    node: Arc<Node>,
    sessions: Table,
    session: SessionId,
}

impl Stream for Events {
    type Item = Result<pb::SessionEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|event| event.map(Ok))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.session);
        self.node.close_session(self.session);
    }
}

macro_rules! served {
    ($($method:ident: $request:ident -> $reply:ident;)*) => {
        #[tonic::async_trait]
        impl NodeService for Service {
            type SessionStream = Events;

            async fn hello(
                &self,
                request: Request<pb::HelloRequest>,
            ) -> Result<Response<pb::HelloReply>, Status> {
                self.check(&request)?;
                let opened = self.open(&request.into_inner());
                opened.map(Response::new).map_err(|error| to_status(&error))
            }

            async fn session(
                &self,
                request: Request<pb::SessionRequest>,
            ) -> Result<Response<Events>, Status> {
                self.check(&request)?;
                let session = SessionId(request.into_inner().session);
                let events = self.events(session);
                events.map(Response::new).map_err(|error| to_status(&error))
            }

            $(
                async fn $method(
                    &self,
                    request: Request<pb::$request>,
                ) -> Result<Response<pb::$reply>, Status> {
                    self.serve(request)
                }
            )*
        }
    };
}

served! {
    register_namespace: RegisterNamespaceRequest -> RegisterNamespaceReply;
    lookup: LookupRequest -> LookupReply;
    lookup_hybrid: LookupHybridRequest -> LookupHybridReply;
    claim: ClaimRequest -> LookupReply;
    claim_hybrid: ClaimHybridRequest -> LookupHybridReply;
    reserve: ReserveRequest -> ReserveReply;
    seal: SealRequest -> SealReply;
    abort: AbortRequest -> AbortReply;
    release: ReleaseRequest -> ReleaseReply;
    report_corrupt: ReportCorruptRequest -> ReportCorruptReply;
    quiesced: QuiescedRequest -> QuiescedReply;
    hint: HintRequest -> HintReply;
    stats: StatsRequest -> StatsReply;
}

impl Service {
    fn open(&self, request: &pb::HelloRequest) -> crate::Result<pb::HelloReply> {
        let version = negotiate(request)?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let opened = pb::SessionEvent {
            kind: pb::session_event::Kind::Open.into(),
            lease: 0,
        };
        let _ = sender.try_send(opened);
        let session = self.node.open_session(&Client::Remote, Some(sender))?;
        let held = Held {
            last_use: now(),
            events: Some(events),
        };
        self.sessions.lock().insert(session, held);
        Ok(hello_reply(&self.node, version, session, vec![]))
    }

    fn events(&self, session: SessionId) -> crate::Result<Events> {
        let mut sessions = self.sessions.lock();
        let held = sessions.get_mut(&session);
        let receiver = held.and_then(|held| held.events.take());
        let receiver = receiver.ok_or_else(|| Error::Refused {
            why: "no session of that number was opened over this listener, or it has its stream"
                .to_owned(),
        })?;
        Ok(Events {
            receiver,
            node: self.node.clone(),
            sessions: self.sessions.clone(),
            session,
        })
    }
}
