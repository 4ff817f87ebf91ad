// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Scripts against the core: what each call answers, and what it makes the shell do.

mod ahead;
mod basics;
mod chaos;
mod fetch;
mod hint;
mod hybrid;
mod machine;
mod points;
mod refusals;
mod restart;
pub(crate) mod rig;
mod shell;
mod tenants;
mod waiting;
