// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Sessions: one for every client process that talks to the node.
//!
//! Invariant: a session is forgotten only when its process is gone and it holds nothing.

use super::types::SessionId;
use std::collections::HashMap;

/// One client.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Session {
    /// Its stream is closed; it may still write to the places that it had reserved.
    pub(crate) closed: bool,
    /// Pool whose memory is nearest to it.
    pub(crate) near: u8,
    pub(crate) leases: u32,
    /// Bytes of the blocks it has reserved and not sealed.
    pub(crate) reserved_bytes: u64,
}

pub(crate) type Sessions = HashMap<SessionId, Session>;
