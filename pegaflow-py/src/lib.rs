// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The native module of the Python package: a blocking, GIL-friendly face of the client.
//!
//! Knows nothing of any engine. Lists of keys and places cross the boundary as `bytes`, once a step, and no
//! call holds the GIL while it waits.

mod client;
mod error;
mod namespace;
mod rank;
mod sys;

use pyo3::prelude::*;

/// PegaFlow's client for Python. See the package's type stubs.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::client::{Client, Found, Lookup};
    #[pymodule_export]
    use super::error::PegaFlowError;
    #[pymodule_export]
    use super::namespace::{Namespace, encode_namespace};
    #[pymodule_export]
    use super::rank::Rank;
}
