// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The native module of the Python package: a blocking, GIL-friendly face of the client.
//!
//! Knows nothing of any engine. Lists of keys and places cross the boundary as `bytes`, once a step, and no
//! call holds the GIL while it waits.

mod client;
mod device;
mod error;
mod load;
mod lookup;
mod namespace;
mod node;
mod rank;
mod save;
mod sys;

use pyo3::prelude::*;

/// PegaFlow's client for Python. See the package's type stubs.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::device::{Device, probe_gpus};
    #[pymodule_export]
    use super::error::PegaFlowError;
    #[pymodule_export]
    use super::load::Loading;
    #[pymodule_export]
    use super::lookup::{Found, Lookup};
    #[pymodule_export]
    use super::namespace::{Namespace, encode_namespace};
    #[pymodule_export]
    use super::rank::Rank;
}
