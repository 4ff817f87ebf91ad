// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The PegaFlow node: index, leases, eviction, shared-memory pools, gRPC server and client.
#![forbid(unsafe_code)]

pub mod describe;
#[cfg(feature = "server")]
pub mod probe;
#[cfg(feature = "replay")]
pub mod replay;
#[cfg(feature = "server")]
pub mod server;
