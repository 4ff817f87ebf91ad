// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Workload replay: real or synthetic request traces against a node, every byte verified.
//!
//! The pure parts know nothing of nodes: [`trace`] reads public traces, [`synth`] makes up a workload with
//! published statistics, [`facts`] describes either, [`lru`] is an independent simulator to compare a node's hit
//! rate with, [`baselines`] more of them and [`workloads`] to compare on, [`content`] derives the bytes of a block from its key.
//!
//! The driver, [`drive`], plays the engine: it takes requests from a [`source`], reaches a node through a
//! [`port`], keeps its KV in [`engine`] memory, and counts with a [`meter`].
//!
//! Invariant: every byte that a load delivers is compared with what its key says.

pub mod baselines;
pub mod content;
pub mod dice;
pub mod drive;
pub mod engine;
mod error;
pub mod facts;
pub mod lru;
pub mod meter;
pub mod node;
pub mod port;
pub mod report;
mod settings;
pub mod source;
pub mod synth;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod workloads;

pub use error::Error;
pub use settings::ReplaySettings;
