// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node as its clients meet it: in this process, over sockets, killed and started again.

mod api;
mod death;
mod pools;
mod restart;
mod support;
mod tcp;
mod wire;
mod workers;
