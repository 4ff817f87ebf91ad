// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the shell must do, in order, before anybody else may call the core again.
//!
//! The order matters for a restart: a record says *writing* before its place is handed out, *sealed*
//! before the block is seen by others, and is erased before its place is handed out again.

use super::types::{LeaseId, NamespaceIndex, Place, SessionId, TicketId};
use pegaflow_meta::{BlockKey, GroupId};

/// One effect on the world outside the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// A slab of a pool now holds places of `place_bytes` each: write it to the slab table before
    /// any record in the slab.
    AssignSlab {
        /// The pool.
        pool: u8,
        /// Number of its first unit: its name while it exists.
        slab: u32,
        /// Units the slab spans.
        units: u32,
        /// Bytes from one place of the slab to the next.
        place_bytes: u64,
    },
    /// A slab is no more. Its records are erased already.
    ReleaseSlab {
        /// The pool.
        pool: u8,
        /// The slab.
        slab: u32,
    },
    /// Write a record in state *writing*: `session` is about to write to `place`.
    BeginRecord {
        /// Where the block will lie.
        place: Place,
        /// Distinguishes this use of the place from earlier ones.
        generation: u32,
        /// Namespace of the block.
        namespace: NamespaceIndex,
        /// Cache group of the block.
        group: GroupId,
        /// Who will write.
        session: SessionId,
        /// Name of the block.
        key: BlockKey,
        /// The block before it in its prefix, if it is not the first.
        parent: Option<BlockKey>,
    },
    /// One more session is about to write to a place whose record is begun.
    JoinRecord {
        /// The place.
        place: Place,
        /// The use of the place.
        generation: u32,
        /// Who will write as well.
        session: SessionId,
    },
    /// Put the checksums of item `item` of the seal request into the record; if `complete`, the
    /// block is covered: set the record's state to *sealed*.
    SealRecord {
        /// The place.
        place: Place,
        /// The use of the place.
        generation: u32,
        /// Index into the seal request's items.
        item: u32,
        /// Whether this was the last slot.
        complete: bool,
    },
    /// Erase the record: the place holds nothing any more and may be handed out next.
    EraseRecord {
        /// The place.
        place: Place,
        /// The use of the place that ends.
        generation: u32,
    },
    /// Copy a sealed block's bytes and record to another place, then call
    /// [`Core::move_done`](super::Core::move_done).
    MoveBlock {
        /// Where the block lies.
        from: Place,
        /// Where it should lie; reserved until the move is done.
        to: Place,
        /// Bytes of the block.
        bytes: u64,
        /// Name of the block.
        key: BlockKey,
        /// The use of both places.
        generation: u32,
    },
    /// Tell the waiting client how far its lookup has come.
    Ticket {
        /// The ticket.
        ticket: TicketId,
        /// Blocks of the prefix that are ready, and pinned under the ticket's lease.
        ready: u32,
        /// Whether this is the last word on the ticket.
        done: bool,
    },
    /// The lease of a waiting lookup has ended before its wait: nobody looks at the ticket any more.
    WaitOver {
        /// The ticket.
        ticket: TicketId,
    },
    /// A write lease is over its time. Its blocks are dropped, its places stay out of use until the
    /// session says that it is quiet, or is gone: tell it.
    WriteExpired {
        /// Whose lease.
        session: SessionId,
        /// The lease.
        lease: LeaseId,
    },
}

const _: () = assert!(
    std::mem::size_of::<Action>() <= 72,
    "actions are pushed once a key"
);
