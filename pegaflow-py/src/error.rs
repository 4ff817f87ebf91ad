// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Every failure is one Python exception: an engine does the same about all of them, it computes.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

pyo3::create_exception!(
    pegaflow._native,
    PegaFlowError,
    PyException,
    "The node refused, did not answer, or is away. `args` are the kind of the error and its message."
);

/// The Python exception for an error of the cache.
pub(crate) fn cache(error: pegaflow_cache::Error) -> PyErr {
    PegaFlowError::new_err((format!("{:?}", error.kind()), error.to_string()))
}

/// The Python exception for an error of memory or a device.
pub(crate) fn memory(error: pegaflow_mem::Error) -> PyErr {
    PegaFlowError::new_err((format!("{:?}", error.kind()), error.to_string()))
}

/// The Python exception for arguments that cannot be.
pub(crate) fn invalid(message: impl std::fmt::Display) -> PyErr {
    PegaFlowError::new_err(("Invalid", message.to_string()))
}
