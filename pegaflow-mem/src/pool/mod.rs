// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Pools: shared memory, and the allocator that says which bytes of it are whose.

pub mod shm;
pub mod slab;
