// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What `pegaflow-server` is made of: its settings, where they come from, and the shell around a
//! node (HTTP, logs, life cycle).
//!
//! The binary adds only the command line. A program that embeds a node needs none of this.

pub mod http;
pub mod layers;
pub mod load;
pub mod notify;
pub mod print;
mod problem;
mod room;
pub mod settings;
pub mod socket;
pub mod telemetry;
pub mod top;
mod validate;

pub use layers::Layers;
pub use problem::{ConfigError, Origin, Problem};
pub use settings::Settings;
