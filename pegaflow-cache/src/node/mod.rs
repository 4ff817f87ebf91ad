// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The node
pub mod process;
