// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a node or a client, and what the caller should do about it.

use std::io;
use std::path::{Path, PathBuf};

pub use pegaflow_mem::ErrorKind;

use crate::rpc::frame::FrameError;

/// The result of most calls of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by cause; [`Error::kind`] says what the caller must do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The core refused the call; nothing has changed.
    #[error(transparent)]
    Core(#[from] crate::core::Error),
    /// A pool or device failed or refused.
    #[error(transparent)]
    Memory(#[from] pegaflow_mem::Error),
    /// A drive of the SSD tier failed or refused.
    #[error("SSD tier: {0}")]
    Ssd(#[from] pegaflow_ssd::Error),
    /// A name is not one.
    #[error(transparent)]
    Name(#[from] pegaflow_meta::Error),
    /// The node is not there at the moment. Go on without it: the client reconnects by itself.
    #[error("the node is unavailable: {why}")]
    Unavailable {
        /// What was seen of it last.
        why: String,
    },
    /// The lease, reservation or ticket is from before the connection was lost: ask anew.
    #[error("the {what} ended with the connection to the node that gave it")]
    Stale {
        /// What has ended.
        what: &'static str,
    },
    /// No answer in time.
    #[error("no answer within {timeout_ms} ms")]
    Timeout {
        /// How long was waited, in milliseconds.
        timeout_ms: u64,
    },
    /// The node answered with a failure.
    #[error("{message}")]
    Remote {
        /// What to do about it.
        kind: ErrorKind,
        /// What the node said.
        message: String,
    },
    /// The two sides have no protocol version in common.
    #[error(
        "no protocol version in common: one side speaks {ours_min} to {ours_max}, the other {theirs_min} to {theirs_max}; bring both to neighbouring releases"
    )]
    Version {
        /// Oldest version this side speaks.
        ours_min: u32,
        /// Newest version this side speaks.
        ours_max: u32,
        /// Oldest version the other side speaks.
        theirs_min: u32,
        /// Newest version the other side speaks.
        theirs_max: u32,
    },
    /// Bytes that are not what the protocol allows.
    #[error("protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// Another server serves the pool.
    #[error(
        "the pool in {} is in use by another server; stop that one, or give this one another `name` or pool directory",
        dir.display()
    )]
    PoolInUse {
        /// The pool's folder.
        dir: PathBuf,
    },
    /// A named limit is reached.
    #[error("{what}: at the limit of {limit} (`{setting}`)")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The setting that holds it.
        setting: &'static str,
    },
    /// A setting that cannot be.
    #[error("{setting}: {why}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// The caller may not do this.
    #[error("refused: {why}")]
    Refused {
        /// Why, and what would help.
        why: String,
    },
    /// The system failed.
    #[error("{op} {}: {source}", path.display())]
    Os {
        /// What was tried.
        op: &'static str,
        /// The file or socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// What the caller must do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Core(error) => error.kind(),
            Error::Memory(error) => error.kind(),
            Error::Ssd(error) => error.kind(),
            Error::Unavailable { .. } | Error::Stale { .. } | Error::Timeout { .. } => {
                ErrorKind::Retry
            }
            Error::Remote { kind, .. } => *kind,
            Error::Version { .. } => ErrorKind::Unsupported,
            Error::PoolInUse { .. } | Error::Limit { .. } => ErrorKind::Busy,
            Error::Name(_)
            | Error::Protocol { .. }
            | Error::Setting { .. }
            | Error::Refused { .. } => ErrorKind::Invalid,
            Error::Os { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => ErrorKind::Retry,
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::AddrInUse
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory => ErrorKind::Invalid,
                io::ErrorKind::StorageFull => ErrorKind::Busy,
                _ => ErrorKind::Internal,
            },
        }
    }

    /// Whether the node is away and the engine should go on without it.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// For `map_err` on system calls.
    pub(crate) fn os(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Os {
            op,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn protocol(what: impl ToString) -> Self {
        Error::Protocol {
            what: what.to_string(),
        }
    }

    pub(crate) fn unavailable(why: impl ToString) -> Self {
        Error::Unavailable {
            why: why.to_string(),
        }
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Error::protocol(error)
    }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Self {
        Error::protocol(error)
    }
}
