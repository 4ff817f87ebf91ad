// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

#![doc = include_str!("../README.md")]

pub mod checksum;
pub mod copy;
pub mod device;
mod error;
pub mod layout;
pub mod pool;
pub mod topology;

pub use error::{Error, ErrorKind, Result};
pub use layout::{BlockCopy, BlockShape, KvLayout, LayerView, Piece, Run, Slot};
pub use pool::shm::{
    Access, Backing, HugePages, PageKind, PoolBuf, PoolSpec, SharedMemory, SharedWord,
};
pub use pool::slab::{Place, SlabAllocator};
