// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How a client reaches a node in another process.

use std::path::PathBuf;

use crate::describe::settings;

settings! {
    /// How a client reaches a node in another process.
    pub struct ClientSettings {
        /// The node's Unix socket, as its setting `socket` has it.
        pub socket: PathBuf = PathBuf::from("/tmp/pegaflow.sock"),
        /// Who this is, for the node's logs; 128 bytes at most.
        pub name: String = "client".to_owned(),
        /// Longest wait for one answer, in milliseconds. After it the call fails and the engine goes
        /// on without.
        pub call_timeout_ms: u32 = 2_000,
        /// Longest wait for the first connection, in milliseconds. 0 does not wait.
        pub connect_timeout_ms: u32 = 10_000,
        /// Longest pause between two attempts to reconnect, in milliseconds.
        pub reconnect_pause_ms_max: u32 = 500,
        /// Most connections open at once; further calls wait for one.
        pub connections_max: u32 = 8,
    }
}

/// The session socket that belongs to a node's gRPC socket: the same path and `.pool`.
#[must_use]
pub fn session_socket(socket: &std::path::Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".pool");
    path.into()
}
