// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Copies: of bytes that others may change at the same time (plain and with a checksum on the way), and the arithmetic
//! of large batches.
//!
//! [`plan`] cuts a job into steps that fit a staging slot or a kernel launch; [`method`] picks the cheapest way from
//! rates that were measured on the device. Neither knows a driver, an address or a clock.

pub mod method;
pub mod plan;
pub(crate) mod sys;

pub use method::{Method, Rates};
pub use plan::{Cut, JobShape, Short, Step};
