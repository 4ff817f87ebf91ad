// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `h2d`: scattered KV blocks from a pool to a device. See `copy_bench`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod copy_bench;

fn main() {
    copy_bench::main("h2d", pegaflow_mem::device::Direction::Load);
}
