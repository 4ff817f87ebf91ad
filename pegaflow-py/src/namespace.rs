// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Namespaces and keys.

use std::sync::Arc;

use pegaflow_cache::Error;
use pegaflow_cache::client::NamespaceHandle;
use pegaflow_cache::meta::{BlockKey, GroupId, GroupKind, GroupSpec, NamespaceId, TenantSalt};
use pegaflow_cache::node::NamespaceLayout;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use tokio::sync::OnceCell;

use crate::error::invalid;
use crate::node::Shared;

/// A namespace: makes keys, also while the node is away.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) known: Arc<Known>,
}

/// A namespace, and its registration once the node has taken it.
#[derive(Debug)]
pub(crate) struct Known {
    id: NamespaceId,
    pub(crate) layout: NamespaceLayout,
    handle: OnceCell<NamespaceHandle>,
}

impl Known {
    pub(crate) fn new(layout: NamespaceLayout) -> PyResult<Self> {
        Ok(Self {
            id: layout.namespace.fingerprint().map_err(invalid)?,
            layout,
            handle: OnceCell::new(),
        })
    }

    /// Its registration with the node.
    pub(crate) async fn handle(&self, shared: &Shared) -> Result<&NamespaceHandle, Error> {
        let register = || async {
            let client = shared.client()?;
            client.register_namespace(self.layout.clone()).await
        };
        self.handle.get_or_try_init(register).await
    }
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
            keys.extend_from_slice(&BlockKey::derive(&self.known.id, GroupId(group), hash).0);
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
    /// Kind, tokens of a block, tokens of the window, and name of the layout of each group.
    groups: Vec<(String, u32, u32, String)>,
    tenant_salt: Vec<u8>,
}

/// The canonical encoding of a namespace.
#[pyfunction]
pub(crate) fn encode_namespace(py: Python<'_>, parts: Parts) -> PyResult<Bound<'_, PyBytes>> {
    let groups = parts.groups.into_iter().map(group);
    let namespace = pegaflow_cache::meta::Namespace {
        model: parts.model,
        weights: parts.weights,
        kv_dtype: parts.kv_dtype,
        kv_quantisation: parts.kv_quantisation,
        hash_algorithm: parts.hash_algorithm,
        hash_seed: parts.hash_seed,
        groups: groups.collect::<PyResult<_>>()?,
        tenant_salt: TenantSalt(parts.tenant_salt),
    };
    let encoding = namespace.encode().map_err(invalid)?;
    Ok(PyBytes::new(py, &encoding))
}

fn group(
    (kind, block_tokens, window_tokens, layout): (String, u32, u32, String),
) -> PyResult<GroupSpec> {
    let kind = match kind.as_str() {
        "full" => GroupKind::FullAttention,
        "mla" => GroupKind::Mla,
        "window" => GroupKind::SlidingWindow { window_tokens },
        "state" => GroupKind::State,
        other => return Err(invalid(format!("no kind of group is called {other:?}"))),
    };
    Ok(GroupSpec {
        kind,
        block_tokens,
        layout,
    })
}
