// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The messages of `proto/pegaflow/v1/node.proto`, as the compiler writes them.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated code; the .proto file is its documentation"
)]

tonic::include_proto!("pegaflow.v1");
