// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node as an engine uses it: look up, read, reserve, write, seal.
//!
//! The same calls reach a node in this process ([`Client::embedded`]) and one behind a socket
//! ([`Client::connect`]). While a remote node is away, calls fail at once with
//! [`Error::Unavailable`]; the client connects again by itself. What a session was given (leases,
//! reservations, tickets) ends with it: then calls fail with [`Error::Stale`].

mod gate;
mod hint;
pub mod pools;
pub(crate) mod remote;
mod session;
mod settings;
mod tcp;
pub(crate) mod ticket;
mod types;

use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_meta::BlockKey;
use tokio::sync::watch;

pub use gate::{CopyGuard, Gate};
pub use hint::{Hint, HintBlocks, Hinted};
pub use pools::{PoolView, Pools};
pub use remote::Status;
pub use session::Session;
pub use settings::{ClientSettings, ClientTlsSettings, TcpSettings, session_socket};
pub use tcp::{Present, TcpClient};
pub use ticket::{Ticket, TicketState};
pub use types::{
    Found, HybridFound, HybridLookup, Lease, Lookup, NamespaceHandle, Reservation, Reserve,
};

use crate::core::{BlockRef, GroupKeys, LeaseId, LookupMode, Place, SealReply};
use crate::error::{Error, Result};
use crate::node::{Client as Who, NamespaceLayout, Node};
use crate::rpc::call::{answer_from_wire, key_bytes, slot_to_wire};
use crate::rpc::proto as pb;
use crate::rpc::{VERSION_MAX, VERSION_MIN};
use remote::Remote;
use session::Way;

/// Asks a node. Cheap to clone; all clones share one session.
#[derive(Debug, Clone)]
pub struct Client {
    way: Arc<Backend>,
}

#[derive(Debug)]
enum Backend {
    Embedded {
        session: Arc<Session>,
        namespaces: Mutex<Vec<Arc<NamespaceLayout>>>,
        status: watch::Sender<Status>,
    },
    Remote(Arc<Remote>),
}

impl Client {
    /// Connects to a node in another process. Needs a tokio runtime, now and later.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not answer in time; [`Error::Version`] if it speaks another
    /// protocol; whatever it refuses.
    pub async fn connect(settings: ClientSettings) -> Result<Self> {
        let remote = Remote::connect(settings).await?;
        Ok(Self {
            way: Arc::new(Backend::Remote(remote)),
        })
    }

    /// Asks a node in this process.
    ///
    /// # Errors
    /// [`Error::Core`] over the limit of sessions.
    pub fn embedded(node: &Arc<Node>) -> Result<Self> {
        let id = node.open_session(&Who::Embedded, None)?;
        let incarnation = node.incarnation();
        let session = Session {
            way: Way::Embedded {
                node: node.clone(),
                id,
            },
            gate: Arc::default(),
            pools: node.pools().clone(),
            tickets: node.tickets().clone(),
            incarnation,
            namespaces: Mutex::default(),
        };
        let (status, _) = watch::channel(Status::Connected { incarnation });
        Ok(Self {
            way: Arc::new(Backend::Embedded {
                session: Arc::new(session),
                namespaces: Mutex::default(),
                status,
            }),
        })
    }

