// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a node knows of a namespace beside the core: how its blocks are cut for checksums.
//!
//! A block has one checksum for each head of each *stage*: a run of layers that pipeline stages
//! never cut. A slot is a whole number of stages; so workers of any TP size, and of PP sizes whose
//! cuts were named, verify what they read.

use std::ops::Range;

use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::Namespace;
use prost::Message;

use crate::control::record::CHECKSUMS_MAX;
use crate::core::{GroupShape, NamespaceSpec};
use crate::error::{Error, Result};
use crate::rpc::proto as pb;

/// One cache group: size of a block, and its stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLayout {
    /// Size of a block.
    pub shape: BlockShape,
    /// Layers at which a slot may end, ascending, without 0 and the last. Empty: slots have all
    /// layers.
    pub stage_ends: Vec<u32>,
}

/// A namespace with the layout of its groups, as a client registers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceLayout {
    /// What must match for KV to be shared.
    pub namespace: Namespace,
    /// Whose blocks these are; empty for the default tenant.
    pub tenant: String,
    /// One for each of the namespace's groups.
    pub groups: Vec<GroupLayout>,
}

/// Bytes of a tenant's name.
const TENANT_BYTES_MAX: usize = 128;

impl GroupLayout {
    /// A group whose slots have all layers.
    #[must_use]
    pub fn of(shape: BlockShape) -> Self {
        Self {
            shape,
            stage_ends: vec![],
        }
    }

    /// Number of stages.
    #[must_use]
    pub fn stages(&self) -> u32 {
        self.stage_ends.len() as u32 + 1
    }

    /// Checksums of a whole block.
    #[must_use]
    pub fn checksums(&self) -> u32 {
        self.stages().saturating_mul(self.shape.heads)
    }

    /// Layers of stage `stage`.
    #[must_use]
    pub fn stage_layers(&self, stage: u32) -> Range<u32> {
        let end = |stage: u32| self.stage_ends.get(stage as usize).copied();
        let start = stage.checked_sub(1).and_then(end).unwrap_or(0);
        start..end(stage).unwrap_or(self.shape.layers)
    }

    /// The stages of a slot.
    ///
    /// # Errors
    /// [`Error::Memory`] for a slot outside the block; [`Error::Protocol`] if it cuts a stage.
    pub fn stages_of(&self, slot: &Slot) -> Result<Range<u32>> {
        slot.validate(&self.shape)?;
        let cut = |layer: u32| match layer {
            0 => Some(0),
            _ if layer == self.shape.layers => Some(self.stages()),
            _ => {
                let found = self.stage_ends.binary_search(&layer).ok()?;
                Some(found as u32 + 1)
            }
        };
        match (cut(slot.layers.start), cut(slot.layers.end)) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(Error::protocol(format_args!(
                "layers {:?} of a slot cut a stage; stages end at {:?} and {}",
                slot.layers, self.stage_ends, self.shape.layers
            ))),
        }
    }

    /// Checks the layout.
    ///
    /// # Errors
    /// [`Error::Memory`] for a shape that cannot be; [`Error::Protocol`] for stages that cannot be,
    /// or too many checksums.
    pub fn validate(&self) -> Result<()> {
        self.shape.validate()?;
        let mut bounds = vec![0];
        bounds.extend(&self.stage_ends);
        bounds.push(self.shape.layers);
        if !bounds.is_sorted_by(|a, b| a < b) {
            return Err(Error::protocol(
                "stage ends must ascend, without 0 and the last layer",
            ));
        }
        if self.checksums() > CHECKSUMS_MAX {
            return Err(Error::protocol(format_args!(
                "{} checksums a block, {CHECKSUMS_MAX} at most",
                self.checksums()
            )));
        }
        Ok(())
    }
}

impl NamespaceLayout {
    /// A namespace of the default tenant, with slots of all layers.
    #[must_use]
    pub fn new(namespace: Namespace, shapes: &[BlockShape]) -> Self {
        Self {
            namespace,
            tenant: String::new(),
            groups: shapes.iter().copied().map(GroupLayout::of).collect(),
        }
    }

    /// The message that registers it.
    ///
    /// # Errors
    /// [`Error::Name`] for a namespace that cannot be written.
    pub fn to_request(&self) -> Result<pb::RegisterNamespaceRequest> {
        let group = |group: &GroupLayout| pb::Group {
            shape: Some(pb::Shape {
                layers: group.shape.layers,
                parts: group.shape.parts,
                heads: group.shape.heads,
                inner_bytes: group.shape.inner_bytes,
            }),
            stage_ends: group.stage_ends.clone(),
        };
        Ok(pb::RegisterNamespaceRequest {
            session: 0,
            namespace: self.namespace.encode()?.into(),
            groups: self.groups.iter().map(group).collect(),
            tenant: self.tenant.clone(),
        })
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Protocol`], [`Error::Memory`]: it cannot be.
    pub fn from_request(request: &pb::RegisterNamespaceRequest) -> Result<Self> {
        let namespace = Namespace::decode(&request.namespace)?;
        if request.groups.len() != namespace.groups.len() {
            return Err(Error::protocol(format_args!(
                "{} layouts for {} groups",
                request.groups.len(),
                namespace.groups.len()
            )));
        }
        if request.tenant.len() > TENANT_BYTES_MAX {
            return Err(Error::protocol(format_args!(
                "a tenant's name has at most {TENANT_BYTES_MAX} bytes"
            )));
        }
        let group = |group: &pb::Group| {
            let shape = group.shape.unwrap_or_default();
            let layout = GroupLayout {
                shape: BlockShape {
                    layers: shape.layers,
                    parts: shape.parts,
                    heads: shape.heads,
                    inner_bytes: shape.inner_bytes,
                },
                stage_ends: group.stage_ends.clone(),
            };
            layout.validate().map(|()| layout)
        };
        Ok(Self {
            groups: request.groups.iter().map(group).collect::<Result<_>>()?,
            tenant: request.tenant.clone(),
            namespace,
        })
    }

    /// As the control file keeps it.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        Ok(self.to_request()?.encode_to_vec())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::from_request(&pb::RegisterNamespaceRequest::decode(bytes)?)
    }

    /// As the core wants it.
    pub(super) fn spec(&self) -> Result<NamespaceSpec> {
        let groups = self.namespace.groups.iter().zip(&self.groups);
        Ok(NamespaceSpec {
            id: self.namespace.fingerprint()?,
            tenant: self.tenant.clone(),
            groups: groups
                .map(|(group, layout)| GroupShape {
                    kind: group.kind,
                    block_tokens: group.block_tokens,
                    shape: layout.shape,
                })
                .collect(),
        })
    }
}
