// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What can go wrong here, and what the caller should do about it.

use std::io;
use std::path::PathBuf;

/// What the caller must do. The same words mean the same in every PegaFlow crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Try the same call again: the cause passes by itself.
    Retry,
    /// A named limit is reached: go on without, or come back when something was released.
    Busy,
    /// The request can never work as it stands: fix it.
    Invalid,
    /// Bytes are not what was stored: treat as a miss.
    Corrupt,
    /// This machine or build cannot do it: choose another way.
    Unsupported,
    /// The other side is gone, or the work was cancelled: open it anew.
    Closed,
    /// A fault of the system or of this program: report it.
    Internal,
}

/// The result of most calls of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by cause; [`Error::kind`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A block shape, slot or device layout that cannot be.
    #[error("invalid {what}: {reason}")]
    Layout {
        /// Which of the descriptions is wrong.
        what: &'static str,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A block index beyond the engine's number of blocks.
    #[error("block {block} does not exist, the layout has {blocks} blocks")]
    BlockOutOfRange {
        /// The index asked for.
        block: u32,
        /// How many blocks the layout has.
        blocks: u32,
    },
    /// Bytes outside the memory they should lie in.
    #[error("{what}: bytes {offset}..+{bytes} are outside its {len} bytes")]
    OutOfBounds {
        /// Which memory.
        what: &'static str,
        /// First byte asked for, from the memory's start.
        offset: u64,
        /// How many bytes were asked for.
        bytes: u64,
        /// How many bytes the memory has.
        len: u64,
    },
    /// An offset that breaks an alignment rule.
    #[error("offset {offset} is not a multiple of {align}")]
    Misaligned {
        /// The offset asked for, in bytes.
        offset: u64,
        /// The alignment needed, in bytes.
        align: u64,
    },
    /// A place that the allocator did not hand out, or that was freed already.
    #[error("place {place:#x} is not allocated")]
    NotAllocated {
        /// The byte offset given.
        place: u64,
    },
    /// A place or slab that is in use already.
    #[error("place {place:#x} is in use already")]
    InUse {
        /// The byte offset given.
        place: u64,
    },
    /// A size that no place can have.
    #[error("{bytes} bytes cannot be a place: 1 to {bytes_max} bytes are possible in this pool")]
    PlaceSize {
        /// The size asked for, in bytes.
        bytes: u64,
        /// The largest possible size, in bytes.
        bytes_max: u64,
    },
    /// A write to memory that was attached read-only.
    #[error("the memory is attached read-only")]
    ReadOnly,
    /// A system call failed.
    #[error("{op}{}: {source}{}", in_path(path), hint(help))]
    Os {
        /// What was tried.
        op: &'static str,
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What to do about it; empty where the cause says it all.
        help: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Huge pages that cannot be had.
    #[error("no {wanted} pages for {bytes} bytes: {reason}; {help}")]
    HugePages {
        /// The kind of page asked for.
        wanted: &'static str,
        /// The pool's size in bytes.
        bytes: u64,
        /// Why not.
        reason: String,
        /// How to get them.
        help: String,
    },
    /// A queue is full.
    #[error("{what} are at their limit of {limit} (`{setting}`)")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The setting that holds it.
        setting: &'static str,
    },
    /// A handle or event of another device, or an address of memory that no one registered.
    #[error("{what} does not belong to this device")]
    Foreign {
        /// What was handed in.
        what: &'static str,
    },
    /// The copy was cancelled; nothing touches its memory any more.
    #[error("the copy was cancelled")]
    Cancelled,
    /// The device is shutting down; the copy did not run.
    #[error("the device is closed")]
    Closed,
    /// The device reported a failure.
    #[error("device {device}: {op}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What was tried.
        op: &'static str,
        /// What the device or its driver said.
        reason: String,
    },
    /// Something this machine or this build does not have.
    #[error("{what} is not available: {reason}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it is not there.
        reason: String,
    },
}

impl Error {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Layout { .. }
            | Error::BlockOutOfRange { .. }
            | Error::OutOfBounds { .. }
            | Error::Misaligned { .. }
            | Error::NotAllocated { .. }
            | Error::InUse { .. }
            | Error::PlaceSize { .. }
            | Error::ReadOnly
            | Error::Foreign { .. } => ErrorKind::Invalid,
            Error::Os { source, .. } => os_kind(source),
            Error::HugePages { .. } | Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::Limit { .. } => ErrorKind::Busy,
            Error::Cancelled | Error::Closed => ErrorKind::Closed,
            Error::Device { .. } => ErrorKind::Internal,
        }
    }

    /// Wraps the last error of the C library.
    pub(crate) fn last_os(op: &'static str) -> Self {
        Self::os(op, io::Error::last_os_error())
    }

    pub(crate) fn os(op: &'static str, source: io::Error) -> Self {
        Error::Os {
            op,
            path: None,
            help: String::new(),
            source,
        }
    }

    /// Names the file a system call was about.
    pub(crate) fn at(mut self, file: &std::path::Path) -> Self {
        if let Error::Os { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }

    /// Says what to do about it.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        if let Error::Os { help, .. } = &mut self {
            *help = text.into();
        }
        self
    }
}

fn os_kind(source: &io::Error) -> ErrorKind {
    match source.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => ErrorKind::Retry,
        io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => ErrorKind::Busy,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    }
}

fn in_path(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map(|p| format!(" {}", p.display()))
        .unwrap_or_default()
}

fn hint(help: &str) -> String {
    if help.is_empty() {
        String::new()
    } else {
        format!("; {help}")
    }
}
