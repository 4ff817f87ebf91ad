// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Copies of bytes that others may change at the same time, plain and with a checksum on the way.

pub(crate) mod sys;
