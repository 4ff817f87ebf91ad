// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Blocks under keys: what a caller sees.

mod dispatch;
mod lane;
mod open;
mod read;
mod ssd;
mod ticket;
mod write;

use crate::error::{Error, Result};
use crate::key::Key;
use crate::metrics::Stats;
use crate::sys::Buf;

pub use open::{Device, inspect};
pub use ssd::SsdStore;
pub use ticket::{Done, Ticket};

/// A block to store. Its bytes are those in use of its buffers, in order.
#[derive(Debug)]
pub struct Put {
    /// What it is called. A block of the same name is replaced when this one is stored.
    pub key: Key,
    /// Its bytes. Written from where they are if every buffer but the last is whole pages; copied once otherwise.
    pub bufs: Vec<Buf>,
    /// Up to 256 bytes that come back with it.
    pub meta: Vec<u8>,
    /// Seconds until it is not found any more; 0: never.
    pub ttl_s: u32,
    /// Store it only if there is no block of this name.
    pub if_absent: bool,
}

impl Put {
    /// A block in one buffer.
    pub fn new(key: Key, buf: Buf) -> Self {
        Self::scattered(key, vec![buf])
    }

    /// A block in many.
    pub fn scattered(key: Key, bufs: Vec<Buf>) -> Self {
        Self {
            key,
            bufs,
            meta: Vec::new(),
            ttl_s: 0,
            if_absent: false,
        }
    }

    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        self.bufs.iter().map(|b| b.len() as u64).sum()
    }
}

/// A block to fetch.
#[derive(Debug)]
pub struct Get {
    /// What it is called.
    pub key: Key,
    /// Where its bytes go: the buffers are filled in order, and their lengths set. Their capacities must be at least the block's length, rounded up
    /// to a whole page.
    pub bufs: Vec<Buf>,
    /// Also fetch what was given along with it; costs another small read.
    pub meta: bool,
}

impl Get {
    /// Into one buffer.
    pub fn new(key: Key, buf: Buf) -> Self {
        Self {
            key,
            bufs: vec![buf],
            meta: false,
        }
    }
}

/// What became of a block to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is found from now on, as durable as the settings say.
    Stored,
    /// There was one already, and only an absent one was to be stored.
    Present,
    /// The admission policy did not want it.
    Declined,
}

/// What became of a block to fetch. A miss is not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The bytes are in the buffers, and they are those that were stored.
    Hit {
        /// The block's length.
        bytes: u32,
        /// What was given along with it; empty if not asked for.
        meta: Vec<u8>,
    },
    /// There is no such block (any more).
    Miss,
}

/// What is known of a block without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its length, bytes.
    pub bytes: u32,
    /// Seconds since 1970 from which on it is not found; 0: never.
    pub expires_s: u32,
}

/// Nothing was taken; here is everything back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// The buffers as they came.
    pub bufs: Vec<Buf>,
    /// Why.
    pub error: Error,
}

/// Stores blocks of bytes under 16-byte keys. No call waits for the device: what is taken is answered through its [`Ticket`].
pub trait BlockStore: Send + Sync {
    /// Takes blocks to store, each on its own: some may be refused.
    fn put_batch(&self, puts: Vec<Put>) -> Vec<std::result::Result<Ticket<Stored>, Refused>>;

    /// Takes blocks to fetch, each on its own: some may be refused.
    fn get_batch(&self, gets: Vec<Get>) -> Vec<std::result::Result<Ticket<Fetched>, Refused>>;

    /// Removes a block. The answer is whether there may have been one; from then on it is not found, also after a restart.
    ///
    /// # Errors
    /// `Closed`, and `Busy` when the write queue is full.
    fn remove(&self, key: Key) -> Result<Ticket<bool>>;

    /// What is known of these blocks; nothing for those that are not there.
    fn find(&self, keys: &[Key]) -> Vec<Option<BlockInfo>>;

    /// Keeps a block until it is unpinned or the store is closed; or lets it go. Returns whether it is there.
    ///
    /// # Errors
    /// `Busy` over `pinned_percent_max`.
    fn pin(&self, key: Key, pinned: bool) -> Result<bool>;

    /// Figures.
    fn stats(&self) -> Stats;

    /// Takes one block to store.
    ///
    /// # Errors
    /// [`Refused`] with the buffers: `Busy` when the queue is full, `Invalid` for a block that can never be stored, `Closed`.
    fn put(&self, put: Put) -> std::result::Result<Ticket<Stored>, Refused> {
        self.put_batch(vec![put])
            .pop()
            .expect("one answer for one block")
    }

    /// Takes one block to fetch.
    ///
    /// # Errors
    /// As [`BlockStore::put`].
    fn get(&self, get: Get) -> std::result::Result<Ticket<Fetched>, Refused> {
        self.get_batch(vec![get])
            .pop()
            .expect("one answer for one block")
    }
}

const _: Option<&dyn BlockStore> = None;

#[cfg(test)]
mod tests;
