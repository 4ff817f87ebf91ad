// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What moves between memory and a device: pieces of memory, a place, and somebody to tell when it is over.

use crate::error::{IoKind, Result};
use crate::sys::Buf;

/// The first `bytes` of a buffer, as one part of a transfer.
#[derive(Debug)]
pub struct Piece {
    /// The memory.
    pub buf: Buf,
    /// How many bytes of it are moved; at most its capacity, whole pages where the device is used directly.
    pub bytes: usize,
}

impl Piece {
    /// All bytes that belong to the buffer.
    pub fn whole(buf: Buf) -> Self {
        Self {
            bytes: buf.capacity(),
            buf,
        }
    }
}

/// How a transfer ended.
#[derive(Debug)]
pub struct Finished {
    /// The memory, as it came. Empty if the device still holds it (only with [`crate::Error::Deadline`]).
    pub pieces: Vec<Piece>,
    /// Whether every byte was moved.
    pub result: Result<()>,
    /// From hand-over to the device until its answer, microseconds; 0 if it never got there.
    pub device_us: u64,
}

/// Who is told when a transfer is over; runs on the device's thread, so it must be short.
pub type WhenDone = Box<dyn FnOnce(Finished) + Send>;

/// One transfer for a [`crate::disk::Disk`].
pub struct Transfer {
    /// The caller's name for it, to cancel by; unique among those not over.
    pub id: u64,
    /// Which transfer.
    pub kind: IoKind,
    /// Byte offset on the device.
    pub at: u64,
    /// The memory, in order.
    pub pieces: Vec<Piece>,
    /// Who is told.
    pub done: WhenDone,
}

impl Transfer {
    /// Bytes it moves.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.bytes as u64).sum()
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Transfer({} {:?} {} bytes at {})",
            self.id,
            self.kind,
            self.bytes(),
            self.at
        )
    }
}
