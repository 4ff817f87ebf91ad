// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a client waits for: lookups through the session socket, a ticket's poll, making a thousand
//! blocks visible, and a server's start on a pool that is there.
//!
//! Server and client are two processes. Napkin: a lookup of 8,192 keys carries 128 KiB there and
//! 96 KiB back, and the core needs 0.1 us a key: some 0.8 ms, of which the socket is 0.1 ms. A small
//! lookup is two wake-ups of a process, which a bare ping-pong of the same bytes between the same two
//! processes has as well: that is the floor. A start reads a record of some 130 bytes a block and
//! never the blocks.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "lines for tools on stdout, text for people on stderr"
)]

mod points;
mod report;
mod server;

use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, dir, bytes] = &args[..]
        && mode == "--serve"
    {
        return server::serve(Path::new(dir), bytes.parse().expect("bytes"));
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let only = args.iter().position(|arg| arg == "--op");
    let only = only.and_then(|at| args.get(at + 1)).map(String::as_str);
    points::run(quick, only);
}
