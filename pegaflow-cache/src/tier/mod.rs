// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Tiers behind the pools: what to fetch from them for a lookup, and what to write to them.
//!
//! Pure: no clock, socket, thread or byte. Times are handed in in microseconds, keys and sizes
//! stand for blocks. The shell (`node::ssd`) asks what to do, does it, and says how it went.
//!
//! - [`breaker`]: when to leave a failing source alone.
//! - [`estimate`]: how long a fetch takes, learnt from those before.
//! - [`plan`]: how far to follow a prefix, given where its blocks are.
//! - [`points`]: the same for the block points of a hybrid model.
//! - [`fetch`]: what is on its way, and who waits for it: one fetch a block.
//! - [`share`]: how tenants share the drive.
//! - [`turns`]: whose fetch is next.
//! - [`window`]: how much is asked of a drive at once.
//! - [`spill`]: what is to be written, in which order, within which budget.

pub mod breaker;
pub mod estimate;
pub mod fetch;
pub mod plan;
pub mod points;
mod settings;
pub mod share;
pub mod spill;
pub mod turns;
pub mod window;

pub use settings::{SpillAdmission, SsdReclaim, SsdSettings};

/// Where a block can come from beside the pools of its node. Further ones: pools and drives of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A drive of this node.
    Ssd,
}
