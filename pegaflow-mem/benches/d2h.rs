// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `d2h`: scattered KV blocks from a device into a pool. See `copy_bench`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod copy_bench;

fn main() {
    copy_bench::main("d2h", pegaflow_mem::device::Direction::Save);
}
