// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How clients reach a node: messages, frames, hand-over of the pools, servers.
//!
//! Two transports, one set of messages. gRPC serves every call over a Unix socket or TCP. The
//! *session socket* beside it serves the same calls as length-prefixed frames without HTTP/2,
//! hands over the pools and is the session's lifeline; clients that share memory use it for all
//! calls. Measured on the development machine for a request and reply of 1 KiB: 17-46 us as
//! frames, 54-125 us over gRPC, so gRPC alone would miss the 60 us aimed at for a small lookup.

mod access;
pub(crate) mod call;
mod failure;
pub mod frame;
mod grpc;
pub mod handover;
pub(crate) mod observe;
pub mod proto;
mod serve;
mod session_socket;
mod tls;

pub use access::Access;
pub use serve::{Listeners, serve};
pub use tls::{ClientTls, ServerTls};

/// Oldest protocol version this build speaks.
pub const VERSION_MIN: u32 = 1;
/// Newest protocol version this build speaks.
pub const VERSION_MAX: u32 = 1;
/// Longest body of a frame, and longest gRPC message, in bytes.
pub const FRAME_BYTES_MAX: u32 = 8 << 20;
