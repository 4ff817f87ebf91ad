// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Names and small values that cross the boundary of the core.

use std::fmt;

/// Milliseconds since the node started; handed in by the shell, never read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Now(pub u64);

/// A client as the shell names it. A number is never used twice within one life of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A registered namespace: an index into the node's table, kept in the pool's control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceIndex(pub u32);

/// A tenant of this node: an index into the core's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantIndex(pub u32);

/// A lease of this node. Unknown once it has ended; numbers do not come back in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A word in shared memory that tells a client how far its lookup has come; the shell's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub u64);

/// Where the bytes of one block lie: a pool, and a byte offset in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    const OFFSET_BITS: u32 = 56;

    /// The place at `offset` bytes in pool `pool`.
    ///
    /// # Panics
    /// If `offset` is 2^56 or more, which no pool is large enough for.
    #[must_use]
    pub const fn new(pool: u8, offset: u64) -> Self {
        assert!(offset >> Self::OFFSET_BITS == 0, "no pool is that large");
        Self((pool as u64) << Self::OFFSET_BITS | offset)
    }

    /// Which pool.
    #[must_use]
    pub const fn pool(self) -> u8 {
        (self.0 >> Self::OFFSET_BITS) as u8
    }

    /// Byte offset in the pool.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 & ((1 << Self::OFFSET_BITS) - 1)
    }

    /// The wire form: the pool in the top byte, the offset below.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Reads the wire form; every value is a place (not necessarily one of this node).
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}:{:#x})", self.pool(), self.offset())
    }
}
