// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What can go wrong here, and what the caller should do about it.

use std::path::PathBuf;

pub use pegaflow_mem::ErrorKind;

use crate::sys::{PAGE, pages};

/// The result of most calls of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Which transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// Bytes from the device.
    Read,
    /// Bytes to the device.
    Write,
    /// Everything acknowledged so far made durable.
    Flush,
}

/// What went wrong, by cause; [`Error::kind`] says what to do about it.
///
/// Cloneable, because one failed transfer can fail many blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A queue is full. Nothing was taken; the buffer came back with this.
    #[error("{what} is full: {limit} bytes allowed by `{setting}`")]
    Busy {
        /// Which queue.
        what: &'static str,
        /// The setting that names the limit.
        setting: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The request can never work as it stands.
    #[error("{0}")]
    Invalid(String),
    /// A block is longer than any this store can take: it must fit in a segment.
    #[error(
        "a block of {bytes} bytes: this store takes at most {bytes_max}; make it with `segment_bytes` of {} or more for such blocks",
        segment_bytes_for(*bytes)
    )]
    BlockTooLarge {
        /// Its length, bytes.
        bytes: u64,
        /// The longest that fits, bytes.
        bytes_max: u64,
    },
    /// The device answered with an error of the operating system.
    #[error("{kind:?} of {bytes} bytes at {at}: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// Which transfer.
        kind: IoKind,
        /// Byte offset on the device.
        at: u64,
        /// How many bytes were asked for.
        bytes: u64,
        /// The error number.
        errno: i32,
    },
    /// Fewer bytes than asked for, and no more to come: the file or device ends there.
    #[error("the device ended: {bytes} bytes asked at {at}")]
    EndOfDevice {
        /// Byte offset on the device.
        at: u64,
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// Bytes on the device are not what was written.
    #[error("{what} at {at}: checksum {got:#x} where {want:#x} was written")]
    Corrupt {
        /// What was being read.
        what: &'static str,
        /// Byte offset on the device.
        at: u64,
        /// The checksum that was recorded.
        want: u64,
        /// The checksum of what was read.
        got: u64,
    },
    /// Another process (or another store of this one) has the file or device open.
    #[error("{} is in use by another store", path.display())]
    InUse {
        /// The file or device.
        path: PathBuf,
    },
    /// The path cannot hold a store.
    #[error("{}: {reason}", path.display())]
    BadPath {
        /// The file or device.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The store was written by a version this one does not read.
    #[error("{}: format version {found}, this program reads {supported}", path.display())]
    Version {
        /// The file or device.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version this program writes and reads.
        supported: u32,
    },
    /// The device did not answer in time. The buffer stays away until the device lets go of it.
    #[error("{kind:?} at {at}: no answer after {deadline_ms} ms")]
    Deadline {
        /// Which transfer.
        kind: IoKind,
        /// Byte offset on the device.
        at: u64,
        /// The limit, milliseconds.
        deadline_ms: u64,
    },
    /// The caller took the request back before it ran.
    #[error("cancelled")]
    Cancelled,
    /// The store is closed or closing.
    #[error("the store is closed")]
    Closed,
    /// Nothing can be reclaimed: everything is pinned, or the device failed too often.
    #[error("no segment can be reclaimed: {0}")]
    Full(&'static str),
    /// This machine cannot do it.
    #[error("{0}")]
    Unsupported(String),
}

/// The smallest segment that a block of so many bytes fits in: with a header before it and a summary behind.
fn segment_bytes_for(bytes: u64) -> u64 {
    pages(bytes) + 2 * PAGE as u64
}

impl Error {
    /// What the caller must do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } | Self::Full(_) => ErrorKind::Busy,
            Self::Invalid(_) | Self::BadPath { .. } | Self::BlockTooLarge { .. } => {
                ErrorKind::Invalid
            }
            Self::InUse { .. } => ErrorKind::Busy,
            Self::Io { errno, .. } if matches!(*errno, libc::EAGAIN | libc::EINTR) => {
                ErrorKind::Retry
            }
            Self::Io { .. } | Self::EndOfDevice { .. } => ErrorKind::Internal,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Version { .. } | Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Deadline { .. } => ErrorKind::Retry,
            Self::Cancelled | Self::Closed => ErrorKind::Closed,
        }
    }

    /// Turns an error of the operating system into ours.
    pub(crate) fn io(kind: IoKind, at: u64, bytes: u64, e: &std::io::Error) -> Self {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            return Self::EndOfDevice { at, bytes };
        }
        let errno = e.raw_os_error().unwrap_or(libc::EIO);
        Self::Io {
            kind,
            at,
            bytes,
            errno,
        }
    }
}
