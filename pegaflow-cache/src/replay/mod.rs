// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Workload replay: real or synthetic request traces against a node, every byte verified.
//!
//! The pure parts come first and know nothing of nodes: [`trace`] reads public traces, [`synth`] makes up a
//! workload with published statistics, [`facts`] describes either, [`lru`] is an independent simulator to
//! compare a node's hit rate with, [`content`] derives the bytes of a block from its key.

pub mod content;
pub mod dice;
pub mod facts;
pub mod lru;
pub mod synth;
pub mod trace;
