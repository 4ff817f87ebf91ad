// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the core refuses, and what the caller should do about it.
//!
//! Invariant: a call that returns an error has changed nothing.

use super::types::{LeaseId, NamespaceIndex, Place, SessionId};
use pegaflow_mem::ErrorKind;
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};

/// What went wrong, by cause; [`Error::kind`] says what the caller must do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session was never opened, or is closed.
    #[error("{0:?} is not an open session of this node")]
    UnknownSession(SessionId),
    /// The session number was used before.
    #[error("{0:?} exists already")]
    SessionExists(SessionId),
    /// The lease ended, or never was, or belongs to another session.
    #[error("{0:?} is not a lease of this session (released, expired, or from before a restart)")]
    UnknownLease(LeaseId),
    /// The namespace was never registered with this node.
    #[error("{0:?} is not registered with this node")]
    UnknownNamespace(NamespaceIndex),
    /// The namespace has no such group.
    #[error("{0:?} has no {1:?}")]
    UnknownGroup(NamespaceIndex, GroupId),
    /// The namespace is registered with other shapes.
    #[error(
        "namespace {id} is registered with other block shapes: {what} differs in group {group}"
    )]
    NamespaceMismatch {
        /// Fingerprint of the namespace.
        id: NamespaceId,
        /// The group that differs.
        group: u16,
        /// What differs.
        what: &'static str,
    },
    /// A description that can never be right.
    #[error("{what}: {reason}")]
    Bad {
        /// What was described.
        what: &'static str,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The same key twice in one request.
    #[error("key {0} occurs twice in one request")]
    DuplicateKey(BlockKey),
    /// The key is known under another namespace or group.
    #[error("key {0} belongs to another namespace or group")]
    ForeignKey(BlockKey),
    /// The item is not part of the lease.
    #[error("item {item} is not a place of {lease:?}")]
    UnknownItem {
        /// The lease.
        lease: LeaseId,
        /// The item, counted as the keys of the reservation.
        item: u32,
    },
    /// The place is not (or no longer) what the caller thinks it is.
    #[error("{place:?} does not hold that block")]
    UnknownPlace {
        /// The place.
        place: Place,
    },
    /// A limit of the settings is reached.
    #[error("{wanted} wanted, {limit} allowed by `{setting}`")]
    OverLimit {
        /// Name of the setting.
        setting: &'static str,
        /// What the call would have led to.
        wanted: u64,
        /// The setting's value.
        limit: u64,
    },
}

impl Error {
    pub(super) fn ticket_alone() -> Self {
        let reason = "needs a lease and, of one group, the mode `prefix`";
        Self::Bad {
            what: "ticket",
            reason,
        }
    }

    /// What the caller must do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::UnknownSession(_) | Error::UnknownLease(_) => ErrorKind::Closed,
            Error::OverLimit { .. } => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        }
    }
}

/// Refuses what is over a limit of the settings.
pub(super) fn within(setting: &'static str, wanted: usize, limit: u32) -> Result<(), Error> {
    let (wanted, limit) = (wanted as u64, u64::from(limit));
    if wanted > limit {
        Err(Error::OverLimit {
            setting,
            wanted,
            limit,
        })
    } else {
        Ok(())
    }
}