    /// Whether the node can be reached, now and as it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        match &*self.way {
            Backend::Embedded { status, .. } => status.subscribe(),
            Backend::Remote(remote) => remote.status(),
        }
    }

    /// The session that calls go to at the moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the node is away.
    pub fn session(&self) -> Result<Arc<Session>> {
        match &*self.way {
            Backend::Embedded { session, .. } => Ok(session.clone()),
            Backend::Remote(remote) => remote.current(),
        }
    }

    /// Makes a namespace known to the node, and again to every later run of it.
    ///
    /// # Errors
    /// [`Error::Name`] and [`Error::Memory`] for a namespace that cannot be; [`Error::Unavailable`];
    /// whatever the node refuses.
    pub async fn register_namespace(&self, layout: NamespaceLayout) -> Result<NamespaceHandle> {
        let (id, layout) = (layout.namespace.fingerprint()?, Arc::new(layout));
        let index = match &*self.way {
            Backend::Remote(remote) => remote.register(layout.clone()).await?,
            Backend::Embedded {
                session,
                namespaces,
                ..
            } => {
                let reply = session.call(layout.to_request()?).await?;
                let mut known = namespaces.lock();
                known.push(layout.clone());
                let mut numbers = session.namespaces.lock();
                numbers.push(reply.namespace);
                numbers.len() - 1
            }
        };
        Ok(NamespaceHandle { index, id, layout })
    }

    /// Which of these blocks are here.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses.
    pub async fn lookup(&self, lookup: &Lookup<'_>) -> Result<Found> {
        let session = self.session()?;
        let request = pb::LookupRequest {
            session: session.id().0,
            namespace: session.namespace(lookup.namespace.index)?,
            group: lookup.group.0.into(),
            keys: key_bytes(lookup.keys),
            mode: match lookup.mode {
                LookupMode::Prefix => pb::LookupMode::Prefix.into(),
                LookupMode::Set => pb::LookupMode::Set.into(),
            },
            lease: lookup.lease.is_some(),
            ttl_ms: ttl_ms(lookup.lease),
            ticket: lookup.ticket,
        };
        let reply = session.call(request).await?;
        found(&session, reply)
    }

    /// Which prefix every group of a hybrid model can start from.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses.
    pub async fn lookup_hybrid(&self, lookup: &HybridLookup<'_>) -> Result<HybridFound> {
        let session = self.session()?;
        let group = |group: &GroupKeys<'_>| pb::GroupKeys {
            group: group.group.0.into(),
            keys: key_bytes(group.keys),
        };
        let request = pb::LookupHybridRequest {
            session: session.id().0,
            namespace: session.namespace(lookup.namespace.index)?,
            groups: lookup.groups.iter().map(group).collect(),
            lease: lookup.lease.is_some(),
            ttl_ms: ttl_ms(lookup.lease),
            ticket: lookup.ticket,
        };
        let reply = session.call(request).await?;
        found_hybrid(&session, reply)
    }

    /// The longest prefix that a hybrid lookup has come to while its ticket waited: all that every group
    /// needs for it, at any time and nothing by halves.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Unavailable`]; whatever the node refuses.
    pub async fn claim_hybrid(&self, lease: &Lease) -> Result<HybridFound> {
        let request = pb::ClaimHybridRequest {
            session: lease.session.id().0,
            lease: lease.id.0,
        };
        let reply = lease.session.call_about("lease", request).await?;
        found_hybrid(&lease.session, reply)
    }

    /// All blocks that a lease pins, with those that became ready while its ticket waited.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Unavailable`]; whatever the node refuses.
    pub async fn claim(&self, lease: &Lease) -> Result<Found> {
        let request = pb::ClaimRequest {
            session: lease.session.id().0,
            lease: lease.id.0,
        };
        let reply = lease.session.call_about("lease", request).await?;
        found(&lease.session, reply)
    }

    /// Ends a lease. Nobody may read its blocks any more.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Unavailable`]; whatever the node refuses.
    pub async fn release(&self, lease: &Lease) -> Result<()> {
        let request = pb::ReleaseRequest {
            session: lease.session.id().0,
            leases: vec![lease.id.0],
        };
        lease.session.call_about("lease", request).await.map(|_| ())
    }

    /// Places to write blocks to.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses. Want of room is no error: see
    /// [`Reservation::answers`].
    pub async fn reserve(&self, reserve: &Reserve<'_>) -> Result<Reservation> {
        let session = self.session()?;
        let parent = reserve.parent.as_ref().map(std::slice::from_ref);
        let request = pb::ReserveRequest {
            session: session.id().0,
            namespace: session.namespace(reserve.namespace.index)?,
            group: reserve.group.0.into(),
            slot: Some(slot_to_wire(reserve.slot)),
            parent: parent.map_or_else(Default::default, key_bytes),
            keys: key_bytes(reserve.keys),
        };
        let reply = session.call(request).await?;
        if reply.places.len() != reserve.keys.len() || reply.generations.len() != reply.places.len()
        {
            return Err(Error::protocol("an answer for each key is missing"));
        }
        let answers = reply.places.iter().zip(&reply.generations);
        Ok(Reservation {
            lease: (reply.lease != 0).then_some(LeaseId(reply.lease)),
            answers: answers
                .map(|(place, generation)| answer_from_wire(*place, *generation))
                .collect(),
            session,
        })
    }

    /// Makes written blocks visible. `items` are indexes of keys of the reservation, ascending;
    /// `checksums` has those of the slot for each: stage by stage, head by head.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Unavailable`]; whatever the node refuses.
    pub async fn seal(
        &self,
        reservation: &Reservation,
        items: &[u32],
        checksums: &[u64],
    ) -> Result<SealReply> {
        let Some(lease) = reservation.lease else {
            return Ok(SealReply::default());
        };
        let request = pb::SealRequest {
            session: reservation.session.id().0,
            lease: lease.0,
            indices: items.to_vec(),
            checksums: checksums.to_vec(),
        };
        let reply = reservation.session.call_about("reservation", request);
        let reply = reply.await?;
        Ok(SealReply {
            completed: reply.completed,
            partial: reply.partial,
            dropped: reply.dropped,
        })
    }

    /// Gives a reservation back. `quiesced` says that nothing touches its places any more; without, they
    /// stay out of use until this is called again with it, or this process has ended.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Unavailable`]; whatever the node refuses.
    pub async fn abort(&self, reservation: &Reservation, quiesced: bool) -> Result<()> {
        let Some(lease) = reservation.lease else {
            return Ok(());
        };
        let request = pb::AbortRequest {
            session: reservation.session.id().0,
            lease: lease.0,
            quiesced,
        };
        let done = reservation.session.call_about("reservation", request);
        done.await.map(|_| ())
    }

    /// Tells the node that a block's bytes are not what was saved; whether it was still there.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses.
    pub async fn report_corrupt(&self, key: BlockKey, block: &BlockRef) -> Result<bool> {
        let session = self.session()?;
        let request = pb::ReportCorruptRequest {
            session: session.id().0,
            key: key_bytes(&[key]),
            place: block.place.to_bits(),
            generation: block.generation,
        };
        Ok(session.call(request).await?.dropped)
    }

    /// Tells the node what is known of blocks to come or to go. What it does is best effort: see
    /// [`Hinted`].
    ///
    /// # Errors
    /// [`Error::Unavailable`]; whatever the node refuses.
    pub async fn hint(&self, about: &HintBlocks<'_>, hint: Hint) -> Result<Hinted> {
        let session = self.session()?;
        let request = pb::HintRequest {
            session: session.id().0,
            namespace: session.namespace(about.namespace.index)?,
            group: about.group.0.into(),
            keys: key_bytes(about.keys),
            hint: Some(hint.to_wire()),
        };
        let reply = session.call(request).await?;
        Ok(Hinted {
            lease: lease_of(&session, reply.lease),
            done: reply.done,
            coming: reply.coming,
            absent: reply.absent,
            refused: reply.refused,
        })
    }

    /// Counters and sizes of the node.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stats(&self) -> Result<pb::StatsReply> {
        let session = self.session()?;
        let id = session.id().0;
        session.call(pb::StatsRequest { session: id }).await
    }
}

