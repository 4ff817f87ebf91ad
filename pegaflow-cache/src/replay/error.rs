// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What can end a replay.

use super::trace::TraceError;

/// Why a replay could not run or go on. Misses, refusals and a node that comes back are not errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that makes no sense.
    #[error("`{setting}`: {reason}")]
    Settings {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The trace cannot be read.
    #[error("trace: {0}")]
    Trace(#[from] TraceError),
    /// The memory layer refused.
    #[error(transparent)]
    Memory(#[from] pegaflow_mem::Error),
    /// The node went away and did not come back in time.
    #[error("the node did not come back within {waited_ms} ms: {reason}")]
    NodeLost {
        /// How long the replay waited, milliseconds.
        waited_ms: u64,
        /// The last answer.
        reason: String,
    },
    /// The node refused something that should have been right.
    #[error("{op}: {reason}")]
    Node {
        /// What was asked.
        op: &'static str,
        /// The answer.
        reason: String,
    },
}
