// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One node, two tiers: blocks that the pool has no room for come back from SSD, byte for byte.

mod faults;
mod flow;
mod hints;
mod hybrid;
mod rig;
mod tenants;
