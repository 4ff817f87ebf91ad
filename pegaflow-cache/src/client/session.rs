// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One session with a node, in this process or another: what leases, tickets and copies belong to.

use std::sync::Arc;

use pegaflow_mem::SharedMemory;

use super::gate::{CopyGuard, Gate};
use super::pools::Pools;
use super::remote::link::Link;
use crate::core::SessionId;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::rpc::call::Call;

/// Where calls of the session go.
#[derive(Debug)]
pub(crate) enum Way {
    /// To the node in this process.
    Embedded {
        /// The node.
        node: Arc<Node>,
        /// The session's number.
        id: SessionId,
    },
    /// To another process.
    Remote(Arc<Link>),
}

/// A session, until its node or its client is gone.
#[derive(Debug)]
pub struct Session {
    pub(crate) way: Way,
    pub(crate) gate: Arc<Gate>,
    pub(crate) pools: Pools,
    pub(crate) tickets: Arc<SharedMemory>,
    pub(crate) incarnation: u64,
    /// The node's numbers of the client's namespaces, by the client's numbers.
    pub(crate) namespaces: parking_lot::Mutex<Vec<u32>>,
}

impl Session {
    /// Whether calls of it can still be answered.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match &self.way {
            Way::Embedded { .. } => true,
            Way::Remote(link) => !link.is_closed(),
        }
    }

    /// The pools as they were when it was opened.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// The run of the node that it is with.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        match &self.way {
            Way::Embedded { id, .. } => *id,
            Way::Remote(link) => SessionId(link.session()),
        }
    }

    /// To be held while a copy touches the pools. Until it is dropped, no place that this session has
    /// reserved is given to anybody else, whatever happens to the node.
    ///
    /// # Errors
    /// [`Error::Stale`] if the session has ended.
    pub fn begin_copy(&self) -> Result<CopyGuard> {
        let guard = self.gate.enter();
        guard.ok_or(Error::Stale {
            what: "reservation",
        })
    }

    /// One call.
    pub(crate) async fn call<C: Call>(&self, request: C) -> Result<C::Reply> {
        match &self.way {
            Way::Embedded { node, id } => request.answer(node, *id, 0),
            Way::Remote(link) => link.call(&request).await,
        }
    }

    /// One call about something that this session was given.
    pub(crate) async fn call_about<C: Call>(
        &self,
        what: &'static str,
        request: C,
    ) -> Result<C::Reply> {
        if self.is_open() {
            self.call(request).await
        } else {
            Err(Error::Stale { what })
        }
    }

    /// The node's number of a namespace of this client.
    pub(crate) fn namespace(&self, index: usize) -> Result<u32> {
        let index = self.namespaces.lock().get(index).copied();
        index.ok_or_else(|| Error::unavailable("the namespace is not registered again yet"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Way::Embedded { node, id } = &self.way else {
            return;
        };
        node.close_session(*id);
        self.gate.close_then({
            let (node, id) = (node.clone(), *id);
            move || node.session_gone(id)
        });
    }
}
