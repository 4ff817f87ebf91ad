// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The control file of a pool: what lies where, so that the pool outlives the server.
//!
//! The server writes it, clients map it read-only. It describes each block at its place (key,
//! checksums) instead of keeping a journal: nothing is written twice, a start costs time in
//! proportion to the blocks that exist, and a client that has loaded a block finds its checksums
//! without asking. Knows nothing of files: it works on shared words.
//!
//! Invariant: whenever the server is killed, every record that reads as sealed describes bytes
//! that were complete, and a place whose record is empty is written to by nobody.

pub mod geometry;
pub mod record;
pub mod scan;
pub mod superblock;
pub mod tables;
pub mod words;
