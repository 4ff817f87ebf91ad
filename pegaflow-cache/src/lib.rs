// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
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
pub mod tier;
pub mod worker;

/// The vocabulary of keys and namespaces, for users of this crate alone.
pub use pegaflow_meta as meta;

mod error;

pub use error::{Error, ErrorKind, Result};
