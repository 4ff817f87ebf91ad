// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod codec;
mod error;
mod hex;
mod key;
mod namespace;
mod node;

pub use error::Error;
pub use key::{BlockKey, GroupId};
pub use namespace::{
    CANONICAL_LAYOUT_VERSION, GroupKind, GroupSpec, Namespace, NamespaceId, TenantSalt, limits,
};
pub use node::NodeId;
