// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Compiles the protocol without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "pegaflow/v1/node.proto";
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
