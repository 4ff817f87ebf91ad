// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The PegaFlow node: index, leases, eviction, shared-memory pools, gRPC server and client.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod core;
pub mod describe;
pub mod metrics;
pub mod node;
#[cfg(feature = "server")]
pub mod probe;
#[cfg(feature = "replay")]
pub mod replay;
pub mod rpc;
#[cfg(feature = "server")]
pub mod server;
pub mod worker;

mod error;

pub use error::{Error, ErrorKind, Result};
