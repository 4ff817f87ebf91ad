// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Namespaces and keys.

use crate::error::invalid;
use pegaflow_cache::client::NamespaceHandle;
use pegaflow_cache::meta::{GroupId, GroupKind, GroupSpec, TenantSalt};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// A namespace that is registered with the node: makes keys.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) handle: NamespaceHandle,
}

#[pymethods]
impl Namespace {
    /// Keys of 16 bytes, one after the other, for the engine's hashes of full blocks.
    fn keys<'py>(
        &self,
        py: Python<'py>,
        group: u16,
        hashes: Vec<PyBackedBytes>,
    ) -> Bound<'py, PyBytes> {
        let mut keys = Vec::with_capacity(hashes.len() * 16);
        for hash in &hashes {
            keys.extend_from_slice(&self.handle.key(GroupId(group), hash).0);
        }
        PyBytes::new(py, &keys)
    }
}

/// What the engine says of itself, by field of a namespace.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Parts {
    model: [u8; 32],
    weights: [u8; 32],
    kv_dtype: String,
    kv_quantisation: String,
    hash_algorithm: String,
    hash_seed: Vec<u8>,
    layout: String,
    block_tokens: u32,
    mla: bool,
    tenant_salt: Vec<u8>,
}

/// The canonical encoding of a namespace with one group.
#[pyfunction]
pub(crate) fn encode_namespace(py: Python<'_>, parts: Parts) -> PyResult<Bound<'_, PyBytes>> {
    let kind = if parts.mla {
        GroupKind::Mla
    } else {
        GroupKind::FullAttention
    };
    let namespace = pegaflow_cache::meta::Namespace {
        model: parts.model,
        weights: parts.weights,
        kv_dtype: parts.kv_dtype,
        kv_quantisation: parts.kv_quantisation,
        hash_algorithm: parts.hash_algorithm,
        hash_seed: parts.hash_seed,
        groups: vec![GroupSpec {
            kind,
            block_tokens: parts.block_tokens,
            layout: parts.layout,
        }],
        tenant_salt: TenantSalt(parts.tenant_salt),
    };
    let encoding = namespace.encode().map_err(invalid)?;
    Ok(PyBytes::new(py, &encoding))
}
