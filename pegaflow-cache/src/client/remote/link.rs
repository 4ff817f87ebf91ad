// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One session with a node in another process: from its hello to the end of its lifeline.
//!
//! Invariant: a call whose caller went away is still read to its end, and what it was granted is
//! given back; so a cancelled future leaks no lease.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connection::Connection;
use crate::client::ClientSettings;
use crate::error::{Error, Result};
use crate::rpc::call::Call;
use crate::rpc::frame::Op;
use crate::rpc::proto as pb;

/// How long an abandoned call's answer is waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A session's connections.
#[derive(Debug)]
pub(crate) struct Link {
    path: PathBuf,
    session: u64,
    frame_bytes_max: u32,
    call_timeout: Duration,
    /// One permit for each call that may run, and so for each connection that may be open: a call opens one only if
    /// none is idle.
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    closed: AtomicBool,
}

/// A connection in use, and the right to use one.
#[derive(Debug)]
struct Pooled {
    connection: Connection,
    room: OwnedSemaphorePermit,
}

impl Link {
    pub(super) fn new(path: PathBuf, hello: &pb::HelloReply, settings: &ClientSettings) -> Self {
        let limits = hello.limits.unwrap_or_default();
        Self {
            path,
            session: hello.session,
            frame_bytes_max: limits.frame_bytes_max,
            call_timeout: Duration::from_millis(settings.call_timeout_ms.into()),
            room: Arc::new(Semaphore::new(settings.connections_max.max(1) as usize)),
            idle: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Number of the session.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Whether its lifeline is cut.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends it: no call begins any more, and running ones see the end of their connection.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().clear();
    }

    /// One call, with the client's deadline.
    pub(crate) async fn call<C: Call>(self: &Arc<Self>, request: &C) -> Result<C::Reply> {
        let timeout_ms = u32::try_from(self.call_timeout.as_millis()).unwrap_or(u32::MAX);
        let mut running = Running {
            pooled: None,
            link: self.clone(),
            op: C::OP,
        };
        let call = async {
            let pooled = running.pooled.insert(self.checkout().await?);
            pooled.connection.call(C::OP, request, timeout_ms).await
        };
        let result = timeout(self.call_timeout, call).await;
        let Ok(result) = result else {
            // Dropping `running` reads the answer in the background.
            return Err(Error::Timeout {
                timeout_ms: timeout_ms.into(),
            });
        };
        let pooled = running.pooled.take();
        if let (Some(pooled), Ok(_) | Err(Error::Remote { .. })) = (pooled, &result) {
            self.checkin(pooled);
        }
        result
    }

    async fn checkout(&self) -> Result<Pooled> {
        if self.is_closed() {
            return Err(Error::unavailable("the connection was lost"));
        }
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(Error::unavailable)?;
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.attach().await?,
        };
        Ok(Pooled { connection, room })
    }

    async fn attach(&self) -> Result<Connection> {
        let mut connection = Connection::open(&self.path, self.frame_bytes_max)
            .await
            .map_err(Error::unavailable)?;
        let request = pb::AttachRequest {
            session: self.session,
        };
        let _: pb::AttachReply = connection.call(Op::Attach, &request, 0).await?;
        Ok(connection)
    }

    fn checkin(&self, Pooled { connection, room }: Pooled) {
        let mut idle = self.idle.lock();
        if !self.is_closed() {
            idle.push(connection);
        }
        drop(idle);
        // Who waits for it finds the connection.
        drop(room);
    }

    /// Gives back what an abandoned call was granted.
    async fn drain(self: Arc<Self>, mut pooled: Pooled, op: Op) {
        let given_back = give_back(&mut pooled.connection, op);
        if let Ok(Ok(())) = timeout(DRAIN_TIMEOUT, given_back).await {
            self.checkin(pooled);
        }
    }
}

async fn give_back(connection: &mut Connection, op: Op) -> Result<()> {
    match op {
        Op::Lookup => {
            let reply: pb::LookupReply = finish(connection, op).await?;
            release(connection, reply.lease).await
        }
        Op::LookupHybrid => {
            let reply: pb::LookupHybridReply = finish(connection, op).await?;
            release(connection, reply.lease).await
        }
        Op::Reserve => {
            let reply: pb::ReserveReply = finish(connection, op).await?;
            if reply.lease == 0 {
                return Ok(());
            }
            let request = pb::AbortRequest {
                session: 0,
                lease: reply.lease,
                quiesced: true,
            };
            let _: pb::AbortReply = connection.call(Op::Abort, &request, 0).await?;
            Ok(())
        }
        _ => finish::<()>(connection, op).await,
    }
}

/// The reply, or its default where the node refused: nothing was granted then.
async fn finish<R: prost::Message + Default>(connection: &mut Connection, op: Op) -> Result<R> {
    match connection.finish(op).await {
        Err(Error::Remote { .. }) => Ok(R::default()),
        other => other,
    }
}

async fn release(connection: &mut Connection, lease: u64) -> Result<()> {
    if lease == 0 {
        return Ok(());
    }
    let request = pb::ReleaseRequest {
        session: 0,
        leases: vec![lease],
    };
    let _: pb::ReleaseReply = connection.call(Op::Release, &request, 0).await?;
    Ok(())
}

/// A call under way. Dropped before its end, it is read to its end in the background.
struct Running {
    pooled: Option<Pooled>,
    link: Arc<Link>,
    op: Op,
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.link.clone().drain(pooled, self.op));
        }
    }
}