/// Whether the node has chosen a version that this build speaks.
fn check_version(hello: &pb::HelloReply) -> Result<()> {
    let spoken = VERSION_MIN..=VERSION_MAX;
    if spoken.contains(&hello.version) {
        return Ok(());
    }
    Err(Error::Version {
        ours_min: VERSION_MIN,
        ours_max: VERSION_MAX,
        theirs_min: hello.version,
        theirs_max: hello.version,
    })
}

fn ttl_ms(lease: Option<std::time::Duration>) -> u32 {
    let ttl = lease.map_or(0, |ttl| ttl.as_millis());
    u32::try_from(ttl).unwrap_or(u32::MAX)
}

fn lease_of(session: &Arc<Session>, id: u64) -> Option<Lease> {
    (id != 0).then(|| Lease {
        id: LeaseId(id),
        session: session.clone(),
    })
}

fn ticket_of(session: &Arc<Session>, ticket: Option<pb::Ticket>) -> Option<Ticket> {
    ticket.map(|ticket| Ticket::new(session.clone(), ticket.index, ticket.generation))
}

fn found_hybrid(session: &Arc<Session>, reply: pb::LookupHybridReply) -> Result<HybridFound> {
    let groups = reply.groups.into_iter();
    let groups =
        groups.map(|group| block_refs(&group.places, &group.generations, &group.positions));
    Ok(HybridFound {
        lease: lease_of(session, reply.lease),
        tokens: reply.tokens,
        pending_tokens: reply.pending_tokens,
        groups: groups.collect::<Result<_>>()?,
        fetching: reply.fetching,
        ticket: ticket_of(session, reply.ticket),
        session: session.clone(),
    })
}

fn found(session: &Arc<Session>, reply: pb::LookupReply) -> Result<Found> {
    Ok(Found {
        lease: lease_of(session, reply.lease),
        blocks: block_refs(&reply.places, &reply.generations, &reply.positions)?,
        pending: reply.pending,
        fetching: reply.fetching,
        ticket: ticket_of(session, reply.ticket),
        session: session.clone(),
    })
}

/// Blocks from their columns; without positions they are the first keys.
fn block_refs(places: &[u64], generations: &[u32], positions: &[u32]) -> Result<Vec<BlockRef>> {
    let len = places.len();
    if generations.len() != len || (!positions.is_empty() && positions.len() != len) {
        return Err(Error::protocol("columns of unlike length"));
    }
    let block = |(at, (place, generation)): (usize, (&u64, &u32))| BlockRef {
        place: Place::from_bits(*place),
        generation: *generation,
        key: positions.get(at).copied().unwrap_or(at as u32),
    };
    let columns = places.iter().zip(generations);
    Ok(columns.enumerate().map(block).collect())
}
